"""CPUs and the GIC of an aarch64 machine as KVM saves them, made up: a Cortex-A72 under Linux, with LPIs at work."""

from snapkit.state.gicv3_cpu_interface import CpuInterfaceState
from snapkit.state.gicv3_distributor import DistributorState
from snapkit.state.gicv3_its import ItsState
from snapkit.state.gicv3_redistributor import RedistributorState
from snapkit.state.schema import SectionId, State
from snapkit.state.vcpu_aarch64 import Aarch64VcpuState, Reg, SErrorEvents, VectorReg

RAM = 0x8000_0000
REG64, REG32, REG128 = 0x6030_0000_0010_0000, 0x6020_0000_0010_0000, 0x6040_0000_0010_0000
SYSREG = 0x6030_0000_0013_0000
PC, PSTATE = REG64 | 64, REG64 | 66
MPIDR, PFR0, SCTLR = SYSREG | 0xC005, SYSREG | 0xC020, SYSREG | 0xC080
TIMER_CTL, TIMER_CNT, TIMER_CVAL = SYSREG | 0xDF19, SYSREG | 0xDF1A, SYSREG | 0xDF02
PTIMER_CNT = SYSREG | 0xDF01
PSCI_VERSION = 0x6030_0000_0014_0000
VLS = 0x6060_0000_0015_FFFF
PSCI_0_2, SVE, PTRAUTH = 1 << 2, 1 << 4, 3 << 5
KVM_IIDR = 0x4B00_043B
INNER_RAWB = 7 << 7 | 1 << 10  # cacheable, inner shareable

_SYSTEM = {
    SYSREG | 0xC000: 0x410F_D083,  # MIDR_EL1: Cortex-A72 r0p3
    PFR0: 0x1100_0000_2222,  # GICv3 by system registers; AArch32 at every level
    SYSREG | 0xC021: 0,
    SYSREG | 0xC038: 0x1124,  # ID_AA64MMFR0_EL1
    SCTLR: 0x30D0_198D,
    SYSREG | 0xC100: RAM + 0x10_0000,  # TTBR0_EL1
    SYSREG | 0xC600: RAM + 0x1_0000,  # VBAR_EL1
    SYSREG | 0xD801: 0x8444_C004,  # CTR_EL0
    PSCI_VERSION: 0x1_0001,
    TIMER_CTL: 1,
    TIMER_CVAL: 1 << 33,
}


def affinity(number: int) -> int:
    """Return levels 3 to 0 of CPU *number*: sixteen to a cluster."""
    return number // 16 << 8 | number % 16


def vcpu(number: int = 0) -> Aarch64VcpuState:
    """Return CPU *number*, at EL1 with interrupts on."""
    core = {REG64 | 2 * register: register for register in range(31)}
    core |= {REG64 | word: RAM for word in (62, 68, 70)} | {PC: RAM + 0x2000, PSTATE: 0x6000_0005}
    numbers = core | {REG32 | 0xD4: 0, REG32 | 0xD5: 0, MPIDR: 0x8000_0000 | affinity(number)} | _SYSTEM
    if not number:
        numbers[TIMER_CNT] = 1 << 32
    return Aarch64VcpuState(
        id=number,
        target=5,
        features=[PSCI_0_2, 0, 0, 0, 0, 0, 0],
        mp_state=0,
        counter_hz=62_500_000,
        regs=[Reg(id=reg_id, value=value) for reg_id, value in numbers.items()],
        vectors=[VectorReg(id=REG128 | 84 + 4 * register, value=bytes(16)) for register in range(32)],
        events=SErrorEvents(),
    )


def with_sve(state: Aarch64VcpuState, lengths: int = 0b11) -> Aarch64VcpuState:
    """Give a CPU SVE, with the vector *lengths* that there are: bit n is 16 * (n + 1) bytes."""
    state.features[0] |= SVE
    widths = {0x6080_0000_0015_0000 | 0x20 * register: 256 for register in range(32)}
    widths |= {0x6050_0000_0015_0400 | 0x20 * register: 32 for register in range(17)}
    state.vectors = [VectorReg(id=reg_id, value=bytes(width)) for reg_id, width in widths.items()]
    state.vectors.append(VectorReg(id=VLS, value=lengths.to_bytes(64, "little")))
    return state


def distributor() -> DistributorState:
    """Return a distributor of 96 shared interrupts, all in group 1 and for CPU 0."""
    return DistributorState(
        nr_irqs=128,
        iidr=KVM_IIDR | 2 << 12,
        ctlr=0x52,
        statusr=0,
        igroupr=[0xFFFF_FFFF] * 3,
        isenabler=[0x7, 0, 0],
        ispendr=[0] * 3,
        isactiver=[0] * 3,
        ipriorityr=[0xA0A0_A0A0] * 24,
        icfgr=[0] * 6,
        irouter=[0] * 96,
        line_level=[0] * 3,
    )


def redistributor(number: int, vcpus: int, *, its: bool) -> RedistributorState:
    """Return that of CPU *number* of *vcpus*; LPIs are enabled where there is an ITS."""
    return RedistributorState(
        typer=affinity(number) << 32 | number << 8 | (number == vcpus - 1) << 4 | its,
        iidr=KVM_IIDR,
        ctlr=int(its),
        statusr=0,
        waker=0,
        propbaser=RAM + 0x20_0000 | INNER_RAWB | 15 if its else 0,
        pendbaser=RAM + 0x21_0000 + 0x1_0000 * number | INNER_RAWB if its else 0,
        igroupr0=0xFFFF_FFFF,
        isenabler0=0x0800_FFFF,
        ispendr0=0,
        isactiver0=0,
        ipriorityr=[0xA0A0_A0A0] * 8,
        icfgr=[0xAAAA_AAAA, 0],
        line_level=0,
    )


def cpu_interface() -> CpuInterfaceState:
    """Return one with five bits of priority."""
    return CpuInterfaceState(
        icc_sre_el1=7,
        icc_ctlr_el1=0x400,
        icc_pmr_el1=0xF0,
        icc_bpr0_el1=2,
        icc_bpr1_el1=3,
        icc_igrpen0_el1=0,
        icc_igrpen1_el1=1,
        icc_ap0r_el1=[0],
        icc_ap1r_el1=[0],
    )


def its() -> ItsState:
    """Return an ITS at work, its command queue empty."""
    flags = 1 << 63 | 7 << 59 | 1 << 10
    return ItsState(
        iidr=KVM_IIDR,
        typer=0x1_EF71,
        ctlr=0x8000_0001,
        cbaser=RAM + 0x24_0000 | flags | 15,
        creadr=0x80,
        cwriter=0x80,
        baser=[
            RAM + 0x26_0000 | flags | 1 << 56 | 7 << 48 | 2 << 8,
            RAM + 0x28_0000 | flags | 4 << 56 | 7 << 48 | 2 << 8,
            *[0] * 6,
        ],
    )


def chips(vcpus: int = 1, *, messages: bool = False) -> dict[SectionId, State]:
    """Return the sections of everything that lives in KVM; with an ITS where there are *messages*."""
    made: dict[SectionId, State] = {SectionId("vcpu-aarch64", str(number)): vcpu(number) for number in range(vcpus)}
    made[SectionId("gicv3-distributor", "0")] = distributor()
    for number in range(vcpus):
        made[SectionId("gicv3-redistributor", str(number))] = redistributor(number, vcpus, its=messages)
        made[SectionId("gicv3-cpu-interface", str(number))] = cpu_interface()
    if messages:
        made[SectionId("gicv3-its", "0")] = its()
    return made
