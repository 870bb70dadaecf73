"""Network card: VIRTIO 1.3, section 5.1. One receive queue, one transmit queue, a TAP on the host's side.

Packets go between guest pages and the TAP by readv(2) and writev(2), with their virtio-net header and uncopied. What
the TAP may leave undone (checksums, segmentation) follows the features that the driver accepted, at every activation,
those after a restore included.

Receiving. A packet's length is not known before it is read, and a packet that was read must be delivered: so the TAP
is read only once the driver's buffers hold the longest packet that may come. The chains looked at ahead for this are
kept from packet to packet; `prepare_save` gives them back. A packet longer than promised (the TAP's MTU was raised
while running) is dropped, the buffers stay. While no buffers are there, nobody watches the TAP.

Transmitting. What the TAP refuses for ever, and what is no packet, is dropped and counted. When it takes none now, the
chain goes back into the ring and its queue waits for the TAP.

Both ways work is done in bounded batches with one interrupt each; then the other fds have their turn.

Surprises:

- a driver that can offer less room than the longest packet is given what fits, once its ring is full: waiting for more
  would be for ever;
- after a reset the TAP may hold packets that the next driver did not ask for; they are its as any other.

Host side: `connect` only remembers loop and lock; the TAP is watched from `run` to `pause`.
"""

import threading
from array import array
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol, Self

from snapkit import host, host_net
from snapkit.errors import HostError
from snapkit.state.codec import adopted, checked
from snapkit.state.spec import virtio as virtio_spec
from snapkit.state.spec import virtio_net as spec
from snapkit.state.spec.virtio_net import HDR_LEN, RX, TX
from snapkit.state.virtio_net import NetHostState, VirtioNetState
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.device import VirtioDevice, fresh_queues
from snapkit.vmm.virtio.queue import Queue, spans_len
from snapkit.vmm.virtio.rate_limiter import Clock, LimitConfig, RateLimiter, fresh_limiter
from snapkit.vmm.virtio.rx_chains import RxChains

_OFFLOAD_OF = (
    (spec.VIRTIO_NET_F_GUEST_CSUM, host_net.TUN_F_CSUM),
    (spec.VIRTIO_NET_F_GUEST_TSO4, host_net.TUN_F_TSO4),
    (spec.VIRTIO_NET_F_GUEST_TSO6, host_net.TUN_F_TSO6),
    (spec.VIRTIO_NET_F_GUEST_UFO, host_net.TUN_F_UFO),
)
_HOST_FEATURES = (
    (host_net.TUN_F_CSUM, spec.VIRTIO_NET_F_CSUM | spec.VIRTIO_NET_F_GUEST_CSUM),
    (host_net.TUN_F_TSO4, spec.VIRTIO_NET_F_HOST_TSO4 | spec.VIRTIO_NET_F_GUEST_TSO4),
    (host_net.TUN_F_TSO6, spec.VIRTIO_NET_F_HOST_TSO6 | spec.VIRTIO_NET_F_GUEST_TSO6),
    (host_net.TUN_F_UFO, spec.VIRTIO_NET_F_HOST_UFO | spec.VIRTIO_NET_F_GUEST_UFO),
)
QUEUE_SIZE = 256
_WORK = 64
"""Of a batch: chains looked at, and packets twice. About 100 us of Python."""
_BATCH_LEN = 512 << 10
_SHORTEST = HDR_LEN + spec.ETHERNET_LEN
_MTU = 1500


class TapEnd(Protocol):
    """The TAP as the card sees it. `read` takes address and length of each piece in turn, `write` pairs of them."""

    @property
    def name(self) -> str: ...

    @property
    def fd(self) -> int: ...

    @property
    def offloads(self) -> int: ...

    @property
    def mtu(self) -> int: ...

    def set_offload(self, offload: int) -> None: ...

    def read(self, vector: "array[int]") -> int: ...

    def write(self, spans: Sequence[tuple[int, int]]) -> int: ...

    def close(self) -> None: ...


class NetOptions(NamedTuple):
    """What an operator says about a card. Without *mac* the caller makes one up, see `local_mac`."""

    id: str
    tap: str
    mac: bytes | None = None
    mtu: int | None = None
    rx_limit: LimitConfig | None = None
    tx_limit: LimitConfig | None = None


class NetArgs(NamedTuple):
    """Host things of a card."""

    memory: GuestMemory
    tap: TapEnd
    clock: Clock = host.monotonic_ns


def local_mac(random: bytes) -> bytes:
    """Make a locally administered MAC address of six random bytes."""
    return bytes([random[0] & ~spec.MAC_GROUP | spec.MAC_LOCAL]) + random[1 : spec.MAC_LEN]


def fresh_state(options: NetOptions, *, mac: bytes, offloads: int) -> VirtioNetState:
    """Return the State of a card that no driver has touched; *offloads* is what its TAP can do."""
    offered = virtio_spec.BASE_FEATURES | spec.VIRTIO_NET_F_MAC | spec.VIRTIO_NET_F_MRG_RXBUF
    for flag, features in _HOST_FEATURES:
        if offloads & flag:
            offered |= features
    if options.mtu is not None:
        offered |= spec.VIRTIO_NET_F_MTU
    state = VirtioNetState(
        offered=offered,
        queues=fresh_queues(VirtioNet.queue_sizes),
        mac=mac,
        mtu=options.mtu,
        rx_limit=fresh_limiter(options.rx_limit),
        tx_limit=fresh_limiter(options.tx_limit),
        host=NetHostState(tap=options.tap),
    )
    return checked(state)


def offload_of(acked: int) -> int:
    """Return what the TAP may leave undone (TUN_F_*) for a driver that accepted *acked*."""
    if not acked & spec.VIRTIO_NET_F_GUEST_CSUM:
        return 0  # 5.1.3.1: the others need it
    return sum(flag for feature, flag in _OFFLOAD_OF if acked & feature)


class VirtioNet(VirtioDevice[VirtioNetState]):
    """One card. Its TAP is open already and closed by `close`."""

    kind: ClassVar[str] = "virtio-net"
    type_id: ClassVar[int] = virtio_spec.TYPE_NET
    queue_sizes: ClassVar[tuple[int, ...]] = (QUEUE_SIZE, QUEUE_SIZE)

    def __init__(self, state: VirtioNetState, *, memory: GuestMemory, tap: TapEnd, clock: Clock) -> None:
        super().__init__(state, memory=memory)
        state.host.tap = tap.name
        # Runtime glue
        self._tap = tap
        self._loop: Loop | None = None
        self._lock: threading.Lock | None = None
        self._watched = 0
        self._running = False
        self._offload = -1
        self.dropped_rx = self.dropped_tx = 0
        self.rx_limit = RateLimiter(state.rx_limit, clock=clock)
        self.tx_limit = RateLimiter(state.tx_limit, clock=clock)
        self._timed = [False, False]  # a timer will go on with this queue
        self._wants_rx = self._wants_tx = False  # the TAP decides when to go on
        self._ahead = RxChains()
        self._clear_flags = False

    @classmethod
    def restore(cls, state: VirtioNetState, args: NetArgs) -> Self:
        """Construct the card that *state* describes, plugged into another TAP where that is what is given.

        Raises ImageError naming the field that is out of bounds.
        """
        return cls(adopted(state), memory=args.memory, tap=args.tap, clock=args.clock)

    # Configuration space

    def config_space(self) -> bytes:
        """Return MAC address and MTU; there is neither a link status nor a second pair of queues."""
        return spec.CONFIG_FORMAT.pack(self.state.mac, 0, 0, self.state.mtu or 0)

    # Driven by the machine

    def connect(self, loop: Loop, lock: threading.Lock) -> None:
        """Take loop and lock, and tell the TAP what the guest takes. Raises HostError. Without the lock."""
        self._set_offload(offload_of(self.state.acked))
        self._loop, self._lock = loop, lock
        self._timed = [False, False]

    def disconnect(self) -> None:
        """Forget loop and lock. Without the lock."""
        self.pause()
        self._loop = self._lock = None

    def run(self) -> None:
        """Begin to serve, or go on after a pause."""
        self._running = True
        self.rx_limit.start()
        self.tx_limit.start()
        self._wants_tx = False
        super().run()
        self._watch()

    def pause(self) -> None:
        """Leave the TAP alone: what comes waits there. Without the lock."""
        if self._lock is None:
            return
        with self._lock:
            self._running = False
            self._watch()

    def prepare_save(self) -> None:
        """Give chains that were looked at ahead back to the ring, and let limiters stand still until `run`."""
        self._ahead.give_back(self.queues[RX])
        self.rx_limit.stop()
        self.tx_limit.stop()

    def close(self) -> None:
        """Let go of guest memory and of the TAP."""
        self._running = False
        self._watch()
        super().close()
        self._tap.close()

    def update_limits(self, *, rx: LimitConfig | None = None, tx: LimitConfig | None = None) -> None:
        """Change the limits of a running card; who waited for the old ones goes on."""
        for index, limiter, config in ((RX, self.rx_limit, rx), (TX, self.tx_limit, tx)):
            if config is not None:
                limiter.update(config)
                self._timed[index] = False
                self.kick(index)
        self._watch()

    # Driven by the driver

    def serve(self, index: int) -> None:
        """Move packets while the machine runs; where it has to stop, it arranges for going on."""
        if not self._running or self._timed[index]:
            return
        queue = self.queues[index]
        try:
            if index == RX:
                self._receive(queue)
            elif not self._wants_tx:
                self._transmit(queue)
        finally:
            if queue.should_notify():
                self.interrupt.queue(index)
            self._watch()

    def _workable(self, features: int) -> bool:
        needs_csum, needs_guest_csum = features & spec.HOST_SEGMENTED, features & spec.GUEST_SEGMENTED  # 5.1.3.1
        if needs_csum and not features & spec.VIRTIO_NET_F_CSUM:
            return False
        return not needs_guest_csum or bool(features & spec.VIRTIO_NET_F_GUEST_CSUM)

    def _activated(self) -> None:
        acked = self.state.acked
        self._clear_flags = not self.negotiated(spec.VIRTIO_NET_F_GUEST_CSUM)
        if acked & spec.GUEST_SEGMENTED:
            longest = spec.PACKET_MAX
        else:
            longest = _SHORTEST + spec.VLAN_LEN + max(_MTU, self._tap.mtu)
        self._ahead.begin(merges=self.negotiated(spec.VIRTIO_NET_F_MRG_RXBUF), longest=longest)
        try:
            self._set_offload(offload_of(acked))
        except HostError as error:
            self.fail(str(error))
            return
        if self._running:  # buffers may be there from before DRIVER_OK
            self.again(RX)
            self.again(TX)

    def _stopped(self, index: int) -> None:
        if index == RX:
            self._ahead.clear()
            self._wants_rx = False
        else:
            self._wants_tx = False
        self._watch()

    # From the TAP to the guest

    def _receive(self, queue: Queue) -> None:
        ahead, limiter, read = self._ahead, self.rx_limit, self._tap.read
        limited, clear_flags = limiter.limited, self._clear_flags
        work, moved = _WORK, 0
        queue.disarm()
        self._wants_rx = True
        while work > 0 and moved < _BATCH_LEN:
            if ahead.room < ahead.need and not (enough := ahead.look(queue)):
                if enough is None:
                    self.again(RX)
                self._wants_rx = False
                return
            if limited and not limiter.take(1):
                self._wait(RX, limiter)
                return
            try:
                length = read(ahead.vector)
            except HostError:  # the interface is gone
                self.faults += 1
                self._wants_rx = False
                return
            if length < 0:
                if limited:
                    limiter.give_back(1)
                return
            if limited:
                limiter.charge(0, max(0, length - HDR_LEN))
            if HDR_LEN <= length <= ahead.room:
                work -= ahead.deliver(queue, length, clear_flags=clear_flags)
            else:
                self.dropped_rx += 1
            moved += length
            work -= 2

    # From the guest to the TAP

    def _transmit(self, queue: Queue) -> None:
        limiter, write = self.tx_limit, self._tap.write
        limited = limiter.limited
        work, moved = _WORK, 0
        queue.disarm()
        while work > 0 and moved < _BATCH_LEN:
            chain = queue.pop()
            if chain is None:
                if queue.arm():
                    continue
                return
            head, spans, writable = chain
            length = spans_len(spans)
            if writable or not _SHORTEST <= length <= spec.PACKET_MAX or len(spans) > host_net.IOV_MAX:
                self._drop_tx(queue, head)
                work -= 1
                continue
            if limited and not limiter.take(1, length - HDR_LEN):
                queue.undo_pop()
                self._wait(TX, limiter)
                return
            try:
                written = write(spans)
            except HostError:  # a header that contradicts itself, or an interface that is down
                self._drop_tx(queue, head)
            else:
                if written < 0:
                    queue.undo_pop()
                    if limited:
                        limiter.give_back(1, length - HDR_LEN)
                    self._wants_tx = True
                    return
                queue.push(head, 0)
            moved += length
            work -= 3
        self.again(TX)

    def _drop_tx(self, queue: Queue, head: int) -> None:
        self.dropped_tx += 1
        queue.push(head, 0)

    # Going on later

    def _watch(self) -> None:
        """Have the loop tell what the card waits for."""
        wanted = 0
        if self._running:
            if self._wants_rx and not self._timed[RX]:
                wanted |= host.EPOLLIN
            if self._wants_tx:
                wanted |= host.EPOLLOUT
        if wanted == self._watched or self._loop is None:
            return
        self._watched = wanted
        if wanted:
            self._loop.watch(self._tap.fd, wanted, self._tap_ready)
        else:
            self._loop.unwatch(self._tap.fd)

    def _tap_ready(self, events: int) -> None:
        """Run on the loop, without the lock."""
        if self._lock is None:
            return
        with self._lock:
            if events & (host.EPOLLERR | host.EPOLLHUP):  # the interface is gone; this would never stop to be told
                self.faults += 1
                self._wants_rx = self._wants_tx = False
            else:
                if events & host.EPOLLOUT:
                    self._wants_tx = False
                    self.kick(TX)
                if events & host.EPOLLIN:
                    self.kick(RX)
            self._watch()

    def _wait(self, index: int, limiter: RateLimiter) -> None:
        """Go on with queue *index* when its limiter has tokens."""
        due = limiter.next_ns()
        if due is None or self._loop is None:
            self.again(index)
            return
        self._timed[index] = True
        self._loop.call_at(due, self._timer(index))

    def _timer(self, index: int) -> Callable[[], None]:
        def go_on() -> None:
            if self._lock is None:
                return
            with self._lock:
                self._timed[index] = False
                self.kick(index)
                self._watch()

        return go_on

    def _set_offload(self, offload: int) -> None:
        if offload != self._offload:
            self._tap.set_offload(offload)
            self._offload = offload
