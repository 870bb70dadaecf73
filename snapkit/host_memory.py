"""System calls on memory: mappings, giving pages back to the host, and what of them this process holds.

Like `snapkit.host`: `HostError` when a call fails, counted, and `host.inject` can make it fail.

Surprises met on the way:

- `mmap.mmap` cannot place a mapping at a fixed address and refuses to close while a view lives, so memory is mapped
  through libc, owned by address, and views are lent by `view`;
- MADV_DONTNEED on a private file mapping brings the *file's* bytes back, so memory that lies over a file is discarded by
  an anonymous mapping over it. That is one step for everybody else: there is no moment without a mapping;
- what is mapped over a range does not inherit its madvise(2) marks, and the kernel joins neighbouring anonymous mappings
  only if their marks agree. A process may have no more than vm.max_map_count mappings, 65530 by default.
"""

import ctypes
import mmap as _mmap
import os
from functools import lru_cache

from snapkit import host
from snapkit.host import seam
from snapkit.units import PAGE_LEN, Hva

PROT_NONE = 0
PROT_READ = _mmap.PROT_READ
PROT_WRITE = _mmap.PROT_WRITE
MAP_SHARED = _mmap.MAP_SHARED
MAP_PRIVATE = _mmap.MAP_PRIVATE
MAP_ANONYMOUS = _mmap.MAP_ANONYMOUS
MAP_FIXED = 0x10
MAP_NORESERVE = 0x4000
MADV_DONTFORK = _mmap.MADV_DONTFORK
MADV_DONTDUMP = _mmap.MADV_DONTDUMP
MADV_WILLNEED = _mmap.MADV_WILLNEED
MADV_DONTNEED = 4

_RAM_FLAGS = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
_RW = PROT_READ | PROT_WRITE
_ENTRY_LEN = 8
_PRESENT, _FILE_OR_SHARED = 0x80, 0x20  # of an entry's top byte: bits 63 and 61

_libc = ctypes.CDLL(None, use_errno=True)
_c_mmap = _libc.mmap
_c_mmap.restype = ctypes.c_void_p
_c_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_c_munmap = _libc.munmap
_c_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_c_madvise = _libc.madvise
_c_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


# Mappings


@seam
def mmap(length: int, prot: int, flags: int, fd: int = -1, offset: int = 0, at: int = 0) -> Hva:
    """Map *length* bytes, at the address *at* when flags say MAP_FIXED; returns the address."""
    address: int | None = _c_mmap(at or None, length, prot, flags, fd, offset)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return Hva(address)


@seam
def munmap(address: Hva, length: int) -> None:
    if _c_munmap(address, length):
        raise OSError(ctypes.get_errno(), "munmap")


@seam
def madvise(address: int, length: int, advice: int) -> None:
    if _c_madvise(address, length, advice):
        raise OSError(ctypes.get_errno(), "madvise")


def view(address: int, length: int) -> memoryview:
    """Lend a writable view of mapped memory. It must not outlive the mapping: nothing checks it."""
    return memoryview(_array(length).from_address(address)).cast("B")


@lru_cache(64)
def _array(length: int) -> type[ctypes.Array[ctypes.c_char]]:
    """Return the array type, which ctypes forgets when nobody holds it; making one costs 13 us."""
    return ctypes.c_char * length


def copy_out(address: int, length: int) -> bytes:
    """Copy *length* bytes from mapped memory."""
    return ctypes.string_at(address, length)


def copy_in(address: int, payload: bytes | bytearray | memoryview) -> None:
    """Copy *payload* into mapped memory."""
    view(address, len(payload))[:] = payload


# Guest RAM


def drop(address: int, length: int) -> None:
    """Give the pages of private anonymous memory back; they read as zeros afterwards."""
    madvise(address, length, MADV_DONTNEED)


def map_anew(address: int, length: int) -> None:
    """Put fresh anonymous memory over whatever is mapped at *address*, and mark it as guest RAM is marked."""
    mmap(length, _RW, _RAM_FLAGS | MAP_FIXED, at=address)
    mark_as_ram(address, length)


def mark_as_ram(address: int, length: int) -> None:
    """Have memory neither inherited by fork nor dumped."""
    madvise(address, length, MADV_DONTFORK)
    madvise(address, length, MADV_DONTDUMP)


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
