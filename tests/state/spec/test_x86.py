"""The processor's tables, against values known from elsewhere."""

import pytest

from snapkit.state.spec import x86


def test_every_msr_name_is_unique_and_finds_its_index():
    assert len(x86.MSR_INDEX) == len(x86.MSRS)
    assert all(x86.MSRS[index] == name for name, index in x86.MSR_INDEX.items())


def test_the_constants_agree_with_the_table():
    constants = {name: value for name, value in vars(x86).items() if type(value) is int and name in x86.MSR_INDEX}
    assert len(constants) > 30
    assert constants == {name: x86.MSR_INDEX[name] for name in constants}


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0x10, "IA32_TIME_STAMP_COUNTER"),
        (0x20F, "IA32_MTRR_PHYSMASK7"),
        (0x26F, "IA32_MTRR_FIX4K_F8000"),
        (0x409, "IA32_MC2_STATUS"),
        (0x6E0, "IA32_TSC_DEADLINE"),
        (0xC0000102, "KERNEL_GS_BASE"),
        (0x4B564D01, "MSR_KVM_SYSTEM_TIME_NEW"),
        (0x400000B3, "HV_X64_MSR_STIMER1_COUNT"),
        (0x12345, "0x12345"),
    ],
)
def test_an_msr_is_named_by_its_index(index, name):
    assert x86.msr_name(index) == name


def test_control_registers_of_a_running_linux_decode_to_its_choices():
    # CR0 0x80050033, CR4 0x3506f0, EFER 0xd01: what Linux 6.1 prints in an oops.
    set_in = {
        register: {name for name, value in register.decode(number) if value}
        for register, number in ((x86.Cr0, 0x80050033), (x86.Cr4, 0x3506F0), (x86.Efer, 0xD01), (x86.Rflags, 0x246))
    }
    assert set_in[x86.Cr0] == {"PE", "MP", "ET", "NE", "WP", "AM", "PG"}
    assert set_in[x86.Cr4] >= {"PAE", "PGE", "OSFXSR", "FSGSBASE", "OSXSAVE", "SMEP", "SMAP"}
    assert set_in[x86.Efer] == {"SCE", "LME", "LMA", "NXE"}
    assert set_in[x86.Rflags] == {"ONE", "PF", "ZF", "IF"}
    assert dict(x86.ApicBase.decode(0xFEE00900)) == {"BSP": 1, "EXTD": 0, "EN": 1, "BASE": 0xFEE00}
