"""Guest memory as a file holds it: what can be mapped, read, checked, or copied while it is checked.

Nothing here writes to the file. `read` checks the digest of every chunk that it takes bytes from, `peek` of none. What is
mapped is checked by nobody unless `verify` is asked for; `load` copies instead, and checks what it copied, so that a file
that changes meanwhile cannot matter.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

from snapkit import host, host_memory
from snapkit.errors import Finding, ImageError
from snapkit.restore.chunks import Chunk, ChunkTable, Run
from snapkit.restore.digest import Digester
from snapkit.restore.manifest import Region
from snapkit.units import CHUNK_LEN, Hva

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


class Pages:
    """The read-only memory of an open image. *fd* stays the image's."""

    def __init__(self, fd: int, path: str, regions: Sequence[Region], table: ChunkTable, digester: Digester) -> None:
        self.fd = fd
        self.path = path
        self.regions = [(region.gpa, region.length) for region in regions]
        self.table = table
        self._digester = digester
        self._last: tuple[int, bytes] = (-1, b"")
        self._peeked: list[tuple[int, bytes]] = []

    @property
    def length(self) -> int:
        """Bytes of RAM, holes included."""
        return sum(length for _gpa, length in self.regions)

    def runs(self) -> list[Run]:
        """Return what lies in the file, as (gpa, length, file offset, first chunk): one mapping each; the rest is zero."""
        return self.table.runs

    def joined(self) -> list[tuple[int, int]]:
        """Return the regions, those that touch made one."""
        joined: list[tuple[int, int]] = []
        for gpa, length in self.regions:
            if joined and sum(joined[-1]) == gpa:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((gpa, length))
        return joined

    def digests_agree(self, other: "Pages") -> bool:
        """Return whether equal digests in both say equal content."""
        return self._digester.agrees_with(other._digester)

    def read(self, gpa: int, length: int) -> bytes:
        """Return *length* bytes at *gpa*, their chunks checked.

        Raises ImageError when the range is not RAM, or a chunk is damaged.
        """
        return self._read(gpa, length, lambda chunk, start, stop: self._chunk(chunk)[start:stop])

    def peek(self, gpa: int, length: int) -> bytes:
        """Return *length* bytes at *gpa* as a mapping shows them, checked by nobody: 2 MiB are not digested for a few.

        Raises ImageError when the range is not RAM, or the file has become shorter.
        """
        return self._read(gpa, length, self._part)

    def take_peeked(self) -> tuple[tuple[int, bytes], ...]:
        """Return what `peek` has read of the file, each part with its offset, and keep it no longer."""
        peeked, self._peeked = tuple(self._peeked), []
        return peeked

    def still(self, parts: Iterable[tuple[int, bytes]]) -> bool:
        """Return whether the file has the same *parts* at the same offsets, which `peek` saw there."""
        return all(host.pread(self.fd, len(content), offset) == content for offset, content in parts)

    def _read(self, gpa: int, length: int, part: Callable[[Chunk, int, int], bytes]) -> bytes:
        if length <= 0:
            return b""
        if not any(start <= gpa and gpa + length <= start + size for start, size in self.joined()):
            raise ImageError(f"guest memory {_range(gpa, length)} is read, but not all of it is RAM")
        parts: list[bytes] = []
        end = gpa + length
        while gpa < end:
            chunk = self.table.chunk_at(gpa)
            if chunk is not None:
                stop = min(end, chunk.gpa + chunk.length)
                parts.append(part(chunk, gpa - chunk.gpa, stop - chunk.gpa))
            else:
                following = self.table.next_raw(gpa)
                stop = end if following is None else min(end, following)
                parts.append(bytes(stop - gpa))
            gpa = stop
        return b"".join(parts)

    def verify(self, progress: Progress | None = None) -> list[Finding]:
        """Read every chunk and return a finding, with the guest-physical range, for each that is damaged."""
        read = self._reader()
        broken = self._check(self.table.chunks(), lambda chunk: read(chunk) is None, progress)
        findings = [_finding(chunk) for chunk in broken]
        findings += [
            Finding("memory", "", f"not zero in {gap.what}", "zero")
            for gap in self.table.gaps
            if host.pread(self.fd, gap.length, gap.offset) != bytes(gap.length)
        ]
        return findings

    def digests(self, digester: Digester, progress: Progress | None = None) -> dict[int, bytes]:
        """Return the digest of every raw chunk: the table's own, or made anew, by *digester*, of what matches those.

        Raises ImageError with a finding for each damaged chunk that was to be read.
        """
        if digester.agrees_with(self._digester):
            return {chunk.number: self.table.digest(chunk.number) for chunk in self.table.chunks()}
        read, made = self._reader(), dict[int, bytes]()

        def damaged(chunk: Chunk) -> bool:
            part = read(chunk)
            if part is not None:
                made[chunk.number] = digester.of(part)
            return part is None

        self._require_whole(self._check(self.table.chunks(), damaged, progress))
        return made

    def load(self, targets: Iterable[tuple[int, Hva, int]], progress: Progress | None = None) -> None:
        """Copy the file's memory to *targets* (gpa, address, length), fresh zeroed RAM, and check what was copied.

        Raises ImageError with a finding for each damaged chunk. The holes of the file stay untouched.
        """
        places = [(gpa, hva, length) for gpa, hva, length in targets]

        def damaged(chunk: Chunk) -> bool:
            for gpa, hva, length in places:
                if gpa <= chunk.gpa and chunk.gpa + chunk.length <= gpa + length:
                    part = host_memory.view(hva + chunk.gpa - gpa, chunk.length)
                    self._copy(chunk, part)
                    return not self._digester.matches(part, self.table.digest(chunk.number))
            raise ImageError(f"guest memory {_range(chunk.gpa, chunk.length)} is in the file, but not in the machine")

        self._require_whole(self._check(self.table.chunks(), damaged, progress))

    def _require_whole(self, broken: list[Chunk]) -> None:
        if broken:
            findings = [_finding(chunk) for chunk in broken]
            raise ImageError(f"{self.path}: guest memory is damaged", findings=findings)

    def _reader(self) -> Callable[[Chunk], memoryview | None]:
        """Return what reads a chunk into a buffer, one a thread, until its next call; None for a damaged chunk."""
        buffers = threading.local()

        def read(chunk: Chunk) -> memoryview | None:
            if not hasattr(buffers, "whole"):
                buffers.whole = bytearray(CHUNK_LEN)
            part = memoryview(buffers.whole)[: chunk.length]
            there = host.pread_into(self.fd, part, chunk.offset)
            whole = there == chunk.length and self._digester.matches(part, self.table.digest(chunk.number))
            return part if whole else None

        return read

    def _copy(self, chunk: Chunk, part: memoryview) -> None:
        """Copy what *chunk* has in the file; its punched pages stay untouched, so they cost no memory either."""
        end = chunk.offset + chunk.length
        for start, stop in host.data_ranges(self.fd, chunk.offset, end):
            host.pread_into(self.fd, part[start - chunk.offset : stop - chunk.offset], start)

    def _chunk(self, chunk: Chunk) -> bytes:
        if self._last[0] != chunk.number:
            stored = host.pread(self.fd, chunk.length, chunk.offset)
            if not self._digester.matches(stored, self.table.digest(chunk.number)):
                self._require_whole([chunk])
            self._last = (chunk.number, stored)
        return self._last[1]

    def _part(self, chunk: Chunk, start: int, stop: int) -> bytes:
        found = host.pread(self.fd, stop - start, chunk.offset + start)
        if len(found) != stop - start:
            self._require_whole([chunk])
        self._peeked.append((chunk.offset + start, found))
        return found

    def _check(
        self, chunks: Iterator[Chunk], damaged: Callable[[Chunk], bool], progress: Progress | None
    ) -> list[Chunk]:
        """Return the chunks that are *damaged*. Two threads share the work: reading and hashing release the lock."""
        from concurrent.futures import ThreadPoolExecutor

        total, done = sum(run.length for run in self.table.runs), 0
        broken: list[Chunk] = []
        lock = threading.Lock()
        stop = threading.Event()

        def work(report: Progress | None) -> None:
            nonlocal done
            while not stop.is_set():
                with lock:
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                wrong = damaged(chunk)
                with lock:
                    done += chunk.length
                    if wrong:
                        broken.append(chunk)
                if report is not None:
                    report(done, total)

        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="verify") as helper:
            try:
                helped = helper.submit(work, None)
                work(progress)
            finally:
                stop.set()
        helped.result()
        if progress is not None:
            progress(total, total)
        return sorted(broken)


def _finding(chunk: Chunk) -> Finding:
    return Finding("memory", _range(chunk.gpa, chunk.length), "damaged", "what its digest says")


def _range(gpa: int, length: int) -> str:
    return f"{gpa:#x}-{gpa + length - 1:#x}"
