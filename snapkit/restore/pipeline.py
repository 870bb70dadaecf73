"""The engine that runs steps: in order, each timed and counted, all undone in reverse when one fails.

The engine knows nothing of machines. A step that fails has undone what it did itself; the engine undoes the steps
before it. A failure on the way back is added to the error that caused it, never put in its place.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from snapkit import host

T = TypeVar("T")

STAGES = (
    "open",
    "verify",
    "decode",
    "upgrade",
    "check",
    "plan",
    "claim",
    "rebuild",
    "wire",
    "load",
    "activate",
    "run",
)


def dies_with_vm(_target: object) -> None:
    """Undo of a step whose whole effect is inside the VM: closing that, which comes later, takes it back."""


@dataclass(frozen=True, slots=True)
class Step(Generic[T]):
    """One thing to do to a target, and how to take it back; *run* steps have no way back."""

    stage: str
    name: str
    do: Callable[[T], None]
    undo: Callable[[T], None] | None = None


@dataclass(slots=True)
class Span:
    """One step as it ran: when it began after the timeline's start, how long it took, its system calls."""

    stage: str
    name: str
    start_ns: int
    length_ns: int
    calls: int


@dataclass(slots=True)
class Timeline:
    """What ran, when, and how many system calls it took."""

    origin_ns: int = field(default_factory=host.monotonic_ns)
    spans: list[Span] = field(default_factory=list)

    @contextmanager
    def span(self, stage: str, name: str) -> Iterator[None]:
        """Record the block as a step of *stage*, also when it fails."""
        calls, start_ns = host.calls_made(), host.monotonic_ns()
        try:
            yield
        finally:
            end_ns = host.monotonic_ns()
            self.spans.append(
                Span(stage, name, start_ns - self.origin_ns, end_ns - start_ns, host.calls_made() - calls)
            )

    def total_ns(self) -> int:
        """From the origin to the end of the last step."""
        return max((span.start_ns + span.length_ns for span in self.spans), default=0)

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


def run_steps(steps: Iterable[Step[T]], target: T, timeline: Timeline) -> None:
    """Do *steps* to *target*; when one fails, undo those before it in reverse and raise its error with theirs noted."""
    done: list[Step[T]] = []
    for step in steps:
        try:
            with timeline.span(step.stage, step.name):
                step.do(target)
        except BaseException as error:
            error.add_note(f"in step {step.stage}: {step.name}")
            _undo(done, target, error)
            raise
        done.append(step)


def _undo(done: list[Step[T]], target: T, error: BaseException) -> None:
    for step in reversed(done):
        if step.undo is None:
            error.add_note(f"{step.stage}: {step.name} cannot be undone")
            continue
        try:
            step.undo(target)
        except Exception as second:  # both are reported; the rest is still undone
            error.add_note(f"undoing {step.stage}: {step.name} failed too: {second}")
