"""A warm restore: a snapshot brought back in a process that runs already, and what of that is system calls.

Runs inside the lab's outer machine as well, which has no pytest.
"""

import gc
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest import mock

from snapkit.restore import front
from snapkit.restore.restore import prepare
from snapkit.vmm.backends.console import Console
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.vcpu import VcpuFd
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import Machine
from tests.bench.seam import timed_calls


class WarmRestore:
    """Restores a snapshot in this process and tells when its first KVM_RUN was over.

    As in the floor, that KVM_RUN has immediate_exit set, so that what the guest does next is not measured. A file is known
    from its first restore on: not *known*, it is forgotten before each.
    """

    def __init__(self, path: str, *, known: bool = True) -> None:
        self._path, self._known = path, known

    def run(self) -> float:
        """Milliseconds from `prepare` to the end of the first KVM_RUN. The process had its loop before."""
        others = dict(front._kept)
        if not self._known:
            front.forget()
        try:
            return self._restore()
        finally:
            front._kept.update(others)  # of what is measured in turn with this one

    def _restore(self) -> float:
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

    with mock.patch.object(VcpuFd, "run", run):
        yield first
