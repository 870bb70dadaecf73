"""The interrupt translation service (ITS): its registers. Its tables lie in guest memory (`snapkit.state.its_tables`).

Arm IHI 0069, section 12.19; access by KVM_DEV_ARM_VGIC_GRP_ITS_REGS
(Documentation/virt/kvm/devices/arm-vgic-its.rst). *iidr* tells the revision of the tables' layout, too.

Surprises: a write of CBASER sets CREADR and CWRITER to zero, so that it is loaded before them; an enabled ITS takes no
write of a table's address, so that `ctlr` is loaded last.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.schema import U32, U64, State, register, schema
from snapkit.state.spec.gicv3 import (
    ARM_IMPLEMENTER,
    KVM_PRODUCT,
    PAGE_64K,
    TABLE_COLLECTIONS,
    TABLE_DEVICES,
    TABLE_NONE,
    GitsBaser,
    GitsCbaser,
    GitsCreadr,
    GitsCtlr,
    GitsCwriter,
    GitsTyper,
    Iidr,
)
from snapkit.state.spec.its import ABI_REVISION, ENTRY_LEN

BASERS = 8
TABLES = (TABLE_DEVICES, TABLE_COLLECTIONS, *(TABLE_NONE,) * (BASERS - 2))
"""What GITS_BASER<n> of KVM's ITS points to."""
_QUEUE_PAGE_LEN = 4096

_Baser = Annotated[U64, register(GitsBaser)]


@schema("gicv3-its", version=1, max_len=4096)
class ItsState(State):
    """Registers of the one ITS. *typer* is read-only, and compared."""

    iidr: Annotated[U32, register(Iidr)]
    typer: Annotated[U64, register(GitsTyper)]
    ctlr: Annotated[U32, register(GitsCtlr)]
    cbaser: Annotated[U64, register(GitsCbaser)]
    creadr: Annotated[U64, register(GitsCreadr)]
    cwriter: Annotated[U64, register(GitsCwriter)]
    baser: Annotated[list[_Baser], Meta(min_length=BASERS, max_length=BASERS)]


RULES = {
    "its.iidr": "The ITS is KVM's, its tables in the layout of revision 0: KVM refuses to load another.",
    "its.typer": "Targets are processor numbers, entries of 8 bytes: that is how the tables in memory are written.",
    "its.queue": "Both ends of the command queue are commands in it: KVM refuses others.",
    "its.tables": "Two tables, of devices and of collections, in pages of 64 KiB: KVM's ITS has no others.",
    "its.enabled": "An enabled ITS has its tables and its queue: one without is loaded as one that is off. Two CPUs at once make one.",
}
"""What a finding of this module may be named for, and why it must hold."""

_KVM_IIDR = Iidr.PRODUCT.put(KVM_PRODUCT) | Iidr.REVISION.put(ABI_REVISION) | ARM_IMPLEMENTER
_TYPER_MASK = GitsTyper.PHYSICAL | GitsTyper.ITT_ENTRY_SIZE | GitsTyper.PTA
_TYPER = GitsTyper.PHYSICAL | GitsTyper.ITT_ENTRY_SIZE.put(ENTRY_LEN - 1)


def queue_len(cbaser: int) -> int:
    """Return how many bytes the command queue at *cbaser* has."""
    return (GitsCbaser.SIZE.get(cbaser) + 1) * _QUEUE_PAGE_LEN


def invariants(state: ItsState, component: str) -> list[Finding]:
    """Return where *state* is not what KVM's ITS saves."""
    findings = []
    if state.iidr != _KVM_IIDR:
        findings.append(Finding(component, "iidr", f"{state.iidr:#x}", f"{_KVM_IIDR:#x}", "its.iidr"))
    if state.typer & _TYPER_MASK != _TYPER:
        expected = f"{_TYPER:#x} in the bits {_TYPER_MASK:#x}"
        findings.append(Finding(component, "typer", f"{state.typer:#x}", expected, "its.typer"))
    length = queue_len(state.cbaser)
    for name, offset in (("creadr", state.creadr), ("cwriter", state.cwriter)):
        if offset & ~GitsCreadr.OFFSET or offset >= length:
            expected = f"a multiple of 32 below {length:#x}"
            findings.append(Finding(component, name, f"{offset:#x}", expected, "its.queue"))
    for number, (baser, table) in enumerate(zip(state.baser, TABLES, strict=True)):
        if table == TABLE_NONE:
            sound, expected = not baser, "0"
        else:
            expected = f"of type {table}, in pages of 64 KiB, with entries of {ENTRY_LEN} bytes where it is valid"
            sound = GitsBaser.TYPE.get(baser) == table and GitsBaser.PAGE_SIZE.get(baser) == PAGE_64K
            if baser & GitsBaser.VALID:
                sound = sound and GitsBaser.ENTRY_SIZE.get(baser) == ENTRY_LEN - 1
        if not sound:
            findings.append(Finding(component, f"baser[{number}]", f"{baser:#x}", expected, "its.tables"))
    if state.ctlr & GitsCtlr.ENABLED and not state.cbaser & state.baser[0] & state.baser[1] & GitsBaser.VALID:
        expected = "without bit 0, or with cbaser, baser[0] and baser[1] valid"
        findings.append(Finding(component, "ctlr", f"{state.ctlr:#x}", expected, "its.enabled"))
    return findings
