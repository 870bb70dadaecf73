"""What an x86-64 host tells of itself."""

from collections.abc import Sequence

from snapkit.state.host_facts import HostFacts
from snapkit.vmm.facts import Capability
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.kvm.system_x86 import msr_indices, supported_cpuid
from snapkit.vmm.kvm.vcpu_x86 import X86VcpuFd
from snapkit.vmm.kvm.vm_x86 import X86VmFd

CAPABILITIES: Sequence[Capability] = (
    Capability("KVM_CAP_PIT2", abi.KVM_CAP_PIT2, True, "in-kernel timer; no machine without"),
    Capability("KVM_CAP_DEBUGREGS", abi.KVM_CAP_DEBUGREGS, True, "debug registers; a snapshot would lose them without"),
    Capability("KVM_CAP_XSAVE", abi.KVM_CAP_XSAVE, True, "vector registers; a snapshot would lose them without"),
    Capability("KVM_CAP_XSAVE2", abi.KVM_CAP_XSAVE2, False, "length of large vector state (AMX); only such guests need it"),
    Capability("KVM_CAP_XCRS", abi.KVM_CAP_XCRS, True, "extended control registers; a snapshot would lose them without"),
    Capability("KVM_CAP_ADJUST_CLOCK", abi.KVM_CAP_ADJUST_CLOCK, True, "kvm-clock goes on from a snapshot; jumps without"),
    Capability("KVM_CAP_GET_TSC_KHZ", abi.KVM_CAP_GET_TSC_KHZ, True, "rate of the time-stamp counter, recorded in snapshots"),
    Capability("KVM_CAP_TSC_DEADLINE_TIMER", abi.KVM_CAP_TSC_DEADLINE_TIMER, False, "the APIC timer's deadline mode; guests that were told of it need it"),
    Capability("KVM_CAP_TSC_CONTROL", abi.KVM_CAP_TSC_CONTROL, False, "scaled time-stamp counter; snapshots from hosts with another rate are refused without"),
)  # fmt: skip


def ask(kvm: Kvm, facts: HostFacts) -> None:
    """Find out what costs little: CPUID and MSRs that KVM offers."""
    facts.cpuid, facts.msrs = supported_cpuid(kvm), msr_indices(kvm)
    first = next((leaf for leaf in facts.cpuid if leaf.function == 0), None)
    if first is not None:
        words = (first.ebx, first.edx, first.ecx)
        facts.cpu_vendor = b"".join(word.to_bytes(4, "little") for word in words).decode("ascii", "replace")


def ask_vm(kvm: Kvm, facts: HostFacts) -> None:
    """Find out what costs a VM: the rate of the time-stamp counter."""
    vm = kvm.create_vm(X86VmFd)
    vcpu: X86VcpuFd | None = None
    try:
        vcpu = vm.create_vcpu(0)
        facts.tsc_khz = vcpu.get_tsc_khz()
    finally:
        if vcpu is not None:
            vcpu.close()
        vm.close()
