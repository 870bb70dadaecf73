"""Write a snapshot file: all of it or nothing, as fast as the disk takes it.

Memory is written first, because its digests go into the chunk table, whose digest goes into the preamble. Where
everything lies is known before that: the lengths of manifest and table do not depend on the digests in them. (With a
separate memory file the manifest holds that file's length, and is made after it.)

Where memory comes from is not the writer's business: RAM of this process (`capture`), or another file's (`carry`).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec

from snapkit import host
from snapkit.errors import ConfigError, ImageError, InternalError
from snapkit.restore.atomic import TemporaryFile, check_target
from snapkit.restore.chunks import ENTRY_LEN, count_chunks
from snapkit.restore.digest import Digester
from snapkit.restore.manifest import (
    Fact,
    Manifest,
    MemoryEntry,
    Region,
    SectionEntry,
    SeparateMemory,
    decode_manifest,
    encode_manifest,
)
from snapkit.restore.orphans import remove_memory_of
from snapkit.restore.preamble import (
    FLAG_SEPARATE_MEMORY,
    ID_LEN,
    MEMORY_ALIGNMENT,
    PREAMBLE_LEN,
    ZERO_ID,
    MemoryHeader,
    Preamble,
    unpack_preamble,
)
from snapkit.state.codec import encode
from snapkit.state.schema import SectionId, State, schema_of
from snapkit.units import align_up

_PLACE_ATTEMPTS = 8
Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


class Memory(Protocol):
    """What gives a file its memory, once. *written* (bytes) and *raw_chunks* say afterwards what it came to."""

    regions: tuple[Region, ...]
    raw_chunks: int
    written: int

    def write(self, fd: int, offset: int, digester: Digester, progress: Progress | None = None) -> tuple[bytes, int]:
        """Write memory to *fd* from *offset* on; returns the chunk table and the end of memory in the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteResult:
    """What was written."""

    path: str
    memory_path: str | None
    snapshot_id: bytes
    length: int
    """Of the snapshot file, holes included."""
    memory_len: int
    """Of memory in its file, holes included."""
    written: int
    """Bytes of memory that had to be written: pages of zeros are not, nor what two files share."""
    chunks: int
    raw_chunks: int


def memory_name(path: str | os.PathLike[str], snapshot_id: bytes) -> str:
    """Return the name that the separate memory file of the snapshot at *path* gets."""
    return f"{os.fspath(path).removesuffix('.snap')}.{snapshot_id.hex()}.mem"


def write_image(
    path: str | os.PathLike[str],
    *,
    sections: Mapping[SectionId, State],
    memory: Memory,
    architecture: int,
    release: str,
    machine_id: bytes,
    snapshot_id: bytes | None = None,
    parent_id: bytes = ZERO_ID,
    facts: Mapping[str, Fact] | None = None,
    created_ns: int | None = None,
    producer: str = "snapkit",
    host_kernel: str | None = None,
    compress: bool = False,
    key: bytes | None = None,
    memory_path: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    captured: Callable[[], None] | None = None,
) -> WriteResult:
    """Write a snapshot to *path*, replacing what is there only once all of it is on the disk.

    *facts* go into the manifest for people. With *key* all digests are keyed. With *memory_path* memory goes into that
    file, which must not exist (`memory_name` gives the usual name). *captured* is called as soon as guest memory is no
    longer looked at, before the disk has it all: a paused guest may go on then.

    Raises ConfigError for what cannot be written so, HostError when the host fails; then *path* is as it was (or, when
    only the last step failed, the sync of its directory, whole and new) and nothing else is left behind.
    """
    target = os.fspath(path)
    digester = Digester(key)
    parts = _Parts(sections, facts or {}, digester, compress=compress)
    separate = None if memory_path is None else os.fspath(memory_path)
    preamble = Preamble(
        architecture=architecture,
        digest_algorithm=digester.algorithm,
        flags=0 if separate is None else FLAG_SEPARATE_MEMORY,
        release=release,
        machine_id=machine_id,
        created_ns=host.realtime_ns() if created_ns is None else created_ns,
        parent_id=parent_id,
        snapshot_id=host.urandom(ID_LEN) if snapshot_id is None else snapshot_id,
        producer=producer,
        host_kernel=host.kernel_release() if host_kernel is None else host_kernel,
        manifest_offset=PREAMBLE_LEN,
        manifest_len=0,
        manifest_digest=b"",
        chunks_offset=0,
        chunks_len=count_chunks(memory.regions) * ENTRY_LEN,
        chunks_digest=b"",
        memory_offset=MEMORY_ALIGNMENT,
        memory_len=0,
    )
    _check(preamble, digester)
    check_target(target)
    if separate is None:
        with TemporaryFile(target, bury=remove_memory_of) as snap:
            end_of_sections = parts.place(MemoryEntry(regions=memory.regions))
            start = align_up(end_of_sections + preamble.chunks_len, MEMORY_ALIGNMENT)
            table, end = memory.write(snap.fd, start, digester, progress)
            if captured is not None:
                captured()
            preamble = _with(preamble, memory_offset=start, memory_len=end - start, chunks_digest=digester.of(table))
            host.ftruncate(snap.fd, end)
            head = parts.head(preamble, table)
            host.pwrite(snap.fd, head, 0)
            snap.commit()
        length = end
    else:
        # Both temporaries go by the snapshot's name, so that its next writer finds what a killed one left of either.
        # The snapshot's comes first: what is left of it names the memory file that is to go with it.
        with (
            TemporaryFile(target, bury=remove_memory_of) as snap,
            TemporaryFile(separate, stem=os.path.basename(target), bury=remove_memory_of) as pages,
        ):
            if host.exists(separate):
                raise ConfigError(f"{separate} exists already, and is never overwritten")
            table, end = memory.write(pages.fd, MEMORY_ALIGNMENT, digester, progress)
            if captured is not None:
                captured()
            preamble = _with(preamble, memory_len=end - MEMORY_ALIGNMENT, chunks_digest=digester.of(table))
            host.ftruncate(pages.fd, end)
            host.pwrite(pages.fd, _header_of(preamble).pack(digester), 0)
            recorded = SeparateMemory(
                path=_relative(separate, target), length=end, chunk_table_digest=preamble.chunks_digest.hex()
            )
            parts.place(MemoryEntry(regions=memory.regions, separate=recorded))
            head = parts.head(preamble, table)
            host.pwrite(snap.fd, head, 0)
            snap.sync()
            try:
                pages.commit_new()
                snap.commit()
            except BaseException:
                if pages.committed and not snap.committed:
                    pages.withdraw()
                raise
        length = len(head)
    return WriteResult(
        path=target,
        memory_path=separate,
        snapshot_id=preamble.snapshot_id,
        length=length,
        memory_len=preamble.memory_len,
        written=memory.written,
        chunks=count_chunks(memory.regions),
        raw_chunks=memory.raw_chunks,
    )


class _Parts:
    """Manifest and sections, and where they lie."""

    def __init__(
        self, sections: Mapping[SectionId, State], facts: Mapping[str, Fact], digester: Digester, *, compress: bool
    ) -> None:
        self._digester = digester
        self._facts = dict(facts)
        self._entries: list[SectionEntry] = []
        self._stored: list[bytes] = []
        self._text = b""
        for name, state in sections.items():
            schema = schema_of(state)
            if schema.kind != name.kind:
                raise ConfigError(f"section {name} holds a {schema.kind}")
            payload = encode(state)
            stored = _compress(payload) if compress else payload
            smaller = len(stored) < len(payload)
            self._stored.append(stored if smaller else payload)
            self._entries.append(
                SectionEntry(
                    kind=name.kind,
                    instance=name.instance,
                    version=schema.version,
                    required=schema.required,
                    codec="zstd" if smaller else "raw",
                    offset=0,
                    stored_length=len(self._stored[-1]),
                    length=len(payload),
                    digest=digester.of(self._stored[-1]).hex(),
                )
            )

    def place(self, memory: MemoryEntry) -> int:
        """Give every section its place after the manifest and return where they end.

        The manifest holds the places, and its length moves them: a larger number may take one more digit. So the
        placing is repeated until it moves no more; it only ever moves up, by a digit or two.
        """
        start = PREAMBLE_LEN
        for _attempt in range(_PLACE_ATTEMPTS):
            entries, at = [], start
            for entry in self._entries:
                entries.append(msgspec.structs.replace(entry, offset=at))
                at += entry.stored_length
            manifest = Manifest(machine=self._facts, memory=memory, sections=tuple(entries))
            try:
                self._text = encode_manifest(manifest)
                decode_manifest(self._text)
            except (ImageError, UnicodeEncodeError, TypeError) as error:
                raise ConfigError(f"this machine cannot be written: {error}") from error
            if start == PREAMBLE_LEN + len(self._text):
                break
            start = PREAMBLE_LEN + len(self._text)
        else:
            raise InternalError("the manifest finds no place")
        return at

    def head(self, preamble: Preamble, table: bytes) -> bytes:
        """Return everything from the start of the file to the end of the chunk table."""
        preamble = _with(
            preamble,
            manifest_len=len(self._text),
            manifest_digest=self._digester.of(self._text),
            chunks_offset=PREAMBLE_LEN + len(self._text) + sum(map(len, self._stored)),
        )
        return b"".join((preamble.pack(self._digester), self._text, *self._stored, table))


def _with(preamble: Preamble, **changes: int | bytes) -> Preamble:
    changed: Preamble = msgspec.structs.replace(preamble, **changes)
    return changed


def _header_of(preamble: Preamble) -> MemoryHeader:
    return MemoryHeader(
        snapshot_id=preamble.snapshot_id,
        machine_id=preamble.machine_id,
        memory_len=preamble.memory_len,
        chunks_digest=preamble.chunks_digest,
    )


def _check(preamble: Preamble, digester: Digester) -> None:
    """Refuse, before anything is written, identities and texts that the preamble cannot hold."""
    for name, length in (("release", 16), ("producer", 32), ("host_kernel", 64)):
        text = getattr(preamble, name)
        if len(text) > length or not (text.isascii() and text.isprintable()):
            raise ConfigError(f"{name.replace('_', ' ')} is {text!r}, must be at most {length} ASCII characters")
    for name in ("machine_id", "parent_id", "snapshot_id"):
        if len(getattr(preamble, name)) != ID_LEN:
            raise ConfigError(f"{name.replace('_', ' ')} has {len(getattr(preamble, name))} bytes, must be {ID_LEN}")
    try:
        unpack_preamble(preamble.pack(digester), digester)
    except ImageError as error:
        raise ConfigError(f"this machine cannot be written: {error}") from error


def _relative(memory_path: str, snapshot_path: str) -> str:
    """Return how the snapshot refers to its memory file: from its own directory."""
    start = os.path.realpath(os.path.dirname(snapshot_path) or ".")
    directory = os.path.realpath(os.path.dirname(memory_path) or ".")
    return os.path.join(os.path.relpath(directory, start), os.path.basename(memory_path)).removeprefix("./")


def _compress(payload: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(write_content_size=True).compress(payload)
