"""Warm restore of an aarch64 machine against its floor, both inside the lab's outer machine.

Everything is emulated there, so only ratios mean something, and the clock is QEMU's count of instructions, which no load
of the host disturbs: a restore took 51 ms and its floor 26, within half a ms each time. Before the VM is made opening takes
0.6, decoding 3 and planning 1; of a file that the process does not know all of that takes 32 ms more, most of it in `check`.
"""

import json
import statistics
from pathlib import Path

from tests.bench import lab_aarch64
from tests.bench.figures import Figures
from tests.bench.lab_aarch64 import DEVICES, MEMORY_MIB, VCPUS
from tests.lab.architecture import AARCH64
from tests.lab.outer import Outer

INSIDE = Path(__file__).with_name("inside_aarch64.py")
ROUNDS = 12
MEASURE_S = 600.0


def test_warm_restore_of_an_aarch64_machine_against_its_floor(figures: Figures):
    with Outer(AARCH64, counted=True) as outer:
        file = lab_aarch64.saved(outer)
        result = outer.run([outer.python, INSIDE, file, str(ROUNDS)], timeout=MEASURE_S)
    assert result.code == 0, result
    taken = json.loads(result.stdout)
    restore, new, floor, threaded = (
        statistics.median(taken["ms"][name]) for name in ("restore", "of a new file", "floor", "floor with threads")
    )
    assert min(restore, new, floor, threaded) > 0
    machine = f"{MEMORY_MIB} MiB, {VCPUS} vCPUs, {len(DEVICES)} PCI devices"
    figures.show(
        "restore-aarch64",
        "Warm restore of an aarch64 machine in the lab, open to first KVM_RUN, medians (at most 2.00 times the floor is wanted)",
        [
            {
                "machine": machine,
                "rounds": ROUNDS,
                "restore ms": restore,
                "floor ms": floor,
                "restore / floor": restore / floor,
                "of a new file / floor": new / floor,
                "floor with threads ms": threaded,
                "restore / that": restore / threaded,
            }
        ],
    )
    inside, beside = (statistics.median(split[name] for split in taken["splits"]) for name in ("inside", "beside"))
    figures.show(
        "restore-split-aarch64",
        "The same restore, what its system calls take and what all else does",
        [
            {
                "machine": machine,
                "system calls": taken["splits"][-1]["calls"],
                "in them ms": inside,
                "beside them ms": beside,
                "beside / in": beside / inside,
            }
        ],
    )
