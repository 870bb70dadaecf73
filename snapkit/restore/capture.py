"""Write guest memory into a file, as chunks, and make its chunk table.

Two threads share the work: this one looks for zeros and writes, the other hashes (hashing and writing release the
interpreter lock). A page of zeros is never written, so the file has a hole there; a chunk of nothing but zeros is not in
the file at all. The source must not change meanwhile, or its digests are of something else: the machine is paused.

Measured and left out: having the disk start early, by sync_file_range(2), gained nothing in all and let a slow disk
lengthen the pause; numpy's import costs more than most snapshots, so zeros are found by a strided slice of the first
word of every page, and only pages whose first word is zero are compared.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from queue import Empty, SimpleQueue

from snapkit import host, host_memory
from snapkit.errors import ConfigError, InternalError
from snapkit.restore.chunks import HOLE_ENTRY, RAW, count_chunks, pack_entry
from snapkit.restore.digest import Digester
from snapkit.restore.manifest import PHYSICAL_MAX, RAM_MAX, REGIONS_MAX, Region
from snapkit.restore.preamble import MEMORY_ALIGNMENT
from snapkit.restore.resident import Residency
from snapkit.units import CHUNK_LEN, PAGE_LEN, align_up

Progress = Callable[[int, int], None]
"""Called with bytes of RAM done and in all."""
MemorySource = tuple[int, int | memoryview, int]
"""RAM to be saved: guest-physical start, its address in this process (or a view of it), length."""

_ZERO_PAGE = bytes(PAGE_LEN)
_ZEROS = memoryview(bytes(CHUNK_LEN))
_data_pages = re.compile(rb"\x01+")


class Capture:
    """One writing of memory. After `write`, *raw_chunks* and *written* (bytes) say what it came to."""

    def __init__(
        self,
        memory: Iterable[MemorySource],
        *,
        absent_is_zero: bool = True,
    ) -> None:
        """Check the sources; nothing is read yet.

        *absent_is_zero*: pages of anonymous memory that were never touched are taken for zeros unseen, which is so
        unless a userfaultfd fills them on demand.

        Raises ConfigError when they are not whole pages in address order.
        """
        self._sources = list(memory)
        self._absent_is_zero = absent_is_zero
        self.regions = tuple(Region(gpa, length) for gpa, _source, length in self._sources)
        self.raw_chunks = 0
        self.written = 0
        free_from = 0
        for region in self.regions:
            if region.gpa % PAGE_LEN or region.length % PAGE_LEN or not region.length or region.gpa < free_from:
                raise ConfigError(
                    f"memory at {region.gpa:#x} + {region.length:#x} must be whole pages at or above {free_from:#x}"
                )
            free_from = region.gpa + region.length
        for _gpa, source, length in self._sources:
            if not isinstance(source, int) and source.nbytes != length:
                raise InternalError(f"a view of {source.nbytes} bytes was given for {length} bytes of memory")
        if (
            len(self.regions) > REGIONS_MAX
            or free_from > PHYSICAL_MAX
            or sum(region.length for region in self.regions) > RAM_MAX
        ):
            raise ConfigError(f"memory has {len(self.regions)} regions up to {free_from:#x}, a file holds fewer")

    def write(self, fd: int, offset: int, digester: Digester, progress: Progress | None = None) -> tuple[bytes, int]:
        """Write memory to *fd* from *offset* on; returns the chunk table and the end of memory in the file."""
        raw: list[tuple[int, int, int]] = []  # chunk, offset, length
        total = sum(region.length for region in self.regions)
        number = done = 0
        end = offset
        hashes = _Hashing(digester)
        try:
            for chunk, touched in self._chunks():
                if ranges := _data_ranges(chunk, touched):
                    at = align_up(end, MEMORY_ALIGNMENT)
                    hashes.add(number, chunk, ranges if touched is not None else [(0, len(chunk))])
                    for first, last in ranges:
                        host.pwrite(fd, chunk[first:last], at + first)
                        self.written += last - first
                    raw.append((number, at, len(chunk)))
                    end = at + len(chunk)
                number += 1
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            digests = hashes.finish()
        except BaseException:
            hashes.abandon()
            raise
        self.raw_chunks = len(raw)
        table = [HOLE_ENTRY] * count_chunks(self.regions)
        for number, at, length in raw:
            table[number] = pack_entry(at, length, RAW, digests[number])
        return b"".join(table), end

    def _chunks(self) -> Iterator[tuple[memoryview, bytes | None]]:
        """Yield every chunk, with a byte for each page that is 0 where the page was never touched, if that is known."""
        with Residency() if self._absent_is_zero else nullcontext() as residency:
            for _gpa, source, length in self._sources:
                if not isinstance(source, int):
                    whole = source.cast("B")
                    for start in range(0, length, CHUNK_LEN):
                        yield whole[start : start + CHUNK_LEN], None
                    continue
                for start in range(0, length, CHUNK_LEN):
                    chunk_len = min(CHUNK_LEN, length - start)
                    touched = residency.touched(source + start, chunk_len) if residency else None
                    yield host_memory.view(source + start, chunk_len), touched


class _Hashing:
    """Digests of chunks, made by a thread beside the one that asks for them."""

    def __init__(self, digester: Digester) -> None:
        self._digester = digester
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._digests: dict[int, bytes] = {}
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name="hash", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads: `finish` does it all
            self._thread = None

    def add(self, number: int, chunk: memoryview, ranges: list[tuple[int, int]]) -> None:
        """Ask for the digest of *chunk*, which is zero outside of *ranges* and is not looked at there."""
        self._jobs.put((number, chunk, ranges))

    def finish(self) -> dict[int, bytes]:
        """Help with what is left, and return the digests by chunk."""
        while (job := self._take()) is not None:
            self._hash(job)
        self._join()
        return self._digests

    def abandon(self) -> None:
        """Forget what is left."""
        while self._take() is not None:
            pass
        self._join()

    def _take(self) -> "_Job | None":
        try:
            return self._jobs.get_nowait()
        except Empty:
            return None

    def _join(self) -> None:
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._hash(job)

    def _hash(self, job: "_Job") -> None:
        number, chunk, ranges = job
        if len(ranges) == 1 and ranges[0] == (0, len(chunk)):
            self._digests[number] = self._digester.of(chunk)
        else:
            self._digests[number] = self._digester.of_parts(_parts(chunk, ranges))


_Job = tuple[int, memoryview, list[tuple[int, int]]]


def _parts(chunk: memoryview, ranges: list[tuple[int, int]]) -> Iterator[memoryview]:
    reached = 0
    for start, stop in ranges:
        yield _ZEROS[: start - reached]
        yield chunk[start:stop]
        reached = stop
    yield _ZEROS[: len(chunk) - reached]


def _data_ranges(chunk: memoryview, touched: bytes | None) -> list[tuple[int, int]]:
    """Return the parts (start, end) of *chunk* that are not pages of zeros."""
    if touched is None or 0 not in touched:
        words: list[int] = chunk.cast("Q")[:: PAGE_LEN // 8].tolist()
        if 0 not in words:
            return [(0, len(chunk))]
        flags = bytearray(b"\1" * len(words))
        suspects = [page for page, word in enumerate(words) if not word]
    else:
        flags = bytearray(touched)
        suspects = [page for page, there in enumerate(touched) if there]
    for page in suspects:
        if chunk[page * PAGE_LEN : (page + 1) * PAGE_LEN].tobytes() == _ZERO_PAGE:
            flags[page] = 0
    return [(match.start() * PAGE_LEN, match.end() * PAGE_LEN) for match in _data_pages.finditer(flags)]
