"""The GICv3's distributor: the registers that all CPUs share, for shared interrupts (INTID 32 and up).

Arm IHI 0069, section 12.9; access by KVM_DEV_ARM_VGIC_GRP_DIST_REGS (Documentation/virt/kvm/devices/arm-vgic-v3.rst).
Word n of a list is about the interrupts from 32 + n * k on, where k is what one word holds: each CPU's own 32 are its
redistributor's. Set-registers only: their clear-registers read the same. `line_level` is the level of a wired line,
which the pending latch (`ispendr`) does not tell.

Surprises: `iidr` is KVM's, whose revision says how the whole GIC behaves, so that it is loaded before anything else. What
a guest writes into `irouter` may name no CPU: such an interrupt waits.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.schema import U32, U64, State, doc, register, schema
from snapkit.state.spec.gicv3 import (
    ARM_IMPLEMENTER,
    KVM_PRODUCT,
    SPI_BASE,
    GicdCtlr,
    Iidr,
    Statusr,
    words_of,
)

WORDS_MAX = 31
"""Words of one bit an interrupt, 992 shared interrupts."""
NR_IRQS_MAX = 1024
AFFINITY_MAX = 0xFF_FFFF
"""KVM keeps affinity levels 0 to 2 (vgic_mmio_write_irouter)."""

_Bits = Annotated[list[U32], Meta(min_length=1, max_length=WORDS_MAX)]


@schema("gicv3-distributor", version=1, max_len=32 << 10)
class DistributorState(State):
    """Shared interrupts. *nr_irqs* counts the 32 private ones in, as KVM_DEV_ARM_VGIC_GRP_NR_IRQS does."""

    nr_irqs: U32
    iidr: Annotated[U32, register(Iidr)]
    ctlr: Annotated[U32, register(GicdCtlr)]
    statusr: Annotated[U32, register(Statusr)]
    igroupr: _Bits
    isenabler: _Bits
    ispendr: Annotated[_Bits, doc("the pending latch, whatever the line's level")]
    isactiver: _Bits
    ipriorityr: Annotated[list[U32], Meta(min_length=1, max_length=8 * WORDS_MAX), doc("a byte an interrupt")]
    icfgr: Annotated[list[U32], Meta(min_length=1, max_length=2 * WORDS_MAX), doc("two bits; the upper: edge")]
    irouter: Annotated[list[U64], Meta(min_length=1, max_length=32 * WORDS_MAX), doc("affinity of the target")]
    line_level: Annotated[_Bits, doc("KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO: wired lines that are high")]


RULES = {
    "gicd.count": "Interrupts come in 32s, the first of them private: KVM_DEV_ARM_VGIC_GRP_NR_IRQS refuses others.",
    "gicd.lists": "Each shared interrupt has its place in every list: a word left out would stay as a reset left it.",
    "gic.iidr": "The GIC is KVM's: a write of another implementer or product is refused.",
    "gicd.control": "Affinity routing and one security state are fixed: KVM's GIC has no other mode.",
    "gicd.targets": "A target has affinity levels 0 to 2: KVM keeps no more of what a guest writes.",
}
"""What a finding of this module may be named for, and why it must hold."""

_KVM_IIDR = Iidr.PRODUCT.put(KVM_PRODUCT) | ARM_IMPLEMENTER
_FIXED = GicdCtlr.ARE | GicdCtlr.DS
_BITS_EACH = {
    "igroupr": 1,
    "isenabler": 1,
    "ispendr": 1,
    "isactiver": 1,
    "ipriorityr": 8,
    "icfgr": 2,
    "irouter": 32,
    "line_level": 1,
}
"""Of one interrupt; a route is a double word, one item."""


def iidr_of_kvm(iidr: int) -> bool:
    """Whether *iidr* is KVM's in some revision: what GICD_IIDR and GICR_IIDR must be for KVM to take them."""
    return iidr & ~Iidr.REVISION == _KVM_IIDR


def iidr_finding(component: str, iidr: int) -> Finding:
    """Say that *iidr* is not KVM's."""
    return Finding(component, "iidr", f"{iidr:#x}", f"{_KVM_IIDR:#x}, bits 15:12 aside", "gic.iidr")


def invariants(state: DistributorState, component: str) -> list[Finding]:
    """Return where *state* is not what a distributor of KVM's saves."""
    findings = []
    shared = state.nr_irqs - SPI_BASE
    if state.nr_irqs % 32 or not 0 < shared < NR_IRQS_MAX - SPI_BASE + 1:
        expected = f"a multiple of 32 from 64 to {NR_IRQS_MAX}"
        findings.append(Finding(component, "nr_irqs", str(state.nr_irqs), expected, "gicd.count"))
    else:
        for name, each in _BITS_EACH.items():
            found, wanted = len(getattr(state, name)), words_of(shared, each)
            if found != wanted:
                expected = f"{wanted}, for {shared} interrupts"
                findings.append(Finding(component, name, f"{found} items", expected, "gicd.lists"))
    if not iidr_of_kvm(state.iidr):
        findings.append(iidr_finding(component, state.iidr))
    if state.ctlr & _FIXED != _FIXED:
        findings.append(Finding(component, "ctlr", f"{state.ctlr:#x}", f"with {_FIXED:#x}", "gicd.control"))
    if max(state.irouter) > AFFINITY_MAX:
        for number, target in enumerate(state.irouter):
            if target > AFFINITY_MAX:
                expected = f"at most {AFFINITY_MAX:#x}"
                findings.append(Finding(component, f"irouter[{number}]", f"{target:#x}", expected, "gicd.targets"))
    return findings
