"""Serve HTTP on a Unix socket from the machine's event loop, without ever waiting for a client.

Everything is bounded: clients, the bytes read in one turn, heads and bodies (`http`), and the time that one request may
take to come and its answer to be taken. One that does not read its answer is not read from either. A client that
breaks the rules loses its connection; nothing that it does reaches the loop as an error.

`http`, and with it h11, is imported when the first client comes: a machine that nobody talks to does not pay 30 ms.
"""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from snapkit import host, host_sockets
from snapkit.errors import HostError
from snapkit.vmm.backends.reply import Answer
from snapkit.vmm.backends.unix_listener import UnixListener
from snapkit.vmm.loop import Loop

if TYPE_CHECKING:
    from snapkit.vmm.backends.http import Conversation

CLIENTS_MAX = 16
PATIENCE_NS = 30 * 10**9
_READ_LEN = 8192
_ACCEPT_AGAIN_NS = 10**9


class _Client:
    """One connection: its fd, its conversation, and when our patience with it ends."""

    __slots__ = ("deadline_ns", "fd", "talk")

    def __init__(self, fd: int, talk: "Conversation", deadline_ns: int) -> None:
        self.fd, self.talk, self.deadline_ns = fd, talk, deadline_ns


class HttpServer:
    """The clients of one listener. All on the loop's thread.

    When there are too many clients the one that has been idle longest goes, so that idle ones cannot keep an operator
    out. *patience_ns* is for one request from its begin, or the end of the one before, to the taking of its answer.
    """

    def __init__(
        self, loop: Loop, path: str, *, clients_max: int = CLIENTS_MAX, patience_ns: int = PATIENCE_NS
    ) -> None:
        """Listen at *path*, so that a second server there is refused; serve nobody yet."""
        # Configuration
        self._clients_max, self._patience_ns = clients_max, patience_ns
        # Runtime glue
        self._loop = loop
        self._listener = UnixListener(path)
        self._answer: Answer | None = None
        self._clients: dict[int, _Client] = {}
        self._sweeping = False
        self.faults = 0
        """Connections that ended by an exception of ours. There should be none."""

    @property
    def clients(self) -> int:
        """How many clients there are."""
        return len(self._clients)

    def serve(self, answer: Answer) -> None:
        """Have *answer* asked for every request from now on; it must not raise."""
        self._answer = answer
        self._loop.watch(self._listener.fd, host.EPOLLIN, lambda _events: self._accept())

    def close(self) -> None:
        """Stop listening and drop every client, which then finds the name gone."""
        if self._answer is not None:
            self._answer = None
            self._loop.unwatch(self._listener.fd)
        self._listener.close()
        for client in list(self._clients.values()):
            self._drop(client)

    # Clients come and go

    def _accept(self) -> None:
        try:
            self._take_client()
        except HostError:
            # no fds left, most likely, and the listener stays ready: asking again at once would be a busy loop
            with suppress(HostError):
                self._loop.unwatch(self._listener.fd)
            self._loop.call_at(host.monotonic_ns() + _ACCEPT_AGAIN_NS, self._accept_again)

    def _take_client(self) -> None:
        fd = None if self._answer is None else host_sockets.accept(self._listener.fd)
        if fd is None or self._answer is None:
            return
        from snapkit.vmm.backends.http import Conversation

        if len(self._clients) >= self._clients_max:
            self._drop(min(self._clients.values(), key=lambda client: client.deadline_ns))
        client = _Client(fd, Conversation(self._answer), host.monotonic_ns() + self._patience_ns)
        self._clients[fd] = client
        self._guard(client, self._watch_input)
        if not self._sweeping:
            self._sweep()

    def _accept_again(self) -> None:
        if self._answer is not None:
            try:
                self.serve(self._answer)
            except HostError:
                self._loop.call_at(host.monotonic_ns() + _ACCEPT_AGAIN_NS, self._accept_again)

    def _drop(self, client: _Client) -> None:
        if self._clients.get(client.fd) is client:
            del self._clients[client.fd]
            with suppress(HostError):
                self._loop.unwatch(client.fd)
            host.close(client.fd)

    def _sweep(self) -> None:
        """Drop who tried our patience, and look again when the next one may have."""
        self._sweeping = False
        now_ns = host.monotonic_ns()
        for client in [each for each in self._clients.values() if each.deadline_ns <= now_ns]:
            # its request may have come while the loop was busy with something long, such as a snapshot
            self._guard(client, self._pump if client.talk.pending else self._read)
            if client.deadline_ns <= now_ns:
                self._drop(client)
        if self._clients:
            self._sweeping = True
            self._loop.call_at(min(client.deadline_ns for client in self._clients.values()), self._sweep)

    # One client

    def _guard(self, client: _Client, work: Callable[[_Client], None]) -> None:
        """Do *work* for *client*; whatever goes wrong is the end of its connection and of nothing else."""
        try:
            work(client)
        except HostError:  # it went away
            self._drop(client)
        except Exception:
            self.faults += 1
            self._drop(client)

    def _watch_input(self, client: _Client) -> None:
        self._loop.watch(client.fd, host.EPOLLIN, lambda _events: self._guard(client, self._read))

    def _read(self, client: _Client) -> None:
        if self._clients.get(client.fd) is not client or client.talk.pending:
            return
        payload = host.read(client.fd, _READ_LEN)
        if payload is not None:
            client.talk.receive(payload)
            self._pump(client)

    def _pump(self, client: _Client) -> None:
        """Write what is pending, as far as the client takes it, then see what is next."""
        if self._clients.get(client.fd) is not client:
            return
        talk = client.talk
        while talk.pending:
            done = host.write(client.fd, talk.pending)
            if not done:
                self._loop.watch(client.fd, host.EPOLLOUT, lambda _events: self._guard(client, self._pump))
                return
            del talk.pending[:done]
        if talk.over:
            self._drop(client)
            return
        if talk.answered:
            talk.answered = 0
            client.deadline_ns = host.monotonic_ns() + self._patience_ns
            if talk.waiting:  # requests sent ahead: one a turn, or a thousand of them would hold the loop
                self._loop.unwatch(client.fd)
                self._loop.post(partial(self._guard, client, self._next))
                return
        talk.go_on()
        if talk.pending or talk.over:
            self._pump(client)
        else:
            self._watch_input(client)

    def _next(self, client: _Client) -> None:
        if self._clients.get(client.fd) is client:
            client.talk.go_on()
            self._pump(client)
