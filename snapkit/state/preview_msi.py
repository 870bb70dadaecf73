"""The kind preview-msi: the vectors of one function as a map, of virtio-pci-preview-1 to -4, a model.

`snapkit.state.preview_converters` tells the history that this belongs to. The map is one from a vector's number to its
message, and is written as a hash table gives it out: in no order. All vectors are in it. From virtio-pci-preview-5 on it is
a pci-msix, the list that the guest's table is.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.state.pci_msix import VECTORS_MAX
from snapkit.state.schema import U16, U32, U64, State, doc, schema


class MsiVectorState(State):
    """A key of the map, *vector*, and what it is mapped to."""

    vector: Annotated[U16, doc("number of the vector: entry of the MSI-X table")]
    gsi: U16
    address: U64
    data: U32
    masked: Annotated[bool, doc("its own mask bit; that of the function is in configuration space")]
    pending: Annotated[bool, doc("its pending bit")]


@schema("preview-msi", version=1, max_len=8192)
class PreviewMsiState(State):
    """The vectors, in no order."""

    vectors: Annotated[list[MsiVectorState], Meta(min_length=1, max_length=VECTORS_MAX)]
