"""Writes an ITS's tables into made-up memory as KVM saves them: a second description of the layout, with its own constants.

Linux Documentation/virt/kvm/devices/arm-vgic-its.rst, "ITS Table ABI REV0".
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from snapkit.state.its_tables import Collection, Device, Event, Interrupt, Places

BASE = 0x8000_0000
RAM_LEN = 16 << 20
VALID = 1 << 63
PAGE = 0x1_0000
IIDR = 0x4B00_043B
LEVEL1, COLLECTIONS, LEVEL2, FLAT = BASE + 0x1_0000, BASE + 0x2_0000, BASE + 0x3_0000, BASE + 0x30_0000
PROPERTIES, PENDING, ITTS = BASE + 0x10_0000, BASE + 0x12_0000, BASE + 0x40_0000
FLAT_BASER = VALID | 1 << 56 | 7 << 48 | 2 << 8
DEVICE_BASER = FLAT_BASER | 1 << 62
COLLECTION_BASER = VALID | 4 << 56 | 7 << 48 | 2 << 8


class Ram:
    """Guest memory that remembers how often it was read."""

    def __init__(self, *regions: tuple[int, int]) -> None:
        self.regions = list(regions or [(BASE, RAM_LEN)])
        self.start = self.regions[0][0]
        self.content = bytearray(sum(self.regions[-1]) - self.start)
        self.reads: list[tuple[int, int]] = []

    def read(self, gpa: int, length: int) -> bytes:
        if not length:
            return b""
        self.reads.append((gpa, length))
        end = gpa
        for start, size in self.regions:
            if start <= end < start + size:
                end = start + size
        assert end >= gpa + length, f"{gpa:#x}+{length:#x} is not RAM"
        return bytes(self.content[gpa - self.start : gpa - self.start + length])

    peek = read

    def write(self, gpa: int, payload: bytes) -> None:
        at = gpa - self.start
        assert 0 <= at <= len(self.content) - len(payload), f"{gpa:#x} is not RAM"
        self.content[at : at + len(payload)] = payload

    def word(self, gpa: int, value: int) -> None:
        self.write(gpa, struct.pack("<Q", value))


@dataclass
class Its:
    """What an ITS knows: plain values, and the registers of where it is to be written."""

    vcpus: int = 2
    collections: dict[int, int | None] = field(default_factory=dict)
    devices: dict[int, tuple[int, dict[int, tuple[int, int]]]] = field(default_factory=dict)
    """Device: bits of its events, and by event LPI and collection."""
    lpis: dict[int, int] = field(default_factory=dict)
    """The configuration byte of an LPI."""
    pending: set[int] = field(default_factory=set)
    indirect: bool = True

    @property
    def places(self) -> Places:
        return Places(
            iidr=IIDR,
            devices=DEVICE_BASER | LEVEL1 if self.indirect else FLAT_BASER | FLAT | 7,
            collections=COLLECTION_BASER | COLLECTIONS,
            propbaser=PROPERTIES | 0xF,
            pendbasers=tuple(PENDING + number * PAGE for number in range(self.vcpus)),
        )

    def itts(self) -> dict[int, int]:
        """Return where each device's table is, one behind the other."""
        places, at = {}, ITTS
        for number, (bits, _events) in sorted(self.devices.items()):
            places[number] = at
            at += max(256, 8 << bits)
        return places

    def device_at(self, number: int) -> int:
        """Return where the entry of a device is."""
        if not self.indirect:
            return FLAT + 8 * number
        return LEVEL2 + number // 8192 * PAGE + number % 8192 * 8

    def write(self, ram: Ram) -> Ram:
        """Do what KVM_DEV_ARM_ITS_SAVE_TABLES and KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES do."""
        if self.indirect:
            for page in {number // 8192 for number in self.devices}:
                ram.word(LEVEL1 + 8 * page, VALID | LEVEL2 + page * PAGE)
        for number, target in enumerate(self.collections.items()):
            icid, vcpu = target
            ram.word(COLLECTIONS + 8 * number, VALID | (0xFFFF_FFFF if vcpu is None else vcpu) << 16 | icid)
        itts = self.itts()
        for number, step in _steps(self.devices, (1 << 14) - 1):
            bits, events = self.devices[number]
            ram.word(self.device_at(number), VALID | step << 49 | itts[number] >> 8 << 5 | bits - 1)
            for event, ahead in _steps(events, (1 << 16) - 1):
                lpi, icid = events[event]
                ram.word(itts[number] + 8 * event, ahead << 48 | lpi << 16 | icid)
        for lpi, byte in self.lpis.items():
            ram.write(PROPERTIES + lpi - 8192, bytes([byte]))
        for lpi, vcpu in self.homes().items():
            if lpi in self.pending and vcpu is not None:
                at = PENDING + vcpu * PAGE + lpi // 8
                ram.write(at, bytes([ram.read(at, 1)[0] | 1 << lpi % 8]))
        return ram

    def homes(self) -> dict[int, int | None]:
        """Return the CPU of each LPI, which is that of the first event that KVM maps to it (vgic_add_lpi)."""
        homes: dict[int, int | None] = {}
        for _number, (_bits, events) in sorted(self.devices.items()):
            for _event, (lpi, icid) in sorted(events.items()):
                homes.setdefault(lpi, self.collections[icid])
        return homes

    def decoded(self) -> tuple[tuple[Collection, ...], tuple[Device, ...]]:
        """Return what is to be read of it."""
        itts = self.itts()
        devices = [
            Device(number, bits, itts[number], tuple(Event(event, *of) for event, of in sorted(events.items())))
            for number, (bits, events) in sorted(self.devices.items())
        ]
        return tuple(Collection(*item) for item in self.collections.items()), tuple(devices)

    def interrupts(self) -> list[Interrupt]:
        """Return the way of every event."""
        homes = self.homes()
        return [
            Interrupt(
                device=number,
                event=event,
                lpi=lpi,
                collection=icid,
                vcpu=self.collections[icid],
                pending=None if homes[lpi] is None else lpi in self.pending,
                enabled=bool(self.lpis.get(lpi, 0) & 1),
                priority=self.lpis.get(lpi, 0) & 0xFC,
            )
            for number, (_bits, events) in sorted(self.devices.items())
            for event, (lpi, icid) in sorted(events.items())
        ]


def _steps(numbers: Iterable[int], highest: int) -> list[tuple[int, int]]:
    """Pair each number, in order, with how far the next is, as KVM writes it."""
    ordered = sorted(numbers)
    ahead = [min(after - number, highest) for number, after in pairwise(ordered)]
    return list(zip(ordered, [*ahead, 0], strict=False))


def linux(vcpus: int = 2) -> Its:
    """Return what Linux makes of a disk and a network card on two CPUs: a collection a CPU, an LPI a vector."""
    return Its(
        vcpus=vcpus,
        collections={number: number for number in range(vcpus)},
        devices={
            0x08: (1, {0: (8192, 0), 1: (8193, 1 % vcpus)}),
            0x10: (2, {0: (8194, 0), 1: (8195, 1 % vcpus), 2: (8196, 0)}),
        },
        lpis=dict.fromkeys(range(8192, 8197), 0xA1) | {8196: 0xA0},
        pending={8193},
    )
