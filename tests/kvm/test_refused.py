"""What the checks of CPUs say that KVM refuses, this KVM refuses: nobody else tells whether a rule is too strict."""

from collections.abc import Iterator
from typing import Any

import pytest

from snapkit.errors import HostError
from snapkit.state.vcpu_x86_64 import VcpuState
from snapkit.vmm.arch.x86_64.vcpu import VcpuArgs, X86Vcpu
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.kvm.vm_x86 import X86VmFd
from snapkit.vmm.vm import Vm
from tests.restore.broken import CASES, VCPU0, VCPU1, good
from tests.restore.broken import vcpus as broken_vcpus

REFUSED = {
    "KVM_SET_CPUID2": {"linear_addresses_of_49_bits"},
    "KVM_SET_MP_STATE": {"mp_state_of_another_architecture"},
    "KVM_SET_SREGS": {
        "paging_without_protection",
        "not_write_through_with_caches",
        "cr0_above_32_bits",
        "undefined_bit_of_cr4",
        "five_level_paging_that_cpuid_lacks",
        "long_mode_enabled_but_not_active",
        "long_mode_without_pae",
        "long_mode_active_without_paging",
        "a_64_bit_segment_outside_long_mode",
        "reserved_bit_of_the_apic_base",
        "x2apic_mode_while_off",
    },
    "KVM_SET_XSAVE": {"unknown_extended_state", "compacted_extended_state"},
    "KVM_SET_XCRS": {"xcr0_without_x87", "avx_without_sse"},
    "KVM_SET_DEBUGREGS": {"dr6_above_32_bits", "dr7_above_32_bits", "debug_flags"},
    "KVM_SET_VCPU_EVENTS": {
        "exception_that_there_is_not",
        "nmi_as_an_exception",
        "event_of_a_capability_that_is_off",
    },
}


@pytest.fixture
def vcpu() -> Iterator[VcpuArgs]:
    with Kvm() as kvm:
        vm_fd = kvm.create_vm(X86VmFd)
        vm = Vm(kvm, vm_fd, lines=24)
        try:
            vm_fd.create_irqchip()
            fd = vm_fd.create_vcpu(0)
            yield VcpuArgs(fd, vm, baseline=False)
            fd.close()
        finally:
            vm.close()


def load(args: VcpuArgs, states: Any) -> None:
    for section in (VCPU0, VCPU1):
        state: VcpuState = states[section]
        X86Vcpu.restore(state, args).load()


def test_a_good_cpu_is_taken(vcpu):
    load(vcpu, good("none"))


@pytest.mark.parametrize(("call", "name"), [(call, name) for call, names in REFUSED.items() for name in sorted(names)])
def test_what_the_checks_say_that_kvm_refuses_it_refuses(vcpu, call, name):
    states = good("none")
    getattr(broken_vcpus, name)(states)
    with pytest.raises(HostError, match=f"{call}.*EINVAL"):
        load(vcpu, states)


def test_what_is_refused_here_are_cases_of_the_checks():
    names = {case.change.__name__ for case in CASES}
    assert set().union(*REFUSED.values()) <= names
