"""A machine's own changes over a disk image that others share: a sparse copy-on-write file.

The file, little-endian, version 1:

    0           header, 4096 bytes: magic ``SNAPKOVL``, version u32, granule shift u32, disk length u64 (bytes),
                bitmap offset u64, bitmap length u64, data offset u64, id 16 bytes, zeros; the last 32 bytes are the
                BLAKE3 digest of those before
    4096        bitmap, whole pages: bit n (byte n/8, bit n%8) says that granule n is here; else it is in the layer below
    data        granule n at data offset + n << shift, so neighbours on the disk are neighbours in the file

Everything follows from disk length and shift, and a header that says something else is refused. The granule is 4 KiB, the
block of usual file systems, whose writes then need nothing from below; larger for disks above 512 GiB, so that the bitmap
stays within 16 MiB. The part of a first write's granule that it does not cover is filled from below in the same pwritev.

What a power cut may do: a bit reaches the file only after the data of its granule is on the disk (`flush`: sync the data,
write the bitmap pages that changed, sync them), and bits are only ever set. So any mixture of old and new bitmap pages is
sound: a granule reads as what was flushed last or written since, and a flushed write is never lost. Zeroed granules are
holes with their bit set. A process that is killed loses first writes since the last flush, as a disk loses its cache.

Once a sync has failed the kernel has forgotten what did not reach the disk, so that no later one may claim success: from
then on `flush` fails.
"""

import errno
import os
import struct

from blake3 import blake3

from snapkit import host, host_io, host_memory
from snapkit.errors import ConfigError, HostError, ImageError
from snapkit.host_io import Spans
from snapkit.units import PAGE_LEN, align_up
from snapkit.vmm.virtio.block_backend import Image

MAGIC = b"SNAPKOVL"
VERSION = 1
HEADER_LEN = 4096
BITMAP_LEN_MAX = 16 << 20
SHIFT_MIN, SHIFT_MAX = 12, 24
_HEADER = struct.Struct("<8sIIQQQQ16s")
_DIGEST_LEN = 32
_DATA_ALIGN = 1 << 16


class Geometry:
    """Where the parts of an overlay of a disk of *length* bytes lie."""

    def __init__(self, length: int, shift: int) -> None:
        self.length, self.shift = length, shift
        self.granules = -(-length >> shift)
        self.bitmap_offset = HEADER_LEN
        self.bitmap_len = align_up(-(-self.granules // 8), PAGE_LEN)
        self.data_offset = align_up(self.bitmap_offset + self.bitmap_len, max(_DATA_ALIGN, 1 << shift))
        self.file_len = self.data_offset + (self.granules << shift)

    @classmethod
    def fresh(cls, length: int) -> "Geometry":
        """Return the geometry of a new overlay: the smallest granule whose bitmap is not too large.

        Raises ConfigError for a disk beyond 2 PiB.
        """
        shift = SHIFT_MIN
        while -(-length >> shift) > BITMAP_LEN_MAX * 8:
            shift += 1
        if shift > SHIFT_MAX:
            raise ConfigError(f"a disk of {length} bytes is too large for an overlay")
        return cls(length, shift)

    def header(self, identity: bytes) -> bytes:
        """Return the header of an overlay with this geometry."""
        fields = _HEADER.pack(
            MAGIC, VERSION, self.shift, self.length, self.bitmap_offset, self.bitmap_len, self.data_offset, identity
        )
        covered = fields.ljust(HEADER_LEN - _DIGEST_LEN, b"\0")
        return covered + blake3(covered).digest()


def format_overlay(fd: int, length: int) -> None:
    """Make the empty file *fd* an overlay over a disk of *length* bytes, and have it on the disk."""
    geometry = Geometry.fresh(length)
    host.ftruncate(fd, geometry.file_len)
    host.pwrite(fd, geometry.header(host.urandom(16)), 0)
    host.fsync(fd)


def read_geometry(fd: int, length: int, *, where: str) -> Geometry:
    """Read the header of the overlay *fd*, which must be one over a disk of *length* bytes.

    Raises ImageError naming *where*.
    """
    header = host.pread(fd, HEADER_LEN, 0)
    if len(header) < HEADER_LEN or header[:8] != MAGIC:
        raise ImageError(f"{where} is no overlay: it begins with {header[:8]!r}, must begin with {MAGIC!r}")
    if blake3(header[:-_DIGEST_LEN]).digest() != header[-_DIGEST_LEN:]:
        raise ImageError(f"{where}: the overlay's header is damaged, its digest does not match")
    _, version, shift, disk_length, *_places, identity = _HEADER.unpack_from(header)
    if version != VERSION:
        raise ImageError(f"{where} is an overlay of version {version}, must be {VERSION}")
    if disk_length != length:
        raise ImageError(f"{where} lies over a disk of {disk_length} bytes, must be {length}")
    if not SHIFT_MIN <= shift <= SHIFT_MAX or -(-length >> shift) > BITMAP_LEN_MAX * 8:
        raise ImageError(f"{where}: the overlay's granule shift is {shift}, must be {SHIFT_MIN} to {SHIFT_MAX}")
    geometry = Geometry(length, shift)
    if geometry.header(identity) != header:
        raise ImageError(f"{where}: the overlay's parts do not lie where its length says")
    if (there := host_io.seek_end(fd)) != geometry.file_len:
        raise ImageError(f"{where} has {there} bytes, must have {geometry.file_len}")
    return geometry


class Overlay:
    """An overlay file over *below*. Borrows *fd* and *below*; owns a little memory, hence `close`."""

    def __init__(self, fd: int, geometry: Geometry, below: Image) -> None:
        """Raises HostError."""
        if below.length != geometry.length:
            raise ConfigError(f"an overlay of {geometry.length} bytes cannot lie over {below.length} bytes")
        # Configuration
        self._fd, self._geometry, self._below = fd, geometry, below
        self._shift, self._data = geometry.shift, geometry.data_offset
        self.length = geometry.length
        # What is here, and which pages of the bitmap the file does not have yet
        self._bitmap = bytearray(geometry.bitmap_len)
        if host.pread_into(fd, self._bitmap, geometry.bitmap_offset) != geometry.bitmap_len:
            raise HostError("pread", errno.EIO, f"{fd}, the bitmap is cut short")
        self._changed: set[int] = set()
        self._sync_failed = 0
        # Room for both ends of a first write, from below
        self._room_len = 2 << self._shift
        self._room = host_memory.mmap(
            self._room_len,
            host_memory.PROT_READ | host_memory.PROT_WRITE,
            host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS | host_memory.MAP_NORESERVE,
        )

    def close(self) -> None:
        """Give the memory back."""
        if self._room_len:
            host_memory.munmap(self._room, self._room_len)
            self._room_len = 0

    # The disk

    def read(self, offset: int, spans: Spans) -> None:
        """Fill *spans* from *offset*, each run of granules from where it is."""
        at = 0
        for here, length in self._runs(offset, host_io.spans_len(spans)):
            part = host_io.cut(spans, at, length)
            if here:
                host_io.read_spans(self._fd, part, self._data + offset + at)
            else:
                self._below.read(offset + at, part)
            at += length

    def read_now(self, offset: int, spans: Spans, length: int) -> bool:
        """Do the same if no disk is needed for it; False leaves *spans* half filled."""
        at = 0
        for here, run in self._runs(offset, length):
            part = spans if run == length else host_io.cut(spans, at, run)
            if here:
                done = host_io.read_spans_now(self._fd, part, self._data + offset + at, run)
            else:
                done = self._below.read_now(offset + at, part, run)
            if not done:
                return False
            at += run
        return True

    def write(self, offset: int, spans: Spans, length: int) -> None:
        """Write *spans*, *length* bytes together, at *offset*; what they leave of a new granule comes from below."""
        if not length:
            return
        shift, end = self._shift, offset + length
        first, last = offset >> shift, (end - 1) >> shift
        head = 0 if self._has(first) else offset - (first << shift)
        tail = 0 if self._has(last) else min(last + 1 << shift, self.length) - end
        if head or tail:
            spans = list(spans)
            if head:
                self._below.read(offset - head, [(self._room, head)])
                spans.insert(0, (self._room, head))
            if tail:
                at = self._room + (1 << shift)
                self._below.read(end, [(at, tail)])
                spans.append((at, tail))
        host_io.write_spans(self._fd, spans, self._data + offset - head)
        self._set(first, last + 1)

    def discard(self, offset: int, length: int) -> None:
        """Let whole granules read as zeros and take no room; the rest of the range stays as it is."""
        shift = self._shift
        first, end = -(-offset >> shift), offset + length
        stop = self._geometry.granules if end == self.length else end >> shift
        if first < stop and host_io.punch(self._fd, self._data + (first << shift), stop - first << shift):
            self._set(first, stop)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeros."""
        shift, end = self._shift, offset + length
        while offset < end and (offset & ((1 << shift) - 1) or end - offset < 1 << shift):
            stop = min(end, (offset >> shift) + 1 << shift)
            self._write_zeroes_within(offset, stop - offset)
            offset = stop
        stop = end >> shift << shift
        if offset < stop:
            # A granule that is not here yet is a hole in the file, unless an unfinished write left something.
            host_io.zero(self._fd, self._data + offset, stop - offset, unmap=unmap)
            self._set(offset >> shift, stop >> shift)
            if stop < end:
                self._write_zeroes_within(stop, end - stop)

    def flush(self) -> None:
        """Have every write so far on the disk: the data, then the bits that say that it is here."""
        self._sync()
        if self._changed:
            for page in sorted(self._changed):
                at = page * PAGE_LEN
                host.pwrite(self._fd, self._bitmap[at : at + PAGE_LEN], self._geometry.bitmap_offset + at)
            self._sync()
            self._changed.clear()

    def _sync(self) -> None:
        if self._sync_failed:
            raise HostError("fdatasync", self._sync_failed, "an earlier sync of the overlay failed")
        try:
            host_io.fdatasync(self._fd)
        except HostError as error:
            self._sync_failed = error.errno
            raise

    # Granules

    def _has(self, granule: int) -> int:
        return self._bitmap[granule >> 3] >> (granule & 7) & 1

    def _set(self, first: int, stop: int) -> None:
        """Mark granules [first, stop) as here, a whole byte of them at a time where possible."""
        bitmap, granule = self._bitmap, first
        while granule < stop:
            at, low = granule >> 3, granule & 7
            if not low and stop - granule >= 8:
                count = stop - granule >> 3
                bitmap[at : at + count] = b"\xff" * count
                self._changed.update(range(at // PAGE_LEN, (at + count - 1) // PAGE_LEN + 1))
                granule += count << 3
                continue
            high = min(stop - granule + low, 8)
            byte = bitmap[at] | (1 << high) - (1 << low)
            if byte != bitmap[at]:
                bitmap[at] = byte
                self._changed.add(at // PAGE_LEN)
            granule += high - low

    def _runs(self, offset: int, length: int) -> list[tuple[int, int]]:
        """Split a range of the disk into runs (1 when here or 0 when below, bytes), the longest that there are."""
        if not length:
            return []
        shift = self._shift
        first, last = offset >> shift, (offset + length - 1) >> shift
        count = last - first + 1
        bits = int.from_bytes(self._bitmap[first >> 3 : (last >> 3) + 1], "little") >> (first & 7) & (1 << count) - 1
        if not bits:
            return [(0, length)]
        if bits == (1 << count) - 1:
            return [(1, length)]
        runs: list[tuple[int, int]] = []
        at, end, granule = offset, offset + length, first
        while at < end:
            here = bits & 1
            ahead = ~bits if here else bits
            run = min((ahead & -ahead).bit_length() - 1 if ahead else count, last + 1 - granule)
            granule += run
            stop = min(granule << shift, end)
            runs.append((here, stop - at))
            at = stop
            bits >>= run
        return runs

    def _write_zeroes_within(self, offset: int, length: int) -> None:
        """Write zeros to a part of one granule."""
        room = host_memory.mmap(length, host_memory.PROT_READ, host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS)
        try:
            self.write(offset, [(room, length)], length)
        finally:
            host_memory.munmap(room, length)


def create_overlay(path: str, length: int) -> int:
    """Create the file *path*, which must not exist, as an overlay over a disk of *length* bytes; returns its fd, locked.

    Raises HostError, and then there is no such file.
    """
    fd = host.open_fd(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
    try:
        try:
            host.flock(fd, host.LOCK_EX_NB)
        except HostError as error:
            if error.errno not in host_io.NO_LOCKS:
                raise
        format_overlay(fd, length)
        directory = host.open_fd(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            host.fsync(directory)
        finally:
            host.close(directory)
    except BaseException:
        host.close(fd)
        remove(path)
        raise
    return fd


def remove(path: str) -> None:
    """Remove a file; what cannot be removed is left."""
    try:
        host.unlink(path)
    except HostError:
        return
