"""What must hold across the parts of a machine before any of it is rebuilt: pure, all findings at once.

A single value out of its bounds never gets here: decoding refuses it. Each invariant is a small named function with its
reason, in one module a concern; `INVARIANTS` is the list that `check` runs.
"""

from collections.abc import Callable
from importlib import import_module

from snapkit.errors import Finding
from snapkit.restore.check import devices, interrupts, machine
from snapkit.restore.check.machine import check_labels
from snapkit.restore.check.sections import Findings, Sections
from snapkit.restore.pages import Pages
from snapkit.state.schema import KINDS

__all__ = ["INVARIANTS", "check", "check_labels"]


def sections_consistent(sections: Sections, _pages: Pages) -> Findings:
    """A section's fields do not contradict each other: it could never have been saved so."""
    for section, state in sections.items():
        invariants = getattr(import_module(f"snapkit.state.{KINDS[section.kind]}"), "invariants", None)
        if invariants is not None:
            yield from invariants(state, str(section))


INVARIANTS: tuple[Callable[[Sections, Pages], Findings], ...] = (
    machine.sections_complete,
    machine.architecture_known,
    machine.vcpus_dense,
    machine.vcpu_lists_unique,
    machine.regions_sound,
    sections_consistent,
    devices.devices_complete,
    devices.claims_agree,
    devices.transports_agree,
    devices.queues_in_memory,
    interrupts.lines_agree,
    interrupts.routes_agree,
)


def check(sections: Sections, pages: Pages) -> list[Finding]:
    """Return everything that is wrong with the machine as a whole; empty when it may be rebuilt."""
    return [finding for invariant in INVARIANTS for finding in invariant(sections, pages)]
