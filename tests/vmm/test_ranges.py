"""Ranges of addresses against the plainest model there is: a set of numbers."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from snapkit.vmm.ranges import Ranges

EDGE = st.integers(0, 40)
STEPS = st.lists(st.tuples(st.booleans(), EDGE, EDGE.filter(bool)), max_size=30)


@given(steps=STEPS, asked=st.tuples(EDGE, EDGE))
@example(steps=[(True, 0, 2)], asked=(1, 0))
def test_what_is_added_and_removed_is_what_a_set_would_hold(steps, asked):
    ranges, model = Ranges(), set[int]()
    for added, start, length in steps:
        numbers = range(start, start + length)
        if added:
            ranges.add(start, start + length)
            model.update(numbers)
        else:
            ranges.remove(start, start + length)
            model.difference_update(numbers)
    assert {number for start, end in ranges for number in range(start, end)} == model
    assert all(start < end for start, end in ranges)
    assert all(before[1] <= after[0] for before, after in pairwise(ranges))
    start, length = asked
    touching = [each for each in ranges if each[0] < start + length and start < each[1]] if length else []
    assert ranges.count(start, start + length) == len(touching)
    assert bool(touching) == bool(model & set(range(start, start + length)))


def test_hole_splits_a_range_and_neighbours_stay_apart():
    ranges = Ranges()
    ranges.add(0, 10)
    ranges.add(10, 20)
    ranges.remove(4, 6)
    assert list(ranges) == [(0, 4), (6, 10), (10, 20)]
    assert len(ranges) == 3
