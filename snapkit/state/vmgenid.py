"""The kind vmgenid: the identity that changes whenever the guest is a copy of one that ran before.

Microsoft, "Virtual Machine Generation ID" (2018): 16 bytes in guest memory, announced through ACPI, and an interrupt
that tells the guest to look again.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.schema import U16, U64, State, schema

GENERATION_LEN = 16
GENERATION_ALIGNMENT = 8


@schema("vmgenid", version=1, max_len=1024)
class VmgenidState(State):
    """Where the id lies, the interrupt that announces a new one, and the id."""

    gpa: U64
    gsi: U16
    generation: Annotated[bytes, Meta(min_length=GENERATION_LEN, max_length=GENERATION_LEN)]


RULES = {
    "vmgenid.alignment": "The generation id is aligned to 8 bytes: the specification has guests rely on it.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: VmgenidState, component: str) -> list[Finding]:
    """Return what in *state* no generation id could have, for the section *component*."""
    if state.gpa % GENERATION_ALIGNMENT:
        wanted = f"a multiple of {GENERATION_ALIGNMENT}"
        return [Finding(component, "gpa", f"{state.gpa:#x}", wanted, "vmgenid.alignment")]
    return []
