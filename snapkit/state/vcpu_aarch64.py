"""One AArch64 virtual CPU: what KVM_GET_REG_LIST lists, id by id, and what KVM_ARM_VCPU_INIT was told.

A register's id says its class and width (include/uapi/asm/kvm.h of arm64): those of 32 and 64 bits are numbers in `regs`,
wider ones (V0 to V31, SVE's Z, P and FFR, the set of vector lengths) bytes in `vectors`. Both stand in KVM's order.

Surprises: the virtual counter is one for all CPUs of a machine, so that only CPU 0 has KVM_REG_ARM_TIMER_CNT. Its id and
that of KVM_REG_ARM_TIMER_CVAL are swapped against the architecture's encodings, which is UAPI: names here are UAPI's.
A CPU with SVE has no V registers in KVM's list: they are the low ends of Z.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Annotated, Any

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.schema import U8, U32, U64, State, doc, named, schema
from snapkit.state.spec import aarch64 as spec
from snapkit.state.spec.aarch64 import REGISTERS, register_name, width_of

FEATURE_WORDS = 7
REGS_MAX = 2048
VECTORS_MAX = 1024


class Reg(State, gc=False):
    """A register of at most 64 bits."""

    id: Annotated[U64, named(REGISTERS)]
    value: U64


class VectorReg(State, gc=False):
    """A register of more than 64 bits, its bytes as KVM gives them."""

    id: Annotated[U64, named(REGISTERS)]
    value: Annotated[bytes, Meta(min_length=16, max_length=256)]


class SErrorEvents(State):
    """struct kvm_vcpu_events of arm64: a pending SError and its syndrome."""

    serror_pending: U8 = 0
    serror_has_esr: U8 = 0
    serror_esr: U64 = 0


@schema("vcpu-aarch64", version=1, max_len=384 << 10)
class Aarch64VcpuState(State):
    """One vCPU; *id* is KVM's, its MPIDR is among the registers."""

    id: U8
    target: U32
    features: Annotated[
        list[U32],
        Meta(min_length=FEATURE_WORDS, max_length=FEATURE_WORDS),
        doc("bits of KVM_ARM_VCPU_INIT, without POWER_OFF, which is a run state"),
    ]
    mp_state: U32
    counter_hz: Annotated[U32, doc("CNTFRQ_EL0, which is the host's; KVM does not list it. 0: not known")] = 0
    realtime_ns: Annotated[
        U64, doc("the host's wall time when the counter was read; 0 of a CPU without the counter")
    ] = 0
    regs: Annotated[list[Reg], Meta(max_length=REGS_MAX)]
    vectors: Annotated[list[VectorReg], Meta(max_length=VECTORS_MAX)]
    events: SErrorEvents


KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED = 0, 5
LONG_LEN = 8
"""Bytes of the widest register that is a number."""

RULES = {
    "registers.once": "No register is there twice: which of the two counted would be KVM's whim.",
    "registers.width": "A register's id says how wide it is, and its value is as wide: KVM refuses others.",
    "registers.core": "X0 to X30, SP, PC, PSTATE, MPIDR and their like are there: KVM lists them for every CPU.",
    "vcpus.features": "A CPU has PSCI and of the rest only what this monitor offers: no 32-bit kernel, PMU or EL2.",
    "vcpus.sve": "SVE's registers and its vector lengths are there where the CPU has SVE, else V0 to V31: KVM has no others.",
    "vcpus.pointer-auth": "Both kinds of pointer authentication or none: KVM_ARM_VCPU_INIT refuses one without the other.",
    "vcpus.run-state": "A CPU runs or was stopped by PSCI: KVM_SET_MP_STATE refuses other states.",
    "vcpus.pstate": "A CPU is at EL0 or EL1, in AArch32 at EL0 only, if it has that: KVM refuses other modes.",
    "vcpus.serror": "A pending SError has a syndrome where CPUs have one, of 25 bits: KVM refuses more.",
}
"""What a finding of this module may be named for, and why it must hold."""

_id_of = attrgetter("id")
_CORE = spec.GENERAL_REGISTERS | {spec.SP_EL0, spec.PC, spec.PSTATE, spec.SP_EL1, spec.ELR_EL1, spec.MPIDR_EL1}
_MODES = (spec.MODE_EL0T, spec.MODE_EL1T, spec.MODE_EL1H)
_EL0_AARCH32 = 2
"""ID_AA64PFR0_EL1.EL0 of a CPU that has both."""
_SYNDROME_MAX = (1 << 25) - 1
_PTRAUTH = spec.PTRAUTH_ADDRESS | spec.PTRAUTH_GENERIC


def invariants(state: Aarch64VcpuState, component: str) -> list[Finding]:
    """Return where *state* is not a vCPU that KVM gives, or would take."""
    findings: list[Finding] = []

    def find(path: str, found: str, expected: str, rule: str) -> None:
        findings.append(Finding(component, path, found, expected, rule))

    numbers = {reg.id: reg.value for reg in state.regs}
    vectors = set(map(_id_of, state.vectors))
    for path, items, ids in (("regs", state.regs, numbers.keys()), ("vectors", state.vectors, vectors)):
        if len(items) != len(ids):
            find(path, "a list with a register twice", "free of repetitions", "registers.once")
    _find_widths(state, find)
    if lacking := _CORE - numbers.keys():
        find("regs", f"without {register_name(min(lacking))}", "with every core register", "registers.core")
    _find_features(state, find)
    _find_vectors(state, vectors, find)
    if state.mp_state not in (KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED):
        expected = f"{KVM_MP_STATE_RUNNABLE} or {KVM_MP_STATE_STOPPED}, KVM_MP_STATE_RUNNABLE or _STOPPED"
        find("mp_state", str(state.mp_state), expected, "vcpus.run-state")
    mode = spec.Pstate.M.get(numbers.get(spec.PSTATE, 0))
    user32 = numbers.get(spec.ID_AA64PFR0_EL1, 0) & 0xF == _EL0_AARCH32
    if mode not in _MODES and not (mode == spec.MODE_USR and user32):
        expected = f"one of {', '.join(map(str, _MODES))}{f', {spec.MODE_USR}' if user32 else ''}"
        find(f"regs[{_place(state.regs, spec.PSTATE)}].value", f"mode {mode}", expected, "vcpus.pstate")
    events = state.events
    for name, value, most in (
        ("serror_pending", events.serror_pending, 1),
        ("serror_has_esr", events.serror_has_esr, 1),
        ("serror_esr", events.serror_esr, _SYNDROME_MAX if events.serror_pending and events.serror_has_esr else 0),
    ):
        if value > most:
            find(f"events.{name}", f"{value:#x}", f"at most {most:#x}", "vcpus.serror")
    return findings


_Find = Callable[[str, str, str, str], None]


def _find_widths(state: Aarch64VcpuState, find: _Find) -> None:
    # most are of 64 bits, where any value fits
    others = [(number, reg) for number, reg in enumerate(state.regs) if reg.id >> spec.WIDTH_SHIFT != spec.LONG]
    for number, reg in others:
        width = width_of(reg.id)
        if not spec.is_register(reg.id) or width > LONG_LEN:
            find(f"regs[{number}].id", f"{reg.id:#x}", "a register of 32 or 64 bits", "registers.width")
        elif reg.value >> 8 * width:
            expected = f"within {8 * width} bits, as {register_name(reg.id)} is"
            find(f"regs[{number}].value", f"{reg.value:#x}", expected, "registers.width")
    for number, vector in enumerate(state.vectors):
        width = width_of(vector.id)
        if not spec.is_register(vector.id) or width <= LONG_LEN:
            find(f"vectors[{number}].id", f"{vector.id:#x}", "a register of 128 bits or more", "registers.width")
        elif len(vector.value) != width:
            expected = f"{width}, as {register_name(vector.id)} has"
            find(f"vectors[{number}].value", f"{len(vector.value)} bytes", expected, "registers.width")


def _find_features(state: Aarch64VcpuState, find: _Find) -> None:
    first = state.features[0]
    if first & ~spec.OFFERED or not first & spec.PSCI_0_2:
        expected = f"within {spec.OFFERED:#x}, with {spec.PSCI_0_2:#x}"
        find("features[0]", f"{first:#x}", expected, "vcpus.features")
    for number, word in enumerate(state.features[1:], 1):
        if word:
            find(f"features[{number}]", f"{word:#x}", "0", "vcpus.features")
    if first & _PTRAUTH not in (0, _PTRAUTH):
        find("features[0]", f"{first:#x}", f"with all or none of {_PTRAUTH:#x}", "vcpus.pointer-auth")


def _find_vectors(state: Aarch64VcpuState, vectors: set[int], find: _Find) -> None:
    wanted = spec.SVE_REGISTERS if state.features[0] & spec.SVE else spec.VECTOR_REGISTERS
    if vectors != wanted:
        wrong = min(vectors ^ wanted)
        found = f"{'with' if wrong in vectors else 'without'} {register_name(wrong)}"
        expected = f"those of a CPU with{'' if state.features[0] & spec.SVE else 'out'} SVE"
        find("vectors", found, expected, "vcpus.sve")
    elif state.features[0] & spec.SVE:
        number = _place(state.vectors, spec.SVE_VLS)
        if not any(state.vectors[number].value):
            find(f"vectors[{number}].value", "no vector length", "at least one", "vcpus.sve")


def _place(items: Sequence[Any], reg_id: int) -> int:
    return next((number for number, item in enumerate(items) if item.id == reg_id), 0)
