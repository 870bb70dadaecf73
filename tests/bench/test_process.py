"""The process around a machine: its own memory, and how long until it has one."""

import re
import subprocess
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from snapkit.restore.image import Image
from snapkit.units import MIB
from tests.bench import qemu
from tests.bench.children import PYTHON, done_ms, first_output_ms, script, snapkit
from tests.bench.figures import Cell, Figures, medians
from tests.bench.machines import Snapshots, steady
from tests.kvm.harness import DEMO

ROUNDS = 15
PEERS = ("q35, exec:cat", "microvm, exec:cat")
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
        with Image.open(path) as image, subprocess.Popen(snapkit("restore", path), stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                for _ in range(3):
                    assert process.stdout.readline()
                guest, other = _pss_kib(process.pid, image)
            finally:
                process.kill()
        rows.append({"guest RAM MiB": mib, "of it touched MiB": guest / 1024, "the process's own MiB": other / 1024})
    figures.show("memory", "Proportional set size of `snapkit restore`", rows)


def test_cold_start_to_the_first_guest_output(snapshots: Snapshots, figures: Figures):
    small, large = snapshots.chatter(128), snapshots.chatter(4096)
    bare, libraries, inspect, inspect_large, cold_small, cold_large = medians(
        ROUNDS,
        lambda: done_ms(PYTHON, "-c", "pass"),
        lambda: done_ms(PYTHON, "-c", "import msgspec, click"),
        lambda: done_ms(*snapkit("inspect", small)),
        lambda: done_ms(*snapkit("inspect", large)),
        lambda: first_output_ms(*snapkit("restore", small)),
        lambda: first_output_ms(*snapkit("restore", large)),
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
                ("snapkit inspect FILE, 4 GiB", inspect_large),
                (f"snapkit restore, first output, {128 * MIB >> 20} MiB", cold_small),
                ("snapkit restore, first output, 4 GiB", cold_large),
            )
        ],
    )


def _against(peers: Mapping[str, Callable[[], float]], guest: str, mib: int, path: str) -> list[dict[str, Cell]]:
    """Take the cold restore of *path* and its *peers* in turn, each with its ratio to `PEERS`."""
    ours: dict[str, Callable[[], float]] = {
        "python -m snapkit restore": partial(first_output_ms, *snapkit("restore", path)),
        "snapkit restore": partial(first_output_ms, *script("restore", path)),
    }
    every = {**peers, **ours}
    taken = dict(zip(every, medians(ROUNDS, *every.values()), strict=True))
    rows: list[dict[str, Cell]] = []
    for name, ms in taken.items():
        ratios: dict[str, Cell] = {f"to {peer}": ms / taken[peer] if peer in taken else "-" for peer in PEERS}
        rows.append({"guest": guest, "MiB": mib, "what": name, "ms": ms, **ratios})
    return rows


def test_cold_restore_against_qemu(snapshots: Snapshots, figures: Figures):
    if not qemu.present():
        pytest.skip(f"{qemu.PROGRAM} is not installed")
    folder, chatter = snapshots.folder, steady(snapshots.folder, CHATTER="1")
    rows: list[dict[str, Cell]] = []
    for mib in (128, 1024):
        usual = qemu.Peer("q35", chatter, mib, folder, after="....")
        lean = qemu.Peer("microvm", chatter, mib, folder, after="....")
        peers = {"q35, exec:cat": usual.by_cat, "microvm, exec:cat": lean.by_cat, "microvm, fd": lean.by_fd}
        rows += _against(peers, "chatter", mib, snapshots.chatter(mib))
    usual = qemu.Peer("q35", DEMO, 128, folder, after="tick 30")
    rows += _against({"q35, exec:cat": usual.by_cat, "q35, fd": usual.by_fd}, "demo", 128, snapshots.demo(128))
    figures.show("cold-qemu", f"From the start of the process to the guest's first output; medians of {ROUNDS}", rows)
