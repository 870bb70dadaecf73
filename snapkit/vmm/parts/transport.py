"""Both transports as parts: they find their device by its id, and have its doorbells watched."""

from functools import partial
from typing import Any

from snapkit import host
from snapkit.errors import InternalError
from snapkit.state.schema import SectionId, State
from snapkit.state.spec import virtio as spec
from snapkit.state.virtio import VirtioState
from snapkit.state.virtio_mmio import VirtioMmioState
from snapkit.state.virtio_pci import VirtioPciState
from snapkit.units import Gpa, Gsi
from snapkit.vmm.parts.device import DevicePart
from snapkit.vmm.parts.part import Part, Site, expect
from snapkit.vmm.parts.pci import FunctionPart, MsixPart
from snapkit.vmm.resource_allocator import ResourceAllocator
from snapkit.vmm.virtio import pci_layout
from snapkit.vmm.virtio.device import VirtioDevice
from snapkit.vmm.virtio.virtio_mmio import VirtioMmio, VirtioMmioArgs
from snapkit.vmm.virtio.virtio_pci import VirtioPci, VirtioPciArgs


class TransportPart(Part):
    """A transport whose doorbells the loop listens to while it is active."""

    def __init__(self, transport: VirtioPci | VirtioMmio, site: Site) -> None:
        self.transport, self._site = transport, site
        self._watched: list[int] = []

    @property
    def faults(self) -> int:
        return self.transport.faults

    def save(self) -> State:
        return self.transport.save()

    def wire(self) -> None:
        self.transport.wire()

    def unwire(self) -> None:
        self.transport.unwire()

    def activate(self) -> None:
        with self._site.vm.lock:
            self.transport.activate()
        try:
            for index, fd in enumerate(self.transport.doorbell_fds()):
                self._site.loop.watch(fd, host.EPOLLIN, partial(self._rung, index, fd))
                self._watched.append(fd)
        except BaseException:
            self.deactivate()
            raise

    def _rung(self, index: int, fd: int, _events: int) -> None:
        host.eventfd_take(fd)
        if self._site.running():  # a paused machine serves nothing; every queue is looked at when it goes on
            with self._site.vm.lock:
                self.transport.device.kick(index)

    def deactivate(self) -> None:
        while self._watched:
            self._site.loop.unwatch(self._watched.pop())

    def close(self) -> None:
        self.transport.close()


class MmioPart(TransportPart):
    """The memory-mapped transport, with its interrupt line."""

    def __init__(self, section: SectionId, state: VirtioMmioState, device: VirtioDevice[Any], site: Site) -> None:
        self._gsi = Gsi(state.gsi)
        line = site.vm.interrupts.line(self._gsi, str(section), edge=False)
        try:
            args = VirtioMmioArgs(
                device=device,
                line=line,
                bus=site.vm.mmio,
                resources=site.vm.resources,
                doorbells=site.vm.doorbells,
                owner=str(section),
            )
            self._mmio = VirtioMmio.restore(state, args)
        except BaseException:
            site.vm.interrupts.drop_line(self._gsi)
            raise
        super().__init__(self._mmio, site)

    def activate(self) -> None:
        with self._site.vm.lock:
            self._mmio.resync()
        super().activate()

    def close(self) -> None:
        super().close()
        self._site.vm.interrupts.drop_line(self._gsi)


def _device(instance: str, site: Site) -> DevicePart:
    """Return the device that the transport of *instance* carries: the id is its own."""
    for kind in spec.TYPE_IDS:
        part = site.find(kind, instance)
        if isinstance(part, DevicePart):
            return part
    raise InternalError(f"the device of the transport {instance} is not there yet")


def _build_pci(section: SectionId, state: VirtioPciState, site: Site) -> Part:
    args = VirtioPciArgs(
        device=_device(section.instance, site).device,
        function=site.part("pci-function", section.instance, FunctionPart).function,
        msix=site.part("pci-msix", section.instance, MsixPart).msix,
        doorbells=site.vm.doorbells,
    )
    return TransportPart(VirtioPci.restore(state, args), site)


def build(section: SectionId, state: State, site: Site) -> Part:
    """Build the part of a transport."""
    if section.kind == VirtioPci.kind:
        return _build_pci(section, expect(state, VirtioPciState), site)
    device = _device(section.instance, site).device
    return MmioPart(section, expect(state, VirtioMmioState), device, site)


def fresh_pci(device: SectionId, state: VirtioState, claims: ResourceAllocator) -> dict[SectionId, State]:
    """Return the sections of a new device's PCI side: the lowest free slot, the lowest free place for its BAR."""
    function, msix = SectionId("pci-function", device.instance), SectionId("pci-msix", device.instance)
    slot = claims.allocate("pci-slot", 1, str(function))
    address = claims.allocate("mmio64", pci_layout.BAR_LEN, str(function), align=pci_layout.BAR_LEN)
    gsis = [claims.allocate("gsi-msi", 1, str(msix)) for _ in range(len(state.queues) + 1)]
    made = pci_layout.fresh(device.kind, state, slot=slot, address=address, gsis=gsis)
    return {
        function: made.function,
        msix: made.msix,
        SectionId(VirtioPci.kind, device.instance): made.transport,
    }


def fresh_mmio(device: SectionId, gpa: Gpa, gsi: Gsi) -> dict[SectionId, State]:
    """Return the section of a new device's memory-mapped transport."""
    return {SectionId(VirtioMmio.kind, device.instance): VirtioMmioState(address=gpa, gsi=gsi)}
