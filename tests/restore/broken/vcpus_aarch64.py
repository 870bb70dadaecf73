"""CPUs of aarch64 machines that are not one machine's, and registers that KVM neither gives nor takes."""

import copy
from typing import Any

from snapkit.state.schema import SectionId
from snapkit.state.vcpu_aarch64 import Reg
from tests.restore import arm_chips
from tests.restore.broken import ARM0, ARM1, MACHINE, broken
from tests.restore.device_machine import States


def reg(states: States, section: SectionId, reg_id: int) -> Any:
    return next(one for one in states[section].regs if one.id == reg_id)


def without(states: States, section: SectionId, reg_id: int) -> None:
    states[section].regs.remove(reg(states, section, reg_id))


@broken(
    "arm-none",
    "gic.redistributors: gicv3-redistributor/1.typer",
    "vcpus.dense: gicv3-cpu-interface",
    "vcpus.dense: gicv3-redistributor",
    "vcpus.dense: machine/0.vcpu_count",
    "vcpus.dense: vcpu-aarch64",
)
def no_vcpus(states: States) -> None:
    states[MACHINE].vcpu_count = 0


@broken(
    "arm-none",
    "vcpus.counter: vcpu-aarch64/1.regs",
    "vcpus.dense: vcpu-aarch64/1.id",
    "vcpus.mpidr: vcpu-aarch64/1.regs[38].value",
)
def vcpus_twice(states: States) -> None:
    states[ARM1].id = 0


@broken("arm-none", "vcpus.mpidr: vcpu-aarch64/0.regs[38].value")
def a_cpu_of_another_cluster(states: States) -> None:
    reg(states, ARM0, arm_chips.MPIDR).value |= 0x100


@broken("arm-none", "vcpus.alike: vcpu-aarch64/1.target")
def cpus_of_two_targets(states: States) -> None:
    states[ARM1].target = 3


@broken("arm-none", "vcpus.alike: vcpu-aarch64/1.features")
def cpus_of_two_features(states: States) -> None:
    states[ARM1].features[0] |= arm_chips.PTRAUTH


@broken("arm-none", "vcpus.alike: vcpu-aarch64/1.counter_hz")
def cpus_of_two_rates(states: States) -> None:
    states[ARM1].counter_hz = 1


@broken("arm-none", "vcpus.alike: vcpu-aarch64/1.regs")
def a_cpu_without_a_register(states: States) -> None:
    without(states, ARM1, arm_chips.SCTLR)


@broken("arm-none", "vcpus.alike: vcpu-aarch64/1.regs[40].value")
def cpus_of_two_models(states: States) -> None:
    reg(states, ARM1, arm_chips.PFR0).value ^= 1 << 20


@broken("arm-none", "vcpus.alike: vcpu-aarch64/1.regs[47].value")
def cpus_of_two_firmwares(states: States) -> None:
    reg(states, ARM1, arm_chips.PSCI_VERSION).value = 2


@broken("arm-none", "vcpus.alike: vcpu-aarch64/1.vectors[49].value")
def cpus_of_two_vector_lengths(states: States) -> None:
    arm_chips.with_sve(states[ARM0])
    arm_chips.with_sve(states[ARM1], 0b1)


@broken("arm-none", "vcpus.counter: vcpu-aarch64/0.regs")
def no_counter(states: States) -> None:
    without(states, ARM0, arm_chips.TIMER_CNT)


@broken("arm-none", "vcpus.counter: vcpu-aarch64/1.regs[50]")
def two_counters(states: States) -> None:
    states[ARM1].regs.append(Reg(id=arm_chips.TIMER_CNT, value=5))


@broken("arm-none", "vcpus.counter: vcpu-aarch64/1.realtime_ns")
def two_times_of_the_counter(states: States) -> None:
    states[ARM1].realtime_ns = 1


@broken("arm-none", "registers.once: vcpu-aarch64/0.regs")
def a_register_twice(states: States) -> None:
    states[ARM0].regs.append(copy.copy(states[ARM0].regs[-1]))


@broken("arm-none", "registers.once: vcpu-aarch64/0.vectors")
def a_vector_twice(states: States) -> None:
    states[ARM0].vectors.append(copy.copy(states[ARM0].vectors[0]))


@broken("arm-none", "registers.width: vcpu-aarch64/0.regs[37].value")
def a_control_register_of_33_bits(states: States) -> None:
    reg(states, ARM0, arm_chips.REG32 | 0xD5).value = 1 << 32


@broken("arm-none", "registers.width: vcpu-aarch64/0.vectors[3].value")
def a_vector_of_32_bytes(states: States) -> None:
    states[ARM0].vectors[3].value = bytes(32)


@broken("arm-none", "registers.width: vcpu-aarch64/0.regs[46].id", "vcpus.alike: vcpu-aarch64/1.regs")
def a_vector_among_numbers(states: States) -> None:
    states[ARM0].regs[46].id = arm_chips.REG128 | 84


@broken("arm-none", "registers.width: vcpu-aarch64/0.vectors[0].id", "vcpus.sve: vcpu-aarch64/0.vectors")
def a_number_among_vectors(states: States) -> None:
    states[ARM0].vectors[0].id = arm_chips.PFR0


@broken("arm-none", "registers.core: vcpu-aarch64/0.regs", "vcpus.alike: vcpu-aarch64/1.regs")
def no_program_counter(states: States) -> None:
    without(states, ARM0, arm_chips.PC)


@broken("arm-none", "vcpus.alike: vcpu-aarch64/1.features", "vcpus.features: vcpu-aarch64/1.features[0]")
def a_cpu_of_32_bits(states: States) -> None:
    states[ARM1].features[0] |= 2


@broken("arm-none", "vcpus.alike: vcpu-aarch64/1.features", "vcpus.features: vcpu-aarch64/1.features[0]")
def a_cpu_without_psci(states: States) -> None:
    states[ARM1].features[0] = 0


@broken("arm-none", "vcpus.alike: vcpu-aarch64/1.features", "vcpus.features: vcpu-aarch64/1.features[3]")
def a_feature_of_the_future(states: States) -> None:
    states[ARM1].features[3] = 1


@broken("arm-none", "vcpus.alike: vcpu-aarch64/1.features", "vcpus.pointer-auth: vcpu-aarch64/1.features[0]")
def half_of_pointer_authentication(states: States) -> None:
    states[ARM1].features[0] |= 1 << 5


@broken("arm-none", "vcpus.alike: vcpu-aarch64/1.features", "vcpus.sve: vcpu-aarch64/1.vectors")
def sve_without_its_registers(states: States) -> None:
    states[ARM1].features[0] |= arm_chips.SVE


@broken("arm-none", "vcpus.sve: vcpu-aarch64/0.vectors[49].value", "vcpus.sve: vcpu-aarch64/1.vectors[49].value")
def sve_without_a_vector_length(states: States) -> None:
    arm_chips.with_sve(states[ARM0], 0)
    arm_chips.with_sve(states[ARM1], 0)


@broken("arm-none", "vcpus.run-state: vcpu-aarch64/1.mp_state")
def a_halted_cpu(states: States) -> None:
    states[ARM1].mp_state = 3


@broken("arm-none", "vcpus.pstate: vcpu-aarch64/0.regs[35].value")
def a_cpu_at_el2(states: States) -> None:
    reg(states, ARM0, arm_chips.PSTATE).value = 0x9


@broken("arm-none", "vcpus.pstate: vcpu-aarch64/0.regs[35].value")
def aarch32_on_cpus_that_have_none(states: States) -> None:
    for section in (ARM0, ARM1):
        reg(states, section, arm_chips.PFR0).value = 0x1111
    reg(states, ARM0, arm_chips.PSTATE).value = 0x10


@broken("arm-none", "vcpus.serror: vcpu-aarch64/0.events.serror_pending")
def two_serrors(states: States) -> None:
    states[ARM0].events.serror_pending = 2


@broken("arm-none", "vcpus.serror: vcpu-aarch64/0.events.serror_esr")
def a_syndrome_of_nothing(states: States) -> None:
    states[ARM0].events.serror_esr = 1
