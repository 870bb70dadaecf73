"""The other side of a virtqueue, for tests: a small driver that lays rings into guest RAM and reads what comes back.

memory = GuestMemory([(0, MIB)])
device = ...                              # any VirtioDevice
seen, (requests,) = drive(device, memory) # features, rings, DRIVER_OK; one Driver a queue
head = requests.add(b"header", 512, 1)    # bytes are for the device to read, a number is room for it to write
requests.kick()
assert requests.used() == [(head, 513)]
assert requests.answer(head)[:512] == ...
assert seen.queues == [0]
"""

import struct
from collections.abc import Callable
from functools import partial
from typing import Any

from snapkit.state.virtio import QueueState
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.device import VirtioDevice

# Section 2.7, declared again so that a slip in the monitor's own table cannot hide.
NEXT, WRITE, INDIRECT = 1, 2, 4
EVENT_IDX, INDIRECT_DESC, VERSION_1 = 1 << 29, 1 << 28, 1 << 32
AREA_LEN = 0x10_0000
"""How far apart `drive` puts the areas of two queues."""
Buffer = bytes | int | tuple[int, int, bool]
"""Bytes to read, a length to write into, or (gpa, length, writable) as it is."""


def align(value: int, to: int) -> int:
    return (value + to - 1) & -to


class Interrupts:
    """What the device told its driver."""

    def __init__(self) -> None:
        self.queues: list[int] = []
        self.configs = 0
        self.resets = 0
        self.again: list[int] = []

    def queue(self, index: int) -> None:
        self.queues.append(index)

    def config(self) -> None:
        self.configs += 1

    def needs_reset(self) -> None:
        self.resets += 1


class Driver:
    """One queue: rings from *base* on, then room for tables and buffers up to *base* + *area_len*."""

    def __init__(
        self,
        memory: GuestMemory,
        base: int,
        size: int,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        area_len: int = AREA_LEN,
        kick: Callable[[], None] = lambda: None,
    ) -> None:
        self.memory, self.size, self.event_idx, self.indirect, self.kick = memory, size, event_idx, indirect, kick
        self.desc = align(base, 16)
        self.avail = self.desc + 16 * size
        self.ring = align(self.avail + 6 + 2 * size, 4)
        self.start = align(self.ring + 6 + 8 * size, 64)
        self.end = base + area_len
        self.fresh()

    def fresh(self) -> None:
        """Begin anew, with cleared rings."""
        self.memory.write(self.desc, bytes(self.start - self.desc))
        self.free = list(range(self.size))
        self.next_avail = self.last_used = self.kicked_at = 0
        self.room = self.start
        self.chains: dict[int, tuple[list[int], list[tuple[int, int]]]] = {}
        if self.event_idx:
            self.want_interrupt()

    def give(self, queue: QueueState) -> None:
        """Tell the device where the rings are, as a transport would."""
        queue.size, queue.desc, queue.driver, queue.device = self.size, self.desc, self.avail, self.ring
        queue.ready = True

    # Raw access

    def u16(self, gpa: int) -> int:
        return int.from_bytes(self.memory.read(gpa, 2), "little")

    def put16(self, gpa: int, value: int) -> None:
        self.memory.write(gpa, (value & 0xFFFF).to_bytes(2, "little"))

    def describe(self, index: int, gpa: int, length: int, flags: int, following: int, *, table: int | None = None):
        """Write descriptor *index*, of the queue's table or of the one at *table*."""
        at = (self.desc if table is None else table) + 16 * index
        self.memory.write(at, struct.pack("<QIHH", gpa, length, flags, following))

    def offer(self, head: int) -> None:
        """Make the chain from *head* available."""
        self.put16(self.avail + 4 + 2 * (self.next_avail % self.size), head)
        self.next_avail = (self.next_avail + 1) & 0xFFFF
        self.put16(self.avail + 2, self.next_avail)

    @property
    def flags(self) -> int:
        """What the device wrote into the used ring's flags."""
        return self.u16(self.ring)

    @property
    def avail_event(self) -> int:
        return self.u16(self.ring + 4 + 8 * self.size)

    @property
    def used_event(self) -> int:
        return self.u16(self.avail + 4 + 2 * self.size)

    # As a driver does it

    def place(self, length: int) -> int:
        """Return room for *length* bytes; from the start again when there is none left."""
        if self.room + length > self.end:
            self.room = self.start
        at = self.room
        self.room = align(at + length, 16)
        assert self.room <= self.end, "the driver's area is too small"
        return at

    def add(self, *buffers: Buffer) -> int:
        """Make a chain of *buffers* available and return its head."""
        items = [self._item(buffer) for buffer in buffers]
        writable = [(gpa, length) for gpa, length, flags in items if flags]
        if self.indirect:
            table = self.place(16 * len(items))
            self._link(items, list(range(len(items))), table)
            used = [self.free.pop(0)]
            self.describe(used[0], table, 16 * len(items), INDIRECT, 0)
        else:
            used = [self.free.pop(0) for _ in items]
            self._link(items, used, None)
        self.chains[used[0]] = used, writable
        self.offer(used[0])
        return used[0]

    def used(self) -> list[tuple[int, int]]:
        """Take what the device returned: (head, bytes written) each. With EVENT_IDX, wish to hear of the next."""
        found = []
        while self.last_used != self.u16(self.ring + 2):
            at = self.ring + 4 + 8 * (self.last_used % self.size)
            head, written = struct.unpack("<II", self.memory.read(at, 8))
            found.append((head, written))
            if head in self.chains:
                self.free += self.chains[head][0]
            self.last_used = (self.last_used + 1) & 0xFFFF
        if self.event_idx:
            self.want_interrupt()
        return found

    def answer(self, head: int) -> bytes:
        """Return what stands in the writable buffers of the chain that was added as *head*."""
        return b"".join(self.memory.read(gpa, length) for gpa, length in self.chains[head][1])

    def want_interrupt(self, after: int = 0) -> None:
        """With EVENT_IDX: wish for an interrupt once *after* more than the next chain were used."""
        self.put16(self.avail + 4 + 2 * self.size, self.last_used + after)

    def must_kick(self) -> bool:
        """Whether the device wants to hear of what was added since this was last asked."""
        new, old = self.next_avail, self.kicked_at
        self.kicked_at = new
        if self.event_idx:
            return (new - self.avail_event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self.flags & 1

    def _item(self, buffer: Buffer) -> tuple[int, int, int]:
        if isinstance(buffer, tuple):
            return buffer[0], buffer[1], WRITE if buffer[2] else 0
        if isinstance(buffer, int):
            return self.place(buffer), buffer, WRITE
        at = self.place(len(buffer))
        self.memory.write(at, buffer)
        return at, len(buffer), 0

    def _link(self, items: list[tuple[int, int, int]], indices: list[int], table: int | None) -> None:
        for index, following, (gpa, length, flags) in zip(indices, [*indices[1:], None], items, strict=True):
            more = 0 if following is None else NEXT
            self.describe(index, gpa, length, flags | more, following or 0, table=table)


def drive(
    device: VirtioDevice[Any],
    memory: GuestMemory,
    *,
    features: int = 0,
    event_idx: bool = False,
    indirect: bool = False,
    base: int = 0x1000,
    area_len: int = AREA_LEN,
    sizes: dict[int, int] | None = None,
) -> tuple[Interrupts, list[Driver]]:
    """Do what transport and driver do until DRIVER_OK, with *features* (as far as offered) on top of VERSION_1.

    *sizes* picks sizes below the maximum, by queue. RAM needs *area_len* bytes a queue from *base* on.
    """
    seen = Interrupts()
    device.bind(seen, seen.again.append)
    wanted = features | VERSION_1 | (EVENT_IDX if event_idx else 0) | (INDIRECT_DESC if indirect else 0)
    device.state.acked = wanted & device.state.offered
    drivers = []
    for index, queue in enumerate(device.state.queues):
        size = (sizes or {}).get(index, queue.max_size)
        driver = Driver(
            memory,
            base + index * area_len,
            size,
            event_idx=event_idx,
            indirect=indirect,
            area_len=area_len,
            kick=partial(device.kick, index),
        )
        driver.give(queue)
        drivers.append(driver)
    device.activate()
    return seen, drivers
