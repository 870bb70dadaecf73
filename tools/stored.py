"""What must be stored for every release: its goldens and, in the main line, its wheel, complete and untouched.

python -m tools.stored      say what is wrong; exit 1 when anything is
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from snapkit.state.releases import Release, main_line, parse
from tools import golden, wheels

ROOT = Path(__file__).resolve().parents[1]


def releases(root: Path) -> tuple[Release, ...]:
    """Read ``schemas/releases.json`` of the checkout at *root*."""
    return parse((root / "schemas/releases.json").read_bytes())


def problems(root: Path) -> Iterator[str]:
    """Say, with what to do, everything that is missing, edited or too much in the checkout at *root*."""
    every = releases(root)
    released = [each.release for each in every if each.released]
    programs = [each.release for each in main_line(every) if each.released]
    for release in released:
        yield from golden.problems(root / golden.FOLDER / release)
        if release in programs:
            yield from wheels.problems(root / wheels.FOLDER / release, root)
    for folder, names in ((root / golden.FOLDER, released), (root / wheels.FOLDER, programs)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name not in names:
                yield f"{path} belongs to no release in schemas/releases.json; remove it"


def goldens(root: Path) -> Iterator[tuple[str, golden.Golden]]:
    """Give every golden of every release, with the release."""
    for each in releases(root):
        if each.released:
            yield from (
                (each.release, entry) for entry in golden.read_manifest(root / golden.FOLDER / each.release).goldens
            )


if __name__ == "__main__":
    found = list(problems(ROOT))
    for problem in found:
        print(problem)
    sys.exit(1 if found else 0)
