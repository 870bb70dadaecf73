"""PCI functions: what they say of themselves, where their BARs are, what their MSI-X capability promises.

A BAR's register may say something else than where the BAR is claimed and decoded: the guest has begun to move it, or a
move was refused, or it probes for the length. That is legal state, with memory decoding on or off; where the BAR *is*
must be in a window, apart from all others, and claimed.
"""

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index, invariant
from snapkit.restore.pages import Pages
from snapkit.state import pci_msix
from snapkit.state.pci_function import PciFunctionState, register
from snapkit.state.pci_msix import PciMsixState
from snapkit.state.spec import pci
from snapkit.state.spec import virtio as spec

VIRTIO_BAR = (0, 64, 0x8_0000)
"""Index, width and length of the one BAR of a virtio function."""


@invariant("pci.device-id")
def device_ids_agree(index: Index, _pages: Pages) -> Findings:
    """A function says the type of the device behind it: its driver is chosen by that."""
    for section, _device in index.devices:
        function = index.get("pci-function", section.instance, PciFunctionState)
        if function is None:
            continue
        found = register(function.config, pci.DEVICE_ID, 2)
        wanted = spec.PCI_DEVICE_ID_BASE + spec.TYPE_IDS[section.kind]
        if found != wanted:
            where = f"pci-function/{section.instance}"
            yield Finding(where, "config[2:4]", f"{found:#06x}", f"{wanted:#06x}, a {section.kind}")


@invariant("pci.virtio-bar")
def virtio_bar_whole(index: Index, _pages: Pages) -> Findings:
    """A virtio function has the one BAR that its registers, doorbells and tables need: a shorter one would cut them off."""
    for section, _device in index.devices:
        function = index.get("pci-function", section.instance, PciFunctionState)
        if function is None or [(bar.index, bar.width, bar.length) for bar in function.bars] == [VIRTIO_BAR]:
            continue
        bars = ", ".join(f"BAR {bar.index} of {bar.width} bits, {bar.length:#x} bytes" for bar in function.bars)
        number, width, length = VIRTIO_BAR
        expected = f"BAR {number} of {width} bits, {length:#x} bytes, and no other"
        yield Finding(f"pci-function/{section.instance}", "bars", bars or "empty", expected)


@invariant("pci.bars-apart")
def bars_apart(index: Index, _pages: Pages) -> Findings:
    """No two functions decode one address: who answered were chance."""
    taken = sorted(
        (bar.address, bar.length, section, number)
        for section, function in index.each(PciFunctionState)
        for number, bar in enumerate(function.bars)
    )
    end, holder = 0, None
    for address, length, section, number in taken:
        if address < end and holder != section:  # within one function, its own invariants tell
            expected = f"at or above {end:#x}, where {holder} ends"
            yield Finding(str(section), f"bars[{number}].address", f"{address:#x}", expected)
        if address + length > end:
            end, holder = address + length, section


@invariant("pci.bar-window")
def bars_beside_slots(index: Index, _pages: Pages) -> Findings:
    """No BAR decodes where memory-mapped devices are: it would cover them. That it is in a window its claim tells."""
    low, end = index.map.slots
    for section, function in index.each(PciFunctionState):
        for number, bar in enumerate(function.bars):
            if bar.address < end and bar.address + bar.length > low:
                expected = f"below {low:#x}, where slots for memory-mapped devices begin"
                yield Finding(str(section), f"bars[{number}].address", f"{bar.address:#x}", expected)


@invariant()
def vectors_fit(index: Index, _pages: Pages) -> Findings:
    """A function's MSI-X capability says what there is: so many vectors, its table and pending bits inside a BAR."""
    for section, msix in index.each(PciMsixState):
        function = index.get("pci-function", section.instance, PciFunctionState)
        if function is not None:
            yield from pci_msix.fits(msix, str(section), function, f"pci-function/{section.instance}")


@invariant("msix.vectors")
def vectors_for_queues(index: Index, _pages: Pages) -> Findings:
    """There is one vector a queue and one for changes of the configuration: what a driver asks for at most."""
    for section, device in index.devices:
        msix = index.get("pci-msix", section.instance, PciMsixState)
        if msix is not None and len(msix.entries) != len(device.queues) + 1:
            expected = f"{len(device.queues) + 1} long: one vector a queue and one"
            yield Finding(f"pci-msix/{section.instance}", "entries", f"{len(msix.entries)} long", expected)
