"""How the parts of a snapshot file lie in it: in one order, without overlap, and nothing but zeros between them."""

from collections.abc import Sequence
from typing import NamedTuple

from snapkit.errors import ImageError
from snapkit.restore.digest import Digester
from snapkit.restore.manifest import MANIFEST_LEN_MAX, Manifest, decode_manifest
from snapkit.restore.preamble import MEMORY_ALIGNMENT, PREAMBLE_LEN, Preamble
from snapkit.restore.source import Source


class Extent(NamedTuple):
    """A part of a file."""

    offset: int
    length: int
    what: str


def find_gaps(extents: Sequence[Extent], file_len: int) -> list[Extent]:
    """Return what lies between *extents*, which must be in file order and reach from 0 to *file_len*.

    Raises ImageError when two overlap, one lies outside, or a gap is longer than alignment explains: bytes that no
    entry claims.
    """
    gaps: list[Extent] = []
    reached, before = 0, "the start"
    for extent in extents:
        if extent.offset < reached:
            raise ImageError(f"{extent.what} starts at {extent.offset}, must be at or after {reached}: end of {before}")
        if extent.offset - reached >= MEMORY_ALIGNMENT:
            raise ImageError(f"bytes {reached} to {extent.offset}, before {extent.what}, are claimed by nothing")
        if extent.offset > reached:
            gaps.append(Extent(reached, extent.offset - reached, f"the padding before {extent.what}"))
        reached, before = extent.offset + extent.length, extent.what
        if reached > file_len:
            raise ImageError(f"{extent.what} ends at {reached}, the file has only {file_len} bytes: truncated")
    if reached != file_len:
        raise ImageError(f"bytes {reached} to {file_len}, after {before}, are claimed by nothing")
    return gaps


def read_manifest(source: Source, preamble: Preamble, digester: Digester | None) -> Manifest:
    """Read the manifest that *preamble* points to; without a *digester* its digest is not checked."""
    if preamble.manifest_len > MANIFEST_LEN_MAX:
        raise ImageError(f"the manifest has {preamble.manifest_len} bytes, must be at most {MANIFEST_LEN_MAX}")
    payload = source.read(preamble.manifest_offset, preamble.manifest_len, "the manifest")
    if digester is not None and not digester.matches(payload, preamble.manifest_digest):
        raise ImageError("the manifest does not match its digest: damaged")
    manifest = decode_manifest(payload)
    if preamble.separate_memory != (manifest.memory.separate is not None):
        raise ImageError("preamble and manifest disagree on whether memory is in a separate file")
    return manifest


def extents(preamble: Preamble, manifest: Manifest) -> list[Extent]:
    """Return the parts of the snapshot file in the order in which they must lie."""
    parts = [
        Extent(0, PREAMBLE_LEN, "the preamble"),
        Extent(preamble.manifest_offset, preamble.manifest_len, "the manifest"),
        *(Extent(entry.offset, entry.stored_length, f"section {entry.path}") for entry in manifest.sections),
        Extent(preamble.chunks_offset, preamble.chunks_len, "the chunk table"),
    ]
    if not preamble.separate_memory:
        parts.append(Extent(preamble.memory_offset, preamble.memory_len, "memory"))
    return parts
