"""From sections to steps: pure, so that a plan can be shown without a machine, without KVM, on any host.

The orders are data (`orders`), each edge with its reason; here sections only fall into their places. Sections of one
kind come by their numbers, whatever order the file has: KVM hands out the redistributors of a GICv3 in the order in which
vCPUs are made, and the counter is the first one's. Those that have names keep the file's order.
"""

from collections.abc import Iterable, Mapping, Sequence

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
    machine, layout, kinds = sections[MACHINE], sections[MEMORY], _by_kind(sections)
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
    stages: dict[str, Steps] = {
        "claim": [
            *(_claim(section, sections[section]) for section in _ordered(kinds, orders.CLAIM)),
            # last, after what may be missing, changed or another's: nothing is opened by path after it
            Step(
                "claim",
                "open the hypervisor",
                lambda target: target.open_hypervisor(),
                lambda target: target.close_hypervisor(),
            ),
        ],
        "rebuild": [
            made.get(section) or _construct(section, sections[section])
            for section in (*_ordered(kinds, orders.REBUILD), *_others(sections, orders.REBUILD))
        ],
        "wire": [
            Step("wire", "doorbells and interrupts", lambda target: target.wire(), lambda target: target.unwire())
        ],
        "load": [_load(section) for section in _ordered(kinds, orders.LOAD)],
        "activate": [Step("activate", "devices", lambda target: target.activate(), lambda target: target.deactivate())],
        "run": [] if paused else [Step("run", "clocks and vCPUs", lambda target: target.resume())],
    }
    return [step for stage in orders.STAGES.names for step in stages[stage]]


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


def _claim(section: SectionId, state: State) -> Step[Target]:
    return Step(
        "claim",
        f"open what {section} has of the host",
        lambda target: target.claim(section, state),
        lambda target: target.unclaim(section),
    )


def _construct(section: SectionId, state: State) -> Step[Target]:
    return Step(
        "rebuild",
        f"construct {section}",
        lambda target: target.construct(section, state),
        lambda target: target.discard(section),
        orders.REBUILD.reasons.get(section.kind, ()),
    )


def _load(section: SectionId) -> Step[Target]:
    return Step(
        "load",
        f"load {section}",
        lambda target: target.load(section),
        dies_with_vm,
        orders.LOAD.reasons.get(section.kind, ()),
    )
