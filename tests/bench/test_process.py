"""The process around a machine: its own memory, and how long until it has one."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from snapkit.restore.image import Image
from snapkit.units import MIB
from tests.bench.figures import Cell, Figures, medians
from tests.bench.machines import Snapshots

PYTHON = sys.executable
ROUNDS = 15
PATIENCE_S = 30.0
_HEAD = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \S+ *(.*)$")


def _guest_span(lines: list[str], image: Image) -> tuple[int, int]:
    """Where guest RAM lies in a process: around what it has mapped of the file."""
    for line in lines:
        found = _HEAD.match(line)
        if found and found[3] == image.path:
            base = int(found[1], 16) - image.memory.runs()[0].gpa
            return base, base + image.memory.length
    raise AssertionError(f"{image.path} is not mapped")


def _pss_kib(pid: int, image: Image) -> tuple[int, int]:
    """Proportional set size of guest RAM and of all else, in KiB."""
    lines = Path(f"/proc/{pid}/smaps").read_text().splitlines()
    first, last = _guest_span(lines, image)
    guest = other = 0
    inside = False
    for line in lines:
        if found := _HEAD.match(line):
            inside = first <= int(found[1], 16) < last
        elif line.startswith("Pss:"):
            pss = int(line.split()[1])
            guest, other = (guest + pss, other) if inside else (guest, other + pss)
    return guest, other


def test_memory_of_the_process_beside_guest_ram(snapshots: Snapshots, figures: Figures):
    rows: list[dict[str, Cell]] = []
    for mib in (128, 4096):
        path = snapshots.demo(mib, raw_every=1)
        command = [PYTHON, "-m", "snapkit", "restore", path]
        with Image.open(path) as image, subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                for _ in range(3):
                    assert process.stdout.readline()
                guest, other = _pss_kib(process.pid, image)
            finally:
                process.kill()
        rows.append({"guest RAM MiB": mib, "of it touched MiB": guest / 1024, "the process's own MiB": other / 1024})
    figures.show("memory", "Proportional set size of `snapkit restore`", rows)


def _first_output_ms(path: str) -> float:
    begin_ns = time.perf_counter_ns()
    command = [PYTHON, "-m", "snapkit", "restore", path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert os.read(process.stdout.fileno(), 1)
        took_ns = time.perf_counter_ns() - begin_ns
        process.kill()
    return took_ns / 1e6


def _run_ms(*command: str) -> float:
    begin_ns = time.perf_counter_ns()
    subprocess.run([PYTHON, *command], check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE_S)
    return (time.perf_counter_ns() - begin_ns) / 1e6


def test_cold_start_to_the_first_guest_output(snapshots: Snapshots, figures: Figures):
    small, large = snapshots.chatter(128), snapshots.chatter(4096)
    bare, libraries, inspect, cold_small, cold_large = medians(
        ROUNDS,
        lambda: _run_ms("-c", "pass"),
        lambda: _run_ms("-c", "import msgspec, click"),
        lambda: _run_ms("-m", "snapkit", "inspect", small),
        lambda: _first_output_ms(small),
        lambda: _first_output_ms(large),
    )
    figures.show(
        "cold",
        f"From the start of the process; medians of {ROUNDS}",
        [
            {"what": name, "ms": ms, "to `import msgspec, click`": ms / libraries}
            for name, ms in (
                ("python -c pass", bare),
                ("python -c 'import msgspec, click'", libraries),
                ("snapkit inspect FILE", inspect),
                (f"snapkit restore, first output, {128 * MIB >> 20} MiB", cold_small),
                ("snapkit restore, first output, 4 GiB", cold_large),
            )
        ],
    )
