"""Where the registers of virtio over PCI are, and the PCI side of a new device. VIRTIO 1.3, sections 4.1.2 and 4.1.4.

| in BAR 0 | what |
|---|---|
| 0x0 | common configuration |
| 0x2000 | ISR status |
| 0x4000 | device configuration |
| 0x6000 | notifications, 4 bytes a queue |
| 0x8000 | MSI-X table |
| 0x48000 | MSI-X pending bits |

The structures are told to the driver by the function's capabilities, so this is a choice: that of other monitors.
"""

from typing import NamedTuple

from snapkit.errors import InternalError
from snapkit.state.pci_function import PciFunctionState, capabilities
from snapkit.state.pci_msix import PciMsixState
from snapkit.state.spec import pci
from snapkit.state.spec import virtio as spec
from snapkit.state.virtio import VirtioState
from snapkit.state.virtio_pci import NO_VECTOR, VirtioPciState
from snapkit.units import KIB
from snapkit.vmm.pci.layout import add_bar, add_capability, header, msix_capability
from snapkit.vmm.pci.pci_msix import fresh_msix

BAR = 0
BAR_LEN = 512 * KIB
REGION_LEN = 0x1000
COMMON, ISR, DEVICE, NOTIFY = 0x0, 0x2000, 0x4000, 0x6000
MSIX_TABLE, MSIX_PBA = 0x8000, 0x48000
NOTIFY_MULTIPLIER = 4


class FreshPci(NamedTuple):
    """The States of a device's PCI side."""

    transport: VirtioPciState
    function: PciFunctionState
    msix: PciMsixState


def fresh(kind: str, device: VirtioState, *, slot: int, address: int, gsis: list[int]) -> FreshPci:
    """Lay out the PCI side of a new device of *kind*: its slot, where BAR 0 is, a GSI per vector (queues and one)."""
    queues, type_id = len(device.queues), spec.TYPE_IDS[kind]
    if len(gsis) != queues + 1:
        raise InternalError(f"{kind} has {len(gsis)} GSIs, must have {queues + 1}: one a queue and one")
    identity = spec.PCI_DEVICE_ID_BASE + type_id
    config = header(
        vendor=spec.PCI_VENDOR_ID,
        device=identity,
        revision=spec.PCI_REVISION,
        class_code=spec.PCI_CLASS_CODES.get(type_id, spec.PCI_CLASS_CODE_OTHER),
        subsystem_vendor=spec.PCI_VENDOR_ID,
        subsystem=identity,
    )
    bar = add_bar(config, BAR, width=64, address=address, length=BAR_LEN)
    for cfg_type, offset, more in (
        (spec.VIRTIO_PCI_CAP_COMMON_CFG, COMMON, b""),
        (spec.VIRTIO_PCI_CAP_ISR_CFG, ISR, b""),
        (spec.VIRTIO_PCI_CAP_DEVICE_CFG, DEVICE, b""),
        (spec.VIRTIO_PCI_CAP_NOTIFY_CFG, NOTIFY, NOTIFY_MULTIPLIER.to_bytes(4, "little")),
    ):
        add_capability(config, pci.CAP_ID_VENDOR, _capability(cfg_type, offset, REGION_LEN, more))
    add_capability(config, pci.CAP_ID_VENDOR, _capability(spec.VIRTIO_PCI_CAP_PCI_CFG, 0, 0, bytes(4)))
    add_capability(config, pci.CAP_ID_MSIX, msix_capability(queues + 1, table=(BAR, MSIX_TABLE), pba=(BAR, MSIX_PBA)))
    return FreshPci(
        VirtioPciState(queue_msix_vectors=[NO_VECTOR] * queues),
        PciFunctionState(slot=slot, config=bytes(config), bars=[bar]),
        fresh_msix(queues + 1, gsis),
    )


def _capability(cfg_type: int, offset: int, length: int, more: bytes) -> bytes:
    """Return a struct virtio_pci_cap behind its first two bytes, followed by *more*."""
    head = bytes((spec.PCI_CAP_LEN + len(more), cfg_type, BAR, 0, 0, 0))
    return head + offset.to_bytes(4, "little") + length.to_bytes(4, "little") + more


def window(config: bytes) -> int | None:
    """Return where the capability VIRTIO_PCI_CAP_PCI_CFG is, if it is there as a whole."""
    last = pci.CONFIG_LEN - spec.PCI_CAP_DATA - 4
    for found, at in capabilities(config):
        if (
            found == pci.CAP_ID_VENDOR
            and at <= last
            and config[at + spec.PCI_CAP_CFG_TYPE] == spec.VIRTIO_PCI_CAP_PCI_CFG
        ):
            return at
    return None
