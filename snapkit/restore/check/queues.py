"""Virtio devices and their rings, as far as the monitor wrote them.

Guest RAM is the guest's, its rings included: it may write nonsense over them, and over what the device wrote there, at
any time, also while a snapshot is taken. So no content of a ring can be wrong about a *file*; it makes that device ask
for a reset when it is next served, as it would have done without a snapshot. What memory tells is in `remarks`.
"""

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index, invariant
from snapkit.restore.pages import Pages
from snapkit.state import virtio_mmio, virtio_pci
from snapkit.state.virtio_mmio import VirtioMmioState
from snapkit.state.virtio_pci import VirtioPciState


@invariant()
def transports_agree(index: Index, _pages: Pages) -> Findings:
    """What the driver told the transport fits the device that it carries, and rings in use lie in RAM."""
    for section, device in index.devices:
        instance = section.instance
        pci_side = index.get("virtio-pci", instance, VirtioPciState)
        mmio_side = index.get("virtio-mmio", instance, VirtioMmioState)
        if pci_side is not None:
            yield from virtio_pci.agrees(pci_side, f"virtio-pci/{instance}", device, str(section), index.ram)
        if mmio_side is not None:
            yield from virtio_mmio.agrees(mmio_side, f"virtio-mmio/{instance}", device, str(section), index.ram)


@invariant("virtio.in-flight")
def nothing_in_flight(index: Index, _pages: Pages) -> Findings:
    """What a device took from a queue it has given back: requests in flight are finished or undone before every save.

    Both indices are the monitor's own, and each buffer moves both by one. Only a device that broke may have kept some.
    """
    for section, device in index.devices:
        for number, queue in enumerate(device.queues):
            if queue.next_avail != queue.next_used and not device.broken:
                expected = f"{queue.next_avail}, as next_avail: a save leaves nothing in flight"
                yield Finding(str(section), f"queues[{number}].next_used", str(queue.next_used), expected)
