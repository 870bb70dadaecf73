"""The sections of a machine that was just switched on: which number and which range each device gets.

A machine without devices and without a transport has none of these kinds but the two tables, and is what release 0.1.0
knew. One with a transport has a VM generation id beside it, and with PCI a segment and its host bridge.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from snapkit import host
from snapkit.errors import ConfigError
from snapkit.state.i8042 import I8042State
from snapkit.state.interrupt_table import InterruptTableState, LineState
from snapkit.state.pci_function import HOST_BRIDGE
from snapkit.state.resource_allocator import PoolState
from snapkit.state.schema import SectionId, State
from snapkit.state.serial_16550 import SerialState
from snapkit.state.virtio import VirtioState
from snapkit.units import Gpa, Gsi
from snapkit.vmm.arch.x86_64 import layout
from snapkit.vmm.parts.board import module_of
from snapkit.vmm.parts.part import HostEnd
from snapkit.vmm.resource_allocator import ResourceAllocator

Transport = Literal["pci", "mmio"]

SERIAL = SectionId("serial-16550", "0")
KEYBOARD = SectionId("i8042", "0")
CLAIMS = SectionId("resource-allocator", "0")
INTERRUPTS = SectionId("interrupt-table", "0")
GENERATION = SectionId("vmgenid", "0")

POOLS = (
    PoolState(pool="gsi-legacy", start=layout.GSI_LEGACY.start, length=len(layout.GSI_LEGACY)),
    PoolState(pool="gsi-msi", start=layout.GSI_MSI.start, length=len(layout.GSI_MSI)),
    PoolState(pool="mmio32", start=layout.MMIO32_START, length=layout.MMIO32_END - layout.MMIO32_START),
    PoolState(pool="mmio64", start=layout.MMIO64_START, length=layout.MMIO64_LEN),
    PoolState(pool="pci-slot", start=1, length=31),
)
"""What x86-64 machines have to give, in the order of their names."""


class Asked(NamedTuple):
    """A device that the operator asks for: its kind, its id, and what is said of it."""

    kind: str
    id: str
    values: Mapping[str, Any] = {}


class MmioSlot(NamedTuple):
    """What firmware tells of a device on the memory-mapped transport."""

    gpa: Gpa
    gsi: Gsi


class Fresh(NamedTuple):
    """The sections of a new machine's parts, and what its firmware tables have to tell of them."""

    sections: dict[SectionId, State]
    transport: Transport | None
    mmio_slots: list[MmioSlot]
    generation_gsi: Gsi | None


def open_parts(
    devices: Sequence[Asked], transport: Transport | None, adopt: Callable[[SectionId, HostEnd], None]
) -> Fresh:
    """Open what the host lends to the *devices* asked for, have it owned by *adopt*, and lay all parts out.

    Raises ConfigError for what the operator got wrong.
    """
    require_distinct(devices)
    states = []
    for asked in devices:
        section = SectionId(asked.kind, asked.id)
        module = module_of(asked.kind)
        end = module.open_host(section, asked.values)
        if end is not None:
            adopt(section, end)
        states.append((asked, module.fresh(section, asked.values, end)))
    return fresh_sections(states, transport or ("pci" if devices else None), host.urandom(16))


def fresh_sections(
    devices: Sequence[tuple[Asked, VirtioState]], transport: Transport | None, generation: bytes
) -> Fresh:
    """Lay out a machine with *devices*, whose own States are given, in their order. *generation* is its first id.

    Raises ConfigError when there is no room for all of them.
    """
    claims = ResourceAllocator(POOLS)
    lines = [LineState(gsi=layout.GSI_SERIAL, edge=True, owner=str(SERIAL))]
    parts: dict[SectionId, State] = {SERIAL: SerialState(), KEYBOARD: I8042State()}
    slots: list[MmioSlot] = []
    generation_gsi = None
    if transport is not None:
        generation_gsi = Gsi(claims.allocate("gsi-legacy", 1, str(GENERATION)))
        lines.append(LineState(gsi=generation_gsi, edge=True, owner=str(GENERATION)))
        parts[GENERATION] = module_of(GENERATION.kind).fresh(generation_gsi, generation)
    if transport == "pci":
        parts |= module_of("pci-segment").fresh_segment()
    for number, (asked, state) in enumerate(devices):
        device = SectionId(asked.kind, asked.id)
        parts[device] = state
        if transport == "pci":
            parts |= module_of("virtio-pci").fresh_pci(device, state, claims)
            continue
        owner = f"virtio-mmio/{asked.id}"
        gpa = Gpa(layout.MMIO32_END - (number + 1) * layout.VIRTIO_MMIO_SLOT_LEN)
        gsi = Gsi(claims.allocate("gsi-legacy", 1, owner))
        claims.claim("mmio32", gpa, layout.VIRTIO_MMIO_SLOT_LEN, owner)
        lines.append(LineState(gsi=gsi, edge=False, owner=owner))
        slots.append(MmioSlot(gpa, gsi))
        parts |= module_of("virtio-mmio").fresh_mmio(device, gpa, gsi)
    tables: dict[SectionId, State] = {
        CLAIMS: claims.save(),
        INTERRUPTS: InterruptTableState(lines=sorted(lines, key=lambda line: line.gsi)),
    }
    return Fresh(tables | parts, transport, slots, generation_gsi)


def require_distinct(devices: Sequence[Asked]) -> None:
    """Raise ConfigError when two devices have one id, or one has the id that is the host bridge's."""
    seen: dict[str, str] = {HOST_BRIDGE.instance: "the host bridge"}
    for asked in devices:
        if asked.id in seen:
            raise ConfigError(f"two devices have the id {asked.id!r}: {seen[asked.id]} and {asked.kind}")
        seen[asked.id] = asked.kind
