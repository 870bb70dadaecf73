"""Run inside the aarch64 outer machine: mutants of machines that are saved there, each judged; in the end one line of JSON.

Words: the file of the guest lpi, a seed, for how many seconds once there are machines, and how many mutants at least. One
mutant is made by chance, the next is a step of the sweep, whose steps come in any order.
"""

import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from random import Random

from tests.mutants.arm import live_aarch64
from tests.mutants.run import SWEEP, run
from tests.mutants.specimen import Specimen
from tests.mutants.sweep import sweep


def main(lpi: str, seed: int, seconds: float, least: int) -> None:
    made: list[Specimen] = []

    def machines(folder: Path) -> list[Specimen]:
        made.extend(live_aarch64(folder, lpi))
        return made

    def numbers() -> Iterator[int]:
        steps = list(range(SWEEP, SWEEP + len(sweep(made))))  # begun when the machines are there
        Random(seed).shuffle(steps)
        for number in count():
            yield number
            if steps:
                yield steps.pop()

    with tempfile.TemporaryDirectory() as folder:
        tally = run(
            seed,
            numbers(),
            Path(folder),
            machines,
            kvm=True,
            taps=False,
            seconds=seconds,
            least=least,
        )
    print(json.dumps(vars(tally)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))
