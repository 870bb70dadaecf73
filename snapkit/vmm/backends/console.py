"""The host end of a serial port: where its bytes go, where its input comes from, and what is looked for in it.

The vCPU threads append to a buffer; the event loop writes it out when the other end takes it, so a slow terminal never
blocks a vCPU. Above `HIGH_WATER` the wire says that it is full and the chip stops saying "ready": nothing is dropped.
"""

import errno
import os
from collections.abc import Callable
from contextlib import ExitStack

from snapkit import host, host_process
from snapkit.errors import ConfigError, HostError
from snapkit.vmm.loop import Loop

HIGH_WATER = 64 << 10
_WRITE_LEN = 4096  # what a pipe that polls writable takes without blocking
_PATIENCE_MS = 2000  # for a reader that is there but does not read: a stop must not wait for it
_ESCAPE, _QUIT = 0x01, ord("x")  # Ctrl-A x


class Console:
    """A wire (`write`, `full`) with output fd and optional input fd. `write` and `watch_for` need the machine's lock."""

    def __init__(self, out_fd: int | None, in_fd: int | None = None, *, owned: bool = False) -> None:
        # Configuration
        self._out_fd, self._in_fd, self._owned = out_fd, in_fd, owned
        # Runtime glue
        self._loop: Loop | None = None
        self._stack = ExitStack()
        self._input: Callable[[bytes], int] = len
        self._room_again: Callable[[], None] | None = None
        self._lost: Callable[[str], None] | None = None
        self._quit: Callable[[], None] | None = None
        self._watches: list[tuple[bytes, Callable[[], None]]] = []
        self._tail = b""
        self._pending = bytearray()
        self._unread = b""
        self._flush_posted = False
        self._escaped = False
        self._always_ready = False
        self._on_terminal = False  # asked once: a terminal that has hung up says that it is none

    @classmethod
    def open(cls, spec: str) -> "Console":
        """Open what ``--serial`` names: ``stdio``, ``null`` or ``file:PATH`` (appended to)."""
        if spec == "stdio":
            return cls(1, 0)
        if spec == "null":
            return cls(None)
        kind, _, path = spec.partition(":")
        if kind != "file" or not path:
            raise ConfigError(f"serial is {spec!r}, must be stdio, null or file:PATH")
        try:
            return cls(host.open_fd(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644), owned=True)
        except HostError as error:
            raise ConfigError(f"serial file {path} cannot be opened: {error}") from error

    # The wire, from vCPU threads under the machine's lock

    def write(self, payload: bytes) -> None:
        """Take bytes from the chip."""
        if self._watches:
            self._match(payload)
        if self._out_fd is None:
            return
        self._pending += payload
        if self._loop is not None and not self._flush_posted:
            self._flush_posted = True
            self._loop.post(self._flush)

    @property
    def full(self) -> bool:
        """Whether the chip should wait."""
        return len(self._pending) >= HIGH_WATER

    def watch_for(self, text: str, found: Callable[[], None]) -> None:
        """Call *found* once, on the thread that writes, when *text* has appeared in the output."""
        self._watches.append((text.encode(), found))

    def _match(self, payload: bytes) -> None:
        seen = self._tail + payload
        for watch in [watch for watch in self._watches if watch[0] in seen]:
            self._watches.remove(watch)
            watch[1]()
        keep = max((len(text) for text, _ in self._watches), default=1) - 1
        self._tail = seen[-keep:] if keep else b""

    # The host's side, on the event loop

    def attach(
        self,
        loop: Loop,
        *,
        receive: Callable[[bytes], int],
        room_again: Callable[[], None],
        lost: Callable[[str], None],
        quit_asked: Callable[[], None],
    ) -> None:
        """Begin to serve: *receive* takes input and says how much it took; *lost* is told when the output is gone."""
        self._loop, self._input, self._room_again, self._lost = loop, receive, room_again, lost
        self._quit = quit_asked
        if self._in_fd is not None:
            self._on_terminal = host_process.is_terminal(self._in_fd)
            try:
                self._stack.enter_context(host_process.raw_terminal(self._in_fd))
                self._watch_input()
            except BaseException:
                self._stack.close()
                self._loop = None
                raise
        if self._pending:
            loop.post(self._flush)

    def detach(self) -> None:
        """Write what is left, stop serving, and give the terminal back as it was."""
        try:
            self.drain()
        finally:
            if self._loop is not None:
                for fd in (self._in_fd, self._out_fd):
                    if fd is not None:
                        self._loop.unwatch(fd)
                self._loop = None
            self._stack.close()

    def close(self) -> None:
        """Detach, and close what `open` opened."""
        try:
            self.detach()
        finally:
            if self._owned and self._out_fd is not None:
                host.close(self._out_fd)
                self._out_fd = None

    def drain(self) -> None:
        """Write all pending output now. What the other end does not begin to take in time stays pending."""
        self._flush_posted = False
        while self._pending and self._out_fd is not None:
            try:
                if not host.wait_writable(self._out_fd, _PATIENCE_MS):
                    return
                done = host.write(self._out_fd, bytes(self._pending[:_WRITE_LEN]))
            except HostError as error:
                self._lose(error)
                return
            del self._pending[:done]

    def input_again(self) -> None:
        """The chip has room again for input that it could not take."""
        if self._unread and self._loop is not None:
            self._loop.post(self._offer)

    def _flush(self) -> None:
        """Write what the other end takes; watch for more room while something is left."""
        self._flush_posted = False
        fd = self._out_fd
        if fd is None or self._loop is None or not self._pending:
            return
        was_full = self.full
        if not self._always_ready and self._loop.watch(fd, host.EPOLLOUT, lambda _events: self._write_some()):
            self._flush_posted = True
            return
        self._always_ready = True
        self.drain()
        self._tell_room(was_full)

    def _write_some(self) -> None:
        fd, loop = self._out_fd, self._loop
        if fd is None or loop is None:
            return
        was_full = self.full
        try:
            done = host.write(fd, bytes(self._pending[:_WRITE_LEN]))
        except HostError as error:
            self._lose(error)
            return
        del self._pending[:done]
        if not self._pending:
            loop.unwatch(fd)
            self._flush_posted = False
            self._flush()  # a byte that came between the two lines above has posted nothing
        self._tell_room(was_full)

    def _tell_room(self, was_full: bool) -> None:
        if was_full and not self.full and self._room_again is not None:
            self._room_again()

    def _lose(self, error: HostError) -> None:
        self._pending.clear()
        fd, self._out_fd = self._out_fd, None
        if fd is not None and self._loop is not None:
            self._loop.unwatch(fd)
        if fd is not None and self._owned:
            host.close(fd)
        if self._lost is not None:
            self._lost(f"console lost: {error}")

    def _readable(self, events: int) -> None:
        if self._in_fd is None or self._loop is None:
            return
        if self._unread:
            self._loop.unwatch(self._in_fd)  # taken up again by _offer
            return
        try:
            got = host.read(self._in_fd, 256)
        except HostError as error:
            self._loop.unwatch(self._in_fd)
            self._lose(error)
            return
        if got is None:
            return
        if got == b"":
            self._loop.unwatch(self._in_fd)
            if self._on_terminal:
                self._lose(HostError("read", errno.EIO, "terminal"))
            return
        self._unread = self._take_escapes(got) if self._on_terminal else got
        self._offer()

    def _offer(self) -> None:
        if self._unread:
            self._unread = self._unread[self._input(self._unread) :]
        if not self._unread:
            self._watch_input()

    def _watch_input(self) -> None:
        if self._in_fd is None or self._loop is None:
            return
        if not self._loop.watch(self._in_fd, host.EPOLLIN, self._readable):
            self._loop.post(lambda: self._readable(0))  # a regular file: always ready

    def _take_escapes(self, got: bytes) -> bytes:
        passed = bytearray()
        for byte in got:
            if self._escaped:
                self._escaped = False
                if byte == _QUIT:
                    if self._quit is not None:
                        self._quit()
                    continue
                passed.append(byte)
            elif byte == _ESCAPE:
                self._escaped = True
            else:
                passed.append(byte)
        return bytes(passed)
