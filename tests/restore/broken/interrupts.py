"""Interrupt tables that are not what the devices' registers say."""

from snapkit.state.interrupt_table import LineState, RouteState
from tests.restore.broken import GENERATION, TABLE, at, broken, msix_at, patch
from tests.restore.device_machine import States


@broken("mmio", "interrupts.lines: interrupt-table/0.lines")
def line_missing(states: States) -> None:
    states[TABLE].lines.pop()


@broken("mmio", "interrupts.lines: interrupt-table/0.lines")
def line_of_nobody(states: States) -> None:
    states[TABLE].lines.append(LineState(gsi=23, edge=True, owner="vmgenid/0"))


@broken("pci", "interrupts.lines: interrupt-table/0.lines")
def line_level_for_edge(states: States) -> None:
    states[TABLE].lines[0].edge = False


@broken(
    "mmio",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[4]",
    "claims.once: virtio-mmio/rng",
    "interrupts.lines: interrupt-table/0.lines",
)
def one_line_for_two(states: States) -> None:
    at(states, "virtio-mmio", "rng").gsi = at(states, "virtio-mmio", "root").gsi


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[0]",
    "interrupts.lines: interrupt-table/0.lines",
)
def generation_on_the_serial_line(states: States) -> None:
    states[GENERATION].gsi = 4


@broken("pci", "interrupts.routes: interrupt-table/0.routes")
def route_missing(states: States) -> None:
    states[TABLE].routes.pop(0)


@broken("pci", "interrupts.routes: interrupt-table/0.routes[0]")
def route_of_a_masked_vector(states: States) -> None:
    at(states, "pci-msix").entries[1].control = 1


@broken("pci", "interrupts.routes: interrupt-table/0.routes[0]")
def route_while_the_function_is_masked(states: States) -> None:
    patch(states, "root", msix_at(states) + 3, b"\xc0")


@broken("pci", "interrupts.routes: interrupt-table/0.routes[0]")
def route_while_msix_is_off(states: States) -> None:
    patch(states, "root", msix_at(states) + 3, b"\x00")


@broken("pci", "interrupts.routes: interrupt-table/0.routes[0]")
def route_with_another_message(states: States) -> None:
    states[TABLE].routes[0].data ^= 1


@broken("pci", "interrupts.routes: interrupt-table/0.routes[0]")
def route_of_another(states: States) -> None:
    states[TABLE].routes[0].owner = "pci-msix/rng"


@broken("pci", "interrupts.routes: interrupt-table/0.routes[12]")
def route_of_a_gsi_that_nobody_has(states: States) -> None:
    states[TABLE].routes.append(RouteState(gsi=4000, address=0xFEE0_0000, data=1, owner="pci-msix/root"))
