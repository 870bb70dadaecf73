"""Receive chains of a network card that are taken from the ring and not used yet: VIRTIO 1.3, section 5.1.6.3 and 5.1.6.4.

They are one vector of pieces for readv(2), which packets use up from its front. The vector's last piece is a byte that
belongs to no chain: a packet that reaches it did not fit.

With MRG_RXBUF (`merges`) a packet may fill several chains, and as many are looked at ahead as the longest packet needs;
without, a packet has one chain and so one is looked at.
"""

from array import array
from collections import deque

from snapkit import host_net
from snapkit.state.spec.virtio_net import ETHERNET_LEN, HDR_LEN, HDR_NUM_BUFFERS
from snapkit.vmm.virtio.queue import Queue, Span, spans_len

_SPANS_MAX = host_net.IOV_MAX - 1
_REFUSED_MAX = 64  # of one look: a driver that adds useless chains without end is served by turns


class RxChains:
    """Chains in the order of the ring, which is the order in which they are used or given back."""

    def __init__(self) -> None:
        self._spare_byte = array("B", [0])
        self._spare: Span = (self._spare_byte.buffer_info()[0], 1)
        self.refused = 0
        """Chains that no packet could ever fill and that went back empty."""
        self.begin(merges=False, longest=0)

    def begin(self, *, merges: bool, longest: int) -> None:
        """Start for a driver that lets packets have several chains or not; none is longer than *longest*."""
        self._shortest = HDR_LEN if merges else HDR_LEN + ETHERNET_LEN
        self.need = longest if merges else 1
        self.clear()

    def clear(self) -> None:
        """Forget the chains."""
        self._chains: deque[tuple[int, int, int]] = deque()  # head, length, number of pieces
        self._pieces = 0
        self.room = 0
        self.vector = array("Q", self._spare)

    def give_back(self, queue: Queue) -> None:
        """Return the chains to the available ring, as if nobody had looked at them."""
        if self._chains:
            queue.undo_pop(len(self._chains))
            self.clear()

    def look(self, queue: Queue) -> bool | None:
        """Take chains until they have room for any packet.

        True when they do, or when the driver can give no more; False when it has to add some first, of which it will
        tell; None when this took long enough for now.
        """
        refused = 0
        self._take_plain(queue)
        while self.room < self.need:
            chain = queue.pop()
            if chain is None:
                if queue.arm():
                    continue
                return len(self._chains) >= queue.state.size or self._pieces >= queue.state.size
            head, readable, spans = chain
            length = spans_len(spans)
            if readable or length < self._shortest or len(spans) > _SPANS_MAX:
                if self._chains:  # the ring's order has to stay: it is refused in its turn
                    queue.undo_pop()
                    return True
                queue.push(head, 0)
                self.refused += 1
                refused += 1
                if refused == _REFUSED_MAX:
                    return None
            elif self._pieces + len(spans) > _SPANS_MAX:
                queue.undo_pop()
                return True
            else:
                self._add(head, length, spans)
        return True

    def deliver(self, queue: Queue, length: int, *, clear_flags: bool) -> int:
        """Return the chains that a packet of *length* bytes, its header included, fills; the number of them.

        *clear_flags* blanks the header's flags, which a driver without GUEST_CSUM must not see (5.1.6.4.1).
        """
        vector = self.vector
        if clear_flags:
            host_net.put8(vector[0], 0)
        chains = self._chains
        used: list[tuple[int, int]] = []
        pieces = 0
        while length > 0:
            head, room, count = chains.popleft()
            used.append((head, min(length, room)))
            length -= room
            self.room -= room
            pieces += count
        if vector[1] >= HDR_LEN:
            host_net.put16(vector[0] + HDR_NUM_BUFFERS, len(used))
        else:
            host_net.put8(self._place(HDR_NUM_BUFFERS), len(used) & 0xFF)
            host_net.put8(self._place(HDR_NUM_BUFFERS + 1), len(used) >> 8)
        del vector[: 2 * pieces]
        self._pieces -= pieces
        queue.push_together(used)
        return len(used)

    def _take_plain(self, queue: Queue) -> None:
        """Take chains while they are one proper descriptor each, up to the first that is not, which is left to `pop`.

        That is what Linux gives with MRG_RXBUF, 17 to 43 for a long packet; each costs 0.6 us here and 2 us by `pop`.
        """
        vector = self.vector
        del vector[-2:]
        taken = queue.pop_plain(self.need - self.room, _SPANS_MAX - self._pieces, self._shortest, vector)
        vector.extend(self._spare)
        for head, length in taken:
            self._chains.append((head, length, 1))
            self.room += length
        self._pieces += len(taken)

    def _add(self, head: int, length: int, spans: list[Span]) -> None:
        self._chains.append((head, length, len(spans)))
        vector = self.vector
        del vector[-2:]
        for span in spans:
            vector.extend(span)
        vector.extend(self._spare)
        self.room += length
        self._pieces += len(spans)

    def _place(self, offset: int) -> int:
        """Return where byte *offset* of the next packet lies."""
        vector, at = self.vector, 0
        while offset >= vector[at + 1]:
            offset -= vector[at + 1]
            at += 2
        return vector[at] + offset
