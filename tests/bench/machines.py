"""The machines that are measured, as snapshots."""

import os
from pathlib import Path

from snapkit.guests import build
from snapkit.units import CHUNK_LEN, MIB
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import BootConfig, Machine
from tests.bench import driven
from tests.kvm.harness import DEMO, Rig, Tape, booted

HERE = os.path.dirname(os.path.abspath(__file__))


class Snapshots:
    """Makes each snapshot once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def demo(self, mib: int, *, vcpus: int = 1, raw_every: int = 0) -> str:
        """The demo guest at work in *mib* MiB; with *raw_every* n, each n-th chunk of RAM holds something."""
        path = str(self.folder / f"demo-{mib}-{vcpus}-{raw_every}.snap")
        if not os.path.exists(path):
            with booted(DEMO, memory=mib * MIB, vcpus=vcpus) as rig:
                rig.run().tape.wait_for("\n", times=3)
                rig.machine.pause()
                memory = rig.machine._need_memory()
                for region in memory.regions if raw_every else ():
                    for offset in range(2 * CHUNK_LEN, region.length, raw_every * CHUNK_LEN):
                        memory.write(region.gpa + offset, b"\1")
                rig.save(path)
        return path

    def driven(self, mib: int, count: int) -> str:
        """The demo guest with *count* PCI devices beside it, all of them in use."""
        path = str(self.folder / f"driven-{mib}-{count}.snap")
        if not os.path.exists(path):
            config = BootConfig(kernel=DEMO, memory=mib * MIB, devices=driven.devices(count, self.folder))
            tape = Tape()
            with Loop() as loop, Machine.boot(config, loop, tape) as machine:
                rig = Rig(machine, tape, loop)
                rig.run().tape.wait_for("\n", times=3)
                rig.machine.pause()
                driven.drive(rig.machine)
                rig.save(path)
        return path

    def chatter(self, mib: int) -> str:
        """A guest that never stops sending."""
        path = str(self.folder / f"chatter-{mib}.snap")
        if not os.path.exists(path):
            with booted(steady(self.folder, CHATTER="1"), memory=mib * MIB) as rig:
                rig.run().tape.wait_for("....")
                rig.save(path)
        return path


def steady(folder: Path, **defines: str) -> str:
    """Build `steady.c`."""
    path = str(folder / ("steady" + "".join(defines) + ".elf"))
    if not os.path.exists(path):
        build.compile_guest(os.path.join(HERE, "steady.c"), path, defines=defines)
    return path
