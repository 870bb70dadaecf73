"""The kind preview-rng: a source of random bytes that activates itself. Of virtio-pci-preview-1 and -2, a model.

`snapkit.state.preview_converters` tells the history that this belongs to. From virtio-pci-preview-3 on it is a
virtio-rng, and whether it is active is its transport's to know.
"""

from typing import Annotated

from snapkit.state.schema import State, doc, schema
from snapkit.state.virtio_rng import VirtioRngState


@schema("preview-rng", version=1, max_len=2048)
class PreviewRngState(State):
    """The device, and that it serves its queue."""

    activated: Annotated[bool, doc("the device serves its queues; what the transport has as DRIVER_OK, once more")]
    device: VirtioRngState
