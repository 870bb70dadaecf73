"""System calls that give memory back to the host, and tell what of it this process holds.

Like `snapkit.host`: `HostError` when a call fails, counted, and `host.inject` can make it fail.

Surprises met on the way:

- MADV_DONTNEED on a private file mapping brings the *file's* bytes back, so memory that lies over a file is discarded by
  an anonymous mapping over it. That is one step for everybody else: there is no moment without a mapping;
- what is mapped over a range does not inherit its madvise(2) marks, and the kernel joins neighbouring anonymous mappings
  only if their marks agree. A process may have no more than vm.max_map_count mappings, 65530 by default.
"""

import os

from snapkit import host
from snapkit.units import PAGE_LEN

MADV_DONTNEED = 4

_RAM_FLAGS = host.MAP_PRIVATE | host.MAP_ANONYMOUS | host.MAP_NORESERVE
_RW = host.PROT_READ | host.PROT_WRITE
_ENTRY_LEN = 8
_PRESENT, _FILE_OR_SHARED = 0x80, 0x20  # of an entry's top byte: bits 63 and 61


def drop(address: int, length: int) -> None:
    """Give the pages of private anonymous memory back; they read as zeros afterwards."""
    host.madvise(address, length, MADV_DONTNEED)


def map_anew(address: int, length: int) -> None:
    """Put fresh anonymous memory over whatever is mapped at *address*, and mark it as guest RAM is marked."""
    host.mmap(length, _RW, _RAM_FLAGS | host.MAP_FIXED, at=address)
    mark_as_ram(address, length)


def mark_as_ram(address: int, length: int) -> None:
    """Have memory neither inherited by fork nor dumped."""
    host.madvise(address, length, host.MADV_DONTFORK)
    host.madvise(address, length, host.MADV_DONTDUMP)


def count_pages(address: int, length: int) -> tuple[int, int]:
    """Return how many pages of a range this process has present: its own (anonymous), and a file's.

    Linux Documentation/admin-guide/mm/pagemap.rst. An anonymous page that was only read, the shared page of zeros, counts
    as its own, although it costs nothing.
    """
    fd = host.open_fd("/proc/self/pagemap", os.O_RDONLY)
    try:
        entries = host.pread(fd, length // PAGE_LEN * _ENTRY_LEN, address // PAGE_LEN * _ENTRY_LEN)
    finally:
        host.close(fd)
    tops = [top for top in entries[_ENTRY_LEN - 1 :: _ENTRY_LEN] if top & _PRESENT]
    own = sum(not top & _FILE_OR_SHARED for top in tops)
    return own, len(tops) - own


def count_mappings(address: int, length: int) -> int:
    """Return how many mappings a range consists of."""
    fd = host.open_fd("/proc/self/maps", os.O_RDONLY)
    try:
        parts = []
        while part := host.read(fd, 1 << 16):
            parts.append(part)
    finally:
        host.close(fd)
    found = 0
    for line in b"".join(parts).splitlines():
        start, end = (int(edge, 16) for edge in line.split(None, 1)[0].split(b"-"))
        found += start < address + length and address < end
    return found
