"""Every section of every golden is read where snapkit cannot be imported: with ``schemas`` and a msgpack library alone."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from snapkit.errors import ConfigError
from snapkit.restore.image import Image
from snapkit.state.inspect import flat
from tests.compat.tree import CACHE, ROOT
from tools import golden, stored

READER = ROOT / "tests/contract/plain_reader.py"
ALONE = """
import runpy, sys
sys.modules["snapkit"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
assert not [name for name in sys.modules if name.startswith("snapkit.")]
"""


def alone(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the reader in an interpreter that finds no snapkit, neither installed nor where it is started."""
    command = [sys.executable, "-I", "-c", ALONE, READER, *words]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120, check=False)


def files() -> list[Path]:
    return [
        golden.unpack(ROOT / golden.FOLDER / release, entry, CACHE / "golden")
        for release, entry in stored.goldens(ROOT)
    ]


def told(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def test_every_section_of_every_golden_is_read_without_the_program_that_wrote_it() -> None:
    paths = files()
    done = alone(ROOT / "schemas", *paths)
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout)
    assert list(read) == [str(path) for path in paths]
    for path in paths:
        with Image.open(path) as image:
            states = image.sections().states
        expected = {
            str(where): {leaf.removeprefix(f"{where}."): told(value) for leaf, value in flat(state, str(where))}
            for where, state in states.items()
        }
        assert read[str(path)] == expected
        assert len(expected) >= 8


def test_the_reader_needs_the_schema_files_and_finds_no_snapkit(tmp_path: Path) -> None:
    path = files()[0]
    done = alone(tmp_path, path)
    assert done.returncode != 0
    assert "1.json" in done.stderr.splitlines()[-1]
    broken = ALONE.replace('runpy.run_path(sys.argv[0], run_name="__main__")', "import snapkit.errors")
    command = [sys.executable, "-I", "-c", broken, str(READER)]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "ModuleNotFoundError" in found.stderr


def test_goldens_that_cannot_be_listed_are_not_skipped() -> None:
    with pytest.raises(ConfigError, match="git checkout"):
        golden.read_manifest(ROOT / "tests/golden/none")
    assert len(files()) >= 6
