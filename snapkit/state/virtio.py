"""What every virtio device's State begins with: features and queues. No kind of its own.

Virtual I/O Device (VIRTIO) 1.3, sections 2.2 (features) and 2.7 (split virtqueues). What the driver said through its
transport (status, selectors, vectors) is the transport's State, not the device's.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.schema import U16, U64, State, doc
from snapkit.state.spec import virtio as spec

QUEUES_MAX = 8
QUEUE_SIZE_MAX = 32768


class QueueState(State):
    """One split virtqueue: where its three areas lie, and how far the device is in them."""

    max_size: Annotated[U16, doc("entries that the device offers; a power of two")]
    size: Annotated[U16, doc("entries that the driver chose; begins at max_size")]
    ready: Annotated[bool, doc("the driver enabled the queue")] = False
    desc: Annotated[U64, doc("descriptor table, guest-physical")] = 0
    driver: Annotated[U64, doc("driver area (available ring), guest-physical")] = 0
    device: Annotated[U64, doc("device area (used ring), guest-physical")] = 0
    next_avail: Annotated[U16, doc("index of the next entry of the available ring to take")] = 0
    next_used: Annotated[U16, doc("index of the next entry of the used ring to write")] = 0


class VirtioState(State):
    """Base of every virtio device's State."""

    offered: Annotated[U64, doc("feature bits that the device offers")]
    acked: Annotated[U64, doc("feature bits that the driver accepted")] = 0
    queues: Annotated[list[QueueState], Meta(min_length=1, max_length=QUEUES_MAX)]
    broken: Annotated[bool, doc("the driver broke its rings; nothing is served until it resets the device")] = False


RULES = {
    "virtio.queues": "A device has the queues of its type: a driver finds them by number.",
    "virtio.features": "A driver accepted what it wrote, what was offered, and VIRTIO_F_VERSION_1: FEATURES_OK is refused else.",
    "virtio.queue-size": "A queue's size is a power of two up to what the device offers: a queue is not enabled else.",
    "virtio.status": "The driver's status bits were set in their order: a write that skips a step is not taken.",
    "virtio.broken": "A device that broke says DEVICE_NEEDS_RESET, and no other does: the driver waits for it.",
    "virtio.ring": "Rings in use lie in RAM, aligned: a device that is given others at DRIVER_OK breaks at once.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: VirtioState, component: str, *, queues: int | None = None) -> list[Finding]:
    """Return what in *state* no virtio device could hold, for the section *component*; *queues* is how many it has."""
    findings = []
    if queues is not None and len(state.queues) != queues:
        findings.append(Finding(component, "queues", f"a list of {len(state.queues)}", f"{queues}", "virtio.queues"))
    if state.acked & ~state.offered:
        findings.append(
            Finding(component, "acked", f"{state.acked:#x}", f"within offered {state.offered:#x}", "virtio.features")
        )
    elif state.acked and not state.acked & spec.VIRTIO_F_VERSION_1:
        findings.append(Finding(component, "acked", f"{state.acked:#x}", "0 or with VERSION_1", "virtio.features"))
    for number, queue in enumerate(state.queues):
        for name, value, most in (
            ("max_size", queue.max_size, QUEUE_SIZE_MAX),
            ("size", queue.size, queue.max_size),
        ):
            if not value or value & (value - 1) or value > most:
                path, expected = f"queues[{number}].{name}", f"a power of two <= {most}"
                findings.append(Finding(component, path, str(value), expected, "virtio.queue-size"))
    return findings


def status_findings(status: int, component: str, path: str) -> Iterator[Finding]:
    """Give what is wrong with a device status: bits that mean nothing, or one without the step before it (3.1)."""
    if status & ~spec.STATUS_BITS:
        yield Finding(component, path, f"{status:#x}", f"within {spec.STATUS_BITS:#x}", "virtio.status")
    for step, before in spec.STATUS_STEPS:
        if status & step and before & ~status:
            yield Finding(component, path, f"{status:#x}", f"with {before:#x}, as it has {step:#x}", "virtio.status")


def transport_findings(
    status: int,
    features: Sequence[int],
    component: str,
    path: str,
    device: VirtioState,
    device_component: str,
    ram: Iterable[tuple[int, int]],
) -> Iterator[Finding]:
    """Give where a transport (*component*, its status at *path*) and its device do not agree.

    *features* are what the driver wrote, as two words; *ram* is the guest's, as (gpa, length).
    """
    chosen = features[0] | features[1] << 32 if status & spec.STATUS_FEATURES_OK else 0
    if device.acked != chosen:
        expected = f"{chosen:#x}, as {component} has it"
        yield Finding(device_component, "acked", f"{device.acked:#x}", expected, "virtio.features")
    if device.broken != bool(status & spec.STATUS_DEVICE_NEEDS_RESET):
        word = "with" if device.broken else "without"
        expected = f"{word} DEVICE_NEEDS_RESET, as {device_component} has it"
        yield Finding(component, path, f"{status:#x}", expected, "virtio.broken")
    if status & spec.STATUS_DRIVER_OK and not device.broken:
        yield from _ring_findings(device, device_component, list(ram))


def _ring_findings(device: VirtioState, component: str, ram: list[tuple[int, int]]) -> Iterator[Finding]:
    for number, queue in enumerate(device.queues):
        if not queue.ready:
            continue
        for name, gpa, length, alignment in (
            ("desc", queue.desc, spec.desc_table_len(queue.size), spec.DESC_ALIGN),
            ("driver", queue.driver, spec.avail_len(queue.size), spec.AVAIL_ALIGN),
            ("device", queue.device, spec.used_len(queue.size), spec.USED_ALIGN),
        ):
            if gpa % alignment:
                expected = f"a multiple of {alignment}"
                yield Finding(component, f"queues[{number}].{name}", f"{gpa:#x}", expected, "virtio.ring")
                continue
            for start, span in ram:
                if start <= gpa and gpa + length <= start + span:
                    break
            else:
                expected = f"the start of {length:#x} bytes in RAM"
                yield Finding(component, f"queues[{number}].{name}", f"{gpa:#x}", expected, "virtio.ring")
