"""Make goldens: boot each guest, save it at work, restore what was saved, store it, describe it.

    python -m tools.golden_maker FOLDER --program TREE --guests DIR --release R --date D [--cpu-model M]

What a release stores is made by the release's own program, on a machine of each architecture (`tools.elsewhere` runs this
module where that is not this one). A snapshot of an aarch64 machine fits the processor model that wrote it, for the guest
sees the host's; hence *cpu-model*, the model that was emulated for the host, is fixed and told in the manifest.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from snapkit.errors import ConfigError, SnapkitError
from snapkit.guests import build
from snapkit.restore.image import Image
from snapkit.state.pci_function import bar_pointed
from snapkit.state.schema import SectionId
from tools.golden import (
    HERE,
    MANIFEST,
    RUN_S,
    SUFFIX,
    TAP,
    Disk,
    Golden,
    Manifest,
    among_taps,
    digest,
    read_manifest,
    restore,
    run,
)

_GUESTS = "tests/guests"
_DISK_LEN = 64 << 10
_CID = 3
_ROUNDS = range(5, 25)
_IOAPIC_MASKED = 1 << 16  # Intel 82093AA, redirection table
_DEVICES = {"disk": "root", "net": "eth0", "vsock": "v0"}
_START = "import sys; sys.path.insert(0, {tree!r}); from snapkit.cli import main; main()"
CPUS = {"x86-64": "baseline", "aarch64": "host"}
"""What a golden's guest sees of the processor: what every host has, where a processor can be told to show no more."""


class Recipe(msgspec.Struct, frozen=True):
    """How a golden is made: a guest of `tests.guests` and the machine around it."""

    architecture: str
    devices: str
    guest: str
    vcpus: int
    word: str
    """First word of the lines that it prints, a number follows."""
    snapshot_when: str
    """It is saved when it prints this, with the number of a round in place of the braces."""
    transport: str = "none"
    options: tuple[str, ...] = ()
    """Names of the options that ask for its devices."""

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.transport}-{self.devices}"


_ALL = ("disk", "net", "vsock", "rng", "balloon")


def recipes(architecture: str) -> tuple[Recipe, ...]:
    """Return the recipes of an architecture: each has the same."""
    return (
        Recipe(architecture, "base", "counter", 1, "count", "count 7"),
        Recipe(architecture, "smp", "smp", 2, "smp", "cpus 2 counts"),
        Recipe(architecture, "all", "devices", 1, "io", "io {}", "pci", _ALL),
        Recipe(architecture, "all", "devices", 1, "io", "io {}", "mmio", _ALL),
    )


def guests(root: Path, architecture: str, into: Path) -> dict[str, Path]:
    """Build the guests of the goldens of *architecture* from the checkout at *root*; returns the binaries by name.

    Raises ConfigError with what the compiler said.
    """
    target = build.TARGETS[architecture.replace("-", "_")]
    into.mkdir(parents=True)
    binaries = {recipe.guest: into / f"{recipe.guest}.elf" for recipe in recipes(architecture)}
    for name, path in binaries.items():
        own = root / _GUESTS / target.name / f"{name}.c"
        source = own if own.is_file() else root / _GUESTS / f"{name}.c"
        build.compile_guest(str(source), str(path), target=target)
    return binaries


def program(tree: Path) -> list[str]:
    """Return the command of the snapkit in *tree*, wherever it is run and whatever is installed there."""
    return [sys.executable, "-P", "-c", _START.format(tree=str(tree))]


def write(
    snapkit: Sequence[str],
    folder: Path,
    guests: Mapping[str, Path],
    *,
    release: str,
    date: str,
    cpu_model: str = "",
) -> Manifest:
    """Write every golden of this machine's architecture into *folder* with the command *snapkit*, and the manifest.

    Each is restored once. *guests* are the binaries by name. Raises ConfigError with what the command said when it failed.
    """
    folder.mkdir(parents=True)
    goldens = []
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        for recipe in recipes(HERE):
            elf = guests[recipe.guest]
            snap, lines = _save(snapkit, recipe, elf, scratch)
            content = snap.read_bytes()
            golden = Golden(
                file=f"{recipe.name}{SUFFIX}",
                architecture=recipe.architecture,
                transport=recipe.transport,
                devices=recipe.devices,
                vcpus=recipe.vcpus,
                memory=2 << 20,
                cpu=CPUS[recipe.architecture],
                guest=recipe.guest,
                guest_sha256=digest(elf.read_bytes()),
                word=recipe.word,
                count=int(lines[-2].split()[1]) if len(lines) > 1 else 0,
                partial_line=lines[-1],
                length=len(content),
                sha256=digest(content),
                packed_sha256=store(folder / f"{recipe.name}{SUFFIX}", content),
                disks=[_store_disk(folder, recipe, scratch)] if "disk" in recipe.options else [],
                nets=[_DEVICES["net"]] if "net" in recipe.options else [],
                vsocks=[_DEVICES["vsock"]] if "vsock" in recipe.options else [],
                host_cpu=cpu_model,
                host_kernel=os.uname().release if cpu_model else "",
            )
            run([*snapkit, "verify", snap], scratch)
            restore(snapkit, snap, golden, folder)
            goldens.append(golden)
        about = msgspec.json.decode(run([*snapkit, "inspect", snap, "--json"], scratch))
    manifest = Manifest(
        format=1,
        release=release,
        written=date,
        producer=about["preamble"]["producer"],
        host_kernel=about["preamble"]["host_kernel"],
        goldens=goldens,
    )
    _write_manifest(folder, manifest)
    return manifest


def _save(snapkit: Sequence[str], recipe: Recipe, elf: Path, scratch: Path) -> tuple[Path, list[str]]:
    """Save a machine of *recipe* at work; returns the file and the lines that its guest had printed.

    A guest runs on until its vCPU has been stopped, on a busy host for a round or more: where it is not saved with what it
    wants to be saved with, another one is, a round later.
    """
    snap, serial = scratch / f"{recipe.name}.snap", scratch / f"{recipe.name}.out"
    for number in _ROUNDS:
        serial.unlink(missing_ok=True)
        cpu, when = CPUS[recipe.architecture], recipe.snapshot_when.format(number)
        machine = ["--memory", "2M", "--vcpus", str(recipe.vcpus), "--cpu", cpu, *_asked(recipe, scratch)]
        until = ["--snapshot-when", when, "--snapshot-to", str(snap), "--then", "stop", "--timeout", str(RUN_S)]
        words = [*snapkit, "boot", str(elf), *machine, "--serial", f"file:{serial}", *until]
        run(among_taps(words) if "net" in recipe.options else words, scratch)
        with Image.open(snap) as image:
            if waits(image.sections().states):
                return snap, serial.read_text().split("\n")
    raise ConfigError(f"golden {recipe.name}: of {len(_ROUNDS)} guests none was saved with all that waits in it")


def waits(states: Mapping[SectionId, Any]) -> bool:
    """Return whether what waits between two rounds of `tests/guests/devices.c` waits in a machine, as far as it has that.

    That is an interrupt of the rng, held back at its MSI-X entry or at its pin, and over PCI a move of the balloon's BAR.
    """
    msix, carrier = states.get(SectionId("pci-msix", "rng")), states.get(SectionId("virtio-mmio", "rng"))
    if msix is not None and not any(msix.pending):
        return False
    if carrier is not None and not (carrier.interrupt_status and _line_masked(states, carrier.gsi)):
        return False
    function = states.get(SectionId("pci-function", "balloon"))
    return function is None or bar_pointed(function.config, function.bars[0]) != function.bars[0].address


def _line_masked(states: Mapping[SectionId, Any], gsi: int) -> bool:
    irqchip = states.get(SectionId("irqchip-x86", "0"))
    if irqchip is not None:
        return bool(irqchip.ioapic.redirtbl[gsi] & _IOAPIC_MASKED)
    enabled: int = states[SectionId("gicv3-distributor", "0")].isenabler[gsi // 32]
    return not enabled >> gsi % 32 & 1


def join(folder: Path, other: Path) -> Manifest:
    """Move the goldens of the folder *other* to those in *folder*, behind them; returns the manifest of all."""
    manifest, joined = read_manifest(folder), read_manifest(other)
    for golden in joined.goldens:
        for file in (golden.file, *(disk.file for disk in golden.disks)):
            (folder / file).write_bytes((other / file).read_bytes())
            (other / file).unlink()
    (other / MANIFEST).unlink()
    manifest.goldens += joined.goldens
    _write_manifest(folder, manifest)
    return manifest


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def _asked(recipe: Recipe, scratch: Path) -> list[str]:
    """Return the options of its devices, each with a host end in *scratch*."""
    if not recipe.options:
        return []
    image = _disk_path(recipe, scratch)
    image.write_bytes(bytes(_DISK_LEN))
    said = {
        "disk": f"id={_DEVICES['disk']},path={image}",
        "net": f"id={_DEVICES['net']},tap={TAP}",
        "vsock": f"id={_DEVICES['vsock']},cid={_CID},uds={scratch / recipe.name}.sock",
    }
    words = ["--transport", recipe.transport]
    for option in recipe.options:
        words += [f"--{option}", *([said[option]] if option in said else [])]
    return words


def _disk_path(recipe: Recipe, scratch: Path) -> Path:
    return scratch / f"{recipe.name}.img"


def _store_disk(folder: Path, recipe: Recipe, scratch: Path) -> Disk:
    ident, content = _DEVICES["disk"], _disk_path(recipe, scratch).read_bytes()
    file = f"{recipe.name}.{ident}.img.zst"
    packed = store(folder / file, content)
    return Disk(id=ident, file=file, length=len(content), sha256=digest(content), packed_sha256=packed)


def store(path: Path, content: bytes) -> str:
    """Store *content*, packed; returns the digest of the stored file."""
    import zstandard

    packed = zstandard.ZstdCompressor(level=19, write_content_size=True).compress(content)
    path.write_bytes(packed)
    return digest(packed)


def main() -> int:
    """Make those of this machine's architecture; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.golden_maker", description="Make goldens.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--program", type=Path, required=True, help="the folder that has the package snapkit")
    parser.add_argument("--guests", type=Path, required=True, help="the folder of the guests, NAME.elf")
    parser.add_argument("--release", required=True)
    parser.add_argument("--date", required=True)
    parser.add_argument("--cpu-model", default="", help="the processor that is emulated for this machine")
    asked = parser.parse_args()
    guests = {recipe.guest: asked.guests / f"{recipe.guest}.elf" for recipe in recipes(HERE)}
    words = {"release": asked.release, "date": asked.date, "cpu_model": asked.cpu_model}
    try:
        write(program(asked.program), asked.folder, guests, **words)
    except SnapkitError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
