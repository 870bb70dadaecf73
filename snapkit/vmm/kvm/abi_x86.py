"""The KVM UAPI of x86: structures of a CPU and of the in-kernel chips, and how they read into States.

Source: arch/x86/include/uapi/asm/kvm.h.
"""

import struct
from collections.abc import Mapping, Sequence
from itertools import repeat

from snapkit.state.irqchip_x86 import IoapicState, PicState
from snapkit.state.pit import PitChannel, PitState
from snapkit.state.vcpu_x86_64 import (
    CpuidEntry,
    Debugregs,
    DescriptorTable,
    Msr,
    Regs,
    Segment,
    Sregs,
    VcpuEvents,
    Xcr,
)
from snapkit.vmm.kvm.abi import Layout, io, ior, iow, iowr, irqchip_route

# System and VM

KVM_GET_SUPPORTED_CPUID = iowr("KVM_GET_SUPPORTED_CPUID", 0x05, 8)
KVM_GET_MSR_INDEX_LIST = iowr("KVM_GET_MSR_INDEX_LIST", 0x02, 4)
KVM_SET_TSS_ADDR = io("KVM_SET_TSS_ADDR", 0x47)
KVM_SET_IDENTITY_MAP_ADDR = iow("KVM_SET_IDENTITY_MAP_ADDR", 0x48, 8)
KVM_CREATE_IRQCHIP = io("KVM_CREATE_IRQCHIP", 0x60)
KVM_CREATE_PIT2 = iow("KVM_CREATE_PIT2", 0x77, 64)
KVM_PIT_SPEAKER_DUMMY = 1
_IRQCHIP_LEN = 520
KVM_GET_IRQCHIP = iowr("KVM_GET_IRQCHIP", 0x62, _IRQCHIP_LEN)
KVM_SET_IRQCHIP = ior("KVM_SET_IRQCHIP", 0x63, _IRQCHIP_LEN)
KVM_IRQCHIP_PIC_MASTER = 0
KVM_IRQCHIP_PIC_SLAVE = 1
KVM_IRQCHIP_IOAPIC = 2
IDENTITY_ROUTES = b"".join(
    [irqchip_route(gsi, KVM_IRQCHIP_PIC_MASTER + gsi // 8, gsi % 8) for gsi in range(16)]
    + [irqchip_route(gsi, KVM_IRQCHIP_IOAPIC, gsi) for gsi in range(24)]
)
"""What KVM_CREATE_IRQCHIP routes: GSI n to pin n of the IOAPIC and, where there is one, of the PICs (irq_comm.c)."""

PIC = Layout(
    PicState,
    ("9B", "last_irr irr imr isr priority_add irq_base read_reg_select poll special_mask"),
    ("7B", "init_state auto_eoi rotate_on_auto_eoi special_fully_nested_mode init4 elcr elcr_mask"),
)
_IOAPIC = struct.Struct("<QIIII24Q")


def read_ioapic(raw: bytes) -> IoapicState:
    """struct kvm_ioapic_state to State."""
    base_address, ioregsel, ident, irr, _pad, *redirtbl = _IOAPIC.unpack_from(raw)
    return IoapicState(base_address=base_address, ioregsel=ioregsel, id=ident, irr=irr, redirtbl=redirtbl)


def write_ioapic(state: IoapicState) -> bytes:
    """State to struct kvm_ioapic_state."""
    return _IOAPIC.pack(state.base_address, state.ioregsel, state.id, state.irr, 0, *state.redirtbl)


def irqchip(chip_id: int, payload: bytes = b"") -> bytes:
    """struct kvm_irqchip with the state of one chip."""
    return struct.pack("<II", chip_id, 0) + payload.ljust(_IRQCHIP_LEN - 8, b"\0")


IRQCHIP_LEN = _IRQCHIP_LEN
IRQCHIP_STATE_AT = 8

_PIT_CHANNEL = struct.Struct("<IH10Bq")
_PIT_FLAGS = struct.Struct("<I36x")
PIT2_LEN = 3 * _PIT_CHANNEL.size + _PIT_FLAGS.size
KVM_GET_PIT2 = ior("KVM_GET_PIT2", 0x9F, PIT2_LEN)
KVM_SET_PIT2 = iow("KVM_SET_PIT2", 0xA0, PIT2_LEN)
_CHANNEL_FIELDS = (
    "count",
    "latched_count",
    "count_latched",
    "status_latched",
    "status",
    "read_state",
    "write_state",
    "write_latch",
    "rw_mode",
    "mode",
    "bcd",
    "gate",
)


def read_pit(raw: bytes, now_ns: int) -> PitState:
    """struct kvm_pit_state2 to State; *now_ns* is the host's monotonic time of the reading."""
    channels = []
    for number in range(3):
        *values, loaded_ns = _PIT_CHANNEL.unpack_from(raw, number * _PIT_CHANNEL.size)
        # KVM_SET_PIT2 loads every channel anew (pit_load_count in arch/x86/kvm/i8254.c); of channel 0, whose timer it
        # starts as well, the age carries nothing
        age_ns = max(0, now_ns - loaded_ns) if number and loaded_ns else 0
        channels.append(PitChannel(load_age_ns=age_ns, **dict(zip(_CHANNEL_FIELDS, values, strict=True))))
    (flags,) = _PIT_FLAGS.unpack_from(raw, 3 * _PIT_CHANNEL.size)
    return PitState(channels=channels, flags=flags)


def write_pit(state: PitState, now_ns: int) -> bytes:
    """State to struct kvm_pit_state2, its load times counted back from *now_ns*."""
    parts = []
    for channel in state.channels:
        values = (getattr(channel, name) for name in _CHANNEL_FIELDS)
        loaded_ns = now_ns - channel.load_age_ns if channel.load_age_ns else 0
        parts.append(_PIT_CHANNEL.pack(*values, loaded_ns))
    return b"".join(parts) + _PIT_FLAGS.pack(state.flags)


_CLOCK = struct.Struct("<QIIQQ16x")
CLOCK_LEN = _CLOCK.size
KVM_CLOCK_REALTIME = 1 << 2
KVM_SET_CLOCK = iow("KVM_SET_CLOCK", 0x7B, CLOCK_LEN)
KVM_GET_CLOCK = ior("KVM_GET_CLOCK", 0x7C, CLOCK_LEN)


def read_clock(raw: bytes) -> int:
    """Return struct kvm_clock_data.clock."""
    return int(_CLOCK.unpack_from(raw)[0])


def write_clock(clock_ns: int, realtime_ns: int | None = None) -> bytes:
    """struct kvm_clock_data: the guest's time goes on from *clock_ns*.

    With *realtime_ns*, the wall time at which it was that, KVM adds the wall time gone since then, never less than 0.
    """
    flags = 0 if realtime_ns is None else KVM_CLOCK_REALTIME
    return _CLOCK.pack(clock_ns, flags, 0, realtime_ns or 0, 0)


# A vCPU

REGS = Layout(Regs, ("18Q", "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags"))
KVM_GET_REGS = ior("KVM_GET_REGS", 0x81, REGS.length)
KVM_SET_REGS = iow("KVM_SET_REGS", 0x82, REGS.length)

SEGMENT = Layout(
    Segment,
    ("QIH", "base limit selector"),
    ("9B", "type present dpl db s l g avl unusable"),
    ("x", ""),
)
DTABLE = Layout(DescriptorTable, ("QH", "base limit"), ("6x", ""))
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
_SREGS_TAIL = struct.Struct("<7Q4Q")
_SREGS_TAIL_AT = 8 * SEGMENT.length + 2 * DTABLE.length
SREGS_LEN = _SREGS_TAIL_AT + _SREGS_TAIL.size
KVM_GET_SREGS = ior("KVM_GET_SREGS", 0x83, SREGS_LEN)
KVM_SET_SREGS = iow("KVM_SET_SREGS", 0x84, SREGS_LEN)


def read_sregs(raw: bytes) -> Sregs:
    """struct kvm_sregs to State."""
    segments = {name: SEGMENT.read(raw, n * SEGMENT.length) for n, name in enumerate(_SEGMENTS)}
    tables_at = 8 * SEGMENT.length
    cr0, cr2, cr3, cr4, cr8, efer, apic_base, *bitmap = _SREGS_TAIL.unpack_from(raw, _SREGS_TAIL_AT)
    return Sregs(
        **segments,
        gdt=DTABLE.read(raw, tables_at),
        idt=DTABLE.read(raw, tables_at + DTABLE.length),
        cr0=cr0,
        cr2=cr2,
        cr3=cr3,
        cr4=cr4,
        cr8=cr8,
        efer=efer,
        apic_base=apic_base,
        interrupt_bitmap=bitmap,
    )


def write_sregs(state: Sregs) -> bytes:
    """State to struct kvm_sregs."""
    write = SEGMENT.write
    return b"".join(
        (
            *(write(getattr(state, name)) for name in _SEGMENTS),
            DTABLE.write(state.gdt),
            DTABLE.write(state.idt),
            _SREGS_TAIL.pack(
                state.cr0,
                state.cr2,
                state.cr3,
                state.cr4,
                state.cr8,
                state.efer,
                state.apic_base,
                *state.interrupt_bitmap,
            ),
        )
    )


XSAVE_LEN = 4096
KVM_GET_XSAVE = ior("KVM_GET_XSAVE", 0xA4, XSAVE_LEN)
KVM_GET_XSAVE2 = ior("KVM_GET_XSAVE2", 0xCF, XSAVE_LEN)
KVM_SET_XSAVE = iow("KVM_SET_XSAVE", 0xA5, XSAVE_LEN)

LAPIC_LEN = 1024
KVM_GET_LAPIC = ior("KVM_GET_LAPIC", 0x8E, LAPIC_LEN)
KVM_SET_LAPIC = iow("KVM_SET_LAPIC", 0x8F, LAPIC_LEN)

_XCRS_HEAD = struct.Struct("<II")
_XCR = struct.Struct("<IIQ")
_XCRS_MAX = 16
XCRS_LEN = _XCRS_HEAD.size + _XCRS_MAX * _XCR.size + 16 * 8
KVM_GET_XCRS = ior("KVM_GET_XCRS", 0xA6, XCRS_LEN)
KVM_SET_XCRS = iow("KVM_SET_XCRS", 0xA7, XCRS_LEN)


def read_xcrs(raw: bytes) -> list[Xcr]:
    """struct kvm_xcrs to States."""
    count, _flags = _XCRS_HEAD.unpack_from(raw)
    xcrs = []
    for number in range(min(count, _XCRS_MAX)):
        index, _, value = _XCR.unpack_from(raw, _XCRS_HEAD.size + number * _XCR.size)
        xcrs.append(Xcr(xcr=index, value=value))
    return xcrs


def write_xcrs(xcrs: Sequence[Xcr]) -> bytes:
    """States to struct kvm_xcrs."""
    body = b"".join(_XCR.pack(xcr.xcr, 0, xcr.value) for xcr in xcrs)
    return (_XCRS_HEAD.pack(len(xcrs), 0) + body).ljust(XCRS_LEN, b"\0")


_DEBUGREGS = struct.Struct("<4QQQQ72x")
DEBUGREGS_LEN = _DEBUGREGS.size
KVM_GET_DEBUGREGS = ior("KVM_GET_DEBUGREGS", 0xA1, DEBUGREGS_LEN)
KVM_SET_DEBUGREGS = iow("KVM_SET_DEBUGREGS", 0xA2, DEBUGREGS_LEN)


def read_debugregs(raw: bytes) -> Debugregs:
    """struct kvm_debugregs to State."""
    *db, dr6, dr7, flags = _DEBUGREGS.unpack_from(raw)
    return Debugregs(db=db, dr6=dr6, dr7=dr7, flags=flags)


def write_debugregs(state: Debugregs) -> bytes:
    """State to struct kvm_debugregs."""
    return _DEBUGREGS.pack(*state.db, state.dr6, state.dr7, state.flags)


EVENTS = Layout(
    VcpuEvents,
    ("4BI", "exception_injected exception_nr exception_has_error_code exception_pending exception_error_code"),
    ("4B", "interrupt_injected interrupt_nr interrupt_soft interrupt_shadow"),
    ("3Bx", "nmi_injected nmi_pending nmi_masked"),
    ("II", "sipi_vector flags"),
    ("4B", "smi_smm smi_pending smi_smm_inside_nmi smi_latched_init"),
    ("B", "triple_fault_pending"),
    ("26x", ""),
    ("BQ", "exception_has_payload exception_payload"),
)
VALID_TRIPLE_FAULT = 0x20
"""KVM_VCPUEVENT_VALID_TRIPLE_FAULT."""
KVM_GET_VCPU_EVENTS = ior("KVM_GET_VCPU_EVENTS", 0x9F, EVENTS.length)
KVM_SET_VCPU_EVENTS = iow("KVM_SET_VCPU_EVENTS", 0xA0, EVENTS.length)

KVM_SET_TSC_KHZ = io("KVM_SET_TSC_KHZ", 0xA2)
KVM_GET_TSC_KHZ = io("KVM_GET_TSC_KHZ", 0xA3)
TSC_OFFSET_ATTR = (0, 0)
"""KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET: group and attribute of a vCPU (Documentation/virt/kvm/devices/vcpu.rst)."""
KVM_KVMCLOCK_CTRL = io("KVM_KVMCLOCK_CTRL", 0xAD)
KVM_NMI = io("KVM_NMI", 0x9A)

_ENTRIES_HEAD = struct.Struct("<II")
_CPUID_ENTRY = struct.Struct("<7I12x")
CPUID_MAX = 256
CPUID_LEN = _ENTRIES_HEAD.size + CPUID_MAX * _CPUID_ENTRY.size
KVM_SET_CPUID2 = iow("KVM_SET_CPUID2", 0x90, 8)


def cpuid_request() -> bytes:
    """struct kvm_cpuid2 that asks for as many entries as there are."""
    return _ENTRIES_HEAD.pack(CPUID_MAX, 0)


def read_cpuid(raw: bytes) -> list[CpuidEntry]:
    """struct kvm_cpuid2 to States."""
    count, _ = _ENTRIES_HEAD.unpack_from(raw)
    end = _ENTRIES_HEAD.size + count * _CPUID_ENTRY.size
    return [
        CpuidEntry(function=function, index=index, flags=flags, eax=eax, ebx=ebx, ecx=ecx, edx=edx)
        for function, index, flags, eax, ebx, ecx, edx in _CPUID_ENTRY.iter_unpack(raw[_ENTRIES_HEAD.size : end])
    ]


def write_cpuid(entries: Sequence[CpuidEntry]) -> bytes:
    """States to struct kvm_cpuid2."""
    pack = _CPUID_ENTRY.pack
    body = [pack(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries]
    return _ENTRIES_HEAD.pack(len(entries), 0) + b"".join(body)


_MSR_ENTRY = struct.Struct("<IIQ")
KVM_GET_MSRS = iowr("KVM_GET_MSRS", 0x88, 8)
KVM_SET_MSRS = iow("KVM_SET_MSRS", 0x89, 8)


def msr_request(indices: Sequence[int]) -> bytes:
    """struct kvm_msrs that asks for *indices*."""
    return _ENTRIES_HEAD.pack(len(indices), 0) + b"".join(_MSR_ENTRY.pack(index, 0, 0) for index in indices)


def read_msrs(raw: bytes, count: int) -> list[Msr]:
    """The first *count* entries of struct kvm_msrs to States."""
    end = _ENTRIES_HEAD.size + count * _MSR_ENTRY.size
    return [Msr(index=index, data=data) for index, _, data in _MSR_ENTRY.iter_unpack(raw[_ENTRIES_HEAD.size : end])]


def write_msrs(msrs: Mapping[int, int]) -> bytes:
    """MSRs, index to value, to struct kvm_msrs."""
    return _ENTRIES_HEAD.pack(len(msrs), 0) + b"".join(map(_MSR_ENTRY.pack, msrs, repeat(0), msrs.values()))


MSR_INDEX_MAX = 1024


def read_msr_indices(raw: bytes) -> list[int]:
    """struct kvm_msr_list to indices."""
    (count,) = struct.unpack_from("<I", raw)
    return list(struct.unpack_from(f"<{count}I", raw, 4))
