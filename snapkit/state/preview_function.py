"""The kind preview-function: a PCI function that cannot be about to move, of virtio-pci-preview-1 to -4, a model.

`snapkit.state.preview_converters` tells the history that this belongs to. Base address registers are not in it: they are
taken to say where each BAR is decoded. That loses what a guest has written while decoding was off, a move that waits or
the probe of a length, so such a machine could not be saved. From virtio-pci-preview-5 on it is a pci-function, which has
the registers as the guest wrote them.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from snapkit.state.pci_function import CONFIG_LEN, BarState
from snapkit.state.schema import State, doc, schema


@schema("preview-function", version=1, max_len=4096)
class PreviewFunctionState(State):
    """One function, always function 0 of its slot."""

    slot: Annotated[int, Meta(ge=0, le=31)]
    config: Annotated[
        bytes,
        Meta(min_length=CONFIG_LEN, max_length=CONFIG_LEN),
        doc("configuration space; zero where base address registers are"),
    ]
    bars: Annotated[list[BarState], Meta(max_length=6)] = msgspec.field(default_factory=list)
