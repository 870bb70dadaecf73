"""One vsock stream between a port of the guest and one of the host, without I/O.

Virtual I/O Device (VIRTIO) 1.3, section 5.10.6. The device moves packets and the host end moves bytes; what a packet
means, which one has to be sent next and how many bytes either side may send is decided here.

    asked by the host     CONNECTING --RESPONSE--> OPEN
    asked by the guest                             OPEN (the RESPONSE is owed)
    the guest is through, or broke a rule                --> CLOSED (the RST is owed)
    RST by the guest, what it sent before still to be written: LINGERING --> CLOSED
    RST by the guest, else                                               --> CLOSED

What is *owed* is a set, not a queue, so however fast the guest asks and however slowly it takes its answers, a
connection holds BUF_ALLOC bytes for the host and nothing towards the guest.

Credit is checked against what was *told*: a guest may count on no more than the last packet it was given said, so
whether it broke the rule does not depend on how fast the host reads. The guest's own counters may come a little out of
order (Linux fills them in under one lock and queues the packet under another); an older `fwd_cnt` is ignored, one ahead
of what was sent breaks the connection.
"""

from collections.abc import Callable
from typing import Final, Self

from snapkit.state.spec.virtio_vsock import (
    HEADER_FORMAT,
    HOST_CID,
    SHUTDOWN_BOTH,
    VIRTIO_VSOCK_OP_CREDIT_REQUEST,
    VIRTIO_VSOCK_OP_CREDIT_UPDATE,
    VIRTIO_VSOCK_OP_REQUEST,
    VIRTIO_VSOCK_OP_RESPONSE,
    VIRTIO_VSOCK_OP_RST,
    VIRTIO_VSOCK_OP_RW,
    VIRTIO_VSOCK_OP_SHUTDOWN,
    VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE,
    VIRTIO_VSOCK_SHUTDOWN_F_SEND,
    VIRTIO_VSOCK_TYPE_STREAM,
)
from snapkit.units import GIB, KIB

BUF_ALLOC = 64 * KIB
"""Bytes that a connection holds for a host that does not read."""
UPDATE_LEN = BUF_ALLOC // 2
"""The guest is told of room for this much; less goes with the next packet that there is."""
PEER_ALLOC_MAX = GIB
"""What we believe of a guest's buffer, so that the 32-bit counters cannot lap each other."""

CONNECTING: Final = "connecting"
OPEN: Final = "open"
LINGERING: Final = "lingering"
CLOSED: Final = "closed"

_MASK = 0xFFFF_FFFF
_RECEIVE, _SEND = VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE, VIRTIO_VSOCK_SHUTDOWN_F_SEND
_ORDER = (
    VIRTIO_VSOCK_OP_RST,
    VIRTIO_VSOCK_OP_REQUEST,
    VIRTIO_VSOCK_OP_RESPONSE,
    VIRTIO_VSOCK_OP_SHUTDOWN,
    VIRTIO_VSOCK_OP_CREDIT_UPDATE,
    VIRTIO_VSOCK_OP_CREDIT_REQUEST,
)
"""In which order packets that are owed go."""


class Connection:
    """Ports, phase, counters, and the bytes that the host has yet to take."""

    __slots__ = (
        "_asked",
        "_ending",
        "_ending_told",
        "_forwarded",
        "_forwarded_told",
        "_guest_alloc",
        "_guest_forwarded",
        "_guest_shut",
        "_owed",
        "_received",
        "_sent",
        "_told_alloc",
        "_uncounted",
        "guest_port",
        "host_port",
        "outbound",
        "phase",
    )

    def __init__(self, host_port: int, guest_port: int, phase: str, owed: int) -> None:
        # Configuration
        self.host_port, self.guest_port = host_port, guest_port
        # From the guest to the host
        self.outbound = bytearray()
        """Bytes for the host, oldest first."""
        self._uncounted = 0  # how many of them are no bytes of the guest's
        self._received = self._forwarded = self._forwarded_told = 0
        self._told_alloc = 0  # nothing until a packet of ours said so
        # From the host to the guest
        self._guest_alloc = self._guest_forwarded = self._sent = 0
        self._asked = False  # for credit
        # The connection
        self.phase = phase
        self._owed = 1 << owed
        self._guest_shut = self._ending = self._ending_told = 0

    @classmethod
    def asked_by_host(cls, host_port: int, guest_port: int) -> Self:
        """Make one that the host wants: the guest is owed a REQUEST."""
        return cls(host_port, guest_port, CONNECTING, VIRTIO_VSOCK_OP_REQUEST)

    @classmethod
    def asked_by_guest(cls, host_port: int, guest_port: int, buf_alloc: int, fwd_cnt: int) -> Self:
        """Make one that the guest asked for and the host took: the guest is owed a RESPONSE."""
        made = cls(host_port, guest_port, OPEN, VIRTIO_VSOCK_OP_RESPONSE)
        if not made._take_credit(buf_alloc, fwd_cnt):
            made.abort()
        return made

    # What may be done now

    @property
    def credit(self) -> int:
        """How many bytes the guest has room for."""
        return max(0, self._guest_alloc - (self._sent - self._guest_forwarded & _MASK))

    @property
    def takes(self) -> bool:
        """Whether bytes of the host have a way to the guest, be there credit or not."""
        return self.phase is OPEN and not self._ending & _SEND and not self._guest_shut & _RECEIVE

    @property
    def closed(self) -> bool:
        """Whether the host's socket has no use any more."""
        return self.phase is CLOSED or self._ending == SHUTDOWN_BOTH

    @property
    def over(self) -> bool:
        """Whether nothing is left to do or to say."""
        return self.phase is CLOSED and not self._owed

    @property
    def guest_is_through(self) -> bool:
        """Whether the guest sends no more and all it sent has been taken."""
        return bool(self._guest_shut & _SEND) and not self.outbound

    @property
    def guest_is_deaf(self) -> bool:
        """Whether the guest receives no more."""
        return bool(self._guest_shut & _RECEIVE)

    def due(self) -> int:
        """Return the operation of the next packet, data aside; 0 when there is none."""
        owed = self._owed
        if self.phase is OPEN:
            if self._ending != self._ending_told:
                owed |= 1 << VIRTIO_VSOCK_OP_SHUTDOWN
            if (self._forwarded - self._forwarded_told & _MASK) >= UPDATE_LEN:
                owed |= 1 << VIRTIO_VSOCK_OP_CREDIT_UPDATE
        if owed:
            for op in _ORDER:
                if owed >> op & 1:
                    return op
        return 0

    # To the guest

    def header(self, guest_cid: int, op: int, length: int = 0) -> bytes:
        """Return the header of a packet that is put into the guest's hands now, with *length* bytes for an RW."""
        if op == VIRTIO_VSOCK_OP_RST:
            self._owed = 0
        else:
            # any packet tells the credit; a CREDIT_UPDATE beside it would say nothing new
            self._owed &= ~(1 << op | 1 << VIRTIO_VSOCK_OP_CREDIT_UPDATE)
        flags = 0
        if op == VIRTIO_VSOCK_OP_SHUTDOWN:
            flags = self._ending_told = self._ending
        self._sent = self._sent + length & _MASK
        self._told_alloc, self._forwarded_told = BUF_ALLOC, self._forwarded
        return HEADER_FORMAT.pack(
            HOST_CID,
            guest_cid,
            self.host_port,
            self.guest_port,
            length,
            VIRTIO_VSOCK_TYPE_STREAM,
            op,
            flags,
            BUF_ALLOC,
            self._forwarded,
        )

    def starve(self) -> None:
        """Note that the host has bytes and the guest no room for them: the guest is asked, once until it answers."""
        if not self._asked:
            self._asked = True
            self._owed |= 1 << VIRTIO_VSOCK_OP_CREDIT_REQUEST

    # From the guest

    def receive(self, op: int, flags: int, buf_alloc: int, fwd_cnt: int, payload: bytes) -> bool:
        """Take a packet of the guest's; False when it broke a rule, which ends the connection."""
        if self.phase is CLOSED:  # it does not know yet; once it does it owes us no answer, nor we one to it
            if op == VIRTIO_VSOCK_OP_RST:
                self._owed = 0
            return True
        step = _STEPS.get((self.phase, op))
        fine = step is not None and (op == VIRTIO_VSOCK_OP_RST or self._take_credit(buf_alloc, fwd_cnt))
        if step is None or not fine or not step(self, flags, payload):
            self.abort()
            return False
        return True

    def _take_credit(self, buf_alloc: int, fwd_cnt: int) -> bool:
        advance = fwd_cnt - self._guest_forwarded & _MASK
        if advance <= (self._sent - self._guest_forwarded & _MASK):
            self._guest_forwarded = fwd_cnt
        elif advance < 1 << 31:
            return False
        self._guest_alloc = min(buf_alloc, PEER_ALLOC_MAX)
        if self._asked and self.credit:
            self._asked = False
            self._owed &= ~(1 << VIRTIO_VSOCK_OP_CREDIT_REQUEST)
        return True

    def _accepted(self, _flags: int, _payload: bytes) -> bool:
        if self._owed >> VIRTIO_VSOCK_OP_REQUEST & 1:
            return False  # it has not even been asked
        self.phase = OPEN
        greeting = b"OK %d\n" % self.host_port
        self._uncounted = len(greeting)
        self.outbound += greeting
        return True

    def _data(self, _flags: int, payload: bytes) -> bool:
        length = len(payload)
        if self._guest_shut & _SEND or (self._received + length - self._forwarded_told & _MASK) > self._told_alloc:
            return False
        self._received = self._received + length & _MASK
        if self._ending & _RECEIVE:
            self._forwarded = self._forwarded + length & _MASK  # nobody is there to take it
        else:
            self.outbound += payload
        return True

    def _shutdown(self, flags: int, _payload: bytes) -> bool:
        self._guest_shut |= flags & SHUTDOWN_BOTH  # hints are permanent: later packets do not take them back
        self._close_when_through()
        return True

    def _credit_told(self, _flags: int, _payload: bytes) -> bool:
        return True

    def _credit_wanted(self, _flags: int, _payload: bytes) -> bool:
        self._owed |= 1 << VIRTIO_VSOCK_OP_CREDIT_UPDATE
        return True

    def _reset(self, _flags: int, _payload: bytes) -> bool:
        # Linux resets by itself when its close was not answered in 8 s; what it sent before is the host's all the same
        lingers = self._guest_shut & _SEND and self.outbound
        self.phase = LINGERING if lingers else CLOSED
        self._owed = 0
        return True

    # From the host

    def forwarded(self, length: int) -> None:
        """Note that the host took the first *length* bytes of `outbound`."""
        del self.outbound[:length]
        greeted = min(length, self._uncounted)
        self._uncounted -= greeted
        self._forwarded = self._forwarded + length - greeted & _MASK
        self._close_when_through()

    def host_ended(self) -> None:
        """Note that the host sends no more."""
        self._ending |= _SEND

    def host_gone(self) -> None:
        """Note that the host receives no more: what it has not taken is lost."""
        if self.phase is CONNECTING:
            self.abort()
            return
        self._ending |= _RECEIVE
        self.forwarded(len(self.outbound))

    def abort(self) -> None:
        """End the connection: the guest is owed an RST, unless it does not know of the connection or ended it itself."""
        known = self.phase in {CONNECTING, OPEN} and not self._owed >> VIRTIO_VSOCK_OP_REQUEST & 1
        if self.phase is not CLOSED:
            self._owed = 1 << VIRTIO_VSOCK_OP_RST if known else 0
        self.phase = CLOSED
        self.outbound.clear()

    def drop(self) -> None:
        """End the connection without a word: the driver that knew of it is gone."""
        self._owed = 0
        self.phase = CLOSED
        self.outbound.clear()

    def _close_when_through(self) -> None:
        if not self.outbound:
            if self.phase is LINGERING:
                self.phase = CLOSED
            elif self.phase is OPEN and self._guest_shut == SHUTDOWN_BOTH:
                self.abort()


_Step = Callable[[Connection, int, bytes], bool]
_STEPS: dict[tuple[str, int], _Step] = {
    (CONNECTING, VIRTIO_VSOCK_OP_RESPONSE): Connection._accepted,
    (CONNECTING, VIRTIO_VSOCK_OP_RST): Connection._reset,
    (OPEN, VIRTIO_VSOCK_OP_RW): Connection._data,
    (OPEN, VIRTIO_VSOCK_OP_SHUTDOWN): Connection._shutdown,
    (OPEN, VIRTIO_VSOCK_OP_CREDIT_UPDATE): Connection._credit_told,
    (OPEN, VIRTIO_VSOCK_OP_CREDIT_REQUEST): Connection._credit_wanted,
    (OPEN, VIRTIO_VSOCK_OP_RST): Connection._reset,
}
"""What a packet does in which phase. Any other breaks the connection, unless it is closed already."""
