"""The socket device: streams between the guest and programs of the host. VIRTIO 1.3, section 5.10.

Packets come in over tx and go out over rx; `vsock_connection` says what they mean and `vsock_link` moves the bytes. This
is what lies between: the table of connections, and whose turn it is.

- Nothing is made ahead. A packet for the guest is built when there is a buffer for it, straight from what the
  connection owes or the socket holds, so a save finds nothing in flight and a connection lives through it unnoticed.
- Nothing piles up. A connection holds what its credit allows, there are CONNECTIONS_MAX of them, and answers to packets
  that belong to none are RESETS_MAX; a guest that takes no answers is not served on tx until it does.
- A restored device has no connections, and says so once the machine runs (`reset_pending`). What the guest still sends
  on one is answered by RST meanwhile.

A connection whose guest went away without waiting keeps its socket until the host has taken what was sent (LINGERING).
A buffer on rx that has no room for a header and one byte goes back unused.
"""

import threading
from collections import deque
from typing import ClassVar, NamedTuple, Self

from snapkit.errors import ConfigError, HostError
from snapkit.state.codec import adopted
from snapkit.state.spec import virtio as virtio_spec
from snapkit.state.spec import virtio_vsock as spec
from snapkit.state.spec.virtio_vsock import EVENT, HEADER_LEN, RX, TX, Header
from snapkit.state.virtio_vsock import UDS_MAX, VirtioVsockState, VsockHostState, invariants
from snapkit.units import KIB
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.device import VirtioDevice, fresh_queues
from snapkit.vmm.virtio.queue import Chain, gather, readable_len, scatter, skip, writable_len
from snapkit.vmm.virtio.vsock_connection import BUF_ALLOC, LINGERING, Connection
from snapkit.vmm.virtio.vsock_link import HostEnd, HostStream, Link

CONNECTIONS_MAX = 1023
RESETS_MAX = 256
TURN_PACKETS = 32
"""Packets of one direction that are served before others have their turn."""
TURN_LEN = 256 * KIB
READ_MAX = 64 * KIB
"""Bytes of one packet for the guest, however large its buffer."""
_PORTS_END = 1 << 31


class VsockArgs(NamedTuple):
    """Host things of a socket device."""

    memory: GuestMemory
    host: HostEnd


class VirtioVsock(VirtioDevice[VirtioVsockState]):
    """One socket device. Every method needs the machine's lock, unless the base says otherwise."""

    kind: ClassVar[str] = "virtio-vsock"
    type_id: ClassVar[int] = virtio_spec.TYPE_VSOCK
    queue_sizes: ClassVar[tuple[int, ...]] = (256, 256, 64)

    def __init__(self, state: VirtioVsockState, *, args: VsockArgs) -> None:
        super().__init__(state, memory=args.memory)
        # Runtime glue
        self._host = args.host
        self._lock: threading.Lock | None = None
        self._restored = False
        self._next_port = args.host.first_port
        self._links: dict[tuple[int, int], Link] = {}
        self._lingering: set[Link] = set()
        self._ready: deque[Link] = deque()
        self._resets: deque[bytes] = deque()
        self._tx_waits = False

    @classmethod
    def restore(cls, state: VirtioVsockState, args: VsockArgs) -> Self:
        """Construct the device that *state* describes. Raises ImageError naming the field that is wrong."""
        made = cls(adopted(state, invariants), args=args)
        made._restored = True
        return made

    # Lifecycle

    @property
    def connections(self) -> int:
        """How many connections there are, the lingering ones included."""
        return len(self._links) + len(self._lingering)

    def connect(self, loop: Loop, lock: threading.Lock) -> None:
        """Let the host end use *loop*; it looks at nothing before `run`."""
        self._lock = lock
        self._host.attach(loop, lock, self._arrived)

    def disconnect(self) -> None:
        """Drop every connection and leave the loop; idempotent."""
        self._drop_all()
        self._host.detach()
        self._lock = None

    def run(self) -> None:
        """Look at sockets again, and serve what waits in the queues."""
        self._restored = False
        self._host.go_on()
        super().run()

    def pause(self) -> None:
        """Look at no socket until `run`; takes the lock. Connections stay."""
        if self._lock is not None:
            with self._lock:
                self._host.rest()

    def close(self) -> None:
        """Drop every connection and give the host's socket back."""
        self.disconnect()
        super().close()
        self._host.close()

    def _activated(self) -> None:
        if self._restored:
            self.state.reset_pending = True

    def _stopped(self, index: int) -> None:
        self._drop_all()

    def _reset(self) -> None:
        self.state.reset_pending = self._restored = False

    def _drop_all(self) -> None:
        for link in (*self._links.values(), *self._lingering):
            link.drop()
        for held in (self._links, self._lingering, self._ready, self._resets):
            held.clear()
        self._tx_waits = False

    # Configuration space

    def config_space(self) -> bytes:
        """Return ``struct virtio_vsock_config``."""
        return spec.CONFIG_FORMAT.pack(self.state.cid)

    # Queues

    def serve(self, index: int) -> None:
        """Serve what the driver added to queue *index*."""
        if index == TX:
            self._serve_tx()
        elif index == EVENT:
            self._serve_event()
        self._serve_rx()

    def _serve_tx(self) -> None:
        queue = self.queues[TX]
        queue.disarm()
        touched: dict[Link, None] = {}
        left = TURN_LEN
        for _ in range(TURN_PACKETS):
            if len(self._resets) >= RESETS_MAX:
                self._tx_waits = True
                break
            if (chain := queue.pop()) is None:
                if not queue.arm():
                    break
                continue
            left -= self._take(chain, touched)
            queue.push(chain.head, 0)
            if left <= 0:
                self.again(TX)
                break
        else:
            self.again(TX)
        for link in touched:
            self._settle(link)
        if queue.should_notify():
            self.interrupt.queue(TX)

    def _serve_event(self) -> None:
        queue = self.queues[EVENT]
        for _ in range(queue.state.size):
            if not self.state.reset_pending:
                break
            if (chain := queue.pop()) is None:
                if not queue.arm():
                    break
                continue
            event = spec.EVENT_FORMAT.pack(spec.VIRTIO_VSOCK_EVENT_TRANSPORT_RESET)
            fits = writable_len(chain) >= len(event)
            queue.push(chain.head, scatter(chain.writable, event) if fits else 0)
            self.state.reset_pending = not fits
            self.faults += not fits
        if queue.should_notify():
            self.interrupt.queue(EVENT)

    def _serve_rx(self) -> None:
        queue = self.queues[RX]
        if self._resets or self._ready:
            touched: dict[Link, None] = {}
            for _ in range(TURN_PACKETS):
                if (chain := queue.pop()) is None:
                    if not queue.arm():
                        break
                    continue
                room = writable_len(chain) - HEADER_LEN
                if room < 1:
                    self.faults += 1
                    queue.push(chain.head, 0)
                elif (packet := self._next_packet(room, touched)) is None:
                    queue.undo_pop()
                    break
                else:
                    queue.push(chain.head, scatter(chain.writable, packet))
            else:
                self.again(RX)
            for link in touched:  # once for all packets: a socket that was read until it was empty is watched as before
                if self._settle(link):
                    self.again(RX)
            if queue.should_notify():
                self.interrupt.queue(RX)
        if not self._resets and not self._ready:
            queue.disarm()  # buffers are of no interest before there is a packet
        if self._tx_waits and len(self._resets) < RESETS_MAX:
            self._tx_waits = False
            self.again(TX)

    # From the guest

    def _take(self, chain: Chain, touched: dict[Link, None]) -> int:
        """Take one packet and return its length; what it says cannot do more than end a connection."""
        there = readable_len(chain)
        if there < HEADER_LEN:
            self.faults += 1
            return HEADER_LEN
        header = Header._make(spec.HEADER_FORMAT.unpack(gather(chain.readable, HEADER_LEN)))
        payload: bytes | None = b""
        if header.op == spec.VIRTIO_VSOCK_OP_RW:
            fits = header.len <= min(there - HEADER_LEN, BUF_ALLOC)  # asked before anything is copied
            payload = gather(skip(chain.readable, HEADER_LEN), header.len) if fits else None
        self._dispatch(header, payload, touched)
        return HEADER_LEN + len(payload or b"")

    def _dispatch(self, header: Header, payload: bytes | None, touched: dict[Link, None]) -> None:
        if header.src_cid != self.state.cid:
            self.faults += 1  # nobody to answer to
            return
        ours = header.dst_cid == spec.HOST_CID and header.type == spec.VIRTIO_VSOCK_TYPE_STREAM
        link = self._links.get((header.dst_port, header.src_port)) if ours else None
        if link is not None:
            connection = link.connection
            if payload is None:
                self.faults += 1
                connection.abort()
            elif not connection.receive(header.op, header.flags, header.buf_alloc, header.fwd_cnt, payload):
                self.faults += 1
            if connection.phase is LINGERING:
                del self._links[header.dst_port, header.src_port]
                self._lingering.add(link)
            touched[link] = None
        elif header.op == spec.VIRTIO_VSOCK_OP_RST:
            pass
        elif not ours or header.op != spec.VIRTIO_VSOCK_OP_REQUEST or not self._requested(header):
            self._refuse(header)

    def _requested(self, header: Header) -> bool:
        """Connect the guest to who listens on the host; False when nobody does, or there are too many already."""
        if self.connections >= CONNECTIONS_MAX:
            return False
        try:
            stream = self._host.connect(header.dst_port)
        except HostError:
            return False
        self._add(Connection.asked_by_guest(header.dst_port, header.src_port, header.buf_alloc, header.fwd_cnt), stream)
        return True

    def _refuse(self, header: Header) -> None:
        self._resets.append(
            spec.HEADER_FORMAT.pack(
                header.dst_cid,
                header.src_cid,
                header.dst_port,
                header.src_port,
                0,
                header.type,
                spec.VIRTIO_VSOCK_OP_RST,
                0,
                0,
                0,
            )
        )

    # To the guest

    def _next_packet(self, room: int, touched: dict[Link, None]) -> bytes | None:
        """Return the next packet, with at most *room* bytes behind its header; None when there is none after all."""
        if self._resets:
            return self._resets.popleft()
        while self._ready:
            link = self._ready.popleft()
            link.queued = False
            connection, packet = link.connection, None
            if op := connection.due():
                packet = connection.header(self.state.cid, op)
            elif (
                link.has_data and (length := min(room, connection.credit, READ_MAX)) and (payload := link.read(length))
            ):
                packet = connection.header(self.state.cid, spec.VIRTIO_VSOCK_OP_RW, len(payload)) + payload
            touched[link] = None
            self._line_up(link)
            if packet is not None:
                return packet
        return None

    # From and to the host

    def _arrived(self, stream: HostStream, port: int) -> None:
        """A program of the host asks for *port* of the guest."""
        if not self.active or self.connections >= CONNECTIONS_MAX:
            stream.close()
            return
        while (self._next_port, port) in self._links:
            self._pass_port()
        connection = Connection.asked_by_host(self._next_port, port)
        self._pass_port()
        self._add(connection, stream)
        self.kick(RX)

    def _pass_port(self) -> None:
        self._next_port += 1
        if self._next_port >= _PORTS_END:
            self._next_port = _PORTS_END // 2

    def _add(self, connection: Connection, stream: HostStream) -> None:
        link = Link(connection, stream)
        self._links[connection.host_port, connection.guest_port] = link
        stream.bind(lambda readable, gone: self._event(link, readable=readable, gone=gone))
        self._settle(link)

    def _event(self, link: Link, *, readable: bool, gone: bool) -> None:
        link.news(readable=readable, gone=gone)
        link.flush()
        self._line_up(link)
        self.kick(RX)
        if self._settle(link):
            self.kick(RX)

    def _settle(self, link: Link) -> bool:
        """Do for *link* what can be done now, and have its socket watched for the rest; True when it lined up."""
        link.flush()
        link.watch()
        if link.connection.over:
            self._forget(link)
        return self._line_up(link)

    def _line_up(self, link: Link) -> bool:
        """Give *link* its turn on rx, if it may have a packet and does not wait for one already."""
        if link.queued or not link.wants_turn:
            return False
        link.queued = True
        self._ready.append(link)
        return True

    def _forget(self, link: Link) -> None:
        connection = link.connection
        self._lingering.discard(link)
        if self._links.get((connection.host_port, connection.guest_port)) is link:
            del self._links[connection.host_port, connection.guest_port]


def fresh_state(cid: int, uds: str) -> VirtioVsockState:
    """Return the state of a new machine's socket device. Raises ConfigError for a *cid* or a path that cannot be."""
    if not spec.GUEST_CID_MIN <= cid <= spec.GUEST_CID_MAX:
        raise ConfigError(f"vsock cid is {cid}, must be {spec.GUEST_CID_MIN} to {spec.GUEST_CID_MAX:#x}")
    if not uds.isprintable() or not 0 < len(uds) <= UDS_MAX:
        raise ConfigError(f"vsock uds is {uds!r}, must be a path of at most {UDS_MAX} characters")
    return VirtioVsockState(
        offered=virtio_spec.BASE_FEATURES | spec.VIRTIO_VSOCK_F_STREAM,
        queues=fresh_queues(VirtioVsock.queue_sizes),
        cid=cid,
        host=VsockHostState(uds=uds),
    )
