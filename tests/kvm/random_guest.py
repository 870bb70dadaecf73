"""A guest that does anything to its CPU: random privileged instructions on real KVM, and the state that they leave.

Each step is one instruction and an OUT, from real mode on: control, debug and segment registers, a jump through a table of
random descriptors, XCR0, EFER, the APIC's base and its registers as MSRs, any MSR that is saved. A fault goes to an OUT as
well. It is over where the CPU stops otherwise (a triple fault, an address without memory), which is a state, too.
"""

import random
import struct
from collections.abc import Sequence
from typing import NamedTuple

from snapkit.errors import HostError
from snapkit.state.spec.x86 import EFER
from snapkit.state.vcpu_x86_64 import VcpuState
from snapkit.units import Gpa
from snapkit.vmm.kvm import abi
from tests.kvm.bounded import not_for_ever
from tests.kvm.one_vcpu import CODE_AT, OUT, Bench, bench

STEPS_MAX, VECTORS, DESCRIPTORS = 8, 32, 16
STUCK_S = 5.0
HANDLER_AT, STACK_AT, GDT_AT = Gpa(0x3000), 0x8000, Gpa(0x5000)
TABLES_AT = Gpa(0x1_0000)
"""Of three levels, a page each, one above the other; what is below 2 MiB lies at its own address."""
APIC_BASE, X2APIC_MSRS = 0x1B, range(0x800, 0x840)
APIC_BASES = (0xFEE0_0800, 0xFEE0_0C00, 0xFEE0_0000, 0xFEE0_0900, 0xFEF0_0C00, 0xFEE0_0D00, 0x900, 0x800)
KVM_MSRS = (0x11, 0x12, *range(0x4B56_4D00, 0x4B56_4D09))
WRMSR, POPFD = "0f30", "6650669d"
PROTECT, PAGING, PAE, LONG_MODE = 0x11, 1 << 31, 0x20, 0x100
_FROM_EAX = {
    "cr0": "0f22c0",
    "cr3": "0f22d8",
    "cr4": "0f22e0",
    "dr0": "0f23c0",
    "dr6": "0f23f0",
    "dr7": "0f23f8",
    "xcr0": "0f01d1",
}
_FROM_AX = {"ds": "8ed8", "es": "8ec0", "fs": "8ee0", "gs": "8ee8", "ss": "8ed0", "ltr": "0f00d8", "lldt": "0f00d0"}
_OTHERS = ("msr", "kvm msr", "x2apic", "apic base", "efer", "jump", "int", "flags")


class Step(NamedTuple):
    """*code* with *value* in EDX:EAX and *ecx*."""

    what: str
    code: bytes
    value: int = 0
    ecx: int = 0

    def __str__(self) -> str:
        return f"{self.what} {self.value:#x} {self.ecx:#x}"


class Left(NamedTuple):
    """What a guest left in the vCPU *number*, and by which *steps*."""

    number: int
    state: VcpuState
    steps: list[str]


def leave(seed: int, msrs: Sequence[int] = ()) -> Left:
    """Run the guest of *seed*, and save what it left. It writes *msrs*; without any, those that this host's KVM saves."""
    chance = random.Random(seed)
    number = chance.randrange(2)
    with bench(number) as one:
        state = one.state()
        state.mp_state = abi.KVM_MP_STATE_RUNNABLE
        state.sregs.gdt.base, state.sregs.gdt.limit = GDT_AT, 8 * (1 + DESCRIPTORS) - 1
        for vector in range(VECTORS):
            one.memory.write(Gpa(4 * vector), struct.pack("<HH", HANDLER_AT, 0))
        one.memory.write(HANDLER_AT, OUT)
        for level, entry in enumerate((TABLES_AT + 0x1003, TABLES_AT + 0x2003, 0x83)):
            one.memory.write(Gpa(TABLES_AT + 0x1000 * level), struct.pack("<Q", entry))
        one.memory.write(
            GDT_AT, struct.pack(f"<{1 + DESCRIPTORS}Q", 0, *(_descriptor(chance) for _ in range(DESCRIPTORS)))
        )
        vcpu = one.load(state)
        vcpu.forget_held()
        done: list[str] = []
        for step in _steps(chance, msrs or [msr.index for msr in state.msrs]):
            done.append(str(step))
            if ended := _do(one, step):
                done.append(ended)
                break
        return Left(number, vcpu.save(), done)


def _do(one: Bench, step: Step) -> str:
    """Run one step; returns how the guest ended, if it did."""
    regs = one.fd.get_regs()
    regs.rip, regs.rsp, regs.rflags = CODE_AT, STACK_AT, 2
    regs.rax, regs.rdx, regs.rcx = step.value & 0xFFFF_FFFF, step.value >> 32, step.ecx
    one.memory.write(CODE_AT, step.code + OUT)
    try:
        one.fd.set_regs(regs)
        with not_for_ever(STUCK_S):
            one.fd.run()
    except InterruptedError:
        return "stuck"
    except HostError as error:
        return str(error)
    reason = abi.RUN_EXIT.unpack_from(one.fd.run_page, abi.RUN_EXIT_AT)[0]
    return "" if reason == abi.KVM_EXIT_IO else f"exit {reason}"


def _steps(chance: random.Random, msrs: Sequence[int]) -> list[Step]:
    steps = [_step(chance, msrs) for _ in range(chance.randrange(1, STEPS_MAX))]
    at = chance.randrange(len(steps) + 1)
    steps[at:at] = chance.choice(([], [], _protected(chance), _long(chance)))
    return steps


def _protected(chance: random.Random) -> list[Step]:
    """Into protected mode: by chance alone, hardly one gets there."""
    return [_control("cr0", PROTECT), _jump(chance)]


def _long(chance: random.Random) -> list[Step]:
    """Into long mode, mostly."""
    efer = Step("efer", bytes.fromhex(WRMSR), LONG_MODE, EFER)
    tables = TABLES_AT + 0x1000 * chance.choice((0, 0, 0, 1))
    return [_control("cr4", PAE), _control("cr3", tables), efer, _control("cr0", PROTECT | PAGING), _jump(chance)]


def _control(what: str, value: int) -> Step:
    return Step(what, bytes.fromhex(_FROM_EAX[what]), value)


def _step(chance: random.Random, msrs: Sequence[int]) -> Step:
    what = chance.choice([*_FROM_EAX, *_FROM_AX, *_OTHERS])
    if what in _FROM_AX:
        return Step(what, bytes.fromhex(_FROM_AX[what]), 8 * chance.randrange(1 + DESCRIPTORS))
    if what in _FROM_EAX:
        return _control(what, _word(chance, 32))
    if what == "jump":
        return _jump(chance)
    if what == "int":
        return Step(what, bytes([0xCD, chance.randrange(VECTORS)]))
    if what == "flags":
        return Step(what, bytes.fromhex(POPFD), _word(chance, 32))
    index, value = {
        "msr": (chance.choice(msrs), _word(chance, 64)),
        "kvm msr": (chance.choice(KVM_MSRS), _word(chance, 64)),
        "x2apic": (chance.choice(X2APIC_MSRS), _word(chance, 32)),
        "apic base": (APIC_BASE, chance.choice(APIC_BASES)),
        "efer": (EFER, _word(chance, 16)),
    }[what]
    return Step(what, bytes.fromhex(WRMSR), value, index)


def _jump(chance: random.Random) -> Step:
    """To the next instruction, through a descriptor."""
    return Step("jump", b"\xea" + struct.pack("<HH", CODE_AT + 5, 8 * chance.randrange(1, 1 + DESCRIPTORS)))


def _word(chance: random.Random, width: int) -> int:
    """One that means something here or there, or any."""
    known = (0, 1, PROTECT, 0x1000, 0xFEE0_0D00, 0x10_0001, 0x10_0000_0009, 0x8005_0033, 0x0606_0606_0606_0606)
    anything = ((1 << width) - 1, 1 << chance.randrange(width), chance.getrandbits(width), chance.getrandbits(12))
    return chance.choice((*known, *anything)) & (1 << width) - 1


def _descriptor(chance: random.Random) -> int:
    """Of a segment that begins at 0, most often one that is present and the kernel's."""
    access = 0x90 | chance.getrandbits(4) if chance.random() < 0.8 else chance.getrandbits(8)
    return access << 40 | chance.getrandbits(4) << 52 | chance.choice((0, 0xF << 48)) | 0xFFFF
