"""The rows and the columns of the matrix: stored goldens, the programs that they are given to, what there is to decide.

Columns are programs (`tools.column`), each of which is started once something is asked of it, and serves all rows.
"""

import itertools
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from snapkit.state.releases import Release
from tools import golden, stored, tap, wheels
from tools.column import Column, Place
from tools.decided import TREE

SAVED_AGAIN, BACK, ONWARD = "saved again", "back and forth", "onward"
MORE: Mapping[str, str] = {
    SAVED_AGAIN: "the tree restores it up to load and saves: equal to the file",
    BACK: "the tree restores it and saves, its own release restores that and saves, and so on once more",
    ONWARD: "every later release restores it and saves, each what the one before saved, and then the tree",
}
HOSTS = Path("tests/compat/hosts")
"""What `snapkit doctor --json` said on a host of each architecture that runs its goldens."""
_KVM = "/dev/kvm"


@dataclass(frozen=True)
class Row:
    """A golden of a release, unpacked at *path*.

    *lacking*: why it cannot run on this machine; empty where it can. *host*: where it is of another architecture, what to
    judge it by.
    """

    release: str
    about: golden.Golden
    folder: Path
    path: Path
    lacking: str
    host: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.release}/{self.about.name}"


@dataclass
class Bench:
    """The programs by column, oldest first and the tree last, and a place to work."""

    columns: Mapping[str, Column]
    scratch: Path
    knows: Mapping[str, Sequence[Release]]
    """By column, the releases that its program knows; the last is its own."""
    numbers: Iterator[int] = field(default_factory=itertools.count)
    reading: threading.Lock = field(default_factory=threading.Lock)
    """Held while this process reads or converts a file: the modules of kinds come in as they are needed, and another thread
    could see one of which half is declared."""

    def folder(self) -> Path:
        path = self.scratch / str(next(self.numbers))
        path.mkdir()
        return path

    def reads(self, column: str, release: str) -> bool:
        """Say whether the program of *column* knows *release*."""
        return any(release == each.release for each in self.knows[column])


@contextmanager
def bench(root: Path, cache: Path, newest: Path | None = None, *, bare: bool = False) -> Iterator[Bench]:
    """Give the program of every column; each starts when something is asked of it.

    *newest*: where the environment of the newest release goes, else *cache*. *bare*: no environments, since there is no pip
    here; the programs run on what this interpreter has.
    """
    releases = programs(root)
    folders = {name: root / wheels.FOLDER / name for name in releases}
    with tempfile.TemporaryDirectory(prefix="snapkit-matrix-") as scratch, ExitStack() as stack:

        def place(name: str) -> Place:
            if name == TREE:
                return Place(Path(sys.executable), root)
            if bare:
                return Place(Path(sys.executable), wheels.unpacked(folders[name], Path(scratch, "programs")))
            where = newest if name == releases[-1] else None
            return Place(wheels.stored_environment(folders[name], cache, where))

        columns = {name: stack.enter_context(Column(name, partial(place, name))) for name in (*releases, TREE)}
        knows = {name: wheels.knows(folder) for name, folder in folders.items()} | {TREE: stored.releases(root)}
        yield Bench(columns, Path(scratch), knows)


def rows(root: Path, scratch: Path) -> list[Row]:
    """Unpack every golden of every release into *scratch*, oldest first. Raises ConfigError for one missing or edited."""
    lacking = "" if os.access(_KVM, os.R_OK | os.W_OK) else f"no {_KVM} here"
    no_tap = lacking or tap.missing()
    found = []
    for folder, about in _goldens(root):
        path = golden.unpack(folder, about, scratch / folder.name)
        if about.architecture == golden.HERE:
            found.append(Row(folder.name, about, folder, path, no_tap if about.nets else lacking))
        else:
            host = root / HOSTS / f"{about.architecture}.json"
            found.append(Row(folder.name, about, folder, path, f"this machine is no {about.architecture}", host))
    return found


def _goldens(root: Path) -> Iterator[tuple[Path, golden.Golden]]:
    for folder in sorted((root / golden.FOLDER).iterdir(), key=lambda path: order(path.name)):
        yield from ((folder, about) for about in golden.read_manifest(folder).goldens)


def programs(root: Path) -> list[str]:
    """Return the releases that have a program, oldest first."""
    return sorted((path.name for path in (root / wheels.FOLDER).iterdir()), key=order)


def order(name: str) -> tuple[bool, list[int], str]:
    """Return a sort key: releases by number; lines with a name of their own after them."""
    return (not name[0].isdigit(), [int(number) for number in re.findall(r"\d+", name)], name)


def checks(release: str, columns: Sequence[str]) -> list[str]:
    """Return the names of the checks of a row of *release*: its cells, then more. One without a wheel goes back to none."""
    return [*columns, SAVED_AGAIN, *([BACK] if release in columns else []), ONWARD]


def names(root: Path) -> list[tuple[str, str]]:
    """Return row and check of everything that there is to decide in the checkout at *root*, in order."""
    columns = [*programs(root), TREE]
    return [
        (f"{folder.name}/{about.name}", check)
        for folder, about in _goldens(root)
        for check in checks(folder.name, columns)
    ]
