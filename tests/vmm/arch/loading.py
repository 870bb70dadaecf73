"""What the boots of both architectures are tested with: guest memory that keeps what was written, and tiny ELF files."""

import struct
from collections.abc import Sequence
from pathlib import Path

CODE = bytes(range(256)) * 8
MACHINES = {64: 62, 32: 3}  # EM_X86_64, EM_386


class SparseRam:
    """Guest memory that holds only what was written, and refuses what is not RAM."""

    def __init__(self, ram: Sequence[tuple[int, int]]) -> None:
        self.ram = ram
        self.writes: list[tuple[int, bytes]] = []

    def _require(self, gpa: int, length: int) -> None:
        assert any(start <= gpa and gpa + length <= start + size for start, size in self.ram), hex(gpa)

    def write(self, gpa: int, payload: bytes | bytearray | memoryview) -> None:
        self._require(gpa, len(payload))
        self.writes.append((gpa, bytes(payload)))

    def read(self, gpa: int, length: int) -> bytes:
        self._require(gpa, length)
        result = bytearray(length)
        for start, payload in self.writes:
            low, high = max(start, gpa), min(start + len(payload), gpa + length)
            if low < high:
                result[low - gpa : high - gpa] = payload[low - start : high - start]
        return bytes(result)

    def field(self, fmt: str, gpa: int) -> int:
        value: int = struct.unpack("<" + fmt, self.read(gpa, struct.calcsize("<" + fmt)))[0]
        return value


def write_elf(
    path: Path,
    *,
    bits: int = 64,
    entry: int = 0x10_0000,
    segments: tuple[tuple[int, bytes, int], ...] = ((0x10_0000, CODE, 0x2000),),
    notes: bytes = b"",
    kind: int = 2,
    machine: int | None = None,
    extra_types: tuple[int, ...] = (),
) -> str:
    """Write an executable; a segment is (physical address, bytes, length in memory)."""
    machine = machine or MACHINES[bits]
    head_len, entry_len = {64: (64, 56), 32: (52, 32)}[bits]
    programs = [(1, gpa, payload, memory_len) for gpa, payload, memory_len in segments]
    programs += [(4, 0, notes, len(notes))] if notes else []
    programs += [(extra, 0, b"", 0) for extra in extra_types]
    offset = head_len + entry_len * len(programs)
    table, body = b"", b""
    for p_type, gpa, payload, memory_len in programs:
        place, virtual = offset + len(body), gpa + 0x8000_0000 & 0xFFFF_FFFF
        if bits == 64:
            table += struct.pack("<IIQQQQQQ", p_type, 5, place, virtual, gpa, len(payload), memory_len, 4)
        else:
            table += struct.pack("<IIIIIIII", p_type, place, virtual, gpa, len(payload), memory_len, 5, 4)
        body += payload
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    word = "Q" if bits == 64 else "I"
    # section headers far behind the end: a kernel needs none, and broken ones must not matter
    head = struct.pack(
        f"<HHI{word}{word}{word}IHHHHHH",
        *(kind, machine, 1, entry, head_len, 0x7FFF_0000, 0, head_len, entry_len, len(programs), 64, 9, 8),
    )
    path.write_bytes(ident + head + table + body)
    return str(path)
