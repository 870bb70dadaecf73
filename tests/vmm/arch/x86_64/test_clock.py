"""Clocks are read and started at one moment, on a KVM made of its own rules, where every call takes as long as it may.

The fake restates kvm_synchronize_tsc and KVM_SET_CLOCK (Documentation/virt/kvm/api.rst); real KVMs are in
tests/kvm/test_clocks.py and tests/lab/test_time.py.
"""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from snapkit.state.kvm_clock import KvmClockState
from snapkit.state.vcpu_x86_64 import Msr
from snapkit.vmm.arch.x86_64 import clock as module
from snapkit.vmm.arch.x86_64.clock import KvmClock, in_step, save_together, start_together

U64 = (1 << 64) - 1
TSC = 0x10
KHZ = 2_500_000
SECOND = KHZ * 1000
MINUTE_NS = 60 * 10**9
HOUR_NS = 60 * MINUTE_NS


class World:
    """A host: its time goes on by the next of *delays_ns* with every call."""

    def __init__(self, delays_ns: list[int], *, realtime_ns: int = 10**18, attribute: bool = True) -> None:
        self.now_ns, self._delays_ns, self._at = 5 * HOUR_NS, delays_ns or [1000], 0
        self._realtime_base_ns = realtime_ns - self.now_ns
        self.attribute = attribute

    def pass_time(self) -> None:
        self.now_ns += self._delays_ns[self._at % len(self._delays_ns)]
        self._at += 1

    def monotonic_ns(self) -> int:
        return self.now_ns

    def realtime_ns(self) -> int:
        return self.now_ns + self._realtime_base_ns

    @property
    def counter(self) -> int:
        return self.now_ns * KHZ // 1_000_000


class FakeVm:
    def __init__(self, world: World, *, has_realtime: bool = True) -> None:
        self.world, self.has_realtime, self.rounding_ns = world, has_realtime, 0
        self.base_ns = -world.now_ns
        self.created_ns = world.now_ns
        self.last_write = (0, world.now_ns, -world.counter)

    def clock_now_ns(self) -> int:
        return self.world.now_ns + self.base_ns

    def get_clock_ns(self) -> int:
        self.world.pass_time()
        return self.clock_now_ns() - self.rounding_ns

    def set_clock_ns(self, clock_ns: int, realtime_ns: int | None = None) -> None:
        self.world.pass_time()
        since = 0 if realtime_ns is None else max(0, self.world.realtime_ns() - realtime_ns)
        self.base_ns = clock_ns + since - self.world.now_ns

    def clock_has_realtime(self) -> bool:
        return self.has_realtime


class FakeVcpu:
    """An `X86Vcpu` and its fd in one."""

    def __init__(self, vm: FakeVm, held: tuple[int, int] | None = None) -> None:
        self.vm, self.held, self.timers = vm, held, 0
        self.offset = vm.last_write[2]
        self.tsc_offset: int | None = None

    @property
    def fd(self) -> Any:
        return self

    @property
    def tsc(self) -> int:
        return self.vm.world.counter + self.offset & U64

    def held_counter(self) -> tuple[int, int] | None:
        return self.held

    def start_timers(self) -> None:
        self.timers += 1

    def forget_held(self) -> None:
        self.held = None

    def get_tsc_khz(self) -> int:
        return KHZ

    def get_tsc(self) -> int:
        self.vm.world.pass_time()
        return self.tsc

    def get_tsc_offset(self) -> int | None:
        self.vm.world.pass_time()
        return self.offset & U64 if self.vm.world.attribute else None

    def set_tsc_offset(self, offset: int) -> None:
        self.vm.world.pass_time()
        assert 0 <= offset <= U64
        self.offset = offset

    def set_msrs(self, msrs: dict[int, int]) -> None:
        """KVM's rule for a written counter: within a second of what the last write would be by now, it is the same."""
        self.vm.world.pass_time()
        (value,) = msrs.values()
        counter, at_ns, offset = self.vm.last_write
        expected = counter + (self.vm.world.now_ns - at_ns) * KHZ // 1_000_000
        self.offset = offset if abs(value - expected) < SECOND else value - self.vm.world.counter
        self.vm.last_write = (value, self.vm.world.now_ns, self.offset)


class FakeState:
    """As much of a VcpuState as clocks look at."""

    def __init__(self, tsc: int) -> None:
        self.msrs = [Msr(index=0x3B, data=0), Msr(index=TSC, data=tsc)]

    @property
    def tsc(self) -> int:
        return self.msrs[1].data


def started(
    world: World, held: list[tuple[int, int]], state: KvmClockState, policy: Any = "continue", **options: bool
) -> tuple[FakeVm, list[FakeVcpu]]:
    vm: Any = FakeVm(world, **options)
    vcpus: Any = [FakeVcpu(vm, counter) for counter in held]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "host", world)
        start_together(KvmClock.restore(state, vm), vcpus, policy)
    return vm, vcpus


def saved(world: World, vm: FakeVm, vcpus: list[FakeVcpu]) -> tuple[KvmClockState, list[int]]:
    """Save as a machine does: every counter at another time, then all of one moment."""
    states, clock = [], KvmClockState(clock_ns=0, realtime_ns=0)
    for vcpu in vcpus:
        states.append(FakeState(vcpu.get_tsc()))
        vcpu.tsc_offset = vcpu.get_tsc_offset()
    anything: Any = list(zip(vcpus, states, strict=True))
    somewhere: Any = vm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "host", world)
        save_together(KvmClock(somewhere), clock, anything)
    return clock, [state.tsc for state in states]


def skew_ns(vm: FakeVm, vcpu: FakeVcpu, clock_ns: int, tsc: int) -> float:
    """How much further its counter has gone than kvm-clock, since they were *tsc* and *clock_ns*."""
    return (vcpu.tsc - tsc) * 1e6 / KHZ - (vm.clock_now_ns() - clock_ns)


delays = st.lists(st.integers(100, 50_000), min_size=1, max_size=40)
hiccups = st.lists(st.one_of(st.integers(100, 50_000), st.integers(10**6, 3 * 10**9)), min_size=8, max_size=40)
adjustments = st.lists(st.integers(-(10**13), 10**13), max_size=7).map(lambda rest: [0, *rest])


@settings(deadline=None)
@given(delays=delays, adjusts=adjustments, late=st.integers(0, SECOND // 8), tsc=st.integers(10**14, 10**15))
@example(delays=[1000], adjusts=[0, 0], late=0, tsc=SECOND // 5)  # younger than a second
def test_counters_read_one_after_the_other_start_in_step_but_for_what_the_guest_added(delays, adjusts, late, tsc):
    held = [(tsc + adjust + number * late, adjust & U64) for number, adjust in enumerate(adjusts)]
    vm, vcpus = started(World(delays), held, KvmClockState(clock_ns=MINUTE_NS, realtime_ns=0))
    assert [(vcpu.tsc - vcpus[0].tsc + (1 << 63)) % (1 << 64) - (1 << 63) for vcpu in vcpus] == adjusts
    assert abs(skew_ns(vm, vcpus[0], MINUTE_NS, tsc)) <= 50_001
    assert [(vcpu.timers, vcpu.held) for vcpu in vcpus] == [(1, None)] * len(vcpus)


@settings(deadline=None)
@given(delays=hiccups, vcpus=st.integers(1, 8), policy=st.sampled_from(["continue", "realtime"]))
def test_a_host_that_stalls_between_any_two_calls_parts_no_two_counters_and_takes_no_time_back(delays, vcpus, policy):
    world = World(delays)
    tsc, before_ns = 10**14, world.realtime_ns()
    state = KvmClockState(clock_ns=MINUTE_NS, realtime_ns=before_ns)
    vm, started_vcpus = started(world, [(tsc, 0)] * vcpus, state, policy)
    assert {vcpu.offset for vcpu in started_vcpus} == {started_vcpus[0].offset}
    assert vm.clock_now_ns() >= MINUTE_NS
    assert started_vcpus[0].tsc >= tsc


@settings(deadline=None)
@given(delays=delays, adjusts=adjustments)
def test_what_is_saved_of_the_clocks_is_what_they_were_at_one_moment(delays, adjusts):
    world = World(delays)
    vm = FakeVm(world)
    vcpus = [FakeVcpu(vm) for _ in adjusts]
    for vcpu, adjust in zip(vcpus, adjusts, strict=True):
        vcpu.offset = 10**14 + adjust
    clock, counters = saved(world, vm, vcpus)
    assert [counter - counters[0] for counter in counters] == adjusts
    assert abs(skew_ns(vm, vcpus[0], clock.clock_ns, counters[0])) <= 50_001
    assert 0 <= vm.clock_now_ns() - clock.clock_ns == world.realtime_ns() - clock.realtime_ns


@settings(deadline=None)
@given(delays=delays, vcpus=st.integers(1, 8))
def test_without_offsets_written_counters_are_in_step_all_the_same(delays, vcpus):
    held = [(10**14 + number * SECOND // 100, 0) for number in range(vcpus)]
    state = KvmClockState(clock_ns=MINUTE_NS, realtime_ns=0)
    vm, started_vcpus = started(World(delays, attribute=False), held, state)
    assert {vcpu.offset for vcpu in started_vcpus} == {started_vcpus[0].offset}
    assert abs(skew_ns(vm, started_vcpus[0], MINUTE_NS, 10**14)) <= 100_002


def test_counters_a_second_apart_stay_apart():
    assert in_step([(100 * SECOND, 0), (101 * SECOND - 1, 0), (101 * SECOND, 0)], KHZ) == [
        100 * SECOND,
        100 * SECOND,
        101 * SECOND,
    ]


def test_a_counter_about_to_wrap_is_as_near_as_one_that_has():
    assert in_step([(U64, 0), (5, 0)], KHZ) == [U64, U64]


@pytest.mark.parametrize("has_realtime", [True, False], ids=["by KVM", "computed"])
@pytest.mark.parametrize(("away_ns", "moved_ns"), [(HOUR_NS, HOUR_NS), (-HOUR_NS, 0), (0, 0)])
def test_realtime_moves_every_clock_by_the_wall_time_since_the_save_and_never_back(has_realtime, away_ns, moved_ns):
    world = World([1000])
    state = KvmClockState(clock_ns=MINUTE_NS, realtime_ns=world.realtime_ns() - away_ns)
    vm, vcpus = started(world, [(10**14, 0)] * 2, state, "realtime", has_realtime=has_realtime)
    assert 0 <= vm.clock_now_ns() - MINUTE_NS - moved_ns <= 50_000
    for vcpu in vcpus:
        assert abs(vcpu.tsc - 10**14 - moved_ns * KHZ // 1_000_000) < 50 * KHZ // 1000


def test_a_clock_that_kvm_gives_back_a_little_less_than_it_was_set_takes_no_counter_anywhere(monkeypatch):
    world = World([1])
    vm: Any = FakeVm(world)
    vm.rounding_ns = 1000
    vcpus: Any = [FakeVcpu(vm, (10**14, 0))]
    monkeypatch.setattr(module, "host", world)
    start_together(KvmClock.restore(KvmClockState(clock_ns=MINUTE_NS, realtime_ns=0), vm), vcpus, "continue")
    assert 0 <= vcpus[0].tsc - 10**14 < KHZ


def test_continue_leaves_the_wall_time_out():
    world = World([1000])
    vm, vcpus = started(world, [(10**14, 0)], KvmClockState(clock_ns=MINUTE_NS, realtime_ns=1))
    assert 0 <= vm.clock_now_ns() - MINUTE_NS <= 50_000
    assert 0 <= vcpus[0].tsc - 10**14 <= 50 * KHZ // 1000


def test_clocks_that_were_not_started_are_saved_as_they_were_loaded():
    world = World([1000])
    somewhere: Any = FakeVm(world)
    waiting: Any = FakeVcpu(somewhere, (77, 0))
    state: Any = FakeState(77)
    clock = KvmClockState(clock_ns=5, realtime_ns=6)
    save_together(KvmClock.restore(clock, somewhere), clock, [(waiting, state)])
    assert (clock.clock_ns, clock.realtime_ns, state.tsc) == (5, 6, 77)
