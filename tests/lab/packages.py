"""Debian kernels for the lab: fetched with apt, unpacked without being installed, kept in a cache.

Two flavours: `GENERIC` runs the outer machine (it has 9p and KVM), `CLOUD` is the guest. Each lies in one folder of the
cache named for package and version, appears there by one rename when it is complete, and holds a stamp. A cached
kernel is used while apt offers no newer one or cannot be asked, so a machine without network goes on working. Two
runs at once are kept apart by a lock.

`python -m tests.lab.packages` fetches both ahead of time and prints where they are.

Documents: Linux Documentation/arch/x86/boot.rst (setup header, `payload_offset`), the LZ4 legacy frame format.
"""

import contextlib
import fcntl
import gzip
import json
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GENERIC = "linux-image-amd64"
CLOUD = "linux-image-cloud-amd64"

CHECKOUT = Path(__file__).resolve().parents[2]
_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "busybox": "busybox-static",
    "modprobe": "kmod",
    "depmod": "kmod",
    "lz4": "lz4",
    "setpriv": "util-linux",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
}
_STAMP = "stamp.json"
_FORMAT = 1  # raise when what a cached folder holds changes
_FETCH_S = 900
_UNPACK_S = 300


class LabMissingError(Exception):
    """The lab cannot run on this machine; the text names what is missing and how to get it."""


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel package."""

    package: str
    version: str  # of the package
    release: str  # as `uname -r` says it
    folder: Path

    @property
    def bzimage(self) -> Path:
        """The packed kernel, as the boot loader of a distribution would load it."""
        return self.folder / "boot" / f"vmlinuz-{self.release}"

    @property
    def vmlinux(self) -> Path:
        """The ELF file that was packed into the bzImage."""
        return self.folder / "vmlinux"

    def modules(self, *names: str) -> list[tuple[Path, str]]:
        """List module files with their parameters, dependencies first, each once; built-in ones drop out."""
        command = ["modprobe", "-D", "-d", str(self.folder), "-S", self.release, "-a", *names]
        # The configuration of the machine that runs the tests must not add options or replace modules.
        text = _output([*command[:1], "-C", os.devnull, *command[1:]])
        listed: dict[str, str] = {}
        for line in text.splitlines():
            verb, _, rest = line.strip().partition(" ")
            if verb == "insmod":
                path, _, parameters = rest.partition(" ")
                listed.setdefault(path, parameters.strip())
        return [(Path(path), parameters) for path, parameters in listed.items()]


def cache_folder() -> Path:
    """Give the cache: `SNAPKIT_LAB_CACHE`, else `.cache/lab` in the checkout. Created when absent."""
    named = os.environ.get("SNAPKIT_LAB_CACHE")
    folder = Path(named).resolve() if named else CHECKOUT / ".cache" / "lab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def missing_tools() -> list[str]:
    """Name the programs the lab lacks here, each with the Debian package that brings it."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    lacking = [
        f"{tool} (package {package})" for tool, package in _TOOLS.items() if shutil.which(tool, path=path) is None
    ]
    if not lacking and b"ld-linux" in busybox().read_bytes()[:4096]:
        lacking.append("a busybox without shared libraries (package busybox-static)")
    return lacking


def busybox() -> Path:
    """Give the static busybox of this machine."""
    found = shutil.which("busybox")
    if found is None:
        raise LabMissingError("busybox (package busybox-static)")
    return Path(found)


def kernel(package: str) -> Kernel:
    """Give the kernel behind the meta package *package*, from the cache or freshly fetched.

    Raises `LabMissingError` when there is none in the cache and apt gives none.
    """
    cache = cache_folder()
    with locked(cache / "lock"):
        _, version = _candidate(package) or ("", "")
        cached = _cached(cache, package)
        if cached and (not version or cached.version == version):
            return cached
        try:
            return _fetch(cache, package)
        except LabMissingError:
            # An older kernel serves as well as the newest one; without network it is all there is.
            if cached:
                return cached
            raise


def unpacked_payload(image: bytes) -> bytes:
    """Unpack the ELF kernel out of the bzImage *image*. Raises `ValueError` when it is none."""
    if image[0x202:0x206] != b"HdrS":
        raise ValueError("no setup header: not a bzImage")
    setup_sectors = image[0x1F1] or 4
    payload_offset, payload_length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + payload_offset
    # The build appends the unpacked length as the payload's last four bytes.
    packed, (length,) = (
        image[start : start + payload_length - 4],
        struct.unpack_from("<I", image, start + payload_length - 4),
    )
    if packed.startswith(b"\x02\x21\x4c\x18"):
        blob = run_tool(["lz4", "-d", "-c"], stdin=packed, timeout=_UNPACK_S)
    elif packed.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        blob = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    elif packed.startswith(b"\xfd7zXZ"):
        blob = lzma.decompress(packed)
    elif packed.startswith(b"\x1f\x8b"):
        blob = gzip.decompress(packed)
    else:
        raise ValueError(f"payload packed in an unknown way: begins with {packed[:4].hex()}")
    if blob[:4] != b"\x7fELF" or len(blob) < length:
        raise ValueError(
            f"payload unpacks to {len(blob)} bytes beginning with {blob[:4].hex()}, wanted an ELF file of {length}"
        )
    return blob[:length]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other runs out meanwhile."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cached(cache: Path, package: str) -> Kernel | None:
    found: list[tuple[float, Kernel]] = []
    for stamp in cache.glob(f"{package}_*/{_STAMP}"):
        facts = json.loads(stamp.read_text())
        if facts["format"] == _FORMAT:
            found.append((stamp.stat().st_mtime, Kernel(package, facts["version"], facts["release"], stamp.parent)))
    return max(found, key=lambda pair: pair[0])[1] if found else None


def _candidate(package: str) -> tuple[str, str] | None:
    """Name the real package behind a meta package and its version, as apt's lists have it."""
    try:
        text = _output(["apt-cache", "show", "--no-all-versions", package])
    except LabMissingError:
        return None
    match = re.search(r"^Depends:.*?\b(linux-image-[0-9][^\s,]*) \(= ([^)]+)\)", text, re.MULTILINE)
    return (match[1], match[2]) if match else None


def _fetch(cache: Path, package: str) -> Kernel:
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as name:
        work = Path(name)
        image, version = _download(package, work)
        tree = work / "tree"
        run_tool(["dpkg-deb", "-x", str(next(work.glob("*.deb"))), str(tree)], timeout=_UNPACK_S)
        release = image.removeprefix("linux-image-").removesuffix("-unsigned")
        run_tool(["depmod", "-b", str(tree), release], timeout=_UNPACK_S)
        made = Kernel(package, version, release, tree)
        made.vmlinux.write_bytes(unpacked_payload(made.bzimage.read_bytes()))
        facts = {"format": _FORMAT, "package": image, "version": version, "release": release}
        (tree / _STAMP).write_text(json.dumps(facts, indent=1) + "\n")
        place = cache / f"{package}_{re.sub(r'[^A-Za-z0-9.+~-]', '_', version)}"
        if place.exists():  # left by another format of this cache
            shutil.rmtree(place)
        tree.rename(place)
        return Kernel(package, version, release, place)


def _download(package: str, work: Path) -> tuple[str, str]:
    """Download the newest image into *work*; as root, refresh apt's lists once when they are absent or outdated."""
    for refreshed in (False, True):
        if refreshed:
            if os.geteuid() != 0:
                break
            run_tool(["apt-get", "-q", "update"], timeout=_FETCH_S)
        found = _candidate(package)
        if found is None:
            continue
        with contextlib.suppress(LabMissingError):
            # Without a sandbox user: the folder is root's own, and apt would warn about it.
            run_tool(
                ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "=".join(found)],
                cwd=work,
                timeout=_FETCH_S,
            )
            return found
    raise LabMissingError(f"the Debian package behind {package} (apt offers none that can be downloaded)")


def _output(command: list[str]) -> str:
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
    """Fetch both kernels and say where they are."""
    lacking = missing_tools()
    if lacking:
        print(f"missing: {', '.join(lacking)}", file=sys.stderr)
        return 1
    for package in (GENERIC, CLOUD):
        found = kernel(package)
        print(f"{package} {found.version}: {found.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
