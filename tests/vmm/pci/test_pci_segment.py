"""How configuration space is reached. Numbers re-declared from PCI 3.0, 3.2.2.3.2, and PCI Express 3.0, 7.2.2."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit.errors import ConfigError, ImageError
from snapkit.state.codec import encode
from snapkit.state.pci_segment import PciSegmentState, invariants
from snapkit.units import Gpa
from snapkit.vmm.bus import Bus
from snapkit.vmm.pci import layout
from snapkit.vmm.pci.pci_segment import PciSegment, PciSegmentArgs
from tests.vmm.pci.rig import Rig, Target, fresh

CF8, CFC = 0xCF8, 0xCFC
ECAM, ECAM_LEN = 0xEEC0_0000, 0x10_0000
ENABLE = 0x8000_0000
ONES = {length: (1 << 8 * length) - 1 for length in range(1, 9)}
BRIDGE_ID, VIRTIO_ID = 0x0D57_8086, 0x1042_1AF4
INTERRUPT_LINE, COMMAND = 0x3C, 0x04


def latch(slot: int, register: int = 0, *, function: int = 0, bus: int = 0) -> int:
    return ENABLE | bus << 16 | slot << 11 | function << 8 | register


def ecam(slot: int, register: int = 0, *, function: int = 0) -> int:
    return ECAM + (slot << 15 | function << 12 | register)


class Bench(Rig):
    """A segment with its host bridge and a function in slot 3."""

    def __init__(self, state: PciSegmentState | None = None) -> None:
        super().__init__()
        self.ports = Bus("port")
        self.segment = PciSegment.restore(state or PciSegmentState(), PciSegmentArgs(self.ports, self.bus, Gpa(ECAM)))
        self.segment.add(0, self.function(layout.host_bridge(), "host-bridge"))
        self.chip = self.function(fresh(3), "root", Target())
        self.segment.add(3, self.chip)


@pytest.fixture
def bench():
    return Bench()


# Configuration mechanism 1


def test_latch_reads_back_and_says_what_the_data_port_means(bench):
    bench.ports.write(CF8, 4, latch(3))
    assert bench.ports.read(CF8, 4) == latch(3)
    assert bench.ports.read(CFC, 4) == VIRTIO_ID
    bench.ports.write(CF8, 4, latch(0))
    assert bench.ports.read(CFC, 4) == BRIDGE_ID


def test_bytes_and_words_of_the_data_port_are_bytes_and_words_of_the_register(bench):
    bench.ports.write(CF8, 4, latch(3))
    assert [bench.ports.read(CFC + n, 1) for n in range(4)] == [0xF4, 0x1A, 0x42, 0x10]
    assert bench.ports.read(CFC + 2, 2) == 0x1042
    bench.ports.write(CF8, 4, latch(3, INTERRUPT_LINE))
    bench.ports.write(CFC, 1, 0x5A)
    assert bench.chip.read_config(INTERRUPT_LINE, 1) == 0x5A


def test_data_port_is_dead_without_the_enable_bit(bench):
    bench.ports.write(CF8, 4, latch(3) & ~ENABLE)
    assert bench.ports.read(CFC, 4) == ONES[4]
    bench.ports.write(CFC, 4, 0)
    assert bench.ports.read(CF8, 4) == latch(3) & ~ENABLE


@pytest.mark.parametrize("where", [latch(1), latch(31), latch(3, function=1), latch(3, function=7), latch(3, bus=1)])
def test_where_there_is_no_function_the_data_port_reads_all_ones(bench, where):
    bench.ports.write(CF8, 4, where)
    assert bench.ports.read(CFC, 4) == ONES[4]
    assert bench.ports.read(CFC, 2) == 0xFFFF
    bench.ports.write(CFC, 4, 0)
    assert bench.segment.faults == 0


def test_reserved_bits_of_the_latch_read_as_0(bench):
    bench.ports.write(CF8, 4, ONES[4])
    assert bench.ports.read(CF8, 4) == 0x80FF_FFFC


@pytest.mark.parametrize(("port", "length"), [(CF8, 1), (CF8, 2), (CF8 + 1, 1), (CF8 + 2, 2), (CF8 + 3, 1)])
def test_narrow_writes_beside_the_latch_are_for_other_chips(bench, port, length):
    bench.ports.write(CF8, 4, latch(3))
    bench.ports.write(port, length, 0)
    assert bench.ports.read(port, length) == ONES[length]
    assert bench.ports.read(CF8, 4) == latch(3)


def test_the_probe_that_linux_makes_for_mechanism_1_succeeds(bench):
    bench.ports.write(CF8 + 3, 1, 0x01)
    before = bench.ports.read(CF8, 4)
    bench.ports.write(CF8, 4, ENABLE)
    assert bench.ports.read(CF8, 4) == ENABLE
    bench.ports.write(CF8, 4, before)
    bench.ports.write(CF8, 4, latch(0, 0x08))
    assert bench.ports.read(CFC + 2, 2) == 0x0600


# Enhanced mechanism


def test_ecam_reaches_the_same_functions(bench):
    assert bench.bus.read(ecam(0), 4) == BRIDGE_ID
    assert bench.bus.read(ecam(3), 4) == VIRTIO_ID
    assert bench.bus.read(ecam(3, 2), 2) == 0x1042
    bench.bus.write(ecam(3, INTERRUPT_LINE), 1, 0x0B)
    bench.ports.write(CF8, 4, latch(3, INTERRUPT_LINE))
    assert bench.ports.read(CFC, 1) == 0x0B


@pytest.mark.parametrize(
    "where", [ecam(1), ecam(31), ecam(3, function=1), ecam(3, 0x100), ecam(3, 0xFFC), ecam(31, 0xFFC, function=7)]
)
@pytest.mark.parametrize("length", [1, 2, 4])
def test_where_there_is_nothing_ecam_reads_all_ones(bench, where, length):
    bench.bus.write(where, length, 0)
    assert bench.bus.read(where, length) == ONES[length]
    assert bench.segment.faults == 0


@pytest.mark.parametrize(("register", "length"), [(0, 8), (2, 4), (3, 2), (0xFC, 8), (4, 5), (1, 7)])
def test_access_over_two_dwords_of_ecam_does_nothing_and_is_counted(bench, register, length):
    before = bench.chip.state.config
    bench.bus.write(ecam(3, register), length, 0)
    assert bench.bus.read(ecam(3, register), length) == ONES[length]
    assert bench.chip.state.config == before
    assert bench.segment.faults == 2


def test_bar_moves_by_a_write_through_ecam(bench):
    bench.bus.write(ecam(3, 0x14), 4, 0x41)
    bench.bus.write(ecam(3, COMMAND), 2, 0x2)
    assert bench.chip.decoded(0) == 0x41_0000_0000
    assert bench.bus.read(0x41_0000_0000, 4) == 0x55


# Slots


def test_slot_takes_one_function_and_can_be_emptied(bench):
    with pytest.raises(ConfigError, match="slot 3"):
        bench.segment.add(3, bench.chip)
    bench.segment.remove(3)
    assert bench.bus.read(ecam(3), 4) == ONES[4]
    bench.segment.add(31, bench.chip)
    assert bench.bus.read(ecam(31), 4) == VIRTIO_ID


@pytest.mark.parametrize("slot", [-1, 32])
def test_there_are_32_slots(bench, slot):
    with pytest.raises(ConfigError):
        bench.segment.add(slot, bench.chip)


def test_segment_that_cannot_have_its_ecam_is_on_neither_bus():
    ports, mmio = Bus("port"), Bus("mmio")
    mmio.insert(ECAM + 0x1000, 8, Target())
    with pytest.raises(ConfigError, match="overlaps"):
        PciSegment(PciSegmentState(), ports=ports, mmio=mmio, ecam=Gpa(ECAM))
    ports.insert(CF8, 8, Target())


def test_close_leaves_both_buses_once():
    ports, mmio = Bus("port"), Bus("mmio")
    segment = PciSegment(PciSegmentState(), ports=ports, mmio=mmio, ecam=Gpa(0x7000_0000))
    assert mmio.read(0x7000_0000, 4) == ONES[4]
    assert mmio.unclaimed == 0
    segment.close()
    segment.close()
    ports.insert(CF8, 8, Target())
    mmio.insert(0x7000_0000, ECAM_LEN, Target())


# State


def test_latch_survives_a_save_between_address_and_data(bench):
    bench.ports.write(CF8, 4, latch(3))
    saved = bench.segment.save()
    bench.ports.write(CF8, 4, 0)
    after = Bench(saved)
    assert after.ports.read(CFC, 4) == VIRTIO_ID
    assert encode(after.segment.save()) == encode(saved)


def test_latch_with_bits_that_are_not_there_is_named():
    assert invariants(PciSegmentState(config_address=0x80FF_FFFC), "pci-segment/0") == []
    for bit in (0x1, 0x2, 0x100_0000, 0x4000_0000):
        (finding,) = invariants(PciSegmentState(config_address=bit), "pci-segment/0")
        assert str(finding).startswith("pci-segment/0.config_address is ")


def test_latch_out_of_its_width_is_refused():
    state = msgspec.structs.replace(PciSegmentState(), config_address=1 << 32)
    with pytest.raises(ImageError, match="config_address"):
        PciSegment.restore(state, PciSegmentArgs(Bus("port"), Bus("mmio"), Gpa(ECAM)))


ACCESSES = st.lists(
    st.one_of(
        st.tuples(st.just("ports"), st.integers(CF8, CFC + 3), st.sampled_from([1, 2, 4]), st.integers(0, ONES[4])),
        st.tuples(
            st.just("ports"), st.just(CF8), st.just(4), st.integers(0, 31).map(lambda slot: latch(slot, slot * 4))
        ),
        st.tuples(st.just("bus"), st.integers(ECAM, ECAM + ECAM_LEN), st.integers(1, 8), st.integers(0, ONES[8])),
        st.tuples(st.just("bus"), st.integers(ecam(3), ecam(3, 0x104)), st.integers(1, 8), st.integers(0, ONES[8])),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(accesses=ACCESSES)
def test_whatever_a_guest_accesses_nothing_is_raised_and_the_state_stays_sound(accesses):
    bench = Bench()
    for bus, address, length, value in accesses:
        target: Bus = getattr(bench, bus)
        target.write(address, length, value)
        assert 0 <= target.read(address, length) <= ONES[length]
        assert invariants(bench.segment.save(), "pci-segment/0") == []
    assert bench.bus.read(ecam(0), 4) == BRIDGE_ID
