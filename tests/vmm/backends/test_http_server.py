"""Clients of every kind against a server on a loop: whatever they do, the loop turns and others are served."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from snapkit import host
from snapkit.errors import ConfigError
from snapkit.vmm.backends.http_server import CLIENTS_MAX, HttpServer
from snapkit.vmm.backends.reply import Answer, Reply
from snapkit.vmm.loop import Loop

PATIENCE_S = 30.0
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LONG = b'{"text": "' + b"x" * 100_000 + b'"}'


def fine(_method: str, _target: str, _body: bytes) -> Reply:
    return Reply(200, b"{}")


def long(_method: str, _target: str, _body: bytes) -> Reply:
    return Reply(200, LONG)


class Rig:
    """A server whose loop runs on a thread."""

    def __init__(self, loop: Loop, server: HttpServer, path: str) -> None:
        self.loop, self.server, self.path = loop, server, path

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(PATIENCE_S)
        client.connect(self.path)
        return client

    def on_loop(self, work: Callable[[], object]) -> object:
        """Do *work* on the loop's thread and return its outcome: the loop still turns."""
        done, result = threading.Event(), list[object]()

        def turn() -> None:
            result.append(work())
            done.set()

        self.loop.post(turn)
        assert done.wait(PATIENCE_S), "the loop does not turn"
        return result[0]

    def wait(self, clients: int) -> None:
        """Wait until that many are left."""
        deadline_ns = host.monotonic_ns() + int(PATIENCE_S * 1e9)
        while self.on_loop(lambda: self.server.clients) != clients:
            assert host.monotonic_ns() < deadline_ns, f"{self.server.clients} clients, not {clients}"

    def serves(self) -> None:
        """Assert that a new client is served."""
        with self.connect() as client:
            client.sendall(GET)
            assert receive_all(client, b"}").startswith(b"HTTP/1.1 200")


def receive_all(client: socket.socket, until: bytes) -> bytes:
    got = b""
    while not got.endswith(until):
        more = client.recv(65536)
        assert more, got
        got += more
    return got


def ended(client: socket.socket) -> bool:
    """Whether the server has closed the connection, what it sent before that aside."""
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


@contextmanager
def serving(folder: Path, answer: Answer = fine, *, patience_ns: int = int(PATIENCE_S * 1e9)) -> Iterator[Rig]:
    path = str(folder / "s.sock")
    with Loop() as loop:
        server = HttpServer(loop, path, patience_ns=patience_ns)
        server.serve(answer)
        thread = threading.Thread(target=loop.run)
        thread.start()
        rig = Rig(loop, server, path)
        try:
            yield rig
            assert rig.on_loop(lambda: server.faults) == 0
        finally:
            loop.post(loop.stop)
            thread.join(PATIENCE_S)
            server.close()
        assert not thread.is_alive()
        assert os.listdir(folder) == []


def test_one_connection_serves_many_requests(tmp_path):
    with serving(tmp_path) as rig, rig.connect() as client:
        for _ in range(50):
            client.sendall(GET)
            assert receive_all(client, b"}").startswith(b"HTTP/1.1 200")


def test_an_answer_longer_than_the_socket_takes_arrives_whole(tmp_path):
    with serving(tmp_path, long) as rig, rig.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(GET)
        assert receive_all(client, b'"}').endswith(LONG)
        client.sendall(GET)
        assert receive_all(client, b'"}').endswith(LONG)


def test_a_thousand_requests_sent_ahead_are_answered_one_a_turn(tmp_path):
    turns: list[int] = []
    answers: list[int] = []

    def answer(_method: str, _target: str, _body: bytes) -> Reply:
        answers.append(len(turns))
        return Reply(200, b"{}")

    with serving(tmp_path, answer) as rig, rig.connect() as client:

        def turn() -> None:
            turns.append(0)
            if len(answers) < 1000:
                rig.loop.post(turn)

        rig.loop.post(turn)
        client.sendall(GET * 1000)
        got = b""
        while got.count(b"200 OK") < 1000:
            got += client.recv(65536)
        assert max(answers.count(at) for at in set(answers)) <= 2
        rig.serves()


def test_a_client_that_never_reads_is_not_read_from_and_goes_in_the_end(tmp_path):
    asked: list[int] = []

    def answer(_method: str, _target: str, _body: bytes) -> Reply:
        asked.append(0)
        return Reply(200, LONG)

    with serving(tmp_path, answer, patience_ns=200_000_000) as rig, rig.connect() as client:
        client.setblocking(False)
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):  # its time may be over before its room
            while True:
                client.send(GET * 100)
        rig.wait(0)
        # What the server's end takes is the host's default, as it is of this end.
        room_len = client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        assert len(asked) <= room_len // len(LONG) + 2  # one is cut, and one pending


def test_half_a_request_a_trickle_and_silence_all_end_by_the_clock(tmp_path):
    with serving(tmp_path, patience_ns=300_000_000) as rig, ExitStack() as stack:
        silent, half, trickle = (stack.enter_context(rig.connect()) for _ in range(3))
        head = b"GET / HTTP/1.1\r\nHost: x\r\nA: "
        with suppress(BrokenPipeError, ConnectionResetError):
            half.sendall(GET[:10])
            while True:  # a byte at a time would never come to an end
                trickle.sendall(head[:1] or b"y")
                head = head[1:]
                rig.on_loop(lambda: 0)
        assert ended(silent)
        assert ended(half)
        rig.server._patience_ns = int(PATIENCE_S * 1e9)  # those were to lose it, a new client is not
        rig.serves()


def test_a_request_that_waited_for_a_busy_loop_is_answered_although_its_time_is_over(tmp_path):
    with serving(tmp_path) as rig, rig.connect() as client:
        rig.wait(1)
        began, sent = threading.Event(), threading.Event()

        def busy() -> None:  # as a snapshot is, in whose time that of the client ends
            began.set()
            assert sent.wait(PATIENCE_S)
            for each in rig.server._clients.values():
                each.deadline_ns = host.monotonic_ns()
            rig.loop.call_at(host.monotonic_ns(), rig.server._sweep)

        rig.loop.post(busy)
        assert began.wait(PATIENCE_S)
        client.sendall(GET)
        sent.set()
        assert receive_all(client, b"}").startswith(b"HTTP/1.1 200")


def test_too_many_clients_cost_the_one_that_is_idle_longest(tmp_path):
    with serving(tmp_path) as rig, ExitStack() as stack:
        idle = [stack.enter_context(rig.connect()) for _ in range(CLIENTS_MAX)]
        rig.wait(CLIENTS_MAX)
        idle[0].sendall(GET)
        receive_all(idle[0], b"}")
        rig.serves()
        assert ended(idle[1])
        idle[0].sendall(GET)
        assert receive_all(idle[0], b"}").startswith(b"HTTP/1.1 200")


def test_garbage_gets_one_answer_and_the_end(tmp_path):
    with serving(tmp_path) as rig:
        for text in (b"\0" * 100_000, b"\r\n\r\n" + b"x" * 100_000, os.urandom(100_000)):
            with rig.connect() as client:
                with suppress(BrokenPipeError, ConnectionResetError):
                    client.sendall(text)
                assert ended(client)
        rig.wait(0)
        rig.serves()


def test_clients_that_vanish_at_any_moment_leave_no_fd(tmp_path):
    with serving(tmp_path, long) as rig:
        with rig.connect() as client:  # h11 and all is imported now
            client.sendall(GET)
            receive_all(client, b'"}')
        rig.wait(0)
        fds = len(os.listdir("/proc/self/fd"))
        for cut in range(len(GET) + 1):
            client = rig.connect()
            client.sendall(GET[:cut])
            if cut % 2:
                client.shutdown(socket.SHUT_WR)
            client.close()
        rig.serves()  # in the order of their coming, so all the others were accepted before
        rig.wait(0)
        assert len(os.listdir("/proc/self/fd")) == fds


def test_a_client_that_ends_its_side_still_gets_its_answer(tmp_path):
    with serving(tmp_path, long) as rig, rig.connect() as client:
        client.sendall(GET)
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client, b'"}').endswith(LONG)
        assert ended(client)


def test_an_exception_in_an_answer_costs_that_client_only(tmp_path):
    def answer(_method: str, target: str, _body: bytes) -> Reply:
        if target == "/bug":
            raise RuntimeError("a bug")
        return Reply(200, b"{}")

    with serving(tmp_path, answer) as rig:
        with rig.connect() as client:
            client.sendall(GET.replace(b"/ ", b"/bug "))
            assert ended(client)
        rig.serves()
        assert rig.server.faults == 1
        rig.server.faults = 0


def test_no_more_fds_are_waited_out(tmp_path):
    refused = threading.Event()

    def hook(call: str, _arguments: tuple[object, ...]) -> None:
        if call == "accept" and not refused.is_set():
            refused.set()
            raise OSError(24, "injected")

    with serving(tmp_path) as rig, host.inject(hook):
        rig.serves()
        assert refused.is_set()


@pytest.mark.parametrize("call", ["read", "write", "epoll_control"])
def test_a_system_call_that_fails_costs_the_client_only(tmp_path, call):
    with serving(tmp_path) as rig:
        rig.serves()
        rig.wait(0)
        failed = threading.Event()

        def hook(name: str, _arguments: tuple[object, ...]) -> None:
            if name == call and not failed.is_set():
                failed.set()
                raise OSError(5, "injected")

        with host.inject(hook), rig.connect() as client:
            with suppress(BrokenPipeError):  # it may be over by now
                client.sendall(GET)
            assert ended(client)
            assert failed.is_set()
        rig.serves()


def test_nobody_is_answered_before_serving_begins_and_the_name_is_taken_all_the_same(tmp_path):
    path = str(tmp_path / "s.sock")
    with Loop() as loop:
        server = HttpServer(loop, path)
        with pytest.raises(ConfigError):
            HttpServer(loop, path)
        server.close()
        server.close()
    assert os.listdir(tmp_path) == []


def test_the_connections_end_when_the_server_does(tmp_path):
    with serving(tmp_path) as rig:
        client = rig.connect()
        rig.wait(1)
    assert ended(client)
    client.close()
