"""What must be stored for every release: its goldens and, in the main line, its wheel, complete and untouched.

python -m tools.stored      say what is wrong; exit 1 when anything is
"""

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

from snapkit.errors import ConfigError
from snapkit.state.releases import Release, main_line, parse
from tools import golden, wheels
from tools.golden import KEPT

ROOT = Path(__file__).resolve().parents[1]


def releases(root: Path) -> tuple[Release, ...]:
    """Read ``schemas/releases.json`` of the checkout at *root*."""
    return parse((root / "schemas/releases.json").read_bytes())


def architectures(release: Release) -> frozenset[str]:
    """Return the architectures whose machines *release* has: those of its kinds of vCPU."""
    return frozenset(kind.removeprefix("vcpu-") for kind in release.kinds if kind.startswith("vcpu-"))


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
    for release in programs:
        yield from _thawed(root, release)


def _thawed(root: Path, release: str) -> Iterator[str]:
    """Say which schema file or entry is not as the wheel of *release* has it, even where its digest was edited as well."""
    try:
        wheel = root / wheels.FOLDER / release / wheels.read_manifest(root / wheels.FOLDER / release).wheel.file
        archive = zipfile.ZipFile(wheel)
    except (ConfigError, OSError, zipfile.BadZipFile):  # told of as missing or edited
        return
    now = {each.release: each for each in releases(root)}
    with archive:
        for entry in parse(archive.read("snapkit/schemas/releases.json")):
            if entry.released is None:
                continue
            if now.get(entry.release) != entry:
                yield f"{root / 'schemas/releases.json'}: release {entry.release} is edited, by {wheel}; {KEPT}"
            for name in entry.digests if entry.release == release else ():
                path = root / f"schemas/{name}.json"
                if path.is_file() and path.read_bytes() != archive.read(f"snapkit/schemas/{name}.json"):
                    yield f"{path} is edited, by {wheel}; {KEPT}"
                elif not path.is_file():
                    yield f"{path} is missing; {KEPT}"


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
