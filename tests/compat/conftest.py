"""Floor 5: what releases stored, read by today's program. A release is also made, in a copy of this checkout."""

import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapkit.errors import ConfigError
from snapkit.state.releases import main_line
from tests.compat.tree import CACHE, ROOT, Tree
from tests.guests.build import guest
from tests.kvm.harness import need_kvm
from tools import golden, golden_maker, stored, tap

_PROGRAM = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from snapkit.cli import main; main()"
TODAY = (sys.executable, "-P", "-c", _PROGRAM)
"""The command of today's tree, wherever it is run."""
HERE = os.path.dirname(os.path.abspath(__file__))
ITEM_S = 1800
"""For a test, with what it has of its fixtures made: beyond the bound of one run in a `Tree`, which says what it was doing."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(HERE + os.sep):
            item.add_marker(pytest.mark.compat)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(ITEM_S))
            if {"made", "after", "golden_file", "written", "kvm", "seen"} & set(getattr(item, "fixturenames", ())):
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
    done = tree.run("tools.release", "--here", "--cache", str(CACHE / "wheels"))
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


def _stored() -> list[tuple[str, str, str, str]]:
    try:
        return [(release, each.name, each.transport, each.architecture) for release, each in stored.goldens(ROOT)]
    except ConfigError:  # told by the tests of what is stored
        return []


PROGRAMS = {"made", *(each.release for each in main_line(stored.releases(ROOT)))}
"""The releases whose goldens a program of this project wrote; those of other lines are models."""
_MADE = golden_maker.recipes(golden.HERE)
_EVERY = [*_stored(), *(("made", each.name, each.transport, each.architecture) for each in _MADE)]


def goldens_where(
    wanted: Callable[[str, str], bool] = lambda _release, _transport: True,
    architectures: Collection[str] = tuple(golden_maker.CPUS),
) -> pytest.MarkDecorator:
    """Parametrize `golden_file`: every golden of every release, and those that the newest would write here today."""
    chosen = [
        (release, name)
        for release, name, transport, architecture in _EVERY
        if wanted(release, transport) and architecture in architectures
    ]
    return pytest.mark.parametrize("golden_file", chosen, ids="-".join, indirect=True)


@pytest.fixture
def golden_file(request: pytest.FixtureRequest, tmp_path: Path) -> GoldenFile:
    """The golden that the test's `goldens_where` chose."""
    release, name = request.param
    root, cache = ROOT, CACHE / "golden"
    if release == "made":
        tree: Tree = request.getfixturevalue("made")
        release, root, cache = tree.release, tree.root, tmp_path
    folder = root / golden.FOLDER / release
    (about,) = (entry for entry in golden.read_manifest(folder).goldens if entry.name == name)
    if about.nets and about.architecture == golden.HERE:
        need_tap()
    path = golden.unpack(folder, about, cache)
    return GoldenFile(release, about, folder, path)


def need_tap() -> None:
    """Skip, naming what is missing, or fail where SNAPKIT_REQUIRE says that it must be there."""
    if not (reason := tap.missing()):
        return
    if "kvm" in os.environ.get("SNAPKIT_REQUIRE", "").split(","):
        pytest.fail(f"{reason}, and SNAPKIT_REQUIRE asks for it")
    pytest.skip(reason)


@dataclass(frozen=True)
class Written:
    """Goldens of today's tree."""

    folder: Path
    manifest: golden.Manifest


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """What the recipes give with today's tree, written and restored once. Not to be changed."""
    need_kvm()
    need_tap()
    folder = tmp_path_factory.mktemp("written") / "goldens"
    guests = {recipe.guest: Path(guest(recipe.guest)) for recipe in golden_maker.recipes(golden.HERE)}
    manifest = golden_maker.write(TODAY, folder, guests, release="today", date="today")
    return Written(folder, manifest)


@pytest.fixture
def _exits_beside_busy_threads() -> Iterator[None]:
    """As the command line does."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)
