"""The host end of a vsock device: Unix sockets in Firecracker's convention (its docs/vsock.md).

A program of the host that wants port N of the guest connects to *uds* and sends ``CONNECT N\\n``; once the guest has
accepted it is sent ``OK <host port>\\n``, and from there on the socket is the stream. A guest that connects to CID 2,
port N, reaches who listens at *uds*_N.

Nothing here waits, and nothing is unbounded: a client has a line's worth of bytes to say what it wants, there are
HANDSHAKES_MAX such clients, and a stream buffers nothing but what came behind that line in the same read.

All of it is touched under the machine's lock. A stream is watched only for what its owner can use at the moment, and
while nothing is of use it is not watched at all: a hang-up is reported by epoll for as long as it is watched.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

from snapkit import host, host_sockets
from snapkit.errors import ConfigError, HostError
from snapkit.vmm.backends.unix_listener import UnixListener
from snapkit.vmm.loop import Loop

HANDSHAKES_MAX = 64
LINE_MAX = 32
FIRST_PORT = 1 << 30
_READ_LEN = 4096
_ACCEPT_AGAIN_NS = 10**9
_GONE = host.EPOLLERR | host.EPOLLHUP

Lock = AbstractContextManager[object]
Serve = Callable[[bool, bool], None]
"""Told under the lock that a stream has news: whether it can be read, and whether the other end hung up."""


class UnixStream:
    """One connected socket. `read` and `write` never wait and raise HostError when the other end is gone."""

    __slots__ = ("_ahead", "_host", "_serve", "fd", "wanted", "watched")

    def __init__(self, owner: "VsockHost", fd: int) -> None:
        self._host, self.fd = owner, fd
        self._ahead = b""
        self.wanted = self.watched = 0
        self._serve: Serve | None = None

    def bind(self, serve: Serve) -> None:
        """Have *serve* told what comes."""
        self._serve = serve

    def read(self, length: int) -> bytes | None:
        """Return up to *length* bytes; None when there are none now, b"" at the end."""
        if self._ahead:
            first, self._ahead = self._ahead[:length], self._ahead[length:]
            return first
        return host.read(self.fd, length)

    def unread(self, payload: bytes) -> None:
        """Have *payload* come first when it is read again."""
        self._ahead = payload + self._ahead

    def write(self, payload: bytes | bytearray) -> int:
        """Write what goes; returns how much that was."""
        return host.write(self.fd, payload)

    def end_write(self) -> None:
        """Tell the other end that nothing more comes."""
        host_sockets.shutdown(self.fd, host_sockets.SHUT_WR)

    def end_read(self) -> None:
        """Tell the other end that nothing more is read."""
        host_sockets.shutdown(self.fd, host_sockets.SHUT_RD)

    def watch(self, *, readable: bool, writable: bool, gone: bool) -> None:
        """Be told of these from now on, and of nothing else."""
        self.wanted = host.EPOLLIN * readable | host.EPOLLOUT * writable | host.EPOLLERR * gone
        self._host.look(self)

    def close(self) -> None:
        """Close the socket; once is enough."""
        if self.fd >= 0:
            self.wanted = 0
            self._host.forget(self)
            host.close(self.fd)
            self.fd = -1
            self._ahead = b""

    def event(self, events: int) -> None:
        """Tell the owner what epoll saw."""
        if self.fd >= 0 and self._serve is not None:
            self._serve(bool(events & host.EPOLLIN), bool(events & _GONE))


class VsockHost:
    """The listening socket of one device, and the streams that came from it or were made for the guest."""

    def __init__(self, uds: str) -> None:
        """Listen at *uds*; nobody is served before `attach`. Raises ConfigError when somebody else serves it."""
        # Configuration
        self.uds = uds
        self.first_port = FIRST_PORT + int.from_bytes(host.urandom(4)) % (FIRST_PORT // 2)
        """Where the host's ports begin: by chance, or a clone would use those its guest still has in mind."""
        # Runtime glue
        try:
            self._listener = UnixListener(uds)
        except ConfigError as error:
            error.add_note(f"vsock: every machine needs a socket of its own (uds=), {uds} cannot be this one's")
            raise
        self._loop: Loop | None = None
        self._lock: Lock | None = None
        self._arrived: Callable[[UnixStream, int], None] | None = None
        self._resting = True
        self._accepting = False
        self._streams: dict[UnixStream, None] = {}
        self._handshakes: dict[UnixStream, bytes] = {}

    # Lifecycle

    def attach(self, loop: Loop, lock: Lock, arrived: Callable[[UnixStream, int], None]) -> None:
        """Serve clients on *loop* from `go_on` on.

        *arrived* is given, under *lock*, a stream and the guest's port that it asked for.
        """
        self._loop, self._lock, self._arrived = loop, lock, arrived
        self._resting = True

    def detach(self) -> None:
        """Close every stream and serve nobody; idempotent."""
        for stream in list(self._streams):
            stream.close()
        self._unwatch_listener()
        self._loop = self._lock = self._arrived = None

    def close(self) -> None:
        """Detach, stop listening, and take the socket's name away; idempotent."""
        self.detach()
        self._listener.close()

    def withdraw(self) -> None:
        """Close, which takes the socket's name away too."""
        self.close()

    def rest(self) -> None:
        """Look at no socket until `go_on`; idempotent."""
        self._resting = True
        self._unwatch_listener()
        for stream in self._streams:
            self._unwatch(stream)

    def go_on(self) -> None:
        """Look at what is wanted; idempotent."""
        if not self._resting:
            return
        self._resting = False
        try:
            self._watch_listener()
        except HostError:
            self._accept_later()
        for stream in list(self._streams):
            try:
                self.look(stream)
            except HostError:
                stream.event(host.EPOLLIN | host.EPOLLOUT)  # its owner looks, and finds that it cannot wait

    # Streams

    @property
    def streams(self) -> int:
        """How many sockets are open, those included that have not said yet what they want."""
        return len(self._streams)

    def connect(self, port: int) -> UnixStream:
        """Connect to who listens for *port* of the host; HostError when nobody does."""
        fd = host_sockets.unix_socket()
        try:
            host_sockets.connect_unix(fd, f"{self.uds}_{port}")
        except BaseException:
            host.close(fd)
            raise
        return self._own(fd)

    def look(self, stream: UnixStream) -> None:
        """Have the loop watch *stream* for what it wants."""
        wanted = stream.wanted
        if wanted == stream.watched or self._loop is None or self._resting:
            return
        if not wanted:
            self._unwatch(stream)
            return
        self._loop.watch(stream.fd, wanted, lambda events: self._dispatch(stream, events))
        stream.watched = wanted

    def forget(self, stream: UnixStream) -> None:
        """Let go of *stream*, which is about to be closed."""
        self._unwatch(stream)
        self._streams.pop(stream, None)
        self._handshakes.pop(stream, None)

    def _own(self, fd: int) -> UnixStream:
        stream = UnixStream(self, fd)
        self._streams[stream] = None
        return stream

    def _unwatch(self, stream: UnixStream) -> None:
        if stream.watched and self._loop is not None:
            stream.watched = 0
            with suppress(HostError):
                self._loop.unwatch(stream.fd)

    def _dispatch(self, stream: UnixStream, events: int) -> None:
        lock = self._lock
        if lock is not None:
            with lock:
                if stream.watched:  # it may have been closed while we waited for the lock
                    stream.event(events)

    # Clients

    def _watch_listener(self) -> None:
        if self._loop is not None and not self._accepting:
            self._loop.watch(self._listener.fd, host.EPOLLIN, lambda _events: self._accept())
            self._accepting = True

    def _unwatch_listener(self) -> None:
        if self._accepting and self._loop is not None:
            self._accepting = False
            with suppress(HostError):
                self._loop.unwatch(self._listener.fd)

    def _accept(self) -> None:
        lock = self._lock
        if lock is not None:
            with lock:
                try:
                    self._take_client()
                except HostError:
                    # no fds left, most likely, and the listener stays ready: asking at once would be a busy loop
                    self._unwatch_listener()
                    self._accept_later()

    def _accept_later(self) -> None:
        if self._loop is not None:
            self._loop.call_at(host.monotonic_ns() + _ACCEPT_AGAIN_NS, self._accept_again)

    def _accept_again(self) -> None:
        lock = self._lock
        if lock is not None:
            with lock:
                try:
                    if not self._resting:
                        self._watch_listener()
                except HostError:
                    self._accept_later()

    def _take_client(self) -> None:
        fd = host_sockets.accept(self._listener.fd) if self._accepting else None
        if fd is None:
            return
        if len(self._handshakes) >= HANDSHAKES_MAX:
            next(iter(self._handshakes)).close()  # who has said nothing for longest
        stream = self._own(fd)
        self._handshakes[stream] = b""
        stream.bind(lambda _readable, _gone: self._hear(stream))
        try:
            stream.watch(readable=True, writable=False, gone=True)
        except HostError:
            stream.close()

    def _hear(self, stream: UnixStream) -> None:
        """Read what a client wants, and hand it on."""
        try:
            got = stream.read(_READ_LEN)
            if got is None:
                return
            line, end, behind = (self._handshakes[stream] + got).partition(b"\n")
            port = _port_asked(line) if end else None
            if not got or len(line) >= LINE_MAX or (end and port is None):
                stream.close()
            elif port is None:
                self._handshakes[stream] = line
            else:
                del self._handshakes[stream]
                stream.unread(behind)
                if self._arrived is not None:
                    self._arrived(stream, port)
        except HostError:
            stream.close()


def _port_asked(line: bytes) -> int | None:
    words = line.split()
    if len(words) == 2 and words[0].upper() == b"CONNECT" and words[1].isdigit() and int(words[1]) < 1 << 32:
        return int(words[1])
    return None
