"""Sections of a machine with one device of each kind, laid out as a boot does it, with no KVM and nothing of the host's.

`fresh_machine` is how it was switched on, `busy_machine` how it may be saved while drivers are at work.
"""

import copy
from typing import Any, NamedTuple

from snapkit.state.interrupt_table import RouteState
from snapkit.state.memory_layout import MemoryLayoutState, RegionState
from snapkit.state.pci_function import find_capability
from snapkit.state.schema import SectionId
from snapkit.state.spec.pci import CAP_ID_MSIX
from snapkit.state.virtio import VirtioState
from snapkit.state.virtio_block import DiskHostState, LayerState
from snapkit.vmm.parts.fresh import Asked, Transport, fresh_sections
from snapkit.vmm.parts.part import Ground
from snapkit.vmm.virtio import virtio_balloon, virtio_block, virtio_net, virtio_rng, virtio_vsock
from tests.grounds import X86_64
from tests.restore import arm_chips
from tests.restore.chips import chips
from tests.restore.machines import MIB, sections

States = dict[SectionId, Any]
RAM_LEN = 4 * MIB
VERSION_1 = 1 << 32
DRIVER_OK = 0x0F  # ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK: VIRTIO 1.3, 2.1
MEMORY_AND_MASTER = 0x0006
MSIX_ENABLE = 0x80
TRANSLATER = 0x3FFC_0040
"""In the second frame of the ITS of a machine with one CPU: below its redistributor, below the distributor."""
DEVICES = {
    "virtio-block": "root",
    "virtio-net": "eth0",
    "virtio-vsock": "v0",
    "virtio-rng": "rng",
    "virtio-balloon": "b",
}


class OneRegion:
    """What `check` looks at of a file's memory, but for an ITS's tables."""

    def __init__(self, length: int = RAM_LEN, at: int = 0) -> None:
        self.regions = [(at, length)]


class Untouched(OneRegion):
    """Memory that a guest has written nothing to: an ITS has mapped nothing."""

    def read(self, gpa: int, length: int) -> bytes:
        start, of_ram = self.regions[0]
        assert not length or start <= gpa < gpa + length <= start + of_ram
        return bytes(length)

    peek = read


class Image(NamedTuple):
    """A disk that there is not."""

    capacity: int = 2048
    readonly: bool = False
    serial: bytes = b"root"

    def describe(self) -> DiskHostState:
        layer = LayerState(path="root.img", format="raw", length=1 << 20, mtime_ns=1, inode=2)
        return DiskHostState(layers=[layer], readonly=False)


def device_states() -> list[tuple[Asked, VirtioState]]:
    """Return a new device of each kind."""
    image: Any = Image()
    states: dict[str, VirtioState] = {
        "virtio-block": virtio_block.fresh_state(image, serial=b"root"),
        "virtio-net": virtio_net.fresh_state(
            virtio_net.NetOptions(id="eth0", tap="tap0"), mac=b"\x02\0\0\0\0\x01", offloads=0
        ),
        "virtio-vsock": virtio_vsock.fresh_state(3, "v.sock"),
        "virtio-rng": virtio_rng.fresh_state(),
        "virtio-balloon": virtio_balloon.fresh_state(deflate_on_oom=True),
    }
    return [(Asked(kind, DEVICES[kind]), state) for kind, state in states.items()]


def bare_machine(vcpus: int = 1, on: Ground = X86_64, *, messages: bool = False) -> States:
    """Return the sections that every machine has; no tables and no parts."""
    base = on.map.ram[0][0]
    made = chips(vcpus) if on is X86_64 else arm_chips.chips(vcpus, messages=messages)
    states: States = {**sections(RAM_LEN), **made}
    whole, layout = states[SectionId("machine", "0")], states[SectionId("memory-layout", "0")]
    whole.vcpu_count, whole.architecture, layout.regions[0].gpa = vcpus, on.map.architecture, base
    return states


def fresh_machine(transport: Transport | None, vcpus: int = 1, on: Ground = X86_64) -> States:
    """Return a machine as it is switched on, with all five devices, or with none where there is no *transport*."""
    devices = device_states() if transport else []
    bare = bare_machine(vcpus, on, messages=transport == "pci")
    return copy.deepcopy({**bare, **fresh_sections(devices, transport, on, bytes(range(16))).sections})


def busy_machine(transport: Transport, on: Ground = X86_64) -> States:
    """Return a machine whose drivers are at work: rings in RAM, vectors open, one masked and pending."""
    states = fresh_machine(transport, on=on)
    base = on.map.ram[0][0] + 0x10_0000
    for kind, instance in DEVICES.items():
        device = states[SectionId(kind, instance)]
        device.acked = VERSION_1
        for queue in device.queues:
            queue.desc, queue.driver, queue.device = base, base + 0x2000, base + 0x3000
            queue.ready, queue.next_avail, queue.next_used = True, 7, 7
            base += 0x5000
        if transport == "mmio":
            carrier = states[SectionId("virtio-mmio", instance)]
            carrier.status, carrier.driver_features, carrier.interrupt_status = DRIVER_OK, [0, 1], 1
        else:
            _open_vectors(states, instance, on)
    if transport == "pci":
        states[SectionId("interrupt-table", "0")].routes.sort(key=lambda route: route.gsi)
    return states


def _open_vectors(states: States, instance: str, on: Ground) -> None:
    carrier, function, msix = (states[SectionId(kind, instance)] for kind in ("virtio-pci", "pci-function", "pci-msix"))
    carrier.device_status, carrier.driver_features = DRIVER_OK, [0, 1]
    carrier.config_msix_vector = 0
    carrier.queue_msix_vectors = list(range(1, len(carrier.queue_msix_vectors) + 1))
    config = bytearray(function.config)
    config[4:6] = MEMORY_AND_MASTER.to_bytes(2, "little")
    config[(find_capability(config, CAP_ID_MSIX) or 0) + 3] |= MSIX_ENABLE
    function.config = bytes(config)
    target, sender = (0xFEE0_0000, 0) if on is X86_64 else (TRANSLATER, function.slot << 3)
    for number, (entry, gsi) in enumerate(zip(msix.entries, msix.gsis, strict=True)):
        entry.address, entry.data = target, 0x4000 | gsi if on is X86_64 else number
        if number:
            entry.control = 0
            route = RouteState(gsi=gsi, address=target, data=entry.data, device_id=sender, owner=f"pci-msix/{instance}")
            states[SectionId("interrupt-table", "0")].routes.append(route)
    msix.pending[0] = 1


def with_ram(states: States, *spans: tuple[int, int]) -> States:
    """Return *states* with other RAM."""
    regions = [RegionState(gpa=gpa, length=length) for gpa, length in spans]
    return {**states, SectionId("memory-layout", "0"): MemoryLayoutState(page_shift=12, regions=regions)}
