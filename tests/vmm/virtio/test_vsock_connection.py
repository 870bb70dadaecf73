"""One vsock connection: bytes and credit in both directions, its ends, and every packet that is not allowed."""

import struct
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit.units import KIB
from snapkit.vmm.virtio.vsock_connection import BUF_ALLOC, CLOSED, LINGERING, OPEN, Connection

# Section 5.10.6, declared again so that a slip in the monitor's own table cannot hide.
REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
F_RECEIVE, F_SEND = 1, 2
CID, GUEST_PORT, HOST_PORT = 77, 1024, 5000
GUEST_ALLOC = 256 * KIB
WORD = 1 << 32


class Sent:
    """A header, taken apart."""

    def __init__(self, packed: bytes) -> None:
        assert len(packed) == 44
        (
            self.src_cid,
            self.dst_cid,
            self.src_port,
            self.dst_port,
            self.len,
            self.type,
            self.op,
            self.flags,
            self.buf_alloc,
            self.fwd_cnt,
        ) = struct.unpack("<QQIIIHHIII", packed)


class Guest:
    """The other end: counts as a guest has to, and takes what it is sent."""

    def __init__(self, connection: Connection, *, alloc: int = GUEST_ALLOC) -> None:
        self.connection, self.alloc = connection, alloc
        self.sent = self.taken = self.received = 0
        self.told_alloc = self.told_fwd = 0
        self.got = bytearray()
        self.ops: list[int] = []

    @property
    def phase(self) -> str:
        return self.connection.phase

    @property
    def credit(self) -> int:
        return self.told_alloc - (self.sent - self.told_fwd) % WORD

    def hear(self) -> list[Sent]:
        """Take every packet that is owed."""
        heard = []
        while op := self.connection.due():
            heard.append(self.note(self.connection.header(CID, op)))
        return heard

    def note(self, packed: bytes) -> Sent:
        sent = Sent(packed)
        assert (sent.src_cid, sent.dst_cid, sent.type) == (2, CID, 1)
        assert (sent.src_port, sent.dst_port) == (self.connection.host_port, self.connection.guest_port)
        self.told_alloc, self.told_fwd = sent.buf_alloc, sent.fwd_cnt
        self.ops.append(sent.op)
        return sent

    def say(self, op: int, payload: bytes = b"", flags: int = 0) -> bool:
        self.sent += len(payload)
        return self.connection.receive(op, flags, self.alloc, self.taken % WORD, payload)

    def give(self, payload: bytes) -> None:
        """Have the host send *payload*, which has to fit the guest's credit."""
        assert len(payload) <= self.connection.credit
        sent = self.note(self.connection.header(CID, RW, len(payload)))
        assert sent.len == len(payload)
        self.received += len(payload)
        self.got += payload
        assert self.received - self.taken <= self.alloc


def holds(guest: Guest) -> set[str]:
    """What is true of the connection now."""
    names = ("takes", "closed", "over", "guest_is_through", "guest_is_deaf")
    return {name for name in names if getattr(guest.connection, name)}


def opened(*, alloc: int = GUEST_ALLOC) -> Guest:
    """A connection that the guest asked for and was given."""
    guest = Guest(Connection.asked_by_guest(HOST_PORT, GUEST_PORT, alloc, 0), alloc=alloc)
    assert [sent.op for sent in guest.hear()] == [RESPONSE]
    return guest


def greeted() -> Guest:
    """A connection that the host asked for and was given; its greeting is taken."""
    guest = Guest(Connection.asked_by_host(HOST_PORT, GUEST_PORT))
    assert [sent.op for sent in guest.hear()] == [REQUEST]
    assert guest.say(RESPONSE)
    guest.connection.forwarded(len(guest.connection.outbound))
    return guest


def test_one_asked_by_the_guest_answers_and_is_open():
    guest = Guest(Connection.asked_by_guest(HOST_PORT, GUEST_PORT, 1000, 0))
    assert guest.phase == OPEN
    (answer,) = guest.hear()
    assert (answer.op, answer.buf_alloc, answer.fwd_cnt, answer.len, answer.flags) == (RESPONSE, BUF_ALLOC, 0, 0, 0)
    assert guest.connection.credit == 1000


def test_one_asked_by_the_host_is_greeted_once_the_guest_accepts():
    guest = Guest(Connection.asked_by_host(HOST_PORT, GUEST_PORT))
    assert holds(guest) == set()
    assert [sent.op for sent in guest.hear()] == [REQUEST]
    assert guest.connection.outbound == b""
    assert guest.say(RESPONSE)
    assert guest.connection.outbound == b"OK 5000\n"
    assert holds(guest) == {"takes"}
    assert guest.connection.credit == GUEST_ALLOC


def test_the_greeting_is_not_counted_as_bytes_of_the_guest():
    guest = Guest(Connection.asked_by_host(HOST_PORT, GUEST_PORT))
    guest.hear()
    guest.say(RESPONSE)
    guest.say(RW, b"abc")
    assert guest.connection.outbound == b"OK 5000\nabc"
    guest.connection.forwarded(3)
    guest.say(CREDIT_REQUEST)
    assert guest.hear()[-1].fwd_cnt == 0
    guest.connection.forwarded(7)
    guest.say(CREDIT_REQUEST)
    assert guest.hear()[-1].fwd_cnt == 2


def test_a_guest_that_refuses_leaves_nothing():
    guest = Guest(Connection.asked_by_host(HOST_PORT, GUEST_PORT))
    guest.hear()
    assert guest.say(RST)
    assert guest.connection.over
    assert guest.connection.closed


def test_a_host_that_goes_before_the_guest_knows_leaves_nothing_and_one_that_goes_later_an_rst():
    guest = Guest(Connection.asked_by_host(HOST_PORT, GUEST_PORT))
    guest.connection.host_gone()
    assert guest.connection.over
    guest = Guest(Connection.asked_by_host(HOST_PORT, GUEST_PORT))
    guest.hear()
    guest.connection.host_gone()
    assert guest.say(RESPONSE), "it could not know"
    assert [sent.op for sent in guest.hear()] == [RST]
    assert guest.connection.over


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("guest sends"), st.integers(0, 2 * BUF_ALLOC)),
            st.tuples(st.just("host takes"), st.integers(0, 2 * BUF_ALLOC)),
            st.tuples(st.just("host sends"), st.integers(0, 2 * BUF_ALLOC)),
            st.tuples(st.just("guest takes"), st.integers(0, 2 * BUF_ALLOC)),
            st.tuples(st.just("guest hears"), st.just(0)),
        ),
        max_size=60,
    ),
    st.sampled_from([1, 4096, 100_000]),
    st.sampled_from([0, WORD - 1, WORD - 50_000]),
    st.booleans(),
)
def test_bytes_arrive_in_order_and_credit_holds_whatever_comes_when(steps, alloc, begin, by_host):
    """Counters begin at *begin*, as after that many bytes."""
    guest = greeted() if by_host else opened()
    guest.alloc = alloc
    guest.say(CREDIT_UPDATE)
    connection = guest.connection
    connection._received = connection._forwarded = connection._forwarded_told = begin
    connection._sent = connection._guest_forwarded = begin
    guest.sent = guest.told_fwd = guest.taken = guest.received = begin
    serial = bytes(range(251)) * 3000
    to_host, to_guest, taken = 0, 0, bytearray()

    def host_takes(most: int) -> None:
        length = min(most, len(connection.outbound))
        taken.extend(connection.outbound[:length])
        connection.forwarded(length)

    def guest_sends(most: int) -> int:
        length = min(most, guest.credit)
        assert guest.say(RW, serial[to_host % 251 : to_host % 251 + length])
        assert len(connection.outbound) <= BUF_ALLOC
        return length

    for step, most in steps:
        if step == "guest sends":
            to_host += guest_sends(most)
        elif step == "host takes":
            host_takes(most)
        elif step == "host sends":
            length = min(most, connection.credit)
            if length:
                guest.give(serial[to_guest % 251 : to_guest % 251 + length])
                to_guest += length
            elif most:
                connection.starve()
        elif step == "guest takes":
            guest.taken += min(most, guest.received - guest.taken)
            assert guest.say(CREDIT_UPDATE)
        else:
            guest.hear()
    host_takes(2 * BUF_ALLOC)
    guest.hear()
    guest.taken = guest.received
    assert guest.say(CREDIT_UPDATE)
    assert taken == serial[:to_host]
    assert guest.got == serial[:to_guest]
    assert guest.credit > 0, "the guest would wait for ever"
    assert connection.credit == alloc, "the host would wait for ever"
    assert connection.phase is OPEN


def test_a_guest_that_sends_beyond_what_it_was_told_is_reset_even_if_the_host_is_fast():
    guest = opened()
    assert guest.say(RW, bytes(BUF_ALLOC))
    guest.connection.forwarded(BUF_ALLOC - 1)
    assert not guest.say(RW, b"x"), "no packet told it of the room"
    assert [sent.op for sent in guest.hear()] == [RST]
    assert guest.connection.over
    assert not guest.connection.outbound


def test_no_credit_was_told_before_the_response():
    guest = Guest(Connection.asked_by_guest(HOST_PORT, GUEST_PORT, 1000, 0))
    assert not guest.say(RW, b"x")
    assert [sent.op for sent in guest.hear()] == [RST]


def test_the_guest_is_told_of_room_when_there_is_half_the_buffer_and_when_it_asks():
    guest = opened()
    guest.say(RW, bytes(BUF_ALLOC))
    guest.connection.forwarded(BUF_ALLOC // 2 - 1)
    assert guest.hear() == []
    guest.connection.forwarded(1)
    assert [(sent.op, sent.fwd_cnt) for sent in guest.hear()] == [(CREDIT_UPDATE, BUF_ALLOC // 2)]
    assert guest.hear() == []
    guest.connection.forwarded(1)
    guest.say(CREDIT_REQUEST)
    guest.say(CREDIT_REQUEST)
    assert [(sent.op, sent.fwd_cnt) for sent in guest.hear()] == [(CREDIT_UPDATE, BUF_ALLOC // 2 + 1)]


def test_any_packet_tells_the_credit_and_spares_an_update():
    guest = opened()
    guest.say(RW, bytes(BUF_ALLOC))
    guest.connection.forwarded(BUF_ALLOC)
    guest.say(CREDIT_REQUEST)
    guest.give(b"abc")
    assert guest.credit == BUF_ALLOC
    assert guest.hear() == []


def test_a_starving_host_asks_once_until_there_is_credit():
    guest = opened(alloc=10)
    guest.give(bytes(10))
    assert guest.connection.credit == 0
    guest.connection.starve()
    assert [sent.op for sent in guest.hear()] == [CREDIT_REQUEST]
    for _ in range(3):
        guest.connection.starve()
        assert guest.hear() == []
        guest.say(CREDIT_UPDATE)  # still without room
    guest.taken = 4
    guest.say(CREDIT_UPDATE)
    assert guest.connection.credit == 4
    guest.give(bytes(4))
    guest.connection.starve()
    assert [sent.op for sent in guest.hear()] == [CREDIT_REQUEST]


def test_a_guest_may_shrink_its_buffer_below_what_is_under_way():
    guest = opened(alloc=100)
    guest.give(bytes(100))
    guest.alloc = 50
    assert guest.say(CREDIT_UPDATE)
    assert guest.connection.credit == 0
    guest.taken = 60
    guest.say(CREDIT_UPDATE)
    assert guest.connection.credit == 10


def test_a_guest_that_took_more_than_it_was_sent_is_reset_and_an_older_count_is_ignored():
    guest = opened(alloc=100)
    guest.give(bytes(50))
    guest.taken = 50
    assert guest.say(CREDIT_UPDATE)
    guest.taken = 20
    assert guest.say(RW, b"overtaken by the packet before")
    assert guest.connection.credit == 100
    guest.taken = 51
    assert not guest.say(CREDIT_UPDATE)
    assert [sent.op for sent in guest.hear()] == [RST]


def test_a_guest_that_claims_the_largest_buffer_is_given_what_the_counters_can_tell():
    guest = opened(alloc=WORD - 1)
    assert 0 < guest.connection.credit < 1 << 31


def test_the_host_ends_its_direction_and_the_other_goes_on():
    guest = opened()
    guest.connection.host_ended()
    assert [(sent.op, sent.flags) for sent in guest.hear()] == [(SHUTDOWN, F_SEND)]
    assert guest.hear() == []
    assert not guest.connection.takes
    assert guest.say(RW, b"still")
    assert guest.connection.outbound == b"still"
    guest.connection.host_gone()
    assert [(sent.op, sent.flags) for sent in guest.hear()] == [(SHUTDOWN, F_SEND | F_RECEIVE)]
    assert guest.connection.closed
    assert guest.say(RW, b"it had not heard yet"), "that is no fault"
    assert not guest.connection.outbound
    assert guest.say(RST)
    assert guest.connection.over


def test_the_guest_ends_its_direction_and_the_other_goes_on():
    guest = opened()
    guest.say(RW, b"last")
    assert guest.say(SHUTDOWN, flags=F_SEND)
    assert holds(guest) == {"takes"}
    guest.connection.forwarded(4)
    assert holds(guest) == {"takes", "guest_is_through"}
    guest.give(b"answer")
    assert not guest.say(RW, b"more after all")
    assert [sent.op for sent in guest.hear()] == [RST]


def test_a_guest_that_closed_is_reset_once_the_host_has_all_it_sent():
    guest = opened()
    guest.say(RW, b"last words")
    guest.say(SHUTDOWN, flags=F_SEND)
    guest.say(SHUTDOWN, flags=F_RECEIVE)
    assert holds(guest) == {"guest_is_deaf"}
    assert guest.hear() == []
    guest.connection.forwarded(9)
    assert "closed" not in holds(guest)
    guest.connection.forwarded(1)
    assert "closed" in holds(guest)
    assert [sent.op for sent in guest.hear()] == [RST]
    assert "over" in holds(guest)


def test_what_a_guest_sent_before_it_closed_outlives_its_reset():
    guest = opened()
    guest.say(RW, b"last words")
    guest.say(SHUTDOWN, flags=F_SEND | F_RECEIVE)
    guest.say(RST)
    assert guest.phase == LINGERING
    assert guest.hear() == []
    guest.connection.forwarded(10)
    assert guest.connection.over


def test_a_reset_without_a_shutdown_drops_what_was_sent():
    guest = opened()
    guest.say(RW, b"never mind")
    guest.say(RST)
    assert guest.connection.over


def test_a_lingering_one_whose_host_goes_is_over():
    guest = opened()
    guest.say(RW, b"x")
    guest.say(SHUTDOWN, flags=F_SEND)
    guest.say(RST)
    guest.connection.host_gone()
    assert guest.connection.over


ALLOWED = {("connecting", RESPONSE), ("connecting", RST)} | set(
    product(["open"], [RW, SHUTDOWN, CREDIT_UPDATE, CREDIT_REQUEST, RST])
)


@pytest.mark.parametrize(("phase", "op"), [*product(["connecting", "open"], [*range(9), 0xFFFF])])
def test_every_packet_that_has_no_place_ends_the_connection_and_the_guest_is_told(phase, op):
    guest = opened()
    if phase == "connecting":
        guest = Guest(Connection.asked_by_host(HOST_PORT, GUEST_PORT))
        guest.hear()
    assert guest.say(op) == ((phase, op) in ALLOWED)
    if (phase, op) not in ALLOWED:
        assert guest.phase == CLOSED
        assert [sent.op for sent in guest.hear()] == [RST]


def test_a_response_to_what_was_never_asked_is_no_way_in():
    connection = Connection.asked_by_host(HOST_PORT, GUEST_PORT)
    assert not connection.receive(RESPONSE, 0, 1000, 0, b"")
    assert connection.over


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 9),
            st.integers(0, WORD - 1),
            st.integers(0, WORD - 1),
            st.one_of(st.just(0), st.integers(0, WORD - 1)),
            st.binary(max_size=10),
        ),
        max_size=30,
    ),
    st.booleans(),
)
def test_no_packet_raises_and_no_more_is_held_than_the_buffer(packets, by_host):
    guest = greeted() if by_host else opened()
    for op, flags, alloc, fwd_cnt, payload in packets:
        guest.connection.receive(op, flags, alloc, fwd_cnt, payload)
        guest.hear()
        assert len(guest.connection.outbound) <= BUF_ALLOC
        assert 0 <= guest.connection.credit <= 1 << 30
    assert guest.connection.over or not guest.connection.due()
