"""The tables of KVM's interrupt translation service, and of the LPIs that it sends; the registers are in `gicv3`.

What an ITS writes into its own tables is its own affair: KVM's entries are "ITS Table ABI REV0" of Linux
Documentation/virt/kvm/devices/arm-vgic-its.rst, as arch/arm64/kvm/vgic/vgic-its.c reads them. The first of two levels and
the tables of LPIs are laid out by Arm IHI 0069 (sections on the device table, on LPI Configuration and on LPI Pending
tables). The pending bit of INTID n is bit n % 8 of byte n / 8 of its CPU's table; the first KiB, of INTIDs that are no LPIs,
is an implementation's own, and KVM does not use it.
"""

from typing import Final

from snapkit.bits import Register, bit, bits

TABLE_PAGE_LEN: Final = 0x1_0000
"""The one page size that KVM's ITS has for its tables, whatever a guest asks for (GITS_BASER.Page_Size)."""
ENTRY_LEN: Final = 8
"""Of every entry of every table, and of a level 1 entry, in revision 0 of the layout."""
ENTRIES_A_PAGE: Final = TABLE_PAGE_LEN // ENTRY_LEN

ABI_REVISION: Final = 0
"""The layout that is described here, as GITS_IIDR.Revision tells it: KVM has no other (vgic_its_set_abi)."""
DEVICE_TABLE: Final = 0
"""Which GITS_BASER is the device table's, in KVM."""
COLLECTION_TABLE: Final = 1

DEVICE_ID_BITS: Final = 16
"""KVM's GITS_TYPER.Devbits and ID_bits, each plus one; an LPI's number has as many bits as an event's."""
EVENT_ID_BITS: Final = 16
LPI_BITS: Final = 16
NO_TARGET: Final = 0xFFFF_FFFF
"""A collection's RDbase, cut to 32 bits, where events name the collection and no MAPC has given it a CPU yet."""


class Level1Entry(Register, width=64, ref="Arm IHI 0069, device table of two levels: an entry of the first"):
    ADDRESS = bits(51, 16, "bits 51:16 of the address of a page of entries")
    VALID = bit(63, "there is one")


class DeviceEntry(Register, width=64, ref="Linux arm-vgic-its.rst, device table entry"):
    """The entry of device n is the n-th."""

    SIZE = bits(4, 0, "bits of an event's number, less one")
    ITT_ADDRESS = bits(48, 5, "bits 51:8 of the address of the interrupt translation table")
    NEXT = bits(62, 49, "how much higher the next device's number is, or as much of that as fits; 0: this is the last")
    VALID = bit(63, "the device is mapped")


class EventEntry(Register, width=64, ref="Linux arm-vgic-its.rst, interrupt translation entry"):
    """The entry of event n is the n-th of its device's table."""

    ICID = bits(15, 0, "collection")
    PINTID = bits(47, 16, "LPI; 0: the event is not mapped")
    NEXT = bits(63, 48, "how much higher the next event's number is; 0: this is the last")


class CollectionEntry(Register, width=64, ref="Linux arm-vgic-its.rst, collection table entry"):
    """In no order. The first that is not valid ends the table."""

    ICID = bits(15, 0, "collection")
    RDBASE = bits(51, 16, "number of the CPU that its interrupts go to")
    VALID = bit(63, "the collection is known")


ITT_ALIGNMENT_SHIFT: Final = 8
"""An interrupt translation table begins at a multiple of 256 bytes."""


class LpiConfiguration(Register, width=8, ref="Arm IHI 0069, LPI Configuration tables"):
    """Byte n of the table is that of LPI 8192 + n."""

    ENABLE = bit(0, "the LPI is enabled")
    PRIORITY = bits(7, 2, "bits 7:2 of the priority; the others are 0")
