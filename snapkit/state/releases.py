"""Which release writes which version of which kind: ``schemas/releases.json``, read once.

The list is in order of release, oldest first; each release is converted to the one that follows it, so that the last is
what all lead to. A *line of its own* is a run of entries whose last one names what it is converted to instead (``joins``):
the history of programs that are not this one, read like old files. They stand before the main line, which is all entries
behind the last that joins; only releases of the main line have a program of their own. A preamble has 16 bytes for a
release's name: where the name is longer, ``stamp`` is what files say.

The last entry is the release being worked on for as long as its ``released`` is null: its schemas may still change. Releasing sets
``released`` to the date and ``digests`` to the SHA-256 of every schema file that this release writes (``sha256sum`` on
the file gives the same); from then on neither the entry nor the files change.

The file lies beside the package in a checkout and inside it in a wheel. It is fetched through the loader that imported
this very module, so nothing here opens a file by itself and a zipped installation works as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from os.path import dirname, join
from typing import Protocol, cast

import msgspec

from snapkit.errors import ConfigError, InternalError


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One release: the version of every kind that it writes, and when it was released (None: not yet)."""

    release: str
    released: str | None = None
    kinds: Mapping[str, int] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of its schema files, by ``kind/version``; empty until released."""
    joins: str | None = None
    """The release that this one, the last of a line, is converted to; None: the one that follows it in the list."""
    stamp: str | None = None
    """What a file of this release says in its preamble; None: the name."""

    @property
    def written_as(self) -> str:
        """The name that its files carry, at most 16 characters."""
        return self.stamp or self.release


class _Entry(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    release: str
    released: str | None
    kinds: dict[str, int]
    digests: dict[str, str]
    joins: str | None = None
    stamp: str | None = None


class _File(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    releases: list[_Entry]


class _Loader(Protocol):
    def get_data(self, path: str) -> bytes: ...


_loaded: list[Release] = []


def parse(content: bytes) -> tuple[Release, ...]:
    """Read the *content* of a releases.json.

    Raises InternalError when it is not one: the file ships with the program.
    """
    try:
        file = msgspec.json.decode(content, type=_File)
    except msgspec.DecodeError as error:
        raise InternalError(f"releases.json: {error}") from error
    if file.format != 1 or not file.releases:
        raise InternalError(f"releases.json has format {file.format} and {len(file.releases)} releases")
    names = [entry.release for entry in file.releases]
    for number, entry in enumerate(file.releases):
        if entry.joins is not None and entry.joins not in names[number + 1 :]:
            raise InternalError(f"releases.json: release {entry.release} joins {entry.joins}, which does not follow it")
    return tuple(Release(**msgspec.structs.asdict(entry)) for entry in file.releases)


def render(releases: tuple[Release, ...]) -> bytes:
    """Write *releases* the way `parse` reads them."""
    entries = [
        _Entry(each.release, each.released, dict(each.kinds), dict(each.digests), each.joins, each.stamp)
        for each in releases
    ]
    return msgspec.json.format(msgspec.json.encode(_File(1, entries)), indent=2) + b"\n"


def schema_file(name: str) -> bytes | None:
    """Return the content of ``schemas/NAME`` (``pit/1.json``, ``releases.json``), or None when there is none."""
    package = dirname(dirname(__file__))
    for root in (join(package, "schemas"), join(dirname(package), "schemas")):
        try:
            return cast("_Loader", __spec__.loader).get_data(join(root, name))
        except OSError:
            continue
    return None


def releases() -> tuple[Release, ...]:
    """Return every release, oldest first."""
    if not _loaded:
        content = schema_file("releases.json")
        if content is None:
            raise InternalError("schemas/releases.json is missing from this installation")
        _loaded[:] = parse(content)  # the whole at once: other threads may be at the same
    return tuple(_loaded)


def current_release() -> Release:
    """Return the release that this program writes: the newest."""
    return releases()[-1]


def find_release(name: str) -> Release | None:
    """Return the release called *name*, or whose files say *name*; None when there is none."""
    return next((each for each in releases() if name in {each.release, each.written_as}), None)


def neighbours() -> tuple[tuple[Release, Release], ...]:
    """Return each release with the one that it is converted to, in the order of the list."""
    every = releases()
    by_name = {each.release: each for each in every}
    return tuple((each, by_name[each.joins] if each.joins else following) for each, following in pairwise(every))


def main_line(every: Sequence[Release]) -> tuple[Release, ...]:
    """Return those of *every* release that programs of this project wrote: all behind the last that joins another."""
    ended = max((number for number, each in enumerate(every, 1) if each.joins), default=0)
    return tuple(every[ended:])


def release_named(name: str) -> Release:
    """Return the release called *name*, which the operator asked for.

    Raises ConfigError, listing those there are, when it is none of them.
    """
    found = find_release(name)
    if found is None:
        known = ", ".join(each.release for each in releases())
        raise ConfigError(f"release is {name!r}, must be one of: {known}")
    return found


def digest(content: bytes) -> str:
    """Return the SHA-256 of a schema file, as `digests` records it."""
    from hashlib import sha256

    return sha256(content).hexdigest()


def freeze(release: Release, date: str, files: Mapping[str, bytes]) -> Release:
    """Return the entry that *release* becomes when it is released on *date* with *files* (by ``kind/version``)."""
    if release.released is not None:
        raise ConfigError(f"release {release.release} was released on {release.released}, it never changes again")
    names = [f"{kind}/{version}" for kind, version in release.kinds.items()]
    if missing := [name for name in names if name not in files]:
        raise ConfigError(f"release {release.release} lacks schema files: {', '.join(missing)}")
    digests = {name: digest(files[name]) for name in names}
    return replace(release, released=date, digests=digests)


@contextmanager
def temporary(*entries: Release) -> Iterator[None]:
    """Let *entries* be the releases there are, for a test."""
    kept = _loaded[:]
    _loaded[:] = entries
    try:
        yield
    finally:
        _loaded[:] = kept
