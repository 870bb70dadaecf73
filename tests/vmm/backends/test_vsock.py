"""The host end of a socket device over real Unix sockets: the convention, what it bounds, what it leaves behind."""

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from snapkit import host
from snapkit.errors import ConfigError, HostError
from snapkit.vmm.backends.vsock import HANDSHAKES_MAX, LINE_MAX, UnixStream, VsockHost
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.virtio_vsock import VirtioVsock, VsockArgs, fresh_state
from snapkit.vmm.virtio.vsock_connection import BUF_ALLOC
from tests.vmm.virtio.vsock_guest import (
    CID,
    CREDIT_UPDATE,
    F_RECEIVE,
    F_SEND,
    RAM_LEN,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
    Guest,
    Packet,
)

PATIENCE_S = 30.0


def turn(loop: Loop) -> None:
    """Serve what is at hand: a stop ends the step that it comes in, so it has to come in a later one."""
    for _ in range(3):
        loop.post(lambda: loop.post(loop.stop))
        loop.run()


def until(loop: Loop, done: Callable[[], object]) -> None:
    deadline_ns = host.monotonic_ns() + int(PATIENCE_S * 1e9)
    while not done():
        assert host.monotonic_ns() < deadline_ns
        turn(loop)


def fds() -> list[str]:
    return sorted(os.listdir("/proc/self/fd"))


class Rig:
    """A host end on a loop, and what arrived over it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "v.sock")
        self.loop, self.lock = Loop(), threading.Lock()
        self.end = VsockHost(self.path)
        self.arrived: list[tuple[UnixStream, int]] = []
        self.end.attach(self.loop, self.lock, self._arrived)
        self.end.go_on()

    def _arrived(self, stream: UnixStream, port: int) -> None:
        assert self.lock.locked()
        self.arrived.append((stream, port))

    def client(self, said: bytes = b"") -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        made.settimeout(PATIENCE_S)
        made.connect(self.path)
        made.sendall(said)
        turn(self.loop)
        return made

    def close(self) -> None:
        self.end.close()
        self.loop.close()


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    made.close()


def hung_up(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


# Clients


@pytest.mark.parametrize(
    ("said", "port"),
    [
        (b"CONNECT 7\n", 7),
        (b"CONNECT 4294967295\n", 0xFFFF_FFFF),
        (b"connect 7\n", 7),
        (b"CONNECT  0007 \r\n", 7),
    ],
)
def test_client_asks_for_a_port_by_a_line(rig, said, port):
    with rig.client(said) as client:
        ((stream, asked),) = rig.arrived
        assert asked == port
        assert stream.read(100) is None
        assert not hung_up(client)


def test_line_may_come_in_pieces_and_what_is_behind_it_is_the_stream(rig):
    with rig.client() as client:
        for byte in b"CONNECT 7":
            client.sendall(bytes([byte]))
            turn(rig.loop)
        assert not rig.arrived
        client.sendall(b"\nfirst bytes")
        turn(rig.loop)
        ((stream, _),) = rig.arrived
        client.sendall(b", more bytes")
        assert stream.read(5) == b"first"
        assert stream.read(100) == b" bytes"
        assert stream.read(100) == b", more bytes"
        assert stream.read(100) is None


@pytest.mark.parametrize(
    "said",
    [
        b"\n",
        b"CONNECT\n",
        b"CONNECT 7 8\n",
        b"CONNECT -1\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 0x7\n",
        b"CONNECT \xb2\n",
        b"GET / HTTP/1.1\r\n",
        b"C" * LINE_MAX,
        b"\0" * 100_000,
    ],
)
def test_client_that_says_anything_else_is_hung_up_on(rig, said):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(rig.path)
        client.setblocking(False)
        with suppress(BlockingIOError):
            client.send(said)
        turn(rig.loop)
        assert hung_up(client)
        assert not rig.arrived
        assert rig.end.streams == 0


def test_client_that_goes_without_a_word_leaves_nothing(rig):
    rig.client().close()
    with rig.client(b"CONN") as client:
        client.shutdown(socket.SHUT_WR)
        turn(rig.loop)
    assert rig.end.streams == 0


def test_clients_that_say_nothing_cannot_keep_others_out(rig):
    silent = [rig.client() for _ in range(HANDSHAKES_MAX)]
    assert rig.end.streams == HANDSHAKES_MAX
    with rig.client(b"CONNECT 7\n"):
        assert [port for _, port in rig.arrived] == [7]
    assert rig.end.streams == HANDSHAKES_MAX
    assert [hung_up(client) for client in silent[:2]] == [True, False]
    for client in silent:
        client.close()


def test_nobody_is_looked_at_while_it_rests_or_is_not_attached(tmp_path):
    rig = Rig(tmp_path)
    with rig.client(b"CONNECT 1\n") as first:
        ((stream, _),) = rig.arrived
        seen: list[tuple[bool, bool]] = []
        stream.bind(lambda readable, gone: seen.append((readable, gone)))
        stream.watch(readable=True, writable=False, gone=True)
        rig.end.rest()
        first.sendall(b"x")
        with rig.client(b"CONNECT 2\n"):
            turn(rig.loop)
            rig.end._dispatch(stream, host.EPOLLIN)  # an event that was at hand
            assert (len(rig.arrived), seen) == (1, [])
            rig.end.go_on()
            until(rig.loop, lambda: len(rig.arrived) == 2 and seen)
            assert seen[0] == (True, False)
            rig.end.detach()
            assert rig.end.streams == 0
    with rig.client(b"CONNECT 3\n"):
        assert len(rig.arrived) == 2
    rig.close()


def test_stream_says_that_the_other_end_hung_up_once_and_is_quiet_when_asked_to_be(rig):
    with rig.client(b"CONNECT 1\n") as client:
        ((stream, _),) = rig.arrived
        seen: list[tuple[bool, bool]] = []
        stream.bind(lambda readable, gone: seen.append((readable, gone)))
        stream.watch(readable=False, writable=False, gone=True)
        client.sendall(b"x")
        turn(rig.loop)
        assert seen == []
    turn(rig.loop)
    assert seen[0] == (False, True)
    stream.watch(readable=False, writable=False, gone=False)
    seen.clear()
    turn(rig.loop)
    assert seen == []


def test_directions_end_one_by_one(rig):
    with rig.client(b"CONNECT 1\n") as client:
        ((stream, _),) = rig.arrived
        stream.write(b"last")
        stream.end_write()
        assert client.recv(10) == b"last"
        assert client.recv(10) == b""
        client.sendall(b"still")
        assert stream.read(10) == b"still"
        stream.end_read()
        with pytest.raises(BrokenPipeError):
            client.sendall(b"x")


def test_accepting_stops_for_a_while_when_there_are_no_fds_left(rig, monkeypatch):
    monkeypatch.setattr("snapkit.vmm.backends.vsock._ACCEPT_AGAIN_NS", 1)
    tried = 0

    def spoil(call: str, _arguments: tuple[object, ...]) -> None:
        nonlocal tried
        if call == "accept":
            tried += 1
            raise OSError(errno.EMFILE, "injected")

    with host.inject(spoil):
        client = rig.client(b"CONNECT 1\n")
        until(rig.loop, lambda: tried > 1)
    until(rig.loop, lambda: rig.arrived)
    client.close()


# The socket file


def test_live_socket_is_refused_by_name_and_a_stale_one_replaced(tmp_path):
    path = str(tmp_path / "v.sock")
    first = VsockHost(path)
    with pytest.raises(ConfigError, match=f"{path} is served by another process") as refused:
        VsockHost(path)
    assert "uds=" in "".join(refused.value.__notes__)
    first.close()
    assert os.listdir(tmp_path) == []
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    VsockHost(path).close()
    assert os.listdir(tmp_path) == []


def test_closing_twice_is_fine_and_takes_the_name_away(tmp_path):
    rig = Rig(tmp_path)
    client = rig.client(b"CONNECT 1\n")
    rig.end.close()
    rig.close()
    assert hung_up(client)
    client.close()
    assert os.listdir(tmp_path) == []


def test_ports_of_two_hosts_begin_elsewhere(tmp_path):
    ends = [VsockHost(str(tmp_path / f"{number}.sock")) for number in range(8)]
    assert len({end.first_port for end in ends}) > 1
    assert all(1 << 30 <= end.first_port < 1 << 31 for end in ends)
    for end in ends:
        end.close()


def test_nobody_listening_for_the_guest_is_an_error_without_an_fd(rig):
    before = fds()
    with pytest.raises(HostError, match="ENOENT"):
        rig.end.connect(5000)
    Path(f"{rig.path}_5001").touch()
    with pytest.raises(HostError, match="ECONNREFUSED"):
        rig.end.connect(5001)
    assert fds() == before


def test_listener_of_the_host_whose_backlog_is_full_refuses_and_does_not_hold_the_loop(rig):
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(f"{rig.path}_5000")
        server.listen(0)
        client.connect(f"{rig.path}_5000")
        with pytest.raises(HostError, match="EAGAIN"):
            rig.end.connect(5000)


# With the device, the loop and a guest


class Machine:
    """Everything between a guest's driver and a program of the host."""

    def __init__(self, folder: Path, ram: GuestMemory) -> None:
        self.path = str(folder / "v.sock")
        self.loop, self.lock = Loop(), threading.Lock()
        try:
            self.end = VsockHost(self.path)
        except BaseException:
            self.loop.close()
            raise
        self.device = VirtioVsock(fresh_state(CID, self.path), args=VsockArgs(ram, self.end))
        self.device.connect(self.loop, self.lock)
        self.guest = Guest(self.device, ram)
        with self.lock:
            self.device.run()
        self.packets: list[Packet] = []

    def hear(self) -> list[Packet]:
        """Let the loop turn, and return what the guest got."""
        turn(self.loop)
        with self.lock:
            self.guest.spin()
            return self.guest.receive()

    def until_packet(self, op: int) -> Packet:
        found: list[Packet] = []

        def look() -> bool:
            found.extend(self.hear())
            return any(packet.op == op for packet in found)

        until(self.loop, look)
        return next(packet for packet in found if packet.op == op)

    def send(self, op: int, src_port: int, dst_port: int, payload: bytes = b"", **changed: int) -> None:
        with self.lock:
            self.guest.send(op, src_port, dst_port, payload, **changed)

    def close(self) -> None:
        self.device.disconnect()
        self.device.close()
        self.loop.close()


@pytest.fixture(scope="module")
def ram():
    made = GuestMemory([(0, RAM_LEN)])
    yield made
    made.close()


@pytest.fixture
def machine(tmp_path, ram):
    made = Machine(tmp_path, ram)
    yield made
    made.close()


@contextmanager
def listening(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(PATIENCE_S)
        server.bind(path)
        server.listen()
        yield server
    os.unlink(path)


@contextmanager
def dialled(machine: Machine) -> Iterator[socket.socket]:
    """The host's end of a connection from the guest's port 1024 to 5000."""
    with listening(f"{machine.path}_5000") as server:
        machine.send(REQUEST, 1024, 5000)
        client, _ = server.accept()
    client.settimeout(PATIENCE_S)
    assert machine.until_packet(RESPONSE).dst_port == 1024
    with client:
        yield client


@contextmanager
def called(machine: Machine) -> Iterator[tuple[socket.socket, int]]:
    """The host's end of a connection to the guest's port 7, and its port."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        client.connect(machine.path)
        client.sendall(b"CONNECT 7\n")
        asked = machine.until_packet(REQUEST)
        assert asked.dst_port == 7
        machine.send(RESPONSE, 7, asked.src_port)
        assert client.recv(100) == b"OK %d\n" % asked.src_port
        yield client, asked.src_port


def test_program_of_the_host_reaches_the_guest_and_is_greeted(machine):
    with called(machine) as (client, port):
        client.sendall(b"question")
        assert machine.until_packet(RW).payload == b"question"
        machine.send(RW, 7, port, b"answer")
        assert client.recv(100) == b"answer"
        client.close()
        assert machine.until_packet(SHUTDOWN).dst_port == 7
        machine.send(RST, 7, port)
        assert machine.device.connections == machine.end.streams == 0


def test_program_that_asks_for_a_port_nobody_listens_on_is_hung_up_on_without_a_word(machine):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(machine.path)
        client.sendall(b"CONNECT 8\n")
        asked = machine.until_packet(REQUEST)
        machine.send(RST, 8, asked.src_port)
        client.settimeout(PATIENCE_S)
        assert client.recv(100) == b""


def test_guest_that_dials_where_nobody_listens_is_refused(machine):
    machine.send(REQUEST, 1024, 5000)
    assert machine.until_packet(RST).dst_port == 1024


@pytest.mark.parametrize("end", ["guest", "host"])
def test_half_closed_connection_carries_the_other_half(machine, end):
    with dialled(machine) as client:
        if end == "guest":
            machine.send(SHUTDOWN, 1024, 5000, flags=F_SEND)
            assert client.recv(10) == b""
            client.sendall(b"the other half")
            assert machine.until_packet(RW).payload == b"the other half"
        else:
            client.shutdown(socket.SHUT_WR)
            assert machine.until_packet(SHUTDOWN).flags == F_SEND
            machine.send(RW, 1024, 5000, b"the other half")
            assert client.recv(100) == b"the other half"


def test_slow_reader_on_the_host_leaves_the_guest_without_credit_and_gets_every_byte(machine):
    with dialled(machine) as client:
        room_len = client.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)  # of our end as well: the host's default
        payload = os.urandom(2 * room_len + 16 * BUF_ALLOC)
        sent = told = 0
        while (length := min(BUF_ALLOC - (sent - told), len(payload) - sent)) > 0:
            machine.send(RW, 1024, 5000, payload[sent : sent + length])
            sent += length
            told = max([told, *[packet.fwd_cnt for packet in machine.hear()]])
        assert sent < len(payload), "the host took it all without reading"
        stuck = machine.hear()
        assert stuck == []
        got = bytearray()
        while len(got) < len(payload):
            with suppress(BlockingIOError):
                client.setblocking(False)
                got += client.recv(50_000)
            told = max([told, *[packet.fwd_cnt for packet in machine.hear()]])
            length = min(BUF_ALLOC - (sent - told), len(payload) - sent)
            if length > 0:
                machine.send(RW, 1024, 5000, payload[sent : sent + length])
                sent += length
        assert got == payload


def test_slow_guest_leaves_the_rest_in_the_hosts_socket_and_gets_every_byte(machine):
    payload = os.urandom(1 << 20)
    with dialled(machine) as client:
        machine.send(CREDIT_UPDATE, 1024, 5000, buf_alloc=5000)
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(payload) // 8)  # whatever the host's default is
        given = client.send(payload)
        assert given < len(payload)
        got = b"".join(packet.payload for packet in machine.hear())
        assert len(got) == 5000
        idle = host.calls_made()
        turn(machine.loop)
        assert host.calls_made() == idle, "a socket that is of no use now is looked at"
        while len(got) < len(payload):
            with suppress(BlockingIOError):
                given += client.send(payload[given:])
            machine.send(CREDIT_UPDATE, 1024, 5000, buf_alloc=100_000, fwd_cnt=len(got))
            got += b"".join(packet.payload for packet in machine.hear())
        assert got == payload


def test_hung_up_host_whose_bytes_the_guest_cannot_take_yet_keeps_nobody_busy(machine):
    with dialled(machine) as client:
        machine.send(CREDIT_UPDATE, 1024, 5000, buf_alloc=3)
        client.sendall(b"abcdef")
    packets = machine.hear()
    assert b"".join(packet.payload for packet in packets) == b"abc"
    machine.hear()
    idle = host.calls_made()
    turn(machine.loop)
    assert host.calls_made() == idle
    machine.send(CREDIT_UPDATE, 1024, 5000, buf_alloc=100, fwd_cnt=3)
    packets = machine.hear()
    assert b"".join(packet.payload for packet in packets) == b"def"
    assert packets[-1].flags == F_SEND | F_RECEIVE


def test_save_with_live_connections_does_not_disturb_them(machine):
    with dialled(machine) as client, called(machine) as (caller, port):
        client.sendall(b"before")
        machine.device.pause()
        caller.sendall(b"while it is paused")
        with machine.lock:
            machine.device.prepare_save()
            state = machine.device.save()
            machine.device.run()
        assert not state.reset_pending
        got = {packet.dst_port: packet.payload for packet in [*machine.hear(), *machine.hear()] if packet.op == RW}
        assert got == {1024: b"before", 7: b"while it is paused"}
        machine.send(RW, 7, port, b"after")
        assert caller.recv(100) == b"after"


def test_bytes_that_flow_cost_a_read_for_each_packet_and_one_more(machine):
    with dialled(machine) as client:
        client.sendall(b"first")
        machine.hear()
        seen: list[str] = []
        with host.inject(lambda call, _arguments: seen.append(call)):
            client.sendall(b"second")
            assert [packet.payload for packet in machine.hear()] == [b"second"]
        assert seen == ["read", "read"]


def test_reset_of_the_device_hangs_up_on_everybody_and_the_listener_stays(machine):
    with dialled(machine) as client, called(machine) as (caller, _):
        with machine.lock:
            machine.device.reset()
        assert client.recv(1) == b""
        assert caller.recv(1) == b""
        assert machine.end.streams == 0
    with socket.socket(socket.AF_UNIX) as late:
        late.settimeout(PATIENCE_S)
        late.connect(machine.path)
        late.sendall(b"CONNECT 7\n")
        turn(machine.loop)
        assert late.recv(1) == b"", "no driver is there"


def life(folder: Path, ram: GuestMemory) -> None:
    """Connections both ways, data both ways, half-closes, a pause, a save, an end."""
    machine = Machine(folder, ram)
    try:
        with listening(f"{machine.path}_5000") as server:
            server.setblocking(False)
            machine.send(REQUEST, 1024, 5000)
            machine.hear()
            with socket.socket(socket.AF_UNIX) as caller, suppress(OSError):
                caller.setblocking(False)
                caller.connect(machine.path)
                caller.send(b"CONNECT 7\nhello")
                ports = [packet.src_port for packet in machine.hear() if packet.op == REQUEST]
                for port in ports:
                    machine.send(RESPONSE, 7, port)
                    machine.send(RW, 7, port, b"to the caller")
                with suppress(OSError), server.accept()[0] as client:
                    client.setblocking(False)
                    client.send(b"to the guest")
                    machine.hear()
                    machine.send(RW, 1024, 5000, b"to the host")
                    machine.device.pause()
                    with machine.lock:
                        machine.device.save()
                        machine.device.run()
                    machine.send(SHUTDOWN, 1024, 5000, flags=F_SEND)
                    client.shutdown(socket.SHUT_WR)
                    machine.hear()
                machine.hear()
                machine.send(RST, 1024, 5000)
        machine.hear()
    finally:
        machine.close()


def test_failure_at_any_system_call_of_a_life_reaches_nobody_and_leaves_no_fd(tmp_path, ram):
    before = fds()
    at = 0
    while True:
        calls: list[str] = []

        def spoil(call: str, _arguments: tuple[object, ...], calls: list[str] = calls, at: int = at) -> None:
            calls.append(call)
            if len(calls) == at + 1:
                raise OSError(errno.EIO, "injected")

        folder = tmp_path / str(at)
        folder.mkdir()
        told = ""
        with host.inject(spoil):
            try:
                life(folder, ram)
            except (HostError, ConfigError) as error:
                told = str(error)
        assert fds() == before, calls[at]
        if len(calls) <= at:
            break
        assert not told or "link" not in calls[:at], f"{calls[at]} after the socket was made: {told}"
        at += 1
    assert not told
    assert {"accept", "connect_unix", "read", "write", "shutdown"} <= set(calls)
