"""What a Linux guest sees of time over a restore: its monotonic clock never goes back, its wall clock is as asked for.

The guest samples both on each of its CPUs and is saved meanwhile. It is restored an hour later: the outer machine's own
wall clock is set, so that KVM, the file and the guest all see an ordinary hour.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from tests.lab import guest
from tests.lab.outer import Outer, Result
from tests.lab.stage import Stage
from tests.lab.test_linux import Saved, attempt, boot, cmdline, saved

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

RUN_S = 200  # ten times the usual
HOUR_S = 3600
SAMPLES, SNAPSHOT_AT = 32, "S0 4 "
SLACK_S = 3  # `date` says whole seconds; a guest's start has read them once more
PROBE = Path(__file__).parent / "inside_clocks.py"
COMPLAINTS = re.compile(r"stall|lockup|stuck|unstable|skew|blocked for more|clocksource", re.IGNORECASE)

_SAMPLE = re.compile(r"^S(\d) (\d+) (\d+\.\d+) (\d+)$")


@dataclass(frozen=True)
class Sample:
    """What a guest's CPU read."""

    n: int
    uptime_s: float
    wall_s: int


@dataclass(frozen=True)
class Later:
    """A restore an hour later, and the outer machine's wall clock before and after it."""

    result: Result
    begin_s: int
    end_s: int


def samples(console: str) -> dict[int, list[Sample]]:
    found: dict[int, list[Sample]] = {0: [], 1: []}
    for line in guest.lines(console)[:-1]:
        if match := _SAMPLE.match(line):
            found[int(match[1])].append(Sample(int(match[2]), float(match[3]), int(match[4])))
    return found


def wall_s(outer: Outer, *words: str) -> int:
    result = outer.run(["date", "+%s", *words], timeout=RUN_S)
    assert result.code == 0, result
    return int(result.stdout)


@contextmanager
def an_hour_later(outer: Outer) -> Iterator[None]:
    wall_s(outer, "-s", f"@{wall_s(outer) + HOUR_S}")
    try:
        yield
    finally:
        wall_s(outer, "-s", f"@{wall_s(outer) - HOUR_S}")


@pytest.fixture(scope="module")
def snapshot(stage: Stage) -> Saved:
    line = cmdline(stage, "count", count=SAMPLES, worker="sampler")
    words = boot(stage, f"{line} {stage.architecture.unwatched}")
    return saved(stage, words, stage.outer.work / "time.snap", SNAPSHOT_AT)


@pytest.fixture(scope="module", params=["continue", "realtime"])
def later(request: pytest.FixtureRequest, stage: Stage, snapshot: Saved) -> Later:
    with an_hour_later(stage.outer):
        begin_s = wall_s(stage.outer)
        result = attempt(stage, ["restore", str(snapshot.file), "--clock", request.param])
        return Later(result, begin_s, wall_s(stage.outer))


def policy(later: Later) -> str:
    return str(later.result.argv[-1])


def test_the_guest_sampled_to_its_end_and_its_monotonic_clock_never_went_back(snapshot: Saved, later: Later) -> None:
    assert later.result.code == 0, later.result
    for found in samples(snapshot.result.stdout + later.result.stdout).values():
        assert [sample.n for sample in found] == list(range(1, SAMPLES + 1))
        uptimes = [sample.uptime_s for sample in found]
        assert uptimes == sorted(uptimes)


def test_the_wall_clock_is_as_the_policy_says(snapshot: Saved, later: Later) -> None:
    before, after = samples(snapshot.result.stdout), samples(later.result.stdout)
    assert len(after[0]) > SAMPLES // 2
    for cpu in after:
        found = before[cpu] + after[cpu]
        if policy(later) == "continue":
            ran_s = snapshot.result.seconds + later.result.seconds
            steps = [(b.uptime_s - a.uptime_s, b.wall_s - a.wall_s) for a, b in pairwise(found)]
            assert all(0 <= step <= ran_s + 1 for pair in steps for step in pair)
            assert all(sample.wall_s < later.begin_s - HOUR_S // 2 for sample in found)
        else:
            at = jumped(found, before[0][-1], later)
            assert len(before[cpu]) <= at < len(before[cpu]) + SAMPLES // 2


def jumped(found: list[Sample], last: Sample, later: Later) -> int:
    """Assert that the clocks of a CPU went on by an hour between two samples; return how many are before that.

    *last* is one that was printed before the save, by whichever CPU: this one may have taken none by then. A sample may
    have been read before the save and printed after it. One may be torn: its uptime was read before the save, or before a
    clock that jumped this far was right (`vmm.arch.aarch64.clock`), and its wall clock later, by another process.
    """
    old = [one for one in found if one.uptime_s < HOUR_S // 4 and one.wall_s < later.begin_s - HOUR_S // 2]
    new = [one for one in found if one.uptime_s >= HOUR_S - 1 and one.wall_s >= later.begin_s - SLACK_S]
    torn = found[len(old) : len(found) - len(new)]
    assert found == old + torn + new, "each is of one life, in order"
    assert len(torn) <= 1
    if not new:
        return len(old)
    last = old[-1] if old else last
    most_s = later.end_s + SLACK_S - last.wall_s
    assert HOUR_S - 1 <= new[0].uptime_s - last.uptime_s <= most_s
    assert HOUR_S - 1 <= new[0].wall_s - last.wall_s <= most_s
    assert all(one.wall_s <= later.end_s + SLACK_S for one in found)
    around = [*old[-1:], *torn, new[0]]
    assert around == sorted(around, key=lambda one: one.uptime_s) == sorted(around, key=lambda one: one.wall_s)
    return len(old)


def test_the_kernel_has_nothing_to_say_about_it(stage: Stage, later: Later) -> None:
    said = guest.kernel_log(later.result.stdout)
    assert [line for line in said if COMPLAINTS.search(line)] == []
    assert guest.value(later.result.stdout, "CLOCKSOURCE") == stage.architecture.clocksource


@pytest.mark.parametrize("stage", ["x86_64"], indirect=True)
def test_kvm_clock_and_every_counter_go_on_together_and_in_step(stage: Stage, snapshot: Saved) -> None:
    outer = stage.outer
    with an_hour_later(outer):
        result = outer.run([outer.snapkit()[0], PROBE, snapshot.file], timeout=RUN_S)
    assert result.code == 0, result
    for line, least_ns in zip(result.stdout.splitlines(), (0, HOUR_S * 10**9), strict=True):
        found = json.loads(line)
        away_ns = found["away_ns"] if least_ns else 0
        assert least_ns <= away_ns <= found["clock_ns"] <= away_ns + found["took_ns"], found
        for counter in found["counters"]:
            counted_ns = counter * 1_000_000 // found["khz"]
            assert away_ns - 10**6 <= counted_ns <= away_ns + found["took_ns"] + 10**6, found
        assert len(set(found["offsets"])) == len(set(found["saved"])) == 1, found
