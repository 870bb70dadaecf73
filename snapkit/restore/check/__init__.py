"""What must hold across the parts of a machine before any of it is rebuilt: pure, all findings at once.

A single value out of its bounds never gets here: decoding refuses it. Each invariant is a small named function with its
reason, in one module a concern; `INVARIANTS` is the list that `check` runs.

Every restore runs all of them, and nearly every machine passes, so an invariant is written for the machine that does:

- it goes through what it looks at once, and looks at nothing else;
- values are compared as they stand, registers of one structure read by one `struct`, not one by one;
- texts and paths are made where a finding is, not before: they cost more than most comparisons;
- where a whole can be compared at once (two sorted lists, two sets), what exactly differs is looked for afterwards.
  There are never two spellings of one rule, a quick one and a thorough one.
"""

from collections.abc import Callable, Iterable
from functools import cache
from sys import modules

from snapkit.errors import Finding
from snapkit.restore.check import devices, interrupts, machine
from snapkit.restore.check.machine import check_labels
from snapkit.restore.check.sections import Findings, Sections
from snapkit.restore.pages import Pages
from snapkit.state.schema import State

__all__ = ["INVARIANTS", "check", "check_labels"]


def sections_consistent(sections: Sections, _pages: Pages) -> Findings:
    """A section's fields do not contradict each other: it could never have been saved so."""
    for section, state in sections.items():
        invariants = _invariants(type(state))
        if invariants is not None:
            yield from invariants(state, str(section))


@cache
def _invariants(cls: type[State]) -> Callable[[State, str], Iterable[Finding]] | None:
    """Return what the module that declares *cls* has under the name ``invariants``."""
    found: Callable[[State, str], Iterable[Finding]] | None = getattr(modules[cls.__module__], "invariants", None)
    return found


INVARIANTS: tuple[Callable[[Sections, Pages], Findings], ...] = (
    machine.sections_complete,
    machine.architecture_known,
    machine.vcpus_dense,
    machine.vcpu_lists_unique,
    machine.regions_sound,
    sections_consistent,
    devices.devices_complete,
    devices.pools_known,
    devices.claims_agree,
    devices.transports_agree,
    devices.vectors_fit,
    devices.bars_apart,
    devices.generation_in_memory,
    interrupts.lines_agree,
    interrupts.routes_agree,
)


def check(sections: Sections, pages: Pages) -> list[Finding]:
    """Return everything that is wrong with the machine as a whole; empty when it may be rebuilt."""
    return [finding for invariant in INVARIANTS for finding in invariant(sections, pages)]
