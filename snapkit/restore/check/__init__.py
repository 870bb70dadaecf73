"""What must hold across the parts of a machine before any of it is rebuilt: pure, all findings at once.

A single value out of its bounds never gets here: decoding refuses it. Each invariant is a small named function with its
reason, in one module a concern (identity, memory, claims, pci, interrupts, queues, vcpus, clock); `INVARIANTS` is the
list that `check` runs. What one section alone must hold is told by the module of its kind: its function ``invariants``
finds it, its table ``RULES`` names it. `explained` gives both, for ``snapkit verify --explain``.

What is a finding: a state that no monitor could have saved, or that KVM or a rebuild would refuse. What a guest may bring
about by what it writes, to a register or to its own memory, never is one, whatever nonsense: its snapshot must restore.
So no invariant reads guest memory, all of which is the guest's: `remarks` does, for people, and refuses nothing.

Every restore runs all of them, and nearly every machine passes, so an invariant is written for the machine that does:

- it goes through what it looks at once, and looks at nothing else: `Index` has the sections by class;
- values are compared as they stand, registers of one structure read by one `struct`, not one by one;
- texts and paths are made where a finding is, not before: they cost more than most comparisons;
- where a whole can be compared at once (two sorted lists, two sets), what exactly differs is looked for afterwards.
  There are never two spellings of one rule, a quick one and a thorough one.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from sys import modules
from typing import NamedTuple

from snapkit.errors import Finding
from snapkit.restore.check import claims, clock, identity, interrupts, memory, pci, queues, vcpus
from snapkit.restore.check.identity import check_labels
from snapkit.restore.check.remarks import REMARKS, remarks
from snapkit.restore.check.sections import Findings, Index, Invariant, Sections, invariant
from snapkit.restore.pages import Pages
from snapkit.state.schema import KINDS, State, current

__all__ = ["INVARIANTS", "REMARKS", "Rule", "check", "check_labels", "explained", "remarks"]


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


INVARIANTS: tuple[Invariant, ...] = (
    identity.sections_complete,
    identity.architecture_known,
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
    interrupts.lines_agree,
    interrupts.routes_agree,
    queues.transports_agree,
    interrupts.pics_possible,
    interrupts.ioapic_possible,
    queues.nothing_in_flight,
    vcpus.vcpus_dense,
    vcpus.vcpu_lists_unique,
    vcpus.cpuid_agrees,
    vcpus.cpuid_tells_the_id,
    vcpus.virtual_width_known,
    vcpus.mp_state_known,
    vcpus.rflags_possible,
    vcpus.cr0_possible,
    vcpus.cr4_possible,
    vcpus.efer_defined,
    vcpus.long_mode_whole,
    vcpus.segments_possible,
    vcpus.efer_once,
    vcpus.apic_base_possible,
    vcpus.lapic_id_possible,
    vcpus.task_priority_once,
    vcpus.interrupt_once,
    vcpus.xcr0_possible,
    vcpus.xsave_header_possible,
    vcpus.debug_registers_possible,
    vcpus.exception_possible,
    vcpus.events_possible,
    clock.pit_possible,
    clock.kvm_clock_possible,
    clock.tsc_rates_agree,
)


def check(sections: Sections, pages: Pages) -> list[Finding]:
    """Return everything that is wrong with the machine as a whole; empty when it may be rebuilt."""
    index = Index(sections)
    return [
        finding if finding.rule else finding._replace(rule=invariant.rule)
        for invariant in INVARIANTS
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
    rules += [Rule.of(one) for one in INVARIANTS if one.rule]
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
