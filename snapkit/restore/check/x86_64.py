"""What `check` looks at in x86-64 machines only: CPUs, interrupt controllers, clocks."""

from snapkit.restore.check import clock, interrupts, vcpus
from snapkit.restore.check.sections import Invariant

INVARIANTS: tuple[Invariant, ...] = (
    interrupts.pics_possible,
    interrupts.ioapic_possible,
    vcpus.vcpu_lists_unique,
    vcpus.cpuid_agrees,
    vcpus.cpuid_tells_the_id,
    vcpus.virtual_width_known,
    vcpus.mp_state_known,
    vcpus.rflags_possible,
    vcpus.cr0_possible,
    vcpus.cr4_possible,
    vcpus.efer_defined,
    vcpus.long_mode_whole,
    vcpus.segments_possible,
    vcpus.efer_once,
    vcpus.apic_base_possible,
    vcpus.lapic_id_possible,
    vcpus.task_priority_once,
    vcpus.interrupt_once,
    vcpus.xcr0_possible,
    vcpus.xsave_header_possible,
    vcpus.debug_registers_possible,
    vcpus.exception_possible,
    vcpus.events_possible,
    clock.pit_possible,
    clock.kvm_clock_possible,
    clock.tsc_rates_agree,
)
