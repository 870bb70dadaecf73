"""The sections of a machine that was just switched on: which number and which range each device gets.

A machine without devices and without a transport has none of these kinds but the two tables, and is what release 0.1.0
knew. One with a transport has a VM generation id beside it, and with PCI a segment and its host bridge.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from snapkit import host
from snapkit.errors import ConfigError
from snapkit.state.codec import checked
from snapkit.state.interrupt_table import InterruptTableState, LineState
from snapkit.state.pci_function import HOST_BRIDGE
from snapkit.state.resource_allocator import LIMITS, PoolState
from snapkit.state.schema import SectionId, State
from snapkit.state.spec.address_map import SLOT_LEN, AddressMap
from snapkit.state.virtio import VirtioState
from snapkit.units import Gpa, Gsi
from snapkit.vmm.parts.board import module_of
from snapkit.vmm.parts.part import Ground, HostEnd
from snapkit.vmm.resource_allocator import ResourceAllocator

Transport = Literal["pci", "mmio"]

CLAIMS = SectionId("resource-allocator", "0")
INTERRUPTS = SectionId("interrupt-table", "0")
GENERATION = SectionId("vmgenid", "0")


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


Opened = Sequence[tuple[Asked, VirtioState]]
"""Devices whose host ends are open, with their own States."""


def open_devices(devices: Sequence[Asked], adopt: Callable[[SectionId, HostEnd], None]) -> Opened:
    """Open what the host lends to the *devices* asked for, and have it owned by *adopt*.

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
    return states


def fresh_sections(devices: Opened, transport: Transport | None, ground: Ground, generation: bytes = b"") -> Fresh:
    """Lay out a machine with *devices*, in their order, on *transport*; without one on PCI if there are devices.

    *generation* is its first id, a random one if it is not given.

    Raises ConfigError when there is no room for all of them.
    """
    transport = transport or ("pci" if devices else None)
    claims = ResourceAllocator(pools(ground.map))
    pins = {SectionId(kind, "0"): pin for kind, pin in ground.map.pins.items()}
    lines = [LineState(gsi=pin.gsi, edge=pin.edge, owner=str(section)) for section, pin in pins.items()]
    parts: dict[SectionId, State] = {section: checked(state) for section, state in ground.parts.items()}
    slots: list[MmioSlot] = []
    generation_gsi = None
    if transport is not None:
        generation_gsi = Gsi(claims.allocate("gsi-legacy", 1, str(GENERATION)))
        lines.append(LineState(gsi=generation_gsi, edge=True, owner=str(GENERATION)))
        parts[GENERATION] = module_of(GENERATION.kind).fresh(
            ground.generation_gpa, generation_gsi, generation or host.urandom(16)
        )
    if transport == "pci":
        parts |= module_of("pci-segment").fresh_segment()
    for number, (asked, state) in enumerate(devices):
        device = SectionId(asked.kind, asked.id)
        parts[device] = state
        if transport == "pci":
            parts |= module_of("virtio-pci").fresh_pci(device, state, claims)
            continue
        owner = f"virtio-mmio/{asked.id}"
        gpa = Gpa(ground.map.slots[1] - (number + 1) * SLOT_LEN)
        gsi = Gsi(claims.allocate("gsi-legacy", 1, owner))
        claims.claim("mmio32", gpa, SLOT_LEN, owner)
        lines.append(LineState(gsi=gsi, edge=False, owner=owner))
        slots.append(MmioSlot(gpa, gsi))
        parts |= module_of("virtio-mmio").fresh_mmio(device, gpa, gsi)
    tables: dict[SectionId, State] = {
        CLAIMS: claims.save(),
        INTERRUPTS: InterruptTableState(lines=sorted(lines, key=lambda line: line.gsi)),
    }
    return Fresh(tables | parts, transport, slots, generation_gsi)


def pools(where: AddressMap) -> list[PoolState]:
    """Return what machines of the address map *where* have to give, in the order of the pools' names."""
    return [PoolState(pool=name, start=where.pools[name][0], length=where.pools[name][1]) for name in LIMITS]


def require_distinct(devices: Sequence[Asked]) -> None:
    """Raise ConfigError when two devices have one id, or one has the id that is the host bridge's."""
    seen: dict[str, str] = {HOST_BRIDGE.instance: "the host bridge"}
    for asked in devices:
        if asked.id in seen:
            raise ConfigError(f"two devices have the id {asked.id!r}: {seen[asked.id]} and {asked.kind}")
        seen[asked.id] = asked.kind
