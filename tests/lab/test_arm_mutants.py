"""Mutants of aarch64 machines on KVM of aarch64: restored and equal, or refused by name, and nothing else came of it.

`tests.mutants` has what is done to a machine and what is asked of its file. A seeded slice; `make soak` runs more, of
another seed (SNAPKIT_MUTANTS_SEED), and writes what became of them to ``tests/soak.md``.
"""

import json
import os
from collections import Counter

import pytest

from snapkit.guests.build import AARCH64
from tests.guests.build import guest
from tests.lab.outer import Outer
from tests.mutants.judge import RESTORED
from tests.mutants.run import Tally
from tests.mutants.soak import report

pytestmark = pytest.mark.lab

SEED = 5
SLICE_S, SOAK_S, LEAST = 25, 1500, 10
START_S = 300
"""For the machines that mutants are made of."""


def judged(outer: Outer, seed: int, seconds: int) -> Tally:
    """Judge mutants inside for so long, and so many at least that proportions of them say something."""
    lpi = guest("lpi", target=AARCH64)
    words = [lpi, str(seed), str(seconds), str(LEAST)]
    command = [outer.python, "-m", "tests.lab.inside_mutants", *words]
    done = outer.run(command, timeout=START_S + 2 * seconds)
    assert done.code == 0, done
    tally = Tally()
    for name, value in json.loads(done.stdout.splitlines()[-1]).items():
        setattr(tally, name, Counter(value) if isinstance(value, dict) else value)
    return tally


def holds(tally: Tally) -> None:
    """Assert that nothing was held against any mutant, and that the checks left KVM nothing to refuse."""
    for found in (tally.complaints, tally.unequal, tally.late):
        assert not found, "\n".join(found)
    assert tally.stages[RESTORED] > tally.count // 10


def test_a_mutant_is_restored_and_equal_or_refused_and_harms_nothing(outer_aarch64: Outer) -> None:
    holds(judged(outer_aarch64, SEED, SLICE_S))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_mutants_for_a_long_time(outer_aarch64: Outer) -> None:
    seed = int(os.environ.get("SNAPKIT_MUTANTS_SEED", "0")) or int.from_bytes(os.urandom(4))
    tally = judged(outer_aarch64, seed, SOAK_S)
    report("aarch64", seed, tally)
    holds(tally)
