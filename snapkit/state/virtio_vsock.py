"""The kind virtio-vsock: a socket device. VIRTIO 1.3, section 5.10: queues rx, tx, event.

Connections are not state: their other ends are sockets of the host that took the snapshot. A device that comes from a
snapshot tells the driver so by a transport reset event, upon which the guest's connections fail and its listeners stay.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state import virtio
from snapkit.state.schema import State, doc, schema
from snapkit.state.spec.virtio_vsock import GUEST_CID_MAX, GUEST_CID_MIN

QUEUES = 3
UDS_MAX = 107
"""What a Unix socket's address holds, unix(7)."""


class VsockHostState(State):
    """What a restore has to know of the host end; `uds=` takes another."""

    uds: Annotated[str, Meta(min_length=1, max_length=UDS_MAX), doc("path of the listening Unix socket, as given")]


@schema("virtio-vsock", version=1, max_len=4096)
class VirtioVsockState(virtio.VirtioState):
    """Features, queues and the guest's address."""

    cid: Annotated[int, Meta(ge=GUEST_CID_MIN, le=GUEST_CID_MAX), doc("context id of the guest")]
    reset_pending: Annotated[bool, doc("the driver is yet to be told that every connection is gone")] = False
    host: VsockHostState


RULES = {
    **virtio.RULES,
    "virtio-vsock.queues": "A socket device has three queues: rx, tx, event.",
    "virtio-vsock.uds": "The host's socket has a path that can be bound.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: VirtioVsockState, component: str) -> list[Finding]:
    """Return what in *state* no socket device could hold, for the section *component*."""
    findings = virtio.invariants(state, component)
    if len(state.queues) != QUEUES:
        found = f"{len(state.queues)} queues"
        findings.append(Finding(component, "queues", found, f"{QUEUES}: rx, tx and event", "virtio-vsock.queues"))
    if "\0" in state.host.uds:
        findings.append(Finding(component, "host.uds", repr(state.host.uds), "a path", "virtio-vsock.uds"))
    return findings
