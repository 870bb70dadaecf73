"""What must never change is taken away or edited, piece by piece, and each time it is noticed and said what to do.

Files are those of a temporary copy of the tree; converters are edited beside the ones that are registered. What notices
is what the suite's own tests assert to be empty; that these tests fail by it, in a suite of a copied tree, is shown for
one of each sort here and for each piece in the long run.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from inspect import getsource
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from snapkit.errors import ConfigError, InternalError
from snapkit.state import releases
from snapkit.state.law import violations
from snapkit.state.releases import digest, parse
from tests.compat.conversions import FOLDER, Example, difference, recorded, steps
from tests.compat.edited import Edited, edits_of, modules
from tests.compat.tree import ROOT
from tools import golden, stored, wheels

RELEASES = "schemas/releases.json"
GUARDS = (
    "tests/state/test_law.py::test_tree_as_it_is_keeps_the_law",
    "tests/compat/test_stored.py::test_every_release_has_its_goldens_and_its_wheel_untouched",
    "tests/compat/test_conversions.py::test_every_converter_does_what_it_did_when_it_was_recorded",
)
"""The part of the suite that must notice, whatever is taken away: seconds, anywhere."""
RELEASED = sorted({name for each in stored.releases(ROOT) if each.released for name in each.digests})
STORED = sorted(
    str(path.relative_to(ROOT)) for folder in (golden.FOLDER, wheels.FOLDER) for path in (ROOT / folder).rglob("*.*")
    if path.is_file()
)  # fmt: skip
SLICE = 24
SAME = {
    "_ranges: 32 and one": "no window begins or ends between 4 and 8 GiB",
    "_without_owners: 1 and one": "before the first claim, whatever the number",
    "_with_registers: 8 and one": "more bytes than the register takes",
    "_with_registers: 4 and one": "the upper half is 0 below 4 GiB and cut off",
    "_table_dropped: 0 and one": "of the words only",
    "_routes: 0 and one": "the last bits of message control are reserved and 0",
    "_routes: 2 and one": "the last bits of message control are reserved and 0",
    "_routes: forgotten: strict of zip": "false is what it is without",
}
"""Edits after which a converter does the same with every machine that there can be, with the reason."""


def some_of(names: list[str], count: int = 4) -> list[Any]:
    """Return *names* for a test to be run with: all of them in the long run, *count* in every run."""
    chosen = Random(3).sample(names, count)
    return [pytest.param(name, marks=[] if name in chosen else [pytest.mark.soak]) for name in names]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of what is kept: schemas, goldens, wheels. Whoever changes it puts it back."""
    root = tmp_path_factory.mktemp("kept")
    for name in ("schemas", golden.FOLDER, wheels.FOLDER):
        shutil.copytree(ROOT / name, root / name)
    yield root
    shutil.rmtree(root)


def noticed(root: Path) -> list[str]:
    """Return what is said about the schema files and what else is kept in the tree at *root*."""
    names = [
        name for each in stored.releases(root) for name in (f"{kind}/{version}" for kind, version in each.kinds.items())
    ]
    files = {name: root / f"schemas/{name}.json" for name in names}
    with releases.temporary(*stored.releases(root)):
        found = violations({name: path.read_bytes() for name, path in files.items() if path.is_file()})
    return [f"{finding.rule}: {finding}" for finding in found] + list(stored.problems(root))


def edited(path: Path) -> bytes:
    """Return the content of *path* with one bit, or one word of a schema, changed."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return bytes(content)


def test_nothing_is_noticed_in_a_copy_that_nobody_touched(kept: Path) -> None:
    assert noticed(kept) == []


@pytest.mark.parametrize("name", some_of(RELEASED))
def test_a_released_schema_that_is_removed_or_edited_is_named_with_what_to_do(kept: Path, name: str) -> None:
    path = kept / f"schemas/{name}.json"
    content = path.read_bytes()
    try:
        for change in (None, edited(path), content.replace(b'"minimum": 0', b'"minimum": 1', 1), content + b"\n"):
            path.unlink() if change is None else path.write_bytes(change)
            told = (
                [line for line in noticed(kept) if f"schemas/{name}.json" in line]
                if change != content
                else ["git checkout"]
            )
            assert told
            assert all("git checkout" in line for line in told), told
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize("name", some_of(RELEASED))
def test_a_released_schema_that_is_edited_together_with_its_digest_is_named(kept: Path, name: str) -> None:
    if not (programs := [each for each in os.listdir(kept / wheels.FOLDER) if name in _digests(kept, each)]):
        assert name.startswith("preview-"), "only those of a line without programs"
        return
    path, listed = kept / f"schemas/{name}.json", kept / RELEASES
    content, before = path.read_bytes(), listed.read_bytes()
    try:
        change = content.replace(b'"title": "', b'"title": "The ', 1)
        path.write_bytes(change)
        listed.write_bytes(before.replace(digest(content).encode(), digest(change).encode()))
        told = noticed(kept)
        assert any(f"schemas/{name}.json is edited, by " in line and "git checkout" in line for line in told), told
        assert any(f"release {programs[0]} is edited, by " in line for line in told), told
    finally:
        path.write_bytes(content)
        listed.write_bytes(before)


def _digests(root: Path, release: str) -> set[str]:
    return {name for each in stored.releases(root) if each.release == release for name in each.digests}


@pytest.mark.parametrize("name", some_of([each.release for each in stored.releases(ROOT) if each.released]))
def test_a_release_that_is_taken_out_of_the_list_or_edited_in_it_is_named(kept: Path, name: str) -> None:
    listed = kept / RELEASES
    content = listed.read_bytes()
    whole = msgspec.json.decode(content)
    (entry,) = (each for each in whole["releases"] if each["release"] == name)
    try:
        entry["kinds"].popitem()
        listed.write_bytes(msgspec.json.encode(whole))
        assert noticed(kept)
        if "joins" not in entry:  # what others join cannot be read without it
            whole["releases"] = [each for each in whole["releases"] if each is not entry]
            listed.write_bytes(msgspec.json.encode(whole))
            if name in {each.get("joins") for each in whole["releases"]}:
                with pytest.raises(InternalError, match="which does not follow it"):
                    parse(listed.read_bytes())
            else:
                assert any(name in line for line in noticed(kept))
    finally:
        listed.write_bytes(content)


@pytest.mark.parametrize("name", STORED)
def test_a_golden_or_a_wheel_that_is_removed_or_edited_is_named_with_what_to_do(kept: Path, name: str) -> None:
    path = kept / name
    content = path.read_bytes()
    try:
        for change in (None, edited(path)):
            path.unlink() if change is None else path.write_bytes(change)
            told = list(stored.problems(kept))
            if (
                name.endswith("manifest.json") and change is not None
            ):  # any other name or digest in it is noticed at what it names
                assert told or golden.read_manifest(path.parent)
                continue
            assert any(line.startswith(str(path)) and "git checkout" in line for line in told), told
    finally:
        path.write_bytes(content)


# Converters


def survives(change: Edited) -> bool:
    """Return whether every example gives what it gave."""
    return not any(difference(step, example) for name, step in change.steps().items() for example in examples(name))


@cache
def examples(name: str) -> list[Example]:
    return recorded(FOLDER / f"{name}.json")


def plain(change: Edited) -> str:
    return re.sub(r"line \d+, ", "", change.what)


def all_edits() -> list[Edited]:
    return [change for module in modules() for change in edits_of(module)]


def test_a_converter_that_is_edited_is_noticed() -> None:
    every = [change for change in all_edits() if plain(change) not in SAME]
    gone = {change.what.partition(":")[0]: change for change in every if "nothing returned" in change.what}
    assert {step.run.__name__ for step in steps().values()} <= gone.keys()
    for change in Random(7).sample(every, SLICE):
        assert not survives(change), change.what


@pytest.mark.soak
def test_every_edit_of_every_converter_is_noticed_unless_it_changes_nothing() -> None:
    survivors = {plain(change) for change in all_edits() if survives(change)}
    assert survivors == set(SAME)


# The suite itself


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the tree as it is. Whoever changes it puts it back."""
    root = tmp_path_factory.mktemp("copied") / "tree"
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    yield root
    shutil.rmtree(root)


def suite(root: Path) -> tuple[int, str]:
    """Run the guards in the copy; returns pytest's exit code and all that it says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    words = [sys.executable, "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", *GUARDS]
    done = subprocess.run(words, cwd=root, env=clean, capture_output=True, text=True, timeout=200, check=False)
    return done.returncode, done.stdout + done.stderr


def check_suite_fails(root: Path, changes: dict[str, bytes | None], *advice: str) -> None:
    """Assert that the suite of the copy fails and says *advice* once files are changed in it, or removed."""
    contents = {name: (root / name).read_bytes() for name in changes}
    try:
        for name, change in changes.items():
            (root / name).unlink() if change is None else (root / name).write_bytes(change)
        code, told = suite(root)
        assert code != 0, told
        for words in advice or ("git checkout",):
            assert words in told, told[-3000:]
    finally:
        for name, content in contents.items():
            (root / name).write_bytes(content)


def without(path: Path, function: str) -> bytes:
    """Return the module at *path* without one of its functions and what registers it."""
    lines = path.read_text().splitlines(keepends=True)
    (node,) = (
        node for node in ast.parse("".join(lines)).body if isinstance(node, ast.FunctionDef) and node.name == function
    )
    start = min(decorator.lineno for decorator in node.decorator_list) - 1
    return "".join([*lines[:start], *lines[node.end_lineno :]]).encode()


def sources() -> list[tuple[str, str]]:
    """Return each converter's file, relative to the tree, and the name of its function."""
    found = []
    for step in steps().values():
        module = import_module(step.run.__module__)
        assert step.run.__name__ in getsource(module)
        found.append((f"{step.run.__module__.replace('.', '/')}.py", step.run.__name__))
    return found


def test_the_suite_of_a_copy_is_content_until_something_is_taken_away(tree: Path) -> None:
    code, told = suite(tree)
    assert code == 0, told
    schema, packed = f"schemas/{RELEASED[0]}.json", next(name for name in STORED if name.endswith(golden.SUFFIX))
    path, function = next((path, function) for path, function in sources() if "machine_converters" in path)
    changes = {schema: None, packed: edited(tree / packed), path: without(tree / path, function)}
    each = (f"{schema} is missing", f"{packed} is edited", "paired with one from", "records is gone", "git checkout")
    check_suite_fails(tree, changes, *each)


@pytest.mark.soak
@pytest.mark.parametrize("name", [*(f"schemas/{name}.json" for name in RELEASED), *STORED])
def test_the_suite_fails_without_any_file_that_is_kept(tree: Path, name: str) -> None:
    check_suite_fails(tree, {name: None})


@pytest.mark.soak
@pytest.mark.parametrize(("name", "function"), sources())
def test_the_suite_fails_without_any_converter(tree: Path, name: str, function: str) -> None:
    check_suite_fails(tree, {name: without(tree / name, function)})


def test_a_manifest_that_cannot_be_read_is_no_silence(kept: Path) -> None:
    path = kept / golden.FOLDER / "0.1.0" / golden.MANIFEST
    content = path.read_bytes()
    try:
        path.write_bytes(b"{}")
        assert any("is edited" in line and "git checkout" in line for line in stored.problems(kept))
        with pytest.raises(ConfigError, match="git checkout"):
            golden.read_manifest(path.parent)
    finally:
        path.write_bytes(content)
