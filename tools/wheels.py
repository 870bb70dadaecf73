"""Release wheels: built the same from the same tree, stored with what they run on, run each in its own environment.

``tests/compat/releases/<release>/`` holds the wheel, a ``constraints.txt`` that pins every package that it runs on, and a
``manifest.json`` with the digests of both and of the release's golden manifest.

`environment` makes a virtual environment of a stored wheel. Releases that are pinned to the same packages share one
folder of them, so that one more release costs a second and half a megabyte, not a numpy.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import msgspec

from snapkit.errors import ConfigError
from snapkit.state.releases import Release, parse
from tools.golden import KEPT, digest

FOLDER = Path("tests/compat/releases")
MANIFEST = "manifest.json"
CONSTRAINTS = "constraints.txt"
_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input")


class File(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A stored file and its SHA-256."""

    file: str
    sha256: str


class Manifest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``manifest.json`` of a release."""

    format: int
    release: str
    released: str
    python: str
    """The interpreter that the wheel was tried with."""
    wheel: File
    constraints: File
    goldens: File
    """The manifest of its goldens, relative to the checkout."""


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest in *folder*. Raises ConfigError that says what to do when it is not there or is none."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError as error:
        raise ConfigError(f"{folder / MANIFEST} is missing; {KEPT}") from error
    except msgspec.DecodeError as error:
        raise ConfigError(f"{folder / MANIFEST} is edited ({error}); {KEPT}") from error


def problems(folder: Path, root: Path) -> Iterator[str]:
    """Say what is missing, edited or too much in a release's *folder* of the checkout at *root*."""
    try:
        manifest = read_manifest(folder)
    except ConfigError as error:
        yield str(error)
        return
    for path, wanted in (
        (folder / manifest.wheel.file, manifest.wheel.sha256),
        (folder / manifest.constraints.file, manifest.constraints.sha256),
        (root / manifest.goldens.file, manifest.goldens.sha256),
    ):
        if not path.is_file():
            yield f"{path} is missing; {KEPT}"
        elif digest(path.read_bytes()) != wanted:
            yield f"{path} is edited; {KEPT}"
    listed = {manifest.wheel.file, manifest.constraints.file, MANIFEST}
    for path in sorted(folder.iterdir()):
        if path.name not in listed:
            yield f"{path} is in no manifest; remove it"


def pinned(root: Path) -> list[str]:
    """Return ``name==version`` of every package that snapkit runs on, as installed here, with what those run on.

    Raises ConfigError naming one that is not installed.
    """
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    waiting = [Requirement(text) for text in project["dependencies"]]
    found: dict[str, str] = {}
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            raise ConfigError(f"{name}, which snapkit runs on, is not installed; run `make setup`") from error
        waiting += [Requirement(text) for text in metadata.requires(name) or ()]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def build(root: Path, into: Path, epoch: int) -> Path:
    """Build the wheel of the tree at *root* twice into *into*; *epoch* is the time that its files get.

    Raises ConfigError when it does not build, or not to the same bytes.
    """
    built = []
    for attempt in ("first", "again"):
        target = into / attempt
        target.mkdir(parents=True)
        environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
        words = [*_PIP, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(target), str(root)]
        _run(words, "the wheel does not build", environment)
        (wheel,) = target.glob("*.whl")
        built.append(wheel)
    first, again = built
    if first.read_bytes() != again.read_bytes():
        raise ConfigError(f"building {first.name} twice gives different bytes")
    return first


def environment(wheel: Path, constraints: Path, cache: Path, where: Path | None = None) -> Path:
    """Return the interpreter of a virtual environment with *wheel* and what *constraints* pins, made when it is not there.

    It lies in *where*, or in *cache*; the packages always lie in *cache*.
    """
    pins = digest(constraints.read_bytes() + sys.version.encode())[:16]
    own = digest(wheel.read_bytes() + pins.encode())[:16]
    packages = cache / f"packages-{pins}"
    folder = (where or cache) / f"{wheel.name.split('-')[1]}-{own}"
    python = folder / "bin/python"
    with _locked(cache):
        if not packages.is_dir():
            partial = cache / f"partial-{pins}"
            shutil.rmtree(partial, ignore_errors=True)
            words = [*_PIP, "install", "--quiet", "--no-deps", "--target", str(partial), "-r", str(constraints)]
            _run(words, f"{constraints} cannot be installed")
            partial.rename(packages)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run([sys.executable, "-m", "venv", "--without-pip", str(folder)], "no virtual environment")
            (site,) = folder.glob("lib/python3*/site-packages")
            (site / "packages.pth").write_text(f"{packages.resolve()}\n")
            words = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
            words += ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
            _run(words, f"{wheel} cannot be installed")
            (folder / "complete").touch()
    return python


def stored_environment(folder: Path, cache: Path, where: Path | None = None) -> Path:
    """Return the interpreter of the environment of the wheel stored in *folder*; places as for `environment`."""
    manifest = read_manifest(folder)
    return environment(folder / manifest.wheel.file, folder / manifest.constraints.file, cache, where)


def unpacked(folder: Path, into: Path) -> Path:
    """Return where the wheel stored in *folder* was unpacked, below *into*: a program for who has what it runs on."""
    manifest = read_manifest(folder)
    place = into / manifest.release
    with zipfile.ZipFile(folder / manifest.wheel.file) as archive:
        archive.extractall(place)
    return place


def knows(folder: Path) -> tuple[Release, ...]:
    """Return the releases that the program stored in *folder* knows, oldest first; its own is the last."""
    with zipfile.ZipFile(folder / read_manifest(folder).wheel.file) as archive:
        return parse(archive.read("snapkit/schemas/releases.json"))


@contextmanager
def _locked(cache: Path) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(words: list[str], what: str, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode:
        raise ConfigError(f"{what}: {(done.stderr or done.stdout).strip()}")
