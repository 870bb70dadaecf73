"""What releases stored is all there and untouched, and what is not is named with what to do."""

from pathlib import Path

import pytest

from snapkit.errors import ConfigError
from snapkit.state.releases import render
from tests.compat.tree import ROOT, Tree
from tools import golden, release, stored

GOLDENS = (
    "manifest.json",
    "x86-64-mmio-all.root.img.zst",
    "x86-64-mmio-all.snap.zst",
    "x86-64-none-base.snap.zst",
    "x86-64-none-smp.snap.zst",
    "x86-64-pci-all.root.img.zst",
    "x86-64-pci-all.snap.zst",
)
STORED = (*GOLDENS, "constraints.txt", "manifest.json")


def test_every_release_has_its_goldens_and_its_wheel_untouched() -> None:
    found = list(stored.problems(ROOT))
    assert not found, "\n".join(found)


def test_a_release_stores_goldens_and_a_wheel_with_its_pins(made: Tree) -> None:
    names = [path.name for path in made.stored_files]
    assert names == [*STORED, f"snapkit-{made.release}-py3-none-any.whl"]
    assert list(stored.problems(made.root)) == []


@pytest.mark.parametrize("number", range(len(STORED) + 1))
def test_a_stored_file_that_is_gone_is_named(after: Tree, number: int) -> None:
    path = list(after.stored_files)[number]
    path.unlink()
    named = [problem for problem in stored.problems(after.root) if problem.startswith(f"{path} is missing; ")]
    assert named, list(stored.problems(after.root))
    assert all("git checkout" in problem for problem in named)


@pytest.mark.parametrize("number", range(len(STORED)))
def test_a_stored_file_that_was_edited_is_named(after: Tree, number: int) -> None:
    path = list(after.stored_files)[number]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = [problem for problem in stored.problems(after.root) if problem.startswith(f"{path} is edited")]
    assert found, list(stored.problems(after.root))


def test_goldens_of_a_release_that_is_gone_or_open_again_are_named(after: Tree) -> None:
    entry = stored.releases(after.root)[-1]
    reopened = type(entry)(release=entry.release, kinds=entry.kinds)
    (after.root / release.RELEASES).write_bytes(render((*stored.releases(after.root)[:-1], reopened)))
    assert [problem.partition(" ")[0] for problem in stored.problems(after.root)] == [
        str(after.goldens),
        str(after.wheels),
    ]


def test_a_file_that_no_manifest_knows_is_named(after: Tree) -> None:
    for folder in (after.goldens, after.wheels):
        (folder / "stray").touch()
    assert list(stored.problems(after.root)) == [
        f"{folder / 'stray'} is in no manifest; remove it" for folder in (after.goldens, after.wheels)
    ]


def test_a_golden_that_is_missing_or_edited_is_not_unpacked(after: Tree, tmp_path: Path) -> None:
    base, smp, pci, mmio = golden.read_manifest(after.goldens).goldens
    (after.goldens / base.file).unlink()
    (after.goldens / smp.file).write_bytes(b"\0" * 100)
    with pytest.raises(ConfigError, match=r"base\.snap\.zst is missing; .*git checkout"):
        golden.unpack(after.goldens, base, tmp_path)
    with pytest.raises(ConfigError, match=r"smp\.snap\.zst is edited; .*git checkout"):
        golden.unpack(after.goldens, smp, tmp_path)
    (after.goldens / pci.disks[0].file).unlink()
    (after.goldens / mmio.disks[0].file).write_bytes(b"\0" * 100)
    for about, wrong in ((pci, "missing"), (mmio, "edited")):
        with pytest.raises(ConfigError, match=rf"root\.img\.zst is {wrong}; .*git checkout"):
            golden.host_ends(after.goldens, about, tmp_path)


def test_a_guest_that_repeats_or_loses_a_line_did_not_go_on(made: Tree) -> None:
    base = golden.read_manifest(made.goldens).goldens[0]
    base.count, base.partial_line = 7, "cou"
    assert base.went_on("nt 8\ncount 9\ncou") == ["count 8", "count 9"]
    for output in ("nt 7\ncount 8\n", "nt 9\n", "count 8\n", "nt 80\n"):
        with pytest.raises(ConfigError, match="due was count 8"):
            base.went_on(output)
