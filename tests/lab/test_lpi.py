"""LPIs over a snapshot: each that was pending and not taken arrives once, at its own CPU; none is lost, none is made.

And what of that is lost where memory is written before KVM has written into it what it keeps to itself.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from snapkit.guests.build import AARCH64
from snapkit.state import its_tables
from snapkit.state.its_tables import Interrupt
from tests.guests.build import guest
from tests.lab import lpis
from tests.lab.inside_lpi import DISABLED, HELD, LAST, TAKEN
from tests.lab.lpis import line
from tests.lab.outer import Outer
from tests.order_tables import EDGES, is_aarch64, name_of

pytestmark = pytest.mark.lab
RUN_S = 300


@dataclass(frozen=True)
class Run:
    """Where the snapshots are, and what came of restoring them."""

    folder: Path
    told: dict[str, Any]

    def tables(self, name: str) -> tuple[Interrupt, ...]:
        return lpis.of_file(f"{self.folder}/{name}.snap")


@pytest.fixture(scope="module")
def run(outer_aarch64: Outer) -> Run:
    folder = outer_aarch64.share / "lpi"
    folder.mkdir()

    def inside(*words: str | Path) -> Any:
        done = outer_aarch64.run([outer_aarch64.python, "-m", "tests.lab.inside_lpi", *words], timeout=RUN_S)
        assert done.code == 0, done
        return json.loads(done.stdout)

    before = inside("save", guest("lpi", target=AARCH64), folder)
    assert Counter(before) == Counter(line(event, 1) for event in TAKEN)
    return Run(folder, inside("restore", folder))


def test_lpis_that_were_pending_at_the_save_arrive_once_and_at_their_own_cpus(run: Run) -> None:
    wanted = [line(event, 2) for event in TAKEN] + [line(event, 1) for event in (*HELD, *LAST)]
    assert Counter(run.told["run"]["before"]) == Counter(wanted)


def test_lpis_that_were_pending_and_disabled_arrive_once_they_are_enabled_and_once(run: Run) -> None:
    # Then every event was raised once more, which shows that nothing was left over of any.
    wanted = [line(event, 1) for event in DISABLED]
    wanted += [line(event, 3) for event in TAKEN] + [line(event, 2) for event in (*DISABLED, *HELD, *LAST)]
    assert Counter(run.told["run"]["after"]) == Counter(wanted)


def test_the_tables_say_which_lpis_are_pending(run: Run) -> None:
    found = run.tables("lpi")
    assert [(one.device, one.event, one.lpi, one.vcpu) for one in found] == [
        (lpis.DEVICE, event, lpis.LPI_BASE + event, event % lpis.VCPUS) for event in range(8)
    ]
    assert lpis.pending(found) == sorted((*TAKEN, *HELD, *DISABLED))
    assert [one.event for one in found if not one.enabled] == sorted(DISABLED)


def test_a_machine_that_is_saved_as_soon_as_it_is_restored_has_the_same_tables(run: Run) -> None:
    lost, made = its_tables.difference(run.tables("lpi"), run.tables("again"))
    assert (lost, made) == ((), ())


def test_what_is_raised_after_a_restore_arrives_beside_what_was_pending(run: Run) -> None:
    wanted = [line(event, 2) for event in TAKEN] + [line(event, 1) for event in (*HELD, *LAST)]
    assert Counter(run.told["lpi"]) == Counter(wanted)


def test_pending_lpis_are_lost_where_memory_is_written_before_their_tables(run: Run) -> None:
    assert lpis.pending(run.tables("pending")) == []
    assert Counter(run.told["pending"]) == Counter(line(event, 1) for event in LAST)


def test_mappings_are_lost_where_memory_is_written_before_the_tables_of_the_its(run: Run) -> None:
    assert run.tables("mappings") == ()
    assert run.told["mappings"] == []


def test_a_machine_saved_against_an_edge_of_the_order_of_saving_is_the_same(run: Run) -> None:
    own = {name_of(edge) for table, edge in EDGES if table == "save" and is_aarch64(table, edge)}
    assert run.told["orders"] == dict.fromkeys(own, True)
