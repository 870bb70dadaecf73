"""What /dev/kvm knows on x86 only: CPUID and MSRs."""

from snapkit.state.vcpu_x86_64 import CpuidEntry
from snapkit.vmm.kvm import abi, abi_x86
from snapkit.vmm.kvm.system import Kvm


def supported_cpuid(kvm: Kvm) -> list[CpuidEntry]:
    """Return the CPUID leaves that this KVM can give a guest."""
    request = abi_x86.cpuid_request()
    return abi_x86.read_cpuid(abi.get(kvm.fd, abi_x86.KVM_GET_SUPPORTED_CPUID, abi_x86.CPUID_LEN, request))


def msr_indices(kvm: Kvm) -> list[int]:
    """Return the MSRs that this KVM says are worth saving."""
    length = 4 + 4 * abi_x86.MSR_INDEX_MAX
    seed = abi_x86.MSR_INDEX_MAX.to_bytes(4, "little")
    return abi_x86.read_msr_indices(abi.get(kvm.fd, abi_x86.KVM_GET_MSR_INDEX_LIST, length, seed))
