"""Debian kernels for the lab: two of each architecture, the generic one and its flavour for clouds.

The generic one runs the outer machine (it has 9p and KVM); either is a guest's. How they get here and stay is as with
everything in the cache (`tests.lab.packages`).

Documents: Linux Documentation/arch/x86/boot.rst (setup header, `payload_offset`) and arch/arm64/booting.rst (the header
of an `Image`), the LZ4 legacy frame format.
"""

import contextlib
import gzip
import lzma
import os
import re
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.lab import packages
from tests.lab.architecture import Architecture
from tests.lab.packages import UNPACK_S, Apt, LabMissingError, cache_locked, output, run_tool

_FORM = 1  # raise when what a cached folder holds changes
_ELF = b"\x7fELF"
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Kernel:
    """One unpacked kernel package."""

    package: str
    version: str  # of the package
    release: str  # as `uname -r` says it
    folder: Path

    @property
    def packed(self) -> Path:
        """The packed kernel: a bzImage on x86-64, an `Image.gz` on aarch64."""
        made = self.folder / "Image.gz"
        return made if made.exists() else self.vmlinuz

    @property
    def plain(self) -> Path:
        """The kernel that was packed: an ELF file on x86-64, an `Image` on aarch64."""
        made = self.folder / "vmlinux"
        return made if made.exists() else self.vmlinuz

    @property
    def vmlinuz(self) -> Path:
        """What the package holds, and the boot loader of a distribution loads: packed on x86-64, plain on aarch64."""
        return self.folder / "boot" / f"vmlinuz-{self.release}"

    def modules(self, *names: str) -> list[tuple[Path, str]]:
        """List module files with their parameters, dependencies first, each once; built-in ones drop out."""
        # The configuration of the machine that runs the tests must not add options or replace modules.
        command = ["modprobe", "-C", os.devnull, "-D", "-d", str(self.folder), "-S", self.release, "-a", *names]
        listed: dict[str, str] = {}
        for line in output(command).splitlines():
            verb, _, rest = line.strip().partition(" ")
            if verb == "insmod":
                path, _, parameters = rest.partition(" ")
                listed.setdefault(path, parameters.strip())
        return [(Path(path), parameters) for path, parameters in listed.items()]


def kernel(architecture: Architecture, package: str) -> Kernel:
    """Give the kernel behind the meta package *package*, from the cache or freshly fetched.

    Raises `LabMissingError` when there is none in the cache and apt gives none.
    """
    with cache_locked() as cache:
        apt = Apt(architecture)
        _, version = _candidate(apt, package) or ("", "")
        cached = _cached(package)
        if cached and (not version or cached.version == version):
            return cached
        try:
            return _fetch(apt, cache, package)
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
        blob = run_tool(["lz4", "-d", "-c"], stdin=packed, timeout=UNPACK_S)
    elif packed.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        blob = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    elif packed.startswith(b"\xfd7zXZ"):
        blob = lzma.decompress(packed)
    elif packed.startswith(_GZIP):
        blob = gzip.decompress(packed)
    else:
        raise ValueError(f"payload packed in an unknown way: begins with {packed[:4].hex()}")
    if blob[:4] != _ELF or len(blob) < length:
        raise ValueError(
            f"payload unpacks to {len(blob)} bytes beginning with {blob[:4].hex()}, wanted an ELF file of {length}"
        )
    return blob[:length]


def is_image(blob: bytes) -> bool:
    """Say whether *blob* is an arm64 `Image`."""
    return blob[0x38:0x3C] == b"ARM\x64"


def _add_other_form(made: Kernel) -> None:
    """Write the form of the kernel that its package does not hold."""
    vmlinuz = made.vmlinuz.read_bytes()
    if is_image(vmlinuz):
        (made.folder / "Image.gz").write_bytes(gzip.compress(vmlinuz, compresslevel=6, mtime=0))
    else:
        (made.folder / "vmlinux").write_bytes(unpacked_payload(vmlinuz))


def _cached(package: str) -> Kernel | None:
    found = packages.newest(package, _FORM)
    return Kernel(package, found[1]["version"], found[1]["release"], found[0]) if found else None


def _candidate(apt: Apt, package: str) -> tuple[str, str] | None:
    """Name the real package behind a meta package and its version, as apt's lists have it."""
    match = re.search(r"^Depends:.*?\b(linux-image-[0-9][^\s,]*) \(= ([^)]+)\)", apt.show(package), re.MULTILINE)
    return (match[1], match[2]) if match else None


def _fetch(apt: Apt, cache: Path, package: str) -> Kernel:
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as name:
        work = Path(name)
        image, version = _download(apt, package, work)
        tree = work / "tree"
        run_tool(["dpkg-deb", "-x", str(next(work.glob("*.deb"))), str(tree)], timeout=UNPACK_S)
        release = image.removeprefix("linux-image-").removesuffix("-unsigned")
        run_tool(["depmod", "-b", str(tree), release], timeout=UNPACK_S)
        _add_other_form(Kernel(package, version, release, tree))
        place = packages.keep(tree, package, version, _FORM, package=image, version=version, release=release)
        return Kernel(package, version, release, place)


def _download(apt: Apt, package: str, work: Path) -> tuple[str, str]:
    """Download the newest image into *work*."""
    for _ in apt.states():
        if found := _candidate(apt, package):
            with contextlib.suppress(LabMissingError):
                apt.download(dict([found]), work)
                return found
    raise LabMissingError(f"the Debian package behind {package} (apt offers none that can be downloaded)")
