"""The kind virtio-block: a disk as the guest sees it, and which files it was, so that a restore can tell them again.

VIRTIO 1.3, section 5.2. Requests in flight are no state: they are finished before a save. Memory restored over a disk
that has moved on destroys the guest's file systems, so every image is recorded with what betrays a change.
"""

from typing import Annotated, Literal

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state import rate_limiter, virtio
from snapkit.state.rate_limiter import RateLimiterState
from snapkit.state.schema import I64, U8, U32, U64, State, doc, schema
from snapkit.state.spec.virtio_block import ID_LEN, SECTOR_LEN
from snapkit.state.virtio import VirtioState

LAYERS_MAX = 8
CAPACITY_MAX = 1 << 54
"""In sectors: every byte offset stays below 2^63, where file offsets end."""
_BLK_SIZE_MAX = 4096

FilePath = Annotated[str, Meta(min_length=1, max_length=4096)]


class LayerState(State):
    """One file of a disk, as it was when the machine was saved. A block device has neither mtime nor inode: both are 0."""

    path: Annotated[FilePath, doc("as it was given: a relative path stays relative")]
    format: Annotated[
        Literal["raw", "overlay"], doc("an image byte for byte, or what was written over the layer below")
    ]
    length: Annotated[U64, doc("length of the file in bytes")]
    mtime_ns: Annotated[I64, doc("time of the last change of its contents, ns since 1970")]
    inode: U64


class DiskHostState(State):
    """The host end of a disk: its files, the lowest first; only the last is ever written."""

    layers: Annotated[list[LayerState], Meta(min_length=1, max_length=LAYERS_MAX)]
    readonly: Annotated[bool, doc("no file is written; a guest that may not know it gets errors")]


@schema("virtio-block", version=1, max_len=192 << 10)
class VirtioBlockState(VirtioState):
    """Features, the request queue, what the configuration space says, the serial number and the host's files."""

    capacity: Annotated[U64, doc("sectors of 512 bytes")]
    seg_max: Annotated[U32, doc("data descriptors that a request may have")]
    blk_size: Annotated[U32, doc("block size that the guest is told, bytes")] = SECTOR_LEN
    max_discard_sectors: U32 = 0
    max_discard_seg: U32 = 0
    discard_sector_alignment: U32 = 0
    max_write_zeroes_sectors: U32 = 0
    max_write_zeroes_seg: U32 = 0
    write_zeroes_may_unmap: U8 = 0
    serial: Annotated[bytes, Meta(max_length=ID_LEN), doc("what VIRTIO_BLK_T_GET_ID gives, without its padding")] = b""
    limiter: RateLimiterState
    host: DiskHostState


RULES = {
    **virtio.RULES,
    **rate_limiter.RULES,
    "virtio-block.queues": "A disk has one queue.",
    "virtio-block.capacity": "A disk ends where file offsets end, or before.",
    "virtio-block.blk-size": "A block is a power of two from a sector to a page.",
    "virtio-block.seg-max": "A request may have a data descriptor.",
    "virtio-block.serial": "The serial number has no zero byte: one would end it.",
    "virtio-block.layers": "Overlays lie over one raw image, and paths are paths: the host's files are found by them.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: VirtioBlockState, component: str) -> list[Finding]:
    """Return what in *state* no disk could hold, for the section *component*."""
    findings = virtio.invariants(state, component) + rate_limiter.invariants(state.limiter, component, "limiter")

    def wrong(path: str, value: object, expected: str, rule: str) -> None:
        findings.append(Finding(component, path, str(value), expected, f"virtio-block.{rule}"))

    if len(state.queues) != 1:
        wrong("queues", f"a list of {len(state.queues)}", "one queue", "queues")
    if state.capacity > CAPACITY_MAX:
        wrong("capacity", state.capacity, f"at most {CAPACITY_MAX} sectors", "capacity")
    if not SECTOR_LEN <= state.blk_size <= _BLK_SIZE_MAX or state.blk_size & (state.blk_size - 1):
        wrong("blk_size", state.blk_size, f"a power of two from {SECTOR_LEN} to {_BLK_SIZE_MAX}", "blk-size")
    if not state.seg_max:
        wrong("seg_max", 0, "at least 1", "seg-max")
    if b"\0" in state.serial:
        wrong("serial", state.serial, "free of zero bytes, which pad it", "serial")
    for number, layer in enumerate(state.host.layers):
        wanted = "overlay" if number else "raw"
        if layer.format != wanted:
            expected = f"{wanted}: overlays lie over one raw image"
            wrong(f"host.layers[{number}].format", layer.format, expected, "layers")
        if "\0" in layer.path:
            wrong(f"host.layers[{number}].path", repr(layer.path), "free of zero bytes", "layers")
    return findings
