"""A vCPU's registers in a kernel of paper: what is held back, what is saved with which CPU, where the counter goes on."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from snapkit import host
from snapkit.errors import IncompatibleHost
from snapkit.state.vcpu_aarch64 import Aarch64VcpuState, Reg, SErrorEvents, VectorReg
from snapkit.vmm.arch.aarch64 import clock
from snapkit.vmm.arch.aarch64.vcpu import Aarch64Vcpu, VcpuArgs
from snapkit.vmm.kvm.abi_arm import VcpuInit

X0, PC, FPSR = 0x6030_0000_0010_0000, 0x6030_0000_0010_0040, 0x6020_0000_0010_00D4
V0, Z0, VLS = 0x6040_0000_0010_0054, 0x6080_0000_0015_0000, 0x6060_0000_0015_FFFF
TIMER_CTL, TIMER_CVAL, TIMER_CNT = 0x6030_0000_0013_DF19, 0x6030_0000_0013_DF02, 0x6030_0000_0013_DF1A
SVE = 1 << 4
HZ, S = 62_500_000, 10**9


class Fd:
    """A vCPU of paper."""

    def __init__(self, listed: Sequence[int]) -> None:
        self.listed, self.done = listed, list[str]()
        self.numbers: dict[int, int] = dict.fromkeys(listed, 0)
        self.vectors: dict[int, bytes] = {}
        self.mp_state = 0

    def init(self, init: VcpuInit) -> None:
        self.done.append(f"init {init.target}")

    def finalize(self, feature: int) -> None:
        self.done.append(f"finalize {feature}")

    def reg_list(self) -> list[int]:
        return list(self.listed)

    def get_regs(self, registers: Sequence[int]) -> list[int]:
        return [self.numbers[register] for register in registers]

    def set_regs(self, values: Mapping[int, int]) -> None:
        self.done.append("regs")
        self.numbers |= values

    def get_vector(self, register: int) -> bytes:
        return self.vectors[register]

    def set_vectors(self, registers: Sequence[int], values: Sequence[bytes]) -> None:
        self.done += [f"vector {register:#x}" for register in registers]
        self.vectors |= zip(registers, values, strict=True)

    def get_events(self) -> SErrorEvents:
        return SErrorEvents()

    def set_events(self, _events: SErrorEvents) -> None:
        self.done.append("events")

    def get_mp_state(self) -> int:
        return self.mp_state

    def set_mp_state(self, mp_state: int) -> None:
        self.done.append(f"mp_state {mp_state}")
        self.mp_state = mp_state


def made(number: int = 0, state: Aarch64VcpuState | None = None) -> tuple[Any, Any]:
    fd: Any = Fd([X0, PC, TIMER_CTL, TIMER_CNT, TIMER_CVAL, FPSR, V0])
    fd.vectors[V0] = bytes(16)
    args = VcpuArgs(fd=fd)
    return fd, Aarch64Vcpu(number, args) if state is None else Aarch64Vcpu.restore(state, args)


def saved(number: int = 0, **more: Any) -> Aarch64VcpuState:
    counter = [] if number else [Reg(id=TIMER_CNT, value=5000)]
    values: dict[str, Any] = {
        "features": [4, 0, 0, 0, 0, 0, 0],
        "counter_hz": HZ,
        "realtime_ns": 0 if number else 10 * S,
        "vectors": [VectorReg(id=V0, value=b"\7" * 16)],
        **more,
    }
    return Aarch64VcpuState(
        id=number,
        target=5,
        mp_state=5 * number,
        regs=[Reg(id=X0, value=7), Reg(id=PC, value=8), Reg(id=TIMER_CTL, value=1), *counter, Reg(id=FPSR, value=9)],
        events=SErrorEvents(),
        **values,
    )


def test_a_vcpu_is_loaded_in_the_order_of_the_table_and_its_counter_waits():
    fd, vcpu = made(0, saved())
    assert fd.done == []
    vcpu.load()
    assert fd.done == ["init 5", "regs", f"vector {V0:#x}", "events", "mp_state 0"]
    assert (fd.numbers[X0], fd.numbers[TIMER_CNT]) == (7, 0)
    vcpu.load()
    assert len(fd.done) == 5, "once"


def test_vector_lengths_come_before_the_vcpu_is_finalised_and_vectors_after():
    vectors = [VectorReg(id=Z0, value=bytes(256)), VectorReg(id=VLS, value=b"\1" + bytes(63))]
    fd, vcpu = made(0, saved(features=[SVE, 0, 0, 0, 0, 0, 0], vectors=vectors))
    vcpu.load()
    assert fd.done[:3] == ["init 5", f"vector {VLS:#x}", "finalize 4"]
    assert f"vector {Z0:#x}" in fd.done[3:]
    assert fd.done.count(f"vector {VLS:#x}") == 1


def test_a_machine_that_waits_gives_its_counter_back_as_it_was():
    fd, vcpu = made(0, saved())
    vcpu.load()
    fd.numbers[TIMER_CNT] = 99
    state = vcpu.save()
    assert [reg for reg in state.regs if reg.id == TIMER_CNT] == [Reg(id=TIMER_CNT, value=5000)]
    assert state.realtime_ns == 10 * S
    assert [reg.id for reg in state.regs] == [X0, PC, TIMER_CTL, TIMER_CNT, TIMER_CVAL, FPSR], "as KVM lists them"


def test_only_the_first_cpu_has_the_counter_and_the_wall_time(monkeypatch):
    monkeypatch.setattr(host, "realtime_ns", lambda: 123)
    for number in (0, 1):
        fd, vcpu = made(number)
        fd.numbers[TIMER_CNT] = 77
        state = vcpu.save()
        counters = [reg.value for reg in state.regs if reg.id == TIMER_CNT]
        assert (counters, state.realtime_ns) == (([], 0) if number else ([77], 123))


def test_what_a_timer_is_at_the_moment_is_not_saved():
    fd, vcpu = made()
    fd.numbers[TIMER_CTL] = 0b101  # enabled, and its condition is met
    assert {reg.id: reg.value for reg in vcpu.save().regs}[TIMER_CTL] == 1


@pytest.mark.parametrize(
    ("policy", "now_s", "counter"),
    [("continue", 100, 5000), ("realtime", 12, 5000 + 2 * HZ), ("realtime", 9, 5000)],
    ids=["continue", "realtime", "a wall clock before the save"],
)
def test_the_counter_goes_on_at_the_first_resume_by_the_policy(monkeypatch, policy, now_s, counter):
    monkeypatch.setattr(host, "realtime_ns", lambda: now_s * S)
    pairs = [made(number, saved(number)) for number in (0, 1)]
    for _fd, vcpu in pairs:
        vcpu.load()
    clock.start([vcpu for _fd, vcpu in pairs], policy)
    assert [fd.numbers[TIMER_CNT] for fd, _vcpu in pairs] == [counter, 0], "one counter for all, set through the first"
    pairs[0][0].numbers[TIMER_CNT] = 6000
    clock.start([vcpu for _fd, vcpu in pairs], policy)
    assert pairs[0][0].numbers[TIMER_CNT] == 6000, "once"
    assert {reg.id: reg.value for reg in pairs[0][1].save().regs}[TIMER_CNT] == 6000


def test_a_machine_that_was_booted_has_nothing_to_go_on_from():
    fd, vcpu = made()
    clock.start([vcpu], "realtime")
    assert fd.done == []


def test_another_rate_is_refused_and_none_is_any(monkeypatch):
    kvm: Any = None
    monkeypatch.setattr(clock, "counter_hz", lambda _kvm: HZ)
    clock.require_rate(kvm, HZ)
    clock.require_rate(kvm, 0)
    with pytest.raises(IncompatibleHost, match="counter runs at 25000000 Hz, this host's at 62500000"):
        clock.require_rate(kvm, 25_000_000)


def test_a_fresh_boot_cpu_begins_at_the_kernel_and_the_others_wait():
    class Entry:
        pc, x0, pstate = 0x8020_0000, 0x8FFF_0000, 0x3C5

    entry: Any = Entry()
    init = VcpuInit(5, (4, 0, 0, 0, 0, 0, 0))
    fd, vcpu = made()
    vcpu.reset(init, HZ, entry)
    assert (fd.numbers[PC], fd.numbers[X0], fd.mp_state) == (entry.pc, entry.x0, 0)
    assert (vcpu.save().counter_hz, vcpu.save().features) == (HZ, [4, 0, 0, 0, 0, 0, 0])
    fd, vcpu = made(1)
    vcpu.reset(init, HZ, None)
    assert fd.mp_state == 5
