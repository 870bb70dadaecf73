"""What a guest's CPUID says: the two profiles, and the topology that each CPU is told.

`host` passes on what KVM supports, without nested virtualisation and without the invariant TSC (with which Linux would
ignore kvm-clock). `baseline` is a table: what every x86-64 host since about 2006 can give, so that its snapshots run
anywhere. It promises 40 physical address bits, and has no XSAVE, no machine-check banks and no kvm-clock.
Source: Intel SDM volume 2 (CPUID), AMD APM volume 3 appendix E, Documentation/virt/kvm/x86/cpuid.rst.
"""

from collections.abc import Iterable

from snapkit.state.vcpu_x86_64 import CpuidEntry

SIGNIFICANT_INDEX = 1

_MONITOR_VMX_SMX_EST = 1 << 3 | 1 << 5 | 1 << 6 | 1 << 7
_X2APIC, _TSC_DEADLINE, _OSXSAVE, _HYPERVISOR = 1 << 21, 1 << 24, 1 << 27, 1 << 31
_HTT = 1 << 28
_SVM, _TOPOEXT, _CMP_LEGACY = 1 << 2, 1 << 22, 1 << 1
_INVARIANT_TSC = 1 << 8

# FPU VME DE PSE TSC MSR PAE CX8 APIC SEP MTRR PGE CMOV PAT PSE36 CLFSH MMX FXSR SSE SSE2: all bits but MCE (7), MCA (14)
_BASELINE_1_EDX = 0x078BBB7F & ~(1 << 7) & ~(1 << 14) | 1 << 19
_BASELINE_1_ECX = 1 << 0 | 1 << 13 | _X2APIC | _HYPERVISOR  # SSE3, CMPXCHG16B
_BASELINE_8_1_EDX = 1 << 11 | 1 << 20 | 1 << 29  # SYSCALL, NX, long mode
_BASELINE_8_1_ECX = 1 << 0  # LAHF in long mode

BASELINE_VENDOR = b"AuthenticAMD"
BASELINE_PHYSICAL_BITS = 40


def _vendor(function: int, highest: int, name: bytes = BASELINE_VENDOR) -> CpuidEntry:
    ebx, edx, ecx = (int.from_bytes(name[at : at + 4], "little") for at in (0, 4, 8))
    return CpuidEntry(function=function, eax=highest, ebx=ebx, ecx=ecx, edx=edx)


def _brand() -> Iterable[CpuidEntry]:
    text = b"snapkit baseline x86-64".ljust(48, b"\0")
    for number in range(3):
        words = [int.from_bytes(text[16 * number + at : 16 * number + at + 4], "little") for at in (0, 4, 8, 12)]
        yield CpuidEntry(function=0x8000_0002 + number, eax=words[0], ebx=words[1], ecx=words[2], edx=words[3])


def baseline() -> list[CpuidEntry]:
    """Return the `baseline` profile, topology not yet told."""
    return [
        _vendor(0, 1),
        CpuidEntry(function=1, eax=0x0000_0F61, ebx=8 << 8, ecx=_BASELINE_1_ECX, edx=_BASELINE_1_EDX),
        _vendor(0x4000_0000, 0x4000_0000, b"snapkitVMM\0\0"),
        _vendor(0x8000_0000, 0x8000_0008),
        CpuidEntry(function=0x8000_0001, eax=0x0000_0F61, ecx=_BASELINE_8_1_ECX, edx=_BASELINE_8_1_EDX),
        *_brand(),
        CpuidEntry(function=0x8000_0008, eax=48 << 8 | BASELINE_PHYSICAL_BITS),
    ]


def host(supported: Iterable[CpuidEntry], *, tsc_deadline: bool) -> list[CpuidEntry]:
    """Return the `host` profile from what KVM supports, topology not yet told."""
    entries = []
    for entry in supported:
        new = CpuidEntry(
            function=entry.function,
            index=entry.index,
            flags=entry.flags,
            eax=entry.eax,
            ebx=entry.ebx,
            ecx=entry.ecx,
            edx=entry.edx,
        )
        if entry.function == 1:
            new.ecx = entry.ecx & ~_MONITOR_VMX_SMX_EST & ~_OSXSAVE | _X2APIC | _HYPERVISOR
            new.ecx = new.ecx | _TSC_DEADLINE if tsc_deadline else new.ecx & ~_TSC_DEADLINE
        elif entry.function == 0x8000_0001:
            new.ecx = entry.ecx & ~_SVM & ~_TOPOEXT
        elif entry.function == 0x8000_0007:
            new.edx = entry.edx & ~_INVARIANT_TSC
        elif entry.function in (0x8000_000A, 0x8000_001D, 0x8000_001E, 0x8000_0026, 0xB, 0x1F):
            continue  # nested virtualisation; topology leaves are told anew
        entries.append(new)
    return entries


def with_topology(entries: Iterable[CpuidEntry], apic_id: int, count: int) -> list[CpuidEntry]:
    """Return *entries* as CPU *apic_id* of *count* reads them: one package, a core per CPU, a thread per core."""
    id_bits = max(0, (count - 1).bit_length())
    told = []
    highest = 0
    for entry in entries:
        new = CpuidEntry(**{name: getattr(entry, name) for name in entry.__struct_fields__})
        if entry.function == 0:
            highest = entry.eax
        elif entry.function == 1:
            new.ebx = entry.ebx & 0xFF00 | entry.ebx & 0xFF | count << 16 | apic_id << 24
            new.edx = entry.edx | _HTT if count > 1 else entry.edx & ~_HTT
        elif entry.function == 4 and entry.eax & 0x1F:
            level = entry.eax >> 5 & 7
            sharing = count - 1 if level >= 3 else 0
            new.eax = entry.eax & 0x3FFF | sharing << 14 | (count - 1) << 26
        elif entry.function == 0x8000_0001:
            new.ecx = entry.ecx | _CMP_LEGACY if count > 1 else entry.ecx & ~_CMP_LEGACY
        elif entry.function == 0x8000_0008:
            new.ecx = entry.ecx & ~0xF0FF | (count - 1) | id_bits << 12
        told.append(new)
    if highest >= 0xB:
        smt, core = 1, 2  # level types
        told += [
            CpuidEntry(function=0xB, index=0, flags=SIGNIFICANT_INDEX, eax=0, ebx=1, ecx=smt << 8, edx=apic_id),
            CpuidEntry(
                function=0xB, index=1, flags=SIGNIFICANT_INDEX, eax=id_bits, ebx=count, ecx=core << 8 | 1, edx=apic_id
            ),
            CpuidEntry(function=0xB, index=2, flags=SIGNIFICANT_INDEX, ecx=2, edx=apic_id),
        ]
    return sorted(told, key=lambda entry: (entry.function, entry.index))
