r"""The devices of the DSDT that not every machine has: the PCI root, virtio-mmio transports, the generation id.

ACPI specification 6.5 for the terms, PCI Firmware Specification 3.3 for the root's methods, Microsoft's "Virtual Machine
Generation ID" (2018) for VGEN. Each function returns the AML of devices that `acpi.build_tables` puts into ``\_SB``.
What the choices do to Linux (drivers/acpi/pci_root.c, drivers/acpi/evged.c, drivers/virt/vmgenid.c):

- Without _OSC, or with one that grants less than control of the PCI Express capability, Linux leaves ASPM to firmware
  that is not there. Ours grants whatever is asked for: nothing else uses those registers.
- _DSM function 5 returning 0 says that what is written into the BARs must stay. Linux would otherwise be free to place
  them anew, which works but costs a move of each.
- The ports 0xCF8-0xCFF are consumed by the root itself; Linux recognises them and does not take them for a window.
- There is no _PRT and no I/O window: functions interrupt by MSI-X only and have no I/O BARs.
- Both windows are not prefetchable: Linux places no ordinary BAR into a prefetchable window.
- ACPICA turns the compatible id VM_Gen_Counter into capitals, as which Linux's driver lists it.
- The generic event device calls _EVT with the GSI, here edge triggered, as every announcement is one event.
"""

from snapkit.vmm.arch.x86_64 import aml
from snapkit.vmm.arch.x86_64.layout import (
    MMIO32_START,
    MMIO64_LEN,
    MMIO64_START,
    PCI_BUS,
    PCI_CONFIG_PORT,
    PCI_CONFIG_PORT_LEN,
    PCI_MMIO32_END,
    PCI_SEGMENT,
    VIRTIO_MMIO_SLOT_LEN,
)

# _OSC of a PCI host bridge: PCI Firmware Specification 3.3, section 4.5; the status bits are ACPI's, section 6.2.11.
_OSC_PCI = "33DB4D5B-1FF7-401C-9657-7441C03DD766"
_OSC_REVISION = 1
_UNRECOGNISED_UUID, _UNRECOGNISED_REVISION = 1 << 2, 1 << 3

# _DSM of PCI: section 4.6.
_DSM_PCI = "E5C937D0-3553-4D7A-9117-EA4D19C3434D"
_DSM_QUERY, _DSM_PRESERVE_BOOT_CONFIG = 0, 5

_DEVICE_SPECIFIC = 0x80  # the first notification value that a device defines itself; the generation id's is this


def pci_root() -> bytes:
    """Describe the host bridge: its one bus, its windows, and that the operating system has control."""
    return aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_SEG", aml.integer(PCI_SEGMENT)),
        aml.name("_BBN", aml.integer(PCI_BUS)),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CCA", aml.integer(1)),
        aml.name(
            "_CRS",
            aml.resources(
                aml.bus_numbers(PCI_BUS, PCI_BUS),
                aml.io(PCI_CONFIG_PORT, PCI_CONFIG_PORT_LEN),
                aml.memory32_window(MMIO32_START, PCI_MMIO32_END - 1),
                aml.memory64_window(MMIO64_START, MMIO64_START + MMIO64_LEN - 1),
            ),
        ),
        _osc(),
        _dsm(),
    )


def _osc() -> bytes:
    """Arg0 UUID, Arg1 revision, Arg2 count of dwords, Arg3 the dwords: status, support, control."""
    status = aml.name_path("CDW1")
    return aml.method(
        "_OSC",
        4,
        aml.dword_field(aml.argument(3), 0, "CDW1"),
        aml.if_(
            aml.equal(aml.argument(0), aml.uuid(_OSC_PCI)),
            aml.if_(
                aml.not_(aml.equal(aml.argument(1), aml.integer(_OSC_REVISION))),
                aml.or_(status, aml.integer(_UNRECOGNISED_REVISION), status),
            ),
            aml.return_(aml.argument(3)),
        ),
        aml.or_(status, aml.integer(_UNRECOGNISED_UUID), status),
        aml.return_(aml.argument(3)),
    )


def _dsm() -> bytes:
    """Arg0 UUID, Arg1 revision, Arg2 function, Arg3 its arguments."""
    known = bytes([1 << _DSM_QUERY | 1 << _DSM_PRESERVE_BOOT_CONFIG])
    function = aml.argument(2)
    return aml.method(
        "_DSM",
        4,
        aml.if_(
            aml.equal(aml.argument(0), aml.uuid(_DSM_PCI)),
            aml.if_(aml.equal(function, aml.integer(_DSM_QUERY)), aml.return_(aml.buffer(known))),
            aml.if_(aml.equal(function, aml.integer(_DSM_PRESERVE_BOOT_CONFIG)), aml.return_(aml.integer(0))),
        ),
        aml.return_(aml.buffer(b"\0")),
    )


def virtio_mmio(number: int, gpa: int, gsi: int) -> bytes:
    """Describe transport *number* of the machine (0, 1, ...), its registers at *gpa*, its level interrupt *gsi*."""
    return aml.device(
        f"VR{number:02X}",
        aml.name("_HID", aml.text("LNRO0005")),
        aml.name("_UID", aml.integer(number)),
        aml.name("_CCA", aml.integer(1)),
        aml.name("_CRS", aml.resources(aml.memory32_fixed(gpa, VIRTIO_MMIO_SLOT_LEN), aml.interrupt(gsi, level=True))),
    )


def vmgenid(gpa: int, gsi: int) -> bytes:
    """Describe the generation id, 16 bytes at *gpa*, and the event device that passes its interrupt *gsi* on."""
    address = aml.package(aml.integer(gpa & 0xFFFF_FFFF), aml.integer(gpa >> 32))
    counter = aml.device(
        "VGEN",
        aml.name("_HID", aml.text("SNPK0001")),
        aml.name("_CID", aml.text("VM_Gen_Counter")),
        aml.name("_DDN", aml.text("VM_Gen_Counter")),
        aml.name("ADDR", address),
    )
    events = aml.device(
        "GED0",
        aml.name("_HID", aml.text("ACPI0013")),
        aml.name("_UID", aml.integer(0)),
        aml.name("_CRS", aml.resources(aml.interrupt(gsi))),
        aml.method(
            "_EVT",
            1,
            aml.if_(
                aml.equal(aml.argument(0), aml.integer(gsi)),
                aml.notify("VGEN", _DEVICE_SPECIFIC),
            ),
        ),
    )
    return counter + events
