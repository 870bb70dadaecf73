"""The clocks that a guest measures time by, read at one moment and set going at one: kvm-clock and the TSCs.

What a guest sees of each is the table in the docstring of `snapkit.vmm.arch.x86_64`.

*One moment.* A guest compares the two: Linux has kvm-clock watch over the TSC, and gives the TSC up when they drift
apart by some milliseconds within half a second, which the way between two ioctls can become on a busy host. So they
are read back to back, again while it took long, and all that is written follows from such a `Moment` by arithmetic: a
vCPU's offset from the host's counter does not depend on when it is set, as the counter itself would.

*In step.* A file may hold counters that were read one after the other. What they say without what the guest itself
added (IA32_TSC_ADJUST) is one counter if it differs by less than a second, which is KVM's own rule for values that are
written (kvm_synchronize_tsc in arch/x86/kvm/x86.c); counters further apart stay so. A counter that a guest without
IA32_TSC_ADJUST in its CPUID set off by less than a second comes back in step.

*Wall time.* With the policy ``realtime``, kvm-clock and all TSCs go forward by the wall time since the save: a deadline
that has passed meanwhile is over. A host's wall clock may also lie *before* the save: a clone on another host, a clock
that was set. Then the guest's clocks go on from where they were, as with ``continue``: no guest expects monotonic time
to go back, and KVM keeps the same rule for KVM_CLOCK_REALTIME.

Before Linux 5.16 there is no KVM_VCPU_TSC_OFFSET, and the counters themselves are written; KVM then brings into step
what is less than a second apart, also with the value that it gave the vCPU when it made it. On KVMs that cannot move a
counter at all (measured: PVM), the guest sees the host's, whatever is written.
Source: Documentation/virt/kvm/api.rst (KVM_GET_CLOCK, KVM_SET_CLOCK), Documentation/virt/kvm/devices/vcpu.rst
(KVM_VCPU_TSC_CTRL).
"""

from collections.abc import Sequence
from typing import NamedTuple, Self

from snapkit import host
from snapkit.state.codec import checked
from snapkit.state.kvm_clock import KvmClockState
from snapkit.state.vcpu_x86_64 import Msr, VcpuState
from snapkit.vmm.arch import ClockPolicy
from snapkit.vmm.arch.x86_64 import msrs
from snapkit.vmm.arch.x86_64.vcpu import X86Vcpu
from snapkit.vmm.kvm.vcpu_x86 import X86VcpuFd
from snapkit.vmm.kvm.vm_x86 import X86VmFd

_U64 = (1 << 64) - 1
_SIGN = 1 << 63
_NS_PER_S = 1_000_000_000
_NEAR_NS = 200_000  # reading twice takes 20 to 60 us; guests tolerate milliseconds
_READINGS = 4


class Moment(NamedTuple):
    """Clocks as they stood together; *tsc* is the first vCPU's."""

    clock_ns: int
    realtime_ns: int
    monotonic_ns: int
    tsc: int


class KvmClock:
    """The guest's paravirtual time. It starts when the machine first runs, not when it is loaded."""

    kind = "kvm-clock"

    def __init__(self, vm: X86VmFd, pending: KvmClockState | None = None) -> None:
        self.vm, self._pending = vm, pending

    @classmethod
    def restore(cls, state: KvmClockState, args: X86VmFd) -> Self:
        """Hold *state*, which must have been checked and is only read, until `start`."""
        return cls(args, state)

    def load(self) -> None:
        """Nothing is written before the machine runs."""

    @property
    def waits(self) -> bool:
        """It was not started yet."""
        return self._pending is not None

    def start(self, policy: ClockPolicy) -> KvmClockState | None:
        """Let the guest's time go on from where it was saved; returns that, None if there is nothing to go on from."""
        state = self._pending
        if state is None:
            return None
        if policy == "continue":
            self.vm.set_clock_ns(state.clock_ns)
        elif self.vm.clock_has_realtime():
            self.vm.set_clock_ns(state.clock_ns, state.realtime_ns)
        else:
            self.vm.set_clock_ns(state.clock_ns + max(0, host.realtime_ns() - state.realtime_ns) & _U64)
        return state

    def forget_held(self) -> None:
        """It goes on for good: what was held is over."""
        self._pending = None

    def close(self) -> None:
        """It goes with its VM."""

    def start_clock(self) -> None:
        """Started with the counters, by `start_together`."""

    def stop_clock(self) -> None:
        """It goes on while the machine is paused: the guest's time follows the host's."""

    def save(self) -> KvmClockState:
        """Read the clock; one that was not started yet is given back as it was."""
        if self._pending is not None:
            return checked(self._pending)
        return KvmClockState(clock_ns=self.vm.get_clock_ns(), realtime_ns=host.realtime_ns())


def start_together(clock: KvmClock, vcpus: Sequence[X86Vcpu], policy: ClockPolicy) -> None:
    """Set kvm-clock, every counter and the timers that go by them going; once, at the first resume, on this thread.

    A machine that was booted has nothing to go on from: its clocks run since KVM made them.
    """
    state = clock.start(policy)
    if state is None:
        return
    held = [(vcpu.fd, counter) for vcpu in vcpus if (counter := vcpu.held_counter()) is not None]
    if held:
        first = vcpus[0].fd
        khz, offset, moment = first.get_tsc_khz(), first.get_tsc_offset(), read_moment(clock.vm, first)
        since_ns = max(0, _signed(moment.clock_ns - state.clock_ns))  # what KVM gives back is rounded
        for (fd, _), saved in zip(held, in_step([counter for _, counter in held], khz), strict=True):
            target = saved + _cycles(since_ns, khz)
            if offset is not None:
                fd.set_tsc_offset(offset + target - moment.tsc & _U64)
            else:
                since_moment_ns = host.monotonic_ns() - moment.monotonic_ns
                fd.set_msrs({msrs.TSC: target + _cycles(since_moment_ns, khz) & _U64})
    for vcpu in vcpus:
        vcpu.start_timers()
    clock.forget_held()  # nothing is forgotten before: a resume that failed half-way may be tried again
    for vcpu in vcpus:
        vcpu.forget_held()


def save_together(clock: KvmClock, saved: KvmClockState, vcpus: Sequence[tuple[X86Vcpu, VcpuState]]) -> None:
    """Make *saved* and the counters in the states of *vcpus* those of one moment; on the thread of the first vCPU.

    What was not started yet stands still, and is in the states as it was loaded.
    """
    first, first_state = vcpus[0]
    if clock.waits or first.held_counter() is not None or not _counters(first_state):
        return
    moment = read_moment(clock.vm, first.fd)
    saved.clock_ns, saved.realtime_ns = moment.clock_ns, moment.realtime_ns
    since = moment.tsc - _counters(first_state)[0].data
    for vcpu, state in vcpus:
        for counter in _counters(state):
            if vcpu.tsc_offset is None or first.tsc_offset is None:
                counter.data = counter.data + since & _U64
            else:
                counter.data = moment.tsc + vcpu.tsc_offset - first.tsc_offset & _U64


def _counters(state: VcpuState) -> list[Msr]:
    return [msr for msr in state.msrs if msr.index == msrs.TSC]


def read_moment(vm: X86VmFd, first: X86VcpuFd) -> Moment:
    """Read the clocks together; on the thread of the *first* vCPU."""
    best, best_ns = None, 0
    for _ in range(_READINGS):
        before_ns = host.monotonic_ns()
        clock_ns, realtime_ns, tsc = vm.get_clock_ns(), host.realtime_ns(), first.get_tsc()
        after_ns = host.monotonic_ns()
        if best is None or after_ns - before_ns < best_ns:
            best, best_ns = Moment(clock_ns, realtime_ns, after_ns, tsc), after_ns - before_ns
        if best_ns <= _NEAR_NS:
            break
    assert best is not None
    return best


def in_step(counters: Sequence[tuple[int, int]], khz: int) -> list[int]:
    """Return the counters of *counters*, each one with its IA32_TSC_ADJUST, in step with the first.

    One that is a second or more away from the first, adjustments aside, is left as it is.
    """
    base = counters[0][0] - counters[0][1]
    together = []
    for counter, adjust in counters:
        skew = _signed(counter - adjust - base)
        together.append(base + adjust & _U64 if abs(skew) < _cycles(_NS_PER_S, khz) else counter)
    return together


def _signed(difference: int) -> int:
    """Return a difference of two 64-bit counts as the shorter way between them."""
    return (difference + _SIGN & _U64) - _SIGN


def _cycles(ns: int, khz: int) -> int:
    return ns * khz // 1_000_000
