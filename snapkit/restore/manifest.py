"""The manifest: canonical JSON that names every section and says where RAM lies.

Canonical means sorted keys and no spaces; a manifest that would be written differently is refused. Its length is
bounded before it is decoded and its depth by the types here, which know no field that they do not name. *machine* is a
copy of some facts for people: what counts is in the sections.
"""

import re
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from snapkit.errors import ImageError
from snapkit.units import CHUNK_LEN, MIB, PAGE_LEN

MANIFEST_LEN_MAX = MIB
SECTIONS_MAX = 4096
SECTION_LEN_MAX = 16 * MIB
"""Of one section, and of all together once decompressed: a few megabytes must not become gigabytes."""
RAM_MAX = 1 << 40
"""Of all regions together: the chunk table is read whole, and a sparse file costs nothing to make as long as it likes."""
REGIONS_MAX = 32
PHYSICAL_MAX = 1 << 52

Name = Annotated[str, Meta(min_length=1, max_length=32)]
Length = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
HexDigest = Annotated[str, Meta(min_length=64, max_length=64)]
Fact = Annotated[str, Meta(max_length=256)] | Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | bool
Facts = Annotated[dict[Annotated[str, Meta(max_length=64)], Fact], Meta(max_length=64)]


class SectionEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one section lies. *digest* is over the stored bytes, *length* that of the payload once decompressed."""

    kind: Name
    instance: Name
    version: Annotated[int, Meta(ge=1, le=0xFFFF_FFFF)]
    required: bool
    codec: Literal["raw", "zstd"]
    offset: Length
    stored_length: Length
    length: Length
    digest: HexDigest

    @property
    def path(self) -> str:
        """``kind/instance``."""
        return f"{self.kind}/{self.instance}"


class SeparateMemory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A separate memory file: its path from the snapshot's directory, its length, the chunk table's digest."""

    path: Annotated[str, Meta(min_length=1, max_length=4096)]
    length: Length
    chunk_table_digest: HexDigest


class Region(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A run of RAM."""

    gpa: Length
    length: Length


class MemoryEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Guest RAM: regions in address order; every region is cut into chunks from its own start."""

    regions: Annotated[tuple[Region, ...], Meta(max_length=REGIONS_MAX)]
    chunk_length: int = CHUNK_LEN
    separate: SeparateMemory | None = None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole manifest, as values."""

    machine: Facts
    memory: MemoryEntry
    sections: Annotated[tuple[SectionEntry, ...], Meta(max_length=SECTIONS_MAX)]


_NAME = "[a-z0-9][a-z0-9_-]{0,31}"
_name, _names = re.compile(_NAME), re.compile(f"(?:{_NAME}/)*")
_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Manifest)


def encode_manifest(manifest: Manifest) -> bytes:
    """Write *manifest* in its one canonical form."""
    return _encoder.encode(manifest)


def decode_manifest(payload: bytes) -> Manifest:
    """Read a manifest.

    Raises ImageError, with the place, when it is too long, not JSON, not canonical, or says something impossible.
    """
    if len(payload) > MANIFEST_LEN_MAX:
        raise ImageError(f"the manifest has {len(payload)} bytes, must be at most {MANIFEST_LEN_MAX}")
    try:
        manifest = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ImageError(f"the manifest cannot be read: {error}") from error
    if _encoder.encode(manifest) != payload:
        raise ImageError("the manifest is not in canonical form (sorted keys, no spaces, no second spelling)")
    _check_spelling(manifest)
    _check_regions(manifest.memory)
    total = 0
    seen: set[tuple[str, str]] = set()
    for entry in manifest.sections:
        length, stored_length = entry.length, entry.stored_length
        total += length
        seen.add((entry.kind, entry.instance))
        if length > SECTION_LEN_MAX or stored_length > SECTION_LEN_MAX:
            longest = max(length, stored_length)
            raise ImageError(f"section {entry.path} has {longest} bytes, must have at most {SECTION_LEN_MAX}")
        if length != stored_length and entry.codec == "raw":
            raise ImageError(f"section {entry.path} is stored raw in {stored_length} bytes, must be its {length}")
    if len(seen) != len(manifest.sections):
        raise ImageError(f"section {_twice(manifest.sections)} is there twice")
    if total > SECTION_LEN_MAX:
        raise ImageError(f"sections have {total} bytes together, must have at most {SECTION_LEN_MAX}")
    return manifest


def _twice(entries: tuple[SectionEntry, ...]) -> str:
    """Return the path of the first of *entries* that there was before."""
    paths = [entry.path for entry in entries]
    return next(path for number, path in enumerate(paths) if path in paths[:number])


def _check_spelling(manifest: Manifest) -> None:
    """Check names and digests, all in one go: a pattern in each one's type takes most of the time of decoding."""
    entries = manifest.sections
    names = "".join([f"{entry.kind}/{entry.instance}/" for entry in entries])
    digests = "".join([entry.digest for entry in entries])
    if names.count("/") == 2 * len(entries) and _names.fullmatch(names) and _is_hex(digests):
        return
    for number, entry in enumerate(entries):
        for field, value in (("kind", entry.kind), ("instance", entry.instance)):
            if not _name.fullmatch(value):
                raise ImageError(f"sections[{number}].{field} is {value!r}, must match {_NAME}")
        if not _is_hex(entry.digest):
            raise ImageError(f"sections[{number}].digest is {entry.digest!r}, must be lower-case hexadecimal digits")


def _is_hex(text: str) -> bool:
    try:
        return bytes.fromhex(text).hex() == text
    except ValueError:
        return False


def _check_regions(memory: MemoryEntry) -> None:
    if memory.chunk_length != CHUNK_LEN:
        raise ImageError(f"memory.chunk_length is {memory.chunk_length}, must be {CHUNK_LEN}")
    free_from = 0
    for index, region in enumerate(memory.regions):
        where = f"memory.regions[{index}]"
        if region.gpa % PAGE_LEN or region.length % PAGE_LEN or not region.length:
            raise ImageError(f"{where} is {region.gpa:#x} + {region.length:#x}, must be whole pages")
        if region.gpa < free_from:
            raise ImageError(f"{where} starts at {region.gpa:#x}, must be at or above {free_from:#x}: the one before")
        free_from = region.gpa + region.length
        if free_from > PHYSICAL_MAX:
            raise ImageError(f"{where} ends at {free_from:#x}, must be at most {PHYSICAL_MAX:#x}")
    if (total := sum(region.length for region in memory.regions)) > RAM_MAX:
        raise ImageError(f"memory.regions have {total} bytes together, must have at most {RAM_MAX}")
