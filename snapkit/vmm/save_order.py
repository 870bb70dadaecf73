"""The order in which a paused machine is read: a table of edges with reasons, by kinds of sections.

Before it every part is prepared (what is parsed or under way is flushed), after it memory is written: reading an ITS has
KVM write its tables into memory, reading a distributor which LPIs are pending. *parts* are all sections that are not
named. Nothing is under way in a machine that is paused and prepared, so no edge can be shown to matter; they are what
keeps a part that is not at rest harmless.
"""

from collections.abc import Callable, Mapping

from snapkit.order import Edge, Order
from snapkit.state.schema import SectionId, State

PARTS = "parts"
_AT_REST = "every part was prepared: it raises no interrupt and touches no memory any more"
_STILL = "vCPUs are parked, and nothing raises an interrupt any more"
_PAUSED = "vCPUs are parked with no exit in flight, and the PIT stands still"

SAVE = Order(
    "the order of saving",
    (
        PARTS,
        "interrupt-table",
        "vcpu-x86-64",
        "irqchip-x86",
        "pit",
        "kvm-clock",
        "vcpu-aarch64",
        "gicv3-its",
        "gicv3-distributor",
        "gicv3-redistributor",
        "gicv3-cpu-interface",
    ),
    (
        Edge(PARTS, "interrupt-table", "a device may change what its vectors stand for until it is read", _AT_REST),
        Edge("interrupt-table", "vcpu-x86-64", "an interrupt that comes late is pending in a CPU then", _AT_REST),
        Edge(
            "vcpu-x86-64", "irqchip-x86", "reading MP_STATE may have a CPU accept INIT, and an EOI reach chips", _PAUSED
        ),
        Edge("irqchip-x86", "pit", "a tick raises its interrupt at the chips", _PAUSED),
        Edge(
            "pit",
            "kvm-clock",
            "the guest's time is that of the end of the save",
            "clock and counters are read again, at one moment",
        ),
        Edge("interrupt-table", "vcpu-aarch64", "an interrupt that comes late is pending in the GIC then", _AT_REST),
        Edge("vcpu-aarch64", "gicv3-its", "looking at a vCPU has KVM drive the lines of its timers", _STILL),
        Edge("gicv3-its", "gicv3-distributor", "which LPIs there are comes before which of them are pending", _STILL),
        Edge("gicv3-distributor", "gicv3-redistributor", "what writes memory comes before what only reads", _STILL),
        Edge("gicv3-redistributor", "gicv3-cpu-interface", "an interrupt is pending before it is active", _STILL),
    ),
)
_PLACES = {name: place for place, name in enumerate(SAVE.names)}


def read_in_order(readers: Mapping[SectionId, Callable[[], State]]) -> dict[SectionId, State]:
    """Call each of *readers* at its place, those of one place as they come; the result is in the order given."""
    order = sorted(readers, key=lambda section: _PLACES.get(section.kind, _PLACES[PARTS]))
    saved = {section: readers[section]() for section in order}
    return {section: saved[section] for section in readers}
