"""CPUs and chips of a machine as KVM saves them, made up: long mode, AVX, one interrupt on its way, a PIT that ticks."""

import copy

from snapkit.state.irqchip_x86 import IoapicState, IrqchipState, PicState
from snapkit.state.kvm_clock import KvmClockState
from snapkit.state.pit import PitChannel, PitState
from snapkit.state.schema import SectionId, State
from snapkit.state.vcpu_x86_64 import (
    CpuidEntry,
    Debugregs,
    DescriptorTable,
    Msr,
    Regs,
    Segment,
    Sregs,
    VcpuEvents,
    VcpuState,
    Xcr,
)

NS = 1_000_000_000


def vcpu(number: int = 0) -> VcpuState:
    """Return CPU *number*, as Linux uses it."""
    flat = Segment(limit=0xFFFF_FFFF, selector=0x18, type=3, present=1, db=1, s=1, g=1)
    table = DescriptorTable(base=0x1000, limit=0x7F)
    code = Segment(limit=0xFFFF_FFFF, selector=0x10, type=11, present=1, s=1, l=1, g=1)
    sregs = Sregs(
        cs=code,
        **{name: copy.copy(flat) for name in ("ds", "es", "fs", "gs", "ss")},
        tr=Segment(limit=0x67, selector=0x40, type=11, present=1),
        ldt=Segment(unusable=1),
        gdt=table,
        idt=copy.copy(table),
        cr0=0x8005_0033,
        cr2=0,
        cr3=0x2000,
        cr4=0x4_06B0,
        cr8=2,
        efer=0xD01,
        apic_base=0xFEE0_0800 | (0 if number else 0x100),
        interrupt_bitmap=[0, 1 << 7, 0, 0],
    )
    return VcpuState(
        id=number,
        mp_state=0,
        tsc_khz=0,
        regs=Regs(rip=0x1000, rflags=0x202),
        sregs=sregs,
        xsave=_at(4096, {24: 0x1F80, 512: 7}),
        xcrs=[Xcr(xcr=0, value=7)],
        debugregs=Debugregs(db=[0, 0, 0, 0], dr6=0xFFFF_0FF0, dr7=0x400, flags=0),
        lapic=_at(1024, {0x20: number << 24, 0x30: 0x50014, 0x80: 0x20, 0xE0: 0xFFFF_FFFF, 0xF0: 0x1FF}),
        cpuid=_cpuid(number),
        msrs=[Msr(index=0x10, data=1 << 40), Msr(index=0x1A0, data=1), Msr(index=0xC000_0080, data=0xD01)],
        events=VcpuEvents(**{**dict.fromkeys(VcpuEvents.__struct_fields__, 0), **_EVENTS}),
    )


_EVENTS = {"interrupt_injected": 1, "interrupt_nr": 71, "flags": 0xD}


def _cpuid(number: int) -> list[CpuidEntry]:
    counted = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    return [
        CpuidEntry(function=0, eax=0xD, ebx=0x68747541, ecx=0x444D4163, edx=0x69746E65),
        CpuidEntry(function=1, eax=0xA10F11, ebx=number << 24 | 0x20800, ecx=0x9520_2000, edx=0x178B_FBFF),
        CpuidEntry(function=7, flags=counted, eax=0, ebx=0x20),
        CpuidEntry(function=0xB, index=0, flags=counted, ebx=1, ecx=0x100, edx=number),
        CpuidEntry(function=0xD, index=0, flags=counted, eax=7, ebx=0x340, ecx=0x340),
        CpuidEntry(function=0x8000_0000, eax=0x8000_0008),
        CpuidEntry(function=0x8000_0008, eax=0x3030),
    ]


def irqchip() -> IrqchipState:
    """Return PICs that Linux has turned off, and an IOAPIC."""
    zero = dict.fromkeys(PicState.__struct_fields__, 0)
    ioapic = IoapicState(base_address=0xFEC0_0000, ioregsel=0x10, id=0, irr=0, redirtbl=[1 << 16] * 24)
    return IrqchipState(
        pic_master=PicState(**{**zero, "imr": 0xFF, "irq_base": 0x30, "init4": 1, "elcr_mask": 0xF8}),
        pic_slave=PicState(**{**zero, "imr": 0xFF, "irq_base": 0x38, "init4": 1, "elcr_mask": 0xDE}),
        ioapic=ioapic,
    )


def pit() -> PitState:
    """Return a PIT whose first channel ticks and whose others nobody has touched."""
    zero = dict.fromkeys(PitChannel.__struct_fields__, 0)
    untouched = {**zero, "count": 0x1_0000, "mode": 0xFF, "load_age_ns": NS}
    ticking = {**zero, "count": 0x12A5, "mode": 2, "rw_mode": 3, "read_state": 3, "write_state": 3, "gate": 1}
    channels = [ticking, {**untouched, "gate": 1}, untouched]
    return PitState(channels=[PitChannel(**values) for values in channels], flags=0)


def chips(vcpus: int = 1) -> dict[SectionId, State]:
    """Return the sections of everything that lives in KVM."""
    made: dict[SectionId, State] = {SectionId("vcpu-x86-64", str(number)): vcpu(number) for number in range(vcpus)}
    made[SectionId("irqchip-x86", "0")] = irqchip()
    made[SectionId("pit", "0")] = pit()
    made[SectionId("kvm-clock", "0")] = KvmClockState(clock_ns=5 * NS, realtime_ns=1_790_000_000 * NS)
    return made


def _at(length: int, words: dict[int, int]) -> bytes:
    page = bytearray(length)
    for offset, value in words.items():
        page[offset : offset + 4] = value.to_bytes(4, "little")
    return bytes(page)
