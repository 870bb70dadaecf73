"""The root of an outer machine of another architecture than this host's: Debian packages and the project's Python wheels.

Packages are unpacked, never installed: no script of theirs runs, since their programs could not run here. What scripts
would have made and the lab needs is made by hand: users, and busybox's names for programs that no package brought.
Python's modules are compiled by this host's Python of the same minor version, unchecked by hash: a lookup of each source
file is a round trip in the machine, and imports become three times as fast.

Two folders of the cache, since they change for different reasons: `tree`, laid out as in the machine, and `site`, which
appears where Debian's Python looks for what is not Debian's.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from tests.lab import packages
from tests.lab.architecture import Architecture
from tests.lab.packages import CHECKOUT, UNPACK_S, Apt, LabMissingError, cache_locked, host_busybox, output, run_tool

# What scenarios run beside snapkit; QEMU is the peer.
PACKAGES = (
    *(("python3",), ("libseccomp2",), ("busybox-static",), ("coreutils",), ("dash",), ("grep",), ("sed",)),
    *(("socat",), ("e2fsprogs",), ("xfsprogs",), ("util-linux",), ("qemu-system-arm",)),
)
PYTHON = "/usr/bin/python3"

_FORM = 1  # raise when what a cached folder holds changes
_MERGED = ("bin", "sbin", "lib", "lib64")
_UNWANTED = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "usr/share/iso-codes")
_GLIBC = ("2014", "_2_27", "_2_28")  # of manylinux: what wheels are built for; Debian's is newer than all
_PIP_S = 600


@dataclass(frozen=True)
class Root:
    """Where the root of a machine lies here."""

    tree: Path
    site: Path
    python_version: str  # "3.11"

    @property
    def site_inside(self) -> str:
        """Where Debian's Python finds `site`."""
        return _site_inside(self.python_version)


@functools.cache
def root(architecture: Architecture) -> Root:
    """Give the root, from the cache or freshly made; the same one throughout a run.

    Raises `LabMissingError` when there is none in the cache and apt or pip give no packages.
    """
    with cache_locked() as cache:
        tree, version = _tree(architecture, cache)
        return Root(tree, _site(architecture, cache, version), version)


def busybox(architecture: Architecture) -> Path:
    """Give a static busybox for machines of this architecture."""
    return host_busybox() if architecture.is_host else root(architecture).tree / "usr/bin/busybox"


def host_python(version: str) -> str | None:
    """Give a Python of this host that compiles modules for *version* ("3.11"); None when there is none."""
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    return shutil.which(f"python{version}")


def _tree(architecture: Architecture, cache: Path) -> tuple[Path, str]:
    prefix = f"root-{architecture.debian}"
    apt = Apt(architecture)
    candidates = apt.candidates(PACKAGES)
    cached = packages.newest(prefix, _FORM)
    if cached and candidates in (None, cached[1]["packages"]):
        return cached[0], cached[1]["python"]
    try:
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as name:
            work = Path(name)
            versions = _download(apt, work)
            tree = work / "tree"
            version = _unpack(work, tree)
            facts = {"packages": versions, "python": version}
            return packages.keep(tree, prefix, _digest(versions), _FORM, **facts), version
    except LabMissingError:
        if cached:
            return cached[0], cached[1]["python"]
        raise


def _download(apt: Apt, work: Path) -> dict[str, str]:
    for _ in apt.states():
        if found := apt.candidates(PACKAGES):
            with contextlib.suppress(LabMissingError):
                apt.download_all(found, work)
                return found
    wanted = ", ".join(choice[-1] for choice in PACKAGES)
    raise LabMissingError(f"the Debian packages {wanted} (apt offers not all of them for download)")


def _unpack(debs: Path, tree: Path) -> str:
    """Make the tree out of packages; give the version of its Python."""
    for name in _MERGED:  # packages name both forms of these folders
        (tree / "usr" / name).mkdir(parents=True)
        (tree / name).symlink_to(f"usr/{name}")
    unpack = 'dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" --keep-directory-symlink --no-same-owner'
    unpack += "".join(f" --exclude=./{path}" for path in _UNWANTED)
    for deb in sorted(debs.glob("*.deb")):
        run_tool(["sh", "-ec", unpack, "sh", str(deb), str(tree)], timeout=UNPACK_S)
    for name in ("passwd", "group"):
        master = tree / "usr/share/base-passwd" / f"{name}.master"
        if master.exists():
            shutil.copy(master, tree / "etc" / name)
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n")
    for name in output([str(host_busybox()), "--list"]).split():
        if not any(os.path.lexists(tree / "usr" / folder / name) for folder in ("bin", "sbin")):
            (tree / "usr/bin" / name).symlink_to("busybox")
    python = (tree / "usr/bin/python3").readlink().name
    version = python.removeprefix("python")
    (tree / _site_inside(version).lstrip("/")).mkdir(parents=True)  # to be mounted on
    _compile(version, tree, tree / "usr/lib" / python, "/")
    return version


def _site(architecture: Architecture, cache: Path, version: str) -> Path:
    prefix = f"site-{architecture.debian}"
    wanted = _requirements()
    digest = _digest([wanted, version])
    if cached := packages.kept(prefix, digest, _FORM):
        return cached
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as name:
        site = Path(name) / "site"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
        command += ["--target", str(site), "--only-binary=:all:", "--implementation", "cp", "--python-version", version]
        for glibc in _GLIBC:
            command += ["--platform", f"manylinux{glibc}_{architecture.name}"]
        run_tool([*command, *wanted], timeout=_PIP_S)
        _compile(version, site, site, _site_inside(version))
        return packages.keep(site, prefix, digest, _FORM, requirements=wanted, python=version)


def _requirements() -> list[str]:
    """Give what the project needs at run time, with a sandbox, and what tests need that run inside."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    runner = [wanted for wanted in extras["dev"] if wanted.startswith("pytest>")]
    return [*project["dependencies"], *extras["sandbox"], *runner]


def _site_inside(version: str) -> str:
    return f"/usr/local/lib/python{version}/dist-packages"


def _compile(version: str, strip: Path, folder: Path, inside: str) -> None:
    python = host_python(version)
    if python is None:  # slower imports, no more
        return
    command = [python, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
    # Debian's Python holds files that do not compile, as tests of the compiler.
    with contextlib.suppress(LabMissingError):
        run_tool([*command, "-s", str(strip), "-p", inside, str(folder)], timeout=UNPACK_S)


def _digest(what: object) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
