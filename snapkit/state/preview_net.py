"""The kind preview-net: a network card that activates itself. Of the releases virtio-pci-preview-1 and -2, a model.

`snapkit.state.preview_converters` tells the history that this belongs to. Version 1 holds the receive buffers that the
card had taken from its ring and parsed before a packet came for them; version 2 is of a card that gives them back before
it is saved (queues: VIRTIO 1.3, section 2.7; the card: 5.1). Nothing of a parsed buffer is lost so:
it lies in guest memory and is parsed again, which is why the upgrade only rolls `next_avail` back.
"""

from typing import Annotated

from msgspec import Meta
from msgspec.structs import replace

from snapkit.state.converters import Refuse, downgrade, upgrade
from snapkit.state.schema import U16, U32, State, doc, schema
from snapkit.state.spec.virtio_net import RX
from snapkit.state.virtio_net import VirtioNetState

PARSED_MAX = 256


class ParsedChainState(State):
    """A chain of the receive queue that was taken and not used yet."""

    head: Annotated[U16, doc("index of its first descriptor")]
    length: Annotated[U32, doc("bytes that it has room for")]


@schema("preview-net", version=1, max_len=16 << 10)
class PreviewNetState1(State):
    """The card, that it serves its queues, and what it has parsed ahead."""

    activated: Annotated[bool, doc("the device serves its queues; what the transport has as DRIVER_OK, once more")]
    device: VirtioNetState
    parsed: Annotated[
        list[ParsedChainState], Meta(max_length=PARSED_MAX), doc("in the order of the ring, oldest first")
    ]


@schema("preview-net", version=2, max_len=4096)
class PreviewNetState(State):
    """The card, and that it serves its queues; its receive buffers are all in their ring."""

    activated: Annotated[bool, doc("the device serves its queues; what the transport has as DRIVER_OK, once more")]
    device: VirtioNetState


@upgrade(
    "preview-net",
    1,
    changes={
        "parsed": "flushed: parsed receive chains go back into their ring and are parsed again",
        "device.queues[].next_avail": "of the receive queue: rolled back by as many chains as were parsed",
    },
)
def _flush(old: PreviewNetState1) -> PreviewNetState:
    queues = list(old.device.queues)
    queues[RX] = replace(queues[RX], next_avail=(queues[RX].next_avail - len(old.parsed)) & 0xFFFF)
    return PreviewNetState(activated=old.activated, device=replace(old.device, queues=queues))


@downgrade("preview-net", 2, changes={"parsed": "none: a card may parse nothing ahead"})
def _parse_nothing(new: PreviewNetState, _refuse: Refuse) -> PreviewNetState1:
    return PreviewNetState1(activated=new.activated, device=new.device, parsed=[])
