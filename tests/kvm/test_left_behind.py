"""What a guest may leave in a vCPU passes every check and loads again, on real KVM: states that few guests are in, and any."""

import struct
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import NamedTuple

import pytest

from snapkit.errors import IncompatibleHost, SnapkitError
from snapkit.restore.equality import Elapsed, differences
from snapkit.state.spec.x86 import EFER
from snapkit.state.vcpu_x86_64 import VcpuState
from snapkit.units import Gpa
from snapkit.vmm.kvm import abi, abi_x86
from tests.kvm.one_vcpu import CODE_AT, OUT, Bench, bench
from tests.kvm.random_guest import leave
from tests.restore.broken import VCPU0, VCPU1, findings, good

GP, HANDLER_AT, GDT_AT, GDTR_AT = 13, 0x3000, 0x5000, 0x5100
FLAGS_AT, TRIPLE_FAULT_AT = 20, 28  # struct kvm_vcpu_events
ASYNC_PF_EN, BEYOND_RAM = 0x4B56_4D02, 0x10_0000_0009  # the address, enabled, by an interrupt
SYSCALL_MSRS = (0x277, *range(0xC000_0081, 0xC000_0085), *range(0xC000_0100, 0xC000_0103))  # on any host; and the PAT
ELAPSED = Elapsed(ns=3600 * 10**9, tsc=3600 * 10**10)  # no clock is looked at here
OWN = ("id", "cpuid", "msrs", "tsc_khz")
"""What of the machine that the state is put into stays its own: the CPU that it was, which no guest chooses."""


class Left(NamedTuple):
    """*code*, in real mode, ends with a port's write, or a #GP does; then *look* finds *is* of the vCPU *number*."""

    code: bytes
    look: Callable[[VcpuState], object]
    is_: object
    number: int = 0


def _wrmsr(index: int, value: int) -> bytes:
    """mov ecx, eax, edx; wrmsr"""
    moves = zip((b"\xb9", b"\xb8", b"\xba"), (index, value & 0xFFFF_FFFF, value >> 32), strict=True)
    return b"".join(b"\x66" + move + word.to_bytes(4, "little") for move, word in moves) + b"\x0f\x30"


def _msr(index: int) -> Callable[[VcpuState], object]:
    return lambda state: next(msr.data for msr in state.msrs if msr.index == index)


_TO_PROTECTED_MODE = bytes.fromhex(
    "66 0f0116 0051"  # lgdt [GDTR_AT]
    "0f20c0 6683c801 0f22c0"  # cr0 |= PE
    "66ea 18100000 0800"  # jmp 8:0x1018, which is behind this
)

LEFT = {
    "an APIC off after x2APIC mode": Left(
        _wrmsr(0x1B, 0xFEE0_0C00) + _wrmsr(0x1B, 0xFEE0_0000) + OUT,
        lambda state: (state.sregs.apic_base & 0xC00, state.lapic[0x20:0x24]),
        (0, b"\1\0\0\0"),
        number=1,
    ),
    "a code segment with L outside of long mode": Left(
        _TO_PROTECTED_MODE + OUT,
        lambda state: (state.sregs.cs.selector, state.sregs.cr0 & 1, state.sregs.cs.l),
        (8, 1, 0),
    ),
    "an address without RAM in MSR_KVM_ASYNC_PF_EN": Left(
        _wrmsr(ASYNC_PF_EN, BEYOND_RAM) + OUT, _msr(ASYNC_PF_EN), BEYOND_RAM
    ),
}


def _run(bench: Bench, left: Left) -> VcpuState:
    """Run the guest's code, and save what it left."""
    state = bench.state()
    state.mp_state = abi.KVM_MP_STATE_RUNNABLE
    bench.memory.write(CODE_AT, left.code)
    bench.memory.write(Gpa(4 * GP), struct.pack("<HH", HANDLER_AT, 0))
    bench.memory.write(Gpa(HANDLER_AT), OUT)
    bench.memory.write(Gpa(GDT_AT), struct.pack("<QQ", 0, 0x00EF_9B00_0000_FFFF))  # code, with G, D and L
    bench.memory.write(Gpa(GDTR_AT), struct.pack("<HI", 15, GDT_AT))
    vcpu = bench.load(state)
    vcpu.forget_held()
    bench.run()
    return vcpu.save()


def _wrong(number: int, saved: VcpuState) -> list[str]:
    """Return all that is found against *saved* in a machine, and what is another when it was loaded and saved again."""
    states = good("none")
    section = (VCPU0, VCPU1)[number]
    mine, values = states[section], {msr.index: msr.data for msr in saved.msrs} | {EFER: saved.sregs.efer}
    for field in saved.__struct_fields__:
        if field not in OWN:
            setattr(mine, field, deepcopy(getattr(saved, field)))
    for msr in mine.msrs:
        msr.data = values.get(msr.index, msr.data)
    wrong = [str(finding) for finding in findings(states)]
    with bench(number) as target:
        try:
            again = target.load(deepcopy(saved)).save()
        except SnapkitError as error:
            return [*wrong, str(error)]
    return wrong + [str(finding) for finding in differences({section: saved}, {section: again}, ELAPSED)]


@pytest.mark.parametrize("name", LEFT)
def test_what_a_guest_left_is_saved_checked_and_loaded(name):
    left = LEFT[name]
    with bench(left.number) as source:
        saved = _run(source, left)
    assert left.look(saved) == left.is_
    assert _wrong(left.number, saved) == []


def test_whatever_a_guest_does_to_its_cpu_can_be_saved_and_restored():
    _try_guests(range(150), SYSCALL_MSRS)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_whatever_many_more_guests_do_to_their_cpus_can_be_saved_and_restored():
    _try_guests(range(1000, 50_000))


def _try_guests(seeds: range, msrs: Sequence[int] = ()) -> None:
    for seed in seeds:
        number, state, steps = leave(seed, msrs)
        assert _wrong(number, state) == [], (seed, steps)


def test_an_smi_for_a_cpu_that_waits_for_its_sipi_is_not_saved_since_no_kvm_takes_it(monkeypatch):
    """Some KVMs have no SMIs: what one with them would tell is put into what this one tells."""
    with bench(1) as one:
        state = one.state()
        state.mp_state = abi.KVM_MP_STATE_INIT_RECEIVED
        vcpu = one.load(state)
        told = vcpu.fd.get_events()
        told.smi_pending = 1
        monkeypatch.setattr(vcpu.fd, "get_events", lambda: told)
        saved = vcpu.save()
    assert (saved.mp_state, saved.events.smi_pending) == (abi.KVM_MP_STATE_INIT_RECEIVED, 0)


def test_a_triple_fault_that_kvm_does_not_vouch_for_is_none(monkeypatch):
    with bench() as one:
        block = bytearray(abi_x86.EVENTS.write(one.fd.get_events()))
        block[TRIPLE_FAULT_AT] = 0xAA
        monkeypatch.setattr(abi, "get", lambda *_: bytes(block))
        assert one.fd.get_events().triple_fault_pending == 0
        block[FLAGS_AT] |= 0x20
        assert one.fd.get_events().triple_fault_pending == 0xAA


def test_an_msr_that_kvm_refuses_and_has_not_is_refused():
    with bench() as one:
        state = one.state()
        next(msr for msr in state.msrs if msr.index == ASYNC_PF_EN).data = BEYOND_RAM | 0x30  # reserved bits
        with pytest.raises(IncompatibleHost, match=r"KVM refuses MSR MSR_KVM_ASYNC_PF_EN \(0x4b564d02\)"):
            one.load(state)
