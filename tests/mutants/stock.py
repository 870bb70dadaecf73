"""The good machines that mutants are made of: goldens, one with a probe under way, made-up ones, and machines of this host."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from snapkit.state.machine import EM_AARCH64, EM_X86_64
from snapkit.units import MIB
from snapkit.vmm.parts.fresh import Asked
from tests.compat.tree import CACHE, ROOT
from tests.guests.build import guest
from tests.kvm.harness import booted
from tests.mutants.made_up import made_up
from tests.mutants.run import TAP
from tests.mutants.saved import DISK, TRANSPORTS, saved
from tests.mutants.specimen import Specimen, specimen, with_data
from tools import golden, stored

_PROBED_SECTION = "pci-function/eth0"
_PROBED = 0xFFFF_FFFF
_MEMORY_SPACE = 1 << 1  # PCI 3.0, 6.2.2: command register
_BAR0 = slice(0x10, 0x14)


def goldens() -> Iterator[Specimen]:
    """Give the goldens of every release: 1 and 2 vCPUs, no devices, all devices over PCI and over MMIO, at work."""
    for release, about in stored.goldens(ROOT):
        folder = ROOT / golden.FOLDER / release
        path = golden.unpack(folder, about, CACHE / "golden")
        yield specimen(f"{release} {about.name}", path, partial(golden.host_ends, folder, about))


def half_probed(machine: Specimen) -> Specimen:
    """Return a PCI machine whose guest is about to size a BAR: decoding off, all ones written, not read yet."""
    path = _PROBED_SECTION
    function = machine.data()[path]
    config = bytearray(function["config"])
    config[4] &= ~_MEMORY_SPACE
    length = function["bars"][0]["length"]
    config[_BAR0] = (_PROBED & ~(length - 1) & ~0xF | config[_BAR0.start] & 0xF).to_bytes(4, "little")
    function["config"] = bytes(config)
    return with_data(machine, f"{machine.name} half probed", {path: function})


def stock(architecture: int = EM_X86_64) -> list[Specimen]:
    """Return the good machines that need no KVM to be made; those that KVM never had, of aarch64 alone."""
    found = [one for one in goldens() if one.architecture == architecture]
    if architecture == EM_AARCH64:
        with tempfile.TemporaryDirectory() as folder:
            found += made_up(Path(folder))
    return [*found, *(half_probed(one) for one in found if _PROBED_SECTION in one.data())]


def live(folder: Path) -> list[Specimen]:
    """Return machines of two CPUs of this host's kind, saved while they work their devices, whose host ends are in *folder*.

    The calling thread must be where their TAP is. They are restored to the files that they name themselves.
    """
    found = []
    for transport in TRANSPORTS:
        image = folder / f"{transport}.img"
        image.write_bytes(DISK)
        devices = (
            Asked("virtio-block", "root", {"path": str(image)}),
            Asked("virtio-net", "eth0", {"tap": TAP}),
            Asked("virtio-vsock", "v0", {"cid": "3", "uds": str(folder / f"{transport}.sock")}),
            Asked("virtio-rng", "rng"),
            Asked("virtio-balloon", "balloon"),
        )
        with booted(guest("devices"), memory=4 * MIB, vcpus=2, devices=devices, transport=transport) as rig:
            rig.run()
            rig.serve_until("io 3 ")
            found.append(saved(rig, f"live {transport}", image))
    return found
