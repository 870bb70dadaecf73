"""A GICv3 CPU interface: one CPU's ICC system registers.

Arm IHI 0069, section 12.2; access by KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS. The instance is the vCPU's.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.schema import U64, State, register, schema
from snapkit.state.spec.gicv3 import IccBpr, IccCtlr, IccIgrpen, IccPmr, IccSre

_ActivePriorities = Annotated[list[U64], Meta(min_length=1, max_length=4)]


@schema("gicv3-cpu-interface", version=1, max_len=4096)
class CpuInterfaceState(State):
    """One CPU's. How many active-priority registers of each group there are follows from ICC_CTLR_EL1.PRIbits."""

    icc_sre_el1: Annotated[U64, register(IccSre)]
    icc_ctlr_el1: Annotated[U64, register(IccCtlr)]
    icc_pmr_el1: Annotated[U64, register(IccPmr)]
    icc_bpr0_el1: Annotated[U64, register(IccBpr)]
    icc_bpr1_el1: Annotated[U64, register(IccBpr)]
    icc_igrpen0_el1: Annotated[U64, register(IccIgrpen)]
    icc_igrpen1_el1: Annotated[U64, register(IccIgrpen)]
    icc_ap0r_el1: _ActivePriorities
    icc_ap1r_el1: _ActivePriorities


RULES = {
    "icc.registers": "An interface is used through system registers: KVM refuses an ICC_SRE_EL1 without SRE.",
    "icc.priorities": "Active priorities are as many as PRIbits has levels for: KVM has no others to set.",
    "icc.bits": "A register has the bits that there are: KVM keeps and gives no others.",
}
"""What a finding of this module may be named for, and why it must hold."""

_AP_REGISTERS = {5: 1, 6: 2, 7: 4}
"""By priority bits (vgic_v3_max_apr_idx): 32 levels of preemption each."""
_AP_MAX = 0xFFFF_FFFF
_LAYOUTS = (
    ("icc_sre_el1", IccSre.defined),
    ("icc_pmr_el1", IccPmr.defined),
    ("icc_bpr0_el1", IccBpr.defined),
    ("icc_bpr1_el1", IccBpr.defined),
    ("icc_igrpen0_el1", IccIgrpen.defined),
    ("icc_igrpen1_el1", IccIgrpen.defined),
)


def active_priority_registers(ctlr: int) -> int:
    """Return how many active-priority registers of each group there are where ICC_CTLR_EL1 is *ctlr*."""
    return _AP_REGISTERS.get(IccCtlr.PRI_BITS.get(ctlr) + 1, 1)


def invariants(state: CpuInterfaceState, component: str) -> list[Finding]:
    """Return where *state* is not what a CPU interface of KVM's saves."""
    findings = []
    if not state.icc_sre_el1 & IccSre.SRE:
        findings.append(Finding(component, "icc_sre_el1", f"{state.icc_sre_el1:#x}", "with bit 0", "icc.registers"))
    count = active_priority_registers(state.icc_ctlr_el1)
    for name, values in (("icc_ap0r_el1", state.icc_ap0r_el1), ("icc_ap1r_el1", state.icc_ap1r_el1)):
        if len(values) != count:
            expected = f"{count}, for {IccCtlr.PRI_BITS.get(state.icc_ctlr_el1) + 1} priority bits"
            findings.append(Finding(component, name, f"{len(values)} registers", expected, "icc.priorities"))
        for number, value in enumerate(values):
            if value > _AP_MAX:
                path, expected = f"{name}[{number}]", f"at most {_AP_MAX:#x}"
                findings.append(Finding(component, path, f"{value:#x}", expected, "icc.bits"))
    for name, defined in _LAYOUTS:
        value = getattr(state, name)
        if value & ~defined:
            findings.append(Finding(component, name, f"{value:#x}", f"within {defined:#x}", "icc.bits"))
    return findings
