"""ELF kernels of any architecture: their headers, and their segments put into guest memory at physical addresses.

System V ABI, chapters 4 and 5. Headers are decoded by pyelftools from the file's start alone, with the section headers
blanked out: a kernel needs none to run, and broken ones must not matter.
"""

import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from snapkit.units import KIB
from snapkit.vmm.arch.boot_file import BootFile, BootMemory, require_ram

MAGIC = b"\x7fELF"
_HEADERS_LEN_MAX = 64 * KIB


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


class NoteSegment(NamedTuple):
    """Where one PT_NOTE segment lies in the file."""

    offset: int
    file_len: int
    alignment: int


@dataclass(frozen=True, slots=True)
class Executable:
    """What the headers of a kernel say."""

    is_64bit: bool
    entry: int
    segments: tuple[LoadSegment, ...]
    notes: tuple[NoteSegment, ...]

    @property
    def end(self) -> int:
        """The end of the highest segment."""
        return max(segment.end for segment in self.segments)

    def loads(self, gpa: int) -> bool:
        """Tell whether *gpa* lies in a segment."""
        return any(segment.gpa <= gpa < segment.end for segment in self.segments)


def parse(file: BootFile, *, machines: Collection[str], wanted: str) -> Executable:
    """Read the headers of *file*, an executable for one of *machines* (``EM_X86_64``), in words *wanted* (``x86``).

    Raises ConfigError for a file that is none, or no kernel.
    """
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
    if machine not in machines or not elf.little_endian:
        raise file.wrong(f"is an ELF file for {machine}", f"one for {wanted}")
    if kind != "ET_EXEC" or any(segment["p_type"] == "PT_INTERP" for segment in segments):
        raise file.wrong(f"is an ELF file of type {kind} for an operating system", "a kernel (ET_EXEC, no interpreter)")
    loads = tuple(
        LoadSegment(segment["p_paddr"], segment["p_offset"], segment["p_filesz"], segment["p_memsz"])
        for segment in segments
        if segment["p_type"] == "PT_LOAD" and segment["p_memsz"]
    )
    if not loads:
        raise file.wrong("is an ELF file with nothing to load", "a kernel")
    notes = tuple(
        NoteSegment(segment["p_offset"], segment["p_filesz"], segment["p_align"])
        for segment in segments
        if segment["p_type"] == "PT_NOTE"
    )
    return Executable(is_64bit, header["e_entry"], loads, notes)


def load(
    memory: BootMemory, file: BootFile, segments: Sequence[LoadSegment], *, kept_free: Iterable[tuple[int, int, str]]
) -> None:
    """Copy *segments* to their places; all are checked before the first is written. BSS is fresh RAM: zeros.

    *kept_free* are the ranges of RAM, as (start, end, whose), that no segment may touch. Raises ConfigError.
    """
    name = f"kernel {file.path!r}"
    kept = tuple(kept_free)
    for segment in segments:
        if segment.file_len > segment.memory_len:
            got = f"has a segment of {segment.file_len} bytes in {segment.memory_len} bytes of memory"
            raise file.wrong(got, "one that fits")
        if segment.offset + segment.file_len > file.length:
            got = f"is {file.length} bytes long"
            raise file.wrong(got, f"{segment.offset + segment.file_len} bytes as its headers say")
        require_ram(memory, segment.gpa, segment.end, name)
        for start, end, what in kept:
            if segment.gpa < end and start < segment.end:
                got = f"has a segment at {segment.gpa:#x}-{segment.end:#x}"
                raise file.wrong(got, f"one that leaves {start:#x}-{end:#x} to {what}")
    for segment in segments:
        file.copy_to(memory, segment.gpa, segment.offset, segment.file_len)


def _blank_section_headers(start: bytearray, is_64bit: bool) -> None:
    """Clear e_shoff, e_shnum and e_shstrndx."""
    for at, width in ((0x28, 8), (0x3C, 4)) if is_64bit else ((0x20, 4), (0x30, 4)):
        if at + width <= len(start):
            start[at : at + width] = bytes(width)
