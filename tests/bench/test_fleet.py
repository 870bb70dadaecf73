"""Many machines of one file: what fifty at once cost in CPU time, against fifty one after the other."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack

from snapkit.restore.restore import prepare
from snapkit.vmm.backends.console import Console
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import Machine
from tests.bench.children import environment, snapkit
from tests.bench.figures import Cell, Figures
from tests.bench.machines import Snapshots

MACHINES = 50
ROUNDS = 3
UNTIL = "tick"
"""The guest's next line: a machine was restored, ran, and ends."""


def _start(path: str) -> subprocess.Popen[bytes]:
    command = snapkit("restore", path, "--exit-when", UNTIL, "--timeout", "120")
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment()
    )


def _cpu_s(process: subprocess.Popen[bytes]) -> float:
    """Wait for the end of *process*; its CPU time in seconds, that of its guest included."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, process.args
    return usage.ru_utime + usage.ru_stime


def _in_a_row(path: str) -> float:
    return sum(_cpu_s(_start(path)) for _ in range(MACHINES))


def _at_once(path: str) -> float:
    processes = [_start(path) for _ in range(MACHINES)]
    return sum(_cpu_s(process) for process in processes)


def _restored(path: str, loop: Loop, alive: ExitStack) -> None:
    """Restore a machine, paused: guests in the way of the next restore are the other figure's."""
    machine = alive.enter_context(Machine(loop, Console(None)))
    with prepare(path, paused=True) as prepared:
        prepared.run(machine)


def _one_alive(path: str) -> float:
    begin = time.process_time()
    with Loop() as loop:
        for _ in range(MACHINES):
            with ExitStack() as alive:
                _restored(path, loop, alive)
    return time.process_time() - begin


def _all_alive(path: str) -> float:
    begin = time.process_time()
    with Loop() as loop, ExitStack() as alive:
        for _ in range(MACHINES):
            _restored(path, loop, alive)
    return time.process_time() - begin


def test_fifty_at_once_against_fifty_in_a_row(snapshots: Snapshots, figures: Figures):
    path = snapshots.demo(128)
    ways: tuple[tuple[str, Callable[[str], float], Callable[[str], float]], ...] = (
        ("`snapkit restore`, a process each, until the guest's next line", _in_a_row, _at_once),
        ("in one process, paused, built and closed", _one_alive, _all_alive),
    )
    rows: list[dict[str, Cell]] = []
    for name, in_a_row, at_once in ways:
        taken = [(in_a_row(path), at_once(path)) for _ in range(ROUNDS)]
        row, once = (statistics.median(each) for each in zip(*taken, strict=True))
        rows.append({"what": name, "in a row, CPU s": row, "at once, CPU s": once, "at once / in a row": once / row})
    title = f"{MACHINES} restores of one file, medians of {ROUNDS} (at most 1.50 is wanted)"
    figures.show("restore-fleet", title, rows)
