"""CPUs of x86-64 machines: that they are the same kind of CPU, and registers as KVM gives them and takes them.

Most of what KVM's KVM_SET_* calls refuse no guest can have brought about: it would have had an exception instead. What
they were measured to take nonsense in (segment types, CR2, the local APIC's page) is left alone.
Source: arch/x86/kvm/x86.c and lapic.c, Intel SDM volume 3.
"""

from operator import attrgetter

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index, invariant
from snapkit.restore.pages import Pages
from snapkit.state.spec import lapic
from snapkit.state.spec.x86 import MXCSR_AT, MXCSR_MASK_AT, ApicBase, Cr0, Cr4, Efer, Mxcsr, Rflags, Xcr0
from snapkit.state.vcpu_x86_64 import CpuidEntry, VcpuState

_MP_STATES = 4
"""KVM_MP_STATE_RUNNABLE, _UNINITIALIZED, _INIT_RECEIVED, _HALTED: 0 to 3. KVM acts on a SIPI before it tells of it."""
_INIT_RECEIVED = 2
_EVENT_FLAGS = 0xD
"""KVM_VCPUEVENT_VALID_* for NMIs, shadow and SMM: what KVM gives while no capability for more is enabled."""
_EVENTS_MAX = (
    ("exception_injected", 1),
    ("exception_has_error_code", 1),
    ("exception_pending", 1),
    ("interrupt_injected", 1),
    ("interrupt_soft", 0),
    ("interrupt_shadow", 3),
    ("nmi_injected", 1),
    ("nmi_pending", 2),
    ("nmi_masked", 1),
    ("sipi_vector", 0),
    ("smi_smm", 1),
    ("smi_pending", 1),
    ("smi_smm_inside_nmi", 1),
    ("smi_latched_init", 1),
    ("triple_fault_pending", 0),
    ("exception_has_payload", 0),
    ("exception_payload", 0),
)
_event_values = attrgetter(*(name for name, _ in _EVENTS_MAX))
_EXCEPTIONS, _NMI_VECTOR = 32, 2
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_segments_of = attrgetter(*_SEGMENTS)
_APIC_BASE = ApicBase.BSP | ApicBase.EXTD | ApicBase.EN | ApicBase.BASE
_CR0_UPPER = 0xFFFF_FFFF << 32
_FRED = 1 << 32
_CR4 = Cr4.defined | _FRED
_CR4_FEATURES: dict[int, tuple[tuple[int, int, str, int], ...]] = {
    Cr4.LA57: ((7, 0, "ecx", 16),),
    Cr4.VMXE: ((1, 0, "ecx", 5),),
    Cr4.SMXE: ((1, 0, "ecx", 6),),
    Cr4.PCIDE: ((1, 0, "ecx", 17),),
    Cr4.KL: ((7, 0, "ecx", 23),),
    Cr4.CET: ((7, 0, "ecx", 7), (7, 0, "edx", 20)),
    Cr4.PKS: ((7, 0, "ecx", 31),),
    Cr4.UINTR: ((7, 0, "edx", 5),),
    Cr4.LAM_SUP: ((7, 1, "eax", 26),),
    _FRED: ((7, 1, "eax", 17),),
}
"""Bits that any KVM refuses without one of these bits of CPUID: leaf, index, register, bit. One takes the others so."""
_CR4_TOLD = sum(_CR4_FEATURES)
_EFER_MSR = 0xC000_0080
_XCR0_AVX512 = Xcr0.OPMASK | Xcr0.ZMM_HI256 | Xcr0.HI16_ZMM
_XSTATE_HEADER = 512
_XSTATE_BV_END, _XSTATE_HEADER_END = _XSTATE_HEADER + 8, _XSTATE_HEADER + 64
_NO_MORE = bytes(_XSTATE_HEADER_END - _XSTATE_BV_END)
_VIRTUAL_WIDTHS = (0, 48, 57)
_X2APIC_LEAVES = (0xB, 0x1F)
_OWN: dict[tuple[int, int | None], tuple[int, int, int, int]] = {
    (0x1, None): (0, 0xFF << 24, 1 << 27, 0),  # APIC id; OSXSAVE
    (0x7, 0): (0, 0, 1 << 4, 0),  # OSPKE
    (0xB, None): (0, 0, 0, 0xFFFF_FFFF),  # x2APIC id
    (0xD, 0): (0, 0xFFFF_FFFF, 0, 0),  # length of what XCR0 enables
    (0xD, 1): (0, 0xFFFF_FFFF, 0, 0),
    (0x1F, None): (0, 0, 0, 0xFFFF_FFFF),
    (0x8000_001E, None): (0xFFFF_FFFF, 0xFF, 0, 0),
    (0x8000_0026, None): (0, 0, 0, 0xFFFF_FFFF),
}
"""Bits of CPUID, as EAX, EBX, ECX, EDX, that each CPU has for itself; by leaf and index, None for any."""


@invariant("vcpus.unique")
def vcpu_lists_unique(index: Index, _pages: Pages) -> Findings:
    """No MSR, CPUID leaf or control register is there twice: which of the two counted would be KVM's whim."""
    for section, state in index.each(VcpuState):
        for path, items, distinct in (
            ("msrs", state.msrs, {msr.index for msr in state.msrs}),
            ("cpuid", state.cpuid, {(entry.function, entry.index) for entry in state.cpuid}),
            ("xcrs", state.xcrs, {xcr.xcr for xcr in state.xcrs}),
        ):
            if len(distinct) != len(items):
                yield Finding(str(section), path, "a list with an entry twice", "free of repetitions")


@invariant("vcpus.cpuid-agree")
def cpuid_agrees(index: Index, _pages: Pages) -> Findings:
    """All CPUs are one model: a guest asks one of them and uses what it was told on all.

    Each has an APIC id of its own, OSXSAVE and OSPKE follow its CR4, and the sizes in leaf 0xD its XCR0.
    """
    vcpus = index.each(VcpuState)
    for section, state in vcpus[1:]:
        (first, model), told = vcpus[0], state.cpuid
        if [(one.function, one.index) for one in told] != [(one.function, one.index) for one in model.cpuid]:
            yield Finding(str(section), "cpuid", "a list of other leaves", f"the leaves of {first}")
            continue
        for number, (mine, other) in enumerate(zip(told, model.cpuid, strict=True)):
            if mine != other and _shared(mine) != _shared(other):
                text, expected = _registers(mine), f"{_registers(other)}, as {first} has it, its own bits aside"
                yield Finding(str(section), f"cpuid[{number}]", text, expected)


@invariant("vcpus.cpuid-id")
def cpuid_tells_the_id(index: Index, _pages: Pages) -> Findings:
    """CPUID tells each CPU its own id: by it a guest finds out on which CPU it runs."""
    for section, state in index.each(VcpuState):
        for number, leaf in enumerate(state.cpuid):
            if leaf.function == 1 and leaf.ebx >> 24 != state.id:
                yield Finding(str(section), f"cpuid[{number}].ebx", f"{leaf.ebx:#x}", f"with {state.id} in bits 31:24")
            elif leaf.function in _X2APIC_LEAVES and leaf.edx != state.id:
                yield Finding(str(section), f"cpuid[{number}].edx", str(leaf.edx), str(state.id))


@invariant("vcpus.cpuid-width")
def virtual_width_known(index: Index, _pages: Pages) -> Findings:
    """Linear addresses have 48 or 57 bits: KVM_SET_CPUID2 refuses other widths."""
    for section, state in index.each(VcpuState):
        for number, leaf in enumerate(state.cpuid):
            if leaf.function == 0x8000_0008 and leaf.eax >> 8 & 0xFF not in _VIRTUAL_WIDTHS:
                path, expected = f"cpuid[{number}].eax", "with 48 or 57 in bits 15:8, or 0"
                yield Finding(str(section), path, f"{leaf.eax:#x}", expected)


@invariant("vcpus.mp-state")
def mp_state_known(index: Index, _pages: Pages) -> Findings:
    """A CPU runs, is halted, or is on its way from reset: KVM_SET_MP_STATE refuses what it does not know."""
    for section, state in index.each(VcpuState):
        if state.mp_state >= _MP_STATES:
            yield Finding(str(section), "mp_state", str(state.mp_state), "0 to 3, a KVM_MP_STATE_*")


@invariant("vcpus.rflags")
def rflags_possible(index: Index, _pages: Pages) -> Findings:
    """RFLAGS has the bits that the processor keeps, and the one that is always set: KVM gives back no others."""
    for section, state in index.each(VcpuState):
        rflags = state.regs.rflags
        if rflags & ~Rflags.defined or not rflags & Rflags.ONE:
            expected = f"within {Rflags.defined:#x}, with bit 1"
            yield Finding(str(section), "regs.rflags", f"{rflags:#x}", expected)


@invariant("vcpus.cr0")
def cr0_possible(index: Index, _pages: Pages) -> Findings:
    """CR0 has no paging without protection and no NW without CD: the processor faults, KVM_SET_SREGS refuses it."""
    for section, state in index.each(VcpuState):
        cr0 = state.sregs.cr0
        if cr0 & _CR0_UPPER or (cr0 & Cr0.PG and not cr0 & Cr0.PE) or (cr0 & Cr0.NW and not cr0 & Cr0.CD):
            expected = "below 2^32, with PE where PG is set and CD where NW is"
            yield Finding(str(section), "sregs.cr0", f"{cr0:#x}", expected)


@invariant("vcpus.cr4")
def cr4_possible(index: Index, _pages: Pages) -> Findings:
    """CR4 has bits that are defined, and whose feature CPUID tells: the processor faults, KVM_SET_SREGS refuses others."""
    for section, state in index.each(VcpuState):
        cr4 = state.sregs.cr4
        if cr4 & ~_CR4:
            yield Finding(str(section), "sregs.cr4", f"{cr4:#x}", f"within {_CR4:#x}")
        if cr4 & _CR4_TOLD:
            for bit, features in _CR4_FEATURES.items():
                if cr4 & bit and not any(_told(state.cpuid, *feature) for feature in features):
                    yield Finding(str(section), "sregs.cr4", f"{cr4:#x}", f"without {bit:#x}: CPUID lacks its feature")


@invariant("vcpus.efer-bits")
def efer_defined(index: Index, _pages: Pages) -> Findings:
    """EFER has bits that are defined: a write of others faults, and KVM refuses them as an MSR."""
    for section, state in index.each(VcpuState):
        if state.sregs.efer & ~Efer.defined:
            yield Finding(str(section), "sregs.efer", f"{state.sregs.efer:#x}", f"within {Efer.defined:#x}")


@invariant("vcpus.long-mode")
def long_mode_whole(index: Index, _pages: Pages) -> Findings:
    """Long mode is active exactly where it is enabled and paging is on, with PAE; else no code segment is 64-bit."""
    for section, state in index.each(VcpuState):
        sregs = state.sregs
        if sregs.cr0 & Cr0.PG and sregs.efer & Efer.LME:
            if not sregs.efer & Efer.LMA or not sregs.cr4 & Cr4.PAE:
                text = f"{sregs.efer:#x} with CR4 {sregs.cr4:#x}"
                yield Finding(str(section), "sregs.efer", text, "with LMA, and CR4 with PAE: LME and paging are on")
        elif sregs.efer & Efer.LMA:
            yield Finding(str(section), "sregs.efer", f"{sregs.efer:#x}", "without LMA: LME or paging is off")
        elif sregs.cs.l:
            yield Finding(str(section), "sregs.cs.l", str(sregs.cs.l), "0 outside of long mode")


@invariant("vcpus.segments")
def segments_possible(index: Index, _pages: Pages) -> Findings:
    """A segment's attributes fit the bits of a descriptor, from which they are taken: 4 for its type, 2 for its ring."""
    for section, state in index.each(VcpuState):
        for name, one in zip(_SEGMENTS, _segments_of(state.sregs), strict=True):
            flags = one.present | one.db | one.s | one.l | one.g | one.avl | one.unusable
            if one.type > 15 or one.dpl > 3 or flags > 1:
                found = f"of type {one.type}, ring {one.dpl}, flags up to {flags}"
                yield Finding(str(section), f"sregs.{name}", found, "of type 0 to 15, ring 0 to 3, flags of 0 or 1")


@invariant("vcpus.efer")
def efer_once(index: Index, _pages: Pages) -> Findings:
    """EFER, which is saved with the control registers and as an MSR, is the same: KVM may refuse to change it so."""
    for section, state in index.each(VcpuState):
        for number, msr in enumerate(state.msrs):
            if msr.index == _EFER_MSR and msr.data != state.sregs.efer:
                path, expected = f"msrs[{number}].data", f"{state.sregs.efer:#x}, as sregs.efer"
                yield Finding(str(section), path, f"{msr.data:#x}", expected)


@invariant("vcpus.apic-base")
def apic_base_possible(index: Index, _pages: Pages) -> Findings:
    """The APIC base has no reserved bit and no x2APIC mode while the APIC is off: KVM_SET_SREGS refuses both.

    Where it is and whether it is on is the guest's choice.
    """
    for section, state in index.each(VcpuState):
        base = state.sregs.apic_base
        if base & ~_APIC_BASE or (base & ApicBase.EXTD and not base & ApicBase.EN):
            yield Finding(str(section), "sregs.apic_base", f"{base:#x}", f"within {_APIC_BASE:#x}, EXTD only with EN")


@invariant("vcpus.lapic-id")
def lapic_id_possible(index: Index, _pages: Pages) -> Findings:
    """The local APIC's id is the CPU's in x2APIC mode; in xAPIC mode a guest may change it, all 8 bits of it.

    In an APIC that is off it is as it was last: x2APIC mode is left by turning the APIC off.
    """
    for section, state in index.each(VcpuState):
        found = int.from_bytes(state.lapic[lapic.ID : lapic.ID + 4], "little")
        if state.sregs.apic_base & ApicBase.EXTD:
            if found != state.id << 24:
                yield Finding(str(section), f"lapic[{lapic.ID}:{lapic.ID + 4}]", f"{found:#x}", f"{state.id << 24:#x}")
        elif found & 0xFF_FFFF and (state.sregs.apic_base & ApicBase.EN or found != state.id):
            yield Finding(str(section), f"lapic[{lapic.ID}:{lapic.ID + 4}]", f"{found:#x}", "0 in bits 23:0")


@invariant("vcpus.task-priority")
def task_priority_once(index: Index, _pages: Pages) -> Findings:
    """CR8 is the upper half of the local APIC's task priority: KVM reads both from there."""
    for section, state in index.each(VcpuState):
        if state.sregs.cr8 != state.lapic[lapic.TPR] >> 4:
            expected = f"{state.lapic[lapic.TPR] >> 4}, as lapic[{lapic.TPR}] has it"
            yield Finding(str(section), "sregs.cr8", str(state.sregs.cr8), expected)


@invariant("vcpus.interrupt")
def interrupt_once(index: Index, _pages: Pages) -> Findings:
    """The interrupt about to be delivered is the same in sregs and in events: KVM has one such place."""
    for section, state in index.each(VcpuState):
        events = state.events
        number = events.interrupt_nr if events.interrupt_injected else None
        wanted = [1 << number % 64 if number is not None and number // 64 == word else 0 for word in range(4)]
        if state.sregs.interrupt_bitmap != wanted:
            found = f"{[hex(word) for word in state.sregs.interrupt_bitmap]}"
            expected = "empty" if number is None else f"that of {number} alone, as events have it"
            yield Finding(str(section), "sregs.interrupt_bitmap", found, expected)


@invariant("vcpus.xcr0")
def xcr0_possible(index: Index, _pages: Pages) -> Findings:
    """XCR0 enables what CPUID leaf 0xD lists, in combinations that there are: XSETBV faults, KVM_SET_XCRS refuses."""
    for section, state in index.each(VcpuState):
        for number, xcr in enumerate(state.xcrs):
            if xcr.xcr:
                yield Finding(str(section), f"xcrs[{number}].xcr", str(xcr.xcr), "0: KVM saves no other")
            elif xcr.value == Xcr0.X87:
                continue
            elif xcr.value & ~(_listed(state.cpuid) | Xcr0.X87) or not _xcr0_whole(xcr.value):
                expected = f"a combination within {_listed(state.cpuid) | Xcr0.X87:#x}, as CPUID leaf 0xD has it"
                yield Finding(str(section), f"xcrs[{number}].value", f"{xcr.value:#x}", expected)


@invariant("vcpus.xsave")
def xsave_header_possible(index: Index, _pages: Pages) -> Findings:
    """The extended state names known features, has zeros behind them, and MXCSR known bits: KVM_SET_XSAVE refuses others."""
    for section, state in index.each(VcpuState):
        mxcsr = int.from_bytes(state.xsave[MXCSR_AT:MXCSR_MASK_AT], "little")
        if mxcsr & ~Mxcsr.defined:
            where, expected = f"xsave[{MXCSR_AT}:{MXCSR_MASK_AT}]", f"within {Mxcsr.defined:#x}, the bits of MXCSR"
            yield Finding(str(section), where, f"{mxcsr:#x}", expected)
        features = int.from_bytes(state.xsave[_XSTATE_HEADER:_XSTATE_BV_END], "little")
        if features & ~Xcr0.defined and features & ~(Xcr0.defined | _listed(state.cpuid)):
            expected = f"within {Xcr0.defined:#x}, or what CPUID leaf 0xD has"
            yield Finding(str(section), f"xsave[{_XSTATE_HEADER}:{_XSTATE_BV_END}]", f"{features:#x}", expected)
        if state.xsave[_XSTATE_BV_END:_XSTATE_HEADER_END] != _NO_MORE:
            yield Finding(str(section), f"xsave[{_XSTATE_BV_END}:{_XSTATE_HEADER_END}]", "not zero", "zero")


@invariant("vcpus.debug")
def debug_registers_possible(index: Index, _pages: Pages) -> Findings:
    """DR6 and DR7 have 32 bits and there are no flags: KVM_SET_DEBUGREGS refuses others."""
    for section, state in index.each(VcpuState):
        debug = state.debugregs
        for name, value, most in (
            ("dr6", debug.dr6, 0xFFFF_FFFF),
            ("dr7", debug.dr7, 0xFFFF_FFFF),
            ("flags", debug.flags, 0),
        ):
            if value > most:
                yield Finding(str(section), f"debugregs.{name}", f"{value:#x}", f"at most {most:#x}")


@invariant("vcpus.exception")
def exception_possible(index: Index, _pages: Pages) -> Findings:
    """An exception has one of 32 vectors, not the NMI's: KVM_SET_VCPU_EVENTS refuses it. One that waits is told as injected."""
    for section, state in index.each(VcpuState):
        events = state.events
        waits = events.exception_injected or events.exception_pending
        if waits and (events.exception_nr >= _EXCEPTIONS or events.exception_nr == _NMI_VECTOR):
            expected = f"below {_EXCEPTIONS}, and not {_NMI_VECTOR}"
            yield Finding(str(section), "events.exception_nr", str(events.exception_nr), expected)
        if events.exception_pending and not events.exception_injected:
            yield Finding(str(section), "events.exception_pending", "1", "0 while exception_injected is 0")


@invariant("vcpus.events")
def events_possible(index: Index, _pages: Pages) -> Findings:
    """Events are those that KVM gives: it refuses flags of other capabilities, drops or changes other values."""
    for section, state in index.each(VcpuState):
        events = state.events
        if events.flags != _EVENT_FLAGS:
            yield Finding(str(section), "events.flags", f"{events.flags:#x}", f"{_EVENT_FLAGS:#x}")
        for (name, most), value in zip(_EVENTS_MAX, _event_values(events), strict=True):
            if value > most:
                yield Finding(str(section), f"events.{name}", str(value), f"at most {most}")
        if state.mp_state == _INIT_RECEIVED and (events.smi_smm or events.smi_pending):
            name = "smi_smm" if events.smi_smm else "smi_pending"
            yield Finding(
                str(section), f"events.{name}", "1", f"0 while mp_state is {_INIT_RECEIVED}: it waits for a SIPI"
            )


def _shared(leaf: CpuidEntry) -> tuple[int, ...]:
    """Return what of *leaf* all CPUs have in common."""
    own = _OWN.get((leaf.function, None)) or _OWN.get((leaf.function, leaf.index))
    values = (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx)
    return (leaf.flags, *(value & ~mask for value, mask in zip(values, own or (0, 0, 0, 0), strict=True)))


def _registers(leaf: CpuidEntry) -> str:
    values = " ".join(f"{value:#x}" for value in (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx))
    return f"leaf {leaf.function:#x}.{leaf.index} with {values}"


def _told(cpuid: list[CpuidEntry], function: int, subleaf: int, register: str, bit: int) -> bool:
    """Return whether *cpuid* has a bit of a feature."""
    return any(
        leaf.function == function and leaf.index == subleaf and getattr(leaf, register) >> bit & 1 for leaf in cpuid
    )


def _listed(cpuid: list[CpuidEntry]) -> int:
    """Return the features that leaf 0xD lists."""
    return next((leaf.eax | leaf.edx << 32 for leaf in cpuid if leaf.function == 0xD and not leaf.index), 0)


def _xcr0_whole(value: int) -> bool:
    """Return whether the features of *value* are enabled together that go together (Intel SDM volume 1, 13.3)."""
    avx512 = value & _XCR0_AVX512
    bounds, tiles = Xcr0.BNDREG | Xcr0.BNDCSR, Xcr0.TILECFG | Xcr0.TILEDATA
    return bool(
        value & Xcr0.X87
        and (not value & Xcr0.AVX or value & Xcr0.SSE)
        and value & bounds in (0, bounds)
        and (not avx512 or (avx512 == _XCR0_AVX512 and value & Xcr0.AVX))
        and value & tiles in (0, tiles)
    )
