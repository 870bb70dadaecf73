"""From sections to steps: pure, so that a plan can be shown without a machine, without KVM, on any host.

The order inside a stage is a table, each entry with its reason. A kind that a table does not list is constructed after
those that it lists, in the file's order.
"""

from collections.abc import Mapping
from itertools import chain

from snapkit.errors import InternalError
from snapkit.restore.pages import Pages
from snapkit.restore.pipeline import Step, dies_with_vm
from snapkit.restore.target import Target
from snapkit.state.machine import MachineState
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.state.schema import SectionId, State

MACHINE = SectionId("machine", "0")
MEMORY = SectionId("memory-layout", "0")

REBUILD_ORDER = (
    (
        "irqchip-x86",
        "after the memory slots, which cost milliseconds each once it is there; before vCPUs, whose LAPICs it makes",
    ),
    ("pit", "needs the irqchip"),
    ("vcpu-x86-64", "needs the irqchip"),
    ("kvm-clock", "nothing needs it; it only holds its state"),
    ("resource-allocator", "every part that is built claims its ranges and numbers from it"),
    ("interrupt-table", "gives parts their interrupt lines and vectors"),
    ("serial-16550", "needs its interrupt line"),
    ("i8042", "needs nothing but its ports"),
    ("vmgenid", "needs its interrupt line"),
    ("pci-segment", "functions are put into its slots"),
    ("virtio-block", "before its transport, which wraps it"),
    ("virtio-net", "before its transport"),
    ("virtio-vsock", "before its transport"),
    ("virtio-rng", "before its transport"),
    ("virtio-balloon", "before its transport"),
    ("pci-function", "before what answers behind its BARs and capabilities"),
    ("pci-msix", "its control word is in the function's configuration space"),
    ("virtio-pci", "joins a device, its function and its vectors"),
    ("virtio-mmio", "joins a device and its interrupt line"),
)

CLAIM_ORDER = (
    ("virtio-block", "its image, which may be missing, changed, or locked by another machine"),
    ("virtio-net", "its TAP"),
    ("virtio-vsock", "its socket"),
)

LOAD_ORDER = (
    ("vcpu-x86-64", "local APICs before the IOAPIC: setting a LAPIC wipes what the IOAPIC injected"),
    ("irqchip-x86", "after every LAPIC; the PICs and then the IOAPIC, which injects the edges that it holds"),
    ("pit", "holds its state until *run*: KVM starts it when it is written"),
    ("kvm-clock", "started in *run*, with the counters; here for completeness"),
)

Steps = list[Step[Target]]


def plan(sections: Mapping[SectionId, State], pages: Pages, *, paused: bool = False) -> Steps:
    """Return the steps that restore *sections*, in order.

    *pages* is only handed on to the step that maps memory. With *paused* nothing runs at the end.
    """
    machine, layout = sections[MACHINE], sections[MEMORY]
    if not isinstance(machine, MachineState) or not isinstance(layout, MemoryLayoutState):
        raise InternalError("the machine or memory-layout section is not of its current version")
    parts = [section for section in sections if section not in (MACHINE, MEMORY)]
    steps: Steps = [_claim(section, sections[section]) for section in _ordered(parts, CLAIM_ORDER, rest=False)]
    steps += [
        Step("rebuild", "create the VM", lambda target: target.create_vm(machine), lambda target: target.close_vm()),
        Step(
            "rebuild",
            "map memory",
            lambda target: target.map_memory(layout, pages),
            lambda target: target.unmap_memory(),
        ),
    ]
    steps += [_construct(section, sections[section]) for section in _ordered(parts, REBUILD_ORDER, rest=True)]
    steps.append(Step("wire", "doorbells and interrupts", lambda target: target.wire(), lambda target: target.unwire()))
    steps += [_load(section) for section in _ordered(parts, LOAD_ORDER, rest=False)]
    steps.append(Step("activate", "devices", lambda target: target.activate(), lambda target: target.deactivate()))
    if not paused:
        steps.append(Step("run", "clocks and vCPUs", lambda target: target.resume()))
    return steps


def _ordered(parts: list[SectionId], order: tuple[tuple[str, str], ...], *, rest: bool) -> list[SectionId]:
    """Return *parts* sorted by the place of their kind in *order*; those not in it last, or not at all."""
    by_kind: dict[str, list[SectionId]] = {kind: [] for kind, _reason in order}
    others: list[SectionId] = []
    for part in parts:
        by_kind.get(part.kind, others).append(part)
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
    )


def _load(section: SectionId) -> Step[Target]:
    return Step("load", f"load {section}", lambda target: target.load(section), dies_with_vm)
