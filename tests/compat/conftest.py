"""Floor 5: what releases stored, read by today's program. A release is also made, in a copy of this checkout."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapkit.errors import ConfigError
from tests.compat.tree import CACHE, ROOT, Tree
from tests.kvm.harness import need_kvm
from tools import golden, stored, wheels

HERE = os.path.dirname(os.path.abspath(__file__))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(HERE + os.sep):
            item.add_marker(pytest.mark.compat)
            if {"made", "after", "golden_file", "kvm"} & set(getattr(item, "fixturenames", ())):
                item.add_marker(pytest.mark.kvm)


@pytest.fixture(scope="session")
def kvm() -> None:
    need_kvm()


@pytest.fixture(scope="session")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """A copy of this checkout whose newest release can be made. Not to be changed."""
    root = tmp_path_factory.mktemp("ready") / "tree"
    yield Tree.of_checkout(root)
    shutil.rmtree(root)


@pytest.fixture(scope="session")
def made(ready: Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tree]:
    """The same after `make release`, uncommitted. Not to be changed."""
    need_kvm()
    tree = ready.copy(tmp_path_factory.mktemp("made") / "tree")
    done = tree.run("tools.release", "--cache", str(CACHE / "wheels"))
    assert done.returncode == 0, done.stderr
    yield tree
    shutil.rmtree(tree.root.parent)


@pytest.fixture
def tree(ready: Tree, tmp_path: Path) -> Iterator[Tree]:
    """A tree to break before its release."""
    copy = ready.copy(tmp_path / "tree")
    yield copy
    shutil.rmtree(copy.root)


@pytest.fixture
def after(made: Tree, tmp_path: Path) -> Iterator[Tree]:
    """A tree to break after its release, which is committed."""
    copy = made.copy(tmp_path / "tree")
    copy.commit()
    yield copy
    shutil.rmtree(copy.root)


@dataclass(frozen=True)
class GoldenFile:
    """A golden, unpacked; *folder* is where its release keeps it."""

    release: str
    about: golden.Golden
    folder: Path
    path: Path
    wheel: Path
    """The folder of its release's wheel."""
    environments: Path | None
    """Where the wheel's environment goes; None for one that is kept."""


def _stored() -> list[tuple[str, str]]:
    try:
        return [(release, entry.name) for release, entry in stored.goldens(ROOT)]
    except ConfigError:  # told by the tests of what is stored
        return []


_MADE = [("made", recipe.name) for recipe in golden.RECIPES]


@pytest.fixture(params=[*_stored(), *_MADE], ids="-".join)
def golden_file(request: pytest.FixtureRequest, tmp_path: Path) -> GoldenFile:
    """Every golden of every release, and those that the newest release would write today."""
    release, name = request.param
    root, cache, environments = ROOT, CACHE / "golden", None
    if release == "made":
        tree: Tree = request.getfixturevalue("made")
        release, root, cache, environments = tree.release, tree.root, tmp_path, tree.root.parent
    folder = root / golden.FOLDER / release
    (about,) = (entry for entry in golden.read_manifest(folder).goldens if entry.name == name)
    path = golden.unpack(folder, about, cache)
    return GoldenFile(release, about, folder, path, root / wheels.FOLDER / release, environments)


@pytest.fixture
def _exits_beside_busy_threads() -> Iterator[None]:
    """As the command line does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)
