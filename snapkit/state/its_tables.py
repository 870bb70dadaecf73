"""The tables of an interrupt translation service (ITS), as KVM leaves them in guest memory, read as plain values.

A device writes an event's number; the ITS makes of (device, event) an LPI and a collection, of the collection a CPU. KVM
keeps this in the kernel, and writes it to the memory that the guest gave to the ITS when it is told to
(KVM_DEV_ARM_ITS_SAVE_TABLES; pending bits by KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES). `decode` reads it as KVM does for
KVM_DEV_ARM_ITS_RESTORE_TABLES, entry by entry, and stops where KVM refuses: the fault is part of what it returns.
Layout: `snapkit.state.spec.its`. What newer kernels refuse, all of them do here ("KVM: arm64: vgic: Add more checks when
restoring ITS tables", Linux 5.19; event numbers of more bits than the ITS has).

Surprises:

- KVM looks for the first entry one by one, and follows `next` from there on. So an entry in front of the first that it
  wrote itself counts as well: one that the guest unmapped after an earlier save (before "KVM: arm64: vgic-its: Clear DTE
  when MAPD unmaps a device" and its sibling for events, Linux 6.13), or that the guest wrote there, who must not.
- KVM reads no table as a whole, so that a table which ends outside of RAM is good as long as no entry there is looked at.
- An LPI may have several events.

Memory is whatever a file holds, and tables may lie over each other: what `decode` reads is bounded (`WORDS_MAX`), and so
is what it makes (`EVENTS_MAX`). Where that is exceeded the tables are not `whole`, which is no fault. Loops there are
none: every step goes to a higher number.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from snapkit.errors import Finding
from snapkit.state.gicv3_its import ItsState
from snapkit.state.gicv3_redistributor import RedistributorState
from snapkit.state.schema import SectionId, State
from snapkit.state.spec import its
from snapkit.state.spec.gicv3 import LPI_BASE, GitsBaser, Iidr, Pendbaser, Propbaser
from snapkit.state.spec.its import (
    CollectionEntry,
    DeviceEntry,
    EventEntry,
    Level1Entry,
    LpiConfiguration,
)
from snapkit.units import PAGE_LEN

WHERE = SectionId("gicv3-its", "0")
WORDS_MAX = 1 << 20
"""Entries that are looked at: enough for fifteen devices with the most events that there can be. Linux's have some ten."""
_READ_COST = 256
"""Entries that a read counts for at least: a file must not have us look at a hundred thousand tables."""
EVENTS_MAX = 1 << 16
"""Mapped events that are kept: as many as there are LPIs, and a few more."""

_lpi_of, _collection_of, _next_of = EventEntry.PINTID.get, EventEntry.ICID.get, EventEntry.NEXT.get
_LPI_END = 1 << its.LPI_BITS
_BLOCK = PAGE_LEN // its.ENTRY_LEN
"""Entries that are read at once: the last of a table is most often among its first."""
_ZERO_BLOCK, _ZERO_WORDS = bytes(PAGE_LEN), (0,) * _BLOCK


class Memory(Protocol):
    """Guest RAM: where it is as (gpa, length), in order; and what is in it."""

    @property
    def regions(self) -> Sequence[tuple[int, int]]: ...

    def read(self, gpa: int, length: int, /) -> bytes: ...


class Places(NamedTuple):
    """The registers that say where the tables are; *pendbasers* has one for each CPU, in their order."""

    iidr: int
    devices: int
    collections: int
    propbaser: int
    pendbasers: tuple[int, ...]


class Collection(NamedTuple):
    """*vcpu* is None where no MAPC has named one yet."""

    number: int
    vcpu: int | None


class Event(NamedTuple):
    """A mapped event of a device."""

    number: int
    lpi: int
    collection: int


class Device(NamedTuple):
    """A mapped device: bus, device and function in one number; its events have *bits* bits and their table is at *itt*."""

    number: int
    bits: int
    itt: int
    events: tuple[Event, ...]


class Tables(NamedTuple):
    """All that KVM would take over. *fault* says where it would stop instead, with nothing taken over."""

    collections: tuple[Collection, ...] = ()
    devices: tuple[Device, ...] = ()
    fault: Finding | None = None
    whole: bool = True
    """Everything was read: no bound was met."""


class Interrupt(NamedTuple):
    """The way of one event, to its end. *vcpu* and *pending* are None where its collection has no CPU."""

    device: int
    event: int
    lpi: int
    collection: int
    vcpu: int | None
    pending: bool | None
    enabled: bool
    priority: int


def places(sections: Mapping[SectionId, State]) -> Places | None:
    """Return where a machine's tables are; None without an ITS, or without redistributors."""
    state = sections.get(WHERE)
    each: list[RedistributorState] = []
    while isinstance(one := sections.get(SectionId("gicv3-redistributor", str(len(each)))), RedistributorState):
        each.append(one)
    if not isinstance(state, ItsState) or not each:
        return None
    pendbasers = tuple(one.pendbaser for one in each)
    devices, collections = state.baser[its.DEVICE_TABLE], state.baser[its.COLLECTION_TABLE]
    return Places(
        state.iidr, devices, collections, each[-1].propbaser, pendbasers
    )  # one for all CPUs: KVM keeps the last


def decode(where: Places, memory: Memory) -> Tables:
    """Return what the tables say. Raises nothing but what *memory* does when a range of RAM is read."""
    return _Decoder(where, memory).decode()


def interrupts(where: Places, tables: Tables, memory: Memory) -> tuple[Interrupt, ...]:
    """Follow every event to its end, by device and event. *tables* were decoded from the same *where* and *memory*."""
    read = _Bytes(memory).byte
    targets = dict(tables.collections)
    homes = dict[int, int | None]()
    found = []
    for device in tables.devices:
        for number, lpi, collection in device.events:
            vcpu = targets[collection]
            home = homes.setdefault(lpi, vcpu)  # of several events of one LPI, it pends where the first one goes
            byte, *pending_byte = [read(table.at(lpi)) for table in _lpi_tables(where, home)]
            pending = bool(pending_byte[0] >> lpi % 8 & 1) if pending_byte else None
            enabled, priority = bool(byte & LpiConfiguration.ENABLE), byte & LpiConfiguration.PRIORITY
            found.append(Interrupt(device.number, number, lpi, collection, vcpu, pending, enabled, priority))
    return tuple(found)


def difference(
    before: Sequence[Interrupt], after: Sequence[Interrupt]
) -> tuple[tuple[Interrupt, ...], tuple[Interrupt, ...]]:
    """Return the interrupts that are in *before* only, and those that are in *after* only, each in order.

    One that has changed (that is not pending any more, say) is in both.
    """
    lost, made = set(before) - set(after), set(after) - set(before)
    return tuple(one for one in before if one in lost), tuple(one for one in after if one in made)


class _TableError(Exception):
    def __init__(self, rule: str, path: str, value: str, expected: str) -> None:
        self.finding = Finding(str(WHERE), path, value, expected, rule)
        super().__init__(rule)


class _BoundError(Exception):
    """There is more than we look at."""


class _Decoder:
    """Reads each table from its beginning, each once, in an order in which a file's chunks are read once as well."""

    def __init__(self, where: Places, memory: Memory) -> None:
        self._where, self._memory = where, memory
        self._left, self._room = WORDS_MAX, EVENTS_MAX
        self._collections: dict[int, int | None] = {}
        self._devices: list[tuple[int, int, int]] = []
        self._events: dict[tuple[int, int], tuple[Event, ...]] = {}
        self._lpis: dict[int | None, list[tuple[_LpiTable, list[range]]]] = {}
        """What there is of an LPI that is sent to a CPU, and the LPIs for which there is RAM."""

    def decode(self) -> Tables:
        fault, whole = None, True
        try:
            self._require_layout()
            self._read_collections()
            for target in dict.fromkeys(self._collections.values()):
                tables = _lpi_tables(self._where, target)
                self._lpis[target] = [(table, table.lpis_in(self._memory.regions)) for table in tables]
            self._read_devices()
            for number, bits, itt in sorted(self._devices, key=lambda device: device[2]):
                if (itt, bits) not in self._events:  # tables may be shared: what a second device costs must not matter
                    self._events[itt, bits] = self._read_events(number, bits, itt)
                self._room -= len(self._events[itt, bits])
                if self._room < 0:
                    raise _BoundError
        except _TableError as error:
            fault = error.finding
        except _BoundError:
            whole = False
        read = [
            Device(number, bits, itt, self._events[itt, bits])
            for number, bits, itt in self._devices
            if (itt, bits) in self._events
        ]
        read, beyond = self._up_to_a_fault(read)
        collections = tuple(Collection(*item) for item in self._collections.items())
        return Tables(collections, tuple(read), fault or beyond, whole)

    def _require_layout(self) -> None:
        revision = Iidr.REVISION.get(self._where.iidr)
        if revision != its.ABI_REVISION:
            raise _TableError("its.iidr", "iidr", f"of revision {revision}", f"of revision {its.ABI_REVISION}")

    def _read_collections(self) -> None:
        register, path = self._where.collections, f"baser[{its.COLLECTION_TABLE}]"
        if not register & GitsBaser.VALID:
            return
        base, count = _table_at(register)
        for first in range(0, count, _BLOCK):
            words = self._words(base + its.ENTRY_LEN * first, _BLOCK)
            for word in words:
                if not word & CollectionEntry.VALID:
                    return
                self._read_collection(word, base, count)
            if len(words) < _BLOCK:
                raise _not_in_ram(path, base + its.ENTRY_LEN * (first + len(words)))

    def _read_collection(self, word: int, base: int, count: int) -> None:
        number, target = CollectionEntry.ICID.get(word), CollectionEntry.RDBASE.get(word) & its.NO_TARGET
        path, vcpus = f"tables.collections[{number}]", len(self._where.pendbasers)
        if target != its.NO_TARGET and target >= vcpus:
            raise _TableError("its.collections", path, f"sent to CPU {target}", f"sent to one of {vcpus} CPUs")
        if number in self._collections:
            raise _TableError("its.collections", path, "there twice", "there once")
        if number >= count or not self._ram_from(base + its.ENTRY_LEN * number):
            raise _TableError("its.collections", path, "there", f"below {count}, and its place in the table in RAM")
        self._collections[number] = None if target == its.NO_TARGET else target

    def _read_devices(self) -> None:
        register, path = self._where.devices, f"baser[{its.DEVICE_TABLE}]"
        if not register & GitsBaser.VALID:
            return
        base, count = _table_at(register)
        if not register & GitsBaser.INDIRECT:
            self._scan(base, count, path, self._read_device)
            return

        def read_page(index: int, word: int) -> int:
            if not word & Level1Entry.VALID:
                return 1
            page, first = word & Level1Entry.ADDRESS, index * its.ENTRIES_A_PAGE
            path = f"tables.pages[{index}]"
            ended = self._scan(
                page, its.ENTRIES_A_PAGE, path, lambda index, word: self._read_device(first + index, word)
            )
            return 0 if ended else 1

        self._scan(base, count, path, read_page)

    def _read_device(self, number: int, word: int) -> int:
        if not word & DeviceEntry.VALID:
            return 1
        bits = DeviceEntry.SIZE.get(word) + 1
        path = f"tables.devices[{number:#x}]"
        if number >> its.DEVICE_ID_BITS:
            raise _TableError("its.devices", path, "mapped", f"of {its.DEVICE_ID_BITS} bits")
        if bits > its.EVENT_ID_BITS:
            raise _TableError(
                "its.devices", path, f"mapped for {bits} bits of events", f"at most {its.EVENT_ID_BITS} bits"
            )
        self._devices.append((number, bits, DeviceEntry.ITT_ADDRESS.get(word) << its.ITT_ALIGNMENT_SHIFT))
        return DeviceEntry.NEXT.get(word)

    def _read_events(self, device: int, bits: int, itt: int) -> tuple[Event, ...]:
        found: list[Event] = []
        path, end, collections, room = f"tables.devices[{device:#x}]", 1 << bits, self._collections, self._room

        def read_event(number: int, word: int) -> int:
            lpi, collection, step = _lpi_of(word), _collection_of(word), _next_of(word)
            if not lpi:
                return 1
            if not LPI_BASE <= lpi < _LPI_END:
                raise wrong(number, f"INTID {lpi}", f"an LPI, {LPI_BASE} to {_LPI_END - 1}")
            if number + step >= end:
                raise wrong(number, f"{step} before the next", f"below {end} with the next")
            if collection not in collections:
                raise wrong(number, f"in collection {collection}", "in one that the collection table has")
            if len(found) == room:
                raise _BoundError
            found.append(Event(number, lpi, collection))
            return step

        def wrong(number: int, value: str, expected: str) -> _TableError:
            return _TableError("its.events", f"{path}.events[{number}]", value, expected)

        self._scan(itt, end, path, read_event)
        return tuple(found)

    def _up_to_a_fault(self, devices: list[Device]) -> tuple[list[Device], Finding | None]:
        """Return *devices* as far as each LPI is in RAM, and where one is not.

        KVM looks when it maps an LPI, which is when its first event is mapped: at that one's CPU, whatever others say.
        """
        mapped, seen = set[int](), set[tuple[int, int]]()
        for place, device in enumerate(devices):
            if (device.itt, device.bits) in seen:
                continue  # of a table that several share, which has no more LPIs for it
            seen.add((device.itt, device.bits))
            for index, (number, lpi, collection) in enumerate(device.events):
                if lpi in mapped:
                    continue
                mapped.add(lpi)
                for table, in_ram in self._lpis[self._collections[collection]]:
                    for lpis in in_ram:
                        if lpi in lpis:
                            break
                    else:
                        path = f"tables.devices[{device.number:#x}].events[{number}]"
                        found = f"LPI {lpi}, its {table.what} at {table.at(lpi):#x}"
                        expected = f"an LPI with its {table.what} in RAM"
                        fault = Finding(str(WHERE), path, found, expected, "its.lpis")
                        return [*devices[:place], device._replace(events=device.events[:index])], fault
        return devices, None

    def _scan(self, base: int, count: int, path: str, take: Callable[[int, int], int]) -> bool:
        """Have *take* read the entries of a table; it says how far the next is. Return whether one was the last."""
        index = 0
        while index < count:
            first = index - index % _BLOCK
            end = min(first + _BLOCK, count)
            words = self._words(base + its.ENTRY_LEN * first, end - first)
            if words is _ZERO_WORDS:
                index = end
            while index < end:
                if index - first >= len(words):
                    raise _not_in_ram(path, base + its.ENTRY_LEN * index)
                word = words[index - first]
                step = take(index, word) if word else 1
                if not step:
                    return True
                index += step
        return False

    def _words(self, gpa: int, count: int) -> tuple[int, ...]:
        """Return *count* entries, or as many of them as lie in RAM."""
        self._left -= max(count, _READ_COST)
        if self._left < 0:
            raise _BoundError
        length = min(its.ENTRY_LEN * count, self._ram_from(gpa))
        read = self._memory.read(gpa, length)
        if read == _ZERO_BLOCK:
            return _ZERO_WORDS
        return struct.unpack(f"<{length // its.ENTRY_LEN}Q", read)

    def _ram_from(self, gpa: int) -> int:
        """Return how many bytes from *gpa* on are RAM."""
        end = gpa
        for start, length in self._memory.regions:
            if start <= end < start + length:
                end = start + length
        return end - gpa


class _Bytes:
    """Single bytes of RAM, read by the page."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._pages: dict[int, bytes] = {}

    def byte(self, gpa: int) -> int:
        page, offset = divmod(gpa, PAGE_LEN)
        if page not in self._pages:
            self._pages[page] = self._memory.read(page * PAGE_LEN, PAGE_LEN)
        return self._pages[page][offset]


def _table_at(register: int) -> tuple[int, int]:
    """Return where a GITS_BASER has its table, and how many entries long that is: bytes and pages are what KVM makes them."""
    address = register & GitsBaser.PHYSICAL_ADDRESS
    base = address & -its.TABLE_PAGE_LEN | (address & its.TABLE_PAGE_LEN - 1) << 36  # bits 15:12 are 51:48
    return base, (GitsBaser.SIZE.get(register) + 1) * its.ENTRIES_A_PAGE


class _LpiTable(NamedTuple):
    """Something of each LPI in guest memory: *share* LPIs have a byte, and *base* would be that of INTID 0."""

    what: str
    base: int
    share: int

    def at(self, lpi: int) -> int:
        return self.base + lpi // self.share

    def lpis_in(self, regions: Sequence[tuple[int, int]]) -> list[range]:
        """Return the INTIDs whose bytes lie in *regions*."""
        base, share = self.base, self.share
        return [range((start - base) * share, (start + length - base) * share) for start, length in regions]


def _lpi_tables(where: Places, vcpu: int | None) -> list[_LpiTable]:
    """Return what there is of an LPI that is sent to *vcpu*: its configuration, and its pending bit where that is a CPU."""
    tables = [_LpiTable("configuration", (where.propbaser & Propbaser.PHYSICAL_ADDRESS) - LPI_BASE, 1)]
    if vcpu is not None:
        tables.append(_LpiTable("pending bit", where.pendbasers[vcpu] & Pendbaser.PHYSICAL_ADDRESS, 8))
    return tables


def _not_in_ram(path: str, gpa: int) -> _TableError:
    return _TableError("its.ram", path, f"looked for at {gpa:#x}", "in RAM as far as it is looked through")
