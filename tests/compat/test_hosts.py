"""Files are judged, looked at and carried on where they cannot run: by what a host of their architecture said of itself.

`hosts/<architecture>.json` is what `snapkit doctor --json` printed on a host of each, without its part on the sandbox: for
x86-64 one without VMX or SVM, for aarch64 the lab's machine on the processor model that goldens are written on.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapkit.restore.image import Image
from snapkit.state.host_facts import read_facts
from tests.compat.tree import CACHE, ROOT
from tools import golden, golden_maker, stored
from tools.column import Column, Done, Place
from tools.decided import TREE
from tools.table import HOSTS

REFUSED = 4
ARCHITECTURES = sorted(golden_maker.CPUS)
NEWEST = [release for release, _ in stored.goldens(ROOT)][-1]
FILES = [(release, about) for release, about in stored.goldens(ROOT) if release == NEWEST]


@pytest.fixture(scope="module")
def tree() -> Iterator[Column]:
    with Column(TREE, lambda: Place(Path(sys.executable), ROOT)) as column:
        yield column


def facts(architecture: str) -> Path:
    return ROOT / HOSTS / f"{architecture}.json"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recorded_facts_are_those_of_a_host_that_runs_goldens(architecture: str) -> None:
    said = read_facts(facts(architecture).read_bytes(), where=architecture)
    assert said.architecture.replace("_", "-") == architecture
    assert said.kvm.usable
    assert bool(said.id_registers) is (architecture == "aarch64")
    assert bool(said.cpuid) is (architecture == "x86-64")


@pytest.mark.parametrize(("release", "about"), FILES, ids=lambda each: getattr(each, "name", each))
def test_a_golden_is_planned_by_a_host_of_its_architecture_and_refused_by_any_other(
    tree: Column, release: str, about: golden.Golden, tmp_path: Path
) -> None:
    path = golden.unpack(ROOT / golden.FOLDER / release, about, CACHE / "golden")
    for architecture in ARCHITECTURES:
        done = tree.run(["restore", str(path), "--dry-run", "--host", str(facts(architecture)), "--json"], tmp_path)
        if architecture == about.architecture:
            assert done.code == 0, done.err
            assert {"claim", "rebuild", "load", "run"} <= {each["stage"] for each in json.loads(done.out)["steps"]}
        else:
            assert (done.code, "architecture" in done.err) == (REFUSED, True), done.err


@pytest.mark.parametrize(("release", "about"), FILES, ids=lambda each: getattr(each, "name", each))
def test_a_golden_is_looked_at_compared_and_carried_on_any_host(
    tree: Column, release: str, about: golden.Golden, tmp_path: Path
) -> None:
    path, out = golden.unpack(ROOT / golden.FOLDER / release, about, CACHE / "golden"), tmp_path / "out.snap"

    def said(*words: str | Path) -> Done:
        done = tree.run(list(map(str, words)), tmp_path)
        assert done.code == 0, done.err
        return done

    said("verify", path)
    with Image.open(path) as image:
        for entry in image.entries:
            assert entry.path in said("inspect", path, entry.path).out
    if about.architecture == "aarch64" and about.transport == "pci":
        assert "8193" in said("inspect", path, "gicv3-its/0", "--tables").out, "the first entry of the first device"
    said("convert", path, out, "--to", release)
    said("diff", path, out)
