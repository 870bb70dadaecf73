"""The line virtio-pci-preview-1 to -5: a *model* of how virtio-pci monitors came to what they save today.

No program ever wrote these releases as a product, and none of their formats is anybody's. Each step is one that public
monitors took between their first virtio-pci and what this project began with; files of all five are stored, and are read
like any old file. Files carry the short names vpci-preview-1 to -5: a preamble has 16 bytes for a release.

| step | what changed |
|---|---|
| 1 to 2 | receive buffers that a network card had parsed are flushed before the save (kind preview-net) |
| 2 to 3 | a device no longer says that it is active: its transport activates it, at DRIVER_OK and at a restore |
| 3 to 4 | pools of the device manager, with ranges of nobody, become claims of the Vm, each with its owner |
| 4 to 5 | MSI vectors become a list; BAR registers are state, and so is a move that the guest has begun |
| 5 to 0.2.0 | the interrupt table is state: lines and routes, which 5 derives again one by one |

Its machines have PCI, and disks, network cards and sources of random bytes on it; 5 knows balloons as well.

Surprises: an upgrade that finds a machine which contradicts itself (a device active under a transport that is not, a range
that is nobody's) is an ImageError that names the field; silence would make a wrong machine of it. Every step goes down as
well: what the older release cannot say is refused by its field.
"""

from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from snapkit.errors import Finding, ImageError
from snapkit.state.converters import MachineRefuse, Sections, machine_downgrade, machine_upgrade
from snapkit.state.interrupt_table import InterruptTableState, LineState, RouteState
from snapkit.state.pci_function import PciFunctionState, bar_offset, bar_pointed, find_capability, register
from snapkit.state.pci_msix import MsixEntryState, PciMsixState, pba_words
from snapkit.state.preview_block import PreviewBlockState
from snapkit.state.preview_device_manager import ManagedPoolState, PreviewDeviceManagerState, TakenState
from snapkit.state.preview_function import PreviewFunctionState
from snapkit.state.preview_msi import MsiVectorState, PreviewMsiState
from snapkit.state.preview_net import PreviewNetState
from snapkit.state.preview_rng import PreviewRngState
from snapkit.state.resource_allocator import OWNER_MAX, ClaimState, PoolState, ResourceAllocatorState, shown
from snapkit.state.schema import SectionId, State
from snapkit.state.serial_16550 import SerialState
from snapkit.state.spec import msix, pci
from snapkit.state.spec import virtio as spec
from snapkit.state.spec.msix import MessageControl, VectorControl
from snapkit.state.virtio_block import VirtioBlockState
from snapkit.state.virtio_net import VirtioNetState
from snapkit.state.virtio_pci import VirtioPciState
from snapkit.state.virtio_rng import VirtioRngState
from snapkit.state.vmgenid import VmgenidState

_INTERRUPTS = SectionId("interrupt-table", "0")
_SERIAL_GSI = 4
_BARS = slice(bar_offset(0), bar_offset(pci.BARS))


def _raise(findings: list[Finding]) -> None:
    if findings:
        raise ImageError("the machine contradicts itself", findings=findings)


# 2 to 3: who activates a device

_DEVICES = (
    (PreviewBlockState, "preview-block", VirtioBlockState, "virtio-block"),
    (PreviewNetState, "preview-net", VirtioNetState, "virtio-net"),
    (PreviewRngState, "preview-rng", VirtioRngState, "virtio-rng"),
)
_DEVICE_KINDS = frozenset(kind for row in _DEVICES for kind in (row[1], row[3]))


def _driver_ok(sections: Sections, instance: str) -> bool:
    transport = sections.get(SectionId("virtio-pci", instance))
    return isinstance(transport, VirtioPciState) and bool(transport.device_status & spec.STATUS_DRIVER_OK)


@machine_upgrade(
    "virtio-pci-preview-2",
    "virtio-pci-preview-3",
    kinds=_DEVICE_KINDS,
    changes={
        **{
            f"{old}.activated": "dropped: the transport activates its device, and DRIVER_OK in its status says when"
            for _, old, _, _ in _DEVICES
        },
        **{f"{old}.device": f"is a section of its own, {new}" for _, old, _, new in _DEVICES},
        **{new: f"what was the device of {old}" for _, old, _, new in _DEVICES},
    },
)
def _activation_to_transport(sections: Sections) -> Sections:
    findings: list[Finding] = []
    result: Sections = {}
    for where, state in sections.items():
        if not isinstance(state, PreviewBlockState | PreviewNetState | PreviewRngState):
            result[where] = state
            continue
        kind = next(new for _, old, _, new in _DEVICES if old == where.kind)
        result[SectionId(kind, where.instance)] = state.device
        active = _driver_ok(sections, where.instance)
        if state.activated != active:
            expected = f"{active}, as virtio-pci/{where.instance}.device_status says"
            findings.append(Finding(str(where), "activated", str(state.activated), expected))
    _raise(findings)
    return result


@machine_downgrade(
    "virtio-pci-preview-3",
    "virtio-pci-preview-2",
    kinds=_DEVICE_KINDS,
    changes={
        **{f"{old}.activated": "what DRIVER_OK of its transport says" for _, old, _, _ in _DEVICES},
        **{path: f"{new} goes into {old}" for _, old, _, new in _DEVICES for path in (f"{old}.device", new)},
    },
)
def _activation_to_devices(sections: Sections, _refuse: MachineRefuse) -> Sections:
    result: Sections = {}
    for where, state in sections.items():
        active = _driver_ok(sections, where.instance)
        match state:
            case VirtioBlockState():
                result[SectionId("preview-block", where.instance)] = PreviewBlockState(activated=active, device=state)
            case VirtioNetState():
                result[SectionId("preview-net", where.instance)] = PreviewNetState(activated=active, device=state)
            case VirtioRngState():
                result[SectionId("preview-rng", where.instance)] = PreviewRngState(activated=active, device=state)
            case _:
                result[where] = state
    return result


# 3 to 4: whose a range is


class _Range(NamedTuple):
    pool: str
    start: int
    length: int


def _ranges(sections: Sections) -> Iterator[tuple[_Range, str]]:
    """Give what each device has, by its own section, and which section that is."""
    for where, state in sections.items():
        owner = str(where)
        match state:
            case PreviewFunctionState():
                if state.slot:
                    yield _Range("pci-slot", state.slot, 1), owner
                for bar in state.bars:
                    pool = "mmio64" if bar.address >> 32 else "mmio32"
                    yield _Range(pool, bar.address, bar.length), owner
            case PreviewMsiState():
                for vector in state.vectors:
                    yield _Range("gsi-msi", vector.gsi, 1), owner
            case VmgenidState():
                yield _Range("gsi-legacy", state.gsi, 1), owner
            case _:
                pass


_ALLOCATORS = frozenset({"preview-device-manager", "resource-allocator"})


@machine_upgrade(
    "virtio-pci-preview-3",
    "virtio-pci-preview-4",
    kinds=_ALLOCATORS,
    changes={
        "preview-device-manager": "the Vm owns what is given out: resource-allocator",
        "resource-allocator.claims": "what was taken, each with the section that has it, asked of the devices",
    },
)
def _claims_to_vm(sections: Sections) -> Sections:
    owners = dict(_ranges(sections))
    findings: list[Finding] = []
    result: Sections = {}
    for where, state in sections.items():
        if isinstance(state, PreviewDeviceManagerState):
            result[SectionId("resource-allocator", where.instance)] = _with_owners(state, str(where), owners, findings)
        else:
            result[where] = state
    _raise(findings)
    return result


def _with_owners(
    manager: PreviewDeviceManagerState, where: str, owners: dict[_Range, str], findings: list[Finding]
) -> ResourceAllocatorState:
    claims = []
    for number, pool in enumerate(manager.pools):
        for place, taken in enumerate(pool.taken):
            owner = owners.get(_Range(pool.pool, taken.start, taken.length))
            if owner is not None:
                claims.append(ClaimState(pool=pool.pool, start=taken.start, length=taken.length, owner=owner))
                continue
            value = f"{pool.pool} {shown(taken.start, taken.length)}"
            findings.append(Finding(where, f"pools[{number}].taken[{place}]", value, "what a device has"))
    pools = [PoolState(pool=pool.pool, start=pool.start, length=pool.length) for pool in manager.pools]
    return ResourceAllocatorState(pools=pools, claims=claims)


@machine_downgrade(
    "virtio-pci-preview-4",
    "virtio-pci-preview-3",
    kinds=_ALLOCATORS,
    changes={
        "preview-device-manager": "what resource-allocator was",
        "resource-allocator.claims": "without owners; refused where the devices do not tell who has it",
    },
)
def _pools_to_manager(sections: Sections, refuse: MachineRefuse) -> Sections:
    owners = dict(_ranges(sections))
    result: Sections = {}
    for where, state in sections.items():
        if isinstance(state, ResourceAllocatorState):
            result[SectionId("preview-device-manager", where.instance)] = _without_owners(state, where, owners, refuse)
        else:
            result[where] = state
    return result


def _without_owners(
    allocator: ResourceAllocatorState, where: SectionId, owners: dict[_Range, str], refuse: MachineRefuse
) -> PreviewDeviceManagerState:
    names = [pool.pool for pool in allocator.pools]
    if len(set(names)) != len(names):
        refuse(where, "pools", ", ".join(names), "each pool once")
    taken: dict[str, list[TakenState]] = {name: [] for name in names}
    before = (-1, -1)
    for number, claim in enumerate(allocator.claims):
        owner = owners.get(_Range(claim.pool, claim.start, claim.length))
        place = (names.index(claim.pool), claim.start) if claim.pool in taken else before
        if claim.owner != owner:
            refuse(where, f"claims[{number}].owner", claim.owner, f"{owner or 'nobody'}, as the devices say")
        if place <= before:
            refuse(where, f"claims[{number}]", f"{claim.pool} {claim.start:#x}", "of one of the pools, in their order")
            continue
        taken[claim.pool].append(TakenState(start=claim.start, length=claim.length))
        before = place
    pools = [
        ManagedPoolState(pool=pool.pool, start=pool.start, length=pool.length, taken=taken[pool.pool])
        for pool in allocator.pools
    ]
    return PreviewDeviceManagerState(pools=pools)


# 4 to 5: vectors in a list, and what the guest has begun

_MOVED = {"preview-function": "pci-function", "preview-msi": "pci-msix"}
_REGISTERS = frozenset({*_MOVED, *_MOVED.values(), "resource-allocator"})


def _renamed(name: str, kinds: dict[str, str]) -> str:
    kind, slash, instance = name.partition("/")
    return f"{kinds.get(kind, kind)}{slash}{instance}"


def _claims_renamed(state: ResourceAllocatorState, kinds: dict[str, str]) -> ResourceAllocatorState:
    return replace(state, claims=[replace(claim, owner=_renamed(claim.owner, kinds)) for claim in state.claims])


def _claims_as_before(state: ResourceAllocatorState, where: SectionId, refuse: MachineRefuse) -> ResourceAllocatorState:
    claims = []
    for number, claim in enumerate(state.claims):
        owner = _renamed(claim.owner, {new: old for old, new in _MOVED.items()})
        if len(owner) > OWNER_MAX or _renamed(owner, _MOVED) != claim.owner:
            refuse(where, f"claims[{number}].owner", claim.owner, "a section of release virtio-pci-preview-5")
            owner = str(where)
        claims.append(replace(claim, owner=owner))
    return replace(state, claims=claims)


def _bar_type(width: int) -> int:
    return pci.BAR_TYPE_64 << 1 if width == 64 else 0


@machine_upgrade(
    "virtio-pci-preview-4",
    "virtio-pci-preview-5",
    kinds=_REGISTERS,
    changes={
        "preview-msi.vectors": "a list by number, pci-msix: entries, pending bits and GSIs",
        "preview-function.config": "with its base address registers, pci-function: a move may wait from now on; none did",
        **{new: f"what was {old}" for old, new in _MOVED.items()},
        "resource-allocator.claims[].owner": "by the sections' new kinds",
    },
)
def _registers_as_written(sections: Sections) -> Sections:
    result: Sections = {}
    findings: list[Finding] = []
    for where, state in sections.items():
        match state:
            case PreviewMsiState():
                result[SectionId("pci-msix", where.instance)] = _as_list(state, str(where), findings)
            case PreviewFunctionState():
                result[SectionId("pci-function", where.instance)] = _with_registers(state, str(where), findings)
            case ResourceAllocatorState():
                result[where] = _claims_renamed(state, _MOVED)
            case _:
                result[where] = state
    _raise(findings)
    return result


def _as_list(state: PreviewMsiState, where: str, findings: list[Finding]) -> PciMsixState:
    vectors = sorted(state.vectors, key=lambda vector: vector.vector)
    numbers, expected = [vector.vector for vector in vectors], list(range(len(vectors)))
    if numbers != expected:
        findings.append(Finding(where, "vectors", f"{numbers}", f"{expected}, each once"))
    pending = [0] * pba_words(len(vectors))
    for number, vector in enumerate(vectors):
        pending[number // msix.PBA_WORD_BITS] |= vector.pending << number % msix.PBA_WORD_BITS
    return PciMsixState(
        entries=[MsixEntryState(address=each.address, data=each.data, control=int(each.masked)) for each in vectors],
        pending=pending,
        gsis=[vector.gsi for vector in vectors],
    )


def _with_registers(state: PreviewFunctionState, where: str, findings: list[Finding]) -> PciFunctionState:
    config = bytearray(state.config)
    if any(config[_BARS]):
        findings.append(Finding(where, f"config[{_BARS.start}]", config[_BARS].hex(), "0: registers are not in it"))
    for bar in state.bars:
        value = (bar.address | _bar_type(bar.width)).to_bytes(8, "little")
        at = bar_offset(bar.index)
        width = 8 if bar.width == 64 else 4
        config[at : at + width] = value[:width]
    return PciFunctionState(slot=state.slot, config=bytes(config), bars=state.bars)


@machine_downgrade(
    "virtio-pci-preview-5",
    "virtio-pci-preview-4",
    kinds=_REGISTERS,
    changes={
        "preview-msi.vectors": "what pci-msix was; refused where its lists do not agree or an entry says more than a mask",
        "preview-function.config": "without base address registers; refused while a move or a probe waits in one",
        **{new: f"goes into {old}" for old, new in _MOVED.items()},
        "resource-allocator.claims[].owner": "by the sections' old kinds",
    },
)
def _registers_derived(sections: Sections, refuse: MachineRefuse) -> Sections:
    result: Sections = {}
    for where, state in sections.items():
        match state:
            case PciMsixState():
                result[SectionId("preview-msi", where.instance)] = _as_map(state, where, refuse)
            case PciFunctionState():
                result[SectionId("preview-function", where.instance)] = _without_registers(state, where, refuse)
            case ResourceAllocatorState():
                result[where] = _claims_as_before(state, where, refuse)
            case _:
                result[where] = state
    return result


def _as_map(state: PciMsixState, where: SectionId, refuse: MachineRefuse) -> PreviewMsiState:
    vectors = []
    count, words = len(state.entries), pba_words(len(state.entries))
    for name, found, wanted in (("gsis", len(state.gsis), count), ("pending", len(state.pending), words)):
        if found != wanted:
            refuse(where, name, f"a list of {found}", f"{wanted} for {count} vectors")
    bits = sum(word << number * msix.PBA_WORD_BITS for number, word in enumerate(state.pending))
    if bits >> count:
        refuse(where, "pending", f"{bits:#x}", f"bits of {count} vectors")
    for number, entry in enumerate(state.entries):
        if entry.control & ~VectorControl.MASK:
            refuse(where, f"entries[{number}].control", entry.control, "a mask bit")
        vectors.append(
            MsiVectorState(
                vector=number,
                gsi=state.gsis[number] if number < len(state.gsis) else 0,
                address=entry.address,
                data=entry.data,
                masked=bool(entry.control & VectorControl.MASK),
                pending=bool(bits >> number & 1),
            )
        )
    return PreviewMsiState(vectors=vectors)


def _without_registers(state: PciFunctionState, where: SectionId, refuse: MachineRefuse) -> PreviewFunctionState:
    config = bytearray(state.config)
    config[_BARS] = bytes(_BARS.stop - _BARS.start)
    derived = PreviewFunctionState(slot=state.slot, config=bytes(config), bars=state.bars)
    again = _with_registers(derived, str(where), []).config
    moving = [bar for bar in state.bars if bar_pointed(state.config, bar) != bar.address]
    for bar in moving:
        expected = f"{bar.address:#x}, where it is decoded: release virtio-pci-preview-4 loses a move that waits"
        refuse(where, f"config[{bar_offset(bar.index)}]", bar_pointed(state.config, bar), expected)
    if again != state.config and not moving:
        refuse(where, f"config[{_BARS.start}]", state.config[_BARS].hex(), f"{again[_BARS].hex()}, as its BARs say")
    return derived


# 5 to 0.2.0: the interrupt table


@machine_upgrade(
    "virtio-pci-preview-5",
    "0.2.0",
    kinds=frozenset({_INTERRUPTS.kind}),
    changes={
        "interrupt-table": "new: pins of the serial port and of the generation id, routes of vectors that can fire"
    },
)
def _table_made(sections: Sections) -> Sections:
    return {**sections, _INTERRUPTS: _table(sections)}


@machine_downgrade(
    "0.2.0",
    "virtio-pci-preview-5",
    kinds=frozenset({_INTERRUPTS.kind}),
    changes={"interrupt-table": "dropped; refused where it is not what the devices say"},
)
def _table_dropped(sections: Sections, refuse: MachineRefuse) -> Sections:
    table = sections.pop(_INTERRUPTS, None)
    if isinstance(table, InterruptTableState):
        derived = _table(sections)
        for name in ("lines", "routes"):
            found, wanted = getattr(table, name), getattr(derived, name)
            if found != wanted:
                owners = [", ".join(f"{each.gsi} of {each.owner}" for each in items) for items in (found, wanted)]
                refuse(_INTERRUPTS, name, owners[0], f"what the devices say: {owners[1] or 'none'}")
    return sections


def _table(sections: Sections) -> InterruptTableState:
    lines = [
        LineState(gsi=state.gsi if isinstance(state, VmgenidState) else _SERIAL_GSI, edge=True, owner=str(where))
        for where, state in sections.items()
        if isinstance(state, VmgenidState | SerialState)
    ]
    routes = [route for where, state in sections.items() for route in _routes(where, state, sections)]
    return InterruptTableState(
        lines=sorted(lines, key=lambda line: line.gsi), routes=sorted(routes, key=lambda route: route.gsi)
    )


def _routes(where: SectionId, state: State, sections: Sections) -> Iterator[RouteState]:
    function = sections.get(SectionId("pci-function", where.instance))
    if not isinstance(state, PciMsixState) or not isinstance(function, PciFunctionState):
        return
    at = find_capability(function.config, pci.CAP_ID_MSIX)
    control = 0 if at is None else register(function.config, at + msix.MESSAGE_CONTROL, 2)
    if control & (MessageControl.ENABLE | MessageControl.FUNCTION_MASK) != MessageControl.ENABLE:
        return
    for entry, gsi in zip(state.entries, state.gsis, strict=False):
        if not entry.control & VectorControl.MASK:
            yield RouteState(gsi=gsi, address=entry.address, data=entry.data, owner=str(where))
