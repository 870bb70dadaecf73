"""Devices and rings that do not fit what the driver told the transport."""

import copy

from tests.restore.broken import (
    at,
    broken,
)
from tests.restore.device_machine import States


@broken("pci", "virtio-pci.vectors: virtio-pci/v0.queue_msix_vectors")
def vector_list_too_short(states: States) -> None:
    at(states, "virtio-pci", "v0").queue_msix_vectors.pop()


@broken("pci", "virtio-pci.vectors: virtio-pci/root.queue_msix_vectors[0]")
def vector_that_there_is_not(states: States) -> None:
    at(states, "virtio-pci").queue_msix_vectors[0] = 2


@broken("pci", "virtio-pci.vectors: virtio-pci/root.config_msix_vector")
def config_vector_that_there_is_not(states: States) -> None:
    at(states, "virtio-pci").config_msix_vector = 0xFFFE


@broken("pci", "virtio.broken: virtio-pci/root.device_status")
@broken("mmio", "virtio.broken: virtio-mmio/root.status")
def broken_without_needs_reset(states: States) -> None:
    at(states, "virtio-block").broken = True


@broken("pci", "virtio.broken: virtio-pci/root.device_status")
def needs_reset_without_broken(states: States) -> None:
    at(states, "virtio-pci").device_status |= 0x40


@broken("mmio", "virtio.broken: virtio-mmio/root.status")
def needs_reset_without_broken_mmio(states: States) -> None:
    at(states, "virtio-mmio").status |= 0x40


@broken("pci", "virtio.features: virtio-block/root.acked", "virtio.status: virtio-pci/root.device_status")
def driver_ok_without_features_ok(states: States) -> None:
    at(states, "virtio-pci").device_status = 0x07


@broken("pci", "virtio.features: virtio-block/root.acked")
def features_that_were_not_written(states: States) -> None:
    at(states, "virtio-pci").driver_features = [1 << 28, 1]


@broken("mmio", "virtio.features: virtio-block/root.acked")
def features_before_features_ok(states: States) -> None:
    at(states, "virtio-mmio").status = 0x03


@broken("pci", "virtio.features: virtio-rng/rng.acked")
def features_not_offered(states: States) -> None:
    at(states, "virtio-rng", "rng").acked |= 1 << 34


@broken("pci", "virtio.ring: virtio-vsock/v0.queues[1].driver")
def ring_outside_ram(states: States) -> None:
    at(states, "virtio-vsock", "v0").queues[1].driver = 0x4000_0000


@broken("mmio", "virtio.ring: virtio-block/root.queues[0].desc")
def ring_over_the_end_of_ram(states: States) -> None:
    at(states, "virtio-block").queues[0].desc = 0x40_0000 - 16


@broken("mmio", "virtio.ring: virtio-block/root.queues[0].device")
def ring_on_an_odd_address(states: States) -> None:
    at(states, "virtio-block").queues[0].device += 2


@broken("pci", "virtio.queue-size: virtio-block/root.queues[0].size")
def queue_of_an_odd_size(states: States) -> None:
    at(states, "virtio-block").queues[0].size = 3


@broken("mmio", "virtio.queue-size: virtio-block/root.queues[0].size")
def queue_larger_than_offered(states: States) -> None:
    at(states, "virtio-block").queues[0].size = 512


@broken("mmio", "virtio.queues: virtio-rng/rng.queues")
def a_queue_too_many(states: States) -> None:
    rng = at(states, "virtio-rng", "rng")
    rng.queues.append(copy.deepcopy(rng.queues[0]))


@broken("mmio", "virtio.queues: virtio-balloon/b.queues")
def a_queue_too_few(states: States) -> None:
    at(states, "virtio-balloon", "b").queues.pop()


@broken("pci", "virtio.in-flight: virtio-block/root.queues[0].next_used")
def a_request_in_flight(states: States) -> None:
    at(states, "virtio-block").queues[0].next_avail += 1


@broken("mmio", "virtio.in-flight: virtio-net/eth0.queues[1].next_used")
def more_given_back_than_taken(states: States) -> None:
    at(states, "virtio-net", "eth0").queues[1].next_used += 1
