"""The kind virtio-rng: an entropy device. VIRTIO 1.3, section 5.4: one queue, nothing else."""

from snapkit.state.schema import schema
from snapkit.state.virtio import VirtioState


@schema("virtio-rng", version=1, max_len=2048)
class VirtioRngState(VirtioState):
    """Features and the request queue."""
