"""Time: the PIT as KVM can have saved it, the paravirtual clock, one rate of the time-stamp counter for all CPUs.

KVM_SET_PIT2 refuses nothing (measured); what it is given here is shown to the guest by its reads, and decides what the
kernel's timer does, so only what KVM itself can have reached is let through. Source: arch/x86/kvm/i8254.c.
"""

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index, invariant
from snapkit.restore.pages import Pages
from snapkit.state.kvm_clock import KvmClockState
from snapkit.state.machine import MachineState
from snapkit.state.pit import PitState
from snapkit.state.vcpu_x86_64 import VcpuState

_COUNT_MAX = 0x1_0000
_MODE_MAX, _MODE_NONE = 7, 0xFF
_FLAGS = 3
"""KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON."""
_NS_MAX = (1 << 62) - 1
"""146 years: sums of two stay within the signed 64 bits in which Linux keeps time."""
_KHZ_MAX = (1 << 31) - 1
"""KVM_GET_TSC_KHZ returns an int; what is above looks like an error."""
_SMALL = (
    ("count_latched", 3),
    ("status_latched", 1),
    ("read_state", 4),
    ("write_state", 4),
    ("rw_mode", 3),
    ("bcd", 1),
    ("gate", 1),
    ("load_age_ns", _NS_MAX),
)


@invariant("clock.pit")
def pit_possible(index: Index, _pages: Pages) -> Findings:
    """A channel of the PIT counts from 1 to 2^16 in a mode that there is, or in none since it was reset."""
    for section, pit in index.each(PitState):
        for number, channel in enumerate(pit.channels):
            path = f"channels[{number}]"
            if not 1 <= channel.count <= _COUNT_MAX:
                yield Finding(str(section), f"{path}.count", str(channel.count), f"1 to {_COUNT_MAX}")
            if channel.mode > _MODE_MAX and channel.mode != _MODE_NONE:
                yield Finding(str(section), f"{path}.mode", str(channel.mode), f"at most {_MODE_MAX}, or {_MODE_NONE}")
            for name, most in _SMALL:
                if (value := getattr(channel, name)) > most:
                    yield Finding(str(section), f"{path}.{name}", str(value), f"at most {most}")
        if pit.flags > _FLAGS:
            yield Finding(str(section), "flags", f"{pit.flags:#x}", f"within {_FLAGS:#x}")


@invariant("clock.kvm-clock")
def kvm_clock_possible(index: Index, _pages: Pages) -> Findings:
    """The guest has lived, and the world lasted, for less than the time that a signed count of nanoseconds holds."""
    for section, clock in index.each(KvmClockState):
        for name, value in (("clock_ns", clock.clock_ns), ("realtime_ns", clock.realtime_ns)):
            if value > _NS_MAX:
                yield Finding(str(section), name, str(value), f"at most {_NS_MAX}")


@invariant("clock.tsc-rate")
def tsc_rates_agree(index: Index, _pages: Pages) -> Findings:
    """All CPUs count at the machine's rate, which fits what KVM_GET_TSC_KHZ returns: a guest measures it on one CPU."""
    machine = index.get("machine", "0", MachineState)
    if machine is None:
        return
    for section, vcpu in index.each(VcpuState):
        if vcpu.tsc_khz > _KHZ_MAX:
            yield Finding(str(section), "tsc_khz", str(vcpu.tsc_khz), f"at most {_KHZ_MAX}")
        elif vcpu.tsc_khz != machine.tsc_khz:
            yield Finding(str(section), "tsc_khz", str(vcpu.tsc_khz), f"{machine.tsc_khz}, as machine/0 has it")
