"""Making a snapshot: the writer against cp, how long a guest stands still, and what its exits cost meanwhile."""

import itertools
import mmap
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapkit.restore.save import save_snapshot
from snapkit.restore.writer import write_image
from snapkit.units import MIB
from snapkit.vmm.bus import Bus
from tests.bench.figures import Cell, Figures, medians
from tests.bench.machines import Snapshots, steady
from tests.kvm.harness import Rig, booted

CP_MIB = 512
CP_ROUNDS = 15
PAUSE_ROUNDS = 5


def _random_bytes(length: int) -> bytes:
    """Return bytes in which no page is zero, quickly."""
    return random.Random(length).randbytes(length)


def _timed_s(action: Callable[[], object]) -> float:
    begin_ns = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - begin_ns) / 1e9


@pytest.fixture
def ram() -> Iterator[memoryview]:
    """Anonymous memory, all of it random."""
    length = CP_MIB * MIB
    with mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        block = _random_bytes(64 * MIB)
        for start in range(0, length, len(block)):
            memory[start : start + len(block)] = block
        with memoryview(memory) as view:
            yield view


def test_writing_a_full_snapshot_against_cp(ram: memoryview, tmp_path: Path, figures: Figures):
    source, copy, snap = tmp_path / "source", tmp_path / "copy", tmp_path / "full.snap"
    source.write_bytes(ram)
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
                memory=[(0, ram, len(ram))],
                architecture=62,
                release="0.1.0",
                machine_id=bytes(16),
            )
        )

    try:
        by_cp, by_us = medians(CP_ROUNDS, cp, write)
    finally:
        os.close(source_fd)
    assert snap.stat().st_size > len(ram)
    rows: list[dict[str, Cell]] = [
        {"what": name, "s": took, "MiB/s": CP_MIB / took, "rate to cp's": by_cp / took}
        for name, took in (("cp && sync", by_cp), ("write_image", by_us))
    ]
    title = f"Writing {CP_MIB} MiB of random memory, on the disk; medians of {CP_ROUNDS} (at least 0.70 is wanted)"
    figures.show("write", title, rows)


class _Exits:
    """When the guest's exits to a port that nobody has were served."""

    def __init__(self, bus: Bus) -> None:
        self._bus, self.at_ns = bus, [0] * 0

    @contextmanager
    def watched(self) -> Iterator[None]:
        real = self._bus.write

        def write(address: int, payload: bytes) -> None:
            real(address, payload)
            self.at_ns.append(time.perf_counter_ns())

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._bus, "write", write)
            yield
