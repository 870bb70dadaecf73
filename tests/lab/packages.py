"""What the lab takes from Debian without installing it, and the cache that keeps it.

Each thing in the cache (`tests.lab.kernels`, `tests.lab.tools`, `tests.lab.root`) is one folder, named for what it is and
its versions, which appears there by one rename when it is complete, and holds a stamp. It is used while apt offers no
newer one or cannot be asked, so a machine without network goes on working. Two runs at once are kept apart by a lock.

Packages of this machine's architecture come by the system's own apt, those of another through a private state of it in
the cache: its own lists and no installed package, so the system's is never touched.

`python -m tests.lab.packages` fetches everything ahead of time and prints where it is.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.lab.architecture import ARCHITECTURES, Architecture

CHECKOUT = Path(__file__).resolve().parents[2]
_TOOLS = {
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "depmod": "kmod",
    "lz4": "lz4",
    "setpriv": "util-linux",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
_STAMP = "stamp.json"
_FETCH_S = 900
UNPACK_S = 300


class LabMissingError(Exception):
    """The lab cannot run on this machine; the text names what is missing and how to get it."""


def cache_folder() -> Path:
    """Give the cache: `SNAPKIT_LAB_CACHE`, else `.cache/lab` in the checkout. Created when absent."""
    named = os.environ.get("SNAPKIT_LAB_CACHE")
    folder = Path(named).resolve() if named else CHECKOUT / ".cache" / "lab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def cache_locked() -> Iterator[Path]:
    """Give the cache while other runs are kept out of it. Not to be entered twice."""
    cache = cache_folder()
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield cache


def newest(prefix: str, form: int) -> tuple[Path, dict[str, Any]] | None:
    """Give the newest folder of the cache named *prefix*_..., and its stamp. Those of another *form* do not count."""
    stamps = [(stamp, json.loads(stamp.read_text())) for stamp in cache_folder().glob(f"{prefix}_*/{_STAMP}")]
    stamps = [(stamp, facts) for stamp, facts in stamps if facts["format"] == form]
    if not stamps:
        return None
    stamp, facts = max(stamps, key=lambda pair: pair[0].stat().st_mtime)
    return stamp.parent, facts


def kept(prefix: str, version: str, form: int) -> Path | None:
    """Give the folder of the cache that `keep` made of just this."""
    stamp = _place(prefix, version) / _STAMP
    return stamp.parent if stamp.exists() and json.loads(stamp.read_text())["format"] == form else None


def keep(tree: Path, prefix: str, version: str, form: int, /, **facts: object) -> Path:
    """Put the complete folder *tree* into the cache, with its stamp; give its place."""
    (tree / _STAMP).write_text(json.dumps({"format": form, **facts}, indent=1) + "\n")
    place = _place(prefix, version)
    if place.exists():  # left by another form of this cache
        shutil.rmtree(place)
    tree.rename(place)
    return place


def contents(place: Path) -> list[Path]:
    """List the files of a folder of the cache, without its stamp."""
    return [path for path in sorted(place.rglob("*")) if path.is_file() and path.name != _STAMP]


def _place(prefix: str, version: str) -> Path:
    return cache_folder() / f"{prefix}_{re.sub(r'[^A-Za-z0-9.+~-]', '_', version)}"


class Apt:
    """Debian's packages of one architecture."""

    def __init__(self, architecture: Architecture) -> None:
        self._private = not architecture.is_host
        # Without a sandbox user: the folders are the caller's own, and apt would warn about it.
        options = {"APT::Sandbox::User": "root"} if os.geteuid() == 0 else {}
        if self._private:
            state = cache_folder() / f"apt-{architecture.debian}"
            options |= {
                "APT::Architecture": architecture.debian,
                "APT::Architectures": architecture.debian,
                "Dir::State::Lists": str(state),
                "Dir::State::status": "/dev/null",
                "Dir::Cache::pkgcache": str(state / "pkgcache.bin"),
                "Dir::Cache::srcpkgcache": "",
                "Debug::NoLocking": "1",
            }
            (state / "partial").mkdir(parents=True, exist_ok=True)
        self._options = [f"-o{name}={value}" for name, value in options.items()]

    def states(self) -> Iterator[None]:
        """Go through the states in which a package may be found: apt's lists as they are, and refreshed."""
        yield
        if self._private or os.geteuid() == 0:
            run_tool(["apt-get", *self._options, "-q", "update"], timeout=_FETCH_S)
            yield

    def show(self, package: str) -> str:
        """Give what the lists say of a package; nothing when they have none."""
        return self._ask("show", "--no-all-versions", package)

    def candidates(self, choices: Sequence[Sequence[str]]) -> dict[str, str] | None:
        """Give the version offered of one package of each choice, the first that is; None when one has none."""
        text = self._ask("policy", *(name for choice in choices for name in choice))
        offered = dict(re.findall(r"^(\S+):\n(?:  .*\n)*?  Candidate: (?!\(none\))(\S+)$", text, re.MULTILINE))
        chosen = [next((name for name in choice if name in offered), None) for choice in choices]
        return {name: offered[name] for name in chosen if name} if None not in chosen else None

    def download(self, versions: dict[str, str], folder: Path) -> None:
        """Download these packages into *folder*. Raises `LabMissingError`."""
        wanted = [f"{name}={version}" for name, version in versions.items()]
        run_tool(["apt-get", *self._options, "-q", "download", *wanted], cwd=folder, timeout=_FETCH_S)

    def download_all(self, versions: dict[str, str], folder: Path) -> None:
        """Download these packages and all that they depend on into *folder*. Raises `LabMissingError`."""
        assert self._private, "what is installed here would be missing"
        (folder / "partial").mkdir(exist_ok=True)
        wanted = [f"{name}={version}" for name, version in versions.items()]
        options = [*self._options, f"-oDir::Cache::archives={folder}"]
        command = ["apt-get", *options, "-q", "-y", "--no-install-recommends", "--download-only", "install", *wanted]
        run_tool(command, timeout=_FETCH_S)

    def _ask(self, *words: str) -> str:
        try:
            return output(["apt-cache", *self._options, *words])
        except LabMissingError:
            return ""


def missing_tools(architecture: Architecture) -> list[str]:
    """Name the programs the lab lacks here, each with the Debian package that brings it."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    wanted = {
        **_TOOLS,
        architecture.emulator: architecture.emulator_package,
        architecture.compiler: architecture.compiler_package,
    }
    lacking = [
        f"{tool} (package {package})" for tool, package in wanted.items() if shutil.which(tool, path=path) is None
    ]
    if not lacking and b"ld-linux" in host_busybox().read_bytes()[:4096]:
        lacking.append("a busybox without shared libraries (package busybox-static)")
    return lacking


def host_busybox() -> Path:
    """Give the static busybox of this machine."""
    found = shutil.which("busybox")
    if found is None:
        raise LabMissingError("busybox (package busybox-static)")
    return Path(found)


def output(command: list[str]) -> str:
    """Run a tool that answers at once and give what it prints; raises what `run_tool` raises."""
    return run_tool(command, timeout=60).decode(errors="replace")


def run_tool(command: list[str], *, timeout: float, stdin: bytes = b"", cwd: Path | None = None) -> bytes:
    """Run a tool to its end; raise `LabMissingError` with its own words when it is absent or fails."""
    environment = {**os.environ, "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, timeout=timeout, cwd=cwd, env=environment, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabMissingError(f"{command[0]}: {error}") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip()
        raise LabMissingError(f"{' '.join(command)}: exit {done.returncode}: {words[-600:]}")
    return done.stdout


def main() -> int:
    """Fetch everything and say where it is."""
    from tests.lab import kernels, root, tools

    lacking = {text: None for architecture in ARCHITECTURES.values() for text in missing_tools(architecture)}
    if lacking:
        print(f"missing: {', '.join(lacking)}", file=sys.stderr)
        return 1
    for architecture in ARCHITECTURES.values():
        for package in (architecture.outer_kernel, architecture.guest_kernel):
            found = kernels.kernel(architecture, package)
            print(f"{package} {found.version}: {found.folder}")
        print(f"programs of {architecture.name} guests: {tools.folder(architecture)}")
        if not architecture.is_host:
            made = root.root(architecture)
            print(f"root of the {architecture.name} machine: {made.tree}, Python packages: {made.site}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
