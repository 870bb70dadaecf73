"""The rule for equal saves on invented States: what may differ, by how much, and that nothing else may."""

from typing import Any

import pytest

from snapkit.restore.equality import EXEMPT, Elapsed, differences, elapsed
from snapkit.state.codec import checked
from snapkit.state.kvm_clock import KvmClockState
from snapkit.state.schema import SectionId, State
from snapkit.state.serial_16550 import SerialState
from snapkit.state.vcpu_aarch64 import Aarch64VcpuState, Reg, SErrorEvents
from snapkit.state.vcpu_x86_64 import (
    Debugregs,
    DescriptorTable,
    Msr,
    Regs,
    Segment,
    Sregs,
    VcpuEvents,
    VcpuState,
)

X0, TIMER_CNT = 0x6030_0000_0010_0000, 0x6030_0000_0013_DF1A  # UAPI asm/kvm.h of arm64
AARCH64_VCPU = SectionId("vcpu-aarch64", "0")
VCPU, CLOCK, SERIAL = SectionId("vcpu-x86-64", "0"), SectionId("kvm-clock", "0"), SectionId("serial-16550", "0")
TSC, STAR, DEADLINE = 0x10, 0xC000_0081, 0x6E0  # Intel SDM volume 4
LVT_TIMER, TMICT, TMCCT, TDCR = 0x320, 0x380, 0x390, 0x3E0  # Intel SDM volume 3, local APIC register map
ONE_MS = Elapsed(ns=1_000_000, tsc=2_000_000)


def lapic(*, initial: int = 0, count: int = 0, periodic: bool = False, divide: int = 0b1011) -> bytes:
    page = bytearray(1024)
    for at, word in ((LVT_TIMER, periodic << 17), (TMICT, initial), (TMCCT, count), (TDCR, divide)):
        page[at : at + 4] = word.to_bytes(4, "little")
    return bytes(page)


def vcpu(*, tsc: int = 1000, star: int = 7, deadline: int = 0, page: bytes = lapic()) -> VcpuState:
    segments = {name: Segment() for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")}
    control = dict.fromkeys(("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"), 0)
    tables = {"gdt": DescriptorTable(), "idt": DescriptorTable()}
    sregs: dict[str, Any] = {**segments, **control, **tables, "interrupt_bitmap": [0] * 4}
    events = dict.fromkeys(VcpuEvents.__struct_fields__, 0)
    return VcpuState(
        id=0,
        mp_state=0,
        tsc_khz=0,
        regs=Regs(),
        sregs=Sregs(**sregs),
        xsave=bytes(4096),
        xcrs=[],
        debugregs=Debugregs(db=[0] * 4, dr6=0, dr7=0, flags=0),
        lapic=page,
        cpuid=[],
        msrs=[Msr(index=STAR, data=star), Msr(index=TSC, data=tsc), Msr(index=DEADLINE, data=deadline)],
        events=VcpuEvents(**events),
    )


def compared(before: State, after: State, section: SectionId = VCPU, passed: Elapsed = ONE_MS) -> list[str]:
    kept = checked(after)
    found = differences({section: before}, {section: after}, passed)
    assert kept == after, "the comparison changed what it compared"
    return [str(finding) for finding in found]


def test_a_save_is_equal_to_itself():
    for section, state in ((VCPU, vcpu()), (CLOCK, KvmClockState(clock_ns=1, realtime_ns=2)), (SERIAL, SerialState())):
        assert compared(state, checked(state), section, Elapsed(0, 0)) == []


@pytest.mark.parametrize("make", [lambda tsc: vcpu(tsc=tsc), lambda tsc: vcpu(deadline=tsc)], ids=["tsc", "deadline"])
def test_a_counter_may_advance_by_the_host_time_that_passed_and_no_further(make):
    assert compared(make(1000), make(2_001_000)) == []
    (found,) = compared(make(1000), make(2_001_001))
    assert found.startswith("vcpu-x86-64/0.msrs[")
    assert "2000001 later" in found


def test_a_counter_may_not_go_back():
    (found,) = compared(vcpu(tsc=1000), vcpu(tsc=999))
    assert "gone back" in found


def test_another_msr_may_not_change_at_all():
    (found,) = compared(vcpu(star=7), vcpu(star=8))
    assert found.startswith("vcpu-x86-64/0.msrs[0].data is 8, must be 7")


def test_kvm_clock_may_advance_by_the_host_time_that_passed():
    start = KvmClockState(clock_ns=5, realtime_ns=50)
    assert compared(start, KvmClockState(clock_ns=1_000_005, realtime_ns=1_000_050), CLOCK) == []
    found = compared(start, KvmClockState(clock_ns=1_000_006, realtime_ns=49), CLOCK)
    assert [text.split(" ")[0] for text in found] == ["kvm-clock/0.clock_ns", "kvm-clock/0.realtime_ns"]


def test_a_one_shot_timer_may_count_down_by_the_host_time_that_passed():
    start = lapic(initial=5_000_000, count=3_000_000)  # 0b1011 divides by 1: a count is a nanosecond
    assert compared(vcpu(page=start), vcpu(page=lapic(initial=5_000_000, count=2_000_000))) == []
    for count in (1_900_000, 3_000_001):
        assert len(compared(vcpu(page=start), vcpu(page=lapic(initial=5_000_000, count=count)))) == 1


def test_a_periodic_timer_may_begin_again():
    start = lapic(initial=1000, count=10, periodic=True)
    assert compared(vcpu(page=start), vcpu(page=lapic(initial=1000, count=990, periodic=True))) == []
    (found,) = compared(
        vcpu(page=start), vcpu(page=lapic(initial=1000, count=990, periodic=True)), passed=Elapsed(15, 15)
    )
    assert "lapic" in found


@pytest.mark.parametrize(("divide", "by"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_the_divider_decides_what_a_count_is(divide, by):
    gone = 1_000_000 // by
    before = vcpu(page=lapic(initial=4_000_000, count=3_000_000, divide=divide))
    assert compared(before, vcpu(page=lapic(initial=4_000_000, count=3_000_000 - gone, divide=divide))) == []
    assert compared(before, vcpu(page=lapic(initial=4_000_000, count=3_000_000 - gone - 2, divide=divide))) != []


def test_the_rest_of_the_local_apic_may_not_change():
    page = bytearray(lapic())
    page[0x100] = 1
    (found,) = compared(vcpu(), vcpu(page=bytes(page)))
    assert found.startswith("vcpu-x86-64/0.lapic[256:257] is 01, must be 00")


def aarch64_vcpu(*, counter: int = 1000, x0: int = 7, realtime_ns: int = 5) -> Aarch64VcpuState:
    return Aarch64VcpuState(
        id=0,
        target=5,
        features=[4, 0, 0, 0, 0, 0, 0],
        mp_state=0,
        counter_hz=1_500_000_001,
        realtime_ns=realtime_ns,
        regs=[Reg(id=X0, value=x0), Reg(id=TIMER_CNT, value=counter)],
        vectors=[],
        events=SErrorEvents(),
    )


def test_an_aarch64_counter_may_advance_at_its_own_rate_and_no_further():
    start = aarch64_vcpu()
    assert compared(start, aarch64_vcpu(counter=1_501_001, realtime_ns=1_000_005), AARCH64_VCPU) == []
    for changed in ({"counter": 1_501_002}, {"counter": 999}, {"realtime_ns": 1_000_006}, {"x0": 8}):
        assert len(compared(start, aarch64_vcpu(**changed), AARCH64_VCPU)) == 1


def test_sections_that_come_or_go_are_differences():
    found = differences({SERIAL: SerialState()}, {CLOCK: KvmClockState(clock_ns=0, realtime_ns=0)}, ONE_MS)
    assert [finding.component for finding in found] == ["kvm-clock/0", "serial-16550/0"]


def test_lists_of_another_length_are_a_difference():
    shorter = vcpu()
    shorter.msrs.pop()
    assert compared(vcpu(), shorter) != []


def test_elapsed_rounds_cycles_up():
    assert elapsed(1, tsc_khz=2_000_000) == Elapsed(1, 2)
    assert elapsed(1, tsc_khz=2_100_000) == Elapsed(1, 3)
    assert elapsed(1_000_000, tsc_khz=2_100_000) == Elapsed(1_000_000, 2_100_000)


def test_mask_that_a_hosts_processor_puts_beside_mxcsr_may_be_another_hosts_and_mxcsr_may_not():
    amd, intel = vcpu(), vcpu()
    amd.xsave, intel.xsave = (bytes(28) + mask + bytes(4064) for mask in (b"\xff\xff\2\0", b"\xff\xff\0\0"))
    assert compared(amd, intel) == []
    intel.xsave = bytes(24) + b"\x80" + intel.xsave[25:]
    assert [finding.component for finding in differences({VCPU: amd}, {VCPU: intel}, ONE_MS)] == ["vcpu-x86-64/0"]


def test_every_exempt_field_says_why_it_may_differ():
    assert {field.kind for field in EXEMPT} == {"vcpu-x86-64", "kvm-clock", "vcpu-aarch64"}
    assert all(len(field.reason) > 20 for field in EXEMPT)
