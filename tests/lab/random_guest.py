"""An aarch64 guest that does anything to its CPUs, its GIC and its ITS: random instructions on real KVM, and what they leave.

Runs inside of the aarch64 outer machine. Each run of a CPU is some steps in a row: registers of the CPU and of its GIC
interface, loads and stores in the frames of distributor, redistributor and ITS, commands of the ITS, calls of PSCI, returns
from exceptions that were none. A handler goes on behind an instruction that faults. It is over where the CPU stops
otherwise (a loop, a WFI, PSCI's SYSTEM_OFF), which is a state, too.

QEMU 7.2, the outer machine, does not survive all that a guest can do to the processor that it emulates: it loops over some
timers (`TIMER_VALUE`), and of some hundreds of seeds one ends it (``icv_gprio_mask: Assertion `bpr > 0' failed``).
"""

import random
import signal
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from snapkit.errors import HostError
from snapkit.state.spec import aarch64 as spec
from snapkit.state.spec import gicv3
from snapkit.state.spec.address_map import GICD_GPA, GICR_LEN, GITS_TRANSLATER, gicr_gpa, its_gpa
from snapkit.units import MIB, Gpa
from snapkit.vmm.kvm import abi
from tests.kvm.bounded import not_for_ever
from tests.lab.inside_arm_kvm import MAPD, QUEUE, VALID, VCPUS, Machine
from tests.state.its_writer import BASE, ITTS, LEVEL1, PENDING, PROPERTIES

KINDS = ("vcpu-aarch64", "gicv3-distributor", "gicv3-redistributor", "gicv3-cpu-interface", "gicv3-its")
"""What a guest changes."""

RUNS_MAX, STEPS_MAX = 5, 13
STUCK_S = 0.3
CODE_AT, VECTORS_AT, TABLES_AT = Gpa(BASE + 0x1000), Gpa(BASE + 0x2000), Gpa(BASE + 0x4000)
EXIT_AT = 0x0A00_0000
"""Nobody's address: a store there ends a run."""
EL1H_MASKED = 0x3C5
EXIT_REGISTER, HANDLER_REGISTER = 28, 27
STORE, LOAD = {1: 0x3900_0000, 4: 0xB900_0000, 8: 0xF900_0000}, {1: 0x3940_0000, 4: 0xB940_0000, 8: 0xF940_0000}
MSR, MRS, MOV, MOVZ, MOVK_16, ADD_4 = 0xD510_0000, 0xD530_0000, 0xAA00_03E0, 0xD280_0000, 0xF2A0_0000, 0x9100_1000
HVC, ERET, WFI, ISB, HERE = 0xD400_0002, 0xD69F_03E0, 0xD503_207F, 0xD503_3FDF, 0x1400_0000
MASKS = {"daifset": 0xD503_40DF, "daifclr": 0xD503_40FF, "spsel": 0xD500_40BF}

ELR_EL1, SPSR_EL1, VBAR_EL1 = spec.sysreg(3, 0, 4, 0, 1), spec.sysreg(3, 0, 4, 0, 0), spec.sysreg(3, 0, 12, 0, 0)
SCTLR_EL1, TTBR0_EL1, TCR_EL1 = spec.sysreg(3, 0, 1, 0, 0), spec.sysreg(3, 0, 2, 0, 0), spec.sysreg(3, 0, 2, 0, 2)
MAIR_EL1 = spec.sysreg(3, 0, 10, 2, 0)
ICC_PMR_EL1, ICC_IGRPEN1_EL1 = spec.sysreg(3, 0, 4, 6, 0), spec.sysreg(3, 0, 12, 12, 7)
INTERFACE = (
    ICC_PMR_EL1,
    *(spec.sysreg(3, 0, 12, crm, op2) for crm in (8, 9, 11, 12) for op2 in range(8)),
)
"""ICC_*_EL1, and numbers among them that are no register's."""
TIMERS = tuple(spec.sysreg(3, 3, 14, crm, op2) for crm in (2, 3) for op2 in (0, 1, 2))
CPU_ON = 0xC400_0003
PSCI = (CPU_ON, CPU_ON, 0x8400_0000, 0x8400_0002, 0xC400_0001, 0xC400_0004, 0x8400_000A, 0x8400_0008)
"""Also of what version it is, CPU_OFF, CPU_SUSPEND, AFFINITY_INFO, what features there are, SYSTEM_OFF."""
STATUSES = (0x3C5, 0x3C4, 0x3C0, 0, 0x10, 0x1D3, 0x3C9, 1 << 20 | 0x3C5, 1 << 21 | 0x3C5)
"""Of a return from an exception: to EL1 and EL0, to levels and widths that there are not, with IL and with SS."""
TIMER_VALUE = 0x7FFF_FFFF
"""What a timer's registers get at most: QEMU 7.2 loops for ever over one that is due after the counter's wrap, be it as a
compare value or by a negative TVAL (gt_recalc_timer of target/arm/helper.c: the sum with the offset overflows)."""
OF_CPUS = (0, GICR_LEN)
MOVI, INT, CLEAR, SYNC, MAPC, MAPTI, MAPI, INV, INVALL, MOVALL, DISCARD = 1, 3, 4, 5, *range(0x9, 0x10)
COMMANDS = (MOVI, INT, INT, CLEAR, SYNC, MAPD, MAPC, MAPTI, MAPTI, MAPI, INV, INVALL, MOVALL, DISCARD)
DEVICES = (0x8, 0x10, 0x18, 0x1_0000)
COMMAND_LEN, COMMANDS_FROM, COMMANDS_MAX = 32, 2, 24
WORDS = (0, 1, 3, 0xFF, 0xFFFF_FFFF, 0xA0A0_A0A0, 1 << 27, 0x2000, 0x2003)
GICR, GITS = gicr_gpa(VCPUS), its_gpa(VCPUS)
FRAMES: dict[str, tuple[int, Sequence[int]]] = {
    "gicd": (
        GICD_GPA,
        (0, 0, 0x10, 0x40, 0x48, *range(0x80, 0x420, 4), *range(0xC00, 0xC20, 4), *range(0x6100, 0x6200, 8)),
    ),
    "gicr": (GICR, (0, 0, 0, 0x10, 0x14, 0x40, 0x48, 0x70, 0x74, 0x78, 0x7C, 0xA0, 0xB0, 0xC0)),
    "sgis": (GICR + gicv3.SGI_BASE, (*range(0x80, 0x400, 0x80), *range(0x400, 0x420, 4), 0xC00, 0xC04)),
    "gits": (GITS, (0, 0, 0, 0x80, 0x88, 0x88, 0x90, 0x100, 0x104, 0x108, 0x10C, 0x110, GITS_TRANSLATER)),
}


class Step(NamedTuple):
    """What is done, with *values* in two registers: *code* gets their numbers."""

    what: str
    code: list[int]
    values: tuple[int, int] = (0, 0)

    def __str__(self) -> str:
        return f"{self.what} {' '.join(map(hex, self.values))}"


def live(target: Machine, seed: int) -> list[str]:
    """Have the CPUs of *target*, which has the tables of its ITS from the start, do what *seed* says; returns that."""
    chance = random.Random(seed)
    fds = [target.vcpus[section].state.fd for section in sorted(target.vcpus)]
    own = [register for register in fds[0].reg_list() if spec.fields_of(register) and not spec.is_identity(register)]
    _prepare(target, chance)
    for number, fd in enumerate(fds):
        fd.set_signal_mask(signal.SIGALRM)
        if not number or chance.random() < 0.7:
            fd.set_mp_state(0)
            fd.set_regs({VBAR_EL1: VECTORS_AT, spec.PSTATE: EL1H_MASKED})
    done: list[str] = []
    for _ in range(chance.randrange(1, RUNS_MAX)):
        number = chance.randrange(len(fds))
        begin = 2 * chance.randrange(3)
        steps = [_step(chance, own, at) for at in range(begin, 2 * STEPS_MAX, 2)][: chance.randrange(1, STEPS_MAX)]
        done += [f"{number}: {step}" for step in steps]
        if ended := _run(target, fds[number], steps, begin):
            done.append(f"{number}: {ended}")
    for fd in fds:
        _complete(fd)
    return done


def _prepare(target: Machine, chance: random.Random) -> None:
    """Put into memory what the guest may use: its handlers, tables of addresses that map all to itself, and commands."""
    handler = [_msr(MRS, ELR_EL1, HANDLER_REGISTER), ADD_4 | HANDLER_REGISTER << 5 | HANDLER_REGISTER]
    handler += [_msr(MSR, ELR_EL1, HANDLER_REGISTER), ERET]
    for vector in range(16):
        target.memory.write(Gpa(VECTORS_AT + 0x80 * vector), _packed(_leave() if vector % 4 else handler))
    device, ram = 0x60_0000_0000_0405, 0x701
    target.memory.write(TABLES_AT, struct.pack("<4Q", device, 1 << 30 | device, 2 << 30 | ram, 3 << 30 | ram))
    commands = b"".join(_command(chance) for _ in range(COMMANDS_MAX))
    target.memory.write(Gpa(QUEUE + COMMAND_LEN * COMMANDS_FROM), commands)
    for lpi in range(32):
        target.memory.write(Gpa(PROPERTIES + lpi), bytes([chance.choice((0xA0, 0xA1, 0, 1, 0xFF))]))


def _run(target: Machine, fd: Any, steps: list[Step], begin: int) -> str:
    """Run *steps*, their values from the register *begin* on; returns how the run ended, if not as it should."""
    target.memory.write(CODE_AT, _packed([word for step in steps for word in step.code] + _leave()))
    values = dict(enumerate((value for step in steps for value in step.values), begin))
    values[EXIT_REGISTER] = EXIT_AT
    _complete(fd)
    try:
        fd.set_regs({spec.PC: CODE_AT, **{_x(number): value for number, value in values.items()}})
        for _ in range(2 * STEPS_MAX):
            with not_for_ever(STUCK_S):
                fd.run()
            reason = abi.RUN_EXIT.unpack_from(fd.run_page, abi.RUN_EXIT_AT)[0]
            if reason != abi.KVM_EXIT_MMIO:
                return f"exit {reason}"
            if abi.RUN_MMIO.unpack_from(fd.run_page, abi.RUN_UNION_AT)[0] == EXIT_AT:
                return ""
    except InterruptedError:
        return "stuck"
    except HostError as error:
        return str(error)
    return "exits"


def _complete(fd: Any) -> None:
    """Have KVM finish the instruction that an exit was for."""
    fd.run_page[abi.RUN_IMMEDIATE_EXIT] = 1
    with suppress(InterruptedError, BlockingIOError, HostError):
        fd.run()
    fd.run_page[abi.RUN_IMMEDIATE_EXIT] = 0


def is_timers(register: int) -> bool:
    """Say whether *register* belongs to a timer."""
    fields = spec.fields_of(register)
    return fields is not None and (fields[1], fields[2]) == (3, 14)


def _step(chance: random.Random, own: Sequence[int], x: int) -> Step:
    """One step, whose values are in the registers *x* and the next."""
    (make,) = chance.choices([*_MAKERS], [*_MAKERS.values()])
    return make(chance, own, x)


def _access(chance: random.Random, _own: Sequence[int], x: int) -> Step:
    name = chance.choice([*FRAMES])
    base, offsets = FRAMES[name]
    at = base + chance.choice(offsets) + (chance.choice(OF_CPUS) if name in {"gicr", "sgis"} else 0)
    width, how = chance.choice((1, 4, 4, 4, 8, 8)), chance.choice(("store", "store", "store", "load"))
    code = (STORE if how == "store" else LOAD)[width] | (x + 1) << 5 | x
    return Step(f"{name} {how} {width}", [code], (_word(chance), at))


def _commands(chance: random.Random, _own: Sequence[int], x: int) -> Step:
    """Have the ITS execute the commands up to one of them."""
    there = chance.randrange(COMMANDS_FROM, COMMANDS_FROM + COMMANDS_MAX + 1)
    return Step("commands", [STORE[8] | (x + 1) << 5 | x], (COMMAND_LEN * there, GITS + gicv3.GITS_CWRITER))


def _register(chance: random.Random, own: Sequence[int], x: int) -> Step:
    register = chance.choice(chance.choice((own, INTERFACE, INTERFACE, TIMERS)))
    name, kind = chance.choice((("msr", MSR), ("msr", MSR), ("msr", MSR), ("mrs", MRS)))
    value = _word(chance) & (TIMER_VALUE if is_timers(register) else -1)
    return Step(f"{name} {spec.register_name(register)}", [_msr(kind, register, x)], (value, 0))


def _psci(chance: random.Random, _own: Sequence[int], x: int) -> Step:
    code = [_move(0, x), _move(1, x + 1), _move(2, x + 1), _move(3, x + 1), HVC]
    return Step("psci", code, (chance.choice(PSCI), chance.choice((0, 1, 2, CODE_AT, _word(chance)))))


def _mask(chance: random.Random, _own: Sequence[int], _x: int) -> Step:
    name = chance.choice([*MASKS])
    return Step(name, [MASKS[name] | chance.randrange(16) << 8])


def _return(chance: random.Random, _own: Sequence[int], x: int) -> Step:
    code = [_msr(MSR, SPSR_EL1, x), _msr(MSR, ELR_EL1, x + 1), ERET]
    return Step(
        "eret", code, (chance.choice((*STATUSES, _word(chance))), CODE_AT + 4 * chance.randrange(3 * STEPS_MAX))
    )


def _wait(_chance: random.Random, _own: Sequence[int], _x: int) -> Step:
    return Step("wfi", [WFI])


def _take(chance: random.Random, _own: Sequence[int], x: int) -> Step:
    """Let interrupts through."""
    code = [_msr(MSR, ICC_PMR_EL1, x), _msr(MSR, ICC_IGRPEN1_EL1, x + 1), MASKS["daifclr"] | 0xF00]
    return Step("take", code, (chance.choice((0xFF, 0xF0, 0x80)), 1))


def _lpis(chance: random.Random, _own: Sequence[int], x: int) -> Step:
    """Move a CPU's tables of LPIs, or enable or disable them."""
    places = ((gicv3.GICR_PROPBASER, PROPERTIES | 0xF), (gicv3.GICR_PENDBASER, PENDING + chance.choice((0, 0x1_0000))))
    register, value = chance.choice((*places, (gicv3.GICR_CTLR, 0), (gicv3.GICR_CTLR, 1)))
    code = STORE[4 if register == gicv3.GICR_CTLR else 8] | (x + 1) << 5 | x
    return Step("lpis", [code], (value, GICR + chance.choice(OF_CPUS) + register))


def _mmu(chance: random.Random, _own: Sequence[int], x: int) -> Step:
    """Switch it on, or with a bit that is another: 4 KiB pages, T0SZ 32, walks in caches; caches on."""
    code = [_msr(MSR, MAIR_EL1, x), _msr(MSR, TTBR0_EL1, x + 1)]
    for register, value in ((TCR_EL1, 0x80_3520), (SCTLR_EL1, 0x30D0_1985)):
        value ^= 1 << chance.randrange(20) if chance.random() < 0.2 else 0
        code += [MOVZ | (value & 0xFFFF) << 5 | x, MOVK_16 | (value >> 16) << 5 | x, _msr(MSR, register, x)]
    return Step("mmu", [*code, ISB], (0xFF, chance.choice((TABLES_AT, TABLES_AT, _word(chance)))))


_MAKERS: Mapping[Callable[[random.Random, Sequence[int], int], Step], int] = {
    _access: 25,
    _commands: 13,
    _register: 20,
    _psci: 3,
    _mask: 3,
    _return: 3,
    _take: 4,
    _lpis: 4,
    _mmu: 3,
    _wait: 1,
}
"""How often each is done, of all together."""


def _word(chance: random.Random) -> int:
    """One that means something here or there, or any."""
    tables = (
        PROPERTIES | 0xF,
        PENDING,
        VALID | QUEUE,
        VALID | 0x107 << 48 | LEVEL1 | 0x200,
        VALID | 1 << 62 | LEVEL1 | 0x200,
    )
    anything = (
        chance.getrandbits(64),
        chance.getrandbits(32),
        1 << chance.randrange(64),
        (1 << chance.randrange(64)) - 1,
    )
    return chance.choice((*WORDS, *WORDS, *tables, *anything, chance.randrange(0x2010), chance.randrange(32)))


def _command(chance: random.Random) -> bytes:
    """One for the ITS: mostly of devices, events, LPIs and collections that there are, or nearly."""
    number, device, event = (
        chance.choice(COMMANDS),
        chance.choice((8, *DEVICES)),
        chance.choice((0, 1, 2, 3, 40)),
    )
    lpi, collection, cpu = (
        chance.choice((8192, 8193, 8194, 8196, 8200, 9000, 5, 70_000)),
        chance.choice((0, 1, 2, 70_000)),
        chance.choice((0, 1, 2)),
    )
    valid = VALID if chance.random() < 0.8 else 0
    first, second, third, fourth = number | device << 32, event, collection, 0
    if number == MAPD:
        itt = 0x100 if chance.random() < 0.05 else ITTS + MIB * (1 + DEVICES.index(device))
        second, third = chance.choice((0, 1, 3, 15, 31)), valid | itt
    elif number == MAPC:
        third = valid | cpu << 16 | collection & 0xFFFF
    elif number == MAPTI:
        second |= lpi << 32
    elif number == MOVALL:
        third, fourth = cpu << 16, chance.choice((0, 1)) << 16
    return struct.pack("<4Q", first, second, third, fourth)


def _leave() -> list[int]:
    """End the run, and stay if that is not to be."""
    return [STORE[4] | EXIT_REGISTER << 5 | 31, HERE]


def _msr(kind: int, register: int, x: int) -> int:
    op0, op1, crn, crm, op2 = spec.fields_of(register) or (0, 0, 0, 0, 0)
    return kind | (op0 - 2) << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | x


def _move(to: int, x: int) -> int:
    return MOV | x << 16 | to


def _x(number: int) -> int:
    return sorted(spec.GENERAL_REGISTERS)[number]


def _packed(code: list[int]) -> bytes:
    return struct.pack(f"<{len(code)}I", *code)
