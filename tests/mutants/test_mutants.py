"""Mutants of good machines: whatever a file says, it is restored and equal, or refused with the place, and harms nothing.

`tests.mutants.changes` has what is done to a machine, `tests.mutants.judge` what is asked of its file. The suite runs a
seeded slice; `make soak` ten thousand of another seed (SNAPKIT_MUTANTS_SEED) and writes what became of them to
``tests/soak.md``.
"""

import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapkit.state.codec import encode
from snapkit.state.machine import EM_AARCH64, EM_X86_64
from snapkit.state.schema import versions_of
from snapkit.state.shape import shape_of
from tests.compat.conftest import need_tap
from tests.contract.generate import strategy
from tests.kvm.harness import need_kvm
from tests.mutants.draft import Draft
from tests.mutants.judge import RESTORED, Judge
from tests.mutants.run import SWEEP, Tally, run
from tests.mutants.soak import report
from tests.mutants.specimen import Specimen
from tests.mutants.stock import live, stock
from tests.mutants.sweep import sweep

ARCHITECTURES = (EM_X86_64, EM_AARCH64)
SEED = 5
READ, RUN = 300, 250
READ_S, RUN_S, LEAST = 4.0, 9.0, 60
"""Where a machine is that slow, the slices end early, though not before so many mutants."""
SOAK = int(os.environ.get("SNAPKIT_MUTANTS", "10000"))
GROWTH_MOST = 16 << 20


@pytest.fixture
def kvm() -> None:
    need_kvm()
    need_tap()


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=["x86-64", "aarch64"])
def machines(request: pytest.FixtureRequest) -> list[Specimen]:
    return stock(request.param)


def holds(tally: Tally) -> None:
    """Assert that nothing was held against any mutant."""
    assert not tally.complaints, "\n".join(tally.complaints)
    assert not tally.unequal, "\n".join(tally.unequal)


def all_here(folder: Path) -> list[Specimen]:
    """Give every machine of this architecture that there is on this host."""
    return stock() + live(folder)


def test_a_mutant_is_read_whole_or_refused_by_its_place(tmp_path, machines):
    tally = run(SEED, range(READ), tmp_path, lambda _folder: machines, kvm=False, seconds=READ_S, least=LEAST)
    holds(tally)
    assert tally.stages[RESTORED] > tally.count // 10
    assert min(tally.stages[stage] for stage in ("open", "decode", "check")) > tally.count // 50


@pytest.mark.kvm
@pytest.mark.usefixtures("kvm")
def test_a_mutant_is_restored_and_equal_or_refused_and_harms_nothing(tmp_path):
    tally = run(SEED, range(RUN), tmp_path, all_here, kvm=True, seconds=RUN_S, least=LEAST)
    holds(tally)
    assert tally.endings["went on"] > tally.count // 10


@pytest.mark.parametrize("verify_memory", [False, True], ids=["mapped", "copied"])
def test_the_machines_themselves_are_taken(tmp_path, machines, verify_memory):
    with Judge(tmp_path, kvm=False, architecture=machines[0].architecture).at_work() as judge:
        for machine in machines:
            path = Draft(machine, Random(0)).write(tmp_path / "good.snap")
            verdict = judge.judge(path, machine.ends(tmp_path), verify_memory=verify_memory)
            assert (verdict.stage, verdict.complaints) == (RESTORED, []), machine.name


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_section_that_its_schema_allows_is_taken_or_refused_by_its_place(tmp_path, machines, data):
    draft = Draft(data.draw(st.sampled_from(machines[-3:]), "machine"), Random(0))
    part = data.draw(st.sampled_from(draft.parts), "section")
    state = data.draw(strategy(shape_of(versions_of(part.kind)[part.stored.version].type)), part.name)
    part.raw = encode(state)
    with Judge(tmp_path, kvm=False, architecture=machines[0].architecture).at_work() as judge:
        assert judge.judge(draft.write(tmp_path / "any.snap"), {}).complaints == []


@pytest.mark.soak
@pytest.mark.kvm
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("kvm")
def test_ten_thousand_mutants(tmp_path):
    seed = int(os.environ.get("SNAPKIT_MUTANTS_SEED", "0")) or int.from_bytes(os.urandom(4))
    swept = range(SWEEP, SWEEP + len(sweep(stock())))
    tally = run(seed, [*swept, *range(SOAK - len(swept))], tmp_path, all_here, kvm=True)
    report("x86-64", seed, tally)
    holds(tally)
    assert tally.grown_len < GROWTH_MOST
