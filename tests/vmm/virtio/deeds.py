"""What can be done to a device without sense, as data: Hypothesis strategies for lists of deeds, which shrink to less.

A deed is a tuple with a method ``run``, which does it to a `tests.vmm.virtio.ordeal.Ordeal`.
"""

import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import strategies as st

from snapkit.units import MIB
from tests.vmm.virtio.driver import Driver
from tests.vmm.virtio.registers import COMMAND, ECAM, TABLE, PciRegisters
from tests.vmm.virtio.whole import CID

if TYPE_CHECKING:
    from tests.vmm.virtio.ordeal import Ordeal

RAM = [(0, 2 * MIB), (4096 * MIB, MIB)]
ENDS = [edge for gpa, length in RAM for edge in (gpa, gpa + length)]
RINGS, RING_AREA = 0x1_0000, 0x1_8000
SLOT, LENGTH_64 = 1, 1 << 64
QUEUES = {"virtio-block": 1, "virtio-net": 2, "virtio-vsock": 3, "virtio-rng": 1, "virtio-balloon": 5}
DEEDS = 24


# Values

NUMBERS = st.one_of(
    st.integers(0, 20),
    st.sampled_from([0x7F, 0x80, 0xFF, 0x100, 0x8000, 0xC000, 0xFFFF, 0x1_0000, 0xFFFF_FFF0, 0xFFFF_FFFF, 1 << 63]),
    st.integers(0, 63).map(lambda bit: 1 << bit),
    st.integers(0, LENGTH_64 - 1),
)
PLACES = st.one_of(
    st.tuples(st.sampled_from(ENDS), st.integers(-40, 8)).map(lambda at: sum(at) % LENGTH_64),
    st.tuples(st.sampled_from(ENDS), st.sampled_from([-0x1000, -0x100, -0x40, -0x10, -2])).map(
        lambda at: sum(at) % LENGTH_64
    ),
    st.integers(0, 15).map(lambda area: RINGS + area * RING_AREA),
    st.sampled_from([0xFEE0_0000, 0xC000_0000, ECAM, 0x40_0000_0000, 0xA_0000, LENGTH_64 - 16, LENGTH_64 - 1]),
    st.integers(0, 2 * MIB),
    st.integers(0, LENGTH_64 - 1),
)
LENGTHS = st.one_of(st.integers(0, 70), st.sampled_from([512, 4096, 0x1_0000, MIB, 2 * MIB, 0x7FFF_FFFF, 0xFFFF_FFFF]))
WIDTHS = st.one_of(st.sampled_from([1, 2, 4, 8]), st.integers(1, 8))
STATUS = st.one_of(st.sampled_from([0, 1, 3, 7, 11, 15, 0x4F, 0x8F]), st.integers(0, 255))


def sent(kind: str) -> st.SearchStrategy[bytes]:
    """Bytes that a device of *kind* might half understand."""
    if kind == "virtio-block":
        kinds = st.sampled_from([0, 1, 4, 8, 11, 13, 2, 0xFFFF_FFFF])
        sectors = st.sampled_from([0, 1, 255, 256, (1 << 55) - 1, (1 << 63) - 1, LENGTH_64 - 1])
        whole = st.builds(lambda kind, sector: struct.pack("<IIQ", kind, 0, sector), kinds, sectors)
        ranges = st.builds(
            lambda sector, count: struct.pack("<QII", sector, count % (1 << 32), count >> 40), sectors, NUMBERS
        )
        return st.one_of(whole, whole, ranges, st.binary(max_size=40))
    if kind == "virtio-vsock":
        small = st.one_of(st.sampled_from([0, 1, 7, 1024, 5000, 0xFFFF_FFFF]), st.integers(0, (1 << 32) - 1))
        return st.builds(
            lambda src, dst, a, b, length, type_, op, flags, alloc, count, rest: (
                struct.pack("<QQIIIHHIII", src, dst, a, b, length, type_, op, flags, alloc, count) + rest
            ),
            st.sampled_from([CID, CID, CID, 2, 0]), st.sampled_from([2, 2, 2, CID, 1]), st.sampled_from([7, 1024]),
            st.sampled_from([5000, 5001]), small, st.sampled_from([1, 1, 1, 2, 0]), st.integers(0, 9),
            st.integers(0, 3), small, small, st.binary(max_size=30),
        )  # fmt: skip
    if kind == "virtio-balloon":
        pfns = st.lists(
            st.one_of(st.integers(0, 800), st.sampled_from([0x10_0000, 0x10_00FF, 0x10_0100, 0xFFFF_FFFF])), max_size=40
        )
        stats = st.lists(st.tuples(st.integers(0, 20), NUMBERS), max_size=5)
        return st.one_of(
            pfns.map(lambda found: struct.pack(f"<{len(found)}I", *found)),
            stats.map(lambda found: b"".join(struct.pack("<HQ", *stat) for stat in found)),
            st.binary(max_size=40),
        )
    return st.one_of(st.binary(max_size=80), st.binary(max_size=30).map(lambda start: start + bytes(60)))


class Nothing(NamedTuple):
    """What deeds shrink to."""

    def run(self, run: "Ordeal") -> None:
        pass


class Access(NamedTuple):
    """One load or store, *offset* from where something is."""

    where: str
    offset: int
    length: int
    value: int | None

    def run(self, run: "Ordeal") -> None:
        gpa = run.place(self.where) + self.offset
        if self.value is None:
            run.machine.read(gpa, self.length)
        else:
            run.machine.write(gpa, self.length, self.value % (1 << 8 * self.length))


class Port(NamedTuple):
    """One access by CF8 and CFC."""

    latch: int
    offset: int
    length: int
    value: int | None

    def run(self, run: "Ordeal") -> None:
        run.machine.write_port(0xCF8, 4, self.latch % (1 << 32))
        if self.value is None:
            run.machine.read_port(0xCF8 + self.offset, self.length)
        else:
            run.machine.write_port(0xCF8 + self.offset, self.length, self.value % (1 << 8 * self.length))


class Status(NamedTuple):
    """Status writes in a row."""

    values: list[int]

    def run(self, run: "Ordeal") -> None:
        for value in self.values:
            run.registers.do(run.registers.step_status("", value))
            run.registers.status()


class Ram(NamedTuple):
    """Bytes that another CPU stores somewhere."""

    gpa: int
    payload: bytes

    def run(self, run: "Ordeal") -> None:
        if any(start <= self.gpa and self.gpa + len(self.payload) <= start + length for start, length in RAM):
            run.memory.write(self.gpa, self.payload)


class Place(NamedTuple):
    """Queue *queue* set up, wherever; *late* or not is the guest's affair."""

    queue: int
    size: int
    areas: tuple[int, int, int]

    def run(self, run: "Ordeal") -> None:
        driver = Driver(run.memory, RINGS, 4)
        driver.size = self.size
        driver.desc, driver.avail, driver.ring = self.areas
        for step in run.registers.queue_steps(self.queue, driver):
            run.registers.do(step)


class Ring(NamedTuple):
    """A word of a ring that is in use, changed: which of its areas, how far in."""

    queue: int
    area: int
    offset: int
    value: int

    def run(self, run: "Ordeal") -> None:
        queues = run.machine.device(run.kind).state.queues
        found = queues[self.queue % len(queues)]
        gpa = (found.desc, found.driver, found.device)[self.area] + self.offset
        Ram(gpa, (self.value & 0xFFFF).to_bytes(2, "little")).run(run)


class Start(NamedTuple):
    """A device brought up as it should be, with some of its features."""

    features: int
    size_shift: int

    def run(self, run: "Ordeal") -> None:
        run.start(self.features, self.size_shift)


class Chain(NamedTuple):
    """Buffers made available on a queue that works, and its doorbell: bytes, or places that may be anywhere."""

    queue: int
    items: list[bytes | int | tuple[int, int, bool]]
    times: int
    kicks: bool

    def run(self, run: "Ordeal") -> None:
        index = self.queue % QUEUES[run.kind]
        if index < len(run.drivers):
            driver = run.drivers[index]
            driver.room = driver.start
            for _ in range(self.times):
                if len(driver.free) < len(self.items) + 1:
                    driver.used()
                if self.items and len(driver.free) > len(self.items):
                    driver.add(*self.items)
            if self.kicks:
                run.registers.notify(index)


class Table(NamedTuple):
    """Descriptors written one by one, from the first on, and heads made available: links may go anywhere, in rings too."""

    queue: int
    descriptors: list[tuple[int, int, int, int]]
    heads: list[int]
    ahead: int

    def run(self, run: "Ordeal") -> None:
        index = self.queue % QUEUES[run.kind]
        if index >= len(run.drivers):
            return
        driver = run.drivers[index]
        for number, (gpa, length, flags, following) in enumerate(self.descriptors[: driver.size]):
            driver.describe(number, gpa, length, flags, following)
        for head in self.heads:
            driver.offer(head)
        driver.put16(driver.avail + 2, driver.next_avail + self.ahead)
        run.registers.notify(index)


class Notify(NamedTuple):
    """A doorbell, of a queue that may not be there."""

    queue: int

    def run(self, run: "Ordeal") -> None:
        run.registers.notify(self.queue)


class Move(NamedTuple):
    """The BAR's register written, in halves, with decoding as it may be."""

    halves: list[tuple[bool, int]]
    command: int | None

    def run(self, run: "Ordeal") -> None:
        at = ECAM + (SLOT << 15)
        for high, value in self.halves:
            run.machine.write(at + (0x14 if high else 0x10), 4, value % (1 << 32))
        if self.command is not None:
            run.machine.write(at + COMMAND, 2, self.command)


class Vector(NamedTuple):
    """An MSI-X entry, or the control word."""

    number: int
    field: int
    value: int

    def run(self, run: "Ordeal") -> None:
        if isinstance(run.registers, PciRegisters):
            if self.number > QUEUES[run.kind] + 1:
                run.registers.do(run.registers.step_msix(self.value & 0xFFFF))
            else:
                Access("device", TABLE + 16 * self.number + 4 * self.field, 4, self.value).run(run)


class Outside(NamedTuple):
    """What the world does: packets, callers, an operator, the disk's pace, a pause."""

    what: str
    number: int

    def run(self, run: "Ordeal") -> None:
        run.outside(self.what, self.number)


class Again(NamedTuple):
    """A snapshot, and the machine that is restored from it."""

    def run(self, run: "Ordeal") -> None:
        run.restore()


COMMON = [(0, 4), (4, 4), (8, 4), (0xC, 4), (0x10, 2), (0x14, 1), (0x16, 2), (0x18, 2), (0x1A, 2), (0x1C, 2), (0x3A, 2)]
COMMON += [(at, length) for at in (0x20, 0x28, 0x30) for length in (4, 8)] + [(at + 4, 4) for at in (0x20, 0x28, 0x30)]
SLOTS = [
    0x14,
    0x20,
    0x24,
    0x30,
    0x38,
    0x44,
    0x50,
    0x64,
    0x70,
    0x80,
    0x84,
    0x90,
    0x94,
    0xA0,
    0xA4,
    0xAC,
    0xC0,
    0x100,
    0x104,
]


def registers(transport: str) -> st.SearchStrategy[Any]:
    """Values written into registers that are there, at their own width."""
    known = COMMON if transport == "pci" else [(at, 4) for at in SLOTS]
    return st.builds(
        lambda at, value: Access("device", at[0], at[1], value), st.sampled_from(known), st.integers(0, 7) | NUMBERS
    )


def accesses(where: str, offsets: st.SearchStrategy[int]) -> st.SearchStrategy[Any]:
    return st.builds(Access, st.just(where), offsets, WIDTHS, st.none() | NUMBERS)


REGISTERS = st.one_of(st.integers(0, 0x40), st.integers(0, 0x100), st.sampled_from([0x2000, 0x4000, 0x6000, 0x8000, 0x800C, 0x4_8000, 0x7_FFFF, 0xFFF]), st.integers(0, 0x8_0000))  # fmt: skip
LATCHES = st.one_of(
    st.builds(lambda slot, at: 1 << 31 | slot << 11 | at, st.sampled_from([0, SLOT, 2, 31]), st.integers(0, 255)),
    NUMBERS,
)
BUFFERS = st.one_of(LENGTHS.filter(lambda length: length <= 4096), st.tuples(PLACES, LENGTHS, st.booleans()))


def deeds(kind: str, transport: str) -> st.SearchStrategy[list[Any]]:
    """Lists of what can be done to a device of *kind*."""
    queue = st.integers(0, QUEUES[kind])
    payload = sent(kind)
    good = st.builds(lambda out, room: [*out, *room], st.lists(payload, max_size=3), st.lists(BUFFERS, max_size=4))
    flags = st.sampled_from([0, 1, 1, 1, 2, 3, 3, 4, 5, 6])
    descriptor = st.tuples(PLACES, LENGTHS, flags, st.integers(0, 5) | st.sampled_from([15, 16, 255, 256, 0xFFFF]))
    heads = st.lists(st.integers(0, 5) | st.just(0xFFFF), max_size=4)
    ahead = st.sampled_from([0, 0, 0, 1, 2, 0x100, 0x8000, -1])
    deed = [
        accesses("device", REGISTERS),
        registers(transport),
        registers(transport).map(lambda deed: deed),
        st.builds(Table, queue, st.lists(descriptor, min_size=1, max_size=6), heads, ahead),
        st.builds(Status, st.lists(STATUS, max_size=5)),
        st.builds(Ram, PLACES, st.binary(min_size=1, max_size=40)),
        st.builds(Place, queue, st.sampled_from([0, 1, 2, 4, 256, 3, 512, 0x8000]), st.tuples(PLACES, PLACES, PLACES)),
        st.builds(Ring, queue, st.integers(0, 2), st.integers(0, 80), NUMBERS),
        st.builds(Start, st.integers(0, 3).map(lambda n: (0, LENGTH_64 - 1, 1 << 28, 1 << 29)[n]), st.integers(0, 6)),
        st.builds(Chain, queue, good, st.integers(1, 3), st.just(value=True)),
        st.builds(Chain, queue, st.lists(payload | BUFFERS, min_size=1, max_size=6), st.integers(1, 40), st.booleans()),
        st.builds(Notify, st.integers(0, 9) | st.sampled_from([0xFFFF])),
        st.builds(
            Outside, st.sampled_from(["packet", "caller", "operator", "work", "pause", "refusal"]), st.integers(0, 300)
        ),
        st.builds(Again),
    ]
    if transport == "pci":
        bars = st.sampled_from(
            [0x48_0000_0000, 0x40_0000_0000, 0xC000_0000, 0x7F_FFF8_0000, 0xEEB8_0000, LENGTH_64 - 1, 0]
        )
        half = st.builds(lambda base, high: (high, base >> 32 if high else base), bars, st.booleans())
        deed += [
            accesses("function", st.integers(0, 0x100)),
            accesses("ecam", st.integers(0, MIB + 8)),
            st.builds(Port, LATCHES, st.integers(0, 7), st.sampled_from([1, 2, 4]), st.none() | NUMBERS),
            st.builds(Move, st.lists(half, max_size=3), st.sampled_from([None, 0, 2, 6, 0xFFFF])),
            st.builds(Vector, st.integers(0, 8), st.integers(0, 3), NUMBERS | st.just(0xFEE0_0000)),
        ]
    # Always as many, or examples would stay short; what is not needed shrinks to nothing. Most begin by starting the device.
    begin = st.builds(Start, st.sampled_from([0, 1 << 28, 1 << 29, LENGTH_64 - 1]), st.integers(0, 6))
    useful = st.builds(Chain, queue, good, st.integers(1, 3), st.just(value=True))
    rest = st.lists(st.one_of(st.just(Nothing()), useful, useful, begin, *deed), min_size=DEEDS, max_size=DEEDS)
    return st.builds(lambda first, rest: [*first, *rest], st.lists(begin, max_size=1), rest)
