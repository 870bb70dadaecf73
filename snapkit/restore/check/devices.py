"""Devices as a whole: each has one transport, what they claim is what the allocator says, their queues lie in memory."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Sections, each, get
from snapkit.restore.pages import Pages
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.state.pci_function import PciFunctionState, register
from snapkit.state.pci_msix import PciMsixState
from snapkit.state.pci_segment import PciSegmentState
from snapkit.state.resource_allocator import ClaimState, ResourceAllocatorState, shown
from snapkit.state.schema import SectionId
from snapkit.state.spec import pci
from snapkit.state.spec import virtio as spec
from snapkit.state.virtio import VirtioState
from snapkit.state.virtio_mmio import VirtioMmioState
from snapkit.state.virtio_pci import NO_VECTOR, VirtioPciState
from snapkit.state.vmgenid import VmgenidState

HOST_BRIDGE = "host-bridge"
DEVICE_TYPES = {
    "virtio-block": spec.TYPE_BLOCK,
    "virtio-net": spec.TYPE_NET,
    "virtio-vsock": spec.TYPE_VSOCK,
    "virtio-rng": spec.TYPE_ENTROPY,
    "virtio-balloon": spec.TYPE_BALLOON,
}
_MMIO_SLOT_LEN = 0x1000
_PCI_SECTIONS = ("virtio-pci", "pci-function", "pci-msix")


def devices_complete(sections: Sections, _pages: Pages) -> Findings:
    """A device has one transport and all that belongs to it, a transport one device: none is found or served alone."""
    rule = "devices.complete"
    found: dict[str, set[str]] = {}
    for kind, instance in sections:
        if kind in DEVICE_TYPES or kind in {*_PCI_SECTIONS, "virtio-mmio"}:
            found.setdefault(instance, set()).add(kind)
    found.pop(HOST_BRIDGE, None)
    for instance, kinds in found.items():
        devices, rest = sorted(kinds & set(DEVICE_TYPES)), kinds - set(DEVICE_TYPES)
        if len(devices) != 1:
            yield Finding(instance, "", f"the id of {devices or 'no device'}", "the id of one device", rule)
        if rest not in ({"virtio-mmio"}, set(_PCI_SECTIONS)):
            wanted = f"virtio-mmio, or all of {', '.join(_PCI_SECTIONS)}"
            yield Finding(instance, "", f"carried by {sorted(rest) or 'nothing'}", f"carried by {wanted}", rule)
    transports = {kind for kind, _ in sections if kind in {"virtio-mmio", "virtio-pci"}}
    if len(transports) > 1:
        yield Finding("machine/0", "", "on two transports", "on one", rule)
    segments = sorted(instance for kind, instance in sections if kind == "pci-segment")
    bridge = get(sections, "pci-function", HOST_BRIDGE, PciFunctionState)
    functions = any(kind == "pci-function" for kind, _ in sections)
    if segments != (["0"] if functions else []):
        yield Finding("pci-segment", "", f"there as {segments}", "there once as 0, where there are functions", rule)
    if functions and (bridge is None or bridge.slot):
        yield Finding(f"pci-function/{HOST_BRIDGE}", "slot", "missing or elsewhere", "0", rule)
    for section, _state in each(sections, PciSegmentState):
        if "virtio-mmio" in transports:
            yield Finding(str(section), "", "there", "absent: devices are on virtio-mmio", rule)
    for section, _generation in each(sections, VmgenidState):
        if section.instance != "0":
            yield Finding(str(section), "", "there", "there as instance 0 only", rule)


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
    windows: dict[str, tuple[int, int]] = {
        pool.pool: (pool.start, pool.start + pool.length) for pool in allocator.pools
    }
    derived = Counter(_claims(sections, windows))
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


def _claims(sections: Sections, windows: dict[str, tuple[int, int]]) -> Iterator[_Claim]:
    """Give every claim that the devices' own States tell of."""
    for section, function in each(sections, PciFunctionState):
        if function.slot or section.instance != HOST_BRIDGE:
            yield _Claim("pci-slot", function.slot, 1, str(section))
        for bar in function.bars:
            yield _Claim(_window(windows, bar.address, bar.length), bar.address, bar.length, str(section))
    for section, msix in each(sections, PciMsixState):
        for gsi in msix.gsis:
            yield _Claim("gsi-msi", gsi, 1, str(section))
    for section, mmio in each(sections, VirtioMmioState):
        yield _Claim("mmio32", mmio.address, _MMIO_SLOT_LEN, str(section))
        yield _Claim("gsi-legacy", mmio.gsi, 1, str(section))
    for section, generation in each(sections, VmgenidState):
        yield _Claim("gsi-legacy", generation.gsi, 1, str(section))


def _window(windows: dict[str, tuple[int, int]], start: int, length: int) -> str:
    for pool in ("mmio32", "mmio64"):
        low, high = windows.get(pool, (0, 0))
        if low <= start and start + length <= high:
            return pool
    return "no window"


def transports_agree(sections: Sections, _pages: Pages) -> Findings:
    """What the driver told the transport fits the device that it carries."""
    for (kind, instance), device in each(sections, VirtioState):
        carrier = SectionId("virtio-pci", instance)
        pci_side = get(sections, *carrier, VirtioPciState)
        mmio_side = get(sections, "virtio-mmio", instance, VirtioMmioState)
        if pci_side is not None:
            yield from _status(str(carrier), "device_status", pci_side.device_status, device)
            yield from _pci(sections, kind, instance, pci_side, len(device.queues))
        if mmio_side is not None:
            yield from _status(f"virtio-mmio/{instance}", "status", mmio_side.status, device)


def _status(where: str, path: str, status: int, device: VirtioState) -> Findings:
    needs_reset = bool(status & spec.STATUS_DEVICE_NEEDS_RESET)
    if device.broken != needs_reset:
        expected = "with DEVICE_NEEDS_RESET" if device.broken else "without DEVICE_NEEDS_RESET"
        yield Finding(where, path, f"{status:#04x}", f"{expected}, as the device says", "transport.broken")
    if status & spec.STATUS_DRIVER_OK and not status & spec.STATUS_FEATURES_OK:
        yield Finding(where, path, f"{status:#04x}", "with FEATURES_OK before DRIVER_OK", "transport.status")
    if device.acked and not status & spec.STATUS_FEATURES_OK:
        yield Finding(where, path, f"{status:#04x}", "with FEATURES_OK: features are accepted", "transport.status")


def _pci(sections: Sections, kind: str, instance: str, transport: VirtioPciState, queues: int) -> Findings:
    where, rule = f"virtio-pci/{instance}", "transport.vectors"
    vectors = transport.queue_msix_vectors
    if len(vectors) != queues:
        yield Finding(where, "queue_msix_vectors", f"{len(vectors)} long", f"{queues} long, one a queue", rule)
    msix = get(sections, "pci-msix", instance, PciMsixState)
    count = len(msix.entries) if msix is not None else 0
    if msix is not None and count != queues + 1:
        yield Finding(f"pci-msix/{instance}", "entries", f"{count} long", f"{queues + 1} long: queues + 1", rule)
    named = [("config_msix_vector", transport.config_msix_vector)]
    named += [(f"queue_msix_vectors[{number}]", vector) for number, vector in enumerate(vectors)]
    for path, vector in named:
        if vector != NO_VECTOR and vector >= count:
            yield Finding(where, path, str(vector), f"below {count}, or {NO_VECTOR:#x}", rule)
    function = get(sections, "pci-function", instance, PciFunctionState)
    if function is not None:
        found = register(function.config, pci.DEVICE_ID, 2)
        wanted = spec.PCI_DEVICE_ID_BASE + DEVICE_TYPES[kind]
        if found != wanted:
            yield Finding(f"pci-function/{instance}", "config[2:4]", f"{found:#06x}", f"{wanted:#06x}", "pci.device-id")


def queues_in_memory(sections: Sections, _pages: Pages) -> Findings:
    """The rings of a queue in use lie in RAM: the device reads and writes them from the first moment on."""
    layout = get(sections, "memory-layout", "0", MemoryLayoutState)
    if layout is None:
        return
    spans = [(region.gpa, region.gpa + region.length) for region in layout.regions]

    def inside(gpa: int, length: int) -> bool:
        return any(start <= gpa and gpa + length <= end for start, end in spans)

    for section, device in each(sections, VirtioState):
        if device.broken:
            continue  # its rings may be why; they are not looked at before a reset
        for number, queue in enumerate(device.queues):
            if not queue.ready:
                continue
            for name, gpa, length in (
                ("desc", queue.desc, spec.desc_table_len(queue.size)),
                ("driver", queue.driver, spec.avail_len(queue.size)),
                ("device", queue.device, spec.used_len(queue.size)),
            ):
                if not inside(gpa, length):
                    text = f"{gpa:#x}, {length} bytes"
                    yield Finding(str(section), f"queues[{number}].{name}", text, "inside RAM", "queues.in-ram")
    for section, generation in each(sections, VmgenidState):
        if not inside(generation.gpa, 16):
            yield Finding(str(section), "gpa", f"{generation.gpa:#x}", "inside RAM", "vmgenid.in-ram")
