"""A file in the making: a good machine taken apart, to be changed anywhere and signed again.

Digests are made right for whatever is said, by the second writer of `tests.restore.forge`; what is to be caught by its
digest is changed after that (`Draft.spoil`).
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from snapkit.state.schema import KINDS, versions_of
from snapkit.state.shape import shape_of
from tests.mutants.plain import Place, leaves, places
from tests.mutants.specimen import Specimen
from tests.mutants.values import Pool
from tests.restore.forge import CHUNK, Section

Whole = Callable[[bytearray, Random], None]


@dataclass
class Part:
    """One section: what its manifest entry says, and its payload as data; ``raw`` stands in for that if it is there."""

    kind: str
    instance: str
    data: Any
    stored: Section
    raw: bytes | None = None

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.instance}"

    def section(self) -> Section:
        payload = msgspec.msgpack.encode(self.data) if self.raw is None else self.raw
        length = None if self.stored.codec == "raw" else self.stored.length
        return replace(self.stored, kind=self.kind, instance=self.instance, payload=payload, length=length)


class Draft:
    """What a mutation changes. *told* says what was done, one text a mutation."""

    def __init__(self, specimen: Specimen, rng: Random) -> None:
        self.specimen, self.rng = specimen, rng
        self.base = specimen.base
        self.told: list[str] = []
        self.parts = [
            Part(one.kind, one.instance, msgspec.msgpack.decode(one.payload), one) for one in specimen.forge.sections
        ]
        self.chunks = list(specimen.forge.chunks)
        self.preamble = dict(specimen.forge.preamble)
        self.manifest: list[Callable[[dict[str, Any]], None]] = []
        self.table: list[Whole] = []
        self.spoil: list[Whole] = []

    # What there is

    def places(self, part: Part) -> list[Place]:
        """Return every place of *part*; none where its kind or version is not one that there is."""
        schemas = versions_of(part.kind) if part.kind in KINDS else {}
        schema = schemas.get(part.stored.version)
        return [] if schema is None else list(places({"": part.data}, "", shape_of(schema.type)))[1:]

    def pool(self) -> Pool:
        """Return what stands in the sections."""
        return Pool([holder[key] for holder, key in self.scalars()])

    def scalars(self) -> Iterator[tuple[Any, Any]]:
        """Give (holder, key) of every scalar of every section."""
        for part in self.parts:
            if part.raw is None and isinstance(part.data, (dict, list)):
                yield from leaves(part.data)

    def find(self, kind: str) -> Part | None:
        """Return the first section of *kind*."""
        return next((part for part in self.parts if part.kind == kind), None)

    # Memory

    def ram(self, gpa: int, length: int) -> bytes:
        """Return *length* bytes of RAM, zeros where there are none or chunks meet."""
        number, at = divmod(gpa - self.base, CHUNK)
        if not 0 <= number < len(self.chunks) or at + length > CHUNK:
            return bytes(length)
        return (self.chunks[number] or bytes(CHUNK))[at : at + length]

    def poke(self, gpa: int, payload: bytes) -> None:
        """Write into RAM; outside of it nothing happens."""
        number, at = divmod(gpa - self.base, CHUNK)
        if 0 <= number < len(self.chunks) and at + len(payload) <= CHUNK:
            chunk = bytearray(self.chunks[number] or bytes(CHUNK))
            chunk[at : at + len(payload)] = payload
            self.chunks[number] = bytes(chunk)

    # The file

    def write(self, path: Path) -> Path:
        """Write the file, digests right, then spoil it."""
        seed = self.rng.getrandbits(32)

        def describe(content: dict[str, Any]) -> None:
            self.specimen.forge.manifest(content)
            if self.manifest:
                content.update(copy.deepcopy(content))  # it is the specimen's own until here
            for edit in self.manifest:
                edit(content)

        def edit_table(table: bytearray) -> None:
            for edit in self.table:
                edit(table, Random(seed))

        forge = replace(
            self.specimen.forge,
            sections=[part.section() for part in self.parts],
            chunks=self.chunks,
            preamble=self.preamble,
            manifest=describe,
            table=edit_table,
        )
        forge.write(path)
        if self.spoil:
            content = bytearray(path.read_bytes())
            for spoil in self.spoil:
                spoil(content, Random(seed))
            path.write_bytes(content)
        return path

    def edit_manifest(self, path: str, value: Any) -> None:
        """Have ``a.b.c`` of the manifest be *value*, or what *value* makes of it."""
        self.manifest.append(partial(_edit, path.split("."), value))


def _edit(names: list[str], value: Any, content: dict[str, Any]) -> None:
    at: Any = content
    with suppress(
        KeyError, IndexError, TypeError, ValueError, AttributeError
    ):  # an edit before it may have left nothing
        for name in names[:-1]:
            at = at[int(name)] if isinstance(at, list) else at[name]
        last: Any = int(names[-1]) if isinstance(at, list) else names[-1]
        at[last] = value(at.get(last) if isinstance(at, dict) else at[last]) if callable(value) else value
