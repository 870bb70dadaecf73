"""Every order that is a table of edges, and what a test may do to one: swap an edge, see what is left of its place."""

from snapkit.order import Edge, Order
from snapkit.restore import orders
from snapkit.vmm import save_order
from snapkit.vmm.arch.aarch64 import gic_order
from snapkit.vmm.arch.aarch64 import vcpu_order as aarch64_order
from snapkit.vmm.arch.x86_64 import vcpu_order
from tests.grounds import PLATFORMS

Pair = tuple[str, str]
TABLES: dict[str, Order] = {
    "stages": orders.STAGES,
    "claim": orders.CLAIM,
    "rebuild": orders.REBUILD,
    "load": orders.LOAD,
    "vcpu": vcpu_order.LOAD,
    "save": save_order.SAVE,
    "vcpu-aarch64": aarch64_order.LOAD,
    "distributor": gic_order.DISTRIBUTOR,
    "redistributor": gic_order.REDISTRIBUTOR,
    "cpu-interface": gic_order.CPU_INTERFACE,
    "its": gic_order.ITS,
}
_AARCH64_TABLES = tuple(TABLES)[-5:]
_AARCH64_KINDS = {
    kind for one in PLATFORMS if one.MAP.name == "aarch64" for kind in (one.VCPU, *one.CHIPS, *one.MAP.pins)
}
EDGES = [(name, edge) for name, order in TABLES.items() for edge in order.edges]


def is_aarch64(table: str, edge: Edge) -> bool:
    """Whether only an aarch64 machine can show what *edge* is for."""
    return table in _AARCH64_TABLES or not _AARCH64_KINDS.isdisjoint((edge.before, edge.after))


def name_of(value: object) -> str:
    """The id of a parameter."""
    if isinstance(value, Edge):
        value = (value.before, value.after)
    return f"{value[1]}-before-{value[0]}" if isinstance(value, tuple) else str(value)


def reverse(edge: Edge) -> Edge:
    return Edge(edge.after, edge.before, "a test wants it so")


def swapped(order: Order, edge: Edge) -> Order:
    """Return *order* with this one edge the other way round, and all the others kept."""
    kept = [other for other in order.edges if other != edge]
    return Order(order.title, order.names, [*kept, reverse(edge)])


def places(order: Order) -> dict[str, int]:
    return {name: place for place, name in enumerate(order.names)}


def edge_of(order: Order, before: str, after: str) -> Edge:
    return next(edge for edge in order.edges if (edge.before, edge.after) == (before, after))
