"""The machines that are measured, as snapshots, and the two ways to bring one back."""

import gc
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from snapkit.guests import build
from snapkit.restore.restore import prepare
from snapkit.units import CHUNK_LEN, MIB
from snapkit.vmm.backends.console import Console
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.vcpu import VcpuFd
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import BootConfig, Machine
from tests.bench import driven
from tests.bench.seam import timed_calls
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


class WarmRestore:
    """Restores a snapshot in this process and tells when its first KVM_RUN was over.

    As in the floor, that KVM_RUN has immediate_exit set, so that what the guest does next is not measured.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def run(self) -> float:
        """Milliseconds from `prepare` to the end of the first KVM_RUN. The process had its loop before."""
        with Loop() as loop, _first_run() as first, _without_collector():
            begin_ns = time.perf_counter_ns()
            with prepare(self._path) as prepared, Machine(loop, Console(None)) as machine:
                prepared.run(machine)
                first.happened.wait()
                return (first.at_ns - begin_ns) / 1e6


class Split(NamedTuple):
    """What one restore took on the main thread, in milliseconds."""

    calls: int
    inside: float
    """In system calls."""
    beside: float
    """In all else."""


def split_restore(path: str) -> Split:
    """Restore the snapshot at *path*, from `prepare` until its vCPUs were told to run, with a clock at every system call."""
    with Loop() as loop, _without_collector(), timed_calls() as clock:
        begin_ns = time.perf_counter_ns()
        with prepare(path) as prepared, Machine(loop, Console(None)) as machine:
            prepared.run(machine)
            whole, inside, calls = time.perf_counter_ns() - begin_ns, clock.ns, clock.calls
    return Split(calls, inside / 1e6, (whole - inside) / 1e6)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Have no garbage collected meanwhile, as the command line does until the machine is there."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class _First:
    def __init__(self) -> None:
        self.happened = threading.Event()
        self.at_ns = 0


@contextmanager
def _first_run() -> Iterator[_First]:
    """Watch for the first KVM_RUN of any vCPU."""
    first, real = _First(), VcpuFd.run

    def run(fd: VcpuFd) -> None:
        if first.at_ns:
            return real(fd)
        fd.run_page[abi.RUN_IMMEDIATE_EXIT] = 1
        try:
            real(fd)
        finally:
            first.at_ns = time.perf_counter_ns()
            fd.run_page[abi.RUN_IMMEDIATE_EXIT] = 0
            first.happened.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VcpuFd, "run", run)
        yield first
