"""The block device. VIRTIO 1.3, section 5.2, over any `Backend`.

The data of a request goes between guest pages and file without a copy. A read is first tried where it stands, taking what
the page cache has; what would wait, and everything that writes or syncs, goes to the backend's worker thread, whose
completions come back over an eventfd on the loop. The worker does things in order, so a flush covers every write that was
completed before it was asked for. Used buffers are pushed as they come, the driver is told once a batch.

What the driver asks for wrongly is answered in the status byte (5.2.6): VIRTIO_BLK_S_UNSUPP for a type or a flag that is
unknown or not negotiated, VIRTIO_BLK_S_IOERR for a range, a length or a short header. Without a status byte there is nobody
to answer to, and the device fails; so it does for a driver that has more requests in flight than its queue has entries.

Surprises:

- without VIRTIO_BLK_F_FLUSH the driver has no way to sync, so every write is synced before it is answered (5.2.6.2);
- `reset` waits for the request that the worker is at, with the machine's lock held: the driver may use its pages for
  something else the moment its reset is done. Requests not begun are dropped;
- a disk that a restore opened read-only may be one that its guest knows as writable: writing is then an I/O error.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar, NamedTuple, Self

from snapkit import host, host_io
from snapkit.errors import HostError
from snapkit.state.codec import adopted
from snapkit.state.spec import virtio as virtio_spec
from snapkit.state.spec import virtio_block as spec
from snapkit.state.spec.virtio_block import SECTOR_SHIFT
from snapkit.state.virtio_block import DiskHostState, VirtioBlockState, invariants
from snapkit.units import MIB
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.block_backend import Backend
from snapkit.vmm.virtio.device import VirtioDevice, fresh_queues
from snapkit.vmm.virtio.queue import Chain, QueueBroken, Span, gather, scatter, skip, spans_len
from snapkit.vmm.virtio.rate_limiter import LimitConfig, RateLimiter, fresh_limiter

QUEUE_SIZE = 256
INLINE_LEN = MIB
"""How much one turn reads where it stands, with the machine's lock held: about 0.2 ms of copying."""
MAX_SEGMENTS = 32
MAX_DISCARD_SECTORS = 1 << 22
MAX_WRITE_ZEROES_SECTORS = 1 << 22
DISCARD_ALIGNMENT = 8

_HEADER_LEN = spec.HEADER.size
_SECTOR_MASK = spec.SECTOR_LEN - 1


class BlockArgs(NamedTuple):
    """Host things of a block device. The device closes *backend*."""

    memory: GuestMemory
    backend: Backend
    clock: Callable[[], int] = host.monotonic_ns


class Request:
    """One request: what is to be done, and where the answer goes. A `Job` of the worker."""

    __slots__ = ("arguments", "error", "head", "inline", "length", "operation", "status", "status_hva", "written")

    def __init__(self, head: int, status_hva: int) -> None:
        self.head, self.status_hva = head, status_hva
        self.status = spec.VIRTIO_BLK_S_IOERR
        self.written = 0  # bytes of data for the driver, once the status is OK
        self.length = 0  # bytes moved, for the rate limiter
        self.operation: Callable[..., None] | None = None  # nothing to wait for
        self.arguments: tuple[object, ...] = ()
        self.inline: tuple[int, list[Span]] | None = None  # offset and spans of a read, which may be tried at once
        self.error: HostError | None = None

    def run(self) -> None:
        """Do it; on the worker's thread."""
        try:
            if self.operation is not None:
                self.operation(*self.arguments)
            self.status = spec.VIRTIO_BLK_S_OK
        except HostError as error:
            self.error = error


class VirtioBlock(VirtioDevice[VirtioBlockState]):
    """One disk. Every method needs the machine's lock unless it says otherwise."""

    kind: ClassVar[str] = "virtio-block"
    type_id: ClassVar[int] = virtio_spec.TYPE_BLOCK
    queue_sizes: ClassVar[tuple[int, ...]] = (QUEUE_SIZE,)

    def __init__(self, state: VirtioBlockState, *, args: BlockArgs) -> None:
        super().__init__(state, memory=args.memory)
        # Runtime glue
        self.backend = args.backend
        self.limiter = RateLimiter(state.limiter, clock=args.clock)
        self._loop: Loop | None = None
        self._lock: threading.Lock | None = None
        self._in_flight = 0
        self._retry_set = self._paused = False
        self.io_errors = 0
        """Requests that the host failed, the last of them in *last_error*."""
        self.last_error: HostError | None = None
        self._kinds: dict[int, Callable[[Request, int, list[Span], list[Span]], None]] = {
            spec.VIRTIO_BLK_T_IN: self._read,
            spec.VIRTIO_BLK_T_OUT: self._write,
            spec.VIRTIO_BLK_T_FLUSH: self._flush,
            spec.VIRTIO_BLK_T_GET_ID: self._get_id,
            spec.VIRTIO_BLK_T_DISCARD: self._discard,
            spec.VIRTIO_BLK_T_WRITE_ZEROES: self._write_zeroes,
        }
        self._use_backend()

    @classmethod
    def restore(cls, state: VirtioBlockState, args: BlockArgs) -> Self:
        """Construct the device that *state* describes. Raises ImageError naming the field that is wrong."""
        return cls(adopted(state, invariants), args=args)

    # Configuration space

    def config_space(self) -> bytes:
        """Return struct virtio_blk_config (5.2.4)."""
        state = self.state
        discard = state.max_discard_sectors, state.max_discard_seg, state.discard_sector_alignment
        zeroes = state.max_write_zeroes_sectors, state.max_write_zeroes_seg, state.write_zeroes_may_unmap
        geometry = topology = (0, 0, 0)
        return spec.CONFIG.pack(
            state.capacity, 0, state.seg_max, *geometry, state.blk_size, *topology, 0, 0, 0, 1, *discard, *zeroes
        )

    # Driven by the machine

    def connect(self, loop: Loop, lock: threading.Lock) -> None:
        """Start the worker and listen to it. Without the lock. Raises HostError."""
        worker = self.backend.worker
        worker.start()
        try:
            loop.watch(worker.done_fd, host.EPOLLIN, lambda _events: self._done())
        except BaseException:
            worker.stop()
            raise
        self._loop, self._lock = loop, lock

    def disconnect(self) -> None:
        """Let the worker end what it has, and stop it; harmless twice. Without the lock."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.unwatch(self.backend.worker.done_fd)
            self.backend.worker.stop()

    def resync(self) -> None:
        """Tell the driver of another capacity, when the operator accepted an image that has one."""
        if self.state.capacity != self.backend.capacity:
            self._resize()

    def run(self) -> None:
        """Take what ended meanwhile, then serve the queue."""
        self._paused = False
        self.limiter.start()
        self._complete()
        super().run()

    def pause(self) -> None:
        """Wait until the worker is idle: nothing of a paused machine's memory changes. Without the lock."""
        self._paused = True
        self.backend.worker.drain()

    def prepare_save(self) -> None:
        """Finish what is in flight, sync the image, record its files. Raises HostError when that cannot be done."""
        self.backend.worker.drain()
        self._complete()
        self.limiter.stop()
        self.state.host = self.backend.settle()

    def close(self) -> None:
        """Stop the worker and close the disk's files; after `disconnect`."""
        if self._in_flight:
            self._stopped(0)
        super().close()
        self.backend.close()

    # Asked for by the operator

    def replace(self, backend: Backend) -> Backend:
        """Put another disk in the place of this one, once what is in flight is done; returns the old one, to be closed.

        The driver is told when the capacity is another. Raises HostError, and then nothing has changed.
        """
        old, described = self.backend, backend.describe()
        old.worker.drain()
        self._complete()
        loop, lock = self._loop, self._lock
        if loop is not None and lock is not None:
            self.backend = backend
            try:
                self.connect(loop, lock)
            except BaseException:
                self.backend = old
                raise
            with suppress(HostError):  # the loop forgets what is closed, and it is about to be
                loop.unwatch(old.worker.done_fd)
            old.worker.stop()
        self.backend = backend
        self._describe(described)
        return old

    def refresh(self, path: str) -> None:
        """Take the disk's files as they are now, the last of them by the name *path*, once what is in flight is done.

        The driver is told when the capacity is another. Raises ConfigError, HostError; then nothing has changed.
        """
        self.backend.worker.drain()
        self._complete()
        self._describe(self.backend.refresh(path))

    def limit(self, config: LimitConfig) -> None:
        """Set the rate limits that *config* names."""
        self.limiter.update(config)
        self.kick(0)

    # The queue

    def serve(self, index: int) -> None:
        """Take requests; answer at once what can be, hand the rest to the worker."""
        queue, room = self.queues[index], INLINE_LEN

        def take(chain: Chain) -> bool:
            nonlocal room
            request = self._parse(chain)
            if not self.limiter.take(1, request.length):
                queue.undo_pop()
                self._retry_later()
                return False
            if request.operation is None:
                self._answer(request)
            elif request.inline is not None and room >= request.length and self._read_now(request, *request.inline):
                room -= request.length
                self._answer(request)
            else:
                self._in_flight += 1
                if self._in_flight > queue.state.size:
                    raise QueueBroken(f"{self._in_flight} requests in flight in a queue of {queue.state.size}")
                self.backend.worker.submit(request)
            return True

        self.serve_each(index, take)

    def _parse(self, chain: Chain) -> Request:
        """Make a request of *chain*: one to be done, or one whose status says already what came of it."""
        head, readable, writable = chain
        if not writable:
            raise QueueBroken(f"request {head} has no status byte")
        last, last_len = writable[-1]
        request = Request(head, last + last_len - 1)
        data_in = writable[:-1]
        if last_len > 1:
            data_in.append((last, last_len - 1))
        header = gather(readable, _HEADER_LEN)
        if len(header) == _HEADER_LEN:
            kind, _reserved, sector = spec.HEADER.unpack(header)
            known = self._kinds.get(kind)
            if known is None:
                request.status = spec.VIRTIO_BLK_S_UNSUPP
            else:
                data_out = readable[1:] if readable[0][1] == _HEADER_LEN else skip(readable, _HEADER_LEN)
                known(request, sector, data_in, data_out)
        return request

    def _read_now(self, request: Request, offset: int, spans: list[Span]) -> bool:
        try:
            done = self.backend.image.read_now(offset, spans, request.length)
        except HostError:
            return False  # the worker tries again, and tells
        if done:
            request.status = spec.VIRTIO_BLK_S_OK
        return done

    def _answer(self, request: Request) -> None:
        """Return a request to the driver with its status byte, the last byte of its buffers (5.2.6)."""
        status = request.status
        if request.error is not None:
            self.io_errors += 1
            self.last_error = request.error
        host_io.put_byte(request.status_hva, status)
        self.queues[0].push(request.head, 1 if status else request.written + 1)

    def _done(self) -> None:
        """Hear of the worker; on the loop, without the lock."""
        if self._lock is not None:
            with self._lock:
                self._complete()

    def _complete(self) -> None:
        """Return to the driver what the worker has done."""
        for job in self.backend.worker.finished():
            assert isinstance(job, Request)
            self._in_flight -= 1
            self._answer(job)
        if self.queues[0].should_notify():
            self.interrupt.queue(0)

    def _stopped(self, index: int) -> None:
        self.backend.worker.cancel()
        self._in_flight = 0

    def _retry_later(self) -> None:
        deadline = self.limiter.next_ns()
        if self._loop is not None and deadline is not None and not self._retry_set:
            self._retry_set = True
            self._loop.call_at(deadline, self._retry)

    def _retry(self) -> None:
        """Go on after the rate limiter's refusal; on the loop, without the lock."""
        self._retry_set = False
        if self._lock is not None and self._loop is not None:
            with self._lock:
                if not self._paused:  # else `run` does it
                    self.kick(0)

    # Kinds of requests: each leaves a status, or an operation

    def _read(self, request: Request, sector: int, data_in: list[Span], data_out: list[Span]) -> None:
        length = spans_len(data_in)
        if self._fits(sector, length):
            request.inline = request.arguments = sector << SECTOR_SHIFT, data_in
            request.operation = self.backend.image.read
            request.length = request.written = length

    def _write(self, request: Request, sector: int, data_in: list[Span], data_out: list[Span]) -> None:
        length = spans_len(data_out)
        if self._fits(sector, length) and not self._readonly:
            flushes = self.negotiated(spec.VIRTIO_BLK_F_FLUSH)
            request.operation = self.backend.image.write if flushes else self._write_through
            request.arguments = sector << SECTOR_SHIFT, data_out, length
            request.length = length

    def _write_through(self, offset: int, spans: list[Span], length: int) -> None:
        self.backend.image.write(offset, spans, length)
        self.backend.image.flush()

    def _flush(self, request: Request, sector: int, data_in: list[Span], data_out: list[Span]) -> None:
        if self._readonly:
            request.status = spec.VIRTIO_BLK_S_OK
        else:
            request.operation = self.backend.image.flush

    def _get_id(self, request: Request, sector: int, data_in: list[Span], data_out: list[Span]) -> None:
        identity = self.state.serial.ljust(spec.ID_LEN, b"\0")
        request.written = scatter(data_in, identity[: spans_len(data_in)])
        request.status = spec.VIRTIO_BLK_S_OK

    def _discard(self, request: Request, sector: int, data_in: list[Span], data_out: list[Span]) -> None:
        state = self.state
        limits = state.max_discard_seg, state.max_discard_sectors
        ranges = self._ranges(request, spec.VIRTIO_BLK_F_DISCARD, 0, limits, data_out)
        if ranges:
            request.operation, request.arguments = self._discard_all, (ranges,)

    def _discard_all(self, ranges: list[tuple[int, int, bool]]) -> None:
        for offset, length, _unmap in ranges:
            self.backend.image.discard(offset, length)

    def _write_zeroes(self, request: Request, sector: int, data_in: list[Span], data_out: list[Span]) -> None:
        state = self.state
        limits = state.max_write_zeroes_seg, state.max_write_zeroes_sectors
        ranges = self._ranges(request, spec.VIRTIO_BLK_F_WRITE_ZEROES, spec.SEGMENT_UNMAP, limits, data_out)
        if ranges:
            request.operation, request.arguments = self._write_zeroes_all, (ranges,)

    def _write_zeroes_all(self, ranges: list[tuple[int, int, bool]]) -> None:
        image = self.backend.image
        for offset, length, unmap in ranges:
            image.write_zeroes(offset, length, unmap=unmap)
        if not self.negotiated(spec.VIRTIO_BLK_F_FLUSH):
            image.flush()

    def _ranges(
        self, request: Request, feature: int, flags_known: int, limits: tuple[int, int], data_out: list[Span]
    ) -> list[tuple[int, int, bool]]:
        """Read the segments of a request as (offset, length, unmap); none, and the status set, when one is wrong."""
        length = spans_len(data_out)
        segments_max, sectors_max = limits
        if not self.negotiated(feature):
            request.status = spec.VIRTIO_BLK_S_UNSUPP
            return []
        if not length or length % spec.SEGMENT.size or length > segments_max * spec.SEGMENT.size or self._readonly:
            return []
        ranges = []
        for first, sectors, flags in spec.SEGMENT.iter_unpack(gather(data_out, length)):
            if flags & ~flags_known:
                request.status = spec.VIRTIO_BLK_S_UNSUPP
                return []
            if sectors > sectors_max or not self._fits(first, sectors << SECTOR_SHIFT):
                return []
            if sectors:
                ranges.append((first << SECTOR_SHIFT, sectors << SECTOR_SHIFT, bool(flags & spec.SEGMENT_UNMAP)))
        if not ranges:
            request.status = spec.VIRTIO_BLK_S_OK
        return ranges

    def _fits(self, sector: int, length: int) -> bool:
        """Whether *length* bytes from *sector* on are whole sectors of the disk."""
        return not length & _SECTOR_MASK and sector + (length >> SECTOR_SHIFT) <= self._capacity

    # Helpers

    def _use_backend(self) -> None:
        """Take what every request asks of the backend."""
        backend = self.backend
        self._capacity = min(self.state.capacity, backend.capacity)
        self._readonly = backend.readonly or bool(self.state.offered & spec.VIRTIO_BLK_F_RO)

    def _describe(self, found: DiskHostState) -> None:
        """Take what the backend is now."""
        self.state.host = found
        self._use_backend()
        self.resync()

    def _resize(self) -> None:
        self.state.capacity = self.backend.capacity
        self._use_backend()
        self.interrupt.config()


def fresh_state(backend: Backend, *, serial: bytes = b"", limits: LimitConfig | None = None) -> VirtioBlockState:
    """Return the state of a new machine's disk over *backend*."""
    features = (
        virtio_spec.BASE_FEATURES | spec.VIRTIO_BLK_F_SEG_MAX | spec.VIRTIO_BLK_F_BLK_SIZE | spec.VIRTIO_BLK_F_FLUSH
    )
    state = VirtioBlockState(
        offered=features,
        queues=fresh_queues(VirtioBlock.queue_sizes),
        capacity=backend.capacity,
        seg_max=QUEUE_SIZE - 2,  # header and status have descriptors too
        serial=serial,
        limiter=fresh_limiter(limits),
        host=backend.describe(),
    )
    if backend.readonly:
        state.offered |= spec.VIRTIO_BLK_F_RO
        return state
    state.offered |= spec.VIRTIO_BLK_F_DISCARD | spec.VIRTIO_BLK_F_WRITE_ZEROES
    state.max_discard_sectors, state.max_discard_seg = MAX_DISCARD_SECTORS, MAX_SEGMENTS
    state.discard_sector_alignment = DISCARD_ALIGNMENT
    state.max_write_zeroes_sectors, state.max_write_zeroes_seg = MAX_WRITE_ZEROES_SECTORS, MAX_SEGMENTS
    state.write_zeroes_may_unmap = 1
    return state
