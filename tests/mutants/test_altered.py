"""What may come back altered is told by its place, and the places beside it may not."""

from itertools import product

import pytest

from snapkit.state.diff import state_differences
from snapkit.state.vcpu_x86_64 import Segment
from tests.mutants.altered import reason_for

NAMES = ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")
ALTERED = {
    *product(NAMES, ("present", "unusable", "g")),
    *product(set(NAMES) - {"ldt"}, ("type",)),
    ("ss", "db"),
}


@pytest.mark.parametrize("name", NAMES)
def test_of_a_segment_only_what_the_processor_makes_itself_may_be_altered(name):
    ones = Segment(**dict.fromkeys(Segment.__struct_fields__, 1))
    found = list(state_differences(Segment(), ones, f"vcpu-x86-64/0.sregs.{name}"))
    fields = {one.path.rpartition(".")[2]: bool(reason_for(str(one), [])) for one in found}
    assert fields == {field: (name, field) in ALTERED for field in Segment.__struct_fields__}
