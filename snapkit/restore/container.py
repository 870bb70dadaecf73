"""How the parts of a snapshot file lie in it: in one order, without overlap, and nothing but zeros between them."""

from collections.abc import Sequence
from typing import NamedTuple

from snapkit.errors import ImageError
from snapkit.restore.digest import Digester
from snapkit.restore.manifest import MANIFEST_LEN_MAX, Manifest, SectionEntry, decode_manifest
from snapkit.restore.preamble import MEMORY_ALIGNMENT, PREAMBLE_LEN, Preamble
from snapkit.restore.source import Source


class Extent(NamedTuple):
    """A part of a file."""

    offset: int
    length: int
    what: str


Part = tuple[int, int, str | SectionEntry]
"""Offset and length of a part of a file, and what it is. Plain, because every new file has one made for every section."""


def find_gaps(parts: Sequence[Part], file_len: int) -> list[Extent]:
    """Return what lies between *parts*, which must be in file order and reach from 0 to *file_len*.

    Raises ImageError when two overlap, one lies outside, or a gap is longer than alignment explains: bytes that no
    entry claims.
    """
    gaps: list[Extent] = []
    reached = 0
    before: str | SectionEntry = "the start"
    for offset, length, what in parts:
        if offset != reached:
            if offset < reached:
                end = f"{reached}: end of {_named(before)}"
                raise ImageError(f"{_named(what)} starts at {offset}, must be at or after {end}")
            if offset - reached >= MEMORY_ALIGNMENT:
                raise ImageError(f"bytes {reached} to {offset}, before {_named(what)}, are claimed by nothing")
            gaps.append(Extent(reached, offset - reached, f"the padding before {_named(what)}"))
        reached, before = offset + length, what
        if reached > file_len:
            raise ImageError(f"{_named(what)} ends at {reached}, the file has only {file_len} bytes: truncated")
    if reached != file_len:
        raise ImageError(f"bytes {reached} to {file_len}, after {_named(before)}, are claimed by nothing")
    return gaps


def _named(what: str | SectionEntry) -> str:
    return what if isinstance(what, str) else f"section {what.path}"


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


def parts_of(preamble: Preamble, manifest: Manifest) -> list[Part]:
    """Return the parts of the snapshot file in the order in which they must lie."""
    parts: list[Part] = [
        (0, PREAMBLE_LEN, "the preamble"),
        (preamble.manifest_offset, preamble.manifest_len, "the manifest"),
    ]
    parts += [(entry.offset, entry.stored_length, entry) for entry in manifest.sections]
    parts.append((preamble.chunks_offset, preamble.chunks_len, "the chunk table"))
    if not preamble.separate_memory:
        parts.append((preamble.memory_offset, preamble.memory_len, "memory"))
    return parts
