"""Virtual I/O Device (VIRTIO) 1.3, section 5.2, block device: features, configuration layout, requests, status bytes.

Numbers only. `CONFIG` is struct virtio_blk_config up to write_zeroes_may_unmap; secure erase and zones are not offered.
"""

import struct

TYPE_BLOCK = 2
SECTOR_SHIFT = 9
SECTOR_LEN = 1 << SECTOR_SHIFT
"""Every sector number and capacity counts these, whatever blk_size says (section 5.2.4)."""
ID_LEN = 20

VIRTIO_BLK_F_SIZE_MAX = 1 << 1
VIRTIO_BLK_F_SEG_MAX = 1 << 2
VIRTIO_BLK_F_GEOMETRY = 1 << 4
VIRTIO_BLK_F_RO = 1 << 5
VIRTIO_BLK_F_BLK_SIZE = 1 << 6
VIRTIO_BLK_F_FLUSH = 1 << 9
VIRTIO_BLK_F_TOPOLOGY = 1 << 10
VIRTIO_BLK_F_CONFIG_WCE = 1 << 11
VIRTIO_BLK_F_MQ = 1 << 12
VIRTIO_BLK_F_DISCARD = 1 << 13
VIRTIO_BLK_F_WRITE_ZEROES = 1 << 14

VIRTIO_BLK_T_IN = 0
VIRTIO_BLK_T_OUT = 1
VIRTIO_BLK_T_FLUSH = 4
VIRTIO_BLK_T_GET_ID = 8
VIRTIO_BLK_T_DISCARD = 11
VIRTIO_BLK_T_WRITE_ZEROES = 13

VIRTIO_BLK_S_OK = 0
VIRTIO_BLK_S_IOERR = 1
VIRTIO_BLK_S_UNSUPP = 2

HEADER = struct.Struct("<IIQ")
"""struct virtio_blk_req: type, reserved, sector."""
SEGMENT = struct.Struct("<QII")
"""struct virtio_blk_discard_write_zeroes: sector, num_sectors, flags."""
SEGMENT_UNMAP = 1
"""Bit 0 of a segment's flags; the others are reserved."""

CONFIG = struct.Struct("<QII HBB I BBHI BBH III II B 3x")
"""capacity, size_max, seg_max, cylinders, heads, sectors, blk_size, physical_block_exp, alignment_offset, min_io_size,
opt_io_size, writeback, unused0, num_queues, max_discard_sectors, max_discard_seg, discard_sector_alignment,
max_write_zeroes_sectors, max_write_zeroes_seg, write_zeroes_may_unmap."""
