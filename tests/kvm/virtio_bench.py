"""A virtio device on either transport, driven by a real guest: registers by its instructions, rings by the test.

    with bench_of("pci", tmp_path, disk(path)) as bench:
        (queue,) = bench.start()
        head = queue.add(...)
        bench.notify(0)
        bench.wait(0)              # the guest halts until the interrupt of queue 0 has come
        assert queue.used() == ...

The guest's RAM is reached through whichever machine there is: drivers go on after a snapshot as if nothing had been.
"""

import copy
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any, cast

from snapkit import host
from snapkit.units import MIB
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.parts.fresh import Asked, Transport
from tests.kvm.harness import PATIENCE_S
from tests.kvm.poker import Poker
from tests.vmm.virtio.driver import Driver
from tests.vmm.virtio.registers import MmioRegisters, PciRegisters, Registers

TRANSPORTS: tuple[Transport, ...] = ("pci", "mmio")
FIRST_VECTOR, LINE_VECTOR = 0x40, 0x50
MMIO_TOP, MMIO_LEN = 0xEEC0_0000, 0x1000
FIRST_GSI = 6  # the generation id has the first legacy one
RINGS, AREA_LEN = 0x18_0000, 0x1_0000
QUEUES = {
    "virtio-block": (256,),
    "virtio-rng": (256,),
    "virtio-balloon": (256, 256, 16, 64, 64),
    "virtio-vsock": (256, 256, 64),
}
QUEUE_SIZE = 16
RAM_LEN = 4 * MIB
IN, OUT, FLUSH, GET_ID = 0, 1, 4, 8
F_FLUSH = 1 << 9
SECTORS = 64
CONTENT = random.Random(5).randbytes(SECTORS * 512)
"""What the fixture *image* holds."""


def sector(number: int, count: int = 1) -> bytes:
    """*count* sectors of CONTENT."""
    return CONTENT[512 * number : 512 * (number + count)]


def disk(path: PathLike[str], **values: Any) -> Asked:
    """A disk of the image *path*."""
    return Asked("virtio-block", "root", {"path": str(path), **values})


class _Guest:
    """The poker's accesses, as a driver asks for them."""

    def __init__(self, poker: Poker) -> None:
        self._poker = poker

    def read(self, gpa: int, length: int) -> int:
        return self._poker.read(length, gpa)

    def write(self, gpa: int, length: int, value: int) -> None:
        self._poker.write(length, gpa, value)


class _Ram:
    """The memory of the machine of now."""

    def __init__(self, poker: Poker) -> None:
        self._poker = poker

    @property
    def now(self) -> GuestMemory:
        memory = self._poker.rig.machine._memory
        assert memory is not None
        return memory

    def read(self, gpa: int, length: int) -> bytes:
        return self.now.read(gpa, length)

    def write(self, gpa: int, payload: bytes) -> None:
        self.now.write(gpa, payload)


class Bench:
    """One device of a poker's machine, the only one or number *number*."""

    def __init__(self, poker: Poker, asked: Asked, transport: Transport, *, number: int = 0) -> None:
        self.poker, self.asked, self.transport = poker, asked, transport
        self._memory = _Ram(poker)
        self._number = number
        self.sizes = QUEUES[asked.kind]
        self.registers: Registers
        if transport == "pci":
            self.registers = PciRegisters(
                _Guest(poker), number + 1, len(self.sizes), first_vector=FIRST_VECTOR + 0x10 * number
            )
        else:
            self.base = MMIO_TOP - MMIO_LEN * (number + 1)
            self.registers = MmioRegisters(_Guest(poker), self.base, len(self.sizes))

    # The machine

    @property
    def memory(self) -> GuestMemory:
        """RAM of the machine of now."""
        return self._memory.now

    @property
    def device(self) -> Any:
        """The device of the machine of now."""
        return self.poker.part(self.asked.kind, self.asked.id).device

    def again(self) -> None:
        """Save, restore, go on."""
        self.poker.snapshot_and_restore()

    # The driver

    def drivers(self, *, event_idx: bool = False, indirect: bool = False) -> list[Driver]:
        """Rings for every queue, cleared."""
        area = AREA_LEN
        return [
            Driver(
                cast("GuestMemory", self._memory),
                RINGS + (8 * self._number + index) * area,
                min(size, QUEUE_SIZE),
                area_len=area,
                event_idx=event_idx,
                indirect=indirect,
            )
            for index, size in enumerate(self.sizes)
        ]

    def adopt(self, driver: Driver) -> Driver:
        """Return *driver* as it goes on in this machine, a clone of the one that it was in."""
        mine = copy.copy(driver)
        mine.memory = cast("GuestMemory", self._memory)
        mine.free, mine.chains = list(driver.free), dict(driver.chains)
        return mine

    def listen(self) -> None:
        """Have interrupts of the level line counted and acknowledged; messages need nothing."""
        if self.transport == "mmio":
            self.poker.acknowledge(LINE_VECTOR, self.base + 0x60, self.base + 0x64)
            self.poker.route_line(FIRST_GSI + self._number, LINE_VECTOR)

    def start(self, features: int = 0, *, event_idx: bool = False, indirect: bool = False) -> list[Driver]:
        """Bring the device up with all of its queues."""
        self.listen()
        drivers = self.drivers(event_idx=event_idx, indirect=indirect)
        self.registers.start(drivers, features)
        assert self.registers.status() == 15
        return drivers

    def notify(self, index: int) -> None:
        self.registers.notify(index)

    def vector(self, index: int) -> int:
        """Where the interrupts of queue *index* come."""
        return FIRST_VECTOR + 0x10 * self._number + index + 1 if self.transport == "pci" else LINE_VECTOR

    def wait(self, index: int, count: int = 1) -> None:
        """Halt until *count* interrupts of queue *index* have come; forget them."""
        self.poker.wait_vector(self.vector(index), count)
        self.poker.forget_counts()

    def until(self, done: Callable[[], bool], what: str) -> None:
        """Let the loop go on until *done*."""
        deadline_ns = host.monotonic_ns() + int(PATIENCE_S * 1e9)
        while not done():
            assert host.monotonic_ns() < deadline_ns, f"{what} never came"
            self.poker.count(self.vector(0))

    # Block

    def ask(self, queue: Driver, kind: int, sector: int, *buffers: bytes | int) -> bytes:
        """One request, its interrupt waited for; returns data and status."""
        head = queue.add(struct.pack("<IIQ", kind, 0, sector), *buffers, 1)
        self.notify(0)
        self.wait(0)
        assert [found for found, _ in queue.used()] == [head]
        return queue.answer(head)


@contextmanager
def bench_of(
    transport: Transport, folder: PathLike[str], asked: Asked, *more: Asked, memory: int = RAM_LEN
) -> Iterator[Bench]:
    """A running machine with the device *asked* and *more*."""
    with Poker(folder, asked, *more, transport=transport, memory=memory) as poker:
        yield Bench(poker, asked, transport)


class _Blank:
    """A guest of whom only the names of steps are asked."""

    def read(self, _gpa: int, _length: int) -> int:
        return 0x11

    def write(self, _gpa: int, _length: int, _value: int) -> None:
        raise AssertionError("nothing is written")


def step_names(transport: Transport) -> list[str]:
    """Name every register write that brings up a device of one queue."""
    registers = PciRegisters(_Blank(), 1, 1, bar=0) if transport == "pci" else MmioRegisters(_Blank(), 0, 1)
    memory = GuestMemory([(0, MIB)])
    names = [step.name for step in registers.steps([Driver(memory, 0, 2)])]
    memory.close()
    return names
