"""New configuration spaces, byte for byte. Offsets re-declared from the PCI Local Bus Specification 3.0, chapter 6."""

import pytest

from snapkit.errors import InternalError
from snapkit.state.pci_function import PciFunctionState, invariants
from snapkit.vmm.pci.layout import add_bar, add_capability, header, host_bridge, msix_capability

MSIX, VENDOR = 0x11, 0x09


def test_header_lies_where_the_specification_says():
    config = header(
        vendor=0x1AF4,
        device=0x1042,
        revision=1,
        class_code=0x01_8000,
        subsystem_vendor=0x1234,
        subsystem=0x5678,
        command=0x0406,
    )
    expected = bytearray(256)
    expected[0x00:0x0C] = bytes.fromhex("f41a 4210 0604 0000 01 008001")
    expected[0x2C:0x30] = bytes.fromhex("3412 7856")
    assert bytes(config) == bytes(expected)


def test_bars_carry_type_and_address():
    config = header(vendor=1, device=2, class_code=0)
    first = add_bar(config, 0, width=64, address=0x12_3400_0000, length=0x8_0000)
    second = add_bar(config, 2, width=32, address=0xC000_1000, length=0x1000, prefetchable=True)
    assert (first.index, first.width, first.length, first.address) == (0, 64, 0x8_0000, 0x12_3400_0000)
    assert (second.index, second.width) == (2, 32)
    assert bytes(config[0x10:0x28]) == bytes.fromhex("04000034 12000000 081000c0") + bytes(12)


def test_capabilities_are_chained_in_order_from_0x40():
    config = header(vendor=1, device=2, class_code=0)
    assert config[0x06] == 0
    first = add_capability(config, VENDOR, bytes((16, 1)) + bytes(12))
    second = add_capability(config, VENDOR, bytes((5, 2, 0)))
    third = add_capability(config, MSIX, msix_capability(4, table=(0, 0x8000), pba=(0, 0x4_8000)))
    assert (first, second, third) == (0x40, 0x50, 0x58)
    assert config[0x06] == 0x10
    assert config[0x34] == 0x40
    assert (config[0x41], config[0x51], config[0x59]) == (0x50, 0x58, 0)
    assert bytes(config[0x58:0x64]) == bytes.fromhex("1100 0300 00800000 00800400")
    assert invariants(PciFunctionState(slot=1, config=bytes(config), bars=[]), "x") == []


def test_capability_that_ends_in_zeros_is_not_written_over():
    config = header(vendor=1, device=2, class_code=0)
    add_capability(config, VENDOR, bytes((20,)) + bytes(17))
    assert add_capability(config, VENDOR, bytes((4, 1))) == 0x54


def test_capabilities_fill_the_space_and_no_more():
    config = header(vendor=1, device=2, class_code=0)
    for _ in range(12):
        add_capability(config, VENDOR, bytes((16,)) + bytes(13))
    with pytest.raises(InternalError, match="0x9"):
        add_capability(config, VENDOR, bytes((16,)))
    assert config[0xF0] == VENDOR


@pytest.mark.parametrize(
    "bar",
    [
        {"index": 0, "width": 16},
        {"index": 5},
        {"index": 6, "width": 32, "address": 0},
        {"index": 0, "length": 8},
        {"index": 0, "length": 0x1800},
        {"index": 0, "address": 0x800},
        {"index": 0, "width": 32},
        {"index": 2},
        {"index": 1},
    ],
)
def test_bar_that_cannot_be_is_our_bug(bar):
    config = header(vendor=1, device=2, class_code=0)
    add_bar(config, 2, width=64, address=0x40_0000_0000, length=0x1000)
    with pytest.raises(InternalError, match="BAR"):
        add_bar(config, **{"width": 64, "address": 0x41_0000_0000, "length": 0x1000, **bar})


@pytest.mark.parametrize(
    ("vectors", "table", "pba"),
    [(0, (0, 0), (0, 0x800)), (2049, (0, 0), (0, 0x800)), (1, (0, 4), (0, 0x800)), (1, (0, 0), (6, 0x800))],
)
def test_msix_that_cannot_be_told_is_our_bug(vectors, table, pba):
    with pytest.raises(InternalError, match="MSI-X"):
        msix_capability(vectors, table=table, pba=pba)


def test_host_bridge_is_a_bridge_to_a_host_and_nothing_else():
    state = host_bridge()
    assert state.slot == 0
    assert state.config[:16] == bytes.fromhex("8680 570d 0000 0000 00 000006 00 00 00 00")
    assert state.config[16:] == bytes(240)
    assert state.bars == []
