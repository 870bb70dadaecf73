"""What an x86-64 machine asks of its host's processor and KVM.

The guest keeps what CPUID told it at its boot, so the host must give all of that: bit by bit where a bit is a feature,
at least as much where a field is a number. The host's side is KVM_GET_SUPPORTED_CPUID. Not compared:

- OSXSAVE and OSPKE, which follow the guest's own CR4; HTT and CmpLegacy, APIC ids, caches and topology, which the
  monitor tells; model, stepping and brand.
- HYPERVISOR and x2APIC, which KVM's own emulation always gives; TSC_DEADLINE, for which KVM has a capability.
- Of a `baseline` machine: its vendor, which is the profile's, and the features of the profile, which every x86-64
  processor since about 2006 has. KVM is not asked for these, because some KVMs leave them out of what they list
  (measured: PVM lists no SSE3).
- Leaves that this release does not know. They come from a later KVM than this release, and most say what is there only
  beside a feature bit in a leaf that is known.
"""

from collections.abc import Iterator
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index
from snapkit.restore.compatible.rule import Rule
from snapkit.state.host_facts import TSC_TOLERANCE_PPM, HostFacts, same_rate
from snapkit.state.machine import MachineState
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.state.schema import SectionId
from snapkit.state.spec.cpuid import FEATURES, LEVELS, REGISTERS, feature_name, leaf_name
from snapkit.state.spec.x86 import (
    EFER,
    IA32_MC0_CTL,
    IA32_MC0_CTL2,
    IA32_SPEC_CTRL,
    IA32_XSS,
    MSRS,
    MXCSR_AT,
    MXCSR_MASK_AT,
    Mxcsr,
    msr_name,
)
from snapkit.state.vcpu_x86_64 import CpuidEntry, VcpuState

XSAVE_LEN = 4096
"""Length of struct kvm_xsave without KVM_CAP_XSAVE2."""
_SIGNIFICANT_INDEX = 1
_msr_index = attrgetter("index")
_ALL = 0xFFFF_FFFF
_NOTHING = CpuidEntry(function=0)
_TSC_DEADLINE = (0x1, 0, "ecx", 1 << 24)
_INVARIANT_TSC = 1 << 8  # leaf 0x80000007, EDX
_WITH_MISALIGNED_SSE = {repr("AuthenticAMD"), repr("HygonGenuine")}
"""Whose processors have MXCSR.MM. KVM is not asked: guests have it whether or not its CPUID offers it."""
MMIO64_END = 512 << 30
"""Of the address map: what a PCI bridge decodes, and firmware told the guest of."""
_LEGACY = 0b11  # x87 and SSE: FXSAVE has them, on every processor

TOLD = {
    (0x1, 0, "ecx"): 1 << 21 | 1 << 27 | 1 << 31,  # x2APIC, OSXSAVE, HYPERVISOR
    (0x1, 0, "edx"): 1 << 28,  # HTT
    (0x7, 0, "ecx"): 1 << 4,  # OSPKE
    (0x8000_0001, 0, "ecx"): 1 << 1,  # CmpLegacy
}
"""Bits that do not come from the host."""

BASELINE = {
    (0x1, 0, "ecx"): 1 << 0 | 1 << 13,  # SSE3, CMPXCHG16B
    (0x1, 0, "edx"): 0x078B_BB7F,  # all up to SSE2 but MCE, MCA, DS, ACPI, PN
    (0x8000_0001, 0, "ecx"): 1 << 0,  # LAHF in long mode
    (0x8000_0001, 0, "edx"): 1 << 11 | 1 << 20 | 1 << 29,  # SYSCALL, NX, long mode
}
"""The `baseline` profile's features."""

UNLISTED = frozenset(
    (
        EFER,
        IA32_SPEC_CTRL,
        IA32_XSS,
        *(0xFE, *range(0x200, 0x214), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF),  # memory-type ranges
        *(0x179, 0x17A, 0x17B, 0x4D0, *range(IA32_MC0_CTL2, IA32_MC0_CTL2 + 32)),  # machine checks
        *range(IA32_MC0_CTL, IA32_MC0_CTL + 4 * 32),
    )
)
"""MSRs that KVM keeps though KVM_GET_MSR_INDEX_LIST omits them (kvm_set_msr_common): whether it does is seen at load."""

_KVM_CLOCKS = {0x12: 1 << 0, 0x4B56_4D01: 1 << 3}
"""MSRs by which a guest reads kvm-clock, and the bit of leaf 0x40000001 EAX that offers each."""


class _Row(NamedTuple):
    """What a leaf may not show on a host: bits of each register; and of what it may show no more than the host."""

    eax: int
    ebx: int
    ecx: int
    edx: int
    levels: tuple[tuple[str, int, int, str, int], ...]


def cpu_vendor(index: Index, facts: HostFacts) -> Findings:
    """A kernel chose its mitigations, its way into system calls and its MSRs by the vendor when it booted."""
    section, vcpu = _first(index)
    if not facts.cpuid or vcpu is None or _profile(index) == "baseline":
        return
    number, leaf = _find(vcpu.cpuid, 0)
    found, wanted = _vendor(leaf), _vendor(_offered(facts, 0))
    if found != wanted:
        yield Finding(str(section), f"cpuid[{number}]", found, f"{wanted}, this host's", "host.cpu-vendor")


def cpuid(index: Index, facts: HostFacts) -> Findings:
    """Every feature that the guest was told of is there: it may have been using any since it booted."""
    if not facts.cpuid:
        return
    rows, told = _rows(facts, _profile(index)), set[str]()
    for section, vcpu in index.each(VcpuState):
        for number, leaf in enumerate(vcpu.cpuid):
            subleaves = rows.get(leaf.function)
            if subleaves is None:
                continue
            row = subleaves.get(leaf.index if leaf.flags & _SIGNIFICANT_INDEX else 0)
            if row is None:
                continue
            eax, ebx, ecx, edx, levels = row
            if levels or leaf.eax & eax or leaf.ebx & ebx or leaf.ecx & ecx or leaf.edx & edx:
                for register, what, wanted in _beyond(leaf, row):
                    if what not in told:  # of a machine's CPUs, the first that has it is named
                        told.add(what)
                        yield Finding(str(section), f"cpuid[{number}].{register}", what, wanted, "host.cpuid")


def _beyond(leaf: CpuidEntry, row: _Row) -> Iterator[tuple[str, str, str]]:
    """Give what *leaf* shows beyond *row*: its register, what it is, and what is wanted."""
    index = leaf.index if leaf.flags & _SIGNIFICANT_INDEX else 0
    for register in REGISTERS:
        bits = getattr(leaf, register) & getattr(row, register)
        for number in range(bits.bit_length()):
            if bits >> number & 1:
                name = feature_name(leaf.function, index, register, number)
                what = f"cpuid {leaf_name(leaf.function, index, register)} {name}"
                yield register, what, "absent: this host's KVM does not offer it"
    for register, shift, mask, name, most in row.levels:
        number = getattr(leaf, register) >> shift & mask
        if number > most:
            what = f"cpuid {leaf_name(leaf.function, index, register)} {name} {number}"
            yield register, what, f"at most {most} on this host"


@lru_cache(maxsize=8)
def _rows(facts: HostFacts, profile: str) -> dict[int, dict[int, _Row]]:
    """Work out of *facts* what no leaf may show, by function and index."""
    rows: dict[int, dict[int, _Row]] = {}
    for function, index in dict.fromkeys((function, index) for function, index, _ in (*FEATURES, *LEVELS)):
        offered = _offered(facts, function, index)
        masks, levels = dict[str, int](), list[tuple[str, int, int, str, int]]()
        for register in REGISTERS:
            key = (function, index, register)
            given = (
                getattr(offered, register) | TOLD.get(key, 0) | (BASELINE.get(key, 0) if profile == "baseline" else 0)
            )
            if key == _TSC_DEADLINE[:3] and facts.kvm.capabilities.get("KVM_CAP_TSC_DEADLINE_TIMER"):
                given |= _TSC_DEADLINE[3]
            masks[register] = _ALL & ~given if key in FEATURES else 0
            for high, low, name in LEVELS.get(key, ()):
                mask = (1 << high + 1 - low) - 1
                levels.append((register, low, mask, name, given >> low & mask))
        rows.setdefault(function, {})[index] = _Row(**masks, levels=tuple(levels))
    return rows


def xsave(index: Index, facts: HostFacts) -> Findings:
    """Vector state goes into KVM as the host's processor lays it out, for what the guest has turned on in XCR0."""
    rule, longest = "host.xsave", max(XSAVE_LEN, facts.kvm.capabilities.get("KVM_CAP_XSAVE2", 0))
    for section, vcpu in index.each(VcpuState):
        if facts.kvm.capabilities and len(vcpu.xsave) > longest:
            yield Finding(str(section), "xsave", f"{len(vcpu.xsave)} bytes", f"at most {longest} on this host", rule)
        mxcsr = int.from_bytes(vcpu.xsave[MXCSR_AT:MXCSR_MASK_AT], "little")
        if mxcsr & Mxcsr.MM and facts.cpuid and _vendor(_offered(facts, 0)) not in _WITH_MISALIGNED_SSE:
            where, found = f"xsave[{MXCSR_AT}:{MXCSR_MASK_AT}]", f"{mxcsr:#x}, with MXCSR.MM"
            yield Finding(str(section), where, found, "without: this host's processor has no such bit", rule)
        for number, xcr in enumerate(vcpu.xcrs):
            if not facts.cpuid or xcr.xcr or not xcr.value & ~_LEGACY:
                continue
            offered = _offered(facts, 0xD)
            supported = offered.edx << 32 | offered.eax | _LEGACY
            beyond = xcr.value & ~supported
            if beyond:
                named = f"{xcr.value:#x}, with {' '.join(_components(beyond))}"
                wanted = f"within {supported:#x}, which this host's KVM supports"
                yield Finding(str(section), f"xcrs[{number}].value", named, wanted, rule)
            for bit in range(2, 63):
                if (xcr.value & ~beyond) >> bit & 1:
                    yield from _laid_out_alike(str(section), vcpu, facts, bit)


def _laid_out_alike(where: str, vcpu: VcpuState, facts: HostFacts, bit: int) -> Findings:
    """A component has the length and place that the guest was told of; processors differ in where they put some."""
    number, leaf = _find(vcpu.cpuid, 0xD, bit)
    host = _offered(facts, 0xD, bit)
    if (leaf.eax, leaf.ebx) != (host.eax, host.ebx):
        (name,) = _components(1 << bit)
        found, wanted = (f"{name} of {one.eax} bytes at {one.ebx}" for one in (leaf, host))
        yield Finding(
            where, f"cpuid[{number}]" if number >= 0 else "cpuid", found, f"{wanted}, this host's", "host.xsave"
        )


def _components(bits: int) -> list[str]:
    return [
        feature_name(0xD, 0, "eax", bit) if bit < 32 else f"bit {bit}" for bit in range(64) if bits >> bit & 1
    ]  # fmt: skip


def msrs(index: Index, facts: HostFacts) -> Findings:
    """Every MSR that was saved is one that this KVM keeps: writing the first that it does not know ends the load."""
    if not facts.msrs:
        return
    kept, told = _kept(facts), set[int]()
    for section, vcpu in index.each(VcpuState):
        if kept.issuperset(map(_msr_index, vcpu.msrs)):
            continue
        for number, msr in enumerate(vcpu.msrs):
            if msr.index not in kept and msr.index not in told:
                told.add(msr.index)
                named = f"{msr_name(msr.index)} ({msr.index:#x})" if msr.index in MSRS else f"{msr.index:#x}"
                yield Finding(str(section), f"msrs[{number}]", named, "one that this host's KVM keeps", "host.msrs")


def drop_msrs(index: Index, facts: HostFacts) -> None:
    """Leave out the MSRs that KVM would refuse: the guest finds them as its processor resets them, or not at all."""
    kept = _kept(facts)
    for _section, vcpu in index.each(VcpuState):
        vcpu.msrs = [msr for msr in vcpu.msrs if msr.index in kept]


@lru_cache(maxsize=8)
def _kept(facts: HostFacts) -> frozenset[int]:
    return UNLISTED.union(facts.msrs)


def physical_bits(index: Index, facts: HostFacts) -> Findings:
    """The guest addresses only what the host's processor can: a page table entry with more bits faults there.

    A `baseline` machine is told as many bits on every host, its own included; where its RAM and its bridge end counts.
    """
    host = _offered(facts, 0x8000_0008).eax
    has = host & 0xFF
    reach = host >> 16 & 0xFF or has  # GuestPhysAddrSize: what nested paging maps, where that is less
    if not has:
        return
    section, vcpu = _first(index)
    rule, wanted = "host.physical-bits", f"at most {reach} on this host"
    if vcpu is not None:
        number, leaf = _find(vcpu.cpuid, 0x8000_0008)
        told = leaf.eax & 0xFF
        if told > has and _profile(index) != "baseline":
            what = f"{told} physical address bits"
            yield Finding(str(section), f"cpuid[{number}].eax", what, f"at most {has} on this host", rule)
    layout = index.get("memory-layout", "0", MemoryLayoutState)
    end = max((region.gpa + region.length for region in layout.regions), default=0) if layout else 0
    if needed := _bits_over(end, reach):
        yield Finding("memory-layout/0", "regions", f"up to {end:#x}, {needed} bits", wanted, rule)
    segment = next((one for one in index.sections if one.kind == "pci-segment"), None)
    if segment is not None and (needed := _bits_over(MMIO64_END, reach)):
        what = f"a bridge with a window up to {MMIO64_END:#x}, {needed} bits"
        yield Finding(str(segment), "", what, wanted, rule)


def _bits_over(end: int, most: int) -> int:
    bits = (end - 1).bit_length() if end else 0
    return bits if bits > most else 0


def clock(index: Index, facts: HostFacts) -> Findings:
    """The guest's clock goes on where it is: KVM's own page, or a counter that never changes its pace."""
    if not facts.cpuid:
        return
    offered = _offered(facts, 0x4000_0001).eax
    absent = {msr for msr, bit in _KVM_CLOCKS.items() if not offered & bit}
    for section, vcpu in index.each(VcpuState) if absent else ():
        for number, msr in enumerate(vcpu.msrs):
            if msr.index in absent and msr.data & 1:
                what = f"{msr_name(msr.index)}, where the guest reads kvm-clock"
                yield Finding(str(section), f"msrs[{number}]", what, "one that this host's KVM offers", "host.clock")
    first, boot = _first(index)
    if boot is not None and facts.clock_source not in {"", "tsc"}:
        number, leaf = _find(boot.cpuid, 0x8000_0007)
        if leaf.edx & _INVARIANT_TSC:
            wanted = f"absent: this host itself keeps time by {facts.clock_source}"
            yield Finding(str(first), f"cpuid[{number}].edx", "an invariant TSC", wanted, "host.clock")


def tsc(index: Index, facts: HostFacts) -> Findings:
    """The guest measured its time-stamp counter once; at another rate all its time would be wrong."""
    machine = index.get("machine", "0", MachineState)
    if machine is None or not machine.tsc_khz or not facts.tsc_khz:
        return
    if not facts.kvm.capabilities.get("KVM_CAP_TSC_CONTROL") and not same_rate(machine.tsc_khz, facts.tsc_khz):
        wanted = f"within {TSC_TOLERANCE_PPM} ppm of {facts.tsc_khz}: this host cannot scale its counter"
        yield Finding("machine/0", "tsc_khz", str(machine.tsc_khz), wanted, "host.tsc")


def use_host_rate(index: Index, facts: HostFacts) -> None:
    """Let the counters run at the host's rate: what the guest measures by them is wrong by the ratio of the two."""
    for _section, machine in index.each(MachineState):
        machine.tsc_khz = facts.tsc_khz
    for _section, vcpu in index.each(VcpuState):
        vcpu.tsc_khz = 0


def _profile(index: Index) -> str:
    machine = index.get("machine", "0", MachineState)
    return "" if machine is None else machine.cpu_profile


def _first(index: Index) -> tuple[SectionId, VcpuState | None]:
    """Return the boot CPU, which the others are like."""
    first = SectionId("vcpu-x86-64", "0")
    return first, index.get(*first, VcpuState)


def _find(leaves: list[CpuidEntry], function: int, index: int = 0) -> tuple[int, CpuidEntry]:
    """Return a leaf with its number in the list; -1 and zeros where it is not there, as a processor reads one."""
    for number, leaf in enumerate(leaves):
        if leaf.function == function and (leaf.index == index or not leaf.flags & _SIGNIFICANT_INDEX):
            return number, leaf
    return -1, _NOTHING


@lru_cache(maxsize=256)
def _offered(facts: HostFacts, function: int, index: int = 0) -> CpuidEntry:
    return _find(facts.cpuid, function, index)[1]


def _vendor(leaf: CpuidEntry) -> str:
    words = (leaf.ebx, leaf.edx, leaf.ecx)
    return repr(b"".join(word.to_bytes(4, "little") for word in words).decode("ascii", "replace"))


RULES = (
    Rule("cpu-vendor", cpu_vendor, forcible=True),
    Rule("cpuid", cpuid, forcible=True),
    Rule("xsave", xsave),
    Rule("msrs", msrs, forcible=True, apply=drop_msrs),
    Rule("physical-bits", physical_bits, forcible=True),
    Rule("clock", clock, forcible=True),
    Rule("tsc", tsc, forcible=True, apply=use_host_rate),
)
