"""Sections that are missing, there twice, or of nobody."""

import copy

from snapkit.state.pci_function import HOST_BRIDGE
from snapkit.state.pci_segment import PciSegmentState
from snapkit.state.schema import SectionId
from tests.restore.broken import (
    GENERATION,
    MACHINE,
    SEGMENT,
    at,
    broken,
)
from tests.restore.device_machine import States, fresh_machine


@broken("pci", "devices.complete: rng")
def device_without_its_transport(states: States) -> None:
    del states[SectionId("virtio-pci", "rng")]


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims[10]",
    "claims.agree: resource-allocator/0.claims[11]",
    "claims.agree: resource-allocator/0.claims[21]",
    "claims.agree: resource-allocator/0.claims[26]",
    "devices.complete: rng",
    "interrupts.routes: interrupt-table/0.routes[6]",
)
def device_without_any_transport(states: States) -> None:
    for kind in ("virtio-pci", "pci-function", "pci-msix"):
        del states[SectionId(kind, "rng")]


@broken("pci", "devices.complete: rng")
@broken("mmio", "devices.complete: rng")
def transport_without_a_device(states: States) -> None:
    del states[SectionId("virtio-rng", "rng")]


@broken("pci", "devices.complete: rng", "devices.complete: root", "pci.device-id: pci-function/root.config[2:4]")
def two_devices_of_one_id(states: States) -> None:
    states[SectionId("virtio-rng", "root")] = states.pop(SectionId("virtio-rng", "rng"))


@broken(
    "pci",
    "devices.complete: host-bridge",
    "pci.device-id: pci-function/host-bridge.config[2:4]",
    "pci.virtio-bar: pci-function/host-bridge.bars",
)
@broken("mmio", "devices.complete: host-bridge")
def a_device_with_the_id_of_the_host_bridge(states: States) -> None:
    states[SectionId("virtio-rng", "host-bridge")] = copy.deepcopy(at(states, "virtio-rng", "rng"))


@broken(
    "pci",
    "claims.agree: resource-allocator/0.claims",
    "devices.complete: rng",
    "devices.transport: machine/0",
    "devices.transport: pci-segment/0",
    "interrupts.lines: interrupt-table/0.lines",
    "virtio.features: virtio-rng/rng.acked",
)
def both_transports(states: States) -> None:
    states.update({name: state for name, state in fresh_machine("mmio").items() if name == ("virtio-mmio", "rng")})


@broken("pci", "pci.segment: pci-segment")
def functions_without_a_segment(states: States) -> None:
    del states[SEGMENT]


@broken("mmio", "devices.transport: pci-segment/0", "pci.segment: pci-segment")
def a_segment_without_functions(states: States) -> None:
    states[SEGMENT] = PciSegmentState()


@broken("pci", "pci.segment: pci-segment")
def a_second_segment(states: States) -> None:
    states[SectionId("pci-segment", "1")] = PciSegmentState()


@broken("pci", "pci.segment: pci-function/host-bridge.slot")
def no_host_bridge(states: States) -> None:
    del states[HOST_BRIDGE]


@broken("pci", "claims.agree: resource-allocator/0.claims", "pci.segment: pci-function/host-bridge.slot")
def host_bridge_elsewhere(states: States) -> None:
    states[HOST_BRIDGE].slot = 9


@broken(
    "mmio",
    "claims.agree: resource-allocator/0.claims",
    "claims.once: vmgenid/1",
    "interrupts.lines: interrupt-table/0.lines",
    "vmgenid.single: vmgenid/1",
)
def a_second_generation(states: States) -> None:
    states[SectionId("vmgenid", "1")] = copy.deepcopy(states[GENERATION])


@broken("pci", "vmgenid.in-ram: vmgenid/0.gpa")
def generation_outside_ram(states: States) -> None:
    states[GENERATION].gpa = 0xD000_0000


@broken("mmio", "vmgenid.in-ram: vmgenid/0.gpa")
def generation_over_the_end_of_ram(states: States) -> None:
    states[GENERATION].gpa = 0x40_0000 - 8


@broken("none", "sections.complete: pit")
def no_pit(states: States) -> None:
    del states[SectionId("pit", "0")]


@broken("none", "sections.complete: pit")
def two_pits(states: States) -> None:
    states[SectionId("pit", "1")] = copy.deepcopy(states[SectionId("pit", "0")])


@broken("none", "sections.complete: machine")
def no_machine(states: States) -> None:
    del states[MACHINE]


@broken("none", "machine.arch: machine/0.architecture")
def other_architecture(states: States) -> None:
    states[MACHINE].architecture = 243


@broken("mmio", "devices.transport: pci-segment/0")
def a_segment_beside_memory_mapped_devices(states: States) -> None:
    states[SEGMENT] = PciSegmentState()
    states[HOST_BRIDGE] = fresh_machine("pci")[HOST_BRIDGE]
