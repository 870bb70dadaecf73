"""The kind virtio-pci: what the driver of a virtio device told its PCI transport.

Virtual I/O Device (VIRTIO) 1.3, section 4.1. Queues and features are the device's (its own kind), registers and BARs
the function's (pci-function), the vector table pci-msix's; all of the same instance.
"""

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state import virtio
from snapkit.state.schema import U8, U16, U32, State, doc, schema
from snapkit.state.spec import virtio as spec
from snapkit.state.virtio import QUEUES_MAX, VirtioState, status_findings, transport_findings

NO_VECTOR = spec.VIRTIO_MSI_NO_VECTOR


@schema("virtio-pci", version=1, max_len=1024)
class VirtioPciState(State):
    """Registers of the common configuration structure, and the interrupt status."""

    device_status: U8 = 0
    device_feature_select: U32 = 0
    driver_feature_select: U32 = 0
    driver_features: Annotated[list[U32], Meta(min_length=2, max_length=2), doc("as written, low word first")] = (
        msgspec.field(default_factory=lambda: [0, 0])
    )
    queue_select: U16 = 0
    config_generation: U8 = 0
    config_msix_vector: U16 = NO_VECTOR
    queue_msix_vectors: Annotated[list[U16], Meta(min_length=1, max_length=QUEUES_MAX)]
    isr_status: U8 = 0


RULES = {
    **virtio.RULES,
    "virtio-pci.vectors": "A vector that a driver chose exists, one for each queue: others are read back as NO_VECTOR.",
    "virtio-pci.isr": "The interrupt status has two bits.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: VirtioPciState, component: str) -> list[Finding]:
    """Return what in *state* no transport could hold, for the section *component*."""
    findings = list(status_findings(state.device_status, component, "device_status"))
    vectors = len(state.queue_msix_vectors) + 1
    named = [("config_msix_vector", state.config_msix_vector)]
    named += [(f"queue_msix_vectors[{number}]", vector) for number, vector in enumerate(state.queue_msix_vectors)]
    findings += [
        Finding(component, path, str(vector), f"below {vectors}, or {NO_VECTOR:#x}", "virtio-pci.vectors")
        for path, vector in named
        if vector >= vectors and vector != NO_VECTOR
    ]
    if state.isr_status & ~(spec.INTERRUPT_QUEUE | spec.INTERRUPT_CONFIG):
        findings.append(Finding(component, "isr_status", f"{state.isr_status:#x}", "within 0x3", "virtio-pci.isr"))
    return findings


def agrees(
    state: VirtioPciState, component: str, device: VirtioState, device_component: str, ram: Iterable[tuple[int, int]]
) -> list[Finding]:
    """Return where *state* and the State of its device do not agree; *ram* is the guest's, as (gpa, length)."""
    found = transport_findings(
        state.device_status, state.driver_features, component, "device_status", device, device_component, ram
    )
    findings = list(found)
    if len(state.queue_msix_vectors) != len(device.queues):
        value, expected = f"a list of {len(state.queue_msix_vectors)}", f"one per queue, {len(device.queues)}"
        findings.append(Finding(component, "queue_msix_vectors", value, expected, "virtio-pci.vectors"))
    return findings
