"""Machines that were booted here, saved and taken apart, with the image of their disk for restores of them."""

import os
from functools import partial
from pathlib import Path

from snapkit.units import MIB
from snapkit.vmm.parts.fresh import Transport
from tests.kvm.harness import Rig
from tests.mutants.specimen import Ends, Specimen, specimen

TRANSPORTS: tuple[Transport, ...] = ("pci", "mmio")
DISK = bytes(MIB)


def saved(rig: Rig, name: str, image: Path) -> Specimen:
    """Save the machine of *rig*, whose disk is at *image*, and take the file apart."""
    path = image.with_suffix(".snap")
    rig.save(str(path))
    found = specimen(name, path, partial(_as_it_was, image, os.stat(image).st_mtime_ns))
    path.unlink()
    return found


def _as_it_was(image: Path, mtime_ns: int, _folder: Path) -> Ends:
    """Have the image look as it did at the save, so that a restore takes it: what is in it does not matter."""
    image.write_bytes(DISK)
    os.utime(image, ns=(mtime_ns, mtime_ns))
    return {}
