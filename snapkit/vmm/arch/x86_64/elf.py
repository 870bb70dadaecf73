"""ELF kernels: which entry an executable offers, and its segments put into guest memory at their physical addresses.

System V ABI, AMD64 and i386 supplements; Xen's public/elfnote.h for the PVH note. An x86-64 Linux ``vmlinux`` has both
entries: its ELF entry is the *physical* address of the 64-bit one, and that is taken. Only the PVH one is left when the
ELF entry is in no segment's physical range, when it is the PVH one, or when the file is 32-bit.

Headers are decoded by pyelftools from the file's start alone, with the section headers blanked out: a kernel needs none
to run, and broken ones must not matter. Notes are read by hand: the library believes whatever length a note claims.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from snapkit.units import KIB
from snapkit.vmm.arch.x86_64.boot_file import BootFile, BootMemory, require_ram
from snapkit.vmm.arch.x86_64.entry import Mode
from snapkit.vmm.arch.x86_64.layout import ACPI_END, ACPI_START, BOOT_AREA_END, BOOT_AREA_START

MAGIC = b"\x7fELF"
XEN_ELFNOTE_PHYS32_ENTRY = 18
_HEADERS_LEN_MAX = 64 * KIB
_NOTES_LEN_MAX = 64 * KIB
_KEPT_FREE = (
    (BOOT_AREA_START, BOOT_AREA_END, "the boot structures"),
    (ACPI_START, ACPI_END, "the ACPI tables"),
)


@dataclass(frozen=True, slots=True)
class LoadSegment:
    """One PT_LOAD segment: *file_len* bytes at *offset* of the file go to *gpa*, zeros follow up to *memory_len*."""

    gpa: int
    offset: int
    file_len: int
    memory_len: int

    @property
    def end(self) -> int:
        """The end in guest memory."""
        return self.gpa + self.memory_len


@dataclass(frozen=True, slots=True)
class ElfKernel:
    """An executable's segments and the entry to use."""

    mode: Mode
    entry: int
    segments: tuple[LoadSegment, ...]

    @property
    def end(self) -> int:
        """The end of the highest segment."""
        return max(segment.end for segment in self.segments)


def parse(file: BootFile) -> ElfKernel:
    """Read the headers and notes of *file*. Raises ConfigError for an executable that offers no usable entry."""
    from elftools.common.exceptions import ELFError
    from elftools.common.utils import struct_parse
    from elftools.elf.elffile import ELFFile

    start = bytearray(file.read(0, _HEADERS_LEN_MAX))
    is_64bit = len(start) > 4 and start[4] == 2
    _blank_section_headers(start, is_64bit)
    try:
        elf = ELFFile(io.BytesIO(start))
        header = elf.header
        offsets = [header["e_phoff"] + index * header["e_phentsize"] for index in range(header["e_phnum"])]
        segments = [struct_parse(elf.structs.Elf_Phdr, elf.stream, offset) for offset in offsets]
    except (ELFError, ValueError, OverflowError) as error:
        raise file.wrong(f"has ELF headers that cannot be read ({error})", "a whole ELF kernel") from error

    machine, kind = header["e_machine"], header["e_type"]
    if machine not in {"EM_X86_64", "EM_386"} or not elf.little_endian:
        raise file.wrong(f"is an ELF file for {machine}", "one for x86")
    if kind != "ET_EXEC" or any(segment["p_type"] == "PT_INTERP" for segment in segments):
        raise file.wrong(f"is an ELF file of type {kind} for an operating system", "a kernel (ET_EXEC, no interpreter)")
    loads = tuple(
        LoadSegment(segment["p_paddr"], segment["p_offset"], segment["p_filesz"], segment["p_memsz"])
        for segment in segments
        if segment["p_type"] == "PT_LOAD" and segment["p_memsz"]
    )
    if not loads:
        raise file.wrong("is an ELF file with nothing to load", "a kernel")
    pvh = None
    for segment in segments:
        if segment["p_type"] == "PT_NOTE" and segment["p_filesz"] <= _NOTES_LEN_MAX:
            pvh = _pvh_entry(file.read(segment["p_offset"], segment["p_filesz"]), segment["p_align"]) or pvh
    entry: int = header["e_entry"]
    if is_64bit and entry != pvh and any(load.gpa <= entry < load.end for load in loads):
        return ElfKernel(Mode.LONG, entry, loads)
    if pvh is None:
        wanted = "a kernel with a 64-bit entry at a physical address, or a PVH entry note"
        raise file.wrong(f"is an ELF file with entry {entry:#x}", wanted)
    if not any(load.gpa <= pvh < load.end for load in loads):
        raise file.wrong(f"has its PVH entry at {pvh:#x}", "one that lies in what it loads")
    return ElfKernel(Mode.PVH32, pvh, loads)


def load(memory: BootMemory, file: BootFile, kernel: ElfKernel) -> None:
    """Copy the segments to their places; all are checked before the first is written. BSS is fresh RAM: zeros."""
    name = f"kernel {file.path!r}"
    for segment in kernel.segments:
        if segment.file_len > segment.memory_len:
            got = f"has a segment of {segment.file_len} bytes in {segment.memory_len} bytes of memory"
            raise file.wrong(got, "one that fits")
        if segment.offset + segment.file_len > file.length:
            got = f"is {file.length} bytes long"
            raise file.wrong(got, f"{segment.offset + segment.file_len} bytes as its headers say")
        require_ram(memory, segment.gpa, segment.end, name)
        for start, end, what in _KEPT_FREE:
            if segment.gpa < end and start < segment.end:
                got = f"has a segment at {segment.gpa:#x}-{segment.end:#x}"
                raise file.wrong(got, f"one that leaves {start:#x}-{end:#x} to {what}")
    for segment in kernel.segments:
        file.copy_to(memory, segment.gpa, segment.offset, segment.file_len)


def _blank_section_headers(start: bytearray, is_64bit: bool) -> None:
    """Clear e_shoff, e_shnum and e_shstrndx."""
    for at, width in ((0x28, 8), (0x3C, 4)) if is_64bit else ((0x20, 4), (0x30, 4)):
        if at + width <= len(start):
            start[at : at + width] = bytes(width)


def _pvh_entry(notes: bytes, alignment: int) -> int | None:
    """Find the 32-bit entry among *notes*; Linux stores it as 8 bytes in a 64-bit kernel."""
    for owner, kind, payload in _notes(notes, 8 if alignment == 8 else 4):
        if owner == b"Xen\0" and kind == XEN_ELFNOTE_PHYS32_ENTRY and len(payload) in {4, 8}:
            return int.from_bytes(payload, "little")
    return None


def _notes(notes: bytes, alignment: int) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield (owner, type, payload) of each whole note; both parts are padded to *alignment*."""
    at = 0
    while at + 12 <= len(notes):
        owner_len, payload_len, kind = struct.unpack_from("<III", notes, at)
        owner_at = at + 12
        payload_at = at + (12 + owner_len + alignment - 1 & -alignment)
        yield notes[owner_at : owner_at + owner_len], kind, notes[payload_at : payload_at + payload_len]
        at = payload_at + (payload_len + alignment - 1 & -alignment)
