"""System calls of block I/O: scatter and gather by address, syncing, holes, sharing and copying, and who holds a lock.

Memory is named by spans, lists of (address, length), which go to the kernel as they are: no view is made of them and no
byte is copied on the way. Like `snapkit.host`: one call each, `HostError` when it fails, `host.inject` can make it fail.

Surprises met on the way:

- a vector of memoryviews costs over 1 us for each, a packed ``struct iovec`` 50 ns: 32 pages are what a guest usually sends;
- RWF_NOWAIT reads what the page cache has and may stop in the middle; file systems that do not know it say EOPNOTSUPP;
- preadv2(2) takes IOV_MAX (1024) spans at a time;
- copy_file_range(2) fills the holes of its source, so who wants to keep them asks for data only.
"""

import ctypes
import errno
import os
import re
import struct
from collections.abc import Sequence
from itertools import chain

from snapkit import host
from snapkit.errors import HostError
from snapkit.host import seam

Spans = Sequence[tuple[int, int]]

RWF_NOWAIT = os.RWF_NOWAIT
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
FALLOC_FL_ZERO_RANGE = 0x10
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
"""What flock(2) says on a file system without locks."""
UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL})
"""What fallocate(2) says where a file system cannot do it."""
UNSHARABLE = frozenset({errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.ETXTBSY})
"""What FICLONERANGE and copy_file_range(2) say of two files that they can do nothing for: reading and writing can."""

_FICLONERANGE = 0x4020_940D  # _IOW(0x94, 13, struct file_clone_range), linux/fs.h
_IOV_MAX = 1024
_ZEROS_LEN = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)
_c_preadv2 = _libc.preadv2
_c_preadv2.restype = ctypes.c_ssize_t
_c_preadv2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int)
_c_pwritev2 = _libc.pwritev2
_c_pwritev2.restype = ctypes.c_ssize_t
_c_pwritev2.argtypes = _c_preadv2.argtypes
_c_fallocate = _libc.fallocate
_c_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


# Spans


def spans_len(spans: Spans) -> int:
    """Return how many bytes *spans* hold."""
    return sum([length for _, length in spans])


def cut(spans: Spans, start: int, length: int) -> list[tuple[int, int]]:
    """Return the part of *spans* from byte *start* on, *length* bytes long or as much as there is."""
    part: list[tuple[int, int]] = []
    for address, there in spans:
        if start >= there:
            start -= there
            continue
        if length <= 0:
            break
        taken = min(there - start, length)
        part.append((address + start, taken))
        start, length = 0, length - taken
    return part


def put_byte(address: int, value: int) -> None:
    """Write one byte of mapped memory."""
    ctypes.memset(address, value, 1)


# Transfers


@seam
def preadv(fd: int, vector: bytes, offset: int, flags: int) -> int | None:
    """Read into the packed iovecs *vector* once; None when RWF_NOWAIT is set and it would wait, or cannot tell."""
    while True:
        done: int = _c_preadv2(fd, vector, len(vector) >> 4, offset, flags)
        if done >= 0:
            return done
        number = ctypes.get_errno()
        if flags & RWF_NOWAIT and number in {errno.EAGAIN, errno.EOPNOTSUPP}:
            return None
        if number != errno.EINTR:
            raise OSError(number, "preadv2")


@seam
def pwritev(fd: int, vector: bytes, offset: int, flags: int) -> int:
    """Write from the packed iovecs *vector* once."""
    while True:
        done: int = _c_pwritev2(fd, vector, len(vector) >> 4, offset, flags)
        if done >= 0:
            return done
        if (number := ctypes.get_errno()) != errno.EINTR:
            raise OSError(number, "pwritev2")


def _vector(spans: Spans) -> bytes:
    """Pack the first spans as ``struct iovec``."""
    first = spans[:_IOV_MAX]
    return struct.pack(f"={2 * len(first)}Q", *chain.from_iterable(first))


def read_spans(fd: int, spans: Spans, offset: int) -> None:
    """Fill *spans* from *offset*. Raises HostError, with EIO where the file ends before."""
    while spans:
        done = preadv(fd, _vector(spans), offset, 0)
        if not done:
            raise HostError("preadv", errno.EIO, f"{fd}, the file ends at {offset}")
        offset += done
        spans = cut(spans, done, 1 << 63) if len(spans) > 1 or done < spans[0][1] else ()


def read_spans_now(fd: int, spans: Spans, offset: int, length: int) -> bool:
    """Fill *spans*, *length* bytes together, if no disk is needed for it; False leaves them half filled."""
    return len(spans) <= _IOV_MAX and preadv(fd, _vector(spans), offset, RWF_NOWAIT) == length


def write_spans(fd: int, spans: Spans, offset: int) -> None:
    """Write all of *spans* at *offset*. Raises HostError."""
    while spans:
        done = pwritev(fd, _vector(spans), offset, 0)
        if not done:
            raise HostError("pwritev", errno.EIO, f"{fd}, nothing was written at {offset}")
        offset += done
        spans = cut(spans, done, 1 << 63) if len(spans) > 1 or done < spans[0][1] else ()


@seam
def fdatasync(fd: int) -> None:
    os.fdatasync(fd)


@seam
def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _c_fallocate(fd, mode, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate")


def punch(fd: int, offset: int, length: int) -> bool:
    """Give the blocks of a range back, so that it reads as zeros; False where the file system cannot."""
    return _fallocated(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length)


def zero(fd: int, offset: int, length: int, *, unmap: bool) -> None:
    """Make a range read as zeros, by the cheapest means that there is; its blocks may go when *unmap*."""
    if unmap and punch(fd, offset, length):
        return
    if _fallocated(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length):
        return
    zeros = bytes(min(length, _ZEROS_LEN))
    for at in range(offset, offset + length, _ZEROS_LEN):
        host.pwrite(fd, zeros[: offset + length - at], at)


def _fallocated(fd: int, mode: int, offset: int, length: int) -> bool:
    try:
        fallocate(fd, mode, offset, length)
    except HostError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    return True


# Between files


def clone_range(source: int, start: int, length: int, target: int, at: int) -> bool:
    """Let *target* share blocks with *source*, holes included (ioctl_ficlonerange(2)); False where they cannot."""
    try:
        host.ioctl(target, "FICLONERANGE", _FICLONERANGE, struct.pack("=qQQQ", source, start, length, at))
    except HostError as error:
        if error.errno in UNSHARABLE:
            return False
        raise
    return True


@seam
def copy_file_range(source: int, start: int, length: int, target: int, at: int) -> int:
    """Have the kernel copy up to *length* bytes; returns how many it did, 0 at the end of *source*."""
    return os.copy_file_range(source, target, length, start, at)


@seam
def seek_end(fd: int) -> int:
    """Return the length of a file or of a block device; moves the fd's offset, which nothing here uses."""
    return os.lseek(fd, 0, os.SEEK_END)


# Locks


def lock_holder(fd: int) -> str:
    """Say who holds the flock(2) lock on the file of *fd*: ``pid 12 (qemu-system-x86_64 ...)``, or as much as is known.

    From /proc/locks, proc_locks(5): it numbers processes of this pid namespace only, and devices in hexadecimal.
    """
    try:
        found = host.fstat(fd)
        lines = _proc("locks").splitlines()
    except HostError:
        return "another process"
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    pids: list[int] = []
    for line in lines:
        held = re.match(r"\d+: FLOCK +ADVISORY +(?:READ|WRITE) +(-?\d+) +(\S+) ", line)
        # A file system of several devices (btrfs, overlayfs) shows another number here than to stat(2).
        if held and held[2] == device:
            pids.insert(0, int(held[1]))
        elif held and held[2].rpartition(":")[2] == str(found.st_ino):
            pids.append(int(held[1]))
    if not pids or pids[0] <= 0:
        return "another process"
    if pids[0] == host.process_id():
        return f"this process, pid {pids[0]}"
    try:
        command = _proc(f"{pids[0]}/cmdline").replace("\0", " ").strip()[:120]
    except HostError:
        command = ""
    return f"pid {pids[0]} ({command})" if command else f"pid {pids[0]}"


def _proc(name: str) -> str:
    """Read a file of /proc; its length is not known before."""
    fd = host.open_fd(f"/proc/{name}", os.O_RDONLY)
    try:
        parts: list[bytes] = []
        while part := host.read(fd, 1 << 16):
            parts.append(part)
    finally:
        host.close(fd)
    return b"".join(parts).decode(errors="replace")
