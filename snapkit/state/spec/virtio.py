"""Virtual I/O Device (VIRTIO) Version 1.3 (OASIS, Committee Specification): numbers only.

Names are the specification's; the section of each table stands above it. Everything is little-endian.
"""

from typing import Final

# 2.1 and 2.1.2: device status

STATUS_ACKNOWLEDGE: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8
STATUS_DEVICE_NEEDS_RESET: Final = 64
STATUS_FAILED: Final = 128

STATUS_STEPS: Final = (
    (STATUS_ACKNOWLEDGE, 0),
    (STATUS_DRIVER, STATUS_ACKNOWLEDGE),
    (STATUS_FEATURES_OK, STATUS_DRIVER),
    (STATUS_DRIVER_OK, STATUS_FEATURES_OK),
    (STATUS_FAILED, 0),
)
"""3.1.1: each bit that a driver may set, in order, and the one that must be there before."""
STATUS_DRIVERS: Final = sum(step for step, _ in STATUS_STEPS)
STATUS_BITS: Final = STATUS_DRIVERS | STATUS_DEVICE_NEEDS_RESET

# 2.2 and 6: feature bits that do not depend on the device type, as masks

VIRTIO_F_INDIRECT_DESC: Final = 1 << 28
VIRTIO_F_EVENT_IDX: Final = 1 << 29
VIRTIO_F_VERSION_1: Final = 1 << 32
VIRTIO_F_ACCESS_PLATFORM: Final = 1 << 33
VIRTIO_F_RING_PACKED: Final = 1 << 34
VIRTIO_F_IN_ORDER: Final = 1 << 35
VIRTIO_F_NOTIFICATION_DATA: Final = 1 << 38
VIRTIO_F_RING_RESET: Final = 1 << 40

BASE_FEATURES: Final = VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX
"""What every device here offers, besides what its type adds."""

# 2.7: split virtqueues

DESC_LEN: Final = 16
VIRTQ_DESC_F_NEXT: Final = 1
VIRTQ_DESC_F_WRITE: Final = 2
VIRTQ_DESC_F_INDIRECT: Final = 4
VIRTQ_AVAIL_F_NO_INTERRUPT: Final = 1
VIRTQ_USED_F_NO_NOTIFY: Final = 1
DESC_ALIGN: Final = 16
AVAIL_ALIGN: Final = 2
USED_ALIGN: Final = 4
CHAIN_LEN_LIMIT: Final = 1 << 32
"""No chain holds more bytes (2.7.5.2); one of exactly so many could not be told in a used element's 32 bits."""


def desc_table_len(size: int) -> int:
    """Return the bytes of the descriptor table of a queue of *size* entries (2.7)."""
    return DESC_LEN * size


def avail_len(size: int) -> int:
    """Return the bytes of the available ring, used_event included (2.7.6)."""
    return 6 + 2 * size


def used_len(size: int) -> int:
    """Return the bytes of the used ring, avail_event included (2.7.8)."""
    return 6 + 8 * size


# 5: device types

TYPE_NET: Final = 1
TYPE_BLOCK: Final = 2
TYPE_ENTROPY: Final = 4
TYPE_BALLOON: Final = 5
TYPE_VSOCK: Final = 19

TYPE_IDS: Final = {
    "virtio-net": TYPE_NET,
    "virtio-block": TYPE_BLOCK,
    "virtio-rng": TYPE_ENTROPY,
    "virtio-balloon": TYPE_BALLOON,
    "virtio-vsock": TYPE_VSOCK,
}
"""Device type by kind."""

# 4.1.2: PCI identity. The class codes are the PCI Code and ID Assignment Specification's; drivers look at the ids only.

PCI_VENDOR_ID: Final = 0x1AF4
PCI_DEVICE_ID_BASE: Final = 0x1040
PCI_REVISION: Final = 1
PCI_CLASS_CODES: Final = {
    TYPE_NET: 0x02_00_00,
    TYPE_BLOCK: 0x01_80_00,
    TYPE_VSOCK: 0x07_80_00,
}
PCI_CLASS_CODE_OTHER: Final = 0xFF_00_00

# 4.1.4: struct virtio_pci_cap, offsets from the capability's start

VIRTIO_PCI_CAP_COMMON_CFG: Final = 1
VIRTIO_PCI_CAP_NOTIFY_CFG: Final = 2
VIRTIO_PCI_CAP_ISR_CFG: Final = 3
VIRTIO_PCI_CAP_DEVICE_CFG: Final = 4
VIRTIO_PCI_CAP_PCI_CFG: Final = 5
PCI_CAP_LEN: Final = 16
PCI_CAP_CFG_TYPE: Final = 3
PCI_CAP_BAR: Final = 4
PCI_CAP_OFFSET: Final = 8
PCI_CAP_LENGTH: Final = 12
PCI_CAP_DATA: Final = 16
"""4.1.4.9: pci_cfg_data, the window of VIRTIO_PCI_CAP_PCI_CFG."""

# 4.1.4.3: struct virtio_pci_common_cfg

COMMON_DEVICE_FEATURE_SELECT: Final = 0x00
COMMON_DEVICE_FEATURE: Final = 0x04
COMMON_DRIVER_FEATURE_SELECT: Final = 0x08
COMMON_DRIVER_FEATURE: Final = 0x0C
COMMON_CONFIG_MSIX_VECTOR: Final = 0x10
COMMON_NUM_QUEUES: Final = 0x12
COMMON_DEVICE_STATUS: Final = 0x14
COMMON_CONFIG_GENERATION: Final = 0x15
COMMON_QUEUE_SELECT: Final = 0x16
COMMON_QUEUE_SIZE: Final = 0x18
COMMON_QUEUE_MSIX_VECTOR: Final = 0x1A
COMMON_QUEUE_ENABLE: Final = 0x1C
COMMON_QUEUE_NOTIFY_OFF: Final = 0x1E
COMMON_QUEUE_DESC: Final = 0x20
COMMON_QUEUE_DRIVER: Final = 0x28
COMMON_QUEUE_DEVICE: Final = 0x30
COMMON_QUEUE_NOTIF_CONFIG_DATA: Final = 0x38
COMMON_QUEUE_RESET: Final = 0x3A
COMMON_ADMIN_QUEUE_INDEX: Final = 0x3C
COMMON_ADMIN_QUEUE_NUM: Final = 0x3E

VIRTIO_MSI_NO_VECTOR: Final = 0xFFFF

# 4.1.4.5 and 4.2.2: bits of the ISR status and of InterruptStatus

INTERRUPT_QUEUE: Final = 1
INTERRUPT_CONFIG: Final = 2

# 4.2.2: MMIO device registers

MMIO_MAGIC_VALUE: Final = 0x000
MMIO_VERSION: Final = 0x004
MMIO_DEVICE_ID: Final = 0x008
MMIO_VENDOR_ID: Final = 0x00C
MMIO_DEVICE_FEATURES: Final = 0x010
MMIO_DEVICE_FEATURES_SEL: Final = 0x014
MMIO_DRIVER_FEATURES: Final = 0x020
MMIO_DRIVER_FEATURES_SEL: Final = 0x024
MMIO_QUEUE_SEL: Final = 0x030
MMIO_QUEUE_SIZE_MAX: Final = 0x034
MMIO_QUEUE_SIZE: Final = 0x038
MMIO_QUEUE_READY: Final = 0x044
MMIO_QUEUE_NOTIFY: Final = 0x050
MMIO_INTERRUPT_STATUS: Final = 0x060
MMIO_INTERRUPT_ACK: Final = 0x064
MMIO_STATUS: Final = 0x070
MMIO_QUEUE_DESC: Final = 0x080
MMIO_QUEUE_DRIVER: Final = 0x090
MMIO_QUEUE_DEVICE: Final = 0x0A0
MMIO_SHM_SEL: Final = 0x0AC
MMIO_SHM_LEN: Final = 0x0B0
MMIO_SHM_BASE: Final = 0x0B8
MMIO_QUEUE_RESET: Final = 0x0C0
MMIO_CONFIG_GENERATION: Final = 0x0FC
MMIO_CONFIG: Final = 0x100

MMIO_LEN: Final = 0x1000
MMIO_MAGIC: Final = 0x7472_6976
MMIO_VERSION_MODERN: Final = 2
MMIO_VENDOR: Final = 0x5449_4B53
"""Ours to choose: the bytes "SKIT"."""
