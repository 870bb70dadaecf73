"""KVM's own ITS against our reading of its tables: what it refuses, what it saves after a restore, and after commands."""

import json

import pytest

from tests.lab.outer import Outer
from tests.state.its_faults import FAULTS, TAKEN

pytestmark = pytest.mark.lab

NEVER_SAVED = {"event_of_an_lpi_beyond"}
"""KVM takes an LPI for which there is a byte somewhere in RAM, though it lets no guest map one of more than 16 bits."""


def test_kvm_refuses_and_saves_what_our_reading_of_the_tables_says(outer_aarch64: Outer) -> None:
    done = outer_aarch64.run([outer_aarch64.python, "-m", "tests.lab.inside_its"], timeout=300)
    assert done.code == 0, done
    told = [json.loads(line) for line in done.stdout.splitlines()]
    refused = {one["name"]: one["refused"] for one in told if one["what"] == "fault"}
    assert refused.pop("nothing") == ""
    assert set(refused) == {change.__name__ for change, _rule in FAULTS}
    assert {name for name, code in refused.items() if not code} == NEVER_SAVED, refused
    strange = {one["name"]: one["refused"] for one in told if one["what"] == "strange"}
    assert strange == {change.__name__: "" for change in TAKEN}
    rounds = [one for one in told if one["what"] == "round"]
    assert rounds
    assert all(one["taken_over"] and one["mapped"] and one["unmapped"] for one in rounds), rounds
