"""What a guest may do to its CPUs, its GIC and its ITS on KVM of aarch64 can be saved and loads again, or it is said why not."""

import json
from collections import Counter

import pytest

from tests.lab.architecture import AARCH64
from tests.lab.outer import Outer, OuterDiedError
from tests.lab.random_guest import KINDS

pytestmark = pytest.mark.lab

GUESTS, MANY, DEATHS_MAX = 30, 600, 5
GUEST_S = 30
"""Ten times the usual: some wait for an interrupt, or are in a loop, until they are stopped."""


def tried(outer: Outer, first: int, count: int) -> Counter[str]:
    """Have guests of *count* seeds live inside, and hold what was told of them; returns how they came out."""
    command = [outer.python, "-m", "tests.lab.inside_random_guest", str(first), str(count)]
    done = outer.run(command, timeout=60 + GUEST_S * count)
    assert done.code == 0, done
    *wrong, tally = done.stdout.splitlines()
    assert not wrong, "\n".join(wrong)
    return Counter(json.loads(tally))


def holds(tally: Counter[str], count: int) -> None:
    """Assert that most came back, and that guests changed each kind of state."""
    assert tally["taken"] + tally["refused"] + tally["unsaved"] == count, tally
    assert tally["taken"] > count * 3 // 4, tally
    assert [kind for kind in KINDS if not tally[kind]] == [], tally


def test_whatever_a_guest_does_to_its_cpus_and_its_interrupts_can_be_saved_and_restored(outer_aarch64: Outer) -> None:
    holds(tried(outer_aarch64, 0, GUESTS), GUESTS)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.usefixtures("kernels_aarch64")
def test_whatever_many_more_guests_do_can_be_saved_and_restored() -> None:
    tally: Counter[str] = Counter()
    died = 0
    for first in range(1000, 1000 + MANY, GUESTS):
        with Outer(AARCH64) as outer:
            try:
                tally += tried(outer, first, GUESTS)
            except OuterDiedError as error:  # an assertion of the emulator's (`random_guest`), not of its KVM
                print(error)
                died += 1
    assert died <= DEATHS_MAX
    holds(tally, MANY - died * GUESTS)
