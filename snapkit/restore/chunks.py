"""The chunk table: where each 2 MiB of guest RAM lies in the file, with its digest.

Every region of RAM is cut into chunks from its own start; only a region's last chunk may be shorter. An entry has 48
bytes: offset u64, stored length u32, codec u8, 3 zero bytes, digest over the stored bytes. A hole's entry is all zero.
Raw chunks lie in address order, each at the next multiple of 64 KiB after the one before, so where they lie follows from
which there are, and the table is checked against that.

A table of 4 GiB has 2048 entries and is read on every restore, so nothing here loops over entries: columns are taken as
strided slices, and the loop is over *runs* of raw chunks, each of which becomes one mapping. (A big-endian host would
read the columns wrongly; none is supported.)
"""

import re
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple, NoReturn

from snapkit.errors import ImageError, InternalError
from snapkit.restore.container import Extent
from snapkit.restore.digest import DIGEST_LEN
from snapkit.restore.manifest import Region
from snapkit.restore.preamble import MEMORY_ALIGNMENT
from snapkit.units import CHUNK_LEN, align_up

HOLE = 0
RAW = 1
CODECS = {HOLE: "hole", RAW: "raw", 2: "zstd", 3: "parent"}
ENTRY_LEN = 48

_head = struct.Struct("<QIB3x")
_entry = struct.Struct(f"<QIB3x{DIGEST_LEN}s")
_WORDS = ENTRY_LEN // 8
_raw_run = re.compile(rb"\x01+")


class Run(NamedTuple):
    """Raw chunks that follow each other in RAM and in the file: *length* bytes at *gpa* lie at *offset*."""

    gpa: int
    length: int
    offset: int
    first: int
    """Number of its first chunk."""


class Chunk(NamedTuple):
    """One raw chunk."""

    number: int
    gpa: int
    length: int
    offset: int


def count_chunks(regions: Sequence[Region]) -> int:
    """Return how many chunks *regions* are cut into."""
    return sum(-(-region.length // CHUNK_LEN) for region in regions)


def pack_entry(offset: int, length: int, codec: int, digest: bytes) -> bytes:
    """Return the 48 bytes of one entry."""
    return _entry.pack(offset, length, codec, digest)


HOLE_ENTRY = pack_entry(0, 0, HOLE, bytes(DIGEST_LEN))


def check_table_len(length: int, regions: Sequence[Region]) -> int:
    """Return how many chunks *regions* have. Raises ImageError when a table of *length* bytes is not theirs."""
    count = count_chunks(regions)
    if length != count * ENTRY_LEN:
        raise ImageError(f"the chunk table has {length} bytes, must have {ENTRY_LEN} for each of {count} chunks")
    return count


class ChunkTable:
    """A checked chunk table."""

    def __init__(self, table: bytes, regions: Sequence[Region], *, memory_offset: int, memory_len: int) -> None:
        """Check *table* against *regions* and the extent of memory in its file.

        Raises ImageError naming the first entry that is not what it must be.
        """
        count = check_table_len(len(table), regions)
        if memory_offset % MEMORY_ALIGNMENT:
            raise ImageError(f"memory starts at {memory_offset:#x}, must be a multiple of {MEMORY_ALIGNMENT:#x}")
        self.table = table
        self.count = count
        self.runs: list[Run] = []
        self.gaps: list[Extent] = []
        """Alignment between chunks; its bytes must be zero."""
        codecs = table[12::ENTRY_LEN]
        if codecs.translate(None, bytes((HOLE, RAW))):
            number = next(number for number, codec in enumerate(codecs) if codec not in {HOLE, RAW})
            name = CODECS.get(codecs[number], "unknown")
            raise ImageError(f"chunk {number} has codec {codecs[number]} ({name}), this release reads hole and raw")
        reached, first = memory_offset, 0
        for region in regions:
            end = first + -(-region.length // CHUNK_LEN)
            spans = [match.span() for match in _raw_run.finditer(codecs, first, end)]
            self._check_holes(spans, first, end)
            if spans:
                start = align_up(reached, MEMORY_ALIGNMENT)
                if start != reached:
                    self.gaps.append(Extent(reached, start - reached, f"the padding before chunk {spans[0][0]}"))
                reached = self._add_runs(region, spans, first, start)
                tail = self.runs[-1].gpa + self.runs[-1].length == region.gpa + region.length
                last_len = (region.length - 1) % CHUNK_LEN + 1 if tail else CHUNK_LEN
                rows = b"".join([table[one * ENTRY_LEN : after * ENTRY_LEN] for one, after in spans])
                words = memoryview(rows).cast("Q")
                heads = _FULL * (len(rows) // ENTRY_LEN - 1) + _head_of(last_len)
                if words[1::_WORDS].tobytes() != heads or not _are_linear(words[::_WORDS].tobytes(), start):
                    self._find_wrong(spans, start, last_len)
            first = end
        if reached != memory_offset + memory_len:
            raise ImageError(f"raw chunks end at {reached:#x}, memory ends at {memory_offset + memory_len:#x}")
        self._gpas = [run.gpa for run in self.runs]

    @property
    def raw_count(self) -> int:
        return sum(-(-run.length // CHUNK_LEN) for run in self.runs)

    def digest(self, number: int) -> bytes:
        """Return the digest of chunk *number*."""
        end = (number + 1) * ENTRY_LEN
        return self.table[end - DIGEST_LEN : end]

    def chunks(self, runs: Sequence[Run] | None = None) -> Iterator[Chunk]:
        """Yield every raw chunk, in address order."""
        for run in self.runs if runs is None else runs:
            for done in range(0, run.length, CHUNK_LEN):
                length = min(CHUNK_LEN, run.length - done)
                yield Chunk(run.first + done // CHUNK_LEN, run.gpa + done, length, run.offset + done)

    def chunk_at(self, gpa: int) -> Chunk | None:
        """Return the raw chunk that holds *gpa*, or None."""
        at = bisect_right(self._gpas, gpa) - 1
        if at < 0 or gpa >= self.runs[at].gpa + self.runs[at].length:
            return None
        run = self.runs[at]
        done = (gpa - run.gpa) // CHUNK_LEN * CHUNK_LEN
        length = min(CHUNK_LEN, run.length - done)
        return Chunk(run.first + done // CHUNK_LEN, run.gpa + done, length, run.offset + done)

    def next_raw(self, gpa: int) -> int | None:
        """Return the first address at or above *gpa* that a raw chunk holds, or None."""
        if self.chunk_at(gpa) is not None:
            return gpa
        at = bisect_right(self._gpas, gpa)
        return self._gpas[at] if at < len(self.runs) else None

    def _check_holes(self, spans: list[tuple[int, int]], first: int, end: int) -> None:
        """Check that every entry from *first* to *end* outside of *spans* is all zero."""
        edges = [edge * ENTRY_LEN for edge in (first, *chain.from_iterable(spans), end)]
        holes = b"".join([self.table[start:stop] for start, stop in zip(edges[::2], edges[1::2], strict=True)])
        if holes == bytes(len(holes)):
            return
        raw = {number for start, stop in spans for number in range(start, stop)}
        wrong = next(number for number in range(first, end) if number not in raw and any(self._row(number)))
        raise ImageError(f"chunk {wrong} is a hole, its entry must be all zero")

    def _add_runs(self, region: Region, spans: list[tuple[int, int]], first: int, offset: int) -> int:
        """Add a run for each of *spans*, from *offset* on, and return where the last one ends."""
        base = region.gpa - first * CHUNK_LEN
        for start, stop in spans:
            length = (stop - start) * CHUNK_LEN
            self.runs.append(Run(base + start * CHUNK_LEN, length, offset, start))
            offset += length
        last = self.runs[-1]
        over = max(0, last.gpa + last.length - region.gpa - region.length)
        if over:
            self.runs[-1] = last._replace(length=last.length - over)
        return offset - over

    def _find_wrong(self, spans: list[tuple[int, int]], offset: int, last_len: int) -> NoReturn:
        numbers = [number for start, stop in spans for number in range(start, stop)]
        for number in numbers:
            self._check_entry(number, offset, last_len if number == numbers[-1] else CHUNK_LEN)
            offset += CHUNK_LEN
        raise InternalError("a chunk table is refused for no reason")

    def _check_entry(self, number: int, offset: int, length: int) -> None:
        row = self._row(number)
        found_offset, found_length, _codec = _head.unpack_from(row)
        if found_offset != offset:
            _refuse(number, "offset", found_offset, offset)
        if found_length != length:
            _refuse(number, "stored length", found_length, length)
        if any(row[13:16]):
            _refuse(number, "padding", row[13:16].hex(), "zero")

    def _row(self, number: int) -> bytes:
        return self.table[number * ENTRY_LEN : (number + 1) * ENTRY_LEN]


def _head_of(length: int) -> bytes:
    """Return what follows the offset in the entry of a raw chunk: stored length, codec, zero."""
    return (RAW << 32 | length).to_bytes(8, "little")


_FULL = _head_of(CHUNK_LEN)


def _are_linear(offsets: bytes, start: int) -> bool:
    """Return whether *offsets*, little-endian u64, are *start* and then each one chunk more than the one before.

    One addition of two wide integers does it, 64 bits a field, where a loop or a list costs ten times as much. No field
    can carry into the next: the first is small, and every other is the one before it plus a chunk, or they differ.
    """
    if offsets[:8] != start.to_bytes(8, "little"):
        return False
    steps = int.from_bytes(CHUNK_LEN.to_bytes(8, "little") * (len(offsets) // 8 - 1), "little")
    return int.from_bytes(offsets[8:], "little") == int.from_bytes(offsets[:-8], "little") + steps


def _refuse(number: int, what: str, found: object, wanted: object) -> NoReturn:
    shown = [f"{value:#x}" if isinstance(value, int) else value for value in (found, wanted)]
    raise ImageError(f"the {what} of chunk {number} is {shown[0]}, must be {shown[1]}")
