"""The address map: RAM, the frames of the interrupt controller, and nothing on top of anything else."""

import itertools

import pytest

from snapkit.errors import ConfigError
from snapkit.state.spec import address_map
from snapkit.state.spec.address_map import AARCH64
from snapkit.units import GIB, KIB, MIB
from snapkit.vmm.arch.aarch64 import layout


@pytest.mark.parametrize("length", [MIB, 2 * MIB, 6 * GIB, 254 * GIB])
def test_ram_is_one_region_from_2_gib_on(length):
    assert layout.ram_regions(length) == [(0x8000_0000, length)]


@pytest.mark.parametrize("length", [0, 4096, MIB - 4096, 64 * MIB + 1, 254 * GIB + 4096, -MIB])
def test_ram_that_no_machine_can_have_is_refused(length):
    with pytest.raises(ConfigError, match="memory is"):
        layout.ram_regions(length)


@pytest.mark.parametrize("vcpus", [1, 2, 8])
def test_frames_of_the_interrupt_controller_are_stacked_down_from_1_gib(vcpus):
    redistributors, its = layout.redistributors(vcpus), address_map.its_gpa(vcpus)
    assert tuple(redistributors) == (1 * GIB - 64 * KIB - vcpus * 128 * KIB, vcpus * 128 * KIB)
    assert its == redistributors.gpa - 128 * KIB
    assert its % (64 * KIB) == redistributors.gpa % (64 * KIB) == 0


@pytest.mark.parametrize("ipa_bits", [48, 40, 39])
def test_64_bit_window_is_the_published_one_where_it_fits(ipa_bits):
    assert layout.mmio64_window(ipa_bits) == (256 * GIB, 256 * GIB)


@pytest.mark.parametrize("ipa_bits", [38, 36, 33])
def test_64_bit_window_of_a_smaller_space_is_its_upper_half(ipa_bits):
    window = layout.mmio64_window(ipa_bits)
    assert window.gpa == window.length == 1 << ipa_bits - 1
    assert window in AARCH64.windows64


@pytest.mark.parametrize(
    ("length", "tree"),
    [
        (MIB, 0x800F_0000),
        (2 * MIB, 0x801F_0000),
        (2 * GIB, 0xFFFF_0000),
        (2 * GIB + 4096, 0xFFFF_0000),
        (64 * GIB, 0xFFFF_0000),
    ],
)
def test_device_tree_is_at_the_end_of_the_first_2_gib_with_the_generation_id_and_the_ramdisk_below(length, tree):
    assert layout.fdt_gpa(length) == tree
    assert layout.vmgenid_gpa(length) == layout.initrd_end(length) == tree - 4096


def test_devices_and_windows_do_not_overlap():
    slots, slots_end = AARCH64.slots
    places = [
        (address_map.PL011_GPA, address_map.PRIMECELL_LEN),
        (address_map.PL031_GPA, address_map.PRIMECELL_LEN),
        (address_map.its_gpa(8), address_map.ITS_LEN),
        layout.redistributors(8),
        (address_map.GICD_GPA, address_map.GICD_LEN),
        layout.PCI_WINDOW32,
        (slots, slots_end - slots),
        (AARCH64.ecam, layout.ECAM_LEN),
        (layout.RAM_START, layout.RAM_LEN_MAX),
        layout.mmio64_window(40),
    ]
    for (start, length), (after, _) in itertools.pairwise(places):
        assert start + length <= after


def test_affinities_are_those_that_kvm_gives():
    assert [layout.mpidr(vcpu) for vcpu in (0, 1, 7, 15, 16, 0x1234)] == [0, 1, 7, 15, 0x100, 0x1_2304]
