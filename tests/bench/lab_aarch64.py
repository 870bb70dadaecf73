"""The aarch64 machine that is measured: a Debian guest that has driven all of its devices, saved in the lab's outer machine.

The guest's own drivers have set the devices up, so that the snapshot has every doorbell, route and irqfd, and an ITS that
knows each vector. The host ends are real ones of the outer machine: an image, a TAP, a Unix socket.
"""

from pathlib import Path

from tests.lab import guest, work
from tests.lab.architecture import AARCH64
from tests.lab.kernels import kernel
from tests.lab.network import Network
from tests.lab.outer import Outer

MEMORY_MIB, VCPUS, DISK_MIB = 256, 2, 16
DEVICES = ("disk", "net", "vsock", "rng", "balloon")
TAP, CID, MAC = "tap0", 3, "52:54:00:12:34:56"
BOOT_S = 200.0  # some 15 s on an idle machine


def saved(outer: Outer) -> Path:
    """Boot the guest in *outer*, save it once its devices work, and return where the snapshot is."""
    generic = kernel(AARCH64, AARCH64.outer_kernel)
    initrd, disk, file = outer.share / "tools.cpio", outer.work / "disk", outer.work / "linux.snap"
    initrd.write_bytes(guest.tools_initramfs(AARCH64, generic, work.SCRIPTS))
    net = Network(outer)
    net.tap(TAP)
    net.close()
    made = outer.run(["sh", "-c", f"head -c {DISK_MIB}M /dev/urandom >{disk}"], timeout=60)
    assert made.code == 0, made
    line = f"console={AARCH64.console} quiet panic=-1 scenario=commands"
    asked = ("--snapshot-when", "READY", "--snapshot-to", file)
    result = outer.run(
        outer.snapkit(
            *("boot", generic.packed, "--initrd", initrd, "--cmdline", line, "--memory", f"{MEMORY_MIB}M"),
            *("--vcpus", str(VCPUS), "--transport", "pci", "--disk", f"id=data,path={disk}"),
            *("--net", f"id=eth0,tap={TAP},mac={MAC}", "--vsock", f"id=v0,cid={CID},uds={outer.work / 'vsock'}"),
            *("--rng", "--balloon", *asked),
        ),
        timeout=BOOT_S,
    )
    assert result.code == 0, result
    return file
