"""The interrupt table is what the devices' own registers say: which pins they have, which vectors can fire; and the chips.

KVM_SET_IRQCHIP refuses nothing (measured), so PICs and IOAPIC are held to what KVM itself can have saved
(arch/x86/kvm/i8259.c, ioapic.c). What a guest programs into them, all of a redirection entry included, is its own.
"""

from collections.abc import Iterator

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index, invariant
from snapkit.restore.pages import Pages
from snapkit.state.interrupt_table import ROUTES_MAX, InterruptTableState
from snapkit.state.irqchip_x86 import IrqchipState
from snapkit.state.pci_function import PciFunctionState, find_capability, register
from snapkit.state.pci_msix import PciMsixState
from snapkit.state.spec import ioapic, pci
from snapkit.state.spec import msix as msix_spec
from snapkit.state.spec.msix import MessageControl, VectorControl
from snapkit.state.virtio_mmio import VirtioMmioState
from snapkit.state.vmgenid import VmgenidState

_WHERE = "interrupt-table/0"
_PIC = (
    ("priority_add", 7),
    ("irq_base", 0xF8),
    ("read_reg_select", 1),
    ("poll", 1),
    ("special_mask", 1),
    ("init_state", 3),
    ("auto_eoi", 1),
    ("rotate_on_auto_eoi", 1),
    ("special_fully_nested_mode", 1),
    ("init4", 1),
)
"""Bits of each register that is not a mask of eight inputs."""
_ELCR_MASKS = {"pic_master": 0xF8, "pic_slave": 0xDE}
"""Inputs that may be level-triggered: not the timer, the keyboard, the cascade, the clock and the coprocessor."""
_IOAPIC = (("ioregsel", 0xFF), ("id", 0xF), ("irr", 0xFF_FFFF))
_OPEN = MessageControl.ENABLE | MessageControl.FUNCTION_MASK
_MASK = int(VectorControl.MASK)

Line = tuple[int, bool, str]
"""GSI, whether it is edge-triggered, owner."""
Route = tuple[int, int, int, int, str]
"""GSI, address, data, device id, owner."""


@invariant("lines.range")
def lines_in_range(index: Index, _pages: Pages) -> Findings:
    """A pin is one of the interrupt controllers' pins: there are no others."""
    for section, table in index.each(InterruptTableState):
        for number, line in enumerate(table.lines):
            if line.gsi >= index.map.lines:
                wanted = f"within 0..{index.map.lines - 1}"
                yield Finding(str(section), f"lines[{number}].gsi", str(line.gsi), wanted)


@invariant("routes.range")
def routes_in_range(index: Index, _pages: Pages) -> Findings:
    """A route's GSI is none of the pins' and below KVM_MAX_IRQ_ROUTES: KVM_SET_GSI_ROUTING refuses others."""
    for section, table in index.each(InterruptTableState):
        for number, route in enumerate(table.routes):
            if not index.map.lines <= route.gsi < ROUTES_MAX:
                wanted = f"within {index.map.lines}..{ROUTES_MAX - 1}"
                yield Finding(str(section), f"routes[{number}].gsi", str(route.gsi), wanted)


@invariant("interrupts.lines")
def lines_agree(index: Index, _pages: Pages) -> Findings:
    """Each interrupt pin in use is there with its owner, and nobody has two owners' pin."""
    table = index.get("interrupt-table", "0", InterruptTableState)
    if table is None:
        return
    derived = sorted(_lines(index))
    saved = [(line.gsi, line.edge, line.owner) for line in table.lines]
    if saved != derived:
        yield Finding(_WHERE, "lines", _few(saved), f"{_few(derived)}, as the devices say")
    if len({line[0] for line in derived}) != len(derived):
        yield Finding(_WHERE, "lines", _few(derived), "one owner a line")


@invariant("interrupts.routes")
def routes_agree(index: Index, _pages: Pages) -> Findings:
    """A route is there for each vector that is enabled and not masked, with the message that its entry holds."""
    table = index.get("interrupt-table", "0", InterruptTableState)
    if table is None:
        return
    derived = {route[0]: route for route in _routes(index)}
    for number, route in enumerate(table.routes):
        found = (route.gsi, route.address, route.data, route.device_id, route.owner)
        expected = derived.pop(route.gsi, None)
        if expected != found:
            wanted = "absent: no enabled vector has it" if expected is None else _text(expected)
            yield Finding(_WHERE, f"routes[{number}]", _text(found), wanted)
    for left in derived.values():
        yield Finding(_WHERE, "routes", f"without {_text(left)}", "with every enabled vector")


@invariant("interrupts.pic")
def pics_possible(index: Index, _pages: Pages) -> Findings:
    """A PIC's registers hold what a guest can program: KVM would take other values, and index its tables by them."""
    for section, chips in index.each(IrqchipState):
        for name, elcr_mask in _ELCR_MASKS.items():
            pic = getattr(chips, name)
            for register_name, mask in _PIC:
                if (value := getattr(pic, register_name)) & ~mask:
                    yield Finding(str(section), f"{name}.{register_name}", f"{value:#x}", f"within {mask:#x}")
            if pic.elcr_mask != elcr_mask:
                yield Finding(str(section), f"{name}.elcr_mask", f"{pic.elcr_mask:#x}", f"{elcr_mask:#x}")
            elif pic.elcr & ~elcr_mask:
                yield Finding(str(section), f"{name}.elcr", f"{pic.elcr:#x}", f"within {elcr_mask:#x}")


@invariant("interrupts.ioapic")
def ioapic_possible(index: Index, _pages: Pages) -> Findings:
    """The IOAPIC is where the guest was told, with as many pins: KVM would move it over RAM or devices."""
    for section, chips in index.each(IrqchipState):
        if chips.ioapic.base_address != ioapic.BASE:
            yield Finding(str(section), "ioapic.base_address", f"{chips.ioapic.base_address:#x}", f"{ioapic.BASE:#x}")
        for name, mask in _IOAPIC:
            if (value := getattr(chips.ioapic, name)) & ~mask:
                yield Finding(str(section), f"ioapic.{name}", f"{value:#x}", f"within {mask:#x}")


def _lines(index: Index) -> Iterator[Line]:
    for kind, pin in index.map.pins.items():
        if (kind, "0") in index.sections:
            yield pin.gsi, pin.edge, f"{kind}/0"
    for section, generation in index.each(VmgenidState):
        yield generation.gsi, True, str(section)
    for section, mmio in index.each(VirtioMmioState):
        yield mmio.gsi, False, str(section)


def _routes(index: Index) -> Iterator[Route]:
    for section, msix in index.each(PciMsixState):
        function = index.get("pci-function", section.instance, PciFunctionState)
        if function is None:
            continue
        offset = find_capability(function.config, pci.CAP_ID_MSIX)
        control = 0 if offset is None else register(function.config, offset + msix_spec.MESSAGE_CONTROL, 2)
        if control & _OPEN != MessageControl.ENABLE:
            continue
        owner, sender = str(section), function.requester_id if index.map.sender_ids else 0
        for entry, gsi in zip(msix.entries, msix.gsis, strict=False):
            if not entry.control & _MASK:
                yield gsi, entry.address, entry.data, sender, owner


def _text(route: Route) -> str:
    gsi, address, data, device_id, owner = route
    return f"gsi {gsi} to {address:#x} with {data:#x}, device {device_id:#x}, of {owner}"


def _few(items: list[Line]) -> str:
    return ", ".join(f"{gsi} ({'edge' if edge else 'level'}, {owner})" for gsi, edge, owner in items) or "none"
