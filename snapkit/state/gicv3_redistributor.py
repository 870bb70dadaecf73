"""A GICv3 redistributor: one CPU's own interrupts (SGIs, PPIs), and where its LPIs' tables lie in guest memory.

Arm IHI 0069, sections 12.10 and 12.11; access by KVM_DEV_ARM_VGIC_GRP_REDIST_REGS. The instance is the vCPU's.

Surprises: KVM has one PROPBASER for all CPUs, and takes neither it nor PENDBASER once LPIs are enabled, so that `ctlr` is
loaded after both. It does not look at what they point to: a guest may enable LPIs with tables that are nowhere.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.gicv3_distributor import iidr_finding, iidr_of_kvm
from snapkit.state.schema import U32, U64, State, doc, register, schema
from snapkit.state.spec.gicv3 import GicrCtlr, GicrTyper, Iidr, Pendbaser, Propbaser, Statusr, Waker


@schema("gicv3-redistributor", version=1, max_len=4096)
class RedistributorState(State):
    """First the frame RD_base, then SGI_base. *typer* is read-only: it says whose redistributor this is."""

    typer: Annotated[U64, register(GicrTyper)]
    iidr: Annotated[U32, register(Iidr)]
    ctlr: Annotated[U32, register(GicrCtlr)]
    statusr: Annotated[U32, register(Statusr)]
    waker: Annotated[U32, register(Waker)]
    propbaser: Annotated[U64, register(Propbaser)]
    pendbaser: Annotated[U64, register(Pendbaser)]
    igroupr0: U32
    isenabler0: U32
    ispendr0: Annotated[U32, doc("the pending latch, whatever the line's level")]
    isactiver0: U32
    ipriorityr: Annotated[list[U32], Meta(min_length=8, max_length=8), doc("a byte an interrupt")]
    icfgr: Annotated[list[U32], Meta(min_length=2, max_length=2), doc("two bits an interrupt; the upper: edge")]
    line_level: Annotated[U32, doc("KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO: timer and other wired lines that are high")]


RULES = {
    "gic.iidr": "The GIC is KVM's: a write of another implementer or product is refused.",
    "gicr.tables": "Reserved bits of a table's address register are zero: KVM clears them of what a guest writes.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: RedistributorState, component: str) -> list[Finding]:
    """Return where *state* is not what a redistributor of KVM's saves."""
    findings = []
    if not iidr_of_kvm(state.iidr):
        findings.append(iidr_finding(component, state.iidr))
    for name, value, layout in (
        ("propbaser", state.propbaser, Propbaser),
        ("pendbaser", state.pendbaser, Pendbaser),
    ):
        if value & ~layout.defined:
            expected = f"within {layout.defined:#x}"
            findings.append(Finding(component, name, f"{value:#x}", expected, "gicr.tables"))
    return findings
