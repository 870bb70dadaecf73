"""The seam: system calls that are not KVM's. Here how one is made, and those on files, eventfds, epoll and clocks.

Each function does one call, raises `HostError` with the call's name, errno and arguments, can be counted
(`calls_made`) and can be made to fail by a test (`inject`). So do those of the modules beside this one, by `seam`:

- `host_io`: block I/O, scattered over memory
- `host_memory`: mappings, and what they hold
- `host_net`: TAP interfaces
- `host_process`: threads, signals, the terminal
- `host_sandbox`: giving up calls and paths
- `host_sockets`: Unix stream sockets

Only these and `snapkit.vmm.kvm` import ctypes, fcntl, mmap, select, signal or termios for what they do to the host.

A surprise met on the way: `fcntl.ioctl` holds the interpreter lock for buffers above 1024 bytes; a vCPU ioctl that blocks
would freeze every thread. `ioctl` here goes through ctypes, which always releases it.
"""

import ctypes
import errno
import fcntl
import os
import select
import stat
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from snapkit.errors import HostError

P = ParamSpec("P")
R = TypeVar("R")
FaultHook = Callable[[str, tuple[object, ...]], None]

EPOLLIN, EPOLLOUT = select.EPOLLIN, select.EPOLLOUT
EPOLLERR, EPOLLHUP = select.EPOLLERR, select.EPOLLHUP

_PART = 1 << 16  # of a file whose length nobody tells, as in /proc
_libc = ctypes.CDLL(None, use_errno=True)
_c_ioctl = _libc.ioctl
_c_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)

_fault: FaultHook | None = None
_calls = 0


def _summary(arguments: tuple[object, ...]) -> str:
    """Arguments as a person reads them in an error: big buffers by their length, addresses in hex."""
    parts = []
    for argument in arguments:
        if isinstance(argument, bytes | bytearray | memoryview):
            parts.append(f"<{len(argument)} bytes>")
        elif isinstance(argument, int) and argument > 0xFFFF:
            parts.append(hex(argument))
        else:
            parts.append(str(argument) if isinstance(argument, int) else repr(argument))
    return ", ".join(parts)


def enter(call: str, arguments: tuple[object, ...]) -> None:
    """Count one system call and let a test make it fail; every seam function begins with it."""
    global _calls
    _calls += 1
    if _fault is not None:
        try:
            _fault(call, arguments)
        except OSError as error:
            raise HostError(call, error.errno or 0, _summary(arguments)) from error


def failed(call: str, errno: int, arguments: tuple[object, ...]) -> HostError:
    """Build the error of a failed call."""
    return HostError(call, errno, _summary(arguments))


def calls_made() -> int:
    """Return how many system calls went through the seam so far in this process."""
    return _calls


@contextmanager
def inject(hook: FaultHook) -> Iterator[None]:
    """Have *hook* see (name, arguments) of every call at the seam; it fails a call by raising OSError(errno)."""
    global _fault
    before, _fault = _fault, hook
    try:
        yield
    finally:
        _fault = before


def seam(function: Callable[P, R]) -> Callable[P, R]:
    """Count the calls of *function*, a system call of its name; make its OSError a HostError, or have a test make it fail."""
    name = function.__name__

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        global _calls
        if _fault is None:  # `enter`, but for the call of it
            _calls += 1
        else:
            enter(name, args)
        try:
            return function(*args, **kwargs)
        except OSError as error:
            raise HostError(name, error.errno or 0, _summary(args)) from error

    return call


# Files


@seam
def open_fd(path: str, flags: int, mode: int = 0o600) -> int:
    """Open *path* close-on-exec and return the fd."""
    return os.open(path, flags | os.O_CLOEXEC, mode)


def close(fd: int) -> None:
    """Close *fd*; never fails, because on Linux the fd is gone whatever close says."""
    try:
        os.close(fd)
    except OSError:
        return


@seam
def fstat(fd: int) -> os.stat_result:
    return os.fstat(fd)


@seam
def stat_path(path: str) -> os.stat_result:
    return os.stat(path)


@seam
def lstat_path(path: str) -> os.stat_result:
    """Stat *path* itself, a symbolic link included."""
    return os.lstat(path)


@seam
def fchmod(fd: int, mode: int) -> None:
    os.fchmod(fd, mode)


def exists(path: str) -> bool:
    return os.path.lexists(path)


def may_use(path: str) -> bool:
    """Whether *path* is there, to be read and written by this process."""
    return os.access(path, os.R_OK | os.W_OK)


def is_regular(mode: int) -> bool:
    return stat.S_ISREG(mode)


def is_socket(mode: int) -> bool:
    return stat.S_ISSOCK(mode)


def file_type(mode: int) -> str:
    """Name what a mode says a path is, as a person would."""
    return _FILE_TYPES.get(stat.S_IFMT(mode), "of an unknown type")


_FILE_TYPES = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


@seam
def pread(fd: int, length: int, offset: int) -> bytes:
    """Read up to *length* bytes at *offset*; short only at the end of the file."""
    first = os.pread(fd, length, offset)
    if len(first) == length or not first:
        return first
    parts, done = [first], len(first)
    while done < length and (more := os.pread(fd, length - done, offset + done)):
        parts.append(more)
        done += len(more)
    return b"".join(parts)


def read_whole(fd: int) -> bytes:
    """Read a file from its beginning to its end, however long it is; one of /proc is written anew for it."""
    parts, done = [], 0
    while part := pread(fd, _PART, done):
        parts.append(part)
        done += len(part)
    return b"".join(parts)


@seam
def pread_into(fd: int, buffer: bytearray | memoryview, offset: int) -> int:
    """Fill *buffer* from *offset* and return how many bytes were read; less only at the end of the file."""
    rest = memoryview(buffer)
    while rest and (done := os.preadv(fd, [rest], offset)):
        rest, offset = rest[done:], offset + done
    return len(buffer) - len(rest)


def data_ranges(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    """Return the parts (start, end) of a range that the file has blocks for; its holes read as zeros."""
    found: list[tuple[int, int]] = []
    while start < end:
        data = _seek(fd, start, os.SEEK_DATA)
        if data is None or data >= end:
            break
        hole = _seek(fd, data, os.SEEK_HOLE)
        start = end if hole is None else min(hole, end)
        found.append((data, start))
    return found


@seam
def _seek(fd: int, offset: int, whence: int) -> int | None:
    try:
        return os.lseek(fd, offset, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise


@seam
def pwrite(fd: int, payload: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of *payload* at *offset*."""
    rest = memoryview(payload)
    while rest:
        done = os.pwrite(fd, rest, offset)
        rest, offset = rest[done:], offset + done


@seam
def read(fd: int, length: int) -> bytes | None:
    """Read once; None when nothing is there yet, b"" at the end."""
    try:
        return os.read(fd, length)
    except BlockingIOError:
        return None


@seam
def write(fd: int, payload: bytes | bytearray | memoryview) -> int:
    """Write once; returns how many bytes went, 0 when the other end takes none now."""
    try:
        return os.write(fd, payload)
    except BlockingIOError:
        return 0


@seam
def wait_writable(fd: int, timeout_ms: int) -> bool:
    """Wait until *fd* takes bytes, or has an error that a write would tell; False when it did not in time."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(timeout_ms))


@seam
def fsync(fd: int) -> None:
    os.fsync(fd)


@seam
def ftruncate(fd: int, length: int) -> None:
    os.ftruncate(fd, length)


@seam
def rename(source: str, target: str) -> None:
    os.replace(source, target)


@seam
def link(source: str, target: str) -> None:
    """Give a file a second name; unlike `rename` it never replaces one."""
    os.link(source, target)


@seam
def unlink(path: str) -> None:
    os.unlink(path)


@seam
def listdir(path: str) -> list[str]:
    return os.listdir(path)


@seam
def flock(fd: int, operation: int) -> None:
    fcntl.flock(fd, operation)


LOCK_EX_NB = fcntl.LOCK_EX | fcntl.LOCK_NB
LOCK_SH_NB = fcntl.LOCK_SH | fcntl.LOCK_NB


# ioctl


def ioctl(fd: int, name: str, request: int, argument: int | bytes = 0) -> int:
    """Issue one ioctl with an integer or an address as argument, or with bytes that it only reads; returns its result.

    *name* is the UAPI name, for the error and for fault injection. Releases the interpreter lock.
    """
    global _calls
    if _fault is None:  # `enter`, but for the call of it: a restore has 30 of these for every vCPU
        _calls += 1
    else:
        enter(name, (fd, argument))
    result: int = _c_ioctl(fd, request, argument)
    if result < 0:
        raise failed(name, ctypes.get_errno(), (fd, argument))
    return result


def ioctl_row(fd: int, name: str, request: int, *columns: Sequence[int]) -> None:
    """Issue one ioctl for each row of *columns*, in order: its structure is the row, 64 bits each.

    For registers, of which there are hundreds, each an ioctl: what `ioctl` adds to each call is more than some calls take.
    The HostError of one that fails says by `done` how many succeeded.
    """
    global _calls
    width = len(columns)
    words = [0] * (width * len(columns[0]))
    for at, column in enumerate(columns):
        words[at::width] = column
    structures = array("Q", words)  # from a list: from anything else, each word takes three times as long
    base, items = structures.buffer_info()
    addresses = range(base, base + 8 * items, 8 * width)
    if _fault is not None:
        for done, address in enumerate(addresses):
            try:
                ioctl(fd, name, request, address)
            except HostError as error:
                error.done = done
                raise
        return
    call = _c_ioctl
    for done, address in enumerate(addresses):
        if call(fd, request, address) < 0:
            refused = failed(name, ctypes.get_errno(), (fd, address))
            refused.done = done
            raise refused
    _calls += len(addresses)


# Events


@seam
def eventfd(count: int = 0) -> int:
    """Make a non-blocking, close-on-exec eventfd."""
    return os.eventfd(count, os.EFD_CLOEXEC | os.EFD_NONBLOCK)


def eventfd_signal(fd: int) -> None:
    """Add one; a full counter already wakes the reader, so that is no error."""
    try:
        os.eventfd_write(fd, 1)
    except BlockingIOError:
        return


def eventfd_take(fd: int) -> int:
    """Return the counter and clear it; 0 when it was clear."""
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


@seam
def epoll() -> select.epoll:
    return select.epoll()


@seam
def epoll_control(poll: select.epoll, fd: int, events: int, *, known: bool) -> None:
    """Watch *fd* for *events*, change what is watched when it is *known*, stop watching at events 0."""
    if not known:
        poll.register(fd, events)
    elif events:
        poll.modify(fd, events)
    else:
        poll.unregister(fd)


# Facts and clocks


monotonic_ns = time.monotonic_ns


def realtime_ns() -> int:
    return time.time_ns()


def process_id() -> int:
    return os.getpid()


def urandom(length: int) -> bytes:
    return os.urandom(length)


def kernel_release() -> str:
    return os.uname().release


def machine_name() -> str:
    return os.uname().machine
