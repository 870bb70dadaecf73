"""Warm restore against its floor: how much more than its system calls, and how that grows with RAM."""

from tests.bench.figures import Cell, Figures, medians
from tests.bench.floor import Floor
from tests.bench.machines import Snapshots, WarmRestore

ROUNDS = 200
KINDS = (
    ("128 MiB", 128, 1, 0, ROUNDS),
    ("4 GiB", 4096, 1, 0, ROUNDS),
    ("128 MiB, all chunks raw", 128, 1, 1, ROUNDS),
    ("4 GiB, all chunks raw", 4096, 1, 1, ROUNDS),
    ("4 GiB, every other chunk raw", 4096, 1, 2, 20),
    ("128 MiB, 2 vCPUs", 128, 2, 0, 50),
)


def test_warm_restore_against_its_floor(snapshots: Snapshots, figures: Figures):
    rows: list[dict[str, Cell]] = []
    for name, mib, vcpus, raw_every, rounds in KINDS:
        path = snapshots.demo(mib, vcpus=vcpus, raw_every=raw_every)
        restore, floor, threaded = WarmRestore(path), Floor(path), Floor(path, threads=True)
        took, least, least_threaded = medians(rounds, restore.run, floor.run, threaded.run)
        assert took > 0
        rows.append(
            {
                "machine": name,
                "restore ms": took,
                "floor ms": least,
                "restore / floor": took / least,
                "restore - floor": took - least,
                "floor with threads ms": least_threaded,
                "restore / that": took / least_threaded,
            }
        )
    figures.show("restore", f"Warm restore, open to first KVM_RUN; medians of {ROUNDS} (at most 2.00 is wanted)", rows)
    small, large = (float(row["restore - floor"]) for row in rows[:2])
    growth: list[dict[str, Cell]] = [{"4 GiB ms": large, "128 MiB ms": small, "ratio": large / small}]
    figures.show("restore-growth", "Restore minus floor, 4 GiB against 128 MiB (at most 1.30 is wanted)", growth)
