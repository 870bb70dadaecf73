"""What each edge of a vCPU's load order is for: swapped on real KVM, something is refused or lost.

Marked edges, for which nothing is, have their test in `test_orders`, and that every edge has one or the other.
"""

import re
import struct
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest

from snapkit.errors import SnapkitError
from snapkit.order import Edge, Order
from snapkit.state.vcpu_x86_64 import VcpuState
from snapkit.units import Gpa
from snapkit.vmm.arch.x86_64 import msrs, vcpu_order
from snapkit.vmm.arch.x86_64 import vcpu as x86_vcpu
from snapkit.vmm.arch.x86_64.vcpu import X86Vcpu
from snapkit.vmm.kvm import abi
from tests.kvm.one_vcpu import Bench, bench, patched
from tests.order_tables import Pair, edge_of, name_of, swapped

LAPIC_ICR2, LAPIC_LVT_TIMER = 0x310, 0x320
TSC_DEADLINE_MODE, VECTOR = 0x40000, 0x51
X2APIC, HALTED = 1 << 10, 3
CLOCK_AT = 0x2000
STOPPED_FLAG_AT, GUEST_STOPPED = 29, 2  # struct pvclock_vcpu_time_info
SYSTEM_TIME_NEW, MTRR_MASK0 = 0x4B564D01, 0x201
LATER = 1 << 50


def set_msr(state: VcpuState, index: int, data: int) -> None:
    [msr] = [msr for msr in state.msrs if msr.index == index]
    msr.data = data


class Case(NamedTuple):
    """*change* makes a state that shows it; *look* finds *right* after the order as it is, *wrong* after the swap, or
    the swap fails with words of *wrong*. Where KVMs differ, *wrong* is a function that asks this one."""

    change: Callable[[VcpuState], None]
    look: Callable[[Bench], object]
    right: object
    wrong: object | Callable[[], object]
    enable: Callable[[Bench], None] = lambda _bench: None


def x2apic(state: VcpuState) -> None:
    state.sregs.apic_base |= X2APIC
    state.lapic = patched(patched(state.lapic, LAPIC_ICR2, 5), 0xD0, 1)


@cache
def icr2_left_behind() -> int:
    """What x2APIC mode finds of an ICR2 of 5 that was set before it: 0, or 5.

    In that mode ICR is one register of 64 bits, which KVM keeps at 0x300 and shows in two halves ("KVM: x86: Treat
    x2APIC's ICR as a 64-bit register, not two 32-bit regs", Linux 5.18). Before, and on SVM since ("KVM: x86: Re-split
    x2APIC ICR into ICR+ICR2 for AMD (x2AVIC)", Linux 6.12), the halves stay where they are in every mode: nothing is lost.
    """
    with bench() as made:
        state = made.state()
        made.fd.set_lapic(patched(state.lapic, LAPIC_ICR2, 5))
        state.sregs.apic_base |= X2APIC
        made.fd.set_sregs(state.sregs)
        found = made.fd.get_lapic()[LAPIC_ICR2]
    assert found in {0, 5}
    return found


def avx(state: VcpuState) -> None:
    offered = [leaf.eax for leaf in state.cpuid if (leaf.function, leaf.index) == (0xD, 0)]
    if not offered or offered[0] & 7 != 7:
        pytest.skip("no AVX: CPUID leaf 0xD does not offer an XCR0 of 7")
    state.xcrs[0].value = 7


def wide_range(state: VcpuState) -> None:
    """Of all MSRs only this one asks for CPUID: on some hosts another does too, and is refused before it."""
    state.msrs = [msr for msr in state.msrs if msr.index in {MTRR_MASK0, *x86_vcpu.CLOCK_MSRS}]
    set_msr(state, MTRR_MASK0, 0x1F_8000_0800)


def halted_at_reset(state: VcpuState) -> None:
    state.sregs.cs.base, state.sregs.cs.selector, state.regs.rip = 0xFFFF_0000, 0xF000, 0xFFF0
    state.mp_state = HALTED


def page_fault(state: VcpuState) -> None:
    state.events.exception_pending, state.events.exception_nr = 1, 14
    state.events.flags |= 0x10  # KVM_VCPUEVENT_VALID_PAYLOAD


def enable_payload(bench: Bench) -> None:
    """KVM tells a pending exception from an injected one only where KVM_CAP_EXCEPTION_PAYLOAD is on."""
    words = struct.pack("<IIQQQQ64x", 164, 0, 1, 0, 0, 0)
    abi.put(bench.vm.fd.fd, abi.iow("KVM_ENABLE_CAP", 0xA3, len(words)), words)


def with_clock(state: VcpuState) -> None:
    set_msr(state, SYSTEM_TIME_NEW, CLOCK_AT | 1)


def told_of_pause(bench: Bench) -> bool:
    bench.run()
    return bool(bench.memory.read(Gpa(CLOCK_AT + STOPPED_FLAG_AT), 1)[0] & GUEST_STOPPED)


def deadline(state: VcpuState) -> None:
    state.lapic = patched(state.lapic, LAPIC_LVT_TIMER, TSC_DEADLINE_MODE | VECTOR)
    set_msr(state, msrs.TSC, LATER)
    set_msr(state, msrs.TSC_DEADLINE, LATER - 1)


def fired(bench: Bench) -> bool:
    bench.run()
    return VECTOR in bench.pending()


VCPU: dict[Pair, Case] = {
    ("CPUID2", "SREGS"): Case(
        x2apic, lambda bench: bench.fd.get_sregs().apic_base & X2APIC, X2APIC, "KVM_SET_SREGS.* failed: EINVAL"
    ),
    ("CPUID2", "XCRS"): Case(avx, lambda bench: bench.fd.get_xcrs()[0].value, 7, "KVM_SET_XCRS.* failed: EINVAL"),
    ("CPUID2", "MSRS"): Case(
        wide_range,
        lambda bench: bench.fd.get_msrs([MTRR_MASK0])[0].data,
        0x1F_8000_0800,
        "KVM refuses MSR IA32_MTRR_PHYSMASK0",
    ),
    ("SREGS", "MP_STATE"): Case(halted_at_reset, lambda bench: bench.fd.get_mp_state(), HALTED, 0),
    ("SREGS", "LAPIC"): Case(x2apic, lambda bench: bench.fd.get_lapic()[LAPIC_ICR2], 5, icr2_left_behind),
    ("REGS", "VCPU_EVENTS"): Case(
        page_fault, lambda bench: bench.fd.get_events().exception_pending, 1, 0, enable_payload
    ),
    ("MSRS", "KVMCLOCK_CTRL"): Case(with_clock, told_of_pause, right=True, wrong=False),
    ("LAPIC", "TSC_DEADLINE"): Case(deadline, fired, right=True, wrong=False),
    ("TSC", "TSC_DEADLINE"): Case(deadline, fired, right=True, wrong=False),
}


def outcome(case: Case, order: Order) -> object:
    """What *case* looks at after a load by *order*, or the words of the error."""
    with bench() as source:
        state = source.state()
    case.change(state)
    with bench() as target:
        case.enable(target)
        try:
            target.load(state, order)
        except SnapkitError as error:
            return str(error)
        return case.look(target)


@pytest.mark.parametrize("pair", VCPU, ids=name_of)
def test_a_vcpu_loaded_in_another_order_is_refused_or_loses_something(pair: Pair) -> None:
    case = VCPU[pair]
    assert outcome(case, vcpu_order.LOAD) == case.right
    found = outcome(case, swapped(vcpu_order.LOAD, edge_of(vcpu_order.LOAD, *pair)))
    wrong = case.wrong() if callable(case.wrong) else case.wrong
    if isinstance(wrong, str):
        assert re.search(wrong, str(found)), found
    else:
        assert found == wrong


@pytest.mark.parametrize("edge", [edge for edge in vcpu_order.LOAD.edges if edge.either], ids=name_of)
def test_a_vcpu_loaded_against_a_marked_edge_is_the_same(edge: Edge) -> None:
    with bench() as source:
        state = source.state()
    deadline(state)
    avx(state)
    halted_at_reset(state)

    def loaded(order: Order) -> VcpuState:
        with bench() as target:
            target.load(state, order)
            saved = X86Vcpu(0, target.args)
            saved._told = state.cpuid
            found = saved.save()
            found.msrs = [msr for msr in found.msrs if msr.index not in x86_vcpu.CLOCK_MSRS]
            return found

    assert loaded(swapped(vcpu_order.LOAD, edge)) == loaded(vcpu_order.LOAD)
