"""KVM's numbering of AArch64 registers, and their names.

Ids are those of KVM_GET_ONE_REG on arm64 (arch/arm64/include/uapi/asm/kvm.h, include/uapi/linux/kvm.h); encodings and
names of system registers those of Arm DDI 0487, D22, core registers by what a processor calls them.

An id is, from the top: the architecture, log2 of the width in bytes, a class, and the register in it. A system register
is op0, op1, CRn, CRm and op2; one that has no name here is called by them, ``S3_0_C0_C3_3``, as assemblers do. KVM lists
some that way by design: identification registers that are not allocated yet, which read zero.

Surprises: the ids of KVM_REG_ARM_TIMER_CNT and KVM_REG_ARM_TIMER_CVAL are each other's encoding, a slip that became
UAPI. Timers have their UAPI names here, so that nobody decodes them. The widths of FPSR and FPCR are 32 bits.
"""

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final

from snapkit.bits import Register, bit, bits

ARM64: Final = 0x6000_0000_0000_0000
_CLASS: Final = 0x0FFF_0000
_CORE, _DEMUX, _SYSREG, _FIRMWARE, _SVE, _FEATURES = (
    0x10 << 16,
    0x11 << 16,
    0x13 << 16,
    0x14 << 16,
    0x15 << 16,
    0x16 << 16,
)
WIDTH_SHIFT: Final = 52
_U32, _U64, _U128, _U256, _U512, _U2048 = 2, 3, 4, 5, 6, 8
"""Log2 of widths in bytes."""
LONG: Final = ARM64 >> WIDTH_SHIFT | _U64
"""What the id of a 64-bit register is, shifted by WIDTH_SHIFT."""


def width_of(reg_id: int) -> int:
    """Return how many bytes the register *reg_id* has."""
    return 1 << (reg_id >> WIDTH_SHIFT & 0xF)


def is_register(reg_id: int) -> bool:
    """Whether *reg_id* is one of arm64 that is at most 256 bytes wide: what KVM may list."""
    return reg_id & 0xFF << 56 == ARM64 and _U32 <= reg_id >> WIDTH_SHIFT & 0xF <= _U2048


def sysreg(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """Return KVM's id of a system register (ARM64_SYS_REG)."""
    return _id(_SYSREG, _U64, op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2)


def fields_of(reg_id: int) -> tuple[int, int, int, int, int] | None:
    """Return op0, op1, CRn, CRm and op2 of a system register's *reg_id*; None for another's."""
    if reg_id & ~0xFFFF != _id(_SYSREG, _U64, 0):
        return None
    return reg_id >> 14 & 3, reg_id >> 11 & 7, reg_id >> 7 & 0xF, reg_id >> 3 & 0xF, reg_id & 7


def is_identity(reg_id: int) -> bool:
    """Whether *reg_id* tells what a CPU is: MIDR_EL1, REVIDR_EL1, AIDR_EL1, CTR_EL0, CLIDR_EL1, and ID_* with their gaps."""
    return reg_id in _IDENTITY or (reg_id & ~0x7F == _ID_SPACE and 0x08 <= reg_id & 0x7F < 0x40)


def is_shared(reg_id: int) -> bool:
    """Whether *reg_id* is of firmware, which is one for all CPUs: PSCI's version, mitigations, which services there are."""
    return reg_id & ~0xFFFF in (_id(_FIRMWARE, _U64, 0), _id(_FEATURES, _U64, 0))


def is_cache_size(reg_id: int) -> bool:
    """Whether *reg_id* is a CCSIDR_EL1, one of each cache (KVM_REG_ARM_DEMUX_ID_CCSIDR)."""
    return reg_id & ~0xFF == _id(_DEMUX, _U32, 0)


def _id(kind: int, width: int, register: int) -> int:
    return ARM64 | width << WIDTH_SHIFT | kind | register


def _core(word: int, width: int = _U64) -> int:
    """Return the id of what is *word* 32-bit words into struct kvm_regs."""
    return _id(_CORE, width, word)


def _row(letter: str, count: int, kind: int, start: int, step: int) -> dict[int, str]:
    """Name *count* registers of one *kind* and width."""
    return {ARM64 | kind | start + step * n: f"{letter}{n}" for n in range(count)}


_X = _row("X", 31, _CORE | _U64 << WIDTH_SHIFT, 0, 2)
GENERAL_REGISTERS: Final = frozenset(_X)
X0: Final = _core(0)
X1: Final = _core(2)
SP_EL0: Final = _core(62)
PC: Final = _core(64)
PSTATE: Final = _core(66)
SP_EL1: Final = _core(68)
ELR_EL1: Final = _core(70)
SCTLR_EL1: Final = sysreg(3, 0, 1, 0, 0)
MPIDR_EL1: Final = sysreg(3, 0, 0, 0, 5)
MIDR_EL1: Final = sysreg(3, 0, 0, 0, 0)
ID_AA64PFR0_EL1: Final = sysreg(3, 0, 0, 4, 0)
TIMER_CTL: Final = sysreg(3, 3, 14, 3, 1)
TIMER_CVAL: Final = sysreg(3, 3, 14, 0, 2)
TIMER_CNT: Final = sysreg(3, 3, 14, 3, 2)
PTIMER_CNT: Final = sysreg(3, 3, 14, 0, 1)
COUNTERS: Final = (TIMER_CNT, PTIMER_CNT)
"""The virtual counter and, since Linux 6.4, the physical one: one of each for all vCPUs of a machine."""
PSCI_VERSION: Final = _id(_FIRMWARE, _U64, 0)
SVE_VLS: Final = _id(_SVE, _U512, 0xFFFF)
"""KVM_REG_ARM64_SVE_VLS: bit n is set where vectors of 16 * (n + 1) bytes can be chosen."""
_V = _row("V", 32, _CORE | _U128 << WIDTH_SHIFT, 84, 4)
_Z = _row("Z", 32, _SVE | _U2048 << WIDTH_SHIFT, 0, 0x20)
_P = _row("P", 16, _SVE | _U256 << WIDTH_SHIFT, 0x400, 0x20)
_FFR = _id(_SVE, _U256, 0x600)
VECTOR_REGISTERS: Final = frozenset(_V)
"""What KVM lists of more than 64 bits for a CPU without SVE."""
SVE_REGISTERS: Final = frozenset((*_Z, *_P, _FFR, SVE_VLS))
"""And for one with it. KVM has one slice of 2048 bits of a vector, whatever its length."""

FEATURES: Final = {
    0: "POWER_OFF",
    1: "EL1_32BIT",
    2: "PSCI_0_2",
    3: "PMU_V3",
    4: "SVE",
    5: "PTRAUTH_ADDRESS",
    6: "PTRAUTH_GENERIC",
    7: "HAS_EL2",
    8: "HAS_EL2_E2H0",
}
"""KVM_ARM_VCPU_*, by bit."""
POWER_OFF, EL1_32BIT, PSCI_0_2, PMU_V3, SVE, PTRAUTH_ADDRESS, PTRAUTH_GENERIC = (1 << number for number in range(7))

OFFERED: Final = PSCI_0_2 | SVE | PTRAUTH_ADDRESS | PTRAUTH_GENERIC
"""What a vCPU may be made with here: no 32-bit kernels, no PMU, no nested virtualisation."""

MODE_EL0T, MODE_EL1T, MODE_EL1H, MODE_USR = 0, 4, 5, 0x10
"""PSTATE.M: the last is AArch32's user mode, at EL0 under an AArch64 kernel."""


class Pstate(Register, width=64, ref="Arm DDI 0487, C5.2.19, SPSR_EL1, whose layout KVM's PSTATE has"):
    M = bits(4, 0, "0 EL0, 4 EL1 on SP_EL0, 5 EL1 on SP_EL1, 16 EL0 in AArch32")
    T = bit(5, "T32 instructions (AArch32)")
    DAIF = bits(9, 6, "masked: debug exceptions, SErrors, IRQs, FIQs, highest first")
    BTYPE = bits(11, 10, "kind of the last indirect branch")
    SSBS = bit(12, "speculative store bypass is safe")
    ALLINT = bit(13, "all interrupts masked, superpriority included")
    IL = bit(20, "illegal execution state")
    SS = bit(21, "software step")
    PAN = bit(22, "privileged access never")
    UAO = bit(23, "user access override")
    DIT = bit(24, "data-independent timing")
    TCO = bit(25, "tag checks overridden")
    V = bit(28, "overflow")
    C = bit(29, "carry")
    Z = bit(30, "zero")
    N = bit(31, "negative")


class Mpidr(Register, width=64, reset=0x8000_0000, ref="Arm DDI 0487, D22.2, MPIDR_EL1"):
    AFF0 = bits(7, 0, "affinity level 0", "ro")
    AFF1 = bits(15, 8, "affinity level 1", "ro")
    AFF2 = bits(23, 16, "affinity level 2", "ro")
    MT = bit(24, "level 0 are threads of one core", "ro")
    U = bit(30, "the only processor", "ro")
    ONE = bit(31, "always set", "ro")
    AFF3 = bits(39, 32, "affinity level 3", "ro")


def mpidr_of(vcpu: int) -> int:
    """Return what KVM gives the CPU with the id *vcpu* as its MPIDR_EL1 (reset_mpidr): sixteen to a cluster."""
    return Mpidr.ONE | vcpu & 0xF | (vcpu >> 4 & 0xFF) << 8 | (vcpu >> 12 & 0xFF) << 16


def affinity_of(mpidr: int) -> int:
    """Return affinity levels 3 to 0 of *mpidr*, a byte each: how a GIC names a CPU."""
    return Mpidr.AFF3.get(mpidr) << 24 | mpidr & 0xFF_FFFF


# System registers as op0, op1, CRn: by CRm and the first op2, one name for each op2 from there. "-" is none.
_SYSTEM: Mapping[tuple[int, int, int], tuple[tuple[int, int, str], ...]] = {
    (2, 0, 0): (
        (0, 2, "OSDTRRX_EL1"),
        (2, 0, "MDCCINT_EL1 - MDSCR_EL1"),
        (3, 2, "OSDTRTX_EL1"),
        (4, 2, "MDSELR_EL1"),
        (6, 2, "OSECCR_EL1"),
    ),
    (2, 0, 1): ((0, 0, "MDRAR_EL1 - - - OSLAR_EL1"), (1, 4, "OSLSR_EL1"), (3, 4, "OSDLR_EL1"), (4, 4, "DBGPRCR_EL1")),
    (2, 0, 7): ((8, 6, "DBGCLAIMSET_EL1"), (9, 6, "DBGCLAIMCLR_EL1"), (14, 6, "DBGAUTHSTATUS_EL1")),
    (2, 3, 0): ((1, 0, "MDCCSR_EL0"), (4, 0, "DBGDTR_EL0"), (5, 0, "DBGDTRRX_EL0")),
    (2, 4, 0): ((7, 0, "DBGVCR32_EL2"),),
    (3, 0, 0): (
        (0, 0, "MIDR_EL1 - - - - MPIDR_EL1 REVIDR_EL1"),
        (1, 0, "ID_PFR0_EL1 ID_PFR1_EL1 ID_DFR0_EL1 ID_AFR0_EL1 ID_MMFR0_EL1 ID_MMFR1_EL1 ID_MMFR2_EL1 ID_MMFR3_EL1"),
        (
            2,
            0,
            "ID_ISAR0_EL1 ID_ISAR1_EL1 ID_ISAR2_EL1 ID_ISAR3_EL1 ID_ISAR4_EL1 ID_ISAR5_EL1 ID_MMFR4_EL1 ID_ISAR6_EL1",
        ),
        (3, 0, "MVFR0_EL1 MVFR1_EL1 MVFR2_EL1 - ID_PFR2_EL1 ID_DFR1_EL1 ID_MMFR5_EL1"),
        (4, 0, "ID_AA64PFR0_EL1 ID_AA64PFR1_EL1 ID_AA64PFR2_EL1 - ID_AA64ZFR0_EL1 ID_AA64SMFR0_EL1 - ID_AA64FPFR0_EL1"),
        (5, 0, "ID_AA64DFR0_EL1 ID_AA64DFR1_EL1 ID_AA64DFR2_EL1 - ID_AA64AFR0_EL1 ID_AA64AFR1_EL1"),
        (6, 0, "ID_AA64ISAR0_EL1 ID_AA64ISAR1_EL1 ID_AA64ISAR2_EL1 ID_AA64ISAR3_EL1"),
        (7, 0, "ID_AA64MMFR0_EL1 ID_AA64MMFR1_EL1 ID_AA64MMFR2_EL1 ID_AA64MMFR3_EL1 ID_AA64MMFR4_EL1"),
    ),
    (3, 0, 1): (
        (0, 0, "SCTLR_EL1 ACTLR_EL1 CPACR_EL1 SCTLR2_EL1 - RGSR_EL1 GCR_EL1"),
        (2, 0, "ZCR_EL1 TRFCR_EL1 - TRCITECR_EL1 SMPRI_EL1 - SMCR_EL1"),
    ),
    (3, 0, 2): (
        (0, 0, "TTBR0_EL1 TTBR1_EL1 TCR_EL1 TCR2_EL1"),
        (1, 0, "APIAKeyLo_EL1 APIAKeyHi_EL1 APIBKeyLo_EL1 APIBKeyHi_EL1"),
        (2, 0, "APDAKeyLo_EL1 APDAKeyHi_EL1 APDBKeyLo_EL1 APDBKeyHi_EL1"),
        (3, 0, "APGAKeyLo_EL1 APGAKeyHi_EL1"),
        (5, 0, "GCSCR_EL1 GCSPR_EL1 GCSCRE0_EL1"),
    ),
    (3, 0, 5): (
        (1, 0, "AFSR0_EL1 AFSR1_EL1"),
        (2, 0, "ESR_EL1"),
        (3, 0, "ERRIDR_EL1 ERRSELR_EL1"),
        (4, 0, "ERXFR_EL1 ERXCTLR_EL1 ERXSTATUS_EL1 ERXADDR_EL1"),
        (5, 0, "ERXMISC0_EL1 ERXMISC1_EL1"),
        (6, 0, "TFSR_EL1 TFSRE0_EL1"),
    ),
    (3, 0, 6): ((0, 0, "FAR_EL1 - - - - PFAR_EL1"),),
    (3, 0, 7): ((4, 0, "PAR_EL1"),),
    (3, 0, 9): ((14, 1, "PMINTENSET_EL1 PMINTENCLR_EL1"), (14, 6, "PMMIR_EL1")),
    (3, 0, 10): (
        (2, 0, "MAIR_EL1 MAIR2_EL1 PIRE0_EL1 PIR_EL1 POR_EL1 S2POR_EL1"),
        (3, 0, "AMAIR_EL1 AMAIR2_EL1"),
        (4, 0, "LORSA_EL1 LOREA_EL1 LORN_EL1 LORC_EL1 - - - LORID_EL1"),
    ),
    (3, 0, 12): ((0, 0, "VBAR_EL1"), (1, 0, "ISR_EL1 DISR_EL1")),
    (3, 0, 13): ((0, 1, "CONTEXTIDR_EL1 - - TPIDR_EL1 - - SCXTNUM_EL1"),),
    (3, 0, 14): ((1, 0, "CNTKCTL_EL1"),),
    (3, 1, 0): ((0, 0, "CCSIDR_EL1 CLIDR_EL1 CCSIDR2_EL1 - GMID_EL1 - SMIDR_EL1 AIDR_EL1"),),
    (3, 2, 0): ((0, 0, "CSSELR_EL1"),),
    (3, 3, 0): ((0, 1, "CTR_EL0 - - - - - DCZID_EL0"),),
    (3, 3, 2): ((5, 1, "GCSPR_EL0"),),
    (3, 3, 4): ((2, 2, "SVCR"), (4, 2, "FPMR")),
    (3, 3, 9): (
        (12, 0, "PMCR_EL0 PMCNTENSET_EL0 PMCNTENCLR_EL0 PMOVSCLR_EL0 PMSWINC_EL0 PMSELR_EL0 PMCEID0_EL0 PMCEID1_EL0"),
        (13, 0, "PMCCNTR_EL0 PMXEVTYPER_EL0 PMXEVCNTR_EL0"),
        (14, 0, "PMUSERENR_EL0 - - PMOVSSET_EL0"),
    ),
    (3, 3, 10): ((2, 4, "POR_EL0"),),
    (3, 3, 13): ((0, 2, "TPIDR_EL0 TPIDRRO_EL0 - TPIDR2_EL0 - SCXTNUM_EL0"),),
    (3, 3, 14): ((0, 0, "CNTFRQ_EL0"), (2, 0, "CNTP_TVAL_EL0"), (15, 7, "PMCCFILTR_EL0")),
    (3, 4, 3): ((0, 0, "DACR32_EL2"),),
    (3, 4, 5): ((0, 1, "IFSR32_EL2"), (3, 0, "FPEXC32_EL2")),
}
_BREAKPOINTS, _COUNTERS = 16, 31

_NAMED: dict[int, str] = {
    SP_EL0: "SP_EL0",
    PC: "PC",
    PSTATE: "PSTATE",
    SP_EL1: "SP_EL1",
    ELR_EL1: "ELR_EL1",
    **{_core(72 + 2 * n): name for n, name in enumerate(("SPSR_EL1", "SPSR_abt", "SPSR_und", "SPSR_irq", "SPSR_fiq"))},
    _core(212, _U32): "FPSR",
    _core(213, _U32): "FPCR",
    TIMER_CTL: "KVM_REG_ARM_TIMER_CTL",
    TIMER_CVAL: "KVM_REG_ARM_TIMER_CVAL",
    TIMER_CNT: "KVM_REG_ARM_TIMER_CNT",
    sysreg(3, 3, 14, 2, 1): "KVM_REG_ARM_PTIMER_CTL",
    sysreg(3, 3, 14, 2, 2): "KVM_REG_ARM_PTIMER_CVAL",
    PTIMER_CNT: "KVM_REG_ARM_PTIMER_CNT",
    PSCI_VERSION: "KVM_REG_ARM_PSCI_VERSION",
    **{_id(_FIRMWARE, _U64, n): f"KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_{n}" for n in (1, 2, 3)},
    _id(_FEATURES, _U64, 0): "KVM_REG_ARM_STD_BMAP",
    _id(_FEATURES, _U64, 1): "KVM_REG_ARM_STD_HYP_BMAP",
    _id(_FEATURES, _U64, 2): "KVM_REG_ARM_VENDOR_HYP_BMAP",
    _id(_FEATURES, _U64, 3): "KVM_REG_ARM_VENDOR_HYP_BMAP_2",
    SVE_VLS: "KVM_REG_ARM64_SVE_VLS",
    _FFR: "FFR",
}
_ID_SPACE = sysreg(3, 0, 0, 0, 0)
_IDENTITY = frozenset(
    (MIDR_EL1, *(sysreg(3, *rest) for rest in ((0, 0, 0, 6), (1, 0, 0, 1), (1, 0, 0, 7), (3, 0, 0, 1))))
)


@cache
def _names() -> Mapping[int, str]:
    """Return every register with a name of its own, made when the first name is asked for."""
    names = _X | _V | _Z | _P
    names |= {_id(_DEMUX, _U32, n): f"CCSIDR_EL1_{n}" for n in range(14)}
    for (op0, op1, crn), rows in _SYSTEM.items():
        for crm, op2, words in rows:
            names |= {sysreg(op0, op1, crn, crm, op2 + n): w for n, w in enumerate(words.split()) if w != "-"}
    for op2, prefix in enumerate(("DBGBVR", "DBGBCR", "DBGWVR", "DBGWCR"), 4):
        names |= {sysreg(2, 0, 0, n, op2): f"{prefix}{n}_EL1" for n in range(_BREAKPOINTS)}
    for crm, prefix in ((8, "PMEVCNTR"), (12, "PMEVTYPER")):
        names |= {sysreg(3, 3, 14, crm + (n >> 3), n & 7): f"{prefix}{n}_EL0" for n in range(_COUNTERS)}
    return names | _NAMED


class _Registers(Mapping[int, str]):
    """The name of any register that KVM may list; goes through those only that have a name of their own."""

    def __getitem__(self, reg_id: int) -> str:
        name = _names().get(reg_id)
        if name is None and (encoding := fields_of(reg_id)) is not None:
            op0, op1, crn, crm, op2 = encoding
            name = f"S{op0}_{op1}_C{crn}_C{crm}_{op2}"
        if name is None:
            raise KeyError(reg_id)
        return name

    def __iter__(self) -> Iterator[int]:
        return iter(_names())

    def __len__(self) -> int:
        return len(_names())


REGISTERS: Final[Mapping[int, str]] = _Registers()


def register_name(reg_id: int) -> str:
    """Name the register *reg_id* for people; one that has no name by its number."""
    return REGISTERS.get(reg_id, f"{reg_id:#x}")
