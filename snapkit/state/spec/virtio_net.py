"""Virtual I/O Device (VIRTIO) 1.3, section 5.1: the network device's queues, features, configuration and header."""

import struct
from typing import Final

RX, TX = range(2)
"""Virtqueues: receiveq1 and transmitq1."""

# 5.1.3: feature bits, as masks

VIRTIO_NET_F_CSUM: Final = 1 << 0
VIRTIO_NET_F_GUEST_CSUM: Final = 1 << 1
VIRTIO_NET_F_MTU: Final = 1 << 3
VIRTIO_NET_F_MAC: Final = 1 << 5
VIRTIO_NET_F_GUEST_TSO4: Final = 1 << 7
VIRTIO_NET_F_GUEST_TSO6: Final = 1 << 8
VIRTIO_NET_F_GUEST_UFO: Final = 1 << 10
VIRTIO_NET_F_HOST_TSO4: Final = 1 << 11
VIRTIO_NET_F_HOST_TSO6: Final = 1 << 12
VIRTIO_NET_F_HOST_UFO: Final = 1 << 14
VIRTIO_NET_F_MRG_RXBUF: Final = 1 << 15

GUEST_SEGMENTED: Final = VIRTIO_NET_F_GUEST_TSO4 | VIRTIO_NET_F_GUEST_TSO6 | VIRTIO_NET_F_GUEST_UFO
"""With any of these the driver takes packets that are longer than the MTU."""
HOST_SEGMENTED: Final = VIRTIO_NET_F_HOST_TSO4 | VIRTIO_NET_F_HOST_TSO6 | VIRTIO_NET_F_HOST_UFO
"""With any of these the driver may send packets that are longer than the MTU."""

# 5.1.4: configuration; status and max_virtqueue_pairs read 0, as their features are not offered

CONFIG_FORMAT: Final = struct.Struct("<6sHHH")
MTU_MIN: Final = 68
"""The least that IPv4 allows, and the least that 5.1.4.1 lets a device give."""
MTU_MAX: Final = 65535
MAC_LEN: Final = 6
MAC_GROUP: Final = 0x01
"""Bit of a MAC address's first byte: it is no single station's (IEEE 802)."""
MAC_LOCAL: Final = 0x02
"""Bit of a MAC address's first byte: its owner made it up."""

# 5.1.6: packets

HDR_LEN: Final = 12
"""``struct virtio_net_hdr`` with num_buffers, which VERSION_1 always has."""
HDR_NUM_BUFFERS: Final = 10
ETHERNET_LEN: Final = 14
VLAN_LEN: Final = 4
PACKET_MAX: Final = HDR_LEN + ETHERNET_LEN + VLAN_LEN + 65536
"""The longest packet with its header: a segmentation offload's, with a VLAN tag. 5.1.6.3.1 counts 65562 without one."""
