"""Every system call that is not KVM's, in one place.

Each function does one call, raises `HostError` with the call's name, errno and arguments, can be counted
(`calls_made`) and can be made to fail by a test (`inject`). Only this module and `snapkit.vmm.kvm` import ctypes, fcntl,
mmap, select, signal or termios for what they do to the host.

Surprises met on the way:

- `mmap.mmap` cannot place a mapping at a fixed address and refuses to close while a view lives, so memory is mapped
  through libc, owned by address, and views are lent by `view`.
- `fcntl.ioctl` holds the interpreter lock for buffers above 1024 bytes; a vCPU ioctl that blocks would freeze every
  thread. `ioctl` here goes through ctypes, which always releases it.
"""

import _thread
import ctypes
import errno
import fcntl
import mmap as _mmap
import os
import select
import signal
import stat
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from snapkit.errors import HostError
from snapkit.units import Hva

if TYPE_CHECKING:
    import socket

P = ParamSpec("P")
R = TypeVar("R")
FaultHook = Callable[[str, tuple[object, ...]], None]

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
EPOLLIN, EPOLLOUT = select.EPOLLIN, select.EPOLLOUT
EPOLLERR, EPOLLHUP = select.EPOLLERR, select.EPOLLHUP
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_c_mmap = _libc.mmap
_c_mmap.restype = ctypes.c_void_p
_c_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_c_munmap = _libc.munmap
_c_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_c_madvise = _libc.madvise
_c_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_c_ioctl = _libc.ioctl
_c_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_c_fallocate = _libc.fallocate
_c_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_Sigset = ctypes.c_char * 128  # sigset_t of glibc and musl
_c_sigmask = _libc.pthread_sigmask
_c_sigmask.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_every_signal = _Sigset.from_buffer_copy(b"\xff" * 128)

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
def punch_hole(fd: int, offset: int, length: int) -> None:
    """Give the blocks of a range back; it reads as zeros afterwards."""
    if _c_fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length):
        raise OSError(ctypes.get_errno(), "fallocate")


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


# Memory


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


# Unix stream sockets, as fds; Python's socket objects live for one call, and their module is imported by the first


UNIX_PATH_MAX = 107
"""sun_path less its zero byte."""


@contextmanager
def _as_socket(fd: int) -> "Iterator[socket.socket]":
    import socket

    lent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=fd)
    try:
        yield lent
    finally:
        lent.detach()


@seam
def unix_socket(*, blocking: bool = False) -> int:
    """Make a close-on-exec socket."""
    import socket

    fd = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach()
    os.set_blocking(fd, blocking)
    return fd


@seam
def bind_unix(fd: int, path: str) -> None:
    """Give the socket a name; what appears at *path* has the mode that `fchmod` gave the fd, less the umask."""
    with _as_socket(fd) as lent:
        lent.bind(path)


@seam
def listen(fd: int, backlog: int) -> None:
    with _as_socket(fd) as lent:
        lent.listen(backlog)


@seam
def accept(fd: int) -> int | None:
    """Return the next client's fd, non-blocking and close-on-exec; None when none waits."""
    with _as_socket(fd) as lent:
        try:
            client = lent.accept()[0].detach()
        except (BlockingIOError, ConnectionAbortedError):
            return None
    os.set_blocking(client, False)
    return client


@seam
def connect_unix(fd: int, path: str) -> None:
    with _as_socket(fd) as lent:
        lent.connect(path)


# Threads and signals


def thread_kick_signal() -> int:
    """Return the real-time signal that takes a vCPU thread out of KVM_RUN."""
    return signal.SIGRTMIN + 1


@seam
def start_thread(main: Callable[[], None]) -> int:
    """Run *main* on a new thread, every signal blocked from its first instruction; returns the thread's identity.

    Not threading.Thread: its `start` waits until the thread runs, which costs 100 us, and a time slice on a busy host.
    Nor signal.pthread_sigmask: it makes sets of Enum members, 190 us here, a tenth of a whole restore.
    """
    before = _Sigset()
    _c_sigmask(signal.SIG_BLOCK, _every_signal, before)
    try:
        return _thread.start_new_thread(main, ())
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, str(error)) from error
    finally:
        _c_sigmask(signal.SIG_SETMASK, before, None)


def drain_signal(number: int) -> None:
    """Take pending instances of a blocked *number* away."""
    while signal.sigtimedwait({number}, 0) is not None:
        pass


def kick_thread(ident: int, number: int) -> None:
    """Send *number* to the Python thread *ident*."""
    signal.pthread_kill(ident, number)


@contextmanager
def on_signals(numbers: tuple[int, ...], handler: Callable[[int], None]) -> Iterator[None]:
    """Call *handler* with the number when one of *numbers* arrives; the handlers before are put back at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda got, _frame: handler(got)) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


SIGINT, SIGTERM, SIGHUP = int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP)


# Terminal


def is_terminal(fd: int) -> bool:
    return os.isatty(fd)


@contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Put a terminal into raw mode and back, whatever happens in between; anything else is left alone."""
    if not os.isatty(fd):
        yield
        return
    before = _terminal("tcgetattr", fd, lambda: termios.tcgetattr(fd))
    try:
        _terminal("tcsetattr", fd, lambda: _set_raw(fd))
        yield
    finally:
        with suppress(termios.error):  # it has hung up: there is nothing left to give back
            termios.tcsetattr(fd, termios.TCSANOW, before)


def _set_raw(fd: int) -> None:
    tty.setraw(fd, termios.TCSANOW)
    attributes = termios.tcgetattr(fd)
    attributes[1] |= termios.OPOST  # the guest's newlines keep their carriage return on our side
    termios.tcsetattr(fd, termios.TCSANOW, attributes)


def _terminal(call: str, fd: int, function: Callable[[], R]) -> R:
    """Do *function*, one call on a terminal; termios has an error of its own, which is no OSError."""
    enter(call, (fd,))
    try:
        return function()
    except termios.error as error:
        raise HostError(call, int(error.args[0]), str(fd)) from error


# Facts and clocks


monotonic_ns = time.monotonic_ns


def realtime_ns() -> int:
    return time.time_ns()


@seam
def raise_fd_limit() -> None:
    """Let this process have as many fds as it ever may: a socket device alone may want a thousand."""
    import resource  # only a run of a machine needs it

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def process_id() -> int:
    return os.getpid()


def urandom(length: int) -> bytes:
    return os.urandom(length)


def kernel_release() -> str:
    return os.uname().release


def machine_name() -> str:
    return os.uname().machine
