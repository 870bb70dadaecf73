"""ACPI tables, read back by ACPICA's own compiler and by offsets declared here anew from the specification."""

import itertools
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from snapkit.errors import InternalError
from snapkit.vmm.arch.x86_64 import aml
from snapkit.vmm.arch.x86_64.acpi import build_tables

needs_iasl = pytest.mark.skipif(shutil.which("iasl") is None, reason="iasl (package acpica-tools) is missing")


def by_signature(tables):
    return {table[:4].decode(): table for _, table in tables}


def run_iasl(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(["iasl", *arguments], capture_output=True, text=True, cwd=cwd, timeout=60, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    complaints = re.findall(r"^.*(?:error|warning|invalid|exceed|incorrect).*$", output, re.IGNORECASE | re.MULTILINE)
    harmless = re.compile(r"0 Errors, 0 Warnings")
    assert [line for line in complaints if not harmless.search(line)] == []
    return output


def disassembled(table: bytes, tmp_path: Path) -> str:
    name = table[:4].decode()
    (tmp_path / f"{name}.dat").write_bytes(table)
    run_iasl("-d", f"{name}.dat", cwd=tmp_path)
    text = (tmp_path / f"{name}.dsl").read_text()
    assert not re.search(r"/\*\*\*|incorrect|invalid|unknown", text, re.IGNORECASE)
    return text


def value_of(text: str, label: str) -> str:
    match = re.search(rf"^.*\b{re.escape(label)} : (.*)$", text, re.MULTILINE)
    assert match, label
    return match[1].strip()


@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_tables_are_summed_to_zero_linked_and_apart(vcpus):
    tables = build_tables(vcpus)
    at = dict(tables)
    for (start, table), (after, _) in itertools.pairwise(tables):
        assert start % 16 == 0
        assert start + len(table) <= after
    assert tables[0][0] >= 0xE_0000
    assert tables[-1][0] + len(tables[-1][1]) <= 0x10_0000
    rsdp = tables[0][1]
    assert rsdp[:8] == b"RSD PTR "
    assert (sum(rsdp[:20]) & 0xFF, sum(rsdp) & 0xFF, rsdp[15], len(rsdp)) == (0, 0, 2, 36)
    for table in by_signature(tables[1:]).values():
        assert sum(table) & 0xFF == 0
        assert struct.unpack_from("<I", table, 4)[0] == len(table)
    xsdt = at[struct.unpack_from("<Q", rsdp, 24)[0]]
    assert xsdt[:4] == b"XSDT"
    listed = [at[gpa] for gpa in struct.unpack_from("<2Q", xsdt, 36)]
    assert [table[:4] for table in listed] == [b"FACP", b"APIC"]
    assert at[struct.unpack_from("<Q", listed[0], 140)[0]][:4] == b"DSDT"
    assert at[struct.unpack_from("<I", listed[0], 40)[0]][:4] == b"DSDT"


def test_tables_of_equal_machines_are_equal():
    assert build_tables(2) == build_tables(2)
    assert build_tables(2) != build_tables(3)


@needs_iasl
def test_fadt_read_back_says_what_linux_must_know(tmp_path):
    text = disassembled(by_signature(build_tables(2))["FACP"], tmp_path)
    wanted = {
        "Hardware Reduced (V5)": "1",
        "Reset Register Supported (V2)": "1",
        "Legacy Devices Supported (V2)": "0",
        "8042 Present on ports 60/64 (V2)": "0",
        "VGA Not Present (V4)": "1",
        "CMOS RTC Not Present (V5)": "1",
        "MSI Not Supported (V4)": "0",
        "PCIe ASPM Not Supported (V4)": "0",
        "Value to cause reset": "FE",
        "Hypervisor ID": "0054494B50414E53",
    }
    assert {label: value_of(text, label) for label in wanted} == wanted
    for register, port in (
        ("Reset Register", "64"),
        ("Sleep Control Register", "600"),
        ("Sleep Status Register", "601"),
    ):
        lines = text.split(f"{register} : [Generic Address Structure]")[1]
        assert value_of(lines, "Space ID") == "01 [SystemIO]"
        assert value_of(lines, "Bit Width") == "08"
        assert value_of(lines, "Encoded Access Width") == "01 [Byte Access:8]"
        assert value_of(lines, "Address") == port.zfill(16)


@needs_iasl
@pytest.mark.parametrize("vcpus", [1, 8])
def test_madt_read_back_lists_every_cpu_and_one_ioapic(vcpus, tmp_path):
    text = disassembled(by_signature(build_tables(vcpus))["APIC"], tmp_path)
    assert text.count("[Processor Local APIC]") == vcpus
    assert re.findall(r"Local Apic ID : (\w+)", text) == [f"{cpu:02X}" for cpu in range(vcpus)]
    assert re.findall(r"Processor Enabled : (\w+)", text) == ["1"] * vcpus
    assert text.count("[I/O APIC]") == 1
    assert value_of(text, "Local Apic Address") == "FEE00000"
    assert value_of(text.split("[I/O APIC]")[1], "Address") == "FEC00000"
    assert value_of(text, "Interrupt") == "00000000"
    # KVM's default routing is the identity, ACPI's default: an override would misdirect the guest
    assert "Interrupt Source Override" not in text


@needs_iasl
def test_xsdt_is_read_back_without_complaint(tmp_path):
    text = disassembled(by_signature(build_tables(2))["XSDT"], tmp_path)
    assert text.count("ACPI Table Address") == 2


@needs_iasl
def test_rsdp_equals_the_one_that_iasl_compiles(tmp_path):
    # iasl disassembles no binary RSDP, but it compiles one, checksums included
    gpa, rsdp = build_tables(2)[0]
    assert gpa == 0xE_0000
    xsdt = struct.unpack_from("<Q", rsdp, 24)[0]
    (tmp_path / "rsdp.asl").write_text(
        f"""[0008] Signature : "RSD PTR "
        [0001] Checksum : 00
        [0006] Oem ID : "SNAPKT"
        [0001] Revision : 02
        [0004] RSDT Address : 00000000
        [0004] Length : 00000024
        [0008] XSDT Address : {xsdt:016X}
        [0001] Extended Checksum : 00
        [0003] Reserved : 000000
        """
    )
    run_iasl("rsdp.asl", cwd=tmp_path)
    assert (tmp_path / "rsdp.aml").read_bytes() == rsdp


@needs_iasl
def test_dsdt_read_back_has_power_off_serial_and_reserved_ranges(tmp_path):
    text = disassembled(by_signature(build_tables(2))["DSDT"], tmp_path)
    flat = re.sub(r"\s+", " ", re.sub(r"//.*|\s*/\*.*?\*/", "", text))
    assert re.search(r"Name \(_S5, Package \(0x04\) \{ 0x05,", flat)
    serial = flat.split("Device (COM1)")[1]
    assert 'EisaId ("PNP0501")' in serial
    assert re.search(r"IO \(Decode16, 0x03F8, 0x03F8, 0x01, 0x08, \)", serial)
    assert re.search(r"Interrupt \(ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, \) \{ 0x00000004, \}", serial)
    board = flat.split("Device (MBRD)")[1].split("Device (COM1)")[0]
    assert 'EisaId ("PNP0C02")' in board
    assert "Memory32Fixed (ReadWrite, 0xEEC00000, 0x00100000, )" in board
    assert "IO (Decode16, 0x0600, 0x0600, 0x01, 0x02, )" in board


def virtio_mmio(index: int) -> bytes:
    gpa = 0xEEBF_F000 - 0x1000 * index
    return aml.device(
        f"VIO{index}",
        aml.name("_HID", aml.text("LNRO0005")),
        aml.name("_UID", aml.integer(index)),
        aml.name("_CRS", aml.resources(aml.memory32_fixed(gpa, 0x1000), aml.interrupt(5 + index, level=True))),
    )


@needs_iasl
@pytest.mark.parametrize("extra", [0, 1, 8])
def test_dsdt_recompiled_from_its_disassembly_is_the_same(extra, tmp_path):
    dsdt = by_signature(build_tables(2, devices=[virtio_mmio(index) for index in range(extra)]))["DSDT"]
    text = disassembled(dsdt, tmp_path)
    assert text.count("LNRO0005") == extra
    assert text.count("Level, ActiveHigh") == extra
    output = run_iasl("DSDT.dsl", cwd=tmp_path)
    assert "0 Errors, 0 Warnings" in output
    again = (tmp_path / "DSDT.aml").read_bytes()
    # the header names the compiler, and the checksum covers that
    assert (again[36:], again[:9], again[10:28]) == (dsdt[36:], dsdt[:9], dsdt[10:28])


def test_tables_that_outgrow_their_place_are_a_bug():
    with pytest.raises(InternalError, match="ACPI tables end at"):
        build_tables(1, devices=[aml.name("AAAA", aml.text("x" * 0x2_0000))])


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (1, "01"),
        (2, "0a02"),
        (0xFF, "0aff"),
        (0x100, "0b0001"),
        (0x1_0000, "0c00000100"),
        (0x1_0000_0000, "0e0000000001000000"),
    ],
)
def test_integers_take_their_shortest_form(value, encoded):
    assert aml.integer(value).hex() == encoded


@pytest.mark.parametrize(
    ("path", "encoded"),
    [
        ("_HID", b"_HID"),
        ("S5", b"S5__"),
        ("\\", b"\\\0"),
        ("\\_SB", b"\\_SB_"),
        ("^DEV0", b"^DEV0"),
        ("_SB.COM1", b"\x2e_SB_COM1"),
        ("\\_SB.PCI0.COM1", b"\\\x2f\x03_SB_PCI0COM1"),
    ],
)
def test_names_are_encoded_as_the_grammar_says(path, encoded):
    assert aml.name_path(path) == encoded


@pytest.mark.parametrize("path", ["TOOLONG", "1ABC", "lower", "_SB..X", "A-B"])
def test_names_that_are_none_are_refused(path):
    with pytest.raises(ValueError, match="is no ACPI name"):
        aml.name_path(path)


@pytest.mark.parametrize("length", [0, 50, 58, 59, 60, 61, 62, 63, 64, 4080, 4085, 4090, 4095, 4096, 70_000])
def test_package_lengths_decode_to_where_the_term_ends(length):
    scope = aml.scope("ABCD", b"\xa3" * length)
    lead = scope[1]
    following = lead >> 6
    decoded = lead & 15 | int.from_bytes(scope[2 : 2 + following], "little") << 4 if following else lead
    assert 1 + decoded == len(scope)


def test_integers_and_packages_beyond_the_grammar_are_refused():
    with pytest.raises(ValueError, match="does not fit"):
        aml.integer(1 << 64)


def test_eisa_ids_are_packed_as_the_specification_example():
    assert aml.eisa_id("PNP0501") == bytes.fromhex("0c41d00501")
    assert aml.eisa_id("PNP0C02") == bytes.fromhex("0c41d00c02")
