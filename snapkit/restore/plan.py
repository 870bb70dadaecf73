"""From sections to steps: pure, so that a plan can be shown without a machine, without KVM, on any host.

The orders are data (`orders`), each edge with its reason; here sections only fall into their places. Sections of one
kind keep the file's order.
"""

from collections.abc import Iterable, Mapping
from itertools import chain

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
    stages: dict[str, Steps] = {
        "claim": [
            *(_claim(section, sections[section]) for section in _ordered(sections, orders.CLAIM)),
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
            for section in _ordered(sections, orders.REBUILD, rest=True)
        ],
        "wire": [
            Step("wire", "doorbells and interrupts", lambda target: target.wire(), lambda target: target.unwire())
        ],
        "load": [_load(section) for section in _ordered(sections, orders.LOAD)],
        "activate": [Step("activate", "devices", lambda target: target.activate(), lambda target: target.deactivate())],
        "run": [] if paused else [Step("run", "clocks and vCPUs", lambda target: target.resume())],
    }
    return [step for stage in orders.STAGES.names for step in stages[stage]]


def _ordered(sections: Iterable[SectionId], order: Order, *, rest: bool = False) -> list[SectionId]:
    """Return *sections* sorted by the place of their kind in *order*; those not in it last, or not at all."""
    by_kind: dict[str, list[SectionId]] = {kind: [] for kind in order.names}
    others: list[SectionId] = []
    for section in sections:
        by_kind.get(section.kind, others).append(section)
    listed = list(chain.from_iterable(by_kind.values()))
    return listed + others if rest else listed


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
