"""Where everything lies that machines of an architecture have: RAM, windows, pins. Part of every snapshot, so it never changes.

Tables in guest memory (ACPI, a device tree) point into it, and what a guest was told when it booted must hold wherever it
goes on. Only numbers that more than one part relies on are here; each architecture's `layout` has its own besides.

On aarch64 the place of the 64-bit window depends on how wide the host's intermediate physical addresses (IPA) are: it is
the upper half of them, up to that of 39 bits, which is the usual one.
"""

from collections.abc import Mapping
from typing import NamedTuple

from snapkit.state.machine import EM_AARCH64, EM_X86_64
from snapkit.units import GIB, KIB, MIB, Gpa

SLOT_LEN = 4 * KIB
"""What a device on the memory-mapped transport takes."""


class Pin(NamedTuple):
    """An interrupt pin that a kind of device always has."""

    gsi: int
    edge: bool


class AddressMap(NamedTuple):
    """The map of one architecture. Ranges of addresses are [from, to)."""

    name: str
    architecture: int
    ram: tuple[tuple[int, int], ...]
    pools: Mapping[str, tuple[int, int]]
    """What there is to claim, by pool, as (start, length)."""
    windows64: tuple[tuple[int, int], ...]
    """What the pool mmio64 may be instead, where the guest's addresses are narrower."""
    slots: tuple[int, int]
    """Where memory-mapped devices have their slots, from the end downwards: no BAR may enter."""
    ecam: Gpa
    pins: Mapping[str, Pin]
    """By kind; each is instance 0."""
    lines: int
    """GSIs below are pins of the interrupt controllers, those from here on stand for messages."""
    pin_routes: int
    """Routes that the pins take of KVM's table."""
    sender_ids: bool = False
    """Whether a message tells its sender (bus, device, function), as an ITS asks for."""

    def pool(self, name: str) -> tuple[int, int]:
        """Return a pool as (from, to)."""
        start, length = self.pools[name]
        return start, start + length


X86_64 = AddressMap(
    name="x86-64",
    architecture=EM_X86_64,
    ram=((0, 3 * GIB), (4 * GIB, 256 * GIB)),
    pools={
        "gsi-legacy": (5, 19),
        "gsi-msi": (24, 4072),
        "mmio32": (0xC000_0000, 0x2EC0_0000),
        "mmio64": (256 * GIB, 256 * GIB),
        "pci-slot": (1, 31),
    },
    windows64=(),
    slots=(0xEEC0_0000 - 1 * MIB, 0xEEC0_0000),
    ecam=Gpa(0xEEC0_0000),
    pins={"serial-16550": Pin(4, edge=True)},
    lines=24,
    pin_routes=40,  # 24 of the IOAPIC, 16 of the PICs
)

AARCH64 = AddressMap(
    name="aarch64",
    architecture=EM_AARCH64,
    ram=((2 * GIB, 256 * GIB),),
    pools={
        "gsi-legacy": (2, 94),
        "gsi-msi": (96, 4000),
        "mmio32": (0x4000_0000, 0x3000_0000),
        "mmio64": (256 * GIB, 256 * GIB),
        "pci-slot": (1, 31),
    },
    windows64=tuple((1 << bits, 1 << bits) for bits in range(37, 31, -1)),
    slots=(0x7000_0000 - 1 * MIB, 0x7000_0000),
    ecam=Gpa(0x7000_0000),
    pins={"serial-pl011": Pin(0, edge=False), "rtc-pl031": Pin(1, edge=False)},
    lines=96,
    pin_routes=0,  # KVM_IRQ_LINE reaches the distributor without a route
    sender_ids=True,
)

MAPS: Mapping[int, AddressMap] = {EM_X86_64: X86_64, EM_AARCH64: AARCH64}

# aarch64: what lies below the windows. GSI n is shared peripheral interrupt n, INTID 32 + n.
GIC_IRQS = 128
GICD_GPA = Gpa(0x3FFF_0000)
GICD_LEN = 64 * KIB
GICR_LEN = 128 * KIB
ITS_LEN = 128 * KIB
GITS_TRANSLATER = 0x1_0040
PL011_GPA = Gpa(0x0900_0000)
PL031_GPA = Gpa(0x0901_0000)
PRIMECELL_LEN = 4 * KIB


def gicr_gpa(vcpus: int) -> Gpa:
    """Return where the first redistributor of *vcpus* lies: one behind the other, up to the distributor."""
    return Gpa(GICD_GPA - vcpus * GICR_LEN)


def its_gpa(vcpus: int) -> Gpa:
    """Return where the ITS of a machine with *vcpus* lies: below the redistributors."""
    return Gpa(gicr_gpa(vcpus) - ITS_LEN)
