"""When two saves of one machine are equal: byte for byte, but for the clocks that nobody can hold.

A save, a restore of it up to *load*, and a second save; or two saves of one paused machine: every section has the same
bytes, except the fields of `EXEMPT`. Of these a clock must have advanced, and by no more than the host time that passed;
whoever compares measures that around both saves. What a save tells of its host, and no load writes, is whatever it is: the
saves may be two hosts'. Pure: a comparison of States, usable wherever two saves meet.

The PIT has no entry: it stands still while a machine is paused or not running yet, ages of its channels included. An
aarch64 machine's counter says itself how fast it is.
Source: Documentation/virt/kvm/api.rst (KVM_GET_CLOCK), Intel SDM volume 3 (APIC timer, time-stamp counter).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from snapkit.errors import Finding
from snapkit.state.codec import checked, encode
from snapkit.state.diff import state_differences
from snapkit.state.schema import SectionId, State
from snapkit.state.spec import lapic
from snapkit.state.spec.aarch64 import PTIMER_CNT, TIMER_CNT
from snapkit.state.spec.x86 import MXCSR_LEN, MXCSR_MASK_AT
from snapkit.state.vcpu_aarch64 import Aarch64VcpuState, Reg
from snapkit.state.vcpu_x86_64 import Msr, VcpuState

IA32_TSC, IA32_TSC_DEADLINE = 0x10, 0x6E0
_U64 = (1 << 64) - 1
_WORD_LEN = 4
_NS_PER_S = 1_000_000_000


class Elapsed(NamedTuple):
    """Host time between the beginning of the first save (or load) and the end of the second: *ns*, *tsc* cycles."""

    ns: int
    tsc: int


class Reading(NamedTuple):
    """A clock field of one section before and after: how far it went, how far it may have gone, in its own unit."""

    path: str
    advance: int
    allowed: int


@dataclass(frozen=True, slots=True)
class Exempt:
    """A field that may differ between equal saves.

    *take* makes the second state's the first's; of a clock it gives what both read.
    """

    kind: str
    field: str
    reason: str
    take: Callable[[Any, Any, Elapsed], Iterator[Reading]]


def elapsed(ns: int, *, tsc_khz: int) -> Elapsed:
    """Return *ns* of host time with the cycles of a counter of *tsc_khz* in it, rounded up."""
    return Elapsed(ns, -(-ns * tsc_khz // 1_000_000))


def _msr(index: int) -> Callable[[VcpuState, VcpuState, Elapsed], Iterator[Reading]]:
    def take(before: VcpuState, after: VcpuState, passed: Elapsed) -> Iterator[Reading]:
        for number, (old, new) in enumerate(zip(before.msrs, after.msrs, strict=False)):
            if old.index == new.index == index:
                yield Reading(f"msrs[{number}].data", new.data - old.data & _U64, passed.tsc)
                after.msrs[number] = Msr(index=index, data=old.data)

    return take


def _timer_count(before: VcpuState, after: VcpuState, passed: Elapsed) -> Iterator[Reading]:
    """It counts down; a periodic one begins again at the initial count, any number of times."""
    initial, divide, timer = (_word(before.lapic, at) for at in (lapic.TMICT, lapic.TDCR, lapic.LVT_TIMER))
    old, new = (_word(state.lapic, lapic.TMCCT) for state in (before, after))
    if old == new or not initial:
        return
    gone = old - new
    if timer >> 17 & 3 == lapic.TIMER_PERIODIC:
        gone %= initial
    counts_ns = 1 << ((divide & 3 | divide >> 1 & 4) + 1 & 7)  # KVM's APIC bus runs at 1 GHz
    yield Reading("lapic", gone if gone >= 0 else _U64, passed.ns // counts_ns + 1)
    page = bytearray(after.lapic)
    page[lapic.TMCCT : lapic.TMCCT + _WORD_LEN] = old.to_bytes(_WORD_LEN, "little")
    after.lapic = bytes(page)


def _mxcsr_mask(before: VcpuState, after: VcpuState, _passed: Elapsed) -> Iterator[Reading]:
    mask = before.xsave[MXCSR_MASK_AT : MXCSR_MASK_AT + MXCSR_LEN]
    after.xsave = after.xsave[:MXCSR_MASK_AT] + mask + after.xsave[MXCSR_MASK_AT + len(mask) :]
    yield from ()


def _word(page: bytes, at: int) -> int:
    return int.from_bytes(page[at : at + _WORD_LEN], "little")


def _counter(register: int) -> Callable[[Aarch64VcpuState, Aarch64VcpuState, Elapsed], Iterator[Reading]]:
    def take(before: Aarch64VcpuState, after: Aarch64VcpuState, passed: Elapsed) -> Iterator[Reading]:
        allowed = -(-passed.ns * before.counter_hz // _NS_PER_S)
        for number, (old, new) in enumerate(zip(before.regs, after.regs, strict=False)):
            if old.id == new.id == register:
                yield Reading(f"regs[{number}].value", new.value - old.value & _U64, allowed)
                after.regs[number] = Reg(id=register, value=old.value)

    return take


def _nanoseconds(name: str) -> Callable[[State, State, Elapsed], Iterator[Reading]]:
    def take(before: State, after: State, passed: Elapsed) -> Iterator[Reading]:
        old, new = getattr(before, name), getattr(after, name)
        yield Reading(name, new - old & _U64, passed.ns)
        setattr(after, name, old)

    return take


EXEMPT = (
    Exempt(
        "vcpu-x86-64",
        "msrs IA32_TSC",
        "the counter cannot be stopped; one that was loaded but not started yet is given back exactly",
        _msr(IA32_TSC),
    ),
    Exempt(
        "vcpu-x86-64",
        "msrs IA32_TSC_DEADLINE",
        "a deadline that had passed, or is off, is saved as the counter's own value, so that it fires at once",
        _msr(IA32_TSC_DEADLINE),
    ),
    Exempt(
        "vcpu-x86-64",
        "lapic current count of the timer",
        "KVM lets the timer run while the machine is paused; one that was loaded but not started yet stands still",
        _timer_count,
    ),
    Exempt(
        "vcpu-x86-64",
        "xsave MXCSR_MASK",
        "XSAVE tells by it which bits of MXCSR the host's processor has, and XRSTOR takes no notice of it",
        _mxcsr_mask,
    ),
    Exempt(
        "kvm-clock",
        "clock_ns",
        "the guest's time follows the host's while the machine is paused",
        _nanoseconds("clock_ns"),
    ),
    Exempt(
        "kvm-clock",
        "realtime_ns",
        "the host's wall clock at the save",
        _nanoseconds("realtime_ns"),
    ),
    Exempt(
        "vcpu-aarch64",
        "regs KVM_REG_ARM_TIMER_CNT",
        "the counter cannot be stopped; one that was loaded but not started yet is given back exactly",
        _counter(TIMER_CNT),
    ),
    Exempt(
        "vcpu-aarch64",
        "regs KVM_REG_ARM_PTIMER_CNT",
        "the same of the physical counter, where KVM has one for each machine",
        _counter(PTIMER_CNT),
    ),
    Exempt(
        "vcpu-aarch64",
        "realtime_ns",
        "the host's wall clock when the counter was read",
        _nanoseconds("realtime_ns"),
    ),
)
"""All that may differ between equal saves."""


def differences(before: Mapping[SectionId, State], after: Mapping[SectionId, State], passed: Elapsed) -> list[Finding]:
    """Return every way in which the second save is not equal to the first; empty when they are equal."""
    findings = [
        Finding(str(section), "", "there" if section in after else "absent", "as in the first save", "equal.sections")
        for section in sorted(set(before) ^ set(after))
    ]
    for section in before:
        if section in after:
            findings += _compare(section, before[section], checked(after[section]), passed)
    return findings


def _compare(section: SectionId, before: State, after: State, passed: Elapsed) -> Iterator[Finding]:
    if type(before) is not type(after):
        yield Finding(str(section), "", type(after).__name__, type(before).__name__, "equal.sections")
        return
    for field in EXEMPT:
        if field.kind != section.kind:
            continue
        for reading in field.take(before, after, passed):
            if reading.advance > reading.allowed:
                got = "gone back" if reading.advance > _U64 >> 1 else f"{reading.advance} later"
                yield Finding(str(section), reading.path, got, f"at most {reading.allowed} later", "equal.clocks")
    if encode(before) != encode(after):
        for difference in state_differences(before, after, ""):
            path = difference.path.removeprefix(".")
            was, now = difference.text(difference.before), difference.text(difference.after)
            yield Finding(str(section), path, now, was, "equal.bytes")
