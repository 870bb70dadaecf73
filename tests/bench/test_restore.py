"""Warm restore against its floor: how much more than its system calls, and how that grows with RAM."""

import statistics
from collections.abc import Callable, Mapping

from tests.bench.figures import Cell, Figures, medians
from tests.bench.floor_x86 import X86Floor
from tests.bench.machines import Snapshots
from tests.bench.warm import WarmRestore, split_restore

ROUNDS = 200
DEVICES = 8
SIZES = (("128 MiB", 128, 1, 0), ("4 GiB", 4096, 1, 0))
OTHERS = (
    (ROUNDS, ("128 MiB, all chunks raw", 128, 1, 1)),
    (ROUNDS, ("4 GiB, all chunks raw", 4096, 1, 1)),
    (20, ("4 GiB, every other chunk raw", 4096, 1, 2)),
    (50, ("128 MiB, 2 vCPUs", 128, 2, 0)),
)
Kind = tuple[str, int, int, int]
"""Name, MiB of RAM, vCPUs, and which chunks of RAM hold something: each n-th, or with 0 the guest's own only."""


def _measure(rounds: int, kinds: tuple[Kind, ...], snapshots: Snapshots) -> list[dict[str, Cell]]:
    """Take restores and floors of all *kinds* in turn, so that all see the same moods of the host."""
    return _rows(rounds, {name: snapshots.demo(mib, vcpus=n, raw_every=raw) for name, mib, n, raw in kinds})


def _rows(rounds: int, paths: Mapping[str, str]) -> list[dict[str, Cell]]:
    actions: list[Callable[[], float]] = []
    for path in paths.values():
        # a restore after a restore is a third faster than one after a floor: caches have its code
        actions += [WarmRestore(path).run, X86Floor(path).run]
        actions += [WarmRestore(path, known=False).run, X86Floor(path, threads=True).run]
    taken = medians(rounds, *actions)
    assert all(took > 0 for took in taken)
    rows: list[dict[str, Cell]] = []
    for name, restore, floor, new, threaded in zip(paths, *(taken[at::4] for at in range(4)), strict=True):
        rows.append(
            {
                "machine": name,
                "rounds": rounds,
                "restore ms": restore,
                "floor ms": floor,
                "restore / floor": restore / floor,
                "of a new file / floor": new / floor,
                "restore - floor": restore - floor,
                "floor with threads ms": threaded,
                "restore / that": restore / threaded,
            }
        )
    return rows


def test_warm_restore_against_its_floor(snapshots: Snapshots, figures: Figures):
    rows = _measure(ROUNDS, SIZES, snapshots)
    for rounds, kind in OTHERS:
        rows += _measure(rounds, (kind,), snapshots)
    figures.show(
        "restore", "Warm restore, open to first KVM_RUN, medians (at most 2.00 times the floor is wanted)", rows
    )
    small, large = (float(row["restore - floor"]) for row in rows[: len(SIZES)])
    growth: list[dict[str, Cell]] = [{"4 GiB ms": large, "128 MiB ms": small, "ratio": large / small}]
    figures.show("restore-growth", "Restore minus floor, 4 GiB against 128 MiB (at most 1.30 is wanted)", growth)


def test_warm_restore_with_devices_against_its_floor(snapshots: Snapshots, figures: Figures):
    name = f"128 MiB, {DEVICES} PCI devices in use"
    title = "Warm restore of devices, open to first KVM_RUN, medians (at most 2.00 times the floor is wanted)"
    figures.show("restore-devices", title, _rows(ROUNDS, {name: snapshots.driven(128, DEVICES)}))


def test_a_restore_beside_its_system_calls(snapshots: Snapshots, figures: Figures):
    paths = {"128 MiB": snapshots.demo(128), "128 MiB, 10 PCI devices in use": snapshots.driven(128, 10)}
    taken = {name: [split_restore(path) for _ in range(ROUNDS)] for name, path in paths.items()}
    rows: list[dict[str, Cell]] = []
    for name, splits in taken.items():
        inside, beside = (statistics.median(each) for each in zip(*[split[1:] for split in splits], strict=True))
        assert min(inside, beside) > 0
        rows.append(
            {
                "machine": name,
                "system calls": splits[-1].calls,
                "in them ms": inside,
                "beside them ms": beside,
                "beside / in": beside / inside,
            }
        )
    title = "Warm restore, what its system calls take and what all else does (at most 1.00 is wanted)"
    figures.show("restore-split", title, rows)
