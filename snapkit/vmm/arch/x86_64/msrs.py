"""Which MSRs are state: what KVM lists, what it omits but keeps, and nothing from a list of favourites.

KVM_GET_MSR_INDEX_LIST leaves out the memory-type range registers, the machine-check banks, and a few that it reads
and writes all the same. Whether one of those is state of *this* vCPU is found by reading it and writing it back: what
KVM reads but refuses (IA32_XSS of a guest without XSAVES) can never have changed. Read-only MSRs (MTRRcap, MCG_CAP) are
no state either: they say what the CPU is, which creation fixes. Hyper-V's are none while CPUID does not offer Hyper-V:
the guest gets a #GP from them (kvm_hv_set_msr_common), though KVM lists them and counts time in two of them.
Source: arch/x86/kvm/x86.c (msrs_to_save, emulated_msrs), arch/x86/kvm/mtrr.c.
"""

from snapkit.state.vcpu_x86_64 import CpuidEntry, Msr
from snapkit.vmm.kvm.vcpu_x86 import X86VcpuFd

TSC = 0x10
TSC_ADJUST = 0x3B
SPEC_CTRL = 0x48
TSC_DEADLINE = 0x6E0
_MCG_CAP = 0x179
_XSS = 0xDA0
_MTRR = (
    *range(0x200, 0x210),  # variable ranges, base and mask
    0x250,
    0x258,
    0x259,
    *range(0x268, 0x270),  # fixed ranges
    0x2FF,  # default type
)
_MC0_CTL = 0x400
_MCG_STATUS, _MCG_CTL = 0x17A, 0x17B
_HYPERV = range(0x4000_0000, 0x4000_0200)
_HYPERV_INTERFACE, _HV1 = 0x4000_0001, int.from_bytes(b"Hv#1", "little")
_SYSENTER_POINTERS = (0x175, 0x176)
_GENUINE_INTEL = int.from_bytes(b"Genu", "little")
_MCE, _MCA = 1 << 7, 1 << 14

BASELINE = (
    TSC,
    0x174,  # SYSENTER_CS
    0x175,  # SYSENTER_ESP
    0x176,  # SYSENTER_EIP
    0x1A0,  # MISC_ENABLE
    0x277,  # PAT
    *_MTRR,
    0xC0000080,  # EFER comes with SREGS; listed so that the profile is whole
    0xC0000081,  # STAR
    0xC0000082,  # LSTAR
    0xC0000083,  # CSTAR
    0xC0000084,  # SYSCALL_MASK
    0xC0000102,  # KERNEL_GS_BASE
)
"""All the MSRs that the `baseline` CPUID profile implies."""


def find_state(fd: X86VcpuFd, listed: list[int], cpuid: list[CpuidEntry]) -> list[int]:
    """Return every MSR that is state of a paused vCPU with *cpuid*; *listed* is KVM's own list."""
    listed = [index for index in listed if index not in _HYPERV or _offers_hyperv(cpuid)]
    extra = [*_MTRR, SPEC_CTRL, _XSS]
    leaf1 = next((entry for entry in cpuid if entry.function == 1), CpuidEntry(function=1))
    if leaf1.edx & _MCE and leaf1.edx & _MCA:
        (mcg_cap,) = fd.get_msrs([_MCG_CAP])
        extra += [_MCG_STATUS, _MCG_CTL, *range(_MC0_CTL, _MC0_CTL + 4 * (mcg_cap.data & 0xFF))]
    omitted = [index for index in extra if index not in set(listed)]
    return _readable(fd, listed) + _writable(fd, _readable(fd, omitted))


def _offers_hyperv(cpuid: list[CpuidEntry]) -> bool:
    return any(entry.function == _HYPERV_INTERFACE and entry.eax == _HV1 for entry in cpuid)


def drop_unkept(saved: list[Msr], cpuid: list[CpuidEntry]) -> None:
    """Clear in *saved* what KVM does not keep when it is written: the upper halves of SYSENTER_ESP and _EIP on AMD.

    A CPU that is not Intel's has no SYSENTER in long mode, so they mean nothing there, and KVM takes 32 bits of each
    (svm_set_msr), though a guest may have put 64 into the hardware.
    """
    if any(entry.function == 0 and entry.ebx == _GENUINE_INTEL for entry in cpuid):
        return
    for msr in saved:
        if msr.index in _SYSENTER_POINTERS:
            msr.data &= 0xFFFF_FFFF


def find_baseline(fd: X86VcpuFd) -> list[int]:
    """Return the MSRs of the `baseline` profile: the same on every host."""
    return _readable(fd, list(BASELINE))


def _readable(fd: X86VcpuFd, indices: list[int]) -> list[int]:
    known: list[int] = []
    while indices:
        count = len(fd.get_msrs(indices))
        known += indices[:count]
        indices = indices[count + 1 :]
    return known


def _writable(fd: X86VcpuFd, indices: list[int]) -> list[int]:
    known: list[int] = []
    while indices:
        count = fd.try_set_msrs({msr.index: msr.data for msr in fd.get_msrs(indices)})
        known += indices[:count]
        indices = indices[count + 1 :]
    return known
