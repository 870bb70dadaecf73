"""A snapshot with some of its sections changed: everything is checked again before anything is written.

The file may be one that `check` refuses: an edit can repair it. What comes out may not. It stays of the release that it
was written by; labels (machine id, what the manifest says for people) follow the sections.
"""

from typing import Self

from snapkit.errors import ConfigError, ImageError
from snapkit.restore.image import Image
from snapkit.restore.rewrite import Rewritten, rewrite, unsound, upgraded
from snapkit.restore.writer import Progress
from snapkit.state.edit import with_value
from snapkit.state.inspect import find_section
from snapkit.state.schema import SectionId, State, schema_of


class Edit:
    """An open snapshot and its sections, to be changed. Use `open`; it is a context manager."""

    def __init__(self, image: Image, key: bytes | None) -> None:
        self.image = image
        self._key = key
        self.sections, self.dropped = image.sections()

    @classmethod
    def open(cls, path: str, *, key: bytes | None = None) -> Self:
        """Read the sections of the snapshot at *path*. Raises ConfigError when it is missing, ImageError when it is wrong."""
        image = Image.open(path, key=key)
        try:
            return cls(image, key)
        except BaseException:
            image.close()
            raise

    def set(self, path: str, text: str) -> None:
        """Change the value at *path* to what *text* says. Raises ConfigError naming the path when that cannot be."""
        self.sections = with_value(self.sections, path, text)

    def put(self, section: SectionId, state: State) -> None:
        """Replace *section*. Raises ConfigError when there is none, or *state* is of another version."""
        find_section(self.sections, section)
        found, wanted = schema_of(state), schema_of(self.sections[section])
        if found != wanted:
            raise ConfigError(
                f"{section} is given as {found.kind} version {found.version}, "
                f"{self.image.path} has {wanted.kind} version {wanted.version}"
            )
        self.sections = {**self.sections, section: state}

    def write(self, path: str, *, progress: Progress | None = None) -> Rewritten:
        """Check the whole machine and write it to *path*, keyed as it was.

        Raises ConfigError with every finding when it is no machine that could have been saved; otherwise as `rewrite`.
        """
        release = self.image.preamble.release
        try:
            current = upgraded(self.image, self.sections, release)
        except ImageError as error:
            raise ConfigError("the edited machine is refused", findings=error.findings) from error
        if findings := unsound(self.image, current):
            raise ConfigError("the edited machine could not have been saved", findings=findings)
        return rewrite(
            self.image, path, self.sections, release=release, current=current, key=self._key, progress=progress
        )

    def close(self) -> None:
        """Close the snapshot."""
        self.image.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
