"""The interrupt table is what the devices' own registers say: which pins they have, which vectors can fire."""

from collections.abc import Iterator

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Sections, each, get
from snapkit.restore.pages import Pages
from snapkit.state.interrupt_table import InterruptTableState, LineState, RouteState
from snapkit.state.pci_function import PciFunctionState, find_capability, register
from snapkit.state.pci_msix import PciMsixState
from snapkit.state.serial_16550 import SerialState
from snapkit.state.spec import msix as msix_spec
from snapkit.state.spec import pci
from snapkit.state.spec.msix import MessageControl, VectorControl
from snapkit.state.virtio_mmio import VirtioMmioState
from snapkit.state.vmgenid import VmgenidState

_WHERE = "interrupt-table/0"
_SERIAL_GSI = 4


def lines_agree(sections: Sections, _pages: Pages) -> Findings:
    """Each interrupt pin in use is there with its owner, and nobody has two owners' pin."""
    table = get(sections, "interrupt-table", "0", InterruptTableState)
    if table is None:
        return
    derived = sorted((line.gsi, line.edge, line.owner) for line in _lines(sections))
    saved = [(line.gsi, line.edge, line.owner) for line in table.lines]
    if saved != derived:
        yield Finding(_WHERE, "lines", f"{_few(saved)}", f"{_few(derived)}, as the devices say", "interrupts.lines")
    gsis = [gsi for gsi, _, _ in derived]
    if len(set(gsis)) != len(gsis):
        yield Finding(_WHERE, "lines", f"{_few(derived)}", "one owner a line", "interrupts.lines")


def _lines(sections: Sections) -> Iterator[LineState]:
    for section, _serial in each(sections, SerialState):
        yield LineState(gsi=_SERIAL_GSI, edge=True, owner=str(section))
    for section, generation in each(sections, VmgenidState):
        yield LineState(gsi=generation.gsi, edge=True, owner=str(section))
    for section, mmio in each(sections, VirtioMmioState):
        yield LineState(gsi=mmio.gsi, edge=False, owner=str(section))


def routes_agree(sections: Sections, _pages: Pages) -> Findings:
    """A route is there for each vector that is enabled and not masked, with the message that its entry holds."""
    table = get(sections, "interrupt-table", "0", InterruptTableState)
    if table is None:
        return
    derived = {route.gsi: route for route in _routes(sections)}
    for number, route in enumerate(table.routes):
        expected = derived.pop(route.gsi, None)
        if expected != route:
            wanted = "absent: no enabled vector has it" if expected is None else _text(expected)
            yield Finding(_WHERE, f"routes[{number}]", _text(route), wanted, "interrupts.routes")
    for route in derived.values():
        yield Finding(_WHERE, "routes", f"without {_text(route)}", "with every enabled vector", "interrupts.routes")


def _routes(sections: Sections) -> Iterator[RouteState]:
    for section, msix in each(sections, PciMsixState):
        function = get(sections, "pci-function", section.instance, PciFunctionState)
        if function is None:
            continue
        offset = find_capability(function.config, pci.CAP_ID_MSIX)
        control = 0 if offset is None else register(function.config, offset + msix_spec.MESSAGE_CONTROL, 2)
        if not control & MessageControl.ENABLE or control & MessageControl.FUNCTION_MASK:
            continue
        owner = str(section)
        for entry, gsi in zip(msix.entries, msix.gsis, strict=False):
            if not entry.control & VectorControl.MASK:
                yield RouteState(gsi=gsi, address=entry.address, data=entry.data, device_id=0, owner=owner)


def _text(route: RouteState) -> str:
    return f"gsi {route.gsi} to {route.address:#x} with {route.data:#x}, device {route.device_id:#x}, of {route.owner}"


def _few(items: list[tuple[int, bool, str]]) -> str:
    return ", ".join(f"{gsi} ({'edge' if edge else 'level'}, {owner})" for gsi, edge, owner in items) or "none"
