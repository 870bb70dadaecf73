"""The socket device against a driver and host ends that live in memory: what goes where, and what nothing can break."""

import errno
import struct
import threading
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapkit.errors import ConfigError, HostError, ImageError
from snapkit.state.codec import checked, encode
from snapkit.state.virtio_vsock import VirtioVsockState
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.virtio_vsock import CONNECTIONS_MAX, RESETS_MAX, VirtioVsock, VsockArgs, fresh_state
from snapkit.vmm.virtio.vsock_connection import BUF_ALLOC
from snapkit.vmm.virtio.vsock_link import HostStream
from tests.vmm.virtio.driver import drive
from tests.vmm.virtio.vsock_guest import (
    AREA_LEN,
    CID,
    CREDIT_REQUEST,
    CREDIT_UPDATE,
    F_RECEIVE,
    F_SEND,
    HEADER,
    RAM_LEN,
    REQUEST,
    RESPONSE,
    RST,
    RW,
    SHUTDOWN,
    Guest,
)

RX, TX, EVENT = range(3)
FIRST_PORT = 1 << 30


class Stream:
    """A host program: what it wrote and has not been read, what it was given, how much it takes."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.got = bytearray()
        self.room = 1 << 30
        self.over = False
        self.fails: dict[str, int] = {}
        self.closed = False
        self.ended: list[str] = []
        self.watched: tuple[bool, bool, bool] = (False, False, False)
        self.serve: Callable[[bool, bool], None] | None = None

    def bind(self, serve: Callable[[bool, bool], None]) -> None:
        self.serve = serve

    def read(self, length: int) -> bytes | None:
        self._may("read")
        assert length > 0
        got = bytes(self.sent[:length])
        del self.sent[:length]
        return got or (b"" if self.over else None)

    def write(self, payload: bytes | bytearray) -> int:
        self._may("write")
        done = min(len(payload), self.room)
        self.room -= done
        self.got += payload[:done]
        return done

    def end_write(self) -> None:
        self._may("end_write")
        self.ended.append("write")

    def end_read(self) -> None:
        self._may("end_read")
        self.ended.append("read")

    def watch(self, *, readable: bool, writable: bool, gone: bool) -> None:
        self._may("watch")
        self.watched = (readable, writable, gone)

    def close(self) -> None:
        assert not self.closed
        self.closed = True

    def _may(self, call: str) -> None:
        assert not self.closed
        if call in self.fails:
            raise HostError(call, self.fails[call])

    # As the loop would

    def turn(self, *, gone: bool = False) -> None:
        """Tell the device what epoll would, of what it watches for."""
        if not self.closed and self.serve is not None:
            readable = self.watched[0] and bool(self.sent or self.over or gone)
            if readable or (self.watched[1] and self.room) or (gone and any(self.watched)):
                self.serve(readable, gone)


class End:
    """Listeners of the host, by port."""

    first_port = FIRST_PORT

    def __init__(self) -> None:
        self.listening: set[int] = set()
        self.streams: list[Stream] = []
        self.arrived: Callable[[HostStream, int], None] | None = None
        self.calls: list[str] = []

    def attach(self, loop: Loop, lock: threading.Lock, arrived: Callable[[HostStream, int], None]) -> None:
        self.calls.append("attach")
        self.arrived = arrived

    def detach(self) -> None:
        self.calls.append("detach")
        self.arrived = None

    def close(self) -> None:
        self.calls.append("close")

    def rest(self) -> None:
        self.calls.append("rest")

    def go_on(self) -> None:
        self.calls.append("go_on")

    def connect(self, port: int) -> Stream:
        if port not in self.listening:
            raise HostError("connect_unix", errno.ECONNREFUSED)
        self.streams.append(Stream())
        return self.streams[-1]

    def arrive(self, port: int) -> Stream:
        """Have a program of the host ask for a port of the guest."""
        stream = Stream()
        self.streams.append(stream)
        assert self.arrived is not None
        self.arrived(stream, port)
        return stream


class Rig:
    """A device that the driver has started."""

    def __init__(self, memory: GuestMemory, **guest: int) -> None:
        self.memory, self.end = memory, End()
        self.end.listening.add(5000)
        self.device = VirtioVsock(fresh_state(CID, "v.sock"), args=VsockArgs(memory, self.end))
        with Loop() as loop:
            self.device.connect(loop, threading.Lock())
        self.guest = Guest(self.device, memory, **guest)
        self.device.run()

    def ops(self) -> list[int]:
        return [packet.op for packet in self.guest.receive()]

    def dialled(self) -> Stream:
        """Return the host end of a connection that the guest made from port 1024 to 5000."""
        self.guest.send(REQUEST, 1024, 5000)
        assert self.ops() == [RESPONSE]
        return self.end.streams[-1]

    def called(self) -> tuple[Stream, int]:
        """Return the host end of a connection that the host made to port 7, and its port."""
        stream = self.end.arrive(7)
        (asked,) = self.guest.receive()
        assert (asked.op, asked.dst_port, asked.src_cid, asked.dst_cid) == (REQUEST, 7, 2, CID)
        self.guest.send(RESPONSE, 7, asked.src_port)
        return stream, asked.src_port


@pytest.fixture(scope="module")
def ram():
    made = GuestMemory([(0, RAM_LEN)])
    yield made
    made.close()


@pytest.fixture
def rig(ram):
    return Rig(ram)


# Connections


def test_config_space_is_the_guests_cid(rig):
    assert rig.device.config_space() == struct.pack("<Q", CID)
    assert rig.device.read_config(0, 4) == CID
    assert rig.device.read_config(4, 4) == 0


def test_guest_reaches_a_listener_of_the_host_and_bytes_go_both_ways(rig):
    stream = rig.dialled()
    rig.guest.send(RW, 1024, 5000, b"to the host")
    assert stream.got == b"to the host"
    stream.sent += b"to the guest"
    stream.turn()
    (packet,) = rig.guest.receive()
    assert (packet.op, packet.payload, packet.src_port, packet.dst_port) == (RW, b"to the guest", 5000, 1024)
    assert (packet.buf_alloc, packet.fwd_cnt) == (BUF_ALLOC, 11)
    assert rig.device.faults == 0


def test_guest_that_asks_for_a_port_without_a_listener_is_refused(rig):
    rig.guest.send(REQUEST, 1024, 5001)
    (packet,) = rig.guest.receive()
    assert (packet.op, packet.src_port, packet.dst_port, packet.len) == (RST, 5001, 1024, 0)
    assert rig.device.connections == 0


def test_host_reaches_a_listener_of_the_guest_and_is_told_its_port(rig):
    stream, port = rig.called()
    assert port == FIRST_PORT
    assert stream.got == b"OK %d\n" % port
    rig.guest.send(RW, 7, port, b"hello")
    assert stream.got == b"OK %d\nhello" % port


def test_host_that_asks_for_a_port_without_a_listener_is_hung_up_on(rig):
    stream = rig.end.arrive(8)
    (asked,) = rig.guest.receive()
    rig.guest.send(RST, 8, asked.src_port)
    assert stream.closed
    assert not stream.got
    assert rig.device.connections == 0
    assert rig.ops() == []


def test_host_that_asks_before_the_driver_is_there_is_hung_up_on(ram):
    end = End()
    device = VirtioVsock(fresh_state(CID, "v.sock"), args=VsockArgs(ram, end))
    with Loop() as loop:
        device.connect(loop, threading.Lock())
    assert end.arrive(7).closed


def test_ports_of_the_host_are_used_in_turn_and_not_beyond_their_range(rig):
    rig.device._next_port = (1 << 31) - 1
    ports = [rig.called()[1] for _ in range(3)]
    assert ports == [(1 << 31) - 1, 1 << 30, (1 << 30) + 1]
    rig.device._next_port = 1 << 30
    assert rig.called()[1] == (1 << 30) + 2


@pytest.mark.parametrize("by_host", [False, True])
def test_no_more_connections_than_the_bound(ram, by_host):
    rig = Rig(ram)
    for number in range(CONNECTIONS_MAX):
        if by_host:
            rig.end.arrive(number)
        else:
            rig.guest.send(REQUEST, number, 5000)
        assert rig.ops() == [REQUEST if by_host else RESPONSE]
    if by_host:
        assert rig.end.arrive(7).closed
    else:
        rig.guest.send(REQUEST, 99999, 5000)
        assert rig.ops() == [RST]
    assert rig.device.connections == CONNECTIONS_MAX
    rig.guest.send(RST, 0, FIRST_PORT if by_host else 5000)
    assert rig.device.connections == CONNECTIONS_MAX - 1


# Credit


def test_slow_host_stops_the_guest_by_credit_and_holds_no_more_than_its_buffer(rig):
    stream = rig.dialled()
    stream.room = 1000
    rig.guest.send(RW, 1024, 5000, bytes(BUF_ALLOC))
    assert len(stream.got) == 1000
    assert stream.watched == (True, True, True)
    assert rig.ops() == []
    rig.guest.send(CREDIT_REQUEST, 1024, 5000)
    (told,) = rig.guest.receive()
    assert (told.op, told.buf_alloc, told.fwd_cnt) == (CREDIT_UPDATE, BUF_ALLOC, 1000)
    stream.room = 1 << 20
    stream.turn()
    assert len(stream.got) == BUF_ALLOC
    assert stream.watched == (True, False, True)
    (told,) = rig.guest.receive()
    assert (told.op, told.fwd_cnt) == (CREDIT_UPDATE, BUF_ALLOC)


def test_guest_that_exceeds_its_credit_is_reset(rig):
    stream = rig.dialled()
    stream.room = 0
    rig.guest.send(RW, 1024, 5000, bytes(BUF_ALLOC))
    rig.guest.send(RW, 1024, 5000, b"x")
    assert rig.ops() == [RST]
    assert stream.closed
    assert rig.device.connections == 0
    assert rig.device.faults == 1


def test_slow_guest_is_not_sent_more_than_its_credit_and_its_host_is_not_looked_at(rig):
    rig.guest.send(REQUEST, 1024, 5000, buf_alloc=100)
    rig.guest.receive()
    stream = rig.end.streams[-1]
    stream.sent += bytes(range(200))
    stream.turn()
    packets = rig.guest.receive()
    assert [(packet.op, packet.payload) for packet in packets] == [(RW, bytes(range(100))), (CREDIT_REQUEST, b"")]
    assert stream.watched == (False, False, True)
    rig.guest.send(CREDIT_UPDATE, 1024, 5000, buf_alloc=100, fwd_cnt=30)
    (packet,) = [packet for packet in rig.guest.receive() if packet.op == RW]
    assert packet.payload == bytes(range(100, 130))
    rig.guest.send(CREDIT_UPDATE, 1024, 5000, buf_alloc=1000, fwd_cnt=130)
    (packet,) = rig.guest.receive()
    assert packet.payload == bytes(range(130, 200))
    assert stream.watched == (True, False, True)


def test_guest_without_buffers_stops_the_reading_of_its_host(ram):
    rig = Rig(ram, buffers=2)
    stream = rig.dialled()
    stream.sent += bytes(3 * 4096)
    stream.turn()
    packets = rig.guest.receive(offer=False)
    assert [packet.len for packet in packets] == [4096, 4096]
    assert stream.watched == (False, False, True)
    rig.guest.offer(2)
    assert [packet.len for packet in rig.guest.receive()] == [4096]
    assert stream.watched == (True, False, True)


def test_connections_take_turns(ram):
    rig = Rig(ram, buffers=3)
    for port in (1, 2, 3):
        rig.guest.send(REQUEST, port, 5000)
    rig.guest.receive(offer=False)
    for stream in rig.end.streams:
        stream.sent += bytes(100 * 4096)
        stream.turn()
    rig.guest.offer(3)
    assert sorted(packet.dst_port for packet in rig.guest.receive()) == [1, 2, 3]


SCRIPT = st.lists(
    st.tuples(
        st.sampled_from(["guest sends", "host sends", "host takes", "guest takes", "guest offers"]),
        st.integers(1, 30_000),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(SCRIPT, st.booleans(), st.sampled_from([37, 500, 4096]), st.sampled_from([3000, 200_000]))
def test_streams_are_byte_exact_however_they_are_cut(ram, script, by_host, buffer_len, alloc):
    """A guest that keeps the rules, a host that takes bytes when it likes."""
    rig = Rig(ram, buffers=4, buffer_len=buffer_len)
    stream, port, mine = (*rig.called(), 7) if by_host else (rig.dialled(), 5000, 1024)
    rig.guest.receive()
    stream.got.clear()
    stream.room = 0
    serial = bytes(range(253)) * 8000
    sent = told_fwd = taken = given = 0
    received = bytearray()

    def send(op: int, payload: bytes = b"") -> None:
        rig.guest.send(op, mine, port, payload, buf_alloc=alloc, fwd_cnt=taken)

    def hear() -> None:
        nonlocal told_fwd
        for packet in rig.guest.receive(offer=False):
            told_fwd = packet.fwd_cnt
            received.extend(packet.payload)
            assert packet.op in {RW, CREDIT_UPDATE, CREDIT_REQUEST}
            assert len(received) - taken <= max(alloc, 200_000)

    send(CREDIT_UPDATE)
    for step, amount in script:
        if step == "guest sends":
            length = min(amount, BUF_ALLOC - (sent - told_fwd))
            send(RW, serial[sent : sent + length])
            sent += length
        elif step == "host sends":
            stream.sent += serial[given : given + amount]
            given += amount
            stream.turn()
        elif step == "host takes":
            stream.room += amount
            stream.turn()
        elif step == "guest takes":
            hear()
            taken = min(len(received), taken + amount)
            send(CREDIT_UPDATE)
        else:
            hear()
            rig.guest.offer(len(rig.guest.rx.free) // 2)
        rig.guest.spin()
    stream.room = 1 << 30
    stream.turn()
    for _ in range(2_000_000):
        before = len(received)
        hear()
        rig.guest.offer(len(rig.guest.rx.free) // 2)
        taken = len(received)
        send(CREDIT_UPDATE)
        if len(received) == before == given:
            break
    assert stream.got == serial[:sent]
    assert received == serial[:given]
    assert rig.device.faults == 0


# Ends


def test_host_that_ends_its_side_still_receives(rig):
    stream = rig.dialled()
    stream.sent += b"bye"
    stream.over = True
    stream.turn()
    packets = rig.guest.receive()
    assert [(packet.op, packet.flags, packet.payload) for packet in packets] == [
        (RW, 0, b"bye"),
        (SHUTDOWN, F_SEND, b""),
    ]
    rig.guest.send(RW, 1024, 5000, b"still")
    assert stream.got == b"still"
    assert stream.watched == (False, False, True)
    rig.guest.send(SHUTDOWN, 1024, 5000, flags=F_SEND | F_RECEIVE)
    assert rig.ops() == [RST]
    assert stream.closed


def test_guest_that_ends_its_side_still_receives(rig):
    stream = rig.dialled()
    stream.room = 2
    rig.guest.send(RW, 1024, 5000, b"abc")
    rig.guest.send(SHUTDOWN, 1024, 5000, flags=F_SEND)
    assert stream.ended == []
    stream.room = 10
    stream.turn()
    assert (bytes(stream.got), stream.ended) == (b"abc", ["write"])
    stream.sent += b"answer"
    stream.turn()
    assert [packet.payload for packet in rig.guest.receive()] == [b"answer"]


def test_guest_that_receives_no_more_still_sends(rig):
    stream = rig.dialled()
    rig.guest.send(SHUTDOWN, 1024, 5000, flags=F_RECEIVE)
    assert stream.ended == ["read"]
    stream.sent += b"nobody wants this"
    stream.turn()
    assert rig.ops() == []
    rig.guest.send(RW, 1024, 5000, b"abc")
    assert stream.got == b"abc"


def test_guest_that_closes_is_reset_when_the_host_has_everything(rig):
    stream = rig.dialled()
    stream.room = 0
    rig.guest.send(RW, 1024, 5000, b"abc")
    rig.guest.send(SHUTDOWN, 1024, 5000, flags=F_SEND | F_RECEIVE)
    assert rig.ops() == []
    stream.room = 10
    stream.turn()
    assert rig.ops() == [RST]
    assert (bytes(stream.got), stream.closed, rig.device.connections) == (b"abc", True, 0)


def test_what_a_guest_sent_before_it_reset_a_closed_connection_still_arrives_and_its_port_is_free(rig):
    stream = rig.dialled()
    stream.room = 0
    rig.guest.send(RW, 1024, 5000, b"abc")
    rig.guest.send(SHUTDOWN, 1024, 5000, flags=F_SEND | F_RECEIVE)
    rig.guest.send(RST, 1024, 5000)
    assert not stream.closed
    assert rig.device.connections == 1
    second = rig.dialled()
    assert rig.device.connections == 2
    stream.room = 10
    stream.turn()
    assert (bytes(stream.got), stream.closed, rig.device.connections) == (b"abc", True, 1)
    assert not second.closed


def test_host_that_hangs_up_has_its_last_words_delivered(rig):
    stream = rig.dialled()
    rig.guest.send(CREDIT_UPDATE, 1024, 5000, buf_alloc=2)
    stream.sent += b"abc"
    stream.over = True
    stream.turn(gone=True)
    packets = rig.guest.receive()
    assert b"".join(packet.payload for packet in packets) == b"ab"
    assert F_RECEIVE in [packet.flags for packet in packets if packet.op == SHUTDOWN]
    assert stream.watched == (False, False, False), "a hang-up is reported for as long as it is watched"
    rig.guest.send(CREDIT_UPDATE, 1024, 5000, buf_alloc=2, fwd_cnt=2)
    packets = rig.guest.receive()
    assert b"".join(packet.payload for packet in packets) == b"c"
    assert packets[-1].flags == F_SEND | F_RECEIVE
    assert stream.closed
    rig.guest.send(RST, 1024, 5000)
    assert rig.device.connections == 0


def test_guest_that_writes_to_a_host_that_reads_no_more_is_told(rig):
    stream = rig.dialled()
    stream.fails["write"] = errno.EPIPE
    rig.guest.send(RW, 1024, 5000, b"abc")
    (told,) = rig.guest.receive()
    assert (told.op, told.flags) == (SHUTDOWN, F_RECEIVE)
    assert not stream.closed, "what it sends is still wanted"


def test_host_that_hangs_up_before_the_guest_has_accepted_is_gone(rig):
    stream = rig.end.arrive(7)
    (asked,) = rig.guest.receive()
    stream.turn(gone=True)
    assert rig.ops() == [RST]
    assert stream.closed
    rig.guest.send(RESPONSE, 7, asked.src_port)
    assert rig.ops() == [RST], "by then it belongs to no connection"


@pytest.mark.parametrize("call", ["read", "write", "watch"])
@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EIO])
def test_socket_that_fails_ends_its_connection_only(rig, call, number):
    broken, other = rig.dialled(), None
    rig.guest.send(REQUEST, 1025, 5000)
    rig.guest.receive()
    other = rig.end.streams[-1]
    broken.sent += b"x"
    broken.fails[call] = number
    broken.turn()
    if not broken.closed:
        rig.guest.send(RW, 1024, 5000, b"abc")
    rig.guest.spin()
    assert [(packet.op, packet.dst_port) for packet in rig.guest.receive()][-1] == (RST, 1024)
    assert broken.closed
    rig.guest.send(RW, 1025, 5000, b"abc")
    assert other.got == b"abc"
    assert rig.device.connections == 1


def test_socket_that_cannot_be_ended_is_no_failure(rig):
    stream = rig.dialled()
    stream.fails |= {"end_write": errno.ENOTCONN, "end_read": errno.ENOTCONN}
    rig.guest.send(SHUTDOWN, 1024, 5000, flags=F_SEND)
    rig.guest.send(SHUTDOWN, 1024, 5000, flags=F_RECEIVE)
    assert rig.ops() == [RST]
    assert stream.closed


# Packets that have no place


@pytest.mark.parametrize("op", [0, RESPONSE, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST, 8, 0xFFFF])
def test_packet_that_belongs_to_no_connection_is_answered_by_rst(rig, op):
    rig.guest.send(op, 1024, 5000)
    (packet,) = rig.guest.receive()
    assert (packet.op, packet.src_port, packet.dst_port, packet.src_cid, packet.dst_cid) == (RST, 5000, 1024, 2, CID)
    assert not rig.end.streams


def test_rst_is_never_answered(rig):
    rig.guest.send(RST, 1024, 5000)
    rig.guest.send(RST, 1024, 5000, type=9)
    rig.guest.send(RST, 1024, 5000, dst_cid=9)
    assert rig.ops() == []


@pytest.mark.parametrize("kind", [0, 2, 0xFFFF])
def test_unknown_type_is_answered_by_rst_of_that_type_and_ends_no_connection(rig, kind):
    stream = rig.dialled()
    rig.guest.send(REQUEST, 1024, 5000, type=kind)
    (packet,) = rig.guest.receive()
    assert (packet.op, packet.type) == (RST, kind)
    assert not stream.closed


@pytest.mark.parametrize("cid", [0, 1, 3, CID, (1 << 64) - 1])
def test_packet_for_another_cid_is_answered_by_rst_from_there(rig, cid):
    rig.guest.send(REQUEST, 1024, 5000, dst_cid=cid)
    (packet,) = rig.guest.receive()
    assert (packet.op, packet.src_cid, packet.dst_cid) == (RST, cid, CID)


def test_packet_from_another_cid_is_dropped(rig):
    rig.guest.send(REQUEST, 1024, 5000, src_cid=CID + 1)
    assert rig.ops() == []
    assert rig.device.faults == 1


def test_second_request_for_a_connection_ends_it(rig):
    stream = rig.dialled()
    rig.guest.send(REQUEST, 1024, 5000)
    assert rig.ops() == [RST]
    assert stream.closed


@pytest.mark.parametrize("length", [4, BUF_ALLOC + 1, 1 << 31, (1 << 32) - 1])
def test_length_that_is_a_lie_ends_the_connection(rig, length):
    stream = rig.dialled()
    rig.guest.send(RW, 1024, 5000, b"abc", len=length)
    assert rig.ops() == [RST]
    assert stream.closed
    assert not stream.got


def test_payload_shorter_than_its_buffer_is_cut_to_its_length(rig):
    stream = rig.dialled()
    rig.guest.send(RW, 1024, 5000, b"abc", len=2)
    assert stream.got == b"ab"


@pytest.mark.parametrize("cut", [[0, 44], [1, 43], [10, 10, 24], [44]])
def test_packet_may_lie_in_any_pieces(rig, cut):
    stream = rig.dialled()
    packet = HEADER.pack(CID, 2, 1024, 5000, 3, 1, RW, 0, 1000, 0) + b"abc"
    pieces, at = [], 0
    for length in cut:
        pieces.append(packet[at : at + length])
        at += length
    rig.guest.tx.add(*[piece for piece in pieces if piece], packet[at:])
    rig.guest.tx.kick()
    assert stream.got == b"abc"


def test_packet_without_a_whole_header_goes_back_and_a_writable_one_too(rig):
    rig.guest.tx.add(bytes(43))
    rig.guest.tx.add(100)
    rig.guest.tx.kick()
    assert len(rig.guest.tx.used()) == 2
    assert rig.device.faults == 2
    assert rig.ops() == []


def test_buffer_on_rx_without_room_goes_back_unused(ram):
    rig = Rig(ram, buffers=0)
    heads = [rig.guest.rx.add(44), rig.guest.rx.add(b"readable"), rig.guest.rx.add(45)]
    rig.guest.send(REQUEST, 1024, 5000)
    assert rig.guest.rx.used() == [(heads[0], 0), (heads[1], 0), (heads[2], 44)]
    assert rig.device.faults == 2


def test_guest_that_takes_no_answers_is_not_served_until_it_does(ram):
    rig = Rig(ram, buffers=0)
    for number in range(RESETS_MAX):
        rig.guest.send(RW, number, 9)
    rig.guest.post(RW, 1024, 9)
    rig.guest.tx.kick()
    rig.guest.spin()
    assert rig.guest.tx.used() == []
    rig.guest.offer(1)
    rig.guest.spin()
    assert len(rig.guest.tx.used()) == 1
    assert [packet.dst_port for packet in rig.guest.receive()] == [0]


# Rings


def test_many_packets_are_one_interrupt_and_more_than_a_turn_are_served_by_turns(ram):
    rig = Rig(ram, buffers=120)
    rig.guest.seen.queues.clear()
    for port in range(20):
        rig.guest.post(REQUEST, port, 5000)
    rig.guest.tx.kick()
    assert rig.guest.seen.queues == [TX, RX]
    assert not rig.guest.seen.again
    for port in range(100, 200):
        rig.guest.post(REQUEST, port, 5000)
    rig.guest.tx.kick()
    assert 0 < rig.device.connections < 120
    rig.guest.spin()
    assert rig.device.connections == 120
    assert len(rig.ops()) == 120


def test_broken_ring_stops_the_device_and_drops_every_connection(rig):
    stream = rig.dialled()
    rig.guest.tx.put16(rig.guest.tx.avail + 2, 999)
    rig.guest.tx.kick()
    assert rig.device.state.broken
    assert rig.guest.seen.resets == 1
    assert stream.closed
    assert rig.device.connections == 0
    assert rig.end.arrive(7).closed
    rig.device.run()


def test_ring_that_breaks_while_a_socket_is_served_stops_the_device(rig):
    stream = rig.dialled()
    stream.sent += b"x"
    rig.guest.rx.put16(rig.guest.rx.avail + 2, 999)
    stream.turn()
    assert rig.device.state.broken
    assert stream.closed


def test_reset_drops_every_connection_and_the_driver_may_begin_again(rig):
    stream, waiting = rig.dialled(), rig.end.arrive(9)
    rig.device.reset()
    assert stream.closed
    assert waiting.closed
    assert rig.device.connections == 0
    again = Guest(rig.device, rig.memory)
    again.send(REQUEST, 1024, 5000)
    assert [packet.op for packet in again.receive()] == [RESPONSE]


# Snapshots


def test_save_leaves_connections_alone_and_keeps_nothing_of_them(rig):
    before = encode(rig.device.save())
    stream = rig.dialled()
    stream.sent += bytes(100)
    rig.device.pause()
    rig.device.prepare_save()
    saved = rig.device.save()
    assert (saved.cid, saved.host.uds, saved.reset_pending) == (CID, "v.sock", False)
    assert len(encode(saved)) == len(before)
    rig.device.run()
    stream.turn()
    assert [packet.len for packet in rig.guest.receive()] == [100]
    rig.guest.send(RW, 1024, 5000, b"goes on")
    assert stream.got == b"goes on"


def restored(state: VirtioVsockState, rig: Rig) -> VirtioVsock:
    rig.end = End()
    rig.device = VirtioVsock.restore(checked(state), VsockArgs(rig.memory, rig.end))
    rig.guest.device = rig.device
    for driver, index in ((rig.guest.rx, RX), (rig.guest.tx, TX), (rig.guest.event, EVENT)):
        driver.kick = partial(rig.device.kick, index)
    rig.device.bind(rig.guest.seen, rig.guest.seen.again.append)
    return rig.device


def test_restore_tells_the_driver_once_it_runs_that_connections_are_gone(rig):
    rig.dialled()
    state = rig.device.save()
    device = restored(state, rig)
    assert encode(device.save()) == encode(state)
    rig.guest.seen.queues.clear()
    device.activate()
    assert device.save().reset_pending
    assert rig.guest.events() == []
    assert rig.guest.seen.queues == []
    device.run()
    assert rig.guest.events() == [struct.pack("<I", 0)]
    assert rig.guest.seen.queues == [EVENT]
    assert not device.state.reset_pending
    device.run()
    assert rig.guest.events() == []
    rig.guest.send(RW, 1024, 5000, b"stale")
    assert rig.ops() == [RST]


def test_event_waits_for_a_buffer_and_the_wait_is_state(ram):
    rig = Rig(ram, events=0)
    device = restored(rig.device.save(), rig)
    device.activate()
    device.run()
    state = device.save()
    assert state.reset_pending
    device = restored(state, rig)
    device.activate()
    device.run()
    heads = [rig.guest.event.add(3), rig.guest.event.add(4), rig.guest.event.add(4)]
    rig.guest.event.kick()
    assert rig.guest.event.used() == [(heads[0], 0), (heads[1], 4)]
    assert not device.state.reset_pending


def test_event_is_heard_of_with_event_idx_when_its_buffer_comes_late(ram):
    end = End()
    device = VirtioVsock(fresh_state(CID, "v.sock"), args=VsockArgs(ram, end))
    _, (_, _, event) = drive(device, ram, area_len=AREA_LEN, event_idx=True)
    for _ in range(3):
        event.add(4)
    event.must_kick()
    device.state.queues[EVENT].next_avail = device.state.queues[EVENT].next_used = 3  # used for earlier events
    device = VirtioVsock.restore(device.save(), VsockArgs(ram, end))
    device.activate()
    device.run()
    event.add(4)
    assert event.must_kick()


def test_device_that_was_not_started_has_nothing_to_tell(ram):
    end = End()
    fresh = VirtioVsock(fresh_state(CID, "v.sock"), args=VsockArgs(ram, end))
    device = VirtioVsock.restore(fresh.save(), VsockArgs(ram, end))
    device.run()
    guest = Guest(device, ram)
    device.run()
    assert not device.state.reset_pending
    assert guest.events() == []


def test_reset_takes_the_news_back(ram):
    rig = Rig(ram, events=0)
    device = restored(rig.device.save(), rig)
    device.activate()
    device.reset()
    assert not device.state.reset_pending


@pytest.mark.parametrize("queues", [1, 2, 4])
def test_state_with_other_queues_is_refused_by_name(ram, queues):
    state = fresh_state(CID, "v.sock")
    state.queues = (state.queues * 2)[:queues]
    with pytest.raises(ImageError, match=f"virtio-vsock.queues is {queues} queues, must be 3"):
        VirtioVsock.restore(state, VsockArgs(ram, End()))


@pytest.mark.parametrize("cid", [-1, 0, 1, 2, 0xFFFF_FFFF, 1 << 32])
def test_cid_that_cannot_be_a_guests_is_refused(cid):
    with pytest.raises(ConfigError, match=f"vsock cid is {cid}, must be 3 to 0xfffffffe"):
        fresh_state(cid, "v.sock")


@pytest.mark.parametrize("uds", ["", "x" * 108, "a\0b", "a\udcff"])
def test_path_that_cannot_be_stored_is_refused(uds):
    with pytest.raises(ConfigError, match="vsock uds is"):
        fresh_state(CID, uds)


def test_closing_drops_connections_and_gives_the_host_end_back(rig):
    stream = rig.dialled()
    rig.device.close()
    rig.device.close()
    assert stream.closed
    assert rig.end.calls[-2:] == ["detach", "close"]


def test_pause_and_run_stop_and_start_the_host_end(rig):
    rig.device.pause()
    assert rig.end.calls[-1] == "rest"
    rig.device.run()
    assert rig.end.calls[-1] == "go_on"


# Nonsense


JUNK = st.one_of(
    st.tuples(
        st.sampled_from([CID, 0, 2]),
        st.sampled_from([2, 3]),
        st.sampled_from([1024, 7]),
        st.sampled_from([5000, FIRST_PORT, 9]),
        st.sampled_from([0, 3, 1 << 20, (1 << 32) - 1]),
        st.sampled_from([1, 2]),
        st.integers(0, 9),
        st.integers(0, 4),
        st.sampled_from([0, 10, 1 << 20, (1 << 32) - 1]),
        st.sampled_from([0, 3, 1 << 31]),
    ).map(lambda fields: HEADER.pack(*fields)),
    st.binary(min_size=1, max_size=50),
)
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("packet"), st.tuples(JUNK, st.binary(max_size=20))),
        st.tuples(st.just("offer"), st.integers(1, 100)),
        st.tuples(st.just("host"), st.sampled_from(["arrives", "sends", "ends", "hangs up", "stops", "goes on"])),
        st.tuples(st.just("fails"), st.sampled_from(["read", "write", "watch", "end_write", "end_read"])),
        st.tuples(st.just("kick"), st.integers(0, 2)),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(MOVES)
def test_nothing_that_a_guest_or_a_host_does_raises_or_leaves_a_socket_behind(ram, moves):
    rig = Rig(ram, buffers=2)
    for move, what in moves:
        stream = rig.end.streams[-1] if rig.end.streams else Stream()
        if move == "packet":
            rig.guest.tx.add(*[part for part in what if part])
            rig.guest.tx.kick()
        elif move == "offer":
            rig.guest.rx.used()
            if rig.guest.rx.free:
                rig.guest.rx.add(what)
                rig.guest.rx.kick()
        elif move == "kick":
            rig.device.kick(what)
        elif move == "fails":
            stream.fails[what] = errno.EPIPE
        elif what == "arrives":
            rig.end.arrive(7)
        elif what == "sends":
            stream.sent += b"some bytes"
        elif what == "ends":
            stream.over = True
        elif what == "hangs up":
            stream.over = True
            stream.turn(gone=True)
        else:
            stream.room = 0 if what == "stops" else 1 << 20
        rig.guest.spin()
        rig.guest.tx.used()
        for each in rig.end.streams:
            each.turn()
        rig.guest.spin()
        assert not rig.device.state.broken
        open_ones = sum(not each.closed for each in rig.end.streams)
        assert open_ones <= rig.device.connections
    rig.device.close()
    assert all(each.closed for each in rig.end.streams)
