"""Clocks that KVM cannot have saved."""

from tests.restore.broken import MACHINE, VCPU0, VCPU1, at, broken
from tests.restore.device_machine import States


@broken("none", "clock.pit: pit/0.channels[0].count")
def pit_counts_from_nothing(states: States) -> None:
    at(states, "pit", "0").channels[0].count = 0


@broken("none", "clock.pit: pit/0.channels[1].count")
def pit_counts_too_far(states: States) -> None:
    at(states, "pit", "0").channels[1].count = 0x1_0001


@broken("none", "clock.pit: pit/0.channels[0].mode")
def pit_mode_that_there_is_not(states: States) -> None:
    at(states, "pit", "0").channels[0].mode = 8


@broken("none", "clock.pit: pit/0.channels[2].read_state")
def pit_latch_that_there_is_not(states: States) -> None:
    at(states, "pit", "0").channels[2].read_state = 5


@broken("none", "clock.pit: pit/0.channels[1].load_age_ns")
def pit_loaded_before_all_time(states: States) -> None:
    at(states, "pit", "0").channels[1].load_age_ns = (1 << 64) - 1


@broken("none", "clock.pit: pit/0.flags")
def pit_flags(states: States) -> None:
    at(states, "pit", "0").flags = 4


@broken("none", "clock.kvm-clock: kvm-clock/0.clock_ns")
def guest_older_than_its_clock(states: States) -> None:
    at(states, "kvm-clock", "0").clock_ns = 1 << 63


@broken("none", "clock.kvm-clock: kvm-clock/0.realtime_ns")
def wall_clock_beyond_its_range(states: States) -> None:
    at(states, "kvm-clock", "0").realtime_ns = 1 << 62


@broken("none", "clock.tsc-rate: vcpu-x86-64/1.tsc_khz")
def a_cpu_of_another_rate(states: States) -> None:
    states[VCPU1].tsc_khz = 3_000_000


@broken("none", "clock.tsc-rate: vcpu-x86-64/0.tsc_khz", "clock.tsc-rate: vcpu-x86-64/1.tsc_khz")
def a_rate_that_no_cpu_has(states: States) -> None:
    states[MACHINE].tsc_khz = 3_000_000


@broken("none", "clock.tsc-rate: vcpu-x86-64/0.tsc_khz", "clock.tsc-rate: vcpu-x86-64/1.tsc_khz")
def a_rate_that_looks_like_an_error(states: States) -> None:
    states[VCPU0].tsc_khz = states[VCPU1].tsc_khz = states[MACHINE].tsc_khz = 1 << 31
