"""A vsock connection and its socket on the host: bytes go as far as both sides take them, and nobody waits.

The device and its packets are in `virtio_vsock`, the rules of a connection in `vsock_connection`; the sockets belong to
a backend, which is seen here as `HostStream` and `HostEnd`.
"""

import errno
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from snapkit.errors import HostError
from snapkit.vmm.loop import Loop
from snapkit.vmm.virtio.vsock_connection import Connection

_LOST = frozenset({errno.EPIPE, errno.ECONNRESET})


class HostStream(Protocol):
    """One stream's host end. Never waits; any method but `close` raises HostError when it cannot go on."""

    def bind(self, serve: Callable[[bool, bool], None]) -> None:
        """Have *serve* told of news: whether there is something to read, and whether the other end hung up."""
        ...

    def read(self, length: int) -> bytes | None: ...

    def write(self, payload: bytes | bytearray) -> int: ...

    def end_write(self) -> None: ...

    def end_read(self) -> None: ...

    def watch(self, *, readable: bool, writable: bool, gone: bool) -> None:
        """Choose the news; called often, mostly with the same."""
        ...

    def close(self) -> None: ...


class HostEnd(Protocol):
    """Where streams come from. It calls back under the lock, and only between `go_on` and `rest`."""

    @property
    def first_port(self) -> int: ...

    def attach(self, loop: Loop, lock: threading.Lock, arrived: Callable[[HostStream, int], None]) -> None:
        """Take the loop, and whom to tell of a program that asks for a port of the guest."""
        ...

    def detach(self) -> None: ...

    def close(self) -> None: ...

    def rest(self) -> None: ...

    def go_on(self) -> None: ...

    def connect(self, port: int) -> HostStream:
        """Connect to who listens for *port* of the host; HostError when nobody does."""
        ...


class Link:
    """A connection and its socket, which goes first."""

    __slots__ = ("_deafened", "_ended", "_gone", "_readable", "_stream", "connection", "queued")

    def __init__(self, connection: Connection, stream: HostStream) -> None:
        # Configuration
        self.connection = connection
        # Runtime glue
        self._stream: HostStream | None = stream
        self._readable = True  # as far as we know; only a read that finds nothing says otherwise
        self._gone = False  # the host hung up, which epoll would tell for ever
        self._ended = self._deafened = False  # what the socket was told of the guest's shutdown
        self.queued = False
        """Whether it waits for its turn on rx."""

    @property
    def has_data(self) -> bool:
        """Whether the host may have bytes that have a way to the guest, be there credit or not."""
        return self._readable and self._stream is not None and self.connection.takes

    def news(self, *, readable: bool, gone: bool) -> None:
        """Note what the socket said. That it has room needs no word: `flush` tries."""
        self._readable |= readable or gone
        if gone and not self._gone and self._stream is not None:
            self._gone = True
            self.connection.host_gone()

    def read(self, length: int) -> bytes:
        """Return up to *length* bytes, not zero, of the host's; b"" when there are none now, or never again."""
        if self._stream is None:
            return b""
        try:
            got = self._stream.read(length)
        except HostError:
            self._fail()
            return b""
        if got is None:
            self._readable = False
        elif not got:
            self.connection.host_ended()
        return got or b""

    @property
    def wants_turn(self) -> bool:
        """Whether there may be a packet for the guest."""
        connection = self.connection
        if self.has_data:
            if connection.credit:
                return True
            connection.starve()
        return bool(connection.due())

    def flush(self) -> None:
        """Give the host what it takes, and tell it what has ended; close the socket when it has no use any more."""
        if self._stream is not None:
            try:
                self._write(self._stream)
            except HostError:
                self._fail()
        if self.connection.closed:
            self.close()

    def watch(self) -> None:
        """Have the socket watched for what is of use now."""
        if self._stream is not None:
            try:
                self._stream.watch(
                    readable=self.connection.takes and not self._readable,
                    writable=bool(self.connection.outbound),
                    gone=not self._gone,
                )
            except HostError:
                self._fail()

    def drop(self) -> None:
        """End all of it; nobody is told."""
        self.close()
        self.connection.drop()

    def close(self) -> None:
        """Close the socket; idempotent."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _fail(self) -> None:
        self.close()
        self.connection.abort()

    def _write(self, stream: HostStream) -> None:
        connection = self.connection
        try:
            while connection.outbound and (done := stream.write(connection.outbound)):
                connection.forwarded(done)
        except HostError as error:
            if error.errno not in _LOST:
                raise
            connection.host_gone()
        if connection.guest_is_through and not self._ended:
            self._ended = True
            with suppress(HostError):  # it may have gone meanwhile, which is told by other means
                stream.end_write()
        if connection.guest_is_deaf and not self._deafened:
            self._deafened = True
            with suppress(HostError):
                stream.end_read()
