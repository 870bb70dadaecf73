"""A split virtqueue, the device's side. Virtual I/O Device (VIRTIO) 1.3, section 2.7.

What the driver says is checked before it is used: rings, tables and buffers lie in guest RAM, indices and links inside
their tables, chains are no longer than the queue and hold less than 2^32 bytes. Anything else raises `QueueBroken`,
which the device base turns into DEVICE_NEEDS_RESET. The driver may write the rings at any time, so each value is read
once.

This is the data path of block and net, hence its shape. The rings are reached through typed views made by `start` and
dropped by `stop`, which end before guest RAM does: reading an index so costs 25 ns and a descriptor 60, by way of
`copy_out` 380 and 560. 16-bit items of such a view are loaded and stored whole, which the ring indices rely on.

Surprises:

- "store mine, then look at theirs" (2.7.7.2, 2.7.10) needs a full memory barrier, also on x86. An uncontended lock is one.
- `should_notify` covers every `push` since it was last asked: ask once after a batch. After a restore the first answer
  may be one interrupt too many, never one too few.
- a descriptor of length zero is legal and left out of the chain.
"""

import struct
import threading
from array import array
from typing import NamedTuple

from snapkit import host_memory
from snapkit.errors import ConfigError
from snapkit.state.spec import virtio as spec
from snapkit.state.virtio import QueueState
from snapkit.vmm.memory import GuestMemory

Span = tuple[int, int]
"""A piece of a buffer: where the monitor finds it, and its length, which is not zero."""

_NEXT, _WRITE, _INDIRECT = spec.VIRTQ_DESC_F_NEXT, spec.VIRTQ_DESC_F_WRITE, spec.VIRTQ_DESC_F_INDIRECT
_descriptor = struct.Struct("<QIHH").unpack_from
_tuple = tuple.__new__  # a NamedTuple's own constructor is a Python function and takes twice as long
_NO_BYTES = memoryview(b"")


class QueueBroken(Exception):
    """The driver broke the rules of its ring. Never leaves the device: `VirtioDevice` catches it."""


class Chain(NamedTuple):
    """A buffer that the driver made available. *head* goes back with `Queue.push`."""

    head: int
    readable: list[Span]
    writable: list[Span]


class Queue:
    """One queue over its State. Every method needs the machine's lock."""

    __slots__ = (
        "_avail",
        "_desc",
        "_event_idx",
        "_fence",
        "_indirect",
        "_memory",
        "_notify_all",
        "_regions",
        "_signalled",
        "_size",
        "_used",
        "_used_ring",
        "active",
        "state",
    )

    def __init__(self, state: QueueState, memory: GuestMemory) -> None:
        # Runtime glue
        self._memory = memory
        self._fence = threading.Lock()
        self._event_idx = self._indirect = False
        self._desc = self._avail = self._used = self._used_ring = _NO_BYTES
        self._regions: tuple[tuple[int, int, int], ...] = ()
        self._size = 1
        self._signalled = 0  # next_used when the driver was last considered for an interrupt
        self._notify_all = True
        self.active = False
        # Guest-visible state
        self.state = state

    # Lifecycle

    def start(self, *, event_idx: bool, indirect: bool) -> None:
        """Find the rings in guest RAM and serve from where the State says.

        Raises QueueBroken when the size, an alignment or a place of one of the three areas is not right.
        """
        state, size = self.state, self.state.size
        if not size or size & (size - 1) or size > state.max_size:
            raise QueueBroken(f"queue size {size}, must be a power of two <= {state.max_size}")
        avail_len, used_len = spec.avail_len(size), spec.used_len(size)
        desc = self._ring("descriptor table", state.desc, spec.desc_table_len(size), spec.DESC_ALIGN)
        avail = self._ring("available ring", state.driver, avail_len, spec.AVAIL_ALIGN)
        used = self._ring("used ring", state.device, used_len, spec.USED_ALIGN)
        self._desc = desc
        self._avail = avail.cast("H")  # flags, idx, ring[size], used_event
        self._used = used.cast("H")  # flags, idx, (id, len)[size], avail_event
        self._used_ring = used[: used_len - 2].cast("I")  # word 0 is flags and idx; element n is words 2n+1 and 2n+2
        self._regions = self._memory.largest_first
        self._size, self._event_idx, self._indirect = size, event_idx, indirect
        self._signalled, self._notify_all = state.next_used, True
        self.active = True

    def stop(self) -> None:
        """Let go of the rings. What was popped may still be pushed, which then does nothing."""
        self.active = False
        self._desc = self._avail = self._used = self._used_ring = _NO_BYTES
        self._regions = ()

    def reset(self) -> None:
        """Stop, and go back to how a fresh queue is."""
        self.stop()
        state = self.state
        state.size, state.ready = state.max_size, False
        state.desc = state.driver = state.device = 0
        state.next_avail = state.next_used = 0

    # Buffers

    def pop(self) -> Chain | None:
        """Take the next chain that the driver made available; None when there is none.

        Raises QueueBroken.
        """
        if not self.active:
            return None
        state, avail = self.state, self._avail
        next_avail = state.next_avail
        waiting = (avail[1] - next_avail) & 0xFFFF
        if not waiting:
            return None
        size = self._size
        if waiting > size:
            raise QueueBroken(f"available index is {waiting} ahead in a queue of {size}")
        head = index = avail[2 + (next_avail & (size - 1))]
        table: memoryview | bytes = self._desc
        limit = size
        low, high, delta = self._regions[0]
        readable: list[Span] = []
        writable: list[Span] = []
        add_readable, add_writable = readable.append, writable.append
        total = count = 0
        while True:
            if index >= limit:
                raise QueueBroken(f"descriptor {index}, in a table of {limit}")
            gpa, length, flags, index = _descriptor(table, index * 16)
            if flags & _INDIRECT:
                table, limit = self._indirect_table(gpa, length, flags, nested=table is not self._desc)
                index = 0
                continue
            count += 1
            if count > size:
                raise QueueBroken(f"chain from {head} is longer than the queue, {size}, or loops")
            if length:
                if low <= gpa and gpa + length <= high:  # the region that most of RAM is in, without a loop
                    gpa += delta
                else:
                    gpa = self._hva(gpa, length)
                total += length
                if flags & _WRITE:
                    add_writable((gpa, length))
                elif writable:
                    raise QueueBroken(f"chain from {head} has a readable buffer behind a writable one")
                else:
                    add_readable((gpa, length))
            if not flags & _NEXT:
                break
        if total >= spec.CHAIN_LEN_LIMIT:
            raise QueueBroken(f"chain from {head} has {total} bytes")
        state.next_avail = (next_avail + 1) & 0xFFFF
        return _tuple(Chain, (head, readable, writable))

    def pop_plain(self, wanted: int, most: int, shortest: int, vector: "array[int]") -> list[tuple[int, int]]:
        """Take chains of one proper writable descriptor each, until they hold *wanted* bytes or are *most*.

        Stops before the first that is another kind, or shorter than *shortest*, which is left to `pop`. Returns head and
        length of each, and appends address and length of its buffer to *vector*: 0.6 us a chain, by `pop` 2 us.
        """
        state, avail, size, desc = self.state, self._avail, self._size, self._desc
        if not self.active:
            return []
        next_avail = state.next_avail
        waiting = (avail[1] - next_avail) & 0xFFFF
        if waiting > size:
            return []
        regions, mask = self._regions, size - 1
        most = min(most, waiting)
        taken: list[tuple[int, int]] = []
        room = count = 0
        while room < wanted and count < most:
            head = avail[2 + ((next_avail + count) & mask)]
            if head >= size:
                break
            gpa, length, flags, _ = _descriptor(desc, head * spec.DESC_LEN)
            if flags != _WRITE or length < shortest:
                break
            for first, last, delta in regions:
                if first <= gpa and gpa + length <= last:
                    vector.append(gpa + delta)
                    break
            else:
                break
            vector.append(length)
            taken.append((head, length))
            room += length
            count += 1
        state.next_avail = (next_avail + count) & 0xFFFF
        return taken

    def undo_pop(self, count: int = 1) -> None:
        """Give the last *count* chains back, unserved: they are popped again."""
        self.state.next_avail = (self.state.next_avail - count) & 0xFFFF

    def push(self, head: int, written: int) -> None:
        """Return the chain *head* to the driver, with *written* bytes in its writable part."""
        if not self.active:
            return
        state, ring = self.state, self._used_ring
        next_used = state.next_used
        at = 2 * (next_used & (self._size - 1)) + 1
        ring[at] = head
        ring[at + 1] = written
        state.next_used = self._used[1] = (next_used + 1) & 0xFFFF

    def push_together(self, used: list[tuple[int, int]]) -> None:
        """Return chains as `push` does, all visible at once: the driver looks for the others when it finds the first."""
        if not self.active:
            return
        state, ring, mask = self.state, self._used_ring, self._size - 1
        next_used = state.next_used
        for head, written in used:
            at = 2 * (next_used & mask) + 1
            ring[at] = head
            ring[at + 1] = written
            next_used += 1
        state.next_used = self._used[1] = next_used & 0xFFFF

    # Notifications

    def should_notify(self) -> bool:
        """Return whether the driver wants an interrupt for what was pushed since this was last asked (2.7.7, 2.7.10)."""
        new = self.state.next_used
        pushed = (new - self._signalled) & 0xFFFF
        if not pushed or not self.active:
            return False
        self._signalled = new
        with self._fence:  # the index is stored before the driver's wish is loaded
            pass
        if not self._event_idx:
            return not self._avail[0] & spec.VIRTQ_AVAIL_F_NO_INTERRUPT
        if self._notify_all:
            self._notify_all = False
            return True
        # Its used_event is among the entries just pushed.
        return (new - self._avail[2 + self._size] - 1) & 0xFFFF < pushed

    def arm(self) -> bool:
        """Ask for a notification of the next chain; True when one is there already and `pop` has to go on."""
        if not self.active:
            return False
        next_avail = self.state.next_avail
        if self._event_idx:
            self._used[2 + 4 * self._size] = next_avail
        else:
            self._used[0] = 0
        with self._fence:  # the wish is stored before the driver's index is loaded
            pass
        return bool(self._avail[1] != next_avail)

    def idle(self) -> bool:
        """Return whether no chain waits and `arm` has told the driver to notify of the next: nothing is to be done.

        It only looks. What is served instead is written to, and each ring's first write after a restore copies a page.
        """
        next_avail = self.state.next_avail
        if not self.active or self._avail[1] != next_avail:
            return not self.active
        return bool(self._used[2 + 4 * self._size] == next_avail if self._event_idx else not self._used[0])

    def disarm(self) -> None:
        """Ask for no notifications while chains are being popped anyway. With EVENT_IDX an old wish says the same."""
        if not self._event_idx and self.active:
            self._used[0] = spec.VIRTQ_USED_F_NO_NOTIFY

    # Helpers

    def _ring(self, what: str, gpa: int, length: int, alignment: int) -> memoryview:
        if gpa % alignment:
            raise QueueBroken(f"{what} at {gpa:#x}, must be aligned to {alignment}")
        try:
            return self._memory.span(gpa, length)
        except ConfigError as error:
            raise QueueBroken(f"{what}: {error}") from error

    def _indirect_table(self, gpa: int, length: int, flags: int, *, nested: bool) -> tuple[bytes, int]:
        # 2.7.5.3. Copied, so that what is checked is what is used.
        if not self._indirect or nested:
            raise QueueBroken("indirect descriptor inside an indirect table" if nested else "indirect not negotiated")
        if flags & _NEXT:
            raise QueueBroken("indirect descriptor with a next one")
        limit, rest = divmod(length, 16)
        if rest or not 0 < limit <= self._size:
            raise QueueBroken(f"indirect table of {length} bytes, must be 1 to {self._size} descriptors")
        return host_memory.copy_out(self._hva(gpa, length), length), limit

    def _hva(self, gpa: int, length: int) -> int:
        for low, high, delta in self._regions:
            if low <= gpa and gpa + length <= high:
                return gpa + delta
        raise QueueBroken(f"buffer {gpa:#x}..{gpa + length:#x} is outside RAM")


# Spans


def spans_len(spans: list[Span]) -> int:
    """Return how many bytes *spans* hold."""
    return sum([length for _, length in spans])


def readable_len(chain: Chain) -> int:
    """Return how many bytes the driver gives with *chain*."""
    return spans_len(chain.readable)


def writable_len(chain: Chain) -> int:
    """Return how many bytes the driver takes with *chain*."""
    return spans_len(chain.writable)


def skip(spans: list[Span], count: int) -> list[Span]:
    """Return *spans* without their first *count* bytes."""
    for at, (hva, length) in enumerate(spans):
        if count < length:
            return [(hva + count, length - count), *spans[at + 1 :]] if count else spans[at:]
        count -= length
    return []


def take(spans: list[Span], count: int) -> list[Span]:
    """Return the first *count* bytes of *spans*, or all of them when they hold less."""
    taken: list[Span] = []
    for hva, length in spans:
        if length >= count:
            if count:
                taken.append((hva, count))
            break
        taken.append((hva, length))
        count -= length
    return taken


def gather(spans: list[Span], count: int) -> bytes:
    """Copy the first *count* bytes out of *spans*, or all when they hold less."""
    if spans and spans[0][1] >= count:
        return host_memory.copy_out(spans[0][0], count)
    return b"".join([host_memory.copy_out(hva, length) for hva, length in take(spans, count)])


def scatter(spans: list[Span], payload: bytes | bytearray | memoryview) -> int:
    """Copy *payload* into *spans* and return how many bytes had room."""
    count = len(payload)
    if spans and spans[0][1] >= count:
        host_memory.copy_in(spans[0][0], payload)
        return count
    done = 0
    rest = memoryview(payload)
    for hva, length in spans:
        piece = rest[done : done + length]
        if not piece:
            break
        host_memory.copy_in(hva, piece)
        done += len(piece)
    return done
