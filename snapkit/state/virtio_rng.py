"""The kind virtio-rng: an entropy device. VIRTIO 1.3, section 5.4: one queue, nothing else."""

from snapkit.errors import Finding
from snapkit.state import virtio
from snapkit.state.schema import schema
from snapkit.state.virtio import VirtioState

QUEUES = 1


@schema("virtio-rng", version=1, max_len=2048)
class VirtioRngState(VirtioState):
    """Features and the request queue."""


RULES = virtio.RULES


def invariants(state: VirtioRngState, component: str) -> list[Finding]:
    """Return what in *state* no entropy device could hold, for the section *component*."""
    return virtio.invariants(state, component, queues=QUEUES)
