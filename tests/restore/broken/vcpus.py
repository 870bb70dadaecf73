"""CPUs that are not one machine's, and registers that KVM neither gives nor takes."""

import copy

from snapkit.state.schema import SectionId
from snapkit.state.vcpu_x86_64 import Msr, Xcr
from tests.restore.broken import (
    MACHINE,
    VCPU0,
    VCPU1,
    broken,
)
from tests.restore.device_machine import States


@broken("none", "vcpus.dense: machine/0.vcpu_count")
def no_vcpus(states: States) -> None:
    states[MACHINE].vcpu_count = 0
    del states[VCPU0], states[VCPU1]


@broken("none", "vcpus.dense: vcpu-x86-64")
def one_vcpu_more(states: States) -> None:
    states[MACHINE].vcpu_count = 3


@broken("none", "vcpus.dense: vcpu-x86-64", "vcpus.dense: vcpu-x86-64/spare.id")
def a_vcpu_by_name(states: States) -> None:
    states[SectionId("vcpu-x86-64", "spare")] = states.pop(VCPU1)


@broken(
    "none",
    "vcpus.cpuid-id: vcpu-x86-64/1.cpuid[1].ebx",
    "vcpus.cpuid-id: vcpu-x86-64/1.cpuid[3].edx",
    "vcpus.dense: vcpu-x86-64/1.id",
)
def vcpus_twice(states: States) -> None:
    states[VCPU1].id = 0


@broken("none", "vcpus.unique: vcpu-x86-64/0.msrs")
def msr_twice(states: States) -> None:
    states[VCPU0].msrs.append(Msr(index=0x10, data=2))


@broken("none", "vcpus.unique: vcpu-x86-64/0.cpuid", "vcpus.unique: vcpu-x86-64/1.cpuid")
def cpuid_leaf_twice(states: States) -> None:
    states[VCPU0].cpuid.append(copy.copy(states[VCPU0].cpuid[0]))
    states[VCPU1].cpuid.append(copy.copy(states[VCPU1].cpuid[0]))


@broken("none", "vcpus.unique: vcpu-x86-64/0.xcrs")
def xcr_twice(states: States) -> None:
    states[VCPU0].xcrs.append(Xcr(xcr=0, value=1))


@broken("none", "vcpus.cpuid-agree: vcpu-x86-64/1.cpuid[0]")
def cpus_of_two_vendors(states: States) -> None:
    states[VCPU1].cpuid[0].ebx ^= 1


@broken("none", "vcpus.cpuid-agree: vcpu-x86-64/1.cpuid[1]")
def cpus_of_two_features(states: States) -> None:
    states[VCPU1].cpuid[1].ecx ^= 1


@broken("none", "vcpus.cpuid-agree: vcpu-x86-64/1.cpuid")
def a_cpu_without_a_leaf(states: States) -> None:
    del states[VCPU1].cpuid[-1]


@broken("none", "vcpus.cpuid-agree: vcpu-x86-64/1.cpuid[2]")
def a_cpu_with_another_leaf_flag(states: States) -> None:
    states[VCPU1].cpuid[2].flags = 0


@broken("none", "vcpus.cpuid-id: vcpu-x86-64/1.cpuid[1].ebx")
def apic_id_of_another_in_leaf_1(states: States) -> None:
    states[VCPU1].cpuid[1].ebx &= 0xFF_FFFF


@broken("none", "vcpus.cpuid-id: vcpu-x86-64/1.cpuid[3].edx")
def apic_id_of_another_in_leaf_b(states: States) -> None:
    states[VCPU1].cpuid[3].edx = 0


@broken("none", "vcpus.cpuid-width: vcpu-x86-64/0.cpuid[6].eax", "vcpus.cpuid-width: vcpu-x86-64/1.cpuid[6].eax")
def linear_addresses_of_49_bits(states: States) -> None:
    states[VCPU0].cpuid[-1].eax = states[VCPU1].cpuid[-1].eax = 0x3130


@broken("none", "vcpus.mp-state: vcpu-x86-64/1.mp_state")
def unknown_mp_state(states: States) -> None:
    states[VCPU1].mp_state = 4


@broken("none", "vcpus.cr0: vcpu-x86-64/0.sregs.cr0")
def paging_without_protection(states: States) -> None:
    states[VCPU0].sregs.cr0 &= ~1


@broken("none", "vcpus.cr0: vcpu-x86-64/0.sregs.cr0")
def not_write_through_with_caches(states: States) -> None:
    states[VCPU0].sregs.cr0 |= 1 << 29


@broken("none", "vcpus.cr0: vcpu-x86-64/0.sregs.cr0")
def cr0_above_32_bits(states: States) -> None:
    states[VCPU0].sregs.cr0 |= 1 << 32


@broken("none", "vcpus.cr4: vcpu-x86-64/0.sregs.cr4")
def undefined_bit_of_cr4(states: States) -> None:
    states[VCPU0].sregs.cr4 |= 1 << 15


@broken("none", "vcpus.long-mode: vcpu-x86-64/0.sregs.efer")
def long_mode_enabled_but_not_active(states: States) -> None:
    states[VCPU0].sregs.efer = states[VCPU0].msrs[2].data = 0x901


@broken("none", "vcpus.long-mode: vcpu-x86-64/0.sregs.efer")
def long_mode_without_pae(states: States) -> None:
    states[VCPU0].sregs.cr4 &= ~0x20


@broken("none", "vcpus.long-mode: vcpu-x86-64/0.sregs.efer")
def long_mode_active_without_paging(states: States) -> None:
    states[VCPU0].sregs.cr0 &= ~(1 << 31)


@broken("none", "vcpus.long-mode: vcpu-x86-64/0.sregs.cs.l")
def a_64_bit_segment_outside_long_mode(states: States) -> None:
    states[VCPU0].sregs.efer = states[VCPU0].msrs[2].data = 0


@broken("none", "vcpus.efer: vcpu-x86-64/0.msrs[2].data")
def two_values_of_efer(states: States) -> None:
    states[VCPU0].msrs[2].data = 0xD00


@broken("none", "vcpus.apic-base: vcpu-x86-64/0.sregs.apic_base")
def reserved_bit_of_the_apic_base(states: States) -> None:
    states[VCPU0].sregs.apic_base |= 1 << 9


@broken("none", "vcpus.apic-base: vcpu-x86-64/0.sregs.apic_base")
def x2apic_mode_while_off(states: States) -> None:
    states[VCPU0].sregs.apic_base = 0xFEE0_0500


@broken("none", "vcpus.lapic-id: vcpu-x86-64/1.lapic[32:36]")
def x2apic_id_of_another(states: States) -> None:
    states[VCPU1].sregs.apic_base = 0xFEE0_0C00
    states[VCPU1].lapic = states[VCPU0].lapic


@broken("none", "vcpus.lapic-id: vcpu-x86-64/0.lapic[32:36]")
def apic_id_with_a_fraction(states: States) -> None:
    states[VCPU0].lapic = states[VCPU0].lapic[:0x20] + b"\1\0\0\0" + states[VCPU0].lapic[0x24:]


@broken("none", "vcpus.task-priority: vcpu-x86-64/0.sregs.cr8")
def two_task_priorities(states: States) -> None:
    states[VCPU0].sregs.cr8 = 3


@broken("none", "vcpus.interrupt: vcpu-x86-64/0.sregs.interrupt_bitmap")
def two_interrupts_at_once(states: States) -> None:
    states[VCPU0].sregs.interrupt_bitmap[0] = 1 << 40


@broken("none", "vcpus.interrupt: vcpu-x86-64/0.sregs.interrupt_bitmap")
def interrupt_that_events_do_not_tell(states: States) -> None:
    states[VCPU0].events.interrupt_injected = 0


@broken("none", "vcpus.xcr0: vcpu-x86-64/0.xcrs[1].xcr")
def xcr_other_than_0(states: States) -> None:
    states[VCPU0].xcrs.append(Xcr(xcr=1, value=1))


@broken("none", "vcpus.xcr0: vcpu-x86-64/0.xcrs[0].value")
def xcr0_without_x87(states: States) -> None:
    states[VCPU0].xcrs[0].value = 6


@broken("none", "vcpus.xcr0: vcpu-x86-64/0.xcrs[0].value")
def avx_without_sse(states: States) -> None:
    states[VCPU0].xcrs[0].value = 5


@broken("none", "vcpus.xcr0: vcpu-x86-64/0.xcrs[0].value")
def feature_that_cpuid_does_not_list(states: States) -> None:
    states[VCPU0].xcrs[0].value = 0x207


@broken("none", "vcpus.xsave: vcpu-x86-64/0.xsave[512:520]")
def unknown_extended_state(states: States) -> None:
    states[VCPU0].xsave = states[VCPU0].xsave[:519] + b"\x80" + states[VCPU0].xsave[520:]


@broken("none", "vcpus.xsave: vcpu-x86-64/0.xsave[520:576]")
def compacted_extended_state(states: States) -> None:
    states[VCPU0].xsave = states[VCPU0].xsave[:527] + b"\x80" + states[VCPU0].xsave[528:]


@broken("none", "vcpus.debug: vcpu-x86-64/0.debugregs.dr6")
def dr6_above_32_bits(states: States) -> None:
    states[VCPU0].debugregs.dr6 |= 1 << 32


@broken("none", "vcpus.debug: vcpu-x86-64/0.debugregs.dr7")
def dr7_above_32_bits(states: States) -> None:
    states[VCPU0].debugregs.dr7 |= 1 << 63


@broken("none", "vcpus.debug: vcpu-x86-64/0.debugregs.flags")
def debug_flags(states: States) -> None:
    states[VCPU0].debugregs.flags = 1


@broken("none", "vcpus.exception: vcpu-x86-64/0.events.exception_nr")
def exception_that_there_is_not(states: States) -> None:
    states[VCPU0].events.exception_injected = 1
    states[VCPU0].events.exception_nr = 32


@broken("none", "vcpus.exception: vcpu-x86-64/0.events.exception_nr")
def nmi_as_an_exception(states: States) -> None:
    states[VCPU0].events.exception_injected = 1
    states[VCPU0].events.exception_nr = 2


@broken("none", "vcpus.events: vcpu-x86-64/0.events.flags")
def event_of_a_capability_that_is_off(states: States) -> None:
    states[VCPU0].events.flags |= 0x20


@broken("none", "vcpus.mp-state: vcpu-x86-64/1.mp_state")
def mp_state_of_another_architecture(states: States) -> None:
    states[VCPU1].mp_state = 5


@broken("none", "vcpus.rflags: vcpu-x86-64/0.regs.rflags")
def rflags_without_its_one(states: States) -> None:
    states[VCPU0].regs.rflags = 0


@broken("none", "vcpus.rflags: vcpu-x86-64/0.regs.rflags")
def rflags_with_a_reserved_bit(states: States) -> None:
    states[VCPU0].regs.rflags = 0x8002


@broken("none", "vcpus.xsave: vcpu-x86-64/0.xsave[24:28]")
def mxcsr_of_17_bits(states: States) -> None:
    states[VCPU0].xsave = states[VCPU0].xsave[:26] + b"\1" + states[VCPU0].xsave[27:]


@broken("none", "vcpus.exception: vcpu-x86-64/0.events.exception_pending")
def exception_that_waits_for_nothing(states: States) -> None:
    states[VCPU0].events.exception_pending = 1
    states[VCPU0].events.exception_nr = 14


@broken("none", "vcpus.events: vcpu-x86-64/0.events.flags")
def a_flag_of_events_missing(states: States) -> None:
    states[VCPU0].events.flags = 0xC


@broken("none", "vcpus.events: vcpu-x86-64/0.events.nmi_masked")
def a_yes_of_two(states: States) -> None:
    states[VCPU0].events.nmi_masked = 2


@broken("none", "vcpus.events: vcpu-x86-64/0.events.nmi_pending")
def three_nmis(states: States) -> None:
    states[VCPU0].events.nmi_pending = 3


@broken("none", "vcpus.events: vcpu-x86-64/0.events.sipi_vector")
def a_sipi_to_a_cpu_that_runs(states: States) -> None:
    states[VCPU0].events.sipi_vector = 9


@broken("none", "vcpus.events: vcpu-x86-64/0.events.smi_pending")
def an_smi_for_a_cpu_that_waits_for_its_sipi(states: States) -> None:
    states[VCPU0].mp_state, states[VCPU0].events.smi_pending = 2, 1


@broken("none", "vcpus.events: vcpu-x86-64/0.events.triple_fault_pending")
def an_unsaid_triple_fault(states: States) -> None:
    states[VCPU0].events.triple_fault_pending = 1


@broken("none", "vcpus.events: vcpu-x86-64/0.events.interrupt_soft")
def a_soft_interrupt(states: States) -> None:
    states[VCPU0].events.interrupt_soft = 1


@broken("none", "vcpus.segments: vcpu-x86-64/0.sregs.cs")
def a_segment_of_5_bits_of_type(states: States) -> None:
    states[VCPU0].sregs.cs.type = 27


@broken("none", "vcpus.segments: vcpu-x86-64/1.sregs.ldt")
def a_segment_twice_present(states: States) -> None:
    states[VCPU1].sregs.ldt.present = 2


@broken("none", "vcpus.segments: vcpu-x86-64/0.sregs.ss")
def a_segment_of_ring_4(states: States) -> None:
    states[VCPU0].sregs.ss.dpl = 4


@broken("none", "vcpus.cr4: vcpu-x86-64/0.sregs.cr4")
def five_level_paging_that_cpuid_lacks(states: States) -> None:
    states[VCPU0].sregs.cr4 |= 1 << 12


@broken("none", "vcpus.efer-bits: vcpu-x86-64/0.sregs.efer")
def undefined_bit_of_efer(states: States) -> None:
    states[VCPU0].sregs.efer |= 1 << 63
    states[VCPU0].msrs[2].data = states[VCPU0].sregs.efer


@broken("none", "vcpus.events: vcpu-x86-64/0.events.exception_has_payload")
def an_exception_with_a_payload(states: States) -> None:
    states[VCPU0].events.exception_has_payload = 1
