"""The good machines that mutants are made of: every golden, one with a probe under way, and machines of this host."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from snapkit.units import MIB
from snapkit.vmm.parts.fresh import Asked, Transport
from tests.compat.tree import CACHE, ROOT
from tests.guests.build import guest
from tests.kvm.harness import booted
from tests.mutants.specimen import Ends, Specimen, specimen, with_data
from tools import golden, stored

TAP = "tap0"
TRANSPORTS: tuple[Transport, ...] = ("pci", "mmio")
_PROBED_SECTION = "pci-function/eth0"
_PROBED = 0xFFFF_FFFF
_MEMORY_SPACE = 1 << 1  # PCI 3.0, 6.2.2: command register
_BAR0 = slice(0x10, 0x14)
_DISK = bytes(MIB)


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


def stock() -> list[Specimen]:
    """Return the good machines that need no KVM to be made."""
    found = list(goldens())
    return [*found, *(half_probed(one) for one in found if _PROBED_SECTION in one.data())]


def live(folder: Path) -> list[Specimen]:
    """Return machines of two CPUs of this host's kind, saved while they work their devices, whose host ends are in *folder*.

    The calling thread must be where their TAP is. They are restored to the files that they name themselves.
    """
    found = []
    for transport in TRANSPORTS:
        image, path = folder / f"{transport}.img", folder / f"{transport}.snap"
        image.write_bytes(_DISK)
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
            rig.save(str(path))
        found.append(specimen(f"live {transport}", path, partial(_as_it_was, image, os.stat(image).st_mtime_ns)))
        path.unlink()
    return found


def _as_it_was(image: Path, mtime_ns: int, _folder: Path) -> Ends:
    """Have the image look as it did at the save, so that a restore takes it: what is in it does not matter."""
    image.write_bytes(_DISK)
    os.utime(image, ns=(mtime_ns, mtime_ns))
    return {}
