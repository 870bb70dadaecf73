"""`make release`, in a copy of this checkout: what it changes, and everything that it refuses, by name."""

import re
import subprocess
import zipfile
from pathlib import Path

import pytest

from snapkit.state.releases import digest
from tests.compat.tree import CACHE, DATE, Tree
from tools import golden, release, stored, wheels

CONTROLLER = "snapkit/state/i8042.py"


def begin_next(tree: Tree) -> str:
    """Open the release after the newest, ready to be made."""
    name = f"{int(tree.release.split('.')[0]) + 1}.0.0"
    done = tree.run("tools.release", "--next", name)
    assert done.returncode == 0, done.stderr
    tree.edit("CHANGELOG.md", f"## {name}, not yet released\n", f"## {name}, {DATE}\n\n- Something.\n")
    tree.commit()
    return name


def test_freezes_schemas_version_goldens_and_wheel_and_nothing_else(ready: Tree, made: Tree) -> None:
    changed = {line[3:] for line in made.changed.splitlines()}
    stored_files = {str(path.relative_to(made.root)) for path in made.stored_files}
    assert changed == {*map(str, release.CHANGED), *stored_files}
    assert (made.root / release.VERSION).read_text() == f'__version__ = "{made.release}"\n'
    before, after = stored.releases(ready.root), stored.releases(made.root)
    assert after[:-1] == before[:-1]
    assert (before[-1].released, after[-1].released) == (None, DATE)
    assert after[-1].kinds == before[-1].kinds
    for name, wanted in after[-1].digests.items():
        assert digest((made.root / f"schemas/{name}.json").read_bytes()) == wanted


def test_goldens_cost_a_clone_next_to_nothing(made: Tree) -> None:
    assert all(path.stat().st_size < 20_000 for path in made.goldens.iterdir())


def test_wheel_holds_schemas_and_demo_guest_but_neither_tests_nor_tools(made: Tree) -> None:
    manifest = wheels.read_manifest(made.wheels)
    with zipfile.ZipFile(made.wheels / manifest.wheel.file) as archive:
        names = set(archive.namelist())
        assert archive.read("snapkit/schemas/releases.json") == (made.root / "schemas/releases.json").read_bytes()
    assert {
        "snapkit/guests/x86_64/demo.elf",
        "snapkit/guests/aarch64/demo.elf",
        "snapkit/schemas/pit/1.json",
        "snapkit/cli/boot.py",
    } <= names
    assert {name.partition("/")[0] for name in names} == {"snapkit", f"snapkit-{made.release}.dist-info"}


def test_the_same_tree_gives_the_same_wheel_on_any_day(made: Tree, tmp_path: Path) -> None:
    manifest = wheels.read_manifest(made.wheels)
    day_s = 18292 * 86400  # 2020-01-31
    again = wheels.build(made.root, tmp_path, day_s)
    assert golden.digest(again.read_bytes()) == manifest.wheel.sha256


def test_every_package_that_it_runs_on_is_pinned(made: Tree) -> None:
    lines = (made.wheels / "constraints.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)
    assert {"msgspec", "blake3", "click", "zstandard", "ioctl-opt", "numpy", "pyelftools"} <= {
        line.partition("==")[0] for line in lines
    }


def test_the_wheel_works_away_from_any_checkout(made: Tree, tmp_path: Path) -> None:
    python = wheels.stored_environment(made.wheels, CACHE / "wheels", made.root.parent)
    where = "import snapkit; print(snapkit.__file__)"
    for words, expected in (
        ([str(python), "-c", where], str(python.parents[1])),
        ([str(python.with_name("snapkit")), "--version"], made.release),
        ([str(python.with_name("snapkit")), "schema", "check"], "no violations"),
        ([str(python.with_name("snapkit")), "demo"], "tick"),
    ):
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout + done.stderr


def test_what_the_tree_writes_afterwards_carries_the_release(after: Tree) -> None:
    program = "from snapkit.state.releases import current_release as now; print(now().release, now().released)"
    done = subprocess.run(
        [after.run("sys").args[0], "-c", program], cwd=after.root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [after.release, DATE]
    assert after.run("snapkit", "schema", "check").returncode == 0


def test_a_release_is_made_once(after: Tree) -> None:
    (reason,) = after.refused()
    assert reason.startswith(f"version: release {after.release} was released on {DATE} and never changes again")
    assert "--next" in reason


def test_the_next_release_is_begun_with_the_kinds_of_the_last(after: Tree) -> None:
    last = stored.releases(after.root)[-1]
    name = begin_next(after)
    newest = stored.releases(after.root)[-1]
    assert (newest.release, newest.released, newest.kinds) == (name, None, last.kinds)
    assert (after.root / release.VERSION).read_text() == f'__version__ = "{name}.dev0"\n'
    assert after.run("tools.release", "--here", "--check").returncode == 0
    assert "is being worked on" in after.run("tools.release", "--next", "99.0.0").stderr


def test_uncommitted_changes_are_refused_by_name(tree: Tree) -> None:
    (tree.root / "stray.txt").touch()
    tree.edit("README.md", "# snapkit", "# Snapkit")
    (reason,) = tree.refused()
    assert reason.startswith("tree: not committed: README.md, stray.txt: commit or remove them")


def test_a_version_that_announces_another_release_is_refused(tree: Tree) -> None:
    (tree.root / release.VERSION).write_text('__version__ = "7.0.0.dev0"\n')
    tree.commit()
    (reason,) = tree.refused()
    assert (
        reason
        == f"version: snapkit/version.py announces 7.0.0, schemas/releases.json ends with {tree.release}: make them agree"
    )


@pytest.mark.parametrize(
    ("heading", "reason"),
    [
        ("", "has no section for"),
        ("## {}, not yet released", "give it its date"),
        ("## {}, 2999-01-01", "is dated 2999-01-01, which is to come"),
        ("## {}, 2020-01-31\n\n## 0.0.0, 2019-01-31", "is empty: write what changed"),
    ],
    ids=["missing", "undated", "to come", "empty"],
)
def test_a_change_log_that_does_not_tell_of_it_is_refused(tree: Tree, heading: str, reason: str) -> None:
    tree.edit("CHANGELOG.md", f"## {tree.release}, {DATE}", heading.format(tree.release))
    tree.commit()
    (found,) = tree.refused()
    assert found.startswith("changelog: ")
    assert reason in found


def test_a_schema_file_that_is_not_what_its_declaration_gives_is_refused(tree: Tree) -> None:
    tree.edit("schemas/i8042/1.json", '"x-kind": "i8042"', '"x-kind":  "i8042"')
    tree.commit()
    if len(stored.releases(tree.root)) == 1:
        (reason,) = tree.refused()
        assert reason.startswith("schema: stale: schemas/i8042/1.json")
        assert "run `make schemas`" in reason
    else:
        assert any(reason.startswith("schema: edited: schemas/i8042/1.json") for reason in tree.refused())


def test_a_released_schema_file_that_was_edited_is_refused(after: Tree) -> None:
    begin_next(after)
    after.edit("schemas/i8042/1.json", '"x-kind": "i8042"', '"x-kind":  "i8042"')
    after.commit()
    reasons = after.refused()
    assert any(reason.startswith("schema: edited: schemas/i8042/1.json") for reason in reasons), reasons


def test_a_released_struct_that_changed_without_a_new_version_is_refused(after: Tree) -> None:
    begin_next(after)
    after.edit(CONTROLLER, "    pending_command: U8 = 0\n", "    pending_command: U8 = 1\n")
    after.commit()
    (reason,) = after.refused()
    assert reason.startswith("schema: ")
    assert "i8042/1.pending_command" in reason
    assert "declare the next version, with both converters" in reason


def test_a_new_version_without_its_converters_is_refused(after: Tree) -> None:
    begin_next(after)
    with (after.root / CONTROLLER).open("a") as file:
        file.write(
            '\n\n@schema("i8042", version=2, max_len=1024)\nclass I8042State2(State):\n    """Newer."""\n\n    status: U8 = 0\n'
        )
    text = (after.root / release.RELEASES).read_bytes()
    head, last = text.rsplit(b'"i8042": 1', 1)
    (after.root / release.RELEASES).write_bytes(head + b'"i8042": 2' + last)
    assert after.run("snapkit", "schema", "generate").returncode == 0
    after.commit()
    reasons = after.refused()
    assert [reason for reason in reasons if "a converter from version 1 to 2" in reason]
    assert [reason for reason in reasons if "a converter from version 2 to 1" in reason]


def test_a_golden_or_wheel_of_an_older_release_that_is_missing_is_refused(after: Tree) -> None:
    gone = [after.goldens / "x86-64-none-base.snap.zst", *after.wheels.glob("*.whl")]
    begin_next(after)
    for path in gone:
        path.unlink()
    after.commit()
    assert after.refused() == [f"stored: {path} is missing; {golden.KEPT}" for path in gone]


def test_every_reason_is_told_at_once(tree: Tree) -> None:
    (tree.root / release.VERSION).write_text('__version__ = "7"\n')
    tree.edit("CHANGELOG.md", f", {DATE}", "")
    assert [reason.partition(":")[0] for reason in tree.refused()] == ["tree", "version", "changelog"]


@pytest.mark.usefixtures("kvm")
def test_a_release_that_fails_on_its_way_leaves_the_tree_as_it_was(tree: Tree) -> None:
    guest = "tests/guests/counter.c"
    tree.edit(guest, "void guest_main(", "#error broken\nvoid guest_main(")
    tree.commit()
    done = tree.run("tools.release", "--here", "--cache", str(CACHE / "wheels"))
    assert "nothing is missing" in done.stdout
    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "no release, and nothing was changed:")
    assert "#error broken" in done.stderr
    assert tree.changed == ""


def test_moving_it_into_the_checkout_is_undone_when_it_fails(ready: Tree, made: Tree, tmp_path: Path) -> None:
    tree = ready.copy(tmp_path / "tree")
    in_the_way = tree.wheels
    in_the_way.parent.mkdir(parents=True, exist_ok=True)
    in_the_way.touch()
    before = tree.changed
    with pytest.raises(FileExistsError, match="releases"):
        release.install(made.root, tree.root, made.release)
    assert tree.changed == before
    assert not (tree.root / golden.FOLDER / made.release).exists()
