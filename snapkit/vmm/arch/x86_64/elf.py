"""x86 ELF kernels: which entry an executable offers.

System V ABI, AMD64 and i386 supplements; Xen's public/elfnote.h for the PVH note. An x86-64 Linux ``vmlinux`` has both
entries: its ELF entry is the *physical* address of the 64-bit one, and that is taken. Only the PVH one is left when the
ELF entry is in no segment's physical range, when it is the PVH one, or when the file is 32-bit.

Notes are read by hand: the library that decodes the headers believes whatever length a note claims.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from snapkit.units import KIB
from snapkit.vmm.arch import elf
from snapkit.vmm.arch.boot_file import BootFile, BootMemory
from snapkit.vmm.arch.x86_64.entry import Mode
from snapkit.vmm.arch.x86_64.layout import ACPI_END, ACPI_START, BOOT_AREA_END, BOOT_AREA_START

XEN_ELFNOTE_PHYS32_ENTRY = 18
_NOTES_LEN_MAX = 64 * KIB
_KEPT_FREE = (
    (BOOT_AREA_START, BOOT_AREA_END, "the boot structures"),
    (ACPI_START, ACPI_END, "the ACPI tables"),
)


class ElfKernel(NamedTuple):
    """An executable and the entry to use."""

    mode: Mode
    entry: int
    executable: elf.Executable

    @property
    def end(self) -> int:
        """The end of the highest segment."""
        return self.executable.end


def parse(file: BootFile) -> ElfKernel:
    """Read the headers and notes of *file*. Raises ConfigError for an executable that offers no usable entry."""
    executable = elf.parse(file, machines={"EM_X86_64", "EM_386"}, wanted="x86")
    pvh = None
    for note in executable.notes:
        if note.file_len <= _NOTES_LEN_MAX:
            pvh = _pvh_entry(file.read(note.offset, note.file_len), note.alignment) or pvh
    entry = executable.entry
    if executable.is_64bit and entry != pvh and executable.loads(entry):
        return ElfKernel(Mode.LONG, entry, executable)
    if pvh is None:
        wanted = "a kernel with a 64-bit entry at a physical address, or a PVH entry note"
        raise file.wrong(f"is an ELF file with entry {entry:#x}", wanted)
    if not executable.loads(pvh):
        raise file.wrong(f"has its PVH entry at {pvh:#x}", "one that lies in what it loads")
    return ElfKernel(Mode.PVH32, pvh, executable)


def load(memory: BootMemory, file: BootFile, kernel: ElfKernel) -> None:
    """Copy the segments of *kernel* to their places, away from what the boot puts into RAM. Raises ConfigError."""
    elf.load(memory, file, kernel.executable.segments, kept_free=_KEPT_FREE)


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
