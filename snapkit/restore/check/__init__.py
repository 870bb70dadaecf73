"""What must hold across the parts of a machine before any of it is rebuilt: pure, all findings at once.

A single value out of its bounds never gets here: decoding refuses it. Each invariant is a small named function with its
reason, in one module a concern (identity, memory, claims, pci, interrupts, queues, vcpus, clock, gic, its, vcpus_aarch64).
`COMMON` is the list that `check` runs for every machine; the module of an architecture has the list of those that look at
its CPUs and chips only, and is imported for a machine of its. What one section alone must hold is told by the module of
its kind: its function ``invariants`` finds it, its table ``RULES`` names it. `explained` gives all, for
``snapkit verify --explain``.

What is a finding: a state that no monitor could have saved, or that KVM or a rebuild would refuse. What a guest may bring
about by what it writes, to a register or to its own memory, never is one, whatever nonsense: its snapshot must restore.
So no invariant reads guest memory, all of which is the guest's: `remarks` does, for people, and refuses nothing. The one
exception is what KVM itself keeps there and would refuse (`its`).

Every restore of a new file runs all of them, and nearly every machine passes, so an invariant is written for the machine that does:

- it goes through what it looks at once, and looks at nothing else: `Index` has the sections by class;
- values are compared as they stand, registers of one structure read by one `struct`, not one by one;
- texts and paths are made where a finding is, not before: they cost more than most comparisons;
- where a whole can be compared at once (two sorted lists, two sets), what exactly differs is looked for afterwards.
  There are never two spellings of one rule, a quick one and a thorough one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from sys import modules
from typing import NamedTuple

from snapkit.errors import Finding
from snapkit.restore.check import claims, identity, interrupts, memory, pci, queues
from snapkit.restore.check.identity import check_labels
from snapkit.restore.check.remarks import REMARKS, remarks
from snapkit.restore.check.sections import Findings, Index, Invariant, Sections, invariant
from snapkit.restore.pages import Pages
from snapkit.state.machine import EM_AARCH64, EM_X86_64
from snapkit.state.schema import KINDS, State, current
from snapkit.state.spec.address_map import MAPS

__all__ = ["COMMON", "REMARKS", "Rule", "check", "check_labels", "explained", "invariants_of", "remarks"]


@invariant()
def sections_consistent(index: Index, _pages: Pages) -> Findings:
    """A section's fields do not contradict each other: it could never have been saved so."""
    for section, state in index.sections.items():
        find = _invariants(type(state))
        if find is not None:
            yield from find(state, str(section))


@cache
def _invariants(cls: type[State]) -> Callable[[State, str], Iterable[Finding]] | None:
    """Return what the module that declares *cls* has under the name ``invariants``."""
    found: Callable[[State, str], Iterable[Finding]] | None = getattr(modules[cls.__module__], "invariants", None)
    return found


COMMON: tuple[Invariant, ...] = (
    identity.sections_complete,
    identity.architecture_known,
    identity.vcpus_dense,
    identity.devices_complete,
    identity.one_transport,
    identity.segment_complete,
    identity.one_generation,
    identity.generation_in_memory,
    memory.page_len_known,
    memory.regions_sound,
    memory.regions_in_the_map,
    memory.regions_in_the_file,
    sections_consistent,
    claims.pools_known,
    claims.claims_agree,
    claims.claims_once,
    claims.slots_in_place,
    pci.device_ids_agree,
    pci.virtio_bar_whole,
    pci.bars_apart,
    pci.bars_beside_slots,
    pci.vectors_fit,
    pci.vectors_for_queues,
    interrupts.lines_in_range,
    interrupts.routes_in_range,
    interrupts.lines_agree,
    interrupts.routes_agree,
    queues.transports_agree,
    queues.nothing_in_flight,
)


_MODULES = {EM_X86_64: "x86_64", EM_AARCH64: "aarch64"}


def invariants_of(architecture: int) -> tuple[Invariant, ...]:
    """Return every invariant of a machine of *architecture*, an ELF machine number that `MAPS` has."""
    own: tuple[Invariant, ...] = import_module(f"{__name__}.{_MODULES[architecture]}").INVARIANTS
    return COMMON + own


def check(sections: Sections, pages: Pages) -> list[Finding]:
    """Return everything that is wrong with the machine as a whole; empty when it may be rebuilt.

    Where it finds nothing, it has gone by *sections* and by what `Pages.peek` gave it, and by nothing else: see `known`.
    """
    index = Index(sections)
    return [
        finding if finding.rule else finding._replace(rule=invariant.rule)
        for invariant in invariants_of(index.map.architecture)
        for finding in invariant(index, pages)
    ]


class Rule(NamedTuple):
    """What a finding may be named for: where it is looked for (a concern, or the kinds of section), and why."""

    name: str
    about: str
    reason: str

    @classmethod
    def of(cls, one: Invariant) -> "Rule":
        return cls(one.rule, one.__module__.rpartition(".")[2], " ".join((one.__doc__ or "").split()))


def explained() -> list[Rule]:
    """Return every rule that `check` knows: across sections, of one section, and what is only remarked upon."""
    rules = [Rule(identity.LABELS, "identity", identity.LABELS_REASON)]
    every = dict.fromkeys(one for architecture in MAPS for one in invariants_of(architecture))
    rules += [Rule.of(one) for one in every if one.rule]
    about: dict[tuple[str, str], list[str]] = {}
    for kind, name, reason in _rules_of_kinds():
        about.setdefault((name, reason), []).append(kind)
    rules += [Rule(name, ", ".join(kinds), reason) for (name, reason), kinds in about.items()]
    return rules + [Rule.of(one) for one in REMARKS]


def _rules_of_kinds() -> Iterator[tuple[str, str, str]]:
    for kind in KINDS:
        rules: Mapping[str, str] = getattr(modules[current(kind).type.__module__], "RULES", {})
        for name, reason in rules.items():
            yield kind, name, reason
