"""The first 4096 bytes of a snapshot file, and the first 4096 of a separate memory file.

A preamble says who wrote what, when, for which architecture, and where everything else lies, so that `dd` and `struct`
are enough to read it. All numbers are little endian. Its first 64 bytes have this shape in every container version, and
its last 32 bytes are a digest over everything before them. `PREAMBLE` and `MEMORY_HEADER` are the layouts; packing,
unpacking and the documentation (`describe_layout`) all come from them.

A separate memory file has a header of its own that repeats the snapshot's identity and its chunk table's digest.
Otherwise a hostile snapshot could name any file of the host and have it mapped as guest memory.
"""

import struct
from typing import Any, NamedTuple, NoReturn

import msgspec

from snapkit.errors import ImageError
from snapkit.restore.digest import ALGORITHMS, BLAKE3_KEYED, DIGEST_LEN, Digester
from snapkit.units import KIB, PAGE_SHIFT

MAGIC = b"SNAPKIT\0"
MEMORY_MAGIC = b"SNAPKMEM"
CONTAINER_VERSION = 1
PREAMBLE_LEN = 4096
IDENTITY_LEN = 64
ID_LEN = 16
ZERO_ID = bytes(ID_LEN)
FLAG_SEPARATE_MEMORY = 1 << 0
FLAGS = FLAG_SEPARATE_MEMORY
ARCHITECTURES = {62: "x86-64", 183: "aarch64"}
MEMORY_ALIGNMENT = 64 * KIB
"""Chunks of memory start at multiples of this in the file: the largest page of a supported host."""


class Field(NamedTuple):
    """One row of a layout; *code* is `struct`'s, *name* empty where the bytes are zero."""

    offset: int
    name: str
    code: str
    doc: str


PREAMBLE = (
    Field(0, "magic", "8s", "`SNAPKIT` and a zero byte"),
    Field(8, "container_version", "I", "1; a reader refuses what is newer than itself"),
    Field(12, "preamble_len", "I", "4096"),
    Field(16, "architecture", "H", "ELF machine number: 62 x86-64, 183 aarch64"),
    Field(18, "page_shift", "B", "12"),
    Field(19, "digest_algorithm", "B", "1 BLAKE3-256, 2 keyed BLAKE3-256"),
    Field(20, "flags", "I", "bit 0: memory is in a separate file"),
    Field(24, "release", "16s", "release that wrote the file, ASCII, zero-padded"),
    Field(40, "machine_id", "16s", "stays with a machine through all its snapshots"),
    Field(56, "", "8s", "zero; end of the part that every container version shares"),
    Field(64, "created_ns", "Q", "creation time, ns since 1970"),
    Field(72, "parent_id", "16s", "snapshot that the machine was restored from, or this one was made of, or zero"),
    Field(88, "snapshot_id", "16s", "this snapshot"),
    Field(104, "producer", "32s", "program that wrote the file, ASCII, zero-padded"),
    Field(136, "host_kernel", "64s", "kernel release of the host it was written on, ASCII, zero-padded"),
    Field(200, "manifest_offset", "Q", "manifest"),
    Field(208, "manifest_len", "Q", ""),
    Field(216, "manifest_digest", "32s", ""),
    Field(248, "chunks_offset", "Q", "chunk table"),
    Field(256, "chunks_len", "Q", ""),
    Field(264, "chunks_digest", "32s", ""),
    Field(296, "memory_offset", "Q", "memory; the file ends where it ends (in a separate file: that file)"),
    Field(304, "memory_len", "Q", ""),
    Field(312, "", "3752s", "zero"),
    Field(4064, "digest", "32s", "of all 4064 bytes before"),
)

MEMORY_HEADER = (
    Field(0, "magic", "8s", "`SNAPKMEM`"),
    Field(8, "container_version", "I", "1"),
    Field(12, "header_len", "I", "4096; memory starts at 65536, and what lies between is zero"),
    Field(16, "snapshot_id", "16s", "snapshot that the memory belongs to"),
    Field(32, "machine_id", "16s", "machine that the memory belongs to"),
    Field(48, "memory_len", "Q", "the file ends at 65536 + this"),
    Field(56, "chunks_digest", "32s", "of the chunk table, which lies in the snapshot file"),
    Field(88, "", "3976s", "zero"),
    Field(4064, "digest", "32s", "of all 4064 bytes before, by the snapshot file's algorithm and key"),
)

_preamble = struct.Struct("<" + "".join(field.code for field in PREAMBLE))
_memory_header = struct.Struct("<" + "".join(field.code for field in MEMORY_HEADER))
_identity = struct.Struct("<" + "".join(field.code for field in PREAMBLE if field.offset < IDENTITY_LEN))
_PREAMBLE_NAMES = [field.name for field in PREAMBLE]
_PREAMBLE_ZEROS = [place for place, field in enumerate(PREAMBLE) if not field.name]
_IDENTITY_NAMES = [field.name for field in PREAMBLE if field.offset < IDENTITY_LEN]
_USUAL_START = struct.pack("<8sII", MAGIC, CONTAINER_VERSION, PREAMBLE_LEN)
_ALGORITHM_AT = 19
_TEXTS = ("release", "producer", "host_kernel")


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """The first 64 bytes: what can be said about a file of any container version."""

    container_version: int
    preamble_len: int
    architecture: int
    page_shift: int
    digest_algorithm: int
    flags: int
    release: str
    machine_id: bytes


class Preamble(Identity, frozen=True, kw_only=True):
    """The whole preamble, as values."""

    container_version: int = CONTAINER_VERSION
    preamble_len: int = PREAMBLE_LEN
    page_shift: int = PAGE_SHIFT
    created_ns: int
    parent_id: bytes
    snapshot_id: bytes
    producer: str
    host_kernel: str
    manifest_offset: int
    manifest_len: int
    manifest_digest: bytes
    chunks_offset: int
    chunks_len: int
    chunks_digest: bytes
    memory_offset: int
    memory_len: int

    @property
    def separate_memory(self) -> bool:
        return bool(self.flags & FLAG_SEPARATE_MEMORY)

    @property
    def keyed(self) -> bool:
        return self.digest_algorithm == BLAKE3_KEYED

    def pack(self, digester: Digester) -> bytes:
        """Return the 4096 bytes."""
        packed = _pack(PREAMBLE, _preamble, {"magic": MAGIC, **{name: getattr(self, name) for name in _FIELDS}})
        return packed + digester.of(packed)


_FIELDS = Preamble.__struct_fields__


class MemoryHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The header of a separate memory file, as values."""

    container_version: int = CONTAINER_VERSION
    header_len: int = PREAMBLE_LEN
    snapshot_id: bytes
    machine_id: bytes
    memory_len: int
    chunks_digest: bytes

    def pack(self, digester: Digester) -> bytes:
        """Return the 4096 bytes."""
        fields = {name: getattr(self, name) for name in self.__struct_fields__}
        packed = _pack(MEMORY_HEADER, _memory_header, {"magic": MEMORY_MAGIC, **fields})
        return packed + digester.of(packed)


def read_identity(head: bytes) -> Identity:
    """Read the first 64 bytes of a file of any container version.

    Raises ImageError when they are not a snapshot's.
    """
    if len(head) < IDENTITY_LEN:
        _refuse(f"it has {len(head)} bytes, a preamble has {PREAMBLE_LEN}")
    if not head.startswith(MAGIC):
        found = f"it begins with {head[:8].hex()}"
        _refuse("it is the memory of a snapshot, not the snapshot" if head.startswith(MEMORY_MAGIC) else found)
    values = dict(zip(_IDENTITY_NAMES, _identity.unpack_from(head), strict=True))
    if values.pop("").strip(b"\0"):
        _refuse("bytes 56 to 63 of its preamble are not zero")
    del values["magic"]
    values["release"] = _text(values["release"], "release")
    return Identity(**values)


def unpack_preamble(head: bytes, digester: Digester | None) -> Preamble:
    """Read a preamble from the first bytes of a file; without a *digester* its digest is not checked.

    Raises ImageError, in the order in which the bytes can be trusted: no snapshot, written by a newer release, another
    digest algorithm or key, damaged, a field that cannot be.
    """
    algorithm = _read_algorithm(head)
    if digester is not None:
        if algorithm != digester.algorithm:
            _refuse(
                "it has no keyed digests, so the key given says nothing about it"
                if digester.keyed
                else "its digests are keyed and no key was given, so it is not authenticated"
            )
        if not digester.matches(
            memoryview(head)[: PREAMBLE_LEN - DIGEST_LEN], head[-DIGEST_LEN + PREAMBLE_LEN : PREAMBLE_LEN]
        ):
            _refuse("its preamble does not match its digest: damaged" + (", or another key" if digester.keyed else ""))
    row = _preamble.unpack_from(head)
    for place in _PREAMBLE_ZEROS:
        if row[place] != bytes(len(row[place])):
            start = PREAMBLE[place].offset
            end = start + len(row[place]) - 1
            _refuse(f"bytes {start} to {end} of its preamble, where nothing is defined, are not zero")
    values: dict[str, Any] = dict(zip(_PREAMBLE_NAMES, row, strict=True))
    for name in ("magic", "digest", ""):
        del values[name]
    for name in _TEXTS:
        values[name] = _text(values[name], name)
    preamble = Preamble(**values)
    if preamble.architecture not in ARCHITECTURES:
        _refuse(f"its architecture is ELF machine {preamble.architecture}, must be one of {list(ARCHITECTURES)}")
    if preamble.page_shift != PAGE_SHIFT:
        _refuse(f"its page shift is {preamble.page_shift}, must be {PAGE_SHIFT}")
    if preamble.flags & ~FLAGS:
        _refuse(f"its flags are {preamble.flags:#x}, this release knows {FLAGS:#x}")
    return preamble


def _read_algorithm(head: bytes) -> int:
    """Check what says how to read the rest, and return the digest algorithm."""
    if len(head) >= PREAMBLE_LEN and head.startswith(_USUAL_START) and head[_ALGORITHM_AT] in ALGORITHMS:
        return head[_ALGORITHM_AT]
    identity = read_identity(head)
    if identity.container_version != CONTAINER_VERSION:
        newer = "written by a newer release: " if identity.container_version > CONTAINER_VERSION else ""
        _refuse(f"{newer}container version {identity.container_version}, must be {CONTAINER_VERSION}")
    if identity.preamble_len != PREAMBLE_LEN:
        _refuse(f"its preamble length is {identity.preamble_len}, must be {PREAMBLE_LEN}")
    if len(head) < PREAMBLE_LEN:
        _refuse(f"it has {len(head)} bytes, a preamble has {PREAMBLE_LEN}")
    if identity.digest_algorithm not in ALGORITHMS:
        _refuse(f"its digest algorithm is {identity.digest_algorithm}, must be one of {list(ALGORITHMS)}")
    return identity.digest_algorithm


def check_memory_header(head: bytes, preamble: Preamble, digester: Digester | None) -> None:
    """Check that the first bytes of a separate memory file say that it is the memory of *preamble*'s snapshot.

    Raises ImageError when they do not.
    """
    if len(head) < PREAMBLE_LEN or not head.startswith(MEMORY_MAGIC):
        _refuse("it is no separate memory file of a snapshot")
    digest = head[PREAMBLE_LEN - DIGEST_LEN : PREAMBLE_LEN]
    if digester is not None and not digester.matches(memoryview(head)[: PREAMBLE_LEN - DIGEST_LEN], digest):
        _refuse("its header does not match its digest: damaged, or of another snapshot")
    expected = MemoryHeader(
        snapshot_id=preamble.snapshot_id,
        machine_id=preamble.machine_id,
        memory_len=preamble.memory_len,
        chunks_digest=preamble.chunks_digest,
    )
    fields = {name: getattr(expected, name) for name in expected.__struct_fields__}
    wanted = _pack(MEMORY_HEADER, _memory_header, {"magic": MEMORY_MAGIC, **fields})
    if head[: len(wanted)] == wanted:
        return
    found = dict(zip((field.name for field in MEMORY_HEADER), _memory_header.unpack_from(head), strict=True))
    if found["snapshot_id"] != preamble.snapshot_id:
        _refuse(f"it is the memory of snapshot {found['snapshot_id'].hex()}, must be {preamble.snapshot_id.hex()}")
    wrong = [name for name, value in fields.items() if found[name] != value] or ["zero part"]
    _refuse(f"its header's {' and '.join(wrong)} is not what the snapshot says")


def describe_layout(layout: tuple[Field, ...]) -> str:
    """Write a layout as a Markdown table, for the documentation."""
    rows = ["| offset | length | field | |", "|---|---|---|---|"]
    for field in layout:
        length = struct.calcsize("<" + field.code)
        rows.append(f"| {field.offset} | {length} | {field.name.replace('_', ' ')} | {field.doc} |")
    return "\n".join(rows) + "\n"


def _pack(layout: tuple[Field, ...], shape: struct.Struct, values: dict[str, Any]) -> bytes:
    """Pack *values* by *layout*, all but the digest at the end."""
    row = [values.get(field.name, b"") for field in layout]
    row = [value.encode("ascii") if isinstance(value, str) else value for value in row]
    return shape.pack(*row)[:-DIGEST_LEN]


def _text(raw: bytes, name: str) -> str:
    text = raw.rstrip(b"\0")
    if not (text.isascii() and text.decode("latin-1").isprintable()):
        _refuse(f"its {name.replace('_', ' ')} is no ASCII text: {raw.hex()}")
    return text.decode("ascii")


def _refuse(why: str) -> NoReturn:
    raise ImageError(f"this is no snapshot that can be used: {why}")
