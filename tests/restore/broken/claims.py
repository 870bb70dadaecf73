"""Claims that devices and the allocator do not agree on."""

from snapkit.state.resource_allocator import ClaimState, PoolState
from tests.restore.broken import CLAIMS, at, broken, move_claim
from tests.restore.device_machine import States


@broken("pci", "pools.known: resource-allocator/0.pools")
def pool_over_ram(states: States) -> None:
    states[CLAIMS].pools[2] = PoolState(pool="mmio32", start=0x1000, length=0xEEC0_0000 - 0x1000)


@broken(
    "mmio",
    "claims.pool: resource-allocator/0.claims[0].pool",
    "claims.pool: resource-allocator/0.claims[1].pool",
    "claims.pool: resource-allocator/0.claims[2].pool",
    "claims.pool: resource-allocator/0.claims[3].pool",
    "claims.pool: resource-allocator/0.claims[4].pool",
    "claims.pool: resource-allocator/0.claims[5].pool",
    "pools.known: resource-allocator/0.pools",
)
def pool_missing(states: States) -> None:
    del states[CLAIMS].pools[0]


@broken("pci", "claims.agree: resource-allocator/0.claims")
def claim_missing(states: States) -> None:
    states[CLAIMS].claims = [claim for claim in states[CLAIMS].claims if claim.owner != "vmgenid/0"]


@broken("pci", "claims.agree: resource-allocator/0.claims[28]")
def claim_of_nobody(states: States) -> None:
    states[CLAIMS].claims.append(ClaimState(pool="pci-slot", start=31, length=1, owner="pci-function/gone"))


@broken("mmio", "claims.agree: resource-allocator/0.claims", "claims.agree: resource-allocator/0.claims[0]")
def claim_of_another(states: States) -> None:
    states[CLAIMS].claims[0].owner = "vmgenid/1"


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[26]",
    "claims.once: pci-function/rng",
)
def one_slot_twice(states: States) -> None:
    at(states, "pci-function", "rng").slot = at(states, "pci-function", "root").slot


@broken("pci", "claims.agree: resource-allocator/0.claims", "claims.agree: resource-allocator/0.claims[26]")
def device_in_slot_0(states: States) -> None:
    at(states, "pci-function", "rng").slot = 0


@broken("pci", "claims.agree: resource-allocator/0.claims", "claims.agree: resource-allocator/0.claims[18]")
def bar_in_no_window(states: States) -> None:
    at(states, "pci-function", "root").bars[0].address = 0x10_0000_0000


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[10]",
    "claims.once: pci-msix/rng",
)
def one_gsi_twice(states: States) -> None:
    at(states, "pci-msix", "rng").gsis[0] = at(states, "pci-msix", "root").gsis[0]


@broken(
    "mmio",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[10]",
    "virtio-mmio.slot: virtio-mmio/root.address",
)
def mmio_device_where_it_was_not_claimed(states: States) -> None:
    at(states, "virtio-mmio").address -= 0x10_0000


@broken(
    "mmio",
    "claims.agree: resource-allocator/0.claims",
    "claims.agree: resource-allocator/0.claims[1]",
    "interrupts.lines: interrupt-table/0.lines",
)
def mmio_gsi_that_was_not_claimed(states: States) -> None:
    at(states, "virtio-mmio").gsi = 23


@broken("mmio", "virtio-mmio.slot: virtio-mmio/root.address")
def mmio_device_outside_its_slots(states: States) -> None:
    at(states, "virtio-mmio").address = 0xC000_0000
    move_claim(states, "virtio-mmio/root", 0xEEBF_F000, 0xC000_0000, "mmio32")
