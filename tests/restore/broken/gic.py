"""A GIC that is not KVM's, not whole, or another machine's."""

import copy
from typing import Any

from snapkit.state.schema import SectionId
from tests.restore.broken import ARM0, at, broken
from tests.restore.device_machine import States


def gicd(states: States) -> Any:
    return at(states, "gicv3-distributor", "0")


def gicr(states: States, number: int = 0) -> Any:
    return at(states, "gicv3-redistributor", str(number))


def icc(states: States, number: int = 0) -> Any:
    return at(states, "gicv3-cpu-interface", str(number))


def its(states: States) -> Any:
    return at(states, "gicv3-its", "0")


@broken("arm-none", "gic.interrupts: gicv3-distributor/0.nr_irqs", "gicd.count: gicv3-distributor/0.nr_irqs")
def interrupts_by_the_dozen(states: States) -> None:
    gicd(states).nr_irqs = 120


@broken("arm-none", "gic.interrupts: gicv3-distributor/0.nr_irqs", "gicd.count: gicv3-distributor/0.nr_irqs")
def private_interrupts_alone(states: States) -> None:
    gicd(states).nr_irqs = 32


@broken("arm-none", "gic.interrupts: gicv3-distributor/0.nr_irqs")
def interrupts_of_a_smaller_machine(states: States) -> None:
    state = gicd(states)
    state.nr_irqs = 64
    for name in ("igroupr", "isenabler", "ispendr", "isactiver", "ipriorityr", "icfgr", "irouter", "line_level"):
        words = getattr(state, name)
        setattr(state, name, words[: len(words) // 3])


@broken("arm-none", "gicd.lists: gicv3-distributor/0.ipriorityr")
def a_priority_too_few(states: States) -> None:
    gicd(states).ipriorityr.pop()


@broken("arm-none", "gicd.lists: gicv3-distributor/0.irouter")
def a_route_too_many(states: States) -> None:
    gicd(states).irouter.append(0)


@broken("arm-none", "gic.iidr: gicv3-distributor/0.iidr")
def distributor_of_another_maker(states: States) -> None:
    gicd(states).iidr ^= 1


@broken("arm-none", "gicd.control: gicv3-distributor/0.ctlr")
def distributor_without_affinity_routing(states: States) -> None:
    gicd(states).ctlr &= ~0x10


@broken("arm-none", "gicd.targets: gicv3-distributor/0.irouter[7]")
def a_target_with_level_3(states: States) -> None:
    gicd(states).irouter[7] = 1 << 32


@broken("arm-none", "gic.iidr: gicv3-redistributor/0.iidr", "gic.one: gicv3-redistributor/1.iidr")
def redistributor_of_another_product(states: States) -> None:
    gicr(states).iidr = 0x0200_043B


@broken("arm-none", "gicr.tables: gicv3-redistributor/0.pendbaser")
def reserved_bits_of_a_table(states: States) -> None:
    gicr(states).pendbaser |= 1 << 12


@broken("arm-none", "gic.one: gicv3-redistributor/1.propbaser")
def two_configuration_tables(states: States) -> None:
    gicr(states, 1).propbaser = 0x8010_0000


@broken("arm-none", "gic.redistributors: gicv3-redistributor/1.typer")
def redistributor_of_another_cpu(states: States) -> None:
    gicr(states, 1).typer = gicr(states, 1).typer & 0xFFFF_FFFF


@broken("arm-none", "gic.redistributors: gicv3-redistributor/1.typer")
def redistributor_of_another_number(states: States) -> None:
    gicr(states, 1).typer ^= 0x100


@broken("arm-none", "gic.redistributors: gicv3-redistributor/0.typer")
def two_last_redistributors(states: States) -> None:
    gicr(states).typer |= 0x10


@broken("arm-mmio", "gic.redistributors: gicv3-redistributor/0.ctlr")
def lpis_without_an_its(states: States) -> None:
    gicr(states).ctlr = 1


@broken("arm-pci", "gic.redistributors: gicv3-redistributor/0.typer")
def an_its_that_its_redistributor_does_not_know(states: States) -> None:
    gicr(states).typer &= ~1


@broken("arm-none", "vcpus.dense: gicv3-redistributor")
def a_cpu_without_a_redistributor(states: States) -> None:
    del states[SectionId("gicv3-redistributor", "1")]


@broken("arm-none", "vcpus.dense: gicv3-cpu-interface")
def an_interface_too_many(states: States) -> None:
    states[SectionId("gicv3-cpu-interface", "2")] = copy.deepcopy(icc(states))


@broken("arm-none", "icc.registers: gicv3-cpu-interface/0.icc_sre_el1")
def interface_in_memory(states: States) -> None:
    icc(states).icc_sre_el1 = 0


@broken("arm-none", "icc.priorities: gicv3-cpu-interface/0.icc_ap1r_el1")
def active_priorities_of_a_finer_interface(states: States) -> None:
    icc(states).icc_ap1r_el1 = [0, 0]


@broken("arm-none", "icc.bits: gicv3-cpu-interface/0.icc_ap0r_el1[0]")
def an_active_priority_above_32(states: States) -> None:
    icc(states).icc_ap0r_el1 = [1 << 32]


@broken("arm-none", "icc.bits: gicv3-cpu-interface/0.icc_sre_el1")
def bits_that_no_interface_has(states: States) -> None:
    icc(states).icc_sre_el1 = 0xF


@broken("arm-none", "icc.bits: gicv3-cpu-interface/0.icc_pmr_el1")
def a_priority_mask_of_9_bits(states: States) -> None:
    icc(states).icc_pmr_el1 = 0x1F0


@broken(
    "arm-none",
    "icc.alike: gicv3-cpu-interface/1.icc_ctlr_el1",
    "icc.priorities: gicv3-cpu-interface/1.icc_ap0r_el1",
    "icc.priorities: gicv3-cpu-interface/1.icc_ap1r_el1",
)
def interfaces_of_two_processors(states: States) -> None:
    icc(states, 1).icc_ctlr_el1 = 0x600


@broken(
    "arm-pci",
    "gic.its: gicv3-its",
    "gic.redistributors: gicv3-redistributor/0.ctlr",
    "gic.redistributors: gicv3-redistributor/0.typer",
)
def messages_without_an_its(states: States) -> None:
    del states[SectionId("gicv3-its", "0")]


@broken("arm-pci", "gic.its: gicv3-its")
def two_itses(states: States) -> None:
    states[SectionId("gicv3-its", "1")] = copy.deepcopy(its(states))


@broken("arm-pci", "its.iidr: gicv3-its/0.iidr")
def tables_in_another_layout(states: States) -> None:
    its(states).iidr |= 1 << 12


@broken("arm-pci", "its.typer: gicv3-its/0.typer")
def targets_by_address(states: States) -> None:
    its(states).typer |= 1 << 19


@broken("arm-pci", "its.queue: gicv3-its/0.creadr")
def a_stalled_queue(states: States) -> None:
    its(states).creadr |= 1


@broken("arm-pci", "its.queue: gicv3-its/0.cwriter")
def a_command_behind_the_queue(states: States) -> None:
    its(states).cwriter = 0x1_0000


@broken("arm-pci", "its.tables: gicv3-its/0.baser[0]")
def a_device_table_of_collections(states: States) -> None:
    its(states).baser[0] ^= 5 << 56


@broken("arm-pci", "its.tables: gicv3-its/0.baser[1]")
def a_table_in_small_pages(states: States) -> None:
    its(states).baser[1] &= ~(3 << 8)


@broken("arm-pci", "its.tables: gicv3-its/0.baser[0]")
def entries_of_16_bytes(states: States) -> None:
    its(states).baser[0] |= 8 << 48


@broken("arm-pci", "its.tables: gicv3-its/0.baser[2]")
def a_third_table(states: States) -> None:
    its(states).baser[2] = its(states).baser[0]


@broken("arm-pci", "its.enabled: gicv3-its/0.ctlr")
def enabled_without_a_queue(states: States) -> None:
    its(states).cbaser &= ~(1 << 63)


@broken("arm-none", "machine.arch: irqchip-x86")
def interrupt_controllers_of_both_architectures(states: States) -> None:
    from tests.restore.chips import irqchip

    states[SectionId("irqchip-x86", "0")] = irqchip()


@broken("none", "machine.arch: vcpu-aarch64")
def a_cpu_of_the_other_architecture(states: States) -> None:
    from tests.restore.arm_chips import vcpu

    states[ARM0] = vcpu()


@broken("arm-none", "sections.complete: gicv3-distributor")
def no_distributor(states: States) -> None:
    del states[SectionId("gicv3-distributor", "0")]


@broken("arm-mmio", "interrupts.lines: interrupt-table/0.lines", "sections.complete: rtc-pl031")
def no_clock(states: States) -> None:
    del states[SectionId("rtc-pl031", "0")]
