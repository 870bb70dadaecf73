"""Carry a snapshot to another release, up or down: decode, check, convert, and write with its memory untouched.

A file is converted from what it holds straight to what is wanted, through every release between, and not by way of the
newest. What is not a sound machine is refused before: it could not have been restored either. Everything that the other
release cannot hold is told at once (`Refusal`), before anything is written.
"""

from collections.abc import Mapping
from typing import NamedTuple, Self

from snapkit.errors import ImageError
from snapkit.restore.image import Image
from snapkit.restore.rewrite import Rewritten, check_place, mislabelled, rewrite, unsound, upgraded
from snapkit.restore.source import naming
from snapkit.restore.writer import Progress
from snapkit.state.converters import convert_sections
from snapkit.state.releases import release_named
from snapkit.state.schema import SectionId, State, schema_of


class Change(NamedTuple):
    """A section that is at another version afterwards; None where there is no such section."""

    section: SectionId
    before: int | None
    after: int | None


class Conversion:
    """A snapshot and what it becomes. Use `open`; it is a context manager. Nothing is written but by `write`."""

    def __init__(self, image: Image, release: str, key: bytes | None) -> None:
        self.image, self.release = image, release
        self._key = key
        release_named(release)
        with naming(image.path):
            before, self.dropped = image.sections()
        self._current = upgraded(image, before, image.preamble.release)
        if findings := [*unsound(image, self._current), *mislabelled(image, self._current)]:
            raise ImageError(f"{image.path} does not hold a machine that could have been saved", findings=findings)
        self.sections: Mapping[SectionId, State] = convert_sections(before, image.preamble.release, release)
        self.changes = _changes(before, self.sections)

    @classmethod
    def open(cls, path: str, release: str, *, key: bytes | None = None) -> Self:
        """Read the snapshot at *path* and convert its sections to what *release* writes.

        Raises ConfigError when there is no such file or release, `Refusal` with every reason when that release cannot
        hold the machine, ImageError when the file is wrong.
        """
        image = Image.open(path, key=key)
        try:
            return cls(image, release, key)
        except BaseException:
            image.close()
            raise

    def check_place(self, path: str) -> None:
        """Refuse, with ConfigError, a *path* that `write` would refuse before it writes anything."""
        check_place(self.image, path)

    def write(self, path: str, *, new_key: bytes | None = None, progress: Progress | None = None) -> Rewritten:
        """Write what the snapshot becomes to *path*, keyed as it is, or with *new_key*; raises as `rewrite` does.

        For another key all of memory is read, and ImageError raised when it is damaged: damage must not be signed.
        """
        return rewrite(
            self.image,
            path,
            self.sections,
            release=self.release,
            current=self._current,
            key=self._key if new_key is None else new_key,
            progress=progress,
        )

    def close(self) -> None:
        """Close the snapshot."""
        self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _changes(before: Mapping[SectionId, State], after: Mapping[SectionId, State]) -> list[Change]:
    versions = [{name: schema_of(state).version for name, state in each.items()} for each in (before, after)]
    every = dict.fromkeys((*before, *after))
    changes = [Change(name, versions[0].get(name), versions[1].get(name)) for name in every]
    return [change for change in changes if change.before != change.after]
