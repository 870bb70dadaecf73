"""The kind preview-device-manager: the allocator of virtio-pci-preview-1 to -3, a model.

`snapkit.state.preview_converters` tells the history that this belongs to. The manager of devices owns pools and knows
what of them is taken, not by whom: a restore asks for each device's old range again and hopes to get just that one.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.state.resource_allocator import CLAIMS_MAX, Pool
from snapkit.state.schema import U64, State, doc, schema


class TakenState(State):
    """Numbers or bytes that are given out."""

    start: U64
    length: U64


class ManagedPoolState(State):
    """What there is to be had, *length* numbers or bytes from *start* on, and what of it is given out."""

    pool: Pool
    start: U64
    length: U64
    taken: Annotated[list[TakenState], Meta(max_length=CLAIMS_MAX), doc("sorted by start; whose it is nobody says")]


@schema("preview-device-manager", version=1, max_len=512 << 10)
class PreviewDeviceManagerState(State):
    """Pools by name."""

    pools: Annotated[list[ManagedPoolState], Meta(max_length=8)]
