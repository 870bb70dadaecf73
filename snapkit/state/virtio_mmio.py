"""The kind virtio-mmio: what the driver of a virtio device told its memory-mapped transport.

Virtual I/O Device (VIRTIO) 1.3, section 4.2 (version 2, modern). Queues and features are the device's own.
"""

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state import virtio
from snapkit.state.schema import U8, U16, U32, U64, State, doc, schema
from snapkit.state.spec import virtio as spec
from snapkit.state.virtio import VirtioState, status_findings, transport_findings


@schema("virtio-mmio", version=1, max_len=1024)
class VirtioMmioState(State):
    """Where the registers lie, the interrupt line, and what the driver wrote."""

    address: U64
    gsi: U16
    status: U32 = 0
    device_features_sel: U32 = 0
    driver_features_sel: U32 = 0
    driver_features: Annotated[list[U32], Meta(min_length=2, max_length=2), doc("as written, low word first")] = (
        msgspec.field(default_factory=lambda: [0, 0])
    )
    queue_sel: U32 = 0
    config_generation: U32 = 0
    interrupt_status: U8 = 0


RULES = {
    **virtio.RULES,
    "virtio-mmio.address": "A memory-mapped device begins on a page.",
    "virtio-mmio.isr": "The interrupt status has two bits.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: VirtioMmioState, component: str) -> list[Finding]:
    """Return what in *state* no transport could hold, for the section *component*."""
    findings = list(status_findings(state.status, component, "status"))
    if state.address % spec.MMIO_LEN:
        expected = f"a multiple of {spec.MMIO_LEN:#x}"
        findings.append(Finding(component, "address", f"{state.address:#x}", expected, "virtio-mmio.address"))
    if state.interrupt_status & ~(spec.INTERRUPT_QUEUE | spec.INTERRUPT_CONFIG):
        value = f"{state.interrupt_status:#x}"
        findings.append(Finding(component, "interrupt_status", value, "within 0x3", "virtio-mmio.isr"))
    return findings


def agrees(
    state: VirtioMmioState, component: str, device: VirtioState, device_component: str, ram: Iterable[tuple[int, int]]
) -> list[Finding]:
    """Return where *state* and the State of its device do not agree; *ram* is the guest's, as (gpa, length)."""
    return list(
        transport_findings(state.status, state.driver_features, component, "status", device, device_component, ram)
    )
