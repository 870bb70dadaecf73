"""The PCI segment, its functions and their vectors as parts."""

from snapkit.state.pci_function import HOST_BRIDGE, PciFunctionState
from snapkit.state.pci_msix import PciMsixState
from snapkit.state.pci_segment import PciSegmentState
from snapkit.state.schema import SectionId, State
from snapkit.vmm.parts.part import Part, Site, expect
from snapkit.vmm.pci.layout import host_bridge
from snapkit.vmm.pci.pci_function import PciFunction, PciFunctionArgs
from snapkit.vmm.pci.pci_msix import PciMsix, PciMsixArgs
from snapkit.vmm.pci.pci_segment import PciSegment, PciSegmentArgs

SEGMENT = SectionId(PciSegment.kind, "0")


class SegmentPart(Part):
    """The segment on both buses."""

    def __init__(self, state: PciSegmentState, site: Site) -> None:
        self.segment = PciSegment.restore(state, PciSegmentArgs(site.vm.ports, site.vm.mmio, site.map.ecam))

    @property
    def faults(self) -> int:
        return self.segment.faults

    def save(self) -> PciSegmentState:
        return self.segment.save()

    def close(self) -> None:
        self.segment.close()


class FunctionPart(Part):
    """A function in its slot. Its BARs are on the bus once its transport has attached what is behind them."""

    def __init__(self, section: SectionId, state: PciFunctionState, site: Site) -> None:
        args = PciFunctionArgs(
            resources=site.vm.resources,
            bus=site.vm.mmio,
            owner=str(section),
            reserved=range(*site.map.slots),  # outside of what firmware tells of the root's windows
        )
        self.function = PciFunction.restore(state, args)
        self._segment = site.part(*SEGMENT, SegmentPart).segment
        try:
            self._segment.add(state.slot, self.function)
        except BaseException:
            self.function.close()
            raise

    @property
    def faults(self) -> int:
        return self.function.faults

    def save(self) -> PciFunctionState:
        return self.function.save()

    def close(self) -> None:
        self._segment.remove(self.function.state.slot)
        self.function.close()


class MsixPart(Part):
    """The vectors of a function."""

    def __init__(self, section: SectionId, state: PciMsixState, site: Site) -> None:
        function = site.part(PciFunction.kind, section.instance, FunctionPart).function
        self._lock = site.vm.lock
        args = PciMsixArgs(
            interrupts=site.vm.interrupts,
            resources=site.vm.resources,
            function=function,
            owner=str(section),
            device_id=function.state.requester_id if site.map.sender_ids else 0,
        )
        self.msix = PciMsix.restore(state, args)

    @property
    def faults(self) -> int:
        return self.msix.faults

    def save(self) -> PciMsixState:
        return self.msix.save()

    def wire(self) -> None:
        self.msix.wire()

    def activate(self) -> None:
        with self._lock:
            self.msix.resync()

    def prepare_save(self) -> None:
        with self._lock:
            self.msix.retry()

    def close(self) -> None:
        self.msix.close()


def build(section: SectionId, state: State, site: Site) -> Part:
    """Build the part of a segment, a function or its vectors."""
    if section.kind == PciSegment.kind:
        return SegmentPart(expect(state, PciSegmentState), site)
    if section.kind == PciFunction.kind:
        return FunctionPart(section, expect(state, PciFunctionState), site)
    return MsixPart(section, expect(state, PciMsixState), site)


def fresh_segment() -> dict[SectionId, State]:
    """Return the sections of a new segment: it and its host bridge."""
    return {SEGMENT: PciSegmentState(), HOST_BRIDGE: host_bridge()}
