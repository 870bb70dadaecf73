"""System calls on this process: its threads, the signals it gets, its terminal and its limits.

Like `snapkit.host`: `HostError` when a call fails, counted, and `host.inject` can make it fail, where it can fail at all.
"""

import _thread
import ctypes
import errno
import os
import signal
import termios
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from snapkit.errors import HostError
from snapkit.host import enter, seam

R = TypeVar("R")

SIGINT, SIGTERM, SIGHUP = int(signal.SIGINT), int(signal.SIGTERM), int(signal.SIGHUP)

_libc = ctypes.CDLL(None, use_errno=True)
_Sigset = ctypes.c_char * 128  # sigset_t of glibc and musl
_c_sigmask = _libc.pthread_sigmask
_c_sigmask.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_every_signal = _Sigset.from_buffer_copy(b"\xff" * 128)


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


# Limits


@seam
def raise_fd_limit() -> None:
    """Let this process have as many fds as it ever may: a socket device alone may want a thousand."""
    import resource  # only a run of a machine needs it

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
