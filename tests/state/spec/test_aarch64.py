"""The registers' table, against ids that KVM's own documents and tests spell out."""

import pytest

from snapkit.state.spec import aarch64
from snapkit.state.spec.aarch64 import REGISTERS

# id, name and width in bytes: arch/arm64/include/uapi/asm/kvm.h worked out by hand.
KNOWN = [
    (0x6030_0000_0010_0000, "X0", 8),
    (0x6030_0000_0010_003C, "X30", 8),
    (0x6030_0000_0010_003E, "SP_EL0", 8),
    (0x6030_0000_0010_0040, "PC", 8),
    (0x6030_0000_0010_0042, "PSTATE", 8),
    (0x6030_0000_0010_0044, "SP_EL1", 8),
    (0x6030_0000_0010_0046, "ELR_EL1", 8),
    (0x6030_0000_0010_0048, "SPSR_EL1", 8),
    (0x6030_0000_0010_0050, "SPSR_fiq", 8),
    (0x6040_0000_0010_0054, "V0", 16),
    (0x6040_0000_0010_00D0, "V31", 16),
    (0x6020_0000_0010_00D4, "FPSR", 4),
    (0x6020_0000_0010_00D5, "FPCR", 4),
    (0x6020_0000_0011_0001, "CCSIDR_EL1_1", 4),
    (0x6030_0000_0013_C000, "MIDR_EL1", 8),
    (0x6030_0000_0013_C005, "MPIDR_EL1", 8),
    (0x6030_0000_0013_C020, "ID_AA64PFR0_EL1", 8),
    (0x6030_0000_0013_C01B, "S3_0_C0_C3_3", 8),
    (0x6030_0000_0013_C080, "SCTLR_EL1", 8),
    (0x6030_0000_0013_C100, "TTBR0_EL1", 8),
    (0x6030_0000_0013_C510, "MAIR_EL1", 8),
    (0x6030_0000_0013_C600, "VBAR_EL1", 8),
    (0x6030_0000_0013_C684, "TPIDR_EL1", 8),
    (0x6030_0000_0013_D801, "CTR_EL0", 8),
    (0x6030_0000_0013_DE82, "TPIDR_EL0", 8),
    (0x6030_0000_0013_8012, "MDSCR_EL1", 8),
    (0x6030_0000_0013_807C, "DBGBVR15_EL1", 8),
    (0x6030_0000_0013_DF19, "KVM_REG_ARM_TIMER_CTL", 8),
    (0x6030_0000_0013_DF1A, "KVM_REG_ARM_TIMER_CNT", 8),
    (0x6030_0000_0013_DF02, "KVM_REG_ARM_TIMER_CVAL", 8),
    (0x6030_0000_0014_0000, "KVM_REG_ARM_PSCI_VERSION", 8),
    (0x6030_0000_0014_0003, "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3", 8),
    (0x6030_0000_0016_0002, "KVM_REG_ARM_VENDOR_HYP_BMAP", 8),
    (0x6080_0000_0015_03E0, "Z31", 256),
    (0x6050_0000_0015_05E0, "P15", 32),
    (0x6050_0000_0015_0600, "FFR", 32),
    (0x6060_0000_0015_FFFF, "KVM_REG_ARM64_SVE_VLS", 64),
]


@pytest.mark.parametrize(("reg_id", "name", "width"), KNOWN, ids=[name for _, name, _ in KNOWN])
def test_a_register_is_named_by_its_id_which_has_its_width(reg_id, name, width):
    assert REGISTERS[reg_id] == name
    assert aarch64.register_name(reg_id) == name
    assert aarch64.width_of(reg_id) == width
    assert aarch64.is_register(reg_id)


def test_no_two_registers_have_one_name():
    assert len(set(REGISTERS.values())) == len(REGISTERS) > 400


def test_every_listed_register_is_one_that_kvm_may_list():
    assert all(aarch64.is_register(reg_id) for reg_id in REGISTERS)
    assert not aarch64.is_register(0x2030_0000_0010_0000)
    assert not aarch64.is_register(0x6090_0000_0010_0000)


def test_a_register_of_an_unknown_class_has_only_its_number():
    assert 0x6030_0000_0017_0000 not in REGISTERS
    assert aarch64.register_name(0x6030_0000_0017_0000) == "0x6030000000170000"


@pytest.mark.parametrize("fields", [(2, 0, 0, 0, 4), (3, 0, 0, 0, 5), (3, 3, 14, 3, 1), (3, 7, 15, 15, 7)])
def test_the_encoding_of_a_system_register_can_be_taken_apart_again(fields):
    assert aarch64.fields_of(aarch64.sysreg(*fields)) == fields


def test_what_tells_what_a_cpu_is_stands_apart_from_what_a_guest_writes():
    names = {REGISTERS[reg_id] for reg_id in REGISTERS if aarch64.is_identity(reg_id)}
    assert names >= {"MIDR_EL1", "REVIDR_EL1", "AIDR_EL1", "CTR_EL0", "CLIDR_EL1", "MVFR1_EL1", "ID_ISAR6_EL1"}
    assert {name for name in REGISTERS.values() if name.startswith("ID_")} <= names
    assert not {"MPIDR_EL1", "SCTLR_EL1", "CSSELR_EL1", "TTBR0_EL1", "ESR_EL1", "FAR_EL1"} & names
    assert aarch64.is_identity(aarch64.sysreg(3, 0, 0, 3, 3))


def test_vector_registers_are_of_one_kind_or_the_other():
    assert {REGISTERS[reg_id] for reg_id in aarch64.VECTOR_REGISTERS} == {f"V{n}" for n in range(32)}
    sve = {REGISTERS[reg_id] for reg_id in aarch64.SVE_REGISTERS}
    assert sve == {*(f"Z{n}" for n in range(32)), *(f"P{n}" for n in range(16)), "FFR", "KVM_REG_ARM64_SVE_VLS"}
    assert all(aarch64.width_of(reg_id) > 8 for reg_id in aarch64.VECTOR_REGISTERS | aarch64.SVE_REGISTERS)


@pytest.mark.parametrize(
    ("vcpu", "mpidr", "affinity"),
    [
        (0, 0x8000_0000, 0),
        (7, 0x8000_0007, 7),
        (15, 0x8000_000F, 15),
        (16, 0x8000_0100, 0x100),
        (255, 0x8000_0F0F, 0xF0F),
    ],
)
def test_kvm_numbers_sixteen_cpus_a_cluster(vcpu, mpidr, affinity):
    assert aarch64.mpidr_of(vcpu) == mpidr
    assert aarch64.affinity_of(mpidr) == affinity


def test_affinity_level_3_is_the_byte_above_the_flags():
    assert aarch64.affinity_of(0x12_8003_0201) == 0x1203_0201


def test_the_state_of_linux_at_work_decodes_to_its_modes():
    assert {name for name, value in aarch64.Pstate.decode(0x6040_03C5) if value} == {"M", "DAIF", "PAN", "C", "Z"}
