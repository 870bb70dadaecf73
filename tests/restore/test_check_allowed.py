"""What a guest may do to its devices and CPUs, and no check may hold against it: its snapshot must restore."""

import pytest

from snapkit.restore.check import pci as pci_checks
from snapkit.state.codec import checked
from snapkit.state.pci_msix import MsixEntryState
from snapkit.state.spec import address_map
from snapkit.state.vcpu_aarch64 import Reg
from snapkit.state.virtio_pci import VirtioPciState
from snapkit.vmm.arch.x86_64 import layout
from snapkit.vmm.virtio import pci_layout
from tests.grounds import AARCH64, X86_64
from tests.restore import arm_chips
from tests.restore.broken import ARM0, ARM1, TABLE, VCPU0, VCPU1, at, findings, good, move_bar, msix_at, patch
from tests.restore.device_machine import DEVICES, States, busy_machine, fresh_machine, with_ram


def pending_bar_move(states: States) -> None:
    patch(states, "root", 4, b"\0\0")
    patch(states, "root", 0x10, (0xC000_0000 | 4).to_bytes(8, "little"))


def bar_moved_where_nothing_is(states: States) -> None:
    patch(states, "root", 4, b"\0\0")
    patch(states, "root", 0x10, (0x8_0000 | 4).to_bytes(8, "little"))


def half_a_size_probe(states: States) -> None:
    patch(states, "root", 4, b"\0\0")
    patch(states, "root", 0x10, (0xFFF8_0004).to_bytes(4, "little"))


def bar_moved_below_4_gib(states: States) -> None:
    move_bar(states, "rng", 0xC008_0000, "mmio32")


def bars_in_another_order(states: States) -> None:
    move_bar(states, "root", 0x70_0000_0000)


def nonsense_rings_before_driver_ok(states: States) -> None:
    at(states, "virtio-pci").device_status = 0x0B
    at(states, "virtio-block").queues[0].desc = 0xFFFF_FFFF_FFFF_FFFF


def nonsense_rings_of_a_broken_device(states: States) -> None:
    at(states, "virtio-pci").device_status |= 0x40
    at(states, "virtio-block").broken = True
    at(states, "virtio-block").queues[0].desc = 0xFFFF_FFFF_FFFF_FFFF


def nonsense_rings_that_are_not_ready(states: States) -> None:
    at(states, "virtio-block").queues[0].ready = False
    at(states, "virtio-block").queues[0].device = 7


def features_written_but_not_accepted(states: States) -> None:
    at(states, "virtio-block").acked = 0
    at(states, "virtio-pci").device_status = 0x03
    at(states, "virtio-pci").driver_features = [0xFFFF_FFFF, 0xFFFF_FFFF]


def driver_gave_up(states: States) -> None:
    at(states, "virtio-pci").device_status |= 0x80


def vectors_shared_by_all_queues(states: States) -> None:
    at(states, "virtio-pci", "v0").queue_msix_vectors = [0, 0, 0]


def no_vectors_chosen(states: States) -> None:
    carrier: VirtioPciState = at(states, "virtio-pci", "v0")
    carrier.config_msix_vector, carrier.queue_msix_vectors = 0xFFFF, [0xFFFF] * 3


def everything_pending(states: States) -> None:
    at(states, "pci-msix", "v0").pending[0] = 0xF


def open_vector_with_no_address(states: States) -> None:
    entry: MsixEntryState = at(states, "pci-msix", "root").entries[1]
    entry.address = entry.data = 0
    states[TABLE].routes[0].address = states[TABLE].routes[0].data = 0


def function_masked_with_open_entries(states: States) -> None:
    patch(states, "root", msix_at(states) + 3, b"\xc0")
    states[TABLE].routes = [route for route in states[TABLE].routes if route.owner != "pci-msix/root"]


def window_to_bar_left_open(states: States) -> None:
    at_window = pci_layout.window(at(states, "pci-function").config) or 0
    patch(states, "root", at_window + 8, (0xFFFF_FFFF).to_bytes(4, "little"))


def bar_move_refused_with_decoding_on(states: States) -> None:
    patch(states, "root", 0x10, (0x8_0000 | 4).to_bytes(8, "little"))


def requests_kept_by_a_broken_device(states: States) -> None:
    at(states, "virtio-pci").device_status |= 0x40
    at(states, "virtio-block").broken = True
    at(states, "virtio-block").queues[0].next_avail += 3


def rings_over_each_other(states: States) -> None:
    queue = at(states, "virtio-block").queues[0]
    queue.driver = queue.device = queue.desc


def apic_off(states: States) -> None:
    states[VCPU0].sregs.apic_base = 0xFEE0_0100


def apic_moved(states: States) -> None:
    states[VCPU0].sregs.apic_base = 0xFEF0_0900


def apic_id_changed(states: States) -> None:
    states[VCPU0].lapic = states[VCPU0].lapic[:0x23] + b"\x55" + states[VCPU0].lapic[0x24:]


def x2apic_mode(states: States) -> None:
    states[VCPU0].sregs.apic_base |= 0x400


def redirection_entries_of_all_ones(states: States) -> None:
    at(states, "irqchip-x86", "0").ioapic.redirtbl = [(1 << 64) - 1] * 24


def protected_mode_without_paging(states: States) -> None:
    sregs = states[VCPU0].sregs
    sregs.cr0, sregs.cr4, sregs.efer, sregs.cs.l = 0x11, 0, 0, 0
    states[VCPU0].msrs[2].data = 0


def five_level_paging_that_cpuid_tells(states: States) -> None:
    states[VCPU0].cpuid[2].ecx |= 1 << 16
    states[VCPU0].sregs.cr4 |= 1 << 12


def only_x87_enabled(states: States) -> None:
    states[VCPU0].xcrs[0].value = 1


def nonsense_in_debug_registers(states: States) -> None:
    states[VCPU0].debugregs.db = [(1 << 64) - 1] * 4
    states[VCPU0].debugregs.dr6 = states[VCPU0].debugregs.dr7 = 0xFFFF_FFFF


def misaligned_sse_mode(states: States) -> None:
    states[VCPU0].xsave = states[VCPU0].xsave[:26] + b"\2" + states[VCPU0].xsave[27:]  # MXCSR.MM, on AMD's processors


def an_init_that_waits(states: States) -> None:
    """A message of delivery mode INIT that was sent between two reads of a save."""
    states[VCPU0].events.smi_latched_init = 1


ALLOWED = [
    pending_bar_move,
    bar_moved_where_nothing_is,
    half_a_size_probe,
    bar_moved_below_4_gib,
    bars_in_another_order,
    nonsense_rings_before_driver_ok,
    nonsense_rings_of_a_broken_device,
    nonsense_rings_that_are_not_ready,
    features_written_but_not_accepted,
    driver_gave_up,
    vectors_shared_by_all_queues,
    no_vectors_chosen,
    everything_pending,
    open_vector_with_no_address,
    function_masked_with_open_entries,
    window_to_bar_left_open,
    bar_move_refused_with_decoding_on,
    requests_kept_by_a_broken_device,
    rings_over_each_other,
    apic_off,
    apic_moved,
    apic_id_changed,
    x2apic_mode,
    redirection_entries_of_all_ones,
    protected_mode_without_paging,
    five_level_paging_that_cpuid_tells,
    only_x87_enabled,
    nonsense_in_debug_registers,
    misaligned_sse_mode,
    an_init_that_waits,
]


@pytest.mark.parametrize("change", ALLOWED, ids=lambda change: change.__name__)
def test_what_a_guest_may_leave_behind_is_no_finding(change):
    states = good("pci")
    change(states)
    assert findings(states) == []


def lpi_tables_nowhere(states: States) -> None:
    redistributor = at(states, "gicv3-redistributor", "0")
    redistributor.propbaser, redistributor.pendbaser = 0x1_0000_0000_0000, 0


def lpis_disabled_again(states: States) -> None:
    at(states, "gicv3-redistributor", "0").ctlr = 6


def interrupts_for_cpus_that_there_are_not(states: States) -> None:
    at(states, "gicv3-distributor", "0").irouter = [0xFF_FFFF] * 96


def all_ones_in_the_distributor(states: States) -> None:
    distributor = at(states, "gicv3-distributor", "0")
    for name in ("igroupr", "isenabler", "ispendr", "isactiver", "ipriorityr"):
        setattr(distributor, name, [0xFFFF_FFFF] * len(getattr(distributor, name)))


def distributor_off(states: States) -> None:
    at(states, "gicv3-distributor", "0").ctlr = 0x50


def queue_of_the_its_nowhere(states: States) -> None:
    at(states, "gicv3-its", "0").cbaser |= 0xF_FFFF_0000_0000


def an_its_that_waits_for_its_enabling(states: States) -> None:
    its = at(states, "gicv3-its", "0")
    its.ctlr, its.creadr = 0, 0
    its.baser[0] &= ~(1 << 63)


def an_its_as_kvm_makes_it(states: States) -> None:
    its = at(states, "gicv3-its", "0")
    its.ctlr, its.cbaser, its.creadr, its.cwriter = 0x8000_0000, 0, 0, 0
    its.baser = [0x3900_0000_0000_0600, 0x3C00_0000_0000_0600, *[0] * 6]


def all_cpus_stopped(states: States) -> None:
    states[ARM0].mp_state = 5


def user_code_of_32_bits(states: States) -> None:
    next(reg for reg in states[ARM0].regs if reg.id == arm_chips.PSTATE).value = 0x6000_0030


def nonsense_in_system_registers(states: States) -> None:
    for reg in states[ARM0].regs:
        if reg.id in (arm_chips.SCTLR, arm_chips.TIMER_CTL, arm_chips.TIMER_CVAL, arm_chips.PC):
            reg.value = (1 << 64) - 1


def no_redistributor_told_to_be_the_last(states: States) -> None:
    for section, state in states.items():
        if section.kind == "gicv3-redistributor":
            state.typer &= ~(1 << 4)


ALLOWED_ON_ARM = [
    lpi_tables_nowhere,
    lpis_disabled_again,
    interrupts_for_cpus_that_there_are_not,
    all_ones_in_the_distributor,
    distributor_off,
    queue_of_the_its_nowhere,
    an_its_that_waits_for_its_enabling,
    an_its_as_kvm_makes_it,
    all_cpus_stopped,
    user_code_of_32_bits,
    nonsense_in_system_registers,
    no_redistributor_told_to_be_the_last,
]


@pytest.mark.parametrize("change", ALLOWED_ON_ARM, ids=lambda change: change.__name__)
def test_what_an_aarch64_guest_may_leave_behind_is_no_finding(change):
    states = good("arm-pci")
    change(states)
    assert findings(states) == []


def test_cpus_with_sve_have_nothing_wrong():
    states = good("arm-none")
    for section in (ARM0, ARM1):
        arm_chips.with_sve(states[section])
        states[section].features[0] |= arm_chips.PTRAUTH
    assert findings(states) == []


def test_the_physical_counter_is_one_for_all_cpus_as_well():
    states = good("arm-none")
    states[ARM0].regs.append(Reg(id=arm_chips.PTIMER_CNT, value=7))
    states[ARM0].realtime_ns = 1_790_000_000 * 10**9
    assert findings(states) == []
    states[ARM1].regs.append(Reg(id=arm_chips.PTIMER_CNT, value=7))
    assert [finding.rule for finding in findings(states)] == ["vcpus.counter"]


@pytest.mark.parametrize("vcpus", [1, 2, 8, 17])
def test_any_number_of_aarch64_cpus_is_numbered_as_kvm_does(vcpus):
    assert findings(fresh_machine(None, vcpus, AARCH64)) == []


def each_its_own_cpuid(states: States) -> None:
    """OSXSAVE and OSPKE follow CR4, the sizes of leaf 0xD XCR0."""
    leaves = states[VCPU1].cpuid
    leaves[1].ecx ^= 1 << 27
    leaves[2].ecx ^= 1 << 4
    leaves[4].ebx = 0x240


def test_cpus_differ_in_what_is_their_own():
    states = good("none")
    each_its_own_cpuid(states)
    assert findings(states) == []


@pytest.mark.parametrize("on", [X86_64, AARCH64], ids=["x86-64", "aarch64"])
@pytest.mark.parametrize("transport", [None, "pci", "mmio"])
def test_a_machine_that_was_just_switched_on_has_nothing_wrong(transport, on):
    assert findings(fresh_machine(transport, on=on)) == []


@pytest.mark.parametrize("on", [X86_64, AARCH64], ids=["x86-64", "aarch64"])
@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_machine_at_work_is_encodable(transport, on):
    states = busy_machine(transport, on)
    assert {name: checked(state) for name, state in states.items()} == states


def test_rings_may_lie_in_any_region_of_ram_but_not_across_two():
    states = with_ram(busy_machine("pci"), (0, 0x40_0000), (1 << 32, 0x40_0000))
    block = at(states, "virtio-block")
    block.queues[0].desc = 1 << 32
    told = {finding.rule for finding in findings(states)}
    assert told == {"memory.file"}  # the file's memory has one region only
    block.queues[0].desc = 0x40_0000 - 16
    assert "virtio.ring" in {finding.rule for finding in findings(states)}


def test_the_monitors_layout_restates_the_address_map():
    assert address_map.X86_64.pool("mmio32") == (layout.MMIO32_START, layout.MMIO32_END)
    assert address_map.X86_64.pool("mmio64") == (layout.MMIO64_START, layout.MMIO64_START + layout.MMIO64_LEN)
    assert range(*address_map.X86_64.pool("gsi-legacy")) == layout.GSI_LEGACY
    assert range(*address_map.X86_64.pool("gsi-msi")) == layout.GSI_MSI
    assert address_map.X86_64.slots == (layout.VIRTIO_MMIO_START, layout.MMIO32_END)
    assert address_map.X86_64.ecam == layout.ECAM_START
    assert address_map.X86_64.pins["serial-16550"] == (layout.GSI_SERIAL, True)
    assert pci_checks.VIRTIO_BAR == (pci_layout.BAR, 64, pci_layout.BAR_LEN)
    low, high = layout.ram_regions(layout.RAM_LEN_MAX)
    assert ((low[0], sum(low)), (high[0], layout.MMIO64_START)) == address_map.X86_64.ram
    assert sum(high) <= layout.MMIO64_START


def test_every_kind_of_device_is_in_the_machine_that_is_broken():
    kinds = {name.kind for transport in ("pci", "mmio") for name in fresh_machine(transport)}
    assert set(DEVICES) <= kinds
    assert {"virtio-pci", "virtio-mmio", "pci-msix", "pci-function", "pci-segment", "vmgenid"} <= kinds
