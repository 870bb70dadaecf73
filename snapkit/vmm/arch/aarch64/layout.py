"""Where everything lies in an aarch64 machine: what `snapkit.state.spec.address_map` leaves to RAM and to vCPUs.

The map is part of every snapshot (the device tree and what the guest made of it), so it never changes. Devices lie below
RAM, which is one region. Linux Documentation/arch/arm64/booting.rst for what boot structures need.

Surprises:

- The frames of the interrupt controller are stacked down from the distributor, so the ITS lies lower the more vCPUs
  there are.
- The device tree, the generation id and the ramdisk lie at the end of the first 2 GiB of RAM: Linux maps the tree early
  and wants the ramdisk within 32 GiB of the kernel, which lies at the start.
- A machine whose physical addresses have fewer than 39 bits (KVM_VM_TYPE_ARM_IPA_SIZE) has a smaller 64-bit window, the
  upper half of its space, and so less room for RAM.
"""

from typing import NamedTuple

from snapkit.errors import ConfigError
from snapkit.state.spec.address_map import AARCH64, GICD_GPA, gicr_gpa
from snapkit.units import GIB, KIB, MIB, PAGE_LEN, Gpa, format_len

RAM_START, RAM_END = (Gpa(bound) for bound in AARCH64.ram[0])
RAM_LEN_MIN = 1 * MIB
RAM_LEN_MAX = RAM_END - RAM_START
_BOOT_RAM_END = RAM_START + 2 * GIB

PCI_SEGMENT = 0
PCI_BUS = 0  # the only one
ECAM_LEN = 1 * MIB

FDT_LEN_MAX = 64 * KIB


class Window(NamedTuple):
    """A range of guest-physical addresses."""

    gpa: Gpa
    length: int


PCI_WINDOW32 = Window(Gpa(AARCH64.pools["mmio32"][0]), AARCH64.slots[0] - AARCH64.pools["mmio32"][0])
"""Of the PCI host: all but the slots of memory-mapped devices."""


def ram_regions(length: int) -> list[tuple[Gpa, int]]:
    """Lay out *length* bytes of RAM: one region.

    Raises ConfigError for a length that is not whole pages, or too little or too much for the map.
    """
    if length % PAGE_LEN:
        raise ConfigError(f"memory is {length} bytes, must be a multiple of {PAGE_LEN}")
    if not RAM_LEN_MIN <= length <= RAM_LEN_MAX:
        wanted = f"{format_len(RAM_LEN_MIN)} to {format_len(RAM_LEN_MAX)}"
        raise ConfigError(f"memory is {format_len(length)}, must be {wanted}")
    return [(RAM_START, length)]


def mmio64_window(ipa_bits: int) -> Window:
    """Return the 64-bit MMIO window of a machine with *ipa_bits* of physical address."""
    usual, length = AARCH64.pools["mmio64"]
    if usual + length <= 1 << ipa_bits:
        return Window(Gpa(usual), length)
    return Window(Gpa(1 << ipa_bits - 1), 1 << ipa_bits - 1)


def fdt_gpa(ram_len: int) -> Gpa:
    """Return where the device tree lies in a machine with *ram_len* bytes of RAM."""
    return Gpa(min(RAM_START + ram_len, _BOOT_RAM_END) - FDT_LEN_MAX)


def vmgenid_gpa(ram_len: int) -> Gpa:
    """Return where the page of the generation id lies; a machine without one leaves it free."""
    return Gpa(fdt_gpa(ram_len) - PAGE_LEN)


def initrd_end(ram_len: int) -> Gpa:
    """Return what the initial ramdisk must end at, and every kernel too."""
    return vmgenid_gpa(ram_len)


def redistributors(vcpus: int) -> Window:
    """Return the frames of all redistributors, the first vCPU's lowest."""
    gpa = gicr_gpa(vcpus)
    return Window(gpa, GICD_GPA - gpa)


def mpidr(vcpu: int) -> int:
    """Return the affinity fields that KVM gives to *vcpu*: 16 to a cluster, as many as an SGI can name."""
    return vcpu & 0xF | (vcpu >> 4 & 0xFF) << 8 | (vcpu >> 12 & 0xFF) << 16
