"""Making a snapshot: the writer against cp, how long a guest stands still, and what its exits cost meanwhile."""

import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from snapkit import host_memory
from snapkit.restore.capture import Capture
from snapkit.restore.save import save_snapshot
from snapkit.restore.writer import write_image
from snapkit.units import CHUNK_LEN, MIB, Hva
from tests.bench.figures import Cell, Figures, medians
from tests.bench.machines import Snapshots, steady
from tests.kvm.harness import Rig, booted

CP_MIB = 512
CP_ROUNDS = 15
PAUSE_ROUNDS = 5
POST_CODE = 0x80
WINDOW_S = 0.3


def _random_bytes(length: int) -> bytes:
    """Return bytes in which no page is zero, quickly."""
    return random.Random(length).randbytes(length)


def _timed_s(action: Callable[[], object]) -> float:
    begin_ns = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - begin_ns) / 1e9


@pytest.fixture
def ram() -> Iterator[Hva]:
    """Anonymous memory, all of it random, as a guest's is mapped."""
    length = CP_MIB * MIB
    address = host_memory.mmap(
        length, host_memory.PROT_READ | host_memory.PROT_WRITE, host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS
    )
    try:
        block = _random_bytes(64 * MIB)
        for start in range(0, length, len(block)):
            host_memory.copy_in(address + start, block)
        yield address
    finally:
        host_memory.munmap(address, length)


def test_writing_a_full_snapshot_against_cp(ram: Hva, tmp_path: Path, figures: Figures):
    source, copy, snap = tmp_path / "source", tmp_path / "copy", tmp_path / "full.snap"
    source.write_bytes(host_memory.view(ram, CP_MIB * MIB))
    source_fd = os.open(source, os.O_RDONLY)
    os.fsync(source_fd)

    def cp() -> float:
        copy.unlink(missing_ok=True)
        copied = ["sh", "-c", 'cp --reflink=never --sparse=never "$0" "$1" && sync "$1"', str(source), str(copy)]
        return _timed_s(lambda: subprocess.run(copied, check=True))

    def write() -> float:
        snap.unlink(missing_ok=True)
        return _timed_s(
            lambda: write_image(
                snap,
                sections={},
                memory=Capture([(0, ram, CP_MIB * MIB)]),
                architecture=62,
                release="0.1.0",
                machine_id=bytes(16),
            )
        )

    try:
        by_cp, by_us = medians(CP_ROUNDS, cp, write)
    finally:
        os.close(source_fd)
    assert snap.stat().st_size > CP_MIB * MIB
    rows: list[dict[str, Cell]] = [
        {"what": name, "s": took, "MiB/s": CP_MIB / took, "rate to cp's": by_cp / took}
        for name, took in (("cp && sync", by_cp), ("write_image", by_us))
    ]
    title = f"Writing {CP_MIB} MiB of random memory, on the disk; medians of {CP_ROUNDS} (at least 0.70 is wanted)"
    figures.show("write", title, rows)


class _Clock:
    """The device at the port that the steady guest writes to, over and over: it notes when."""

    def __init__(self) -> None:
        self.at_ns: list[int] = []

    def read(self, offset: int, length: int) -> int:
        return 0

    def write(self, offset: int, length: int, value: int) -> None:
        self.at_ns.append(time.perf_counter_ns())


def _fill(rig: Rig) -> None:
    """Leave no page of zeros in RAM beyond what the guest itself lives in."""
    memory, block = rig.machine._need_memory(), _random_bytes(8 * MIB)
    for region in memory.regions:
        for offset in range(2 * CHUNK_LEN, region.length, len(block)):
            memory.write(region.gpa + offset, block[: region.length - offset])


def _snapshot(rig: Rig, clock: _Clock, path: str) -> tuple[float, float, float, float]:
    """Snapshot a running guest; ms of its pause and of the whole save, us of an exit before and while files are synced."""
    clock.at_ns.clear()
    time.sleep(WINDOW_S)
    begin_ns = time.perf_counter_ns()
    with rig.machine.held() as go_on:
        save_snapshot(rig.machine, path, captured=go_on)
    end_ns = time.perf_counter_ns()
    time.sleep(WINDOW_S)
    at_ns = clock.at_ns[:]
    gap_ns, resumed_ns = max((later - earlier, later) for earlier, later in pairwise(at_ns) if later > begin_ns)
    before = [later - earlier for earlier, later in pairwise(at_ns) if later < begin_ns]
    during = [later - earlier for earlier, later in pairwise(at_ns) if resumed_ns <= earlier and later < end_ns]
    during_us = statistics.median(during) / 1e3 if during else 0.0
    return gap_ns / 1e6, (end_ns - begin_ns) / 1e6, statistics.median(before) / 1e3, during_us


def test_pause_of_the_guest_during_a_full_snapshot(snapshots: Snapshots, tmp_path: Path, figures: Figures):
    rows: list[dict[str, Cell]] = []
    path = str(tmp_path / "full.snap")
    for mib, full in ((128, False), (128, True), (1024, False), (1024, True)):
        with booted(steady(snapshots.folder), memory=mib * MIB) as rig:
            clock = _Clock()
            rig.vm.ports.insert(POST_CODE, 1, clock)
            if full:
                _fill(rig)
            rig.run().tape.wait_for("steady")
            taken = [_snapshot(rig, clock, path) for _ in range(PAUSE_ROUNDS)]
            rig.healthy()
        pause, whole, before, during = (statistics.median(values) for values in zip(*taken, strict=True))
        rows.append(
            {
                "guest RAM MiB": mib,
                "of it": "random" if full else "nearly all zero",
                "pause ms": pause,
                "until the file is there ms": whole,
                "exit us, before": before,
                "exit us, while it is synced": during or "-",
            }
        )
    figures.show("pause", f"A full snapshot of a running guest; medians of {PAUSE_ROUNDS}", rows)
