"""PICs and an IOAPIC that no guest can have programmed so."""

from tests.restore.broken import at, broken
from tests.restore.device_machine import States


@broken("none", "interrupts.pic: irqchip-x86/0.pic_master.priority_add")
def pic_priority_above_7(states: States) -> None:
    at(states, "irqchip-x86", "0").pic_master.priority_add = 8


@broken("none", "interrupts.pic: irqchip-x86/0.pic_slave.irq_base")
def pic_vectors_off_by_one(states: States) -> None:
    at(states, "irqchip-x86", "0").pic_slave.irq_base = 0x31


@broken("none", "interrupts.pic: irqchip-x86/0.pic_master.init_state")
def pic_in_an_unknown_step(states: States) -> None:
    at(states, "irqchip-x86", "0").pic_master.init_state = 4


@broken("none", "interrupts.pic: irqchip-x86/0.pic_master.elcr")
def timer_pin_level_triggered(states: States) -> None:
    at(states, "irqchip-x86", "0").pic_master.elcr = 1


@broken("none", "interrupts.pic: irqchip-x86/0.pic_slave.elcr_mask")
def pic_with_other_level_pins(states: States) -> None:
    at(states, "irqchip-x86", "0").pic_slave.elcr_mask = 0xFF


@broken("none", "interrupts.ioapic: irqchip-x86/0.ioapic.base_address")
def ioapic_elsewhere(states: States) -> None:
    at(states, "irqchip-x86", "0").ioapic.base_address = 0x1000


@broken("none", "interrupts.ioapic: irqchip-x86/0.ioapic.irr")
def ioapic_pin_25(states: States) -> None:
    at(states, "irqchip-x86", "0").ioapic.irr = 1 << 24


@broken("none", "interrupts.ioapic: irqchip-x86/0.ioapic.id")
def ioapic_id_of_5_bits(states: States) -> None:
    at(states, "irqchip-x86", "0").ioapic.id = 16


@broken("none", "interrupts.ioapic: irqchip-x86/0.ioapic.ioregsel")
def ioapic_selector_of_9_bits(states: States) -> None:
    at(states, "irqchip-x86", "0").ioapic.ioregsel = 0x100
