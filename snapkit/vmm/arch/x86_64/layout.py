"""Where everything lies in an x86-64 machine: the address map as constants, RAM regions, the E820 map.

The map is part of every snapshot (tables in guest RAM point into it), so it never changes. E820 types are those of the
ACPI specification 6.5, section 15 (system address map interfaces).

Surprises:

- The boot structures sit in RAM that E820 calls usable: a kernel has copied what it needs before it allocates there.
- 0xA0000-0xDFFFF is backed by RAM but in no E820 entry, so that a kernel which looks for a VGA adapter or option ROMs
  finds harmless memory and never allocates there.
- The ECAM window is reserved from the first release on: Linux drops an ECAM that E820 does not reserve
  (arch/x86/pci/mmconfig-shared.c, pci_mmcfg_check_reserved), and a map that changed later would strand old guests.
"""

from collections.abc import Sequence
from typing import NamedTuple

from snapkit.errors import ConfigError
from snapkit.units import GIB, KIB, MIB, PAGE_LEN, Gpa, Gsi, format_len

# RAM: below the 32-bit hole, then from 4 GiB up to the 64-bit MMIO window.
RAM_LOW_END = Gpa(3 * GIB)
RAM_HIGH_START = Gpa(4 * GIB)
RAM_LEN_MIN = 1 * MIB
RAM_LEN_MAX = 255 * GIB

# Windows.
MMIO32_START = Gpa(0xC000_0000)
MMIO32_END = Gpa(0xEEC0_0000)
ECAM_START = Gpa(0xEEC0_0000)
ECAM_LEN = 1 * MIB
PCI_SEGMENT = 0
PCI_BUS = 0  # the only one
MMIO64_START = Gpa(256 * GIB)
MMIO64_LEN = 256 * GIB
VIRTIO_MMIO_SLOT_LEN = 0x1000  # from MMIO32_END downwards
VIRTIO_MMIO_START = Gpa(MMIO32_END - 1 * MIB)  # room for more slots than there are legacy interrupts
PCI_MMIO32_END = VIRTIO_MMIO_START  # the window of the PCI root: from MMIO32_START up to here

# Interrupt controllers, and the pages that KVM needs on hosts whose CPUs cannot run real mode (KVM_SET_TSS_ADDR,
# KVM_SET_IDENTITY_MAP_ADDR).
IOAPIC_GPA = Gpa(0xFEC0_0000)
LAPIC_GPA = Gpa(0xFEE0_0000)
KVM_IDENTITY_MAP_GPA = Gpa(0xFFFB_C000)
KVM_IDENTITY_MAP_LEN = 1 * PAGE_LEN
KVM_TSS_GPA = Gpa(0xFFFB_D000)
KVM_TSS_LEN = 3 * PAGE_LEN

# GSIs. ISA interrupt n is GSI n is IOAPIC pin n, the timer's too: see acpi.py.
GSI_SERIAL = Gsi(4)
GSI_LEGACY = range(5, 24)
GSI_MSI = range(24, 4096)
IOAPIC_PINS = 24

# Ports.
SERIAL_PORT = 0x3F8
SERIAL_PORT_LEN = 8
I8042_PORT = 0x60
I8042_PORT_LEN = 5  # the in-kernel PIT takes 0x61, which lies between the two, before it gets here
PCI_CONFIG_PORT = 0xCF8
PCI_CONFIG_PORT_LEN = 8
RESET_PORT = 0x64
RESET_VALUE = 0xFE
SLEEP_CONTROL_PORT = 0x600
SLEEP_STATUS_PORT = 0x601

# Sleep control register, ACPI 6.5 section 4.8.3.7: SLP_TYP in bits 2-4, SLP_EN bit 5. Power-off writes 0x34.
SLP_TYP_S5 = 5
SLP_TYP_SHIFT = 2
SLP_EN = 0x20
SLEEP_CONTROL_S5 = SLP_EN | SLP_TYP_S5 << SLP_TYP_SHIFT

# Boot structures, all below the end of conventional memory.
GDT_GPA = Gpa(0x500)
PVH_START_INFO_GPA = Gpa(0x6000)
ZERO_PAGE_GPA = Gpa(0x7000)
BOOT_STACK_END = Gpa(0x9000)  # one page, growing down from here
PAGE_TABLES_GPA = Gpa(0x9000)
PAGE_TABLES_LEN = 6 * PAGE_LEN  # a PML4, a PDPT and four page directories: 4 GiB in 2 MiB pages
CMDLINE_GPA = Gpa(0x2_0000)
CMDLINE_LEN_MAX = 64 * KIB
BOOT_AREA_START = GDT_GPA
BOOT_AREA_END = Gpa(CMDLINE_GPA + CMDLINE_LEN_MAX)

# The rest of the first MiB.
CONVENTIONAL_END = Gpa(0x9_FC00)
VGA_START = Gpa(0xA_0000)
ACPI_START = Gpa(0xE_0000)
ACPI_END = Gpa(0x10_0000)
RSDP_GPA = ACPI_START
VMGENID_GPA = Gpa(0xF_F000)  # in the same reserved range, behind the tables: 16 bytes that no table overlaps
RESET_ENTRY_GPA = Gpa(0xF_FFF0)  # behind that, where the processor looks for it: firmware.py
HIMEM_START = Gpa(0x10_0000)

E820_RAM = 1
E820_RESERVED = 2


class E820Entry(NamedTuple):
    """One range of the firmware's memory map."""

    gpa: Gpa
    length: int
    type: int


def ram_regions(length: int) -> list[tuple[Gpa, int]]:
    """Split *length* bytes of RAM around the 32-bit hole: one region, or two above 3 GiB.

    Raises ConfigError for a length that is not whole pages, or too little or too much for the map.
    """
    if length % PAGE_LEN:
        raise ConfigError(f"memory is {length} bytes, must be a multiple of {PAGE_LEN}")
    if not RAM_LEN_MIN <= length <= RAM_LEN_MAX:
        wanted = f"{format_len(RAM_LEN_MIN)} to {format_len(RAM_LEN_MAX)}"
        raise ConfigError(f"memory is {format_len(length)}, must be {wanted}")
    if length <= RAM_LOW_END:
        return [(Gpa(0), length)]
    return [(Gpa(0), int(RAM_LOW_END)), (RAM_HIGH_START, length - RAM_LOW_END)]


def e820(ram: Sequence[tuple[int, int]]) -> list[E820Entry]:
    """Describe *ram*, as `ram_regions` splits it, and what is reserved, in address order without overlaps."""
    low_end = ram[0][1]
    entries = [
        E820Entry(Gpa(0), int(CONVENTIONAL_END), E820_RAM),
        E820Entry(CONVENTIONAL_END, VGA_START - CONVENTIONAL_END, E820_RESERVED),
        E820Entry(ACPI_START, ACPI_END - ACPI_START, E820_RESERVED),
        E820Entry(HIMEM_START, low_end - HIMEM_START, E820_RAM),
        E820Entry(ECAM_START, ECAM_LEN, E820_RESERVED),
        E820Entry(KVM_IDENTITY_MAP_GPA, KVM_IDENTITY_MAP_LEN + KVM_TSS_LEN, E820_RESERVED),
    ]
    entries.extend(E820Entry(Gpa(gpa), length, E820_RAM) for gpa, length in ram[1:])
    return [entry for entry in entries if entry.length]
