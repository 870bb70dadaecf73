"""ACPI tables, read back by ACPICA's own compiler and by offsets declared here anew from the specification."""

import hashlib
import itertools
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from snapkit.errors import InternalError
from snapkit.restore.image import Image
from snapkit.vmm.arch.x86_64 import acpi_devices, aml
from snapkit.vmm.arch.x86_64.acpi import build_tables
from tools import golden

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
    return acpi_devices.virtio_mmio(index, 0xEEBF_F000 - 0x1000 * index, 6 + index)


@needs_iasl
@pytest.mark.parametrize("pci", [False, True], ids=["plain", "pci"])
@pytest.mark.parametrize("extra", [0, 1, 8])
def test_dsdt_recompiled_from_its_disassembly_is_the_same(extra, pci, tmp_path):
    devices = [*(virtio_mmio(index) for index in range(extra)), acpi_devices.vmgenid(0xF_F000, 5)]
    dsdt = by_signature(build_tables(2, devices=devices, pci=pci))["DSDT"]
    text = disassembled(dsdt, tmp_path)
    assert text.count("LNRO0005") == extra
    assert text.count("Level, ActiveHigh") == extra
    output = run_iasl("DSDT.dsl", cwd=tmp_path)
    assert "0 Errors, 0 Warnings" in output
    again = (tmp_path / "DSDT.aml").read_bytes()
    # the header names the compiler, and the checksum covers that
    assert (again[36:], again[:9], again[10:28]) == (dsdt[36:], dsdt[:9], dsdt[10:28])


GOLDEN_FOLDER = Path(__file__).parents[4] / golden.FOLDER / "0.1.0"
GOLDENS = golden.read_manifest(GOLDEN_FOLDER).goldens

# Release 0.1.0 wrote these tables: SHA-256 over every address (8 bytes, little endian) with its table.
TABLES_0_1_0 = {
    1: "94f4092a3bd41faa8d5b5b0710db761a3234d63416a5832464e7ad2b437f8ee6",
    2: "f185c76e75b7b7cb9e1b7fe4e09daf17a8fa2e4e40a47e0941675539ccd5257b",
    8: "c2d96f5fbc8a69058f90b458f6a39d4c4a61017ab0b4f8fcf902bd10e325b96f",
}


@pytest.mark.parametrize("vcpus", TABLES_0_1_0)
def test_tables_of_a_machine_without_devices_are_those_of_the_first_release(vcpus):
    stored = b"".join(gpa.to_bytes(8, "little") + table for gpa, table in build_tables(vcpus))
    assert hashlib.sha256(stored).hexdigest() == TABLES_0_1_0[vcpus]


@pytest.mark.parametrize("entry", GOLDENS, ids=lambda entry: entry.name)
def test_tables_of_a_machine_without_devices_are_those_in_the_stored_snapshots(entry, tmp_path):
    with Image.open(golden.unpack(GOLDEN_FOLDER, entry, tmp_path)) as image:
        for gpa, table in build_tables(entry.vcpus):
            assert image.memory.read(gpa, len(table)) == table


def flattened(text: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"//.*|\s*/\*.*?\*/", "", text))


@needs_iasl
def test_mcfg_read_back_gives_bus_0_and_is_listed(tmp_path):
    tables = build_tables(2, pci=True)
    text = disassembled(by_signature(tables)["MCFG"], tmp_path)
    assert text.count("Base Address") == 1
    assert value_of(text, "Base Address") == "00000000EEC00000"
    assert value_of(text, "Segment Group Number") == "0000"
    assert (value_of(text, "Start Bus Number"), value_of(text, "End Bus Number")) == ("00", "00")
    place = next(gpa for gpa, table in tables if table[:4] == b"MCFG")
    assert place in struct.unpack_from("<3Q", by_signature(tables)["XSDT"], 36)


@needs_iasl
def test_pci_root_read_back_has_its_bus_and_windows_and_nothing_of_others_in_them(tmp_path):
    flat = flattened(disassembled(by_signature(build_tables(2, pci=True))["DSDT"], tmp_path))
    root = flat.split("Device (PCI0)")[1]
    for name in (
        '_HID, EisaId ("PNP0A08")',
        '_CID, EisaId ("PNP0A03")',
        "_SEG, Zero",
        "_BBN, Zero",
        "_UID, Zero",
        "_CCA, One",
    ):
        assert f"Name ({name})" in root
    assert re.search(r"WordBusNumber \([^)]* 0x0000, 0x0000, 0x0000, 0x0000, 0x0001,", root)
    assert "IO (Decode16, 0x0CF8, 0x0CF8, 0x01, 0x08, )" in root
    windows = re.findall(r"[DQ]WordMemory \(ResourceProducer, PosDecode, MinFixed, MaxFixed, ([^)]*)\)", root)
    ranges = []
    for window in windows:
        attribute, access, granularity, first, last, translation, length = window.split(", ")[:7]
        assert (attribute, access) == ("NonCacheable", "ReadWrite")
        assert (int(granularity, 16), int(translation, 16)) == (0, 0)
        assert int(length, 16) == int(last, 16) - int(first, 16) + 1
        ranges.append((int(first, 16), int(last, 16)))
    assert ranges == [(0xC000_0000, 0xEEAF_FFFF), (0x40_0000_0000, 0x7F_FFFF_FFFF)]
    assert ranges[0][1] < 0xEEBF_F000 - 0x1000 * 18  # the lowest virtio-mmio slot: one for each legacy interrupt


@needs_iasl
def test_virtio_mmio_device_read_back_has_registers_and_a_level_interrupt(tmp_path):
    devices = [acpi_devices.virtio_mmio(number, 0xEEBF_F000 - 0x1000 * number, 6 + number) for number in range(18)]
    flat = flattened(disassembled(by_signature(build_tables(1, devices=devices))["DSDT"], tmp_path))
    last = flat.split("Device (VR11)")[1]
    assert 'Name (_HID, "LNRO0005")' in last
    assert "Name (_UID, 0x11)" in last
    assert "Memory32Fixed (ReadWrite, 0xEEBEE000, 0x00001000, )" in last
    assert "Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive, ,, ) { 0x00000017, }" in last


@needs_iasl
def test_generation_id_read_back_is_found_by_drivers_with_its_address(tmp_path):
    devices = [acpi_devices.vmgenid(0x12_000F_F000, 5)]
    flat = flattened(disassembled(by_signature(build_tables(1, devices=devices))["DSDT"], tmp_path))
    counter, events = flat.split("Device (VGEN)")[1].split("Device (GED0)")
    assert 'Name (_CID, "VM_Gen_Counter")' in counter
    assert 'Name (_DDN, "VM_Gen_Counter")' in counter
    assert "Name (ADDR, Package (0x02) { 0x000FF000, 0x12 })" in counter
    assert 'Name (_HID, "ACPI0013")' in events
    assert "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000005, }" in events


needs_acpiexec = pytest.mark.skipif(
    shutil.which("acpiexec") is None, reason="acpiexec (package acpica-tools) is missing"
)
OSC_UUID = "5B 4D DB 33 F7 1F 1C 40 96 57 74 41 C0 3D D7 66"
DSM_UUID = "D0 37 C9 E5 53 35 7A 4D 91 17 EA 4D 19 C3 43 4D"
OTHER_UUID = "00 11 22 33 44 55 66 77 88 99 AA BB CC DD EE FF"
QUERY, SUPPORT, CONTROL = "01 00 00 00", "1F 01 00 00", "FF 00 00 00"
ASKED = f"({QUERY} {SUPPORT} {CONTROL})"


@needs_acpiexec
@pytest.mark.parametrize(
    ("evaluation", "result"),
    [
        (rf"_OSC ({OSC_UUID}) 1 3 {ASKED}", f"{QUERY} {SUPPORT} {CONTROL}"),
        (rf"_OSC ({OSC_UUID}) 2 3 {ASKED}", f"09 00 00 00 {SUPPORT} {CONTROL}"),
        (rf"_OSC ({OTHER_UUID}) 1 3 {ASKED}", f"05 00 00 00 {SUPPORT} {CONTROL}"),
        (rf"_DSM ({DSM_UUID}) 1 0", "21"),
        (rf"_DSM ({DSM_UUID}) 1 5", "[Integer] = 0000000000000000"),
        (rf"_DSM ({DSM_UUID}) 3 8", "00"),
        (rf"_DSM ({OTHER_UUID}) 1 5", "00"),
    ],
    ids=["osc", "osc-revision", "osc-other", "dsm-query", "dsm-keep", "dsm-unknown", "dsm-other"],
)
def test_methods_of_the_pci_root_grant_control_and_keep_the_bars(evaluation, result, tmp_path):
    output = executed(build_tables(1, pci=True), rf"\_SB.PCI0.{evaluation}", tmp_path)
    shown = re.search(r"\[Integer\] = \w+|\[Buffer\] Length \w+ =\s+0000: ((?:[0-9A-F]{2} )+)", output)
    assert shown, output
    assert (shown[1] or shown[0]).strip() == result


@needs_acpiexec
@pytest.mark.parametrize(("gsi", "notified"), [(5, True), (6, False)])
def test_event_device_notifies_the_generation_id_of_its_own_interrupt_only(gsi, notified, tmp_path):
    tables = build_tables(1, devices=[acpi_devices.vmgenid(0xF_F000, 5)])
    output = executed(tables, rf"\_SB.GED0._EVT {gsi}", tmp_path)
    assert ("Notify on [VGEN]" in output) == notified
    assert "No object was returned" in output


def executed(tables, evaluation: str, tmp_path: Path) -> str:
    (tmp_path / "dsdt.dat").write_bytes(by_signature(tables)["DSDT"])
    done = subprocess.run(
        ["acpiexec", "-b", f"evaluate {evaluation}", "dsdt.dat"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tables_that_outgrow_their_place_are_a_bug():
    with pytest.raises(InternalError, match="ACPI tables end at"):
        build_tables(1, devices=[aml.name("AAAA", aml.text("x" * 0x2_0000))])


def test_tables_end_below_the_generation_id():
    with pytest.raises(InternalError, match="must end below 0xff000"):
        build_tables(1, devices=[aml.name("AAAA", aml.text("x" * 0x1_EE00))])


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


@pytest.mark.parametrize(
    ("term", "encoded"),
    [
        (aml.uuid("33DB4D5B-1FF7-401C-9657-7441C03DD766"), "11130a105b4ddb33f71f1c4096577441c03dd766"),
        (aml.method("_EVT", 1, aml.return_(aml.integer(0))), "14085f45565409a400"),
        (aml.if_(aml.equal(aml.argument(0), aml.integer(5)), aml.notify("VGEN", 0x80)), "a00c93680a05865647454e0a80"),
        (aml.store(aml.argument(6), aml.local(7)), "706e67"),
        (aml.and_(aml.local(0), aml.integer(0x1F), aml.local(0)), "7b600a1f60"),
        (aml.interrupt(5, 6), "890a0003020500000006000000"),
    ],
    ids=["uuid", "method", "if", "store", "and", "interrupts"],
)
def test_terms_are_encoded_as_the_grammar_says(term, encoded):
    assert term.hex() == encoded


def test_arguments_and_locals_that_no_method_has_are_refused():
    with pytest.raises(ValueError, match="no argument 7"):
        aml.argument(7)
    with pytest.raises(ValueError, match="no local 8"):
        aml.local(8)


def test_eisa_ids_are_packed_as_the_specification_example():
    assert aml.eisa_id("PNP0501") == bytes.fromhex("0c41d00501")
    assert aml.eisa_id("PNP0C02") == bytes.fromhex("0c41d00c02")
