"""Good aarch64 machines of the host's kind, where it is one, saved at work."""

import os
from pathlib import Path

from snapkit.units import MIB
from snapkit.vmm.parts.fresh import Asked
from tests.kvm.harness import DEMO, Rig, booted
from tests.mutants.saved import DISK, TRANSPORTS, saved
from tests.mutants.specimen import Specimen

_ORDERS = ("m1", "d2", "i1", "i2", "i3", "d0", "i0")
"""For the guest lpi: LPIs that are pending for a CPU that takes none, and some that are disabled."""


def live_aarch64(folder: Path, lpi: str) -> list[Specimen]:
    """Return machines of two CPUs of this host's kind, with devices that nobody drives; *lpi* is that guest's file.

    On PCI it has LPIs mapped, pending and disabled. There is no card: the lab's machines have no TAPs.
    """
    found = []
    for transport in (*TRANSPORTS, None):
        image = folder / f"{transport}.img"
        image.write_bytes(DISK)
        devices = (
            Asked("virtio-block", "root", {"path": str(image)}),
            Asked("virtio-vsock", "v0", {"cid": "3", "uds": str(folder / f"{transport}.sock")}),
            Asked("virtio-rng", "rng"),
            Asked("virtio-balloon", "balloon"),
        )
        kernel, asked = lpi if transport == "pci" else DEMO, devices if transport else ()
        with booted(kernel, memory=4 * MIB, vcpus=2, devices=asked, transport=transport) as rig:
            rig.run()
            if transport == "pci":
                rig.tape.wait_for("ready")
                _order(rig)
            else:
                rig.tape.wait_for("tick")
            found.append(saved(rig, f"live {transport or 'none'}", image))
    return found


def _order(rig: Rig) -> None:
    for number, order in enumerate(_ORDERS, 1):
        for character in order.encode():
            while not rig.tape.type(bytes([character])):  # it takes one at a time
                os.sched_yield()
        rig.tape.wait_for(".", number)
