"""The address map: RAM around the hole, E820, and nothing on top of anything else."""

import itertools

import pytest

from snapkit.errors import ConfigError
from snapkit.units import GIB, MIB
from snapkit.vmm.arch.x86_64 import layout
from snapkit.vmm.arch.x86_64.layout import E820_RAM, E820_RESERVED, e820, ram_regions


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (64 * MIB, [(0, 64 * MIB)]),
        (3 * GIB, [(0, 3 * GIB)]),
        (3 * GIB + 4096, [(0, 3 * GIB), (4 * GIB, 4096)]),
        (6 * GIB, [(0, 3 * GIB), (4 * GIB, 3 * GIB)]),
        (255 * GIB, [(0, 3 * GIB), (4 * GIB, 252 * GIB)]),
    ],
)
def test_ram_is_split_around_the_32_bit_hole(length, expected):
    assert ram_regions(length) == expected


@pytest.mark.parametrize("length", [0, 4096, MIB - 4096, 64 * MIB + 1, 255 * GIB + 4096, -MIB])
def test_ram_that_no_machine_can_have_is_refused(length):
    with pytest.raises(ConfigError, match="memory is"):
        ram_regions(length)


@pytest.mark.parametrize("length", [MIB, 2 * MIB, 64 * MIB, 3 * GIB, 6 * GIB])
def test_e820_is_in_order_without_overlaps_and_its_ram_is_ram(length):
    ram = ram_regions(length)
    entries = e820(ram)
    for before, after in itertools.pairwise(entries):
        assert before.gpa + before.length <= after.gpa
    assert all(entry.length > 0 for entry in entries)
    for entry in entries:
        if entry.type == E820_RAM:
            assert any(gpa <= entry.gpa and entry.gpa + entry.length <= gpa + size for gpa, size in ram)
    usable = sum(entry.length for entry in entries if entry.type == E820_RAM)
    assert length - usable == 0x10_0000 - 0x9_FC00  # all but the end of the first MiB


def test_e820_reserves_ecam_acpi_tables_and_kvm_pages():
    entries = e820(ram_regions(6 * GIB))
    reserved = [(entry.gpa, entry.gpa + entry.length) for entry in entries if entry.type == E820_RESERVED]
    for start, end in [(0xEEC0_0000, 0xEED0_0000), (0xE_0000, 0x10_0000), (0xFFFB_C000, 0xFFFC_0000)]:
        assert (start, end) in reserved


def test_the_map_is_the_published_one():
    assert layout.RAM_LOW_END == 0xC000_0000
    assert (layout.MMIO32_START, layout.MMIO32_END - 1) == (0xC000_0000, 0xEEBF_FFFF)
    assert (layout.MMIO64_START, layout.MMIO64_LEN) == (0x40_0000_0000, 0x40_0000_0000)
    assert (layout.IOAPIC_GPA, layout.LAPIC_GPA) == (0xFEC0_0000, 0xFEE0_0000)
    assert (layout.KVM_TSS_GPA, layout.KVM_IDENTITY_MAP_GPA) == (0xFFFB_D000, 0xFFFB_C000)
    assert (layout.SERIAL_PORT, layout.GSI_SERIAL) == (0x3F8, 4)
    assert [range(5, 24), range(24, 4096)] == [layout.GSI_LEGACY, layout.GSI_MSI]
    assert (layout.RESET_PORT, layout.RESET_VALUE, layout.SLEEP_CONTROL_S5) == (0x64, 0xFE, 0x34)


def test_places_below_one_mib_do_not_overlap():
    places = [
        (layout.GDT_GPA, 48),
        (layout.PVH_START_INFO_GPA, 4096),
        (layout.ZERO_PAGE_GPA, 4096),
        (layout.BOOT_STACK_END - 4096, 4096),
        (layout.PAGE_TABLES_GPA, layout.PAGE_TABLES_LEN),
        (layout.CMDLINE_GPA, layout.CMDLINE_LEN_MAX),
        (layout.ACPI_START, layout.ACPI_END - layout.ACPI_START),
    ]
    for (start, length), (after, _) in itertools.pairwise(places):
        assert start + length <= after
    assert layout.BOOT_AREA_END <= layout.CONVENTIONAL_END


def test_places_in_the_acpi_area_do_not_overlap():
    assert layout.ACPI_START <= layout.VMGENID_GPA
    assert layout.VMGENID_GPA % 8 == 0
    assert layout.VMGENID_GPA + 16 <= layout.RESET_ENTRY_GPA < layout.ACPI_END


def test_windows_of_pci_and_of_virtio_mmio_do_not_overlap_and_fill_the_window():
    assert layout.MMIO32_START < layout.PCI_MMIO32_END <= layout.VIRTIO_MMIO_START
    lowest = layout.MMIO32_END - layout.VIRTIO_MMIO_SLOT_LEN * len(layout.GSI_LEGACY)
    assert lowest >= layout.VIRTIO_MMIO_START
    assert layout.MMIO32_END == layout.ECAM_START
