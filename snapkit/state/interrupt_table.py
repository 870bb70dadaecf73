"""The kind interrupt-table: which interrupt pins are wired to whom, and where each message-signalled interrupt goes.

A line is a pin of the interrupt controllers, of which a machine wires at most `LINES_MAX`. A route is a GSI that KVM turns into a message: a write of *data* to
*address*. Routes are those of vectors that can fire now; they are derived from the MSI-X tables, which they must match.
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.resource_allocator import Owner, owned_by_a_section
from snapkit.state.schema import U16, U32, U64, State, doc, schema

LINES_MAX = 24
ROUTES_MAX = 4096


class LineState(State):
    """A pin in use."""

    gsi: U16
    edge: bool
    owner: Owner


class RouteState(State):
    """A message-signalled interrupt that can fire."""

    gsi: U16
    address: U64
    data: U32
    device_id: Annotated[U16, doc("bus, device and function of the sender; 0 where KVM does not ask for it")] = 0
    owner: Owner


@schema("interrupt-table", version=1, max_len=2 << 20)
class InterruptTableState(State):
    """Lines and routes, each sorted by GSI."""

    lines: Annotated[list[LineState], Meta(max_length=LINES_MAX)] = msgspec.field(default_factory=list)
    routes: Annotated[list[RouteState], Meta(max_length=ROUTES_MAX)] = msgspec.field(default_factory=list)


RULES = {
    "lines.sorted": "Lines are there once each, by GSI: the table is written from a sorted one.",
    "lines.owner": "A line belongs to a section: it says who drives the pin.",
    "routes.sorted": "Routes are there once each, by GSI: KVM takes the last of two.",
    "routes.owner": "A route belongs to a section: it says whose vector fires.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: InterruptTableState, component: str) -> list[Finding]:
    """Return where *state* is not what an interrupt table saves: GSIs sorted, each once."""
    findings = []
    lists: tuple[tuple[str, Sequence[LineState | RouteState]], ...] = (("lines", state.lines), ("routes", state.routes))
    for name, items in lists:
        before = -1
        for number, item in enumerate(items):
            gsi = item.gsi
            if gsi <= before:
                path, expected = f"{name}[{number}].gsi", f"sorted and there once, after {before}"
                findings.append(Finding(component, path, str(gsi), expected, f"{name}.sorted"))
            if not owned_by_a_section(item.owner):
                path = f"{name}[{number}].owner"
                findings.append(Finding(component, path, repr(item.owner), "kind/instance", f"{name}.owner"))
            before = gsi
    return findings
