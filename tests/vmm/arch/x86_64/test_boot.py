"""Loading kernels: tiny bzImage, ELF and PVH files written here, offsets declared anew from the documents."""

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from snapkit import host
from snapkit.errors import ConfigError
from snapkit.state.vcpu_x86_64 import DescriptorTable, Segment, Sregs
from snapkit.units import GIB, MIB
from snapkit.vmm.arch.x86_64 import boot, layout, platform
from tests.vmm.arch import loading
from tests.vmm.arch.loading import CODE, write_elf

ZERO_PAGE, CMDLINE, START_INFO = 0x7000, 0x2_0000, 0x6000


class SparseRam(loading.SparseRam):
    """The RAM of an x86-64 machine."""

    def __init__(self, length: int) -> None:
        super().__init__(layout.ram_regions(length))


def write_bzimage(path: Path, *, code: bytes = CODE, tail: bytes = b"", **changes: int) -> str:
    """Write a bzImage of one setup sector more than its boot sector; *changes* overrides header fields."""
    fields = {
        "setup_sects": ("B", 0x1F1, 1),
        "syssize": ("I", 0x1F4, len(code) // 16),
        "boot_flag": ("H", 0x1FE, 0xAA55),
        "jump": ("H", 0x200, 0x6AEB),  # jmp over the header: it ends at 0x202 + 0x6a
        "version": ("H", 0x206, 0x020F),
        "loadflags": ("B", 0x211, 1),
        "code32_start": ("I", 0x214, 0x10_0000),
        "initrd_addr_max": ("I", 0x22C, 0x7FFF_FFFF),
        "kernel_alignment": ("I", 0x230, 0x20_0000),
        "relocatable_kernel": ("B", 0x234, 1),
        "xloadflags": ("H", 0x236, 0b11),
        "cmdline_size": ("I", 0x238, 2047),
        "pref_address": ("Q", 0x258, 16 * MIB),
        "init_size": ("I", 0x260, 4 * MIB),
    }
    setup = bytearray(1024)
    setup[0x202:0x206] = b"HdrS"
    setup[0x26C:0x290] = b"\xee" * 0x24  # behind the header: must not be copied
    for name, (fmt, offset, value) in fields.items():
        struct.pack_into("<" + fmt, setup, offset, changes.pop(name, value))
    assert not changes
    path.write_bytes(bytes(setup) + code + tail)
    return str(path)


def pvh_note(entry: int, *, width: int = 4, owner: bytes = b"Xen\0", kind: int = 18) -> bytes:
    other = struct.pack("<III", 4, 3, 6) + b"Xen\0" + b"abc\0"
    return other + struct.pack("<III", len(owner), width, kind) + owner + entry.to_bytes(width, "little")


def zero_page_map(memory: SparseRam) -> list[tuple[int, int, int]]:
    count = memory.read(ZERO_PAGE + 0x1E8, 1)[0]
    table = memory.read(ZERO_PAGE + 0x2D0, 20 * count)
    return [struct.unpack_from("<QQI", table, 20 * index) for index in range(count)]


def load_kernel(memory: SparseRam, kernel: str, *, initrd_path: str | None = None, **more: Any) -> boot.BootEntry:
    """Load a kernel and its ramdisk by their paths."""
    with platform.open_guest(kernel, initrd_path) as files:
        return boot.load_kernel(memory, files.kernel, initrd=files.initrd, **more)


def refused(memory: SparseRam, kernel: str, *, initrd_path: str | None = None, cmdline: str = "") -> str:
    with pytest.raises(ConfigError) as caught:
        load_kernel(memory, kernel, initrd_path=initrd_path, cmdline=cmdline)
    return str(caught.value)


# bzImage


def test_bzimage_goes_where_it_prefers_and_is_entered_at_64_bits(tmp_path):
    memory = SparseRam(64 * MIB)
    entry = load_kernel(memory, write_bzimage(tmp_path / "bz", tail=b"certificate"), cmdline="console=ttyS0")
    assert (entry.mode, entry.rip, entry.rsi) == ("long", 16 * MIB + 0x200, ZERO_PAGE)
    assert memory.read(16 * MIB, len(CODE)) == CODE
    assert memory.read(16 * MIB + len(CODE), 11) == bytes(11)


def test_bzimage_zero_page_has_header_command_line_rsdp_and_memory_map(tmp_path):
    memory = SparseRam(6 * GIB)
    load_kernel(memory, write_bzimage(tmp_path / "bz"), cmdline="a b=c", rsdp_gpa=0xE_1230)
    assert memory.read(CMDLINE, 6) == b"a b=c\0"
    assert memory.field("I", ZERO_PAGE + 0x228) == CMDLINE
    assert memory.field("Q", ZERO_PAGE + 0x70) == 0xE_1230
    assert memory.field("I", ZERO_PAGE + 0x202) == 0x5372_6448
    assert memory.field("B", ZERO_PAGE + 0x210) == 0xFF
    assert memory.field("H", ZERO_PAGE + 0x206) == 0x020F
    assert memory.field("B", ZERO_PAGE + 0x1EF) == 0  # the sentinel
    assert memory.field("I", ZERO_PAGE + 0x260) == 4 * MIB
    assert memory.read(ZERO_PAGE + 0x26C, 0x24) == bytes(0x24)
    assert memory.field("I", ZERO_PAGE + 0x218) == memory.field("I", ZERO_PAGE + 0x21C) == 0
    assert zero_page_map(memory) == layout.e820(memory.ram)
    assert (4 * GIB, 3 * GIB, 1) in zero_page_map(memory)


@pytest.mark.parametrize(
    ("length", "last", "end"),
    [(64 * MIB, 0x7FFF_FFFF, 64 * MIB), (6 * GIB, 0x7FFF_FFFF, 2 * GIB), (6 * GIB, 0xFFFF_FFFF, 3 * GIB)],
)
def test_initrd_lies_as_high_as_ram_and_kernel_let_it(length, last, end, tmp_path):
    (tmp_path / "initrd").write_bytes(b"cpio" * 2000)
    memory = SparseRam(length)
    kernel = write_bzimage(tmp_path / "bz", initrd_addr_max=last)
    load_kernel(memory, kernel, initrd_path=str(tmp_path / "initrd"), cmdline="")
    gpa, size = memory.field("I", ZERO_PAGE + 0x218), memory.field("I", ZERO_PAGE + 0x21C)
    assert (gpa, size) == (end - 8192, 8000)
    assert memory.read(gpa, size) == b"cpio" * 2000


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"boot_flag": 0}, "has boot flag 0x0, must be a bzImage with boot flag 0xaa55"),
        ({"version": 0x0204}, "speaks boot protocol 2.4, must be 2.12 or newer"),
        ({"loadflags": 0}, "is a zImage, loaded below 1 MiB, must be a bzImage"),
        ({"xloadflags": 0b10}, "has no 64-bit entry point"),
        ({"syssize": len(CODE) // 16 + 1}, f"is {1024 + len(CODE)} bytes long, must be {1024 + len(CODE) + 16} bytes"),
        ({"syssize": 0xFFFF_FFFF}, "bytes as its header says"),
        ({"syssize": 0}, "must be an image with a kernel in it"),
        ({"setup_sects": 0}, "bytes as its header says"),
        ({"pref_address": 0x1000}, "wants to be loaded at 0x1000"),
        (
            {"init_size": 48 * MIB + 1},
            "needs guest memory 0x1000000-0x4000001, which is not RAM in a machine of 64 MiB",
        ),
        ({"pref_address": 1 << 63}, "which is not RAM in a machine of 64 MiB"),
    ],
)
def test_bzimage_that_cannot_run_is_refused_by_a_sentence(changes, sentence, tmp_path):
    memory = SparseRam(64 * MIB)
    message = refused(memory, write_bzimage(tmp_path / "bz", **changes))
    assert sentence in message
    assert f"kernel '{tmp_path}/bz'" in message
    assert memory.writes == []


@pytest.mark.parametrize("length", range(0x206, 1024 + len(CODE), 97))
def test_bzimage_cut_anywhere_is_refused(length, tmp_path):
    whole = Path(write_bzimage(tmp_path / "bz")).read_bytes()
    (tmp_path / "cut").write_bytes(whole[:length])
    assert "kernel" in refused(SparseRam(64 * MIB), str(tmp_path / "cut"))


def test_command_line_is_held_to_what_the_kernel_takes(tmp_path):
    kernel = write_bzimage(tmp_path / "bz", cmdline_size=255)
    load_kernel(SparseRam(64 * MIB), kernel, cmdline="x" * 255)
    message = refused(SparseRam(64 * MIB), kernel, cmdline="x" * 256)
    assert message == "kernel command line is 256 bytes, must be at most 255 for this kernel"
    assert "NUL at byte 1" in refused(SparseRam(64 * MIB), kernel, cmdline="a\0b")


# ELF


def test_elf64_is_entered_at_its_physical_entry_with_a_zero_page(tmp_path):
    memory = SparseRam(64 * MIB)
    segments = ((0x10_0000, CODE, 0x2000), (0x40_0000, b"data" * 8, 0x1000))
    kernel = write_elf(tmp_path / "vmlinux", entry=0x10_0040, segments=segments)
    entry = load_kernel(memory, kernel, cmdline="quiet")
    assert (entry.mode, entry.rip, entry.rsi) == ("long", 0x10_0040, ZERO_PAGE)
    assert memory.read(0x10_0000, len(CODE)) == CODE
    assert memory.read(0x40_0000, 32) == b"data" * 8
    assert memory.read(CMDLINE, 6) == b"quiet\0"
    assert memory.field("B", ZERO_PAGE + 0x210) == 0xFF
    assert memory.field("H", ZERO_PAGE + 0x1FE) == 0xAA55
    assert zero_page_map(memory) == layout.e820(memory.ram)


def test_elf64_with_both_entries_takes_the_64_bit_one(tmp_path):
    kernel = write_elf(tmp_path / "vmlinux", notes=pvh_note(0x10_0100, width=8))
    entry = load_kernel(SparseRam(64 * MIB), kernel)
    assert (entry.mode, entry.rip) == ("long", 0x10_0000)


@pytest.mark.parametrize(
    ("bits", "elf_entry", "pvh_entry", "width"),
    [(32, 0x10_0000, 0x10_0100, 4), (64, 0xFFFF_FFFF_8000_0000, 0x10_0100, 8), (64, 0x10_0100, 0x10_0100, 4)],
)
def test_elf_whose_only_entry_is_pvh_is_entered_there(bits, elf_entry, pvh_entry, width, tmp_path):
    kernel = write_elf(tmp_path / "k", bits=bits, entry=elf_entry, notes=pvh_note(pvh_entry, width=width))
    memory = SparseRam(64 * MIB)
    entry = load_kernel(memory, kernel, cmdline="hello", rsdp_gpa=0xE_0040)
    assert (entry.mode, entry.rip, entry.rbx) == ("pvh32", 0x10_0100, START_INFO)
    magic, version, flags, modules, _, cmdline, rsdp, memmap, entries, reserved = struct.unpack(
        "<IIIIQQQQII", memory.read(START_INFO, 56)
    )
    assert (magic, version, flags, modules, reserved) == (0x336E_C578, 1, 0, 0, 0)
    assert memory.read(cmdline, 6) == b"hello\0"
    assert rsdp == 0xE_0040
    table = memory.read(memmap, 24 * entries)
    found = [struct.unpack_from("<QQI", table, 24 * index) for index in range(entries)]
    assert found == layout.e820(memory.ram)


def test_pvh_kernel_finds_its_initrd_in_the_module_list(tmp_path):
    (tmp_path / "initrd").write_bytes(b"module" * 1000)
    memory = SparseRam(64 * MIB)
    kernel = write_elf(tmp_path / "k", bits=32, notes=pvh_note(0x10_0000))
    load_kernel(memory, kernel, initrd_path=str(tmp_path / "initrd"))
    assert memory.field("I", START_INFO + 12) == 1
    modlist = memory.field("Q", START_INFO + 16)
    gpa, length, module_cmdline, reserved = struct.unpack("<QQQQ", memory.read(modlist, 32))
    assert (length, module_cmdline, reserved, gpa % 4096) == (6000, 0, 0, 0)
    assert memory.read(gpa, length) == b"module" * 1000


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"machine": 183}, "is an ELF file for EM_AARCH64, must be one for x86"),
        ({"kind": 3}, "of type ET_DYN for an operating system, must be a kernel"),
        ({"extra_types": (3,)}, "must be a kernel (ET_EXEC, no interpreter)"),
        ({"segments": ()}, "is an ELF file with nothing to load"),
        ({"entry": 0x9_0000_0000}, "with entry 0x900000000, must be a kernel with a 64-bit entry"),
        ({"bits": 32}, "or a PVH entry note"),
        ({"bits": 32, "notes": pvh_note(0x10_0000, owner=b"Foo\0")}, "or a PVH entry note"),
        ({"bits": 32, "notes": pvh_note(0x10_0000, kind=17)}, "or a PVH entry note"),
        ({"bits": 32, "notes": pvh_note(0x20_0000)}, "has its PVH entry at 0x200000"),
        ({"segments": ((0x10_0000, CODE, 64 * MIB),)}, "which is not RAM in a machine of 64 MiB"),
        ({"segments": ((0x10_0000, CODE, 100),)}, "has a segment of 2048 bytes in 100 bytes of memory"),
        ({"segments": ((0x10_0000, CODE, 4096), (0x6000, b"x", 1))}, "leaves 0x500-0x30000 to the boot structures"),
        ({"segments": ((0x10_0000, CODE, 4096), (0xF_FFFF, b"x", 1))}, "leaves 0xe0000-0x100000 to the ACPI tables"),
    ],
)
def test_elf_that_cannot_run_is_refused_by_a_sentence(options, sentence, tmp_path):
    memory = SparseRam(64 * MIB)
    message = refused(memory, write_elf(tmp_path / "k", **options))
    assert sentence in message
    assert f"kernel '{tmp_path}/k'" in message
    assert memory.writes == []


@pytest.mark.parametrize("length", [4, 5, 16, 40, 63, 64, 100, 176, 177, 500, 2000])
def test_elf_cut_anywhere_is_refused(length, tmp_path):
    whole = Path(write_elf(tmp_path / "k", notes=pvh_note(0x10_0000))).read_bytes()
    (tmp_path / "cut").write_bytes(whole[:length])
    memory = SparseRam(64 * MIB)
    assert "cut" in refused(memory, str(tmp_path / "cut"))
    assert memory.writes == []


def test_elf_with_notes_that_claim_too_much_is_read_without_harm(tmp_path):
    huge = struct.pack("<III", 0xFFFF_FFFF, 0xFFFF_FFFF, 18)
    message = refused(SparseRam(64 * MIB), write_elf(tmp_path / "k", bits=32, notes=huge + b"Xen\0"))
    assert "PVH entry note" in message


@pytest.mark.parametrize("at", range(4, 64, 2))
def test_elf_with_any_damaged_header_field_raises_nothing_but_a_sentence(at, tmp_path):
    whole = bytearray(Path(write_elf(tmp_path / "k", notes=pvh_note(0x10_0000))).read_bytes())
    whole[at : at + 2] = b"\xff\xff"
    (tmp_path / "bad").write_bytes(whole)
    try:
        rip, complaint = int(load_kernel(SparseRam(64 * MIB), str(tmp_path / "bad")).rip), ""
    except ConfigError as error:
        rip, complaint = 0, str(error)
    assert 0x10_0000 <= rip < 0x10_2000 or f"kernel '{tmp_path}/bad'" in complaint


# Any file


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"#!/bin/sh\n", "begins with 23 21 2f 62, must be a bzImage or an ELF kernel"),
        (b"\x1f\x8b\x08\x00" + bytes(2000), "begins with 1f 8b 08 00"),
        (b"", "is empty"),
        (b"\x7fELF", "has ELF headers that cannot be read"),
    ],
)
def test_file_that_is_no_kernel_is_refused(content, sentence, tmp_path):
    (tmp_path / "file").write_bytes(content)
    assert sentence in refused(SparseRam(64 * MIB), str(tmp_path / "file"))


@pytest.mark.parametrize("what", ["kernel", "initrd"])
def test_paths_that_are_no_files_are_refused_without_waiting(what, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    good = write_bzimage(tmp_path / "bz")
    for path, sentence in [
        (tmp_path, "is a directory, must be a readable file"),
        (tmp_path / "none", "does not exist, must be a readable file"),
        (tmp_path / "bz" / "below", "cannot be opened (Not a directory)"),
        (tmp_path / "fifo", "is no regular file"),
        ("/dev/null", "is no regular file"),
    ]:
        files = {"kernel": good, "initrd": None, what: str(path)}
        with pytest.raises(ConfigError) as caught:
            load_kernel(SparseRam(64 * MIB), str(files["kernel"]), initrd_path=files["initrd"])
        assert f"{what} '{path}' {sentence}" in str(caught.value)


def test_initrd_that_does_not_fit_above_the_kernel_is_refused(tmp_path):
    with open(tmp_path / "initrd", "wb") as sparse:
        sparse.truncate(44 * MIB + 1)
    kernel = write_bzimage(tmp_path / "bz")
    message = refused(SparseRam(64 * MIB), kernel, initrd_path=str(tmp_path / "initrd"))
    room = f"at most {44 * MIB} to fit between the kernel's end 0x1400000 and 0x4000000"
    assert message == f"initrd '{tmp_path}/initrd' is {44 * MIB + 1} bytes, must be {room}"


def test_no_file_stays_open_whether_it_loads_or_not(tmp_path):
    kernel = write_bzimage(tmp_path / "bz")
    (tmp_path / "initrd").write_bytes(b"x")
    before = sorted(os.listdir("/proc/self/fd"))
    load_kernel(SparseRam(64 * MIB), kernel, initrd_path=str(tmp_path / "initrd"))
    refused(SparseRam(64 * MIB), kernel, initrd_path=str(tmp_path))
    refused(SparseRam(2 * MIB), kernel)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_kernel_is_read_in_pieces(tmp_path):
    code = os.urandom(9 * MIB)
    memory = SparseRam(64 * MIB)
    read: list[int] = []
    with host.inject(lambda call, arguments: read.append(int(str(arguments[1]))) if call == "pread" else None):
        load_kernel(memory, write_bzimage(tmp_path / "bz", code=code, init_size=16 * MIB))
    assert memory.read(16 * MIB, len(code)) == code
    assert max(read) == 4 * MIB
    assert sum(read) < len(code) + 4096


# The first state


def walk(memory: SparseRam, cr3: int, address: int) -> int:
    """Translate *address* through 4-level tables with 2 MiB pages, as the SDM's figure says."""
    pml4e = memory.field("Q", cr3 + 8 * (address >> 39 & 511))
    pdpte = memory.field("Q", (pml4e & ~0xFFF) + 8 * (address >> 30 & 511))
    pde = memory.field("Q", (pdpte & ~0xFFF) + 8 * (address >> 21 & 511))
    assert pml4e & pdpte & pde & 0b11 == 0b11
    assert pde & 0x80
    return pde & ~0x1F_FFFF | address & 0x1F_FFFF


def fresh_sregs() -> Sregs:
    cs, ds, es, fs, gs, ss, tr, ldt = (Segment(unusable=1) for _ in range(8))
    gdt, idt = DescriptorTable(), DescriptorTable(limit=0xFFFF)
    return Sregs(
        cs=cs,
        ds=ds,
        es=es,
        fs=fs,
        gs=gs,
        ss=ss,
        tr=tr,
        ldt=ldt,
        gdt=gdt,
        idt=idt,
        cr0=0,
        cr2=0,
        cr3=0,
        cr4=0,
        cr8=0,
        efer=0,
        apic_base=0xFEE0_0900,
        interrupt_bitmap=[0] * 4,
    )


def test_long_mode_entry_has_identity_tables_and_the_protocols_segments(tmp_path):
    memory = SparseRam(64 * MIB)
    entry = load_kernel(memory, write_bzimage(tmp_path / "bz"))
    sregs = fresh_sregs()
    entry.apply(sregs)
    for address in (0, entry.rip, ZERO_PAGE, 0x7FFF_FFFF, 3 * GIB + 5, 0xFFFF_FFFF):
        assert walk(memory, sregs.cr3, address) == address
    assert sregs.cr0 == 0x8000_0031  # PG, NE, ET, PE
    assert (sregs.cr4, sregs.efer) == (0x20, 0x500)
    assert (sregs.cs.selector, sregs.cs.l, sregs.cs.db, sregs.cs.type) == (0x10, 1, 0, 11)
    assert {(s.selector, s.type, s.base) for s in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss)} == {(0x18, 3, 0)}
    assert (sregs.tr.type, sregs.tr.s, sregs.tr.limit) == (11, 0, 0x67)
    assert (sregs.gdt.limit, sregs.idt.limit, sregs.apic_base) == (47, 0, 0xFEE0_0900)
    gdt = struct.unpack("<6Q", memory.read(sregs.gdt.base, 48))
    assert gdt == (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067, 0)
    regs = entry.regs()
    assert (regs.rip, regs.rsi, regs.rflags) == (16 * MIB + 0x200, ZERO_PAGE, 2)


def test_pvh_entry_is_flat_32_bit_without_paging(tmp_path):
    memory = SparseRam(2 * MIB)
    entry = load_kernel(memory, write_elf(tmp_path / "k", bits=32, notes=pvh_note(0x10_0000)))
    sregs = fresh_sregs()
    entry.apply(sregs)
    assert (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) == (0x11, 0, 0, 0)
    assert (sregs.cs.l, sregs.cs.db, sregs.cs.limit, sregs.cs.base) == (0, 1, 0xFFFF_FFFF, 0)
    assert memory.field("Q", sregs.gdt.base + 0x10) == 0x00CF_9B00_0000_FFFF
    assert (entry.regs().rbx, entry.regs().rip) == (START_INFO, 0x10_0000)


# A real kernel, where the lab has fetched one


LAB = Path(__file__).parents[4] / ".cache" / "lab"


def test_debian_kernels_are_loaded_for_the_64_bit_entry():
    # All in one test: the lab may fetch one between the moments when two processes collect tests, which must be the same.
    paths = sorted(
        str(path) for pattern in ("*/boot/vmlinuz-*-amd64", "*-amd64_*/vmlinux") for path in LAB.glob(pattern)
    )
    if not paths:
        pytest.skip("no Debian kernel under .cache/lab (the lab fetches one)")
    for path in paths:
        memory = SparseRam(256 * MIB)
        entry = load_kernel(memory, path, cmdline="console=ttyS0")
        assert (entry.mode, entry.rip & ~0x200) == ("long", 16 * MIB), path
        assert any(memory.read(entry.rip, 8)), path
        assert memory.field("H", ZERO_PAGE + 0x206) == 0x020F, path
