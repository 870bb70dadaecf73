"""Every golden that a program of this project wrote, and that program, from its stored wheel."""

import subprocess
from pathlib import Path

import pytest

from tests.compat.conftest import PROGRAMS, GoldenFile, goldens_where
from tests.compat.tree import CACHE
from tools import golden, wheels

pytestmark = goldens_where(lambda release, _transport: release in PROGRAMS)


@pytest.mark.usefixtures("kvm")
def test_its_own_release_still_reads_and_restores_it(golden_file: GoldenFile, tmp_path: Path) -> None:
    python = wheels.stored_environment(golden_file.wheel, CACHE / "wheels", golden_file.environments)
    words: list[str | Path] = [python, "-P", "-m", "snapkit", "inspect", golden_file.path]
    shown = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert golden_file.release in shown.stdout
    program = [str(python.with_name("snapkit"))]
    assert len(golden.restore(program, golden_file.path, golden_file.about, golden_file.folder)) >= 2
