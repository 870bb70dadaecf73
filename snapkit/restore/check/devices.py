"""Devices as a whole: each has one transport, what they claim is what the allocator says, their queues lie in memory."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Sections, each, get
from snapkit.restore.pages import Pages
from snapkit.state import pci_msix, virtio_mmio, virtio_pci
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.state.pci_function import HOST_BRIDGE, PciFunctionState, register
from snapkit.state.pci_msix import PciMsixState
from snapkit.state.pci_segment import PciSegmentState
from snapkit.state.resource_allocator import ClaimState, ResourceAllocatorState, shown
from snapkit.state.schema import SectionId
from snapkit.state.spec import pci
from snapkit.state.spec import virtio as spec
from snapkit.state.virtio import VirtioState
from snapkit.state.virtio_mmio import VirtioMmioState
from snapkit.state.virtio_pci import VirtioPciState
from snapkit.state.vmgenid import GENERATION_LEN, VmgenidState

_PCI_SECTIONS = ("virtio-pci", "pci-function", "pci-msix")
_VIRTIO_BAR = (0, 64, 0x8_0000)
"""Index, width and length of the one BAR of a virtio function."""

# The address map of x86-64 machines, which never changes: what there is to claim, by pool, as (start, length).
_POOLS: dict[str, tuple[int, int]] = {
    "gsi-legacy": (5, 19),
    "gsi-msi": (24, 4072),
    "mmio32": (0xC000_0000, 0x2EC0_0000),
    "mmio64": (0x40_0000_0000, 0x40_0000_0000),
    "pci-slot": (1, 31),
}
_MMIO32_END = 0xEEC0_0000
_MMIO_SLOTS_START = _MMIO32_END - 0x10_0000


def devices_complete(sections: Sections, _pages: Pages) -> Findings:
    """A device has one transport and all that belongs to it, a transport one device: none is found or served alone."""
    rule = "devices.complete"
    found: dict[str, set[str]] = {}
    for kind, instance in sections:
        if kind in spec.TYPE_IDS or kind in {*_PCI_SECTIONS, "virtio-mmio"}:
            found.setdefault(instance, set()).add(kind)
    bridge_kinds = found.pop(HOST_BRIDGE.instance, set())
    if bridge_kinds - {HOST_BRIDGE.kind}:
        yield Finding(
            HOST_BRIDGE.instance, "", f"the id of {sorted(bridge_kinds)}", "the id of the host bridge alone", rule
        )
    for instance, kinds in found.items():
        devices, rest = sorted(kinds & set(spec.TYPE_IDS)), kinds - set(spec.TYPE_IDS)
        if len(devices) != 1:
            yield Finding(instance, "", f"the id of {devices or 'no device'}", "the id of one device", rule)
        if rest not in ({"virtio-mmio"}, set(_PCI_SECTIONS)):
            wanted = f"virtio-mmio, or all of {', '.join(_PCI_SECTIONS)}"
            yield Finding(instance, "", f"carried by {sorted(rest) or 'nothing'}", f"carried by {wanted}", rule)
    transports = {kind for kind, _ in sections if kind in {"virtio-mmio", "virtio-pci"}}
    if len(transports) > 1:
        yield Finding("machine/0", "", "on two transports", "on one", rule)
    segments = sorted(instance for kind, instance in sections if kind == "pci-segment")
    bridge = get(sections, *HOST_BRIDGE, PciFunctionState)
    functions = any(kind == "pci-function" for kind, _ in sections)
    if segments != (["0"] if functions else []):
        yield Finding("pci-segment", "", f"there as {segments}", "there once as 0, where there are functions", rule)
    if functions and (bridge is None or bridge.slot):
        yield Finding(str(HOST_BRIDGE), "slot", "missing or elsewhere", "0", rule)
    for section, _state in each(sections, PciSegmentState):
        if "virtio-mmio" in transports:
            yield Finding(str(section), "", "there", "absent: devices are on virtio-mmio", rule)
    for section, _generation in each(sections, VmgenidState):
        if section.instance != "0":
            yield Finding(str(section), "", "there", "there as instance 0 only", rule)


def pools_known(sections: Sections, _pages: Pages) -> Findings:
    """The pools are those of the address map: others would reach over RAM, interrupt controllers or each other."""
    for section, allocator in each(sections, ResourceAllocatorState):
        found: dict[str, tuple[int, int]] = {pool.pool: (pool.start, pool.length) for pool in allocator.pools}
        for name in sorted({*found, *_POOLS}):
            if found.get(name) != _POOLS.get(name):
                got = f"{name} {shown(*found[name])}" if name in found else f"without {name}"
                wanted = f"{name} {shown(*_POOLS[name])}" if name in _POOLS else f"without {name}"
                yield Finding(str(section), "pools", got, wanted, "pools.known")


class _Claim(NamedTuple):
    pool: str
    start: int
    length: int
    owner: str


def claims_agree(sections: Sections, _pages: Pages) -> Findings:
    """The allocator's claims are what the devices have, no more, no less, and none twice: else two would share a range."""
    allocator = get(sections, "resource-allocator", "0", ResourceAllocatorState)
    if allocator is None:
        return
    where, rule = "resource-allocator/0", "claims.agree"
    derived = Counter(_claims(sections))
    saved = {_of(claim): number for number, claim in enumerate(allocator.claims)}
    for claim, count in derived.items():
        if count > 1:
            yield Finding(claim.owner, "", f"{claim.pool} {shown(claim.start, claim.length)} twice", "once", rule)
        if claim not in saved:
            text = f"without {claim.pool} {shown(claim.start, claim.length)} of {claim.owner}"
            yield Finding(where, "claims", text, "with every range and number that a device has", rule)
    for claim, number in saved.items():
        if claim not in derived:
            text = f"{claim.pool} {shown(claim.start, claim.length)} of {claim.owner}"
            yield Finding(where, f"claims[{number}]", text, "what a device has", rule)


def _of(claim: ClaimState) -> _Claim:
    return _Claim(claim.pool, claim.start, claim.length, claim.owner)


def _claims(sections: Sections) -> Iterator[_Claim]:
    """Give every claim that the devices' own States tell of."""
    for section, function in each(sections, PciFunctionState):
        if function.slot or section != HOST_BRIDGE:
            yield _Claim("pci-slot", function.slot, 1, str(section))
        for bar in function.bars:
            yield _Claim(_window(bar.address, bar.length), bar.address, bar.length, str(section))
    for section, msix in each(sections, PciMsixState):
        owner = str(section)
        for gsi in msix.gsis:
            yield _Claim("gsi-msi", gsi, 1, owner)
    for section, mmio in each(sections, VirtioMmioState):
        yield _Claim("mmio32", mmio.address, spec.MMIO_LEN, str(section))
        yield _Claim("gsi-legacy", mmio.gsi, 1, str(section))
    for section, generation in each(sections, VmgenidState):
        yield _Claim("gsi-legacy", generation.gsi, 1, str(section))


def _window(start: int, length: int) -> str:
    for pool in ("mmio32", "mmio64"):
        low, room = _POOLS[pool]
        if low <= start and start + length <= low + room:
            return pool
    return "no window"


def transports_agree(sections: Sections, _pages: Pages) -> Findings:
    """What the driver told the transport fits the device that it carries, and rings in use lie in RAM."""
    layout = get(sections, "memory-layout", "0", MemoryLayoutState)
    ram = [(region.gpa, region.length) for region in layout.regions] if layout is not None else []
    for section, device in each(sections, VirtioState):
        carrier = SectionId("virtio-pci", section.instance)
        pci_side = get(sections, *carrier, VirtioPciState)
        mmio_side = get(sections, "virtio-mmio", section.instance, VirtioMmioState)
        if pci_side is not None:
            yield from virtio_pci.agrees(pci_side, str(carrier), device, str(section), ram)
            yield from _pci(sections, section, len(device.queues))
        if mmio_side is not None:
            yield from virtio_mmio.agrees(mmio_side, f"virtio-mmio/{section.instance}", device, str(section), ram)


def _pci(sections: Sections, device: SectionId, queues: int) -> Findings:
    """Give where the function of *device* is not what its kind is told to drivers as."""
    msix = get(sections, "pci-msix", device.instance, PciMsixState)
    if msix is not None and len(msix.entries) != queues + 1:
        expected = f"{queues + 1} long: one vector a queue and one"
        yield Finding(f"pci-msix/{device.instance}", "entries", f"{len(msix.entries)} long", expected, "msix.vectors")
    where = SectionId("pci-function", device.instance)
    function = get(sections, *where, PciFunctionState)
    if function is None:
        return
    found, wanted = register(function.config, pci.DEVICE_ID, 2), spec.PCI_DEVICE_ID_BASE + spec.TYPE_IDS[device.kind]
    if found != wanted:
        yield Finding(str(where), "config[2:4]", f"{found:#06x}", f"{wanted:#06x}, a {device.kind}", "pci.device-id")
    if [(bar.index, bar.width, bar.length) for bar in function.bars] != [_VIRTIO_BAR]:
        shown_bars = ", ".join(f"BAR {bar.index} of {bar.width} bits, {bar.length:#x} bytes" for bar in function.bars)
        index, width, length = _VIRTIO_BAR
        expected = f"BAR {index} of {width} bits, {length:#x} bytes, and no other"
        yield Finding(str(where), "bars", shown_bars or "empty", expected, "pci.virtio-bar")


def vectors_fit(sections: Sections, _pages: Pages) -> Findings:
    """A function's MSI-X capability says what there is: so many vectors, its table and pending bits inside a BAR."""
    for section, msix in each(sections, PciMsixState):
        where = SectionId("pci-function", section.instance)
        function = get(sections, *where, PciFunctionState)
        if function is not None:
            yield from pci_msix.fits(msix, str(section), function, str(where))


def bars_apart(sections: Sections, _pages: Pages) -> Findings:
    """No two functions decode one address, and none decodes where memory-mapped devices are: who answered were chance."""
    taken = sorted(
        (bar.address, bar.length, str(section), number)
        for section, function in each(sections, PciFunctionState)
        for number, bar in enumerate(function.bars)
    )
    end, holder = 0, ""
    for address, length, where, number in taken:
        path = f"bars[{number}].address"
        if address < end and holder != where:  # within one function, its own invariants tell
            yield Finding(where, path, f"{address:#x}", f"at or above {end:#x}, where {holder} ends", "pci.bars-apart")
        if address + length > end:
            end, holder = address + length, where
        if address < _MMIO32_END and address + length > _MMIO_SLOTS_START:
            expected = f"below {_MMIO_SLOTS_START:#x}, where slots for memory-mapped devices begin"
            yield Finding(where, path, f"{address:#x}", expected, "pci.bar-window")


def generation_in_memory(sections: Sections, _pages: Pages) -> Findings:
    """The generation id lies in RAM: a new one is written there before the guest runs."""
    layout = get(sections, "memory-layout", "0", MemoryLayoutState)
    if layout is None:
        return
    for section, state in each(sections, VmgenidState):
        end = state.gpa + GENERATION_LEN
        if not any(region.gpa <= state.gpa and end <= region.gpa + region.length for region in layout.regions):
            yield Finding(str(section), "gpa", f"{state.gpa:#x}", "inside RAM", "vmgenid.in-ram")
