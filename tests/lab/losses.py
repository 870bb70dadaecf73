"""Guest runs that the emulated host lost: told, counted, and few.

Nested SVM under TCG loses a vCPU in one guest run of some tens: the guest stalls or faults thrice, whichever monitor runs
it. QEMU's own KVM guests of 8 vCPUs did so in 2 of 24 boots there, before init. These runs are printed and counted, as are
those that come to their end: a fault of snapkit's that is worth the name shows more often than in one run of
`RUNS_FOR_ONE`, and than `LOST_MAX` times where there were few. On aarch64 no run may be lost.
"""

from snapkit.errors import EXIT_TRIPLE_FAULT
from tests.lab.architecture import Architecture
from tests.lab.outer import Result

LOST_MAX, RUNS_FOR_ONE = 4, 8

_runs = _lost = 0


def is_lost(result: Result) -> bool:
    """Say whether a run ended as those do that the emulated host loses."""
    return result.timed_out or result.code == EXIT_TRIPLE_FAULT


def excused(architecture: Architecture, result: Result, *, code: int = 0) -> bool:
    """Say whether *result*, which should have ended with *code*, is the emulated host's fault; few may be."""
    if not architecture.loses_guests:
        return False
    if result.code == code or not is_lost(result):
        count_ended()
        return False
    count_lost(str(result))
    return True


def count_ended() -> None:
    """Count a run that came to its end."""
    global _runs
    _runs += 1


def count_lost(story: str) -> None:
    """Count a lost run; fail when there are too many."""
    global _runs, _lost
    _runs, _lost = _runs + 1, _lost + 1
    most = max(LOST_MAX, _runs // RUNS_FOR_ONE)
    print(f"lost run {_lost} of at most {most} in {_runs}: {story}")
    assert _lost <= most, story
