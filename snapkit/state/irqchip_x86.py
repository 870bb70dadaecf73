"""The in-kernel interrupt controllers that all CPUs share: two 8259A PICs and the IOAPIC.

Field for field struct kvm_pic_state and struct kvm_ioapic_state of the KVM UAPI.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.state.schema import U8, U32, U64, State, schema


class PicState(State):
    """struct kvm_pic_state."""

    last_irr: U8
    irr: U8
    imr: U8
    isr: U8
    priority_add: U8
    irq_base: U8
    read_reg_select: U8
    poll: U8
    special_mask: U8
    init_state: U8
    auto_eoi: U8
    rotate_on_auto_eoi: U8
    special_fully_nested_mode: U8
    init4: U8
    elcr: U8
    elcr_mask: U8


class IoapicState(State):
    """struct kvm_ioapic_state."""

    base_address: U64
    ioregsel: U32
    id: U32
    irr: U32
    redirtbl: Annotated[list[U64], Meta(min_length=24, max_length=24)]


@schema("irqchip-x86", version=1, max_len=4096)
class IrqchipState(State):
    """PIC master, PIC slave, IOAPIC: the order in which they are loaded, after every local APIC."""

    pic_master: PicState
    pic_slave: PicState
    ioapic: IoapicState
