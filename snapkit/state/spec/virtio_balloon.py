"""Virtual I/O Device (VIRTIO) Version 1.3, section 5.5: the memory balloon. Numbers only; little-endian.

Virtqueues, section 5.5.2: the specification numbers them 0 to 4, whether or not they exist. Linux (all versions up to
6.12 at least, `find_vqs` of its transports) numbers those that exist, without gaps, and so do other monitors.
"""

from typing import Final

# 5.5.3: feature bits, as masks

VIRTIO_BALLOON_F_MUST_TELL_HOST: Final = 1 << 0
VIRTIO_BALLOON_F_STATS_VQ: Final = 1 << 1
VIRTIO_BALLOON_F_DEFLATE_ON_OOM: Final = 1 << 2
VIRTIO_BALLOON_F_FREE_PAGE_HINT: Final = 1 << 3
VIRTIO_BALLOON_F_PAGE_POISON: Final = 1 << 4
VIRTIO_BALLOON_F_PAGE_REPORTING: Final = 1 << 5

# 5.5.4: configuration space

NUM_PAGES: Final = 0
ACTUAL: Final = 4
CONFIG_LEN: Final = 8
"""Without VIRTIO_BALLOON_F_FREE_PAGE_HINT and VIRTIO_BALLOON_F_PAGE_POISON."""

# 5.5.6: what a page frame number counts, and its length

PAGE_SHIFT: Final = 12
PFN_LEN: Final = 4

# 5.5.6.3: memory statistics, pairs of a 16-bit tag and a 64-bit value without padding

STAT_LEN: Final = 10
STATS: Final = {
    0: "SWAP_IN",
    1: "SWAP_OUT",
    2: "MAJFLT",
    3: "MINFLT",
    4: "MEMFREE",
    5: "MEMTOT",
    6: "AVAIL",
    7: "CACHES",
    8: "HTLB_PGALLOC",
    9: "HTLB_PGFAIL",
    10: "OOM_KILL",
    11: "ALLOC_STALL",
    12: "ASYNC_SCAN",
    13: "DIRECT_SCAN",
    14: "ASYNC_RECLAIM",
    15: "DIRECT_RECLAIM",
}
"""Names of VIRTIO_BALLOON_S_*, those that Linux added after 1.3 included. Byte counts, or events since the guest booted."""
