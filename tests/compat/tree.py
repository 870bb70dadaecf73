"""A copy of this checkout with a repository of its own: something to release, to edit and to break."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from snapkit.state.releases import render
from tools import golden, matrix_view, release, stored, table, wheels
from tools.decided import Decided

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
DATE = "2020-01-31"
_RUN_S = 1500
"""For a whole release on a busy machine: two wheels, an environment, goldens, the matrix."""
_GIT = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    **{f"GIT_{who}_{what}": "tests@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


class Tree:
    """A checkout below a temporary folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    @classmethod
    def of_checkout(cls, root: Path) -> "Tree":
        """Copy what this checkout holds, committed or not, with its newest release not made yet and ready to be made."""
        listed = _git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for name in sorted(set(filter(None, listed.split("\0")))):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        tree = cls(root)
        newest = stored.releases(root)[-1]
        for folder in (golden.FOLDER, wheels.FOLDER):
            shutil.rmtree(root / folder / newest.release, ignore_errors=True)
        entries = (*stored.releases(root)[:-1], replace(newest, released=None, digests={}))
        (root / release.RELEASES).write_bytes(render(entries))
        decided = Decided.read(root)
        for row, check in list(decided.names()):
            if (row, check) not in table.names(root):
                del decided.rows[row][check]
        decided.write(root, table.names(root))
        matrix_view.write_readme(root, decided)
        release._set_version(root, f"{newest.release}.dev0")
        heading = rf"^## {re.escape(newest.release)}, .*$"
        log = root / release.CHANGELOG
        log.write_text(
            re.sub(heading, f"## {newest.release}, {DATE}\n\n- Something.", log.read_text(), flags=re.MULTILINE)
        )
        _git(root, "init", "--quiet")
        tree.commit()
        return tree

    def copy(self, root: Path) -> "Tree":
        shutil.copytree(self.root, root, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        return Tree(root)

    @property
    def release(self) -> str:
        """The newest release in releases.json."""
        return stored.releases(self.root)[-1].release

    @property
    def goldens(self) -> Path:
        return self.root / golden.FOLDER / self.release

    @property
    def wheels(self) -> Path:
        return self.root / wheels.FOLDER / self.release

    @property
    def stored_files(self) -> Iterator[Path]:
        """Every file that the newest release stored."""
        yield from (path for folder in (self.goldens, self.wheels) for path in sorted(folder.iterdir()))

    def commit(self) -> None:
        _git(self.root, "add", "--all")
        _git(self.root, "commit", "--quiet", "--allow-empty", "--message", "for a test")

    @property
    def changed(self) -> str:
        return _git(self.root, "status", "--porcelain", "--untracked-files=all")

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace the one *old* in a file by *new*."""
        text = (self.root / name).read_text()
        assert text.count(old) == 1, (name, old)
        (self.root / name).write_text(text.replace(old, new))

    def run(self, module: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of the copy's own modules."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [sys.executable, "-m", module, *words]
        return subprocess.run(
            command, cwd=self.root, env=clean, capture_output=True, text=True, timeout=_RUN_S, check=False
        )

    def refused(self) -> list[str]:
        """Ask for a release that must be refused, assert that it left everything alone, and return the reasons."""
        before = self.changed
        done = self.run("tools.release", "--here", "--cache", str(CACHE / "wheels"))
        assert done.returncode == 1, (done.stdout, done.stderr)
        assert self.changed == before
        first, *reasons = done.stderr.splitlines()
        assert first == "no release, and nothing was changed:", done.stderr
        assert all(reason.startswith("- ") for reason in reasons), done.stderr
        return [reason.removeprefix("- ") for reason in reasons]


def _git(root: Path, *words: str) -> str:
    # The checkout may be somebody else's: the setting that allows it is in a file of those that are not read here.
    command = ["git", "-c", f"safe.directory={root}", *words]
    done = subprocess.run(command, cwd=root, env={**os.environ, **_GIT}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
