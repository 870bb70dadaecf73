"""The network card against a TAP of paper: every byte, every wait, every nonsense of a driver."""

import errno
import random
import struct
import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapkit import host, host_memory
from snapkit.errors import HostError, ImageError
from snapkit.state.codec import checked
from snapkit.state.schema import KINDS
from snapkit.state.virtio_net import VirtioNetState, invariants
from snapkit.units import MIB
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.rate_limiter import BucketConfig, LimitConfig
from snapkit.vmm.virtio.virtio_net import NetArgs, NetOptions, VirtioNet, fresh_state, local_mac, offload_of
from tests.vmm.virtio.driver import NEXT, WRITE, Driver, Interrupts, drive

# VIRTIO 1.3, section 5.1.3, declared again.
CSUM, GUEST_CSUM, MTU, MAC, GUEST_TSO4, GUEST_TSO6, GUEST_UFO = (1 << bit for bit in (0, 1, 3, 5, 7, 8, 10))
HOST_TSO4, HOST_TSO6, HOST_UFO, MRG_RXBUF = (1 << bit for bit in (11, 12, 14, 15))
RX, TX = 0, 1
EVERYTHING = 0x17
MAC_ADDRESS = bytes.fromhex("021122334455")
MS = 1_000_000
FD = 77


def packet(length: int, seed: int = 0, header: bytes = bytes(10)) -> bytes:
    """A packet of *length* bytes behind the ten bytes of header that a TAP writes."""
    return header + b"\xee\xee" + random.Random(seed).randbytes(length)


class PaperTap:
    """Behaves as Linux's TAP: cuts off what has no room, skips num_buffers, says EAGAIN by -1."""

    def __init__(self, name: str = "paper0", offloads: int = EVERYTHING, mtu: int = 1500) -> None:
        self.name, self.fd, self.offloads, self.mtu = name, FD, offloads, mtu
        self.waiting: deque[bytes] = deque()
        self.sent: list[bytes] = []
        self.full_after: int | None = None
        self.fault: Callable[[bytes], int] = lambda _packet: 0
        self.offload = -1
        self.closed = self.gone = False
        self.reads = 0

    def set_offload(self, offload: int) -> None:
        if offload & ~self.offloads:
            raise HostError("TUNSETOFFLOAD", errno.EINVAL)
        self.offload = offload

    def read(self, vector: "array[int]") -> int:
        if self.gone:
            raise HostError("readv", errno.EBADFD)
        self.reads += 1
        if not self.waiting:
            return -1
        payload, done = self.waiting.popleft(), 0
        for at in range(0, len(vector), 2):
            piece = payload[done : done + vector[at + 1]]
            for place, byte in enumerate(piece[:16]):
                if not 10 <= done + place < 12:
                    host_memory.copy_in(vector[at] + place, bytes([byte]))
            host_memory.copy_in(vector[at] + 16, piece[16:])
            done += len(piece)
        return done

    def write(self, spans: Sequence[tuple[int, int]]) -> int:
        if self.full_after is not None and len(self.sent) >= self.full_after:
            return -1
        payload = b"".join(host_memory.copy_out(address, length) for address, length in spans)
        if number := self.fault(payload):
            raise HostError("writev", number)
        self.sent.append(payload)
        return len(payload)

    def close(self) -> None:
        self.closed = True


class PaperLoop(Loop):
    def __init__(self) -> None:
        self.events = 0
        self.callback: Callable[[int], None] = lambda _events: None
        self.timers: list[tuple[int, Callable[[], None]]] = []

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> bool:
        assert fd == FD
        assert events
        self.events, self.callback = events, callback
        return True

    def unwatch(self, fd: int) -> None:
        assert fd == FD
        self.events = 0

    def call_at(self, deadline_ns: int, callback: Callable[[], None]) -> None:
        self.timers.append((deadline_ns, callback))


class Card:
    """A card with its TAP, its loop and its clock; `turn` is what the loop does once."""

    def __init__(self, memory: GuestMemory, tap: PaperTap, state: VirtioNetState) -> None:
        self.memory, self.tap, self.loop, self.lock, self.now = memory, tap, PaperLoop(), threading.Lock(), 10**10
        self.device = VirtioNet.restore(state, NetArgs(memory, tap, lambda: self.now))
        self.device.connect(self.loop, self.lock)

    def start(self, **how: Any) -> None:
        self.seen, (self.rx, self.tx) = drive(self.device, self.memory, **how)
        with self.lock:
            self.device.run()

    def adopt(self, seen: Interrupts, rx: Driver, tx: Driver) -> None:
        """Take over a guest: what a restore does with the card of a machine that ran."""
        self.seen, self.rx, self.tx = seen, rx, tx
        self.device.bind(seen, seen.again.append)
        with self.lock:
            self.device.activate()
            self.device.run()

    def kick(self, index: int) -> None:
        with self.lock:
            self.device.kick(index)

    def turn(self) -> bool:
        """Serve what is due; False when there was nothing."""
        again = self.seen.again.copy()
        self.seen.again.clear()
        for index in again:
            self.kick(index)
        ready = host.EPOLLIN if self.tap.waiting else 0
        if self.tap.full_after is None or len(self.tap.sent) < self.tap.full_after:
            ready |= host.EPOLLOUT
        if ready := ready & self.loop.events:
            self.loop.callback(ready)
        due = [timer for timer in self.loop.timers if timer[0] <= self.now]
        self.loop.timers = [timer for timer in self.loop.timers if timer[0] > self.now]
        for _, callback in due:
            callback()
        return bool(again or ready or due)

    def settle(self) -> None:
        for _ in range(10_000):
            if not self.turn():
                return
        pytest.fail("the card never comes to rest")

    def received(self) -> list[bytes]:
        """Take what the card delivered, put together as a driver does by num_buffers."""
        found: list[bytes] = []
        used = iter(self.rx.used())
        for head, written in used:
            first = self.rx.answer(head)[:written]
            if not first:
                continue
            count = struct.unpack_from("<H", first, 10)[0]
            parts = [first]
            for _ in range(count - 1):
                head, written = next(used)
                parts.append(self.rx.answer(head)[:written])
            found.append(b"".join(parts))
        return found


@pytest.fixture
def make(memory: GuestMemory) -> Callable[..., Card]:
    def made(
        *,
        mtu: int | None = None,
        offloads: int = EVERYTHING,
        rx_limit: LimitConfig | None = None,
        tx_limit: LimitConfig | None = None,
    ) -> Card:
        options = NetOptions("eth0", "paper0", mtu=mtu, rx_limit=rx_limit, tx_limit=tx_limit)
        tap = PaperTap(offloads=offloads)
        return Card(memory, tap, fresh_state(options, mac=MAC_ADDRESS, offloads=offloads))

    return made


def payloads(packets: Sequence[bytes]) -> list[bytes]:
    return [payload[12:] for payload in packets]


# What it offers


def test_offers_follow_what_the_tap_can_do_and_what_the_operator_says():
    full = fresh_state(NetOptions("a", "t", mtu=1400), mac=MAC_ADDRESS, offloads=EVERYTHING)
    segmented = GUEST_TSO4 | GUEST_TSO6 | HOST_TSO4 | HOST_TSO6
    ring = 1 << 28 | 1 << 29 | 1 << 32
    assert full.offered == ring | CSUM | GUEST_CSUM | MTU | MAC | segmented | GUEST_UFO | HOST_UFO | MRG_RXBUF
    assert fresh_state(NetOptions("a", "t"), mac=MAC_ADDRESS, offloads=0).offered == ring | MAC | MRG_RXBUF
    without_ufo = fresh_state(NetOptions("a", "t"), mac=MAC_ADDRESS, offloads=0x07)
    assert not without_ufo.offered & (GUEST_UFO | HOST_UFO)
    assert without_ufo.offered & GUEST_TSO6
    assert [queue.max_size for queue in full.queues] == [256, 256]
    assert invariants(full, "virtio-net/a") == []


def test_configuration_shows_mac_and_mtu_whatever_the_access(make):
    card = make(mtu=1400)
    assert card.device.read_config(0, 4) == int.from_bytes(MAC_ADDRESS[:4], "little")
    assert card.device.read_config(10, 2) == 1400
    assert card.device.read_config(6, 2) == card.device.read_config(8, 2) == 0
    assert card.device.read_config(12, 1) == 0xFF
    card.device.write_config(0, 4, 1)
    assert card.device.config_space()[:6] == MAC_ADDRESS
    assert make().device.read_config(10, 2) == 0


@pytest.mark.parametrize(("mac", "mtu"), [(bytes(5), None), (bytes(7), None), (MAC_ADDRESS, 67), (MAC_ADDRESS, 65536)])
def test_impossible_options_are_refused_by_their_field(mac, mtu):
    with pytest.raises(ImageError, match=r"mac|mtu"):
        fresh_state(NetOptions("a", "t", mtu=mtu), mac=mac, offloads=0)


def test_made_up_addresses_are_local_and_of_one_station():
    assert all(local_mac(random.Random(n).randbytes(6))[0] & 3 == 2 for n in range(50))


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda state: setattr(state, "mac", b"\1\2\3\4\5\6"), "mac"),
        (lambda state: setattr(state, "mac", bytes(6)), "mac"),
        (lambda state: setattr(state, "mtu", 1500), "mtu"),
        (lambda state: state.queues.pop(), "queues"),
        (lambda state: setattr(state, "acked", 1 << 40), "acked"),
        (lambda state: setattr(state.tx_limit, "blocked_ns", 1), "tx_limit.blocked_ns"),
    ],
)
def test_impossible_states_are_found_by_their_path(change, path):
    state = fresh_state(NetOptions("a", "t"), mac=MAC_ADDRESS, offloads=0)
    change(state)
    assert path in [finding.path for finding in invariants(state, "virtio-net/a")]


def test_the_kind_is_registered():
    assert KINDS[VirtioNet.kind] == "virtio_net"


# Offloads


@pytest.mark.parametrize(
    ("acked", "offload"),
    [
        (0, 0),
        (GUEST_CSUM, 1),
        (GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_UFO, 0x17),
        (GUEST_TSO4 | GUEST_TSO6, 0),
        (CSUM | HOST_TSO4, 0),
    ],
)
def test_the_tap_leaves_undone_what_the_driver_accepted(make, acked, offload):
    card = make()
    card.start(features=acked)
    assert offload_of(acked) == card.tap.offload == offload


def test_a_reset_and_another_driver_change_the_offloads(make):
    card = make()
    card.start(features=GUEST_CSUM | GUEST_TSO4)
    assert card.tap.offload == 3
    card.device.reset()
    card.start(features=0)
    assert card.tap.offload == 0


def test_a_tap_that_refuses_the_offloads_breaks_the_card_not_the_machine(make):
    card = make()
    card.tap.offloads = 0
    card.start(features=GUEST_CSUM)
    assert card.device.state.broken
    assert card.seen.resets == 1


@pytest.mark.parametrize(
    ("features", "accepted"),
    [
        (0, True),
        (CSUM | HOST_TSO4 | GUEST_CSUM | GUEST_TSO6, True),
        (HOST_TSO6, False),
        (CSUM | GUEST_TSO4, False),
        (GUEST_CSUM | HOST_UFO, False),
    ],
)
def test_segmentation_is_accepted_together_with_checksums_only(make, features, accepted):
    device = make().device
    assert device.accept(features | 1 << 32) is accepted
    assert bool(device.state.acked) is accepted


# Bytes


def cut(source: random.Random, payload: bytes, pieces: int) -> list[bytes]:
    at = sorted(source.randrange(len(payload) + 1) for _ in range(pieces - 1))
    return [payload[a:b] for a, b in zip([0, *at], [*at, len(payload)], strict=True)]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32), indirect=st.booleans(), event_idx=st.booleans())
def test_what_the_guest_sends_arrives_in_order_and_to_the_byte(make, seed, indirect, event_idx):
    source = random.Random(seed)
    card = make()
    card.start(features=CSUM, indirect=indirect, event_idx=event_idx)
    expected = []
    for number in range(60):
        sent = source.randbytes(12) + source.randbytes(source.choice((14, 60, 1514, 9000)))
        expected.append(sent)
        card.tx.add(*cut(source, sent, source.randint(1, 6)))
        if source.random() < 0.3 and card.tx.must_kick():
            card.kick(TX)
            card.settle()
            card.tx.used()
        if number % 30 == 29:
            card.kick(TX)
            card.settle()
            card.tx.used()
    assert card.tap.sent == expected
    assert len(card.tx.free) == card.tx.size
    assert card.device.dropped_tx == card.device.faults == 0


def room_given(driver: Driver) -> int:
    """Bytes in the chains that the device has not returned yet."""
    given = [spans for head, (_, spans) in driver.chains.items() if head not in driver.free]
    return sum(length for spans in given for _, length in spans)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 1 << 32),
    merge=st.booleans(),
    big=st.booleans(),
    indirect=st.booleans(),
    event_idx=st.booleans(),
)
def test_what_the_tap_holds_reaches_the_guest_in_order_and_to_the_byte(make, seed, merge, big, indirect, event_idx):
    source = random.Random(seed)
    card = make()
    features = GUEST_CSUM | (MRG_RXBUF if merge else 0) | (GUEST_TSO4 if big else 0)
    card.start(features=features, indirect=indirect, event_idx=event_idx)
    lengths = (14, 60, 1514, 40_000, 65_550) if big else (14, 60, 1514, 1518)
    expected = [packet(source.choice(lengths), seed + n, source.randbytes(10)) for n in range(25)]
    card.tap.waiting.extend(expected)
    got: list[bytes] = []
    for _ in range(400):
        while room_given(card.rx) < 200_000 and len(card.rx.free) > 4:
            if merge:
                card.rx.add(*(source.randint(12, 9000) for _ in range(source.randint(1, 3))))
            else:
                pieces = [source.randint(1, 40) for _ in range(source.randint(0, 3))]
                card.rx.add(*pieces, 65562 if big else 1530)
        if card.rx.must_kick():
            card.kick(RX)
        card.settle()
        got += card.received()
        if len(got) == len(expected):
            break
    assert payloads(got) == payloads(expected)
    assert [one[:10] for one in got] == [one[:10] for one in expected]
    assert card.device.faults == card.device.dropped_rx == 0


def test_a_packet_over_several_buffers_appears_with_its_last_one(make):
    card = make()
    card.start(features=MRG_RXBUF)
    for _ in range(16):
        card.rx.add(100)
    card.tap.waiting.append(packet(500))
    card.kick(RX)
    card.settle()
    used = card.rx.used()
    assert [written for _, written in used] == [100] * 5 + [12]
    assert struct.unpack_from("<H", card.rx.answer(used[0][0]), 10) == (6,)
    assert len(card.seen.queues) == 1


def test_num_buffers_is_one_without_merging_even_where_the_header_is_in_pieces(make):
    card = make()
    card.start(features=GUEST_CSUM)
    head = card.rx.add(3, 8, 1520)
    card.tap.waiting.append(packet(1500, header=b"\1" * 10))
    card.kick(RX)
    assert card.rx.used() == [(head, 1512)]
    assert card.rx.answer(head)[:12] == b"\1" * 10 + b"\1\0"


def test_header_flags_are_blank_for_a_driver_without_guest_csum(make):
    card = make()
    card.start(features=0)
    card.rx.add(1530)
    card.tap.waiting.append(packet(60, header=b"\2" * 10))
    card.kick(RX)
    assert card.received()[0][:3] == b"\0\2\2"


# Waiting and fairness


def test_the_tap_is_not_read_before_the_guest_has_room_for_the_longest_packet(make):
    card = make()
    card.start(features=MRG_RXBUF | GUEST_CSUM | GUEST_TSO4)
    card.tap.waiting.append(packet(60))
    for _ in range(16):
        card.rx.add(4096)
    card.kick(RX)
    assert card.tap.reads == 0
    assert card.loop.events == 0, "nobody watches while there is no room"
    card.rx.add(4096)
    assert card.rx.must_kick()
    card.kick(RX)
    assert len(card.received()) == 1


@pytest.mark.parametrize("indirect", [False, True])
def test_a_driver_that_can_give_no_more_is_served_with_what_fits(make, indirect):
    card = make()
    card.start(features=MRG_RXBUF | GUEST_CSUM | GUEST_TSO4, sizes={RX: 4}, indirect=indirect)
    for _ in range(4):
        card.rx.add(2000)
    card.tap.waiting.extend([packet(60), packet(30_000), packet(1514)])
    card.kick(RX)
    card.settle()
    assert len(card.received()) == 1, "its ring is not full any more"
    card.rx.add(2000)
    card.kick(RX)
    card.settle()
    assert card.device.dropped_rx == 1
    assert payloads(card.received()) == payloads([packet(1514)])


def test_a_packet_longer_than_its_buffer_is_dropped_and_the_buffer_stays(make):
    card = make()
    card.start()
    head = card.rx.add(100)
    card.tap.waiting.extend([packet(500, 1), packet(89, 2), packet(88, 3)])
    card.kick(RX)
    assert card.rx.used() == [(head, 100)]
    assert card.rx.answer(head)[12:] == packet(88, 3)[12:]
    assert card.device.dropped_rx == 2


def test_buffers_that_no_packet_fits_go_back_empty_and_in_order(make):
    card = make()
    card.start()
    short = card.rx.add(25)
    wrong = card.rx.add(b"to be read", 2000)
    good = card.rx.add(2000)
    card.tap.waiting.append(packet(60))
    card.kick(RX)
    assert card.rx.used() == [(short, 0), (wrong, 0), (good, 72)]
    assert not card.device.state.broken


def test_a_short_buffer_between_good_ones_keeps_its_place_in_the_ring(make):
    card = make()
    card.start(features=MRG_RXBUF)
    heads = [card.rx.add(1000), card.rx.add(5), card.rx.add(1000), card.rx.add(1000)]
    card.tap.waiting.append(packet(60))
    card.kick(RX)
    assert card.rx.used() == [(heads[0], 72), (heads[1], 0)]
    with card.lock:
        card.device.prepare_save()
    assert card.device.queues[RX].state.next_avail == 2


def test_work_is_done_in_bounded_batches_with_one_interrupt_each(make):
    card = make()
    card.start()
    for number in range(200):
        card.tx.add(packet(60, number))
    card.kick(TX)
    first = len(card.tap.sent)
    assert 0 < first < 50
    assert card.seen.queues == [TX]
    assert card.seen.again == [TX]
    turns = 0
    while card.turn():
        turns += 1
    assert card.tap.sent == [packet(60, number) for number in range(200)]
    assert card.seen.queues == [TX] * (turns + 1)
    for _ in range(100):
        card.rx.add(1530)
    card.tap.waiting.extend(packet(60, number) for number in range(100))
    card.seen.queues.clear()
    card.kick(RX)
    assert 0 < 100 - len(card.tap.waiting) < 50
    assert card.seen.queues == [RX]
    card.settle()
    assert payloads(card.received()) == payloads([packet(60, number) for number in range(100)])


def test_a_full_tap_stops_sending_until_it_says_so(make):
    card = make()
    card.start()
    for number in range(10):
        card.tx.add(packet(60, number))
    card.tap.full_after = 4
    card.kick(TX)
    assert len(card.tap.sent) == 4
    assert card.loop.events & host.EPOLLOUT
    assert card.device.queues[TX].state.next_avail == 4
    card.kick(TX)
    card.settle()
    assert len(card.tx.used()) == 4
    card.tap.full_after = None
    card.settle()
    assert card.tap.sent == [packet(60, number) for number in range(10)]
    assert not card.loop.events & host.EPOLLOUT


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO, errno.EBADFD, errno.ENOBUFS])
def test_what_the_tap_refuses_is_dropped_and_the_rest_goes_on(make, number):
    card = make()
    card.start()
    card.tap.fault = lambda payload: number if payload[12] & 1 else 0
    packets = [packet(60, n) for n in range(20)]
    for one in packets:
        card.tx.add(one)
    card.kick(TX)
    card.settle()
    kept = [one for one in packets if not one[12] & 1]
    assert card.tap.sent == kept
    assert len(card.tx.used()) == 20
    assert card.device.dropped_tx == 20 - len(kept)


def test_chains_that_are_no_packets_are_dropped_and_counted(make):
    card = make()
    card.start()
    card.tx.add(bytes(25))
    card.tx.add(bytes(66_000))
    card.tx.add(packet(60), 10)
    card.tx.add(100)
    card.tx.add(packet(60))
    card.kick(TX)
    card.settle()
    assert [written for _, written in card.tx.used()] == [0] * 5
    assert card.tap.sent == [packet(60)]
    assert card.device.dropped_tx == 4
    assert not card.device.state.broken


def test_an_interface_that_goes_away_is_no_busy_loop_and_no_error(make):
    card = make()
    card.start()
    card.rx.add(1530)
    card.kick(RX)
    assert card.loop.events == host.EPOLLIN
    card.tap.gone = True
    card.loop.callback(host.EPOLLERR)
    assert card.loop.events == 0
    assert card.device.faults == 1
    card.kick(RX)
    assert card.device.faults == 2
    assert card.loop.events == 0


# Pause, save, restore


def test_nothing_is_served_before_run_nor_while_paused(make, memory):
    card = make()
    card.seen, (card.rx, card.tx) = drive(card.device, memory)
    card.rx.add(1530)
    card.tx.add(packet(60))
    card.tap.waiting.append(packet(60))
    card.kick(RX)
    card.kick(TX)
    assert (card.tap.reads, card.tap.sent, card.loop.events) == (0, [], 0)
    with card.lock:
        card.device.run()
    assert len(card.received()) == len(card.tap.sent) == 1
    card.rx.add(1530)
    card.kick(RX)
    assert card.loop.events == host.EPOLLIN
    card.device.pause()
    assert card.loop.events == 0
    card.tap.waiting.append(packet(70))
    card.loop.callback(host.EPOLLIN)
    assert len(card.tap.waiting) == 1
    with card.lock:
        card.device.run()
    assert len(card.received()) == 1


def test_the_loop_goes_on_with_buffers_that_were_there_before_driver_ok(make, memory):
    card = make()
    with card.lock:
        card.device.run()
    card.seen, (card.rx, card.tx) = drive(card.device, memory)
    assert sorted(card.seen.again) == [RX, TX]


@pytest.mark.parametrize("merge", [False, True])
def test_a_save_gives_looked_at_chains_back_and_another_card_goes_on(make, memory, merge):
    card = make()
    card.start(features=GUEST_CSUM | GUEST_TSO4 | (MRG_RXBUF if merge else 0), event_idx=True)
    heads = [card.rx.add(8192 if merge else 65562) for _ in range(14)]
    sent = [packet(1000 + number, number) for number in range(4)]
    card.tap.waiting.extend(sent[:2])
    card.kick(RX)
    card.settle()
    queue = card.device.queues[RX].state
    assert queue.next_avail > queue.next_used == 2
    card.device.pause()
    with card.lock:
        card.device.prepare_save()
        saved = card.device.save()
        again = card.device.save()
    assert saved == again
    assert saved.queues[RX].next_avail == saved.queues[RX].next_used == 2
    other = Card(memory, PaperTap("paper1"), saved)
    assert other.tap.offload == 3
    assert other.device.save() == _with_tap(saved, "paper1")
    other.tap.waiting.extend(sent[2:])
    other.adopt(card.seen, card.rx, card.tx)
    other.settle()
    assert [head for head, _ in other.rx.used()] == heads[:4]
    assert other.device.state.host.tap == "paper1"


def _with_tap(state: VirtioNetState, name: str) -> VirtioNetState:
    copy = checked(state)
    copy.host.tap = name
    return copy


def test_a_save_is_followed_by_going_on(make):
    card = make()
    card.start(features=MRG_RXBUF)
    heads = [card.rx.add(1000) for _ in range(8)]
    card.kick(RX)
    card.device.pause()
    with card.lock:
        card.device.prepare_save()
        card.device.run()
    card.tap.waiting.append(packet(60))
    card.settle()
    assert card.rx.used() == [(heads[0], 72)]


def test_a_doorbell_rung_before_the_save_is_served_after_the_restore(make, memory):
    card = make()
    card.start()
    card.device.pause()
    card.tx.add(packet(60))
    with card.lock:
        card.device.prepare_save()
        saved = card.device.save()
    other = Card(memory, PaperTap(), saved)
    assert other.tap.sent == []
    other.adopt(card.seen, card.rx, card.tx)
    assert other.tap.sent == [packet(60)]


def test_a_reset_forgets_chains_and_waits_and_another_driver_begins_anew(make):
    card = make()
    card.start(features=MRG_RXBUF)
    card.rx.add(1000)
    card.rx.add(1000)
    card.kick(RX)
    card.tap.full_after = 0
    card.tx.add(packet(60))
    card.kick(TX)
    assert card.loop.events
    card.device.reset()
    assert card.loop.events == 0
    with card.lock:
        card.device.prepare_save()
    assert [queue.next_avail for queue in card.device.save().queues] == [0, 0]
    card.tap.full_after = None
    card.start(features=0)
    head = card.rx.add(1530)
    card.tap.waiting.append(packet(60))
    card.kick(RX)
    card.settle()
    assert card.rx.used() == [(head, 72)]


def test_closing_lets_the_tap_go(make):
    card = make()
    card.start()
    card.rx.add(1530)
    card.kick(RX)
    card.device.disconnect()
    card.device.disconnect()
    assert card.loop.events == 0
    card.device.close()
    assert card.tap.closed


# Limits


def operations(size: int, refill_ms: int) -> LimitConfig:
    return LimitConfig(ops=BucketConfig(size=size, refill_time=refill_ms))


def bandwidth(size: int, refill_ms: int) -> LimitConfig:
    return LimitConfig(bandwidth=BucketConfig(size=size, refill_time=refill_ms))


def test_sending_keeps_to_its_limit_and_loses_nothing(make):
    card = make(tx_limit=operations(10, 100))
    card.start()
    for number in range(30):
        card.tx.add(packet(60, number))
    card.kick(TX)
    card.settle()
    assert len(card.tap.sent) == 10
    start = card.now
    while len(card.tap.sent) < 30:
        assert len(card.loop.timers) == 1
        card.kick(TX)
        card.now = card.loop.timers[0][0]
        card.settle()
    assert card.now - start == 200 * MS
    assert card.tap.sent == [packet(60, number) for number in range(30)]


def test_receiving_keeps_to_its_limit_and_leaves_packets_in_the_tap(make):
    card = make(rx_limit=bandwidth(3000, 100))
    card.start()
    for _ in range(20):
        card.rx.add(1530)
    card.tap.waiting.extend(packet(1000, number) for number in range(10))
    card.kick(RX)
    card.settle()
    assert len(card.tap.waiting) == 6, "three from the bucket, one on credit"
    assert card.loop.events == 0
    start = card.now
    while card.tap.waiting:
        card.now = card.loop.timers[0][0]
        card.settle()
    assert 200 * MS <= card.now - start <= 240 * MS
    assert payloads(card.received()) == payloads([packet(1000, number) for number in range(10)])


def test_an_empty_tap_costs_no_tokens(make):
    card = make(rx_limit=operations(2, 1000))
    card.start()
    for _ in range(4):
        card.rx.add(1530)
        card.kick(RX)
    card.tap.waiting.extend([packet(60), packet(60), packet(60)])
    card.settle()
    assert len(card.tap.waiting) == 1


def test_a_full_tap_gives_the_tokens_back(make):
    card = make(tx_limit=operations(2, 1000))
    card.start()
    card.tap.full_after = 0
    for number in range(3):
        card.tx.add(packet(60, number))
    card.kick(TX)
    card.tap.full_after = None
    card.settle()
    assert len(card.tap.sent) == 2


def test_changing_a_limit_wakes_who_waited_and_old_timers_harm_nothing(make):
    card = make(tx_limit=operations(1, 10_000))
    card.start()
    for number in range(5):
        card.tx.add(packet(60, number))
    card.kick(TX)
    assert len(card.tap.sent) == 1
    with card.lock:
        card.device.update_limits(tx=operations(0, 0), rx=bandwidth(7, 7))
    card.settle()
    assert len(card.tap.sent) == 5
    card.now += 20_000 * MS
    card.settle()
    assert card.device.state.tx_limit.ops is None
    assert card.device.state.rx_limit.bandwidth is not None


def test_what_a_limit_still_owes_is_state_and_time_stands_still_while_paused(make, memory):
    card = make(tx_limit=operations(1, 1000))
    card.start()
    card.tx.add(packet(60, 1))
    card.tx.add(packet(60, 2))
    card.kick(TX)
    card.now += 400 * MS
    card.device.pause()
    with card.lock:
        card.device.prepare_save()
        saved = card.device.save()
        card.now += 10_000 * MS
        assert card.device.save() == saved
    assert saved.tx_limit.blocked_ns == 600 * MS
    other = Card(memory, PaperTap(), saved)
    other.adopt(card.seen, card.rx, card.tx)
    other.settle()
    assert other.tap.sent == []
    other.now += 600 * MS
    other.settle()
    assert other.tap.sent == [packet(60, 2)]


# Nonsense


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 1 << 32))
def test_no_garbage_in_the_rings_raises_or_hangs(make, memory, seed):
    source = random.Random(seed)
    card = make()
    memory.write(0, bytes(4 * MIB))
    outside = 4 * MIB if source.random() < 0.3 else 4 * MIB - 70_000
    for _ in range(3):
        card.device.reset()
        card.start(
            features=source.getrandbits(16), event_idx=source.random() < 0.5, indirect=source.random() < 0.5,
            sizes={RX: 16, TX: 16},
        )  # fmt: skip
        for _ in range(30):
            driver = source.choice((card.rx, card.tx))
            card.tap.waiting.append(packet(source.choice((14, 1514, 65_000)), 1, source.randbytes(10)))
            for index in range(16):
                if source.random() < 0.4:
                    length = source.choice((0, 1, 12, 26, 1530, 65562, source.getrandbits(source.choice((12, 32)))))
                    flags = source.choice((0, WRITE, WRITE, NEXT, NEXT | WRITE, 4, source.getrandbits(16)))
                    driver.describe(index, source.randrange(outside), length, flags, source.randrange(17))
            for _ in range(source.randrange(4)):
                driver.offer(source.randrange(16 if source.random() < 0.98 else 0x10000))
            if source.random() < 0.02:
                driver.put16(driver.avail + 2, source.getrandbits(16))
            card.kick(source.randrange(2))
            card.tap.full_after = source.choice((None, None, len(card.tap.sent)))
            card.settle()
            if source.random() < 0.1:
                card.device.pause()
                with card.lock:
                    card.device.prepare_save()
                    assert invariants(card.device.save(), "virtio-net/eth0") == []
                    card.device.run()
    memory.write(0, bytes(16))


def test_a_broken_ring_breaks_this_card_only_until_its_reset(make):
    card = make()
    card.start()
    card.rx.add(1530)
    card.kick(RX)
    card.tx.offer(300)
    card.kick(TX)
    assert card.device.state.broken
    assert card.seen.resets == 1
    assert card.loop.events == 0
    card.tap.waiting.append(packet(60))
    card.kick(RX)
    card.settle()
    assert len(card.tap.waiting) == 1
    card.device.reset()
    card.start()
    card.rx.add(1530)
    card.kick(RX)
    assert len(card.received()) == 1
