"""One x86-64 virtual CPU: what KVM gives through its GET calls, field for field under the UAPI's names.

The local APIC belongs to its CPU, because KVM loads it with the CPU and before the IOAPIC. `xsave` and `lapic` stay
bytes: their layout is the processor's own (Intel SDM volume 1 chapter 13, volume 3 chapter 11).
"""

from typing import Annotated

from msgspec import Meta

from snapkit.state.schema import U8, U16, U32, U64, State, named, register, schema
from snapkit.state.spec.x86 import MSRS, ApicBase, Cr0, Cr4, Efer, Rflags


class Regs(State):
    """struct kvm_regs."""

    rax: U64 = 0
    rbx: U64 = 0
    rcx: U64 = 0
    rdx: U64 = 0
    rsi: U64 = 0
    rdi: U64 = 0
    rsp: U64 = 0
    rbp: U64 = 0
    r8: U64 = 0
    r9: U64 = 0
    r10: U64 = 0
    r11: U64 = 0
    r12: U64 = 0
    r13: U64 = 0
    r14: U64 = 0
    r15: U64 = 0
    rip: U64 = 0
    rflags: Annotated[U64, register(Rflags)] = 2


class Segment(State):
    """struct kvm_segment."""

    base: U64 = 0
    limit: U32 = 0
    selector: U16 = 0
    type: U8 = 0
    present: U8 = 0
    dpl: U8 = 0
    db: U8 = 0
    s: U8 = 0
    l: U8 = 0
    g: U8 = 0
    avl: U8 = 0
    unusable: U8 = 0


class DescriptorTable(State):
    """struct kvm_dtable."""

    base: U64 = 0
    limit: U16 = 0


class Sregs(State):
    """struct kvm_sregs."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DescriptorTable
    idt: DescriptorTable
    cr0: Annotated[U64, register(Cr0)]
    cr2: U64
    cr3: U64
    cr4: Annotated[U64, register(Cr4)]
    cr8: U64
    efer: Annotated[U64, register(Efer)]
    apic_base: Annotated[U64, register(ApicBase)]
    interrupt_bitmap: Annotated[list[U64], Meta(min_length=4, max_length=4)]


class Xcr(State):
    """One extended control register."""

    xcr: U32
    value: U64


class Debugregs(State):
    """struct kvm_debugregs."""

    db: Annotated[list[U64], Meta(min_length=4, max_length=4)]
    dr6: U64
    dr7: U64
    flags: U64


class Msr(State, gc=False):
    """One model-specific register."""

    index: Annotated[U32, named(MSRS)]
    data: U64


class CpuidEntry(State, gc=False):
    """struct kvm_cpuid_entry2: *flags* bit 0 says that *index* counts."""

    function: U32
    index: U32 = 0
    flags: U32 = 0
    eax: U32 = 0
    ebx: U32 = 0
    ecx: U32 = 0
    edx: U32 = 0


class VcpuEvents(State):
    """struct kvm_vcpu_events."""

    exception_injected: U8
    exception_nr: U8
    exception_has_error_code: U8
    exception_pending: U8
    exception_error_code: U32
    interrupt_injected: U8
    interrupt_nr: U8
    interrupt_soft: U8
    interrupt_shadow: U8
    nmi_injected: U8
    nmi_pending: U8
    nmi_masked: U8
    sipi_vector: U32
    flags: U32
    smi_smm: U8
    smi_pending: U8
    smi_smm_inside_nmi: U8
    smi_latched_init: U8
    triple_fault_pending: U8
    exception_has_payload: U8
    exception_payload: U64


Xsave = Annotated[bytes, Meta(min_length=4096, max_length=32 << 10)]
LapicPage = Annotated[bytes, Meta(min_length=1024, max_length=1024)]


@schema("vcpu-x86-64", version=1, max_len=128 << 10)
class VcpuState(State):
    """One vCPU. *mp_state* is KVM_MP_STATE_*; *tsc_khz* its time-stamp counter's rate, 0 when none is required."""

    id: U8
    mp_state: U32
    tsc_khz: U32
    regs: Regs
    sregs: Sregs
    xsave: Xsave
    xcrs: Annotated[list[Xcr], Meta(max_length=16)]
    debugregs: Debugregs
    lapic: LapicPage
    cpuid: Annotated[list[CpuidEntry], Meta(max_length=256)]
    msrs: Annotated[list[Msr], Meta(max_length=1024)]
    events: VcpuEvents
