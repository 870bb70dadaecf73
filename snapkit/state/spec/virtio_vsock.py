"""Virtual I/O Device (VIRTIO) 1.3, section 5.10: the socket device's queues, packet header, operations and events."""

import struct
from typing import NamedTuple

RX, TX, EVENT = range(3)
"""Virtqueues."""

VIRTIO_VSOCK_F_STREAM = 1 << 0
"""Feature bit: stream sockets are supported."""

VIRTIO_VSOCK_TYPE_STREAM = 1

VIRTIO_VSOCK_OP_REQUEST = 1
VIRTIO_VSOCK_OP_RESPONSE = 2
VIRTIO_VSOCK_OP_RST = 3
VIRTIO_VSOCK_OP_SHUTDOWN = 4
VIRTIO_VSOCK_OP_RW = 5
VIRTIO_VSOCK_OP_CREDIT_UPDATE = 6
VIRTIO_VSOCK_OP_CREDIT_REQUEST = 7

VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE = 1 << 0
"""Flag of a SHUTDOWN: its sender will receive no more."""
VIRTIO_VSOCK_SHUTDOWN_F_SEND = 1 << 1
"""Flag of a SHUTDOWN: its sender will send no more."""
SHUTDOWN_BOTH = VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE | VIRTIO_VSOCK_SHUTDOWN_F_SEND

HOST_CID = 2
GUEST_CID_MIN = 3
GUEST_CID_MAX = 0xFFFF_FFFE
"""Section 5.10.4: 0, 1, 2 and 0xffffffff are reserved, and the upper 32 bits are zero."""

VIRTIO_VSOCK_EVENT_TRANSPORT_RESET = 0
EVENT_FORMAT = struct.Struct("<I")
CONFIG_FORMAT = struct.Struct("<Q")


class Header(NamedTuple):
    """``struct virtio_vsock_hdr``, section 5.10.6."""

    src_cid: int
    dst_cid: int
    src_port: int
    dst_port: int
    len: int
    type: int
    op: int
    flags: int
    buf_alloc: int
    fwd_cnt: int


HEADER_FORMAT = struct.Struct("<QQIIIHHIII")
HEADER_LEN = HEADER_FORMAT.size
