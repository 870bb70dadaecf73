"""Give a new file the memory of another one, bytes and digests as they are.

Wherever memory begins in a file, all else about it is the same: each raw chunk at the next multiple of 64 KiB after the
one before. So all of it moves by one distance, and nothing about it is read: where the file system can, the new file
shares the blocks of the old one (FICLONERANGE), holes and all; else data is copied by the kernel, and the holes between
stay holes. The table's digests go along, and damage stays what it was: found by whoever verifies.

Digests of another key cannot go along. They are made of bytes that matched the old ones, or nothing is written.
"""

from snapkit import host, host_io
from snapkit.errors import HostError, ImageError
from snapkit.restore.chunks import HOLE_ENTRY, RAW, pack_entry
from snapkit.restore.digest import Digester
from snapkit.restore.manifest import Region
from snapkit.restore.pages import Pages, Progress
from snapkit.units import MIB

_COPY_LEN = 64 * MIB
"""What the kernel is asked to copy at a time: often enough for a progress bar and an interrupt."""
_READ_LEN = MIB


class Carried:
    """The memory of an open image, for one writing. *shared* says afterwards whether the two files have it in common."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self.regions = tuple(Region(gpa, length) for gpa, length in pages.regions)
        self.raw_chunks = pages.table.raw_count
        self.written = 0
        self.shared = False

    def write(self, fd: int, offset: int, digester: Digester, progress: Progress | None = None) -> tuple[bytes, int]:
        """Put the memory into *fd* from *offset* on; returns the chunk table and the end of memory in the file.

        Raises ImageError when the file that it comes from ends too early, or digests are to be made anew of a damaged one.
        """
        runs = self._pages.runs()
        if not runs:
            return self._pages.table.table, offset
        digests = self._pages.digests(digester, progress)
        start, end = runs[0].offset, runs[-1].offset + runs[-1].length
        self.shared = host_io.clone_range(self._pages.fd, start, end - start, fd, offset)
        if not self.shared:
            self._copy(fd, start, end, offset - start, progress)
        if progress is not None:
            progress(end - start, end - start)
        table = [HOLE_ENTRY] * self._pages.table.count
        for chunk in self._pages.table.chunks():
            table[chunk.number] = pack_entry(chunk.offset + offset - start, chunk.length, RAW, digests[chunk.number])
        return b"".join(table), offset + end - start

    def _copy(self, fd: int, start: int, end: int, distance: int, progress: Progress | None) -> None:
        by_kernel = True
        for first, stop in host.data_ranges(self._pages.fd, start, end):
            at = first
            while at < stop:
                done = 0
                if by_kernel:
                    done = self._ask_kernel(fd, at, min(stop - at, _COPY_LEN), at + distance)
                    by_kernel = bool(done)
                if not done:
                    payload = host.pread(self._pages.fd, min(stop - at, _READ_LEN), at)
                    if not payload:
                        raise ImageError(f"{self._pages.path}: it ends at {at}, it was cut while it was copied")
                    host.pwrite(fd, payload, at + distance)
                    done = len(payload)
                at += done
                self.written += done
                if progress is not None:
                    progress(at - start, end - start)

    def _ask_kernel(self, fd: int, at: int, length: int, to: int) -> int:
        """Have the kernel copy; 0 when it will not between these two files, or nothing is there to copy."""
        try:
            return host_io.copy_file_range(self._pages.fd, at, length, fd, to)
        except HostError as error:
            if error.errno in host_io.UNSHARABLE:
                return 0
            raise
