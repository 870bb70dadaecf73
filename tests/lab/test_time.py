"""What a Linux guest sees of time over a restore: its monotonic clock never goes back, its wall clock is as asked for.

The guest samples both on each of its CPUs and is saved meanwhile. It is restored an hour later: the outer machine's own
wall clock is set, so that KVM, the file and the guest all see an ordinary hour.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import guest
from tests.lab.guest import GuestFiles
from tests.lab.outer import Outer, Result
from tests.lab.test_linux import Saved, attempt, boot, cmdline, saved

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

RUN_S = 200  # ten times the usual
HOUR_S = 3600
SAMPLES, SNAPSHOT_AT = 24, "S0 4 "
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
def snapshot(outer: Outer, guest_files: GuestFiles) -> Saved:
    words = boot(guest_files.bzimage, guest_files, cmdline("count", count=SAMPLES, worker="sampler"))
    return saved(outer, words, outer.work / "time.snap", SNAPSHOT_AT)


@pytest.fixture(scope="module", params=["continue", "realtime"])
def later(request: pytest.FixtureRequest, outer: Outer, snapshot: Saved) -> Later:
    with an_hour_later(outer):
        begin_s = wall_s(outer)
        result = attempt(outer, ["restore", str(snapshot.file), "--clock", request.param])
        return Later(result, begin_s, wall_s(outer))


def policy(later: Later) -> str:
    return str(later.result.argv[-1])


def test_the_guest_sampled_to_its_end_and_its_monotonic_clock_never_went_back(snapshot: Saved, later: Later) -> None:
    assert later.result.code == 0, later.result
    for found in samples(snapshot.result.stdout + later.result.stdout).values():
        assert [sample.n for sample in found] == list(range(1, SAMPLES + 1))
        uptimes = [sample.uptime_s for sample in found]
        assert uptimes == sorted(uptimes)


def test_the_wall_clock_is_as_the_policy_says(snapshot: Saved, later: Later) -> None:
    """What a CPU printed first may have been read before it was saved; CPU 1 may have been done by then."""
    before, after = samples(snapshot.result.stdout), samples(later.result.stdout)
    assert len(after[0]) > SAMPLES // 2
    for cpu in (cpu for cpu in after if len(after[cpu]) > 1):
        last, first = before[cpu][-1], after[cpu][1]
        away_s = HOUR_S if policy(later) == "realtime" else 0
        ran_s = snapshot.result.seconds + later.result.seconds
        assert away_s <= first.uptime_s - last.uptime_s <= away_s + ran_s
        assert away_s <= first.wall_s - last.wall_s + 1 <= away_s + ran_s
        if policy(later) == "realtime":
            for sample in after[cpu][1:]:
                assert later.begin_s - SLACK_S <= sample.wall_s <= later.end_s + SLACK_S
        else:
            assert all(sample.wall_s < later.begin_s - HOUR_S // 2 for sample in after[cpu][1:])


def test_the_kernel_has_nothing_to_say_about_it(later: Later) -> None:
    said = guest.kernel_log(later.result.stdout)
    assert [line for line in said if COMPLAINTS.search(line)] == []
    assert guest.value(later.result.stdout, "CLOCKSOURCE") == "kvm-clock"


def test_kvm_clock_and_every_counter_go_on_together_and_in_step(outer: Outer, snapshot: Saved) -> None:
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
