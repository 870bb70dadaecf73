"""The kind preview-block: a disk that activates itself. Of the releases virtio-pci-preview-1 and -2, a model.

`snapkit.state.preview_converters` tells the history that this belongs to. From virtio-pci-preview-3 on a disk is a
virtio-block, and whether it is active is its transport's to know.
"""

from typing import Annotated

from snapkit.state.schema import State, doc, schema
from snapkit.state.virtio_block import VirtioBlockState


@schema("preview-block", version=1, max_len=256 << 10)
class PreviewBlockState(State):
    """The disk, and that it serves its queues."""

    activated: Annotated[bool, doc("the device serves its queues; what the transport has as DRIVER_OK, once more")]
    device: VirtioBlockState
