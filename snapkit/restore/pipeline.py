"""The engine that runs steps: in order, each timed and counted, all undone in reverse when one fails.

The engine knows nothing of machines. A step that fails has undone what it did itself; the engine undoes the steps
before it. A failure on the way back is added to the error that caused it, never put in its place.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec

from snapkit import host

T = TypeVar("T")


def dies_with_vm(_target: object) -> None:
    """Undo of a step whose whole effect is inside the VM: closing that, which comes later, takes it back."""


class Step(msgspec.Struct, Generic[T], frozen=True):
    """One thing to do to a target, and how to take it back; *run* steps have no way back."""

    stage: str
    name: str
    do: Callable[[T], None]
    undo: Callable[[T], None] | None = None
    reasons: Sequence[str] = ()
    """Why it stands where it does in its stage."""


class Span(NamedTuple):
    """One step as it ran: when it began after the timeline's start, how long it took, its system calls."""

    stage: str
    name: str
    start_ns: int
    length_ns: int
    calls: int


class StageSum(NamedTuple):
    """All steps of one stage: how many, how long, their system calls."""

    stage: str
    steps: int
    us: int
    calls: int


class Timeline:
    """What ran, when, and how many system calls it took."""

    def __init__(self) -> None:
        self.origin_ns = host.monotonic_ns()
        self.taken: list[tuple[str, str, int, int, int]] = []
        """Stage, name, start, end, calls of each step: made into spans when somebody looks."""

    @property
    def spans(self) -> list[Span]:
        """What ran so far, in order."""
        origin = self.origin_ns
        return [
            Span(stage, name, start_ns - origin, end_ns - start_ns, calls)
            for stage, name, start_ns, end_ns, calls in self.taken
        ]

    def span(self, stage: str, name: str) -> "Recording":
        """Record the with block as a step of *stage*, also when it fails."""
        return Recording(self, stage, name)

    def add(self, stage: str, name: str, start_ns: int, calls: int) -> None:
        """Record what began at *start_ns*, when so many system calls had been made, and is over now."""
        self.taken.append((stage, name, start_ns, host.monotonic_ns(), host.calls_made() - calls))

    def total_ns(self) -> int:
        """From the origin to the end of the last step."""
        return max((span.start_ns + span.length_ns for span in self.spans), default=0)

    def stages(self) -> list[StageSum]:
        """Sum up the steps by stage, in the order in which the stages began."""
        by_stage: dict[str, list[Span]] = {}
        for span in self.spans:
            by_stage.setdefault(span.stage, []).append(span)
        return [
            StageSum(
                stage, len(spans), sum(span.length_ns for span in spans) // 1000, sum(span.calls for span in spans)
            )
            for stage, spans in by_stage.items()
        ]

    def rows(self) -> list[dict[str, int | str]]:
        """As plain data, for JSON."""
        return [
            {
                "stage": span.stage,
                "step": span.name,
                "start_us": span.start_ns // 1000,
                "us": span.length_ns // 1000,
                "calls": span.calls,
            }
            for span in self.spans
        ]


class Recording:
    """A span while it runs. Not a generator's context manager: those cost 3 us each."""

    __slots__ = ("_calls", "_name", "_stage", "_start_ns", "_timeline")

    def __init__(self, timeline: Timeline, stage: str, name: str) -> None:
        self._timeline, self._stage, self._name = timeline, stage, name

    def __enter__(self) -> None:
        self._calls, self._start_ns = host.calls_made(), host.monotonic_ns()

    def __exit__(self, *_: object) -> None:
        self._timeline.add(self._stage, self._name, self._start_ns, self._calls)


def run_steps(steps: Iterable[Step[T]], target: T, timeline: Timeline) -> None:
    """Do *steps* to *target*; when one fails, undo those before it in reverse and raise its error with theirs noted."""
    done: list[Step[T]] = []
    now, calls_made, taken = host.monotonic_ns, host.calls_made, timeline.taken  # a restore has 50 steps
    start_ns, calls = now(), calls_made()
    for step in steps:
        try:
            step.do(target)
        except BaseException as error:
            timeline.add(step.stage, step.name, start_ns, calls)
            error.add_note(f"in step {step.stage}: {step.name}")
            _undo(done, target, error)
            raise
        done.append(step)
        end_ns, made = now(), calls_made()
        taken.append((step.stage, step.name, start_ns, end_ns, made - calls))
        start_ns, calls = end_ns, made


def _undo(done: list[Step[T]], target: T, error: BaseException) -> None:
    for step in reversed(done):
        if step.undo is None:
            error.add_note(f"{step.stage}: {step.name} cannot be undone")
            continue
        try:
            step.undo(target)
        except Exception as second:  # both are reported; the rest is still undone
            error.add_note(f"undoing {step.stage}: {step.name} failed too: {second}")
