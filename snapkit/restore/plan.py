"""From sections to steps: pure, so that a plan can be shown without a machine, without KVM, on any host.

The orders are data (`orders`), each edge with its reason; here sections only fall into their places. Sections of one
kind come by their numbers, whatever order the file has: KVM hands out the redistributors of a GICv3 in the order in which
vCPUs are made, and the counter is the first one's. Those that have names keep the file's order.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from snapkit.errors import InternalError
from snapkit.order import Order
from snapkit.restore import orders
from snapkit.restore.pages import Pages
from snapkit.restore.pipeline import Step, dies_with_vm
from snapkit.restore.target import Target
from snapkit.state.machine import MachineState
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.state.schema import SectionId, State

MACHINE = SectionId("machine", "0")
MEMORY = SectionId("memory-layout", "0")

Steps = list[Step[Target]]


def plan(sections: Mapping[SectionId, State], pages: Pages, *, paused: bool = False) -> Steps:
    """Return the steps that restore *sections*, in order.

    *pages* is only handed on to the step that maps memory. With *paused* nothing runs at the end.
    """
    machine, layout = sections[MACHINE], sections[MEMORY]
    if not isinstance(machine, MachineState) or not isinstance(layout, MemoryLayoutState):
        raise InternalError("the machine or memory-layout section is not of its current version")
    vm, ram = orders.REBUILD.reasons["machine"], orders.REBUILD.reasons["memory-layout"]
    made: dict[SectionId, Step[Target]] = {
        MACHINE: Step(
            "rebuild", "create the VM", lambda target: target.create_vm(machine), lambda target: target.close_vm(), vm
        ),
        MEMORY: Step(
            "rebuild",
            "map memory",
            lambda target: target.map_memory(layout, pages),
            lambda target: target.unmap_memory(),
            ram,
        ),
    }
    places = _places(tuple(sections), orders.CLAIM, orders.REBUILD, orders.LOAD)
    stages: dict[str, Steps] = {
        "claim": [
            *(
                Step("claim", name, _claiming(section, sections[section]), undo, reasons)
                for section, name, undo, reasons in places.claim
            ),
            _OPEN_HYPERVISOR,  # last, after what may be missing, changed or another's: nothing is opened by path after it
        ],
        "rebuild": [
            made.get(section) or Step("rebuild", name, _constructing(section, sections[section]), undo, reasons)
            for section, name, undo, reasons in places.rebuild
        ],
        "wire": [_WIRE],
        "load": places.load,
        "activate": [_ACTIVATE],
        "run": [] if paused else [_RUN],
    }
    return [step for stage in orders.STAGES.names for step in stages[stage]]


_OPEN_HYPERVISOR: Step[Target] = Step(
    "claim",
    "open the hypervisor",
    lambda target: target.open_hypervisor(),
    lambda target: target.close_hypervisor(),
)
_WIRE: Step[Target] = Step(
    "wire", "doorbells and interrupts", lambda target: target.wire(), lambda target: target.unwire()
)
_ACTIVATE: Step[Target] = Step(
    "activate", "devices", lambda target: target.activate(), lambda target: target.deactivate()
)
_RUN: Step[Target] = Step("run", "clocks and vCPUs", lambda target: target.resume())


def _claiming(section: SectionId, state: State) -> Callable[[Target], None]:
    return lambda target: target.claim(section, state)


def _constructing(section: SectionId, state: State) -> Callable[[Target], None]:
    return lambda target: target.construct(section, state)


class _Place(NamedTuple):
    """Where a section's step comes, and all of that step but what it does with the State."""

    section: SectionId
    name: str
    undo: Callable[[Target], None]
    reasons: Sequence[str]


class _Places(NamedTuple):
    claim: list[_Place]
    rebuild: list[_Place]
    load: Steps


@lru_cache(maxsize=64)
def _places(sections: tuple[SectionId, ...], claim: Order, rebuild: Order, load: Order) -> _Places:
    """Put *sections* into their places: once for all machines that have the same ones."""
    kinds = _by_kind(sections)
    return _Places(
        [_claim(section) for section in _ordered(kinds, claim)],
        [_construct(section, rebuild) for section in (*_ordered(kinds, rebuild), *_others(sections, rebuild))],
        [_load(section, load) for section in _ordered(kinds, load)],
    )


def _by_kind(sections: Iterable[SectionId]) -> dict[str, list[SectionId]]:
    """Return the sections of each kind, by their numbers."""
    kinds: dict[str, list[SectionId]] = {}
    for section in sections:
        kinds.setdefault(section.kind, []).append(section)
    for each in kinds.values():
        if len(each) > 1:
            each.sort(key=_number)
    return kinds


def _ordered(kinds: Mapping[str, Sequence[SectionId]], order: Order) -> list[SectionId]:
    """Return the sections of the kinds that are in *order*, as it has them."""
    return [section for kind in order.names for section in kinds.get(kind, ())]


def _others(sections: Iterable[SectionId], order: Order) -> list[SectionId]:
    """Return those of the kinds that are not, in the order of the file."""
    return [section for section in sections if section.kind not in order.names]


def _number(section: SectionId) -> int:
    return int(section.instance) if section.instance.isdecimal() else 0


def _claim(section: SectionId) -> _Place:
    return _Place(section, f"open what {section} has of the host", lambda target: target.unclaim(section), ())


def _construct(section: SectionId, rebuild: Order) -> _Place:
    reasons = rebuild.reasons.get(section.kind, ())
    return _Place(section, f"construct {section}", lambda target: target.discard(section), reasons)


def _load(section: SectionId, load: Order) -> Step[Target]:
    return Step(
        "load",
        f"load {section}",
        lambda target: target.load(section),
        dies_with_vm,
        load.reasons.get(section.kind, ()),
    )
