"""System calls on Unix stream sockets, which are fds here.

Like `snapkit.host`: one call each, `HostError` when it fails, counted, and `host.inject` can make it fail. Python's socket
objects live for one call, and their module is imported by the first.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from snapkit.host import seam

if TYPE_CHECKING:
    import socket

UNIX_PATH_MAX = 107
"""sun_path less its zero byte."""
SHUT_RD, SHUT_WR = 0, 1

_c_shutdown = ctypes.CDLL(None, use_errno=True).shutdown


@contextmanager
def _as_socket(fd: int) -> "Iterator[socket.socket]":
    import socket

    lent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)  # of a protocol not named it would be asked
    try:
        yield lent
    finally:
        lent.detach()


@seam
def unix_socket(*, blocking: bool = False) -> int:
    """Make a close-on-exec socket."""
    import socket

    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | (0 if blocking else socket.SOCK_NONBLOCK)).detach()


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


@seam
def shutdown(fd: int, how: int) -> None:
    """End one direction of a connected socket: the other end reads the end of the stream, or its writes fail."""
    if _c_shutdown(fd, how):
        raise OSError(ctypes.get_errno(), "shutdown")
