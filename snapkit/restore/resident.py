"""Which pages of this process's memory were never touched, and so are zero without being looked at.

A page of private anonymous memory that is neither present nor swapped out reads as zeros (Linux
Documentation/admin-guide/mm/pagemap.rst: bits 63 and 62). Looking at it would make it present, and most of a young
guest's RAM is such pages. Memory that maps a file is another matter: there an absent page has the file's bytes, so only
what /proc/self/maps calls private and without a file is answered for.
"""

import os
from bisect import bisect_right
from typing import Self

from snapkit import host
from snapkit.errors import HostError
from snapkit.units import PAGE_LEN

_ENTRY_LEN = 8
_THERE = 0xC0  # of an entry's top byte: present, swapped
_FLAGS = bytes(bool(top & _THERE) for top in range(256))


class Residency:
    """Answers for the memory that is mapped now. A context manager; without /proc it knows nothing."""

    def __init__(self) -> None:
        self._fd = -1
        self._ranges: list[tuple[int, int]] = []
        self._starts: list[int] = []
        try:
            self._ranges = _anonymous_ranges()
            self._fd = host.open_fd("/proc/self/pagemap", os.O_RDONLY)
        except HostError:
            return
        self._starts = [start for start, _end in self._ranges]

    def touched(self, address: int, length: int) -> bytes | None:
        """Return a byte for each page, 0 where it was never touched; None when that cannot be known."""
        at = bisect_right(self._starts, address) - 1
        if at < 0 or address + length > self._ranges[at][1]:
            return None
        pages = length // PAGE_LEN
        try:
            entries = host.pread(self._fd, pages * _ENTRY_LEN, address // PAGE_LEN * _ENTRY_LEN)
        except HostError:
            return None
        return entries[_ENTRY_LEN - 1 :: _ENTRY_LEN].translate(_FLAGS) if len(entries) == pages * _ENTRY_LEN else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            host.close(self._fd)
            self._fd = -1


def _anonymous_ranges() -> list[tuple[int, int]]:
    """Return what is mapped privately and from no file, in address order, neighbours joined."""
    fd = host.open_fd("/proc/self/maps", os.O_RDONLY)
    try:
        maps = host.read_whole(fd)
    finally:
        host.close(fd)
    ranges: list[tuple[int, int]] = []
    for line in maps.splitlines():
        where, access, _offset, _device, inode, *_path = line.split(None, 5)
        if inode != b"0" or access[3:4] != b"p":
            continue
        start, end = (int(edge, 16) for edge in where.split(b"-"))
        if ranges and ranges[-1][1] == start:
            ranges[-1] = (ranges[-1][0], end)
        else:
            ranges.append((start, end))
    return ranges
