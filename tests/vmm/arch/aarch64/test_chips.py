"""Which registers of the GIC and the ITS are read and written, and in which order. Offsets re-declared from Arm IHI 0069."""

import errno
from collections.abc import Sequence
from typing import Any

import pytest

from snapkit.errors import HostError, IncompatibleHost
from snapkit.vmm.arch.aarch64.gic import CpuArgs, CpuInterface, Distributor, Redistributor, create_gic
from snapkit.vmm.arch.aarch64.its import Its, create_its

ADDR, DIST, NR_IRQS, CTRL, REDIST, ICC, LEVEL, ITS = 0, 1, 3, 4, 5, 6, 7, 8
SAVE_TABLES, RESTORE_TABLES, SAVE_PENDING = 1, 2, 3
MPIDR = 0x8000_0001
CPU1 = 1 << 32
SGI = 0x1_0000


class Device:
    """A KVM device of paper: what was done to it, and 0 where nothing was written."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int, int, int]] = []
        self.values: dict[tuple[int, int], int] = {}
        self.refused: dict[tuple[int, int], int] = {}
        self.closed = False

    def control(self, group: int, attr: int) -> None:
        self._do("control", group, attr, 0)

    def set(self, group: int, attr: int, value: int) -> None:
        self._do("set", group, attr, value)
        self.values[group, attr] = value

    def set_all(self, groups: Sequence[int], attrs: Sequence[int], values: Sequence[int]) -> None:
        for done, write in enumerate(zip(groups, attrs, values, strict=True)):
            try:
                self.set(*write)
            except HostError as error:
                error.done = done
                raise

    def get_all(self, group: int, attrs: Sequence[int]) -> list[int]:
        for attr in attrs:
            self._do("get", group, attr, 0)
        return [self.values.get((group, attr), 0) for attr in attrs]

    def close(self) -> None:
        self.closed = True

    def _do(self, what: str, group: int, attr: int, value: int) -> None:
        self.done.append((what, group, attr, value))
        if (group, attr) in self.refused:
            raise HostError("KVM_SET_DEVICE_ATTR", self.refused[group, attr])

    def written(self) -> list[tuple[int, int]]:
        return [(group, attr) for what, group, attr, _ in self.done if what != "get"]


@pytest.fixture
def device() -> Any:
    return Device()


class Vm:
    """A VM of paper that makes one device."""

    def __init__(self, device: Any) -> None:
        self.device, self.types = device, list[int]()

    def create_device(self, device_type: int, name: str) -> Any:
        self.types.append(device_type)
        return self.device


def test_a_gic_is_made_where_the_map_puts_it_with_a_redistributor_for_each_cpu(device):
    vm: Any = Vm(device)
    create_gic(vm, 3, 128)
    assert vm.types == [7]
    assert device.done == [
        ("set", ADDR, 2, 0x3FFF_0000),
        ("set", ADDR, 5, 3 << 52 | 0x3FFF_0000 - 3 * 0x2_0000),
        ("set", NR_IRQS, 0, 128),
        ("control", CTRL, 0, 0),
    ]


def test_an_its_lies_below_the_redistributors(device):
    vm: Any = Vm(device)
    create_its(vm, 3)
    assert vm.types == [8]
    assert device.done == [("set", ADDR, 4, 0x3FFF_0000 - 4 * 0x2_0000), ("control", CTRL, 0, 0)]


@pytest.mark.parametrize("create", [lambda vm: create_gic(vm, 1, 128), lambda vm: create_its(vm, 1)])
def test_a_device_that_cannot_be_set_up_is_closed(device, create):
    device.refused[CTRL, 0] = errno.ENODEV
    with pytest.raises(HostError):
        create(Vm(device))
    assert device.closed


def test_a_distributor_is_read_after_pending_lpis_were_written_to_memory(device):
    device.values = {(DIST, 0x6100 + 8 * 95): 0x1, (DIST, 0x420): 0xA0A0_A0A0, (LEVEL, 96): 0x80}
    state = Distributor(device, 128).save()
    assert device.done[0] == ("control", CTRL, SAVE_PENDING, 0)
    assert [len(words) for words in (state.igroupr, state.ipriorityr, state.icfgr, state.irouter)] == [3, 24, 6, 96]
    assert (state.irouter[95], state.ipriorityr[0], state.line_level) == (1, 0xA0A0_A0A0, [0, 0, 0x80])
    read = [attr for what, group, attr, _ in device.done if (what, group) == ("get", DIST)]
    first = {0x84, 0x104, 0x204, 0x304, 0x420, 0xC08, 0x6100}  # of INTID 32
    assert first < set(read)
    assert not {0x80, 0x100, 0x200, 0x300, 0x41C, 0xC04, 0x60F8} & set(read), "those are each CPU's own"


def test_a_distributor_is_loaded_from_its_revision_on_without_the_zeros_of_a_new_one(device):
    state = Distributor(device, 64).save()
    state.iidr, state.ctlr, state.irouter[3], state.line_level, state.ispendr = 0x4B00_243B, 0x52, 1, [4], [4]
    device.done.clear()
    chip = Distributor.restore(state, device)
    assert device.done == []
    chip.load()
    assert device.written()[:2] == [(DIST, 0x8), (DIST, 0x0)]
    assert {(DIST, 0x84), (DIST, 0xC08), (DIST, 0xC0C)} <= set(device.written()), "neither is 0 from reset on"
    assert [attr for _, attr in device.written() if attr >= 0x6000] == [0x6100 + 8 * 3]
    assert device.written()[-1] == (LEVEL, 32)
    device.done.clear()
    chip.load()
    assert device.done == [], "once"


def test_a_revision_that_kvm_has_not_is_refused_by_name(device):
    state = Distributor(device, 64).save()
    state.iidr = 0x4B00_F43B
    device.refused[DIST, 0x8] = errno.EINVAL
    with pytest.raises(IncompatibleHost, match="KVM refuses IIDR of gicv3-distributor value 0x4b00f43b"):
        Distributor.restore(state, device).load()


def test_a_redistributor_is_loaded_frame_by_frame_with_its_control_register_last_of_the_first(device):
    args = CpuArgs(device, MPIDR)
    state = Redistributor(args).save()
    state.propbaser, state.pendbaser, state.ctlr = 0x1_8000_0000, 0x8001_0000, 1
    state.isenabler0, state.line_level = 0x0800_000F, 1 << 20
    device.done.clear()
    Redistributor.restore(state, args).load()
    written = [(group, attr - CPU1) for group, attr in device.written()]
    control, first_of_sgi = written.index((REDIST, 0)), written.index((REDIST, SGI | 0x80))
    assert {written.index((REDIST, at)) for at in (0x70, 0x74, 0x78)} < set(range(control))
    assert control + 1 == first_of_sgi
    assert written.index((REDIST, SGI | 0x180)) < written.index((REDIST, SGI | 0x100))
    assert written[-1] == (LEVEL, 0)
    assert device.values[REDIST, CPU1 | 0x74] == 1
    assert not {(REDIST, 0x4), (REDIST, 0x8)} & set(written), "what says which it is cannot be written"


def test_tables_that_no_guest_gave_are_not_written_since_kvm_makes_another_value_of_zero(device):
    args = CpuArgs(device, MPIDR)
    state = Redistributor(args).save()
    assert (state.propbaser, state.pendbaser) == (0, 0)
    device.done.clear()
    Redistributor.restore(state, args).load()
    assert not {(REDIST, CPU1 | at) for at in (0x70, 0x74, 0x78, 0x7C)} & set(device.written())


def test_the_lines_of_the_timers_are_saved_low(device):
    device.values = {(LEVEL, CPU1): 0xFFFF_FFFF, (REDIST, CPU1 | 0x8): 0x111, (REDIST, CPU1 | 0xC): 1}
    state = Redistributor(CpuArgs(device, MPIDR)).save()
    assert state.line_level == 0xFFFF_FFFF & ~(1 << 27 | 1 << 30)
    assert state.typer == 1 << 32 | 0x111


@pytest.mark.parametrize(("bits", "count"), [(5, 1), (6, 2), (7, 4)])
def test_a_cpu_interface_has_as_many_active_priorities_as_its_priority_bits_say(device, bits, count):
    device.values[ICC, CPU1 | 0xC664] = (bits - 1) << 8  # ICC_CTLR_EL1: 3, 0, 12, 12, 4
    state = CpuInterface(CpuArgs(device, MPIDR)).save()
    assert len(state.icc_ap0r_el1) == len(state.icc_ap1r_el1) == count
    device.done.clear()
    CpuInterface.restore(state, CpuArgs(device, MPIDR)).load()
    assert device.written()[:2] == [(ICC, CPU1 | 0xC665), (ICC, CPU1 | 0xC664)]
    active = [attr for _, attr in device.written() if 0xC644 <= attr & 0xFFFF <= 0xC64B]
    assert active == [CPU1 | 0xC644 + n for n in range(count)] + [CPU1 | 0xC648 + n for n in range(count)]


@pytest.mark.parametrize(
    ("save", "attr", "where"),
    [
        (lambda device: Distributor(device, 128).save(), SAVE_PENDING, "GICR_PENDBASER"),
        (lambda device: Its(device).save(), SAVE_TABLES, "GITS_BASER"),
    ],
)
def test_tables_that_kvm_cannot_write_are_told_with_the_register_that_says_where(device, save, attr, where):
    device.refused[CTRL, attr] = errno.EFAULT
    with pytest.raises(HostError, match="EFAULT") as failed:
        save(device)
    assert where in "".join(failed.value.__notes__)


def test_an_its_is_read_after_its_tables_were_written_to_memory(device):
    Its(device).save()
    assert device.done[0] == ("control", CTRL, SAVE_TABLES, 0)


def test_an_its_reads_its_tables_once_it_knows_where_and_is_enabled_last(device):
    state = Its(device).save()
    state.cbaser, state.ctlr, state.baser = 1 << 63, 1, list(range(8))
    device.done.clear()
    Its.restore(state, device).load()
    basers = [(ITS, 0x100 + 8 * number) for number in range(8)]
    assert device.written() == [
        (ITS, 0x4),
        (ITS, 0x80),
        (ITS, 0x90),
        (ITS, 0x88),
        *basers,
        (CTRL, RESTORE_TABLES),
        (ITS, 0x0),
    ]


def test_a_queue_that_the_guest_never_placed_is_not_placed(device):
    state = Its(device).save()
    device.done.clear()
    Its.restore(state, device).load()
    assert (ITS, 0x80) not in device.written()


def test_an_its_of_another_kind_and_tables_that_kvm_refuses_are_named(device):
    state = Its(device).save()
    state.typer = 5
    with pytest.raises(IncompatibleHost, match="GITS_TYPER is 0x5, KVM's is 0x0"):
        Its.restore(state, device).load()
    device.values[ITS, 0x8] = 5
    device.refused[CTRL, RESTORE_TABLES] = errno.EFAULT
    with pytest.raises(IncompatibleHost, match="KVM refuses the tables of the ITS"):
        Its.restore(state, device).load()
