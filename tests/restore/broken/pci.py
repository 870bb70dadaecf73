"""Functions, BARs and MSI-X tables that contradict each other."""

from snapkit.state.pci_function import BarState
from tests.restore.broken import (
    at,
    broken,
    move_bar,
    msix_at,
    patch,
)
from tests.restore.device_machine import States


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[21]",
    "claims.once: pci-function/rng",
    "pci.bars-apart: pci-function/root.bars[0].address",
)
def bars_over_each_other(states: States) -> None:
    at(states, "pci-function", "rng").bars[0].address = at(states, "pci-function", "root").bars[0].address


@broken("pci", "pci.bar-window: pci-function/root.bars[0].address")
def bar_where_mmio_slots_are(states: States) -> None:
    move_bar(states, "root", 0xEEB8_0000, "mmio32")


@broken("pci", "pci.device-id: pci-function/root.config[2:4]")
def wrong_device_id(states: States) -> None:
    patch(states, "root", 2, b"\x44\x10")


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[18]",
    "msix.place: pci-function/root.config[156]",
    "msix.place: pci-function/root.config[160]",
    "pci.virtio-bar: pci-function/root.bars",
)
def bar_too_short_for_the_doorbells(states: States) -> None:
    at(states, "pci-function", "root").bars[0].length = 0x1000


@broken("pci", "claims.agree: resource-allocator/0.claims", "pci.virtio-bar: pci-function/root.bars")
def another_bar(states: States) -> None:
    at(states, "pci-function").bars.append(BarState(index=2, width=32, length=0x1000, address=0xC000_0000))


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims[18]",
    "msix.place: pci-function/root.config[156]",
    "msix.place: pci-function/root.config[160]",
    "pci.bar-index: pci-function/root.config[16]",
    "pci.bar-index: pci-function/root.config[20]",
    "pci.virtio-bar: pci-function/root.bars",
)
def no_bar(states: States) -> None:
    at(states, "pci-function").bars.clear()


@broken("pci", "interrupts.routes: interrupt-table/0.routes[0]", "msix.capability: pci-function/root.config")
def no_msix_capability(states: States) -> None:
    patch(states, "root", msix_at(states), b"\x09")


@broken("pci", "msix.size: pci-msix/root.entries")
def msix_table_size(states: States) -> None:
    patch(states, "root", msix_at(states) + 2, b"\x07")


@broken("pci", "msix.place: pci-function/root.config[156]")
def msix_table_outside_its_bar(states: States) -> None:
    patch(states, "root", msix_at(states) + 4, (0x7FFF8).to_bytes(4, "little"))


@broken("pci", "msix.place: pci-function/root.config[160]")
def pba_over_the_table(states: States) -> None:
    patch(states, "root", msix_at(states) + 8, (0x8000).to_bytes(4, "little"))


@broken(
    "pci",
    "interrupts.routes: interrupt-table/0.routes[5]",
    "msix.lengths: pci-msix/v0.gsis",
    "msix.size: pci-msix/v0.entries",
    "msix.vectors: pci-msix/v0.entries",
)
def vectors_as_many_as_queues(states: States) -> None:
    del at(states, "pci-msix", "v0").entries[-1]


@broken("pci", "msix.pending: pci-msix/root.pending[0]")
def pending_vector_that_there_is_not(states: States) -> None:
    at(states, "pci-msix").pending[0] = 1 << 2
