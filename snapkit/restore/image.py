"""Read a snapshot file, trusting none of it.

    [ preamble | manifest | sections ... | chunk table | zero padding | memory ]     all in one file, or
    [ preamble | manifest | sections ... | chunk table ] and [ header | zero padding | memory ]

The order of checks is the order in which bytes can be trusted: what the path names, the preamble's digest, then every
length against the file's, then the manifest's digest before it is decoded, then that the parts cover the file without
overlap and with nothing but zeros between, then the chunk table's digest and what it says. A section's digest is checked
when it is read, before it is decompressed or decoded; a chunk's when somebody asks (`Pages`). What is all the same as in a
file that was read before is known by that (`front`).

`Image.describe` is the other way to look at a file: preamble and manifest only, saying what cannot be said or trusted
instead of refusing it.
"""

import os
from typing import NamedTuple, Self

from snapkit.errors import ConfigError, Finding, ImageError
from snapkit.restore.describe import Description, describe
from snapkit.restore.digest import Digester
from snapkit.restore.front import read_front
from snapkit.restore.manifest import Manifest, SectionEntry
from snapkit.restore.pages import Pages, Progress
from snapkit.restore.preamble import (
    MEMORY_ALIGNMENT,
    PREAMBLE_LEN,
    Preamble,
    check_memory_header,
)
from snapkit.restore.source import Source, naming
from snapkit.state import codec
from snapkit.state.schema import KINDS, SectionId, State, versions_of
from snapkit.units import MIB

_WINDOW_MAX = 8 * MIB


class Sections(NamedTuple):
    """What a file's sections decode to, at the versions that they are stored in."""

    states: dict[SectionId, State]
    dropped: list[str]
    """Optional sections that this release does not know, each with the reason, for people."""


class Image:
    """An open snapshot file. Use `open`; it is a context manager. Its fds stay open until `close`."""

    def __init__(self, source: Source, digester: Digester) -> None:
        self._source = source
        self._memory_source = source
        self._digester = digester
        self.path = source.path
        self.front = read_front(source, digester)
        self.preamble: Preamble = self.front.preamble
        self.manifest: Manifest = self.front.manifest
        try:
            self.memory: Pages = self._open_memory()
        except BaseException:
            self._close_memory()
            raise

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, key: bytes | None = None) -> Self:
        """Open the snapshot at *path* read-only and check everything but the contents of sections and memory.

        With a *key* its digests must be keyed with it. Raises ConfigError when there is no such file, ImageError when
        anything about it is wrong.
        """
        digester = Digester(key)
        source = Source(os.fspath(path))
        try:
            with naming(source.path):
                return cls(source, digester)
        except BaseException:
            source.close()
            raise

    @staticmethod
    def describe(path: str | os.PathLike[str], *, key: bytes | None = None) -> Description:
        """Say what can be said about the snapshot at *path* from its preamble and manifest alone."""
        return describe(os.fspath(path), key=key)

    @property
    def keyed(self) -> bool:
        """Whether the file was authenticated with a key; memory is then not to be used before it is verified."""
        return self._digester.keyed

    @property
    def fd(self) -> int:
        """The snapshot file's; memory may be in another one (`Pages.fd`)."""
        return self._source.fd

    @property
    def entries(self) -> tuple[SectionEntry, ...]:
        return self.manifest.sections

    def payload(self, entry: SectionEntry) -> bytes:
        """Return the payload of a section, its digest checked and decompressed.

        Raises ImageError naming the section.
        """
        with naming(self.path):
            return self._payload(entry)

    def _payload(self, entry: SectionEntry) -> bytes:
        stored = self._stored(entry)
        return stored if entry.codec == "raw" else decompress(stored, entry.length, f"section {entry.path}")

    def _stored(self, entry: SectionEntry) -> bytes:
        stored = self._source.read(entry.offset, entry.stored_length, entry.kind)  # that it is there was seen before
        if not self._digester.matches(stored, bytes.fromhex(entry.digest)):
            raise ImageError(f"section {entry.path} does not match its digest: damaged")
        return stored

    def sections(self, *, refuse_unknown: bool = True) -> Sections:
        """Decode every section into a State of the version that it is stored in.

        Raises ImageError for a required section of an unknown kind or a newer version, and for one that is damaged or
        not what its schema says. Optional sections that are unknown are left out and named in `Sections.dropped`; so
        are required ones unless *refuse_unknown*, for whoever only looks.
        """
        states: dict[SectionId, State] = {}
        dropped: list[str] = []
        with naming(self.path):
            for entry in self.manifest.sections:
                kind = entry.kind
                schema = versions_of(kind).get(entry.version) if kind in KINDS else None
                if schema is None:
                    dropped.append(self._unknown(entry, refuse=refuse_unknown))
                    continue
                if entry.required != schema.required:
                    raise ImageError(f"section {entry.path}.required is {entry.required}, must be {schema.required}")
                if entry.length > schema.max_len:
                    raise ImageError(f"section {entry.path} has {entry.length} bytes, {kind} allows {schema.max_len}")
                section = SectionId(kind, entry.instance)
                states[section] = codec.decode(schema, self._payload(entry), where=section)
        return Sections(states, dropped)

    def _unknown(self, entry: SectionEntry, *, refuse: bool) -> str:
        """Say why a section cannot be decoded; *refuse* one that is required, by ImageError."""
        versions = versions_of(entry.kind) if entry.kind in KINDS else {}
        reason = (
            f"section {entry.path} has version {entry.version}, this release knows up to {max(versions)}"
            if versions
            else f"section {entry.path} is of a kind that this release does not know"
        )
        if entry.required and refuse:
            raise ImageError(f"{reason}: it was written by a newer release ({self.preamble.release})")
        return reason

    def verify(self, progress: Progress | None = None) -> list[Finding]:
        """Check every byte that `open` did not: digests of sections and memory. Returns a finding for each damage."""
        findings: list[Finding] = []
        for entry in self.manifest.sections:
            try:
                self._stored(entry)
            except ImageError:
                findings.append(Finding(entry.path, "", "damaged", "what its digest says"))
        return findings + self.memory.verify(progress)

    def close(self) -> None:
        """Close the file; mappings of it stay."""
        self._close_memory()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _close_memory(self) -> None:
        if self._memory_source is not self._source:
            self._memory_source.close()

    def _open_memory(self) -> Pages:
        source, table = self._source, self.front.table
        if self.preamble.separate_memory:
            source = self._memory_source = self._open_separate()
        for gap in table.gaps:
            if source.read(gap.offset, gap.length, gap.what) != bytes(gap.length):
                raise ImageError(f"{gap.what}, {gap.length} bytes at {gap.offset}, is not zero")
        return Pages(source.fd, source.path, self.manifest.memory.regions, table, self._digester)

    def _open_separate(self) -> Source:
        separate = self.manifest.memory.separate
        if separate is None:
            raise ImageError("its preamble says that memory is in a separate file, its manifest does not")
        if os.path.isabs(separate.path) or "\0" in separate.path:
            raise ImageError(f"memory.separate.path is {separate.path!r}, must be relative to the snapshot")
        if separate.chunk_table_digest != self.preamble.chunks_digest.hex():
            raise ImageError("memory.separate.chunk_table_digest is not the digest of the chunk table")
        path = os.path.join(os.path.dirname(self.path), separate.path)
        try:
            source = Source(path)
        except ConfigError as error:
            raise ImageError(f"its separate memory file is missing: {error}") from error
        try:
            with naming(path):
                self._check_separate(source, separate.length)
        except BaseException:
            source.close()
            raise
        return source

    def _check_separate(self, source: Source, length: int) -> None:
        end = self.preamble.memory_offset + self.preamble.memory_len
        if self.preamble.memory_offset != MEMORY_ALIGNMENT or length != end:
            raise ImageError(
                f"memory of {length} bytes is recorded, preamble says {self.preamble.memory_offset} to {end}"
            )
        if source.length != length:
            raise ImageError(f"it has {source.length} bytes, must have {length}")
        check_memory_header(source.head[:PREAMBLE_LEN], self.preamble, self._digester)
        gap_len = MEMORY_ALIGNMENT - PREAMBLE_LEN
        if source.read(PREAMBLE_LEN, gap_len, "the padding after the header") != bytes(gap_len):
            raise ImageError("the padding after its header is not zero")


def decompress(stored: bytes, length: int, what: str) -> bytes:
    """Decompress a section, *what*: exactly one frame of exactly *length* bytes, which the frame itself must announce."""
    import zstandard

    try:
        announced = zstandard.frame_content_size(stored)
        if announced != length:
            raise ImageError(f"{what} decompresses to {announced} bytes, must be {length}")
        decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
        payload = decompressor.decompress(stored, max_output_size=length, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ImageError(f"{what} cannot be decompressed: {error}") from error
    if len(payload) != length:
        raise ImageError(f"{what} decompresses to {len(payload)} bytes, must be {length}")
    return payload
