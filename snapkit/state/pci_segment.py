"""The kind pci-segment: the one PCI segment of a machine, its bus 0 and the CF8/CFC access mechanism.

PCI Local Bus Specification 3.0, section 3.2.2.3.2 (configuration mechanism 1). The functions on the bus are sections of
their own (pci-function), the host bridge in slot 0 among them.
"""

from typing import Annotated

from snapkit.errors import Finding
from snapkit.state.schema import U32, State, register, schema
from snapkit.state.spec.pci import ConfigAddress


@schema("pci-segment", version=1, max_len=1024)
class PciSegmentState(State):
    """What the segment remembers between two accesses."""

    config_address: Annotated[U32, register(ConfigAddress)] = 0
    """The latch at port 0xCF8: which register the next access to 0xCFC means."""


RULES = {
    "pci.config-address": "The latch at port 0xCF8 holds the bits that the register has: others read as zero.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: PciSegmentState, component: str) -> list[Finding]:
    """Return what in *state* no host bridge could hold, for the section *component*."""
    if not state.config_address & ~ConfigAddress.defined:
        return []
    expected = f"within the defined bits {ConfigAddress.defined:#010x}"
    return [Finding(component, "config_address", f"{state.config_address:#010x}", expected, "pci.config-address")]
