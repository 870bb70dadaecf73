"""The memory balloon: the guest gives pages back, and the process loses them. VIRTIO 1.3, section 5.5.

The operator sets how many pages the balloon should hold; the driver takes that many from its guest and says which, by
page frame number. They are sorted, joined into ranges and discarded (`GuestMemory.discard`). Taking pages back needs no
work: touching them is enough, and they are zero. Free page reporting is the same with addresses instead of numbers, and
of the driver's own accord.

Surprises:

- A queue's number says what it is for only together with the accepted features, see `spec.virtio_balloon`. There is one
  queue more here than Linux uses, so that a driver that numbers them as the specification does finds its own too.
- The driver lends the device one buffer of statistics, which comes back when newer ones are wanted. It is not state:
  it goes back into the available ring before a save, and the next kick takes it again and reads the same.
- What a guest may do in a turn is bounded: by page numbers and ranges, since each range is a system call.
- Pages outside RAM, page lists that are too long, and what the host would not take are counted in `faults`, the last also
  in `kept_pages`.
"""

import struct
import threading
from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple, Self

from snapkit.errors import ConfigError, HostError, InternalError
from snapkit.state.codec import adopted, checked
from snapkit.state.spec import virtio as spec
from snapkit.state.spec import virtio_balloon as numbers
from snapkit.state.virtio_balloon import StatState, VirtioBalloonState, invariants
from snapkit.units import PAGE_LEN, Gpa
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.device import VirtioDevice, fresh_queues
from snapkit.vmm.virtio.queue import Chain, Queue, gather, readable_len

_INFLATE, _DEFLATE = 0, 1
_REPORTING_BY_SPECIFICATION = 4
_PFNS_MAX = 1024
"""Page numbers that one buffer may hold; Linux sends 256."""
_TURN_WORK = 4096
"""What a turn may do: a page number is 1, and a range, 30 to 100 us where a file is laid, 64."""
_RANGE_WORK = 64
_CHAIN_WORK = 16
_stat = struct.Struct("<HQ")

_Role = Callable[[Queue, Chain], int]
"""Does one chain's work and returns how much that was."""


class BalloonArgs(NamedTuple):
    """Host things of a balloon; *clock* is monotonic, in nanoseconds."""

    memory: GuestMemory
    clock: Callable[[], int]


class VirtioBalloon(VirtioDevice[VirtioBalloonState]):
    """One balloon. Every method needs the machine's lock unless it says otherwise."""

    kind: ClassVar[str] = "virtio-balloon"
    type_id: ClassVar[int] = spec.TYPE_BALLOON
    queue_sizes: ClassVar[tuple[int, ...]] = (256, 256, 16, 64, 64)

    def __init__(self, state: VirtioBalloonState, *, args: BalloonArgs) -> None:
        super().__init__(state, memory=args.memory)
        # Runtime glue
        self.discarded_pages = 0
        self.kept_pages = 0
        self._clock = args.clock
        self._loop: Loop | None = None
        self._lock: threading.Lock | None = None
        self._timer = 0  # counts, so that a timer that was replaced does nothing
        self._running = False
        self._stats_chain: tuple[int, int] | None = None  # queue and head of what the driver lends

    @classmethod
    def restore(cls, state: VirtioBalloonState, args: BalloonArgs) -> Self:
        """Construct the device that *state* describes. Raises ImageError naming the field that is wrong."""
        return cls(adopted(state, invariants), args=args)

    # The operator

    def set_target(self, pages: int) -> None:
        """Have the driver bring the balloon to *pages* of 4 KiB. Raises ConfigError when RAM has not so many."""
        most = sum(length for _gpa, length in self.memory.ram) // PAGE_LEN
        if not 0 <= pages <= most:
            raise ConfigError(f"the balloon's target is {pages} pages, must be 0 to {most}")
        if pages != self.state.num_pages:
            self.state.num_pages = pages
            self.interrupt.config()

    def set_stats_interval(self, seconds: int) -> None:
        """Ask the driver for statistics every so many *seconds*, 0 for never. Raises ConfigError beyond 65535."""
        if not 0 <= seconds <= 0xFFFF:
            raise ConfigError(f"the balloon's statistics interval is {seconds} s, must be 0 to 65535")
        self.state.stats_interval_s = seconds
        self._start_timer()

    def request_stats(self) -> bool:
        """Ask the driver for new statistics; False when it has not told the last yet."""
        if self._stats_chain is None:
            return False
        (index, head), self._stats_chain = self._stats_chain, None
        queue = self.queues[index]
        queue.push(head, 0)
        if queue.should_notify():
            self.interrupt.queue(index)
        return True

    @property
    def stats(self) -> dict[str, int]:
        """What the driver last told, by VIRTIO_BALLOON_S_ name."""
        return {numbers.STATS[stat.tag]: stat.value for stat in self.state.stats}

    # Configuration space

    def config_space(self) -> bytes:
        """Return num_pages and actual."""
        return struct.pack("<II", self.state.num_pages, self.state.actual)

    def write_config(self, offset: int, length: int, value: int) -> None:
        """Take a write to actual; anything else is a fault."""
        shift = 8 * (offset - numbers.ACTUAL)
        if offset < numbers.ACTUAL or offset + length > numbers.CONFIG_LEN:
            self.faults += 1
            return
        mask = (1 << 8 * length) - 1
        self.state.actual = self.state.actual & ~(mask << shift) | (value & mask) << shift

    # Queues

    def serve(self, index: int) -> None:
        """Do what queue *index* is for."""
        role = self._role(index)
        if role is None:
            return
        queue, work = self.queues[index], _TURN_WORK

        def do(chain: Chain) -> bool:
            nonlocal work
            work -= role(queue, chain) + _CHAIN_WORK
            if work <= 0:
                self.again(index)
            return work > 0

        self.serve_each(index, do)

    def _role(self, index: int) -> _Role | None:
        roles: list[_Role] = [self._inflate, self._deflate]
        if self.negotiated(numbers.VIRTIO_BALLOON_F_STATS_VQ):
            roles.append(self._take_stats)
        reporting = self.negotiated(numbers.VIRTIO_BALLOON_F_PAGE_REPORTING)
        if reporting:
            roles.append(self._reported)
        if index < len(roles):
            return roles[index]
        return self._reported if reporting and index == _REPORTING_BY_SPECIFICATION else None

    def _inflate(self, queue: Queue, chain: Chain) -> int:
        length = readable_len(chain)
        count = min(length // numbers.PFN_LEN, _PFNS_MAX)
        self.faults += count * numbers.PFN_LEN != length
        pfns = struct.unpack(f"<{count}I", gather(chain.readable, count * numbers.PFN_LEN))
        ranges = joined(pfns)
        for first, pages in ranges:
            self._discard_ram(first << numbers.PAGE_SHIFT, pages << numbers.PAGE_SHIFT)
        queue.push(chain.head, 0)
        return count + _RANGE_WORK * len(ranges)

    def _deflate(self, queue: Queue, chain: Chain) -> int:
        queue.push(chain.head, 0)
        return 0

    def _take_stats(self, queue: Queue, chain: Chain) -> int:
        self.request_stats()  # a driver that lends a second buffer gets the first back
        count = min(readable_len(chain) // numbers.STAT_LEN, 4 * len(numbers.STATS))
        new = _stat.iter_unpack(gather(chain.readable, count * numbers.STAT_LEN))
        told = {stat.tag: stat.value for stat in self.state.stats}
        told |= {tag: value for tag, value in new if tag in numbers.STATS}
        self.state.stats = [StatState(tag=tag, value=value) for tag, value in sorted(told.items())]
        self._stats_chain = self.queues.index(queue), chain.head
        return count

    def _reported(self, queue: Queue, chain: Chain) -> int:
        # The pages are writable buffers; only whole pages can go.
        for hva, length in chain.writable:
            gpa = self._gpa(hva)
            start = (gpa + PAGE_LEN - 1) & -PAGE_LEN
            self._discard_ram(start, ((gpa + length) & -PAGE_LEN) - start)
        queue.push(chain.head, 0)
        return _RANGE_WORK * len(chain.writable)

    # Memory

    def _discard_ram(self, gpa: int, length: int) -> None:
        """Discard what of a range is RAM; the rest counts as a fault."""
        end, inside = gpa + length, 0
        for start, size in self.memory.ram:
            first, last = max(gpa, start), min(end, start + size)
            if first < last:
                inside += last - first
                self._discard(first, last - first)
        self.faults += inside < length

    def _discard(self, gpa: int, length: int) -> None:
        try:
            gone = self.memory.discard(gpa, length)
        except HostError:  # out of mappings or memory: the guest's page stays, which it must expect
            gone = False
            self.faults += 1
        if gone:
            self.discarded_pages += length // PAGE_LEN
        else:
            self.kept_pages += length // PAGE_LEN

    def _gpa(self, hva: int) -> Gpa:
        for region in self.memory.regions:
            if region.hva <= hva < region.hva + region.length:
                return Gpa(region.gpa + hva - region.hva)
        raise InternalError(f"a buffer at {hva:#x}, which its queue found in RAM, is in no region")

    # Lifecycle

    def connect(self, loop: Loop, lock: threading.Lock) -> None:
        """Take the loop that times statistics. Without the lock."""
        self._loop, self._lock = loop, lock

    def disconnect(self) -> None:
        """Let go of the loop. Without the lock."""
        self.pause()
        self._loop = self._lock = None

    def run(self) -> None:
        """Serve every active queue and start the timer; on the loop's thread."""
        super().run()
        self._running = True
        self._start_timer()

    def pause(self) -> None:
        """Stop the timer. Without the lock; on the loop's thread."""
        self._running = False
        self._timer += 1

    def prepare_save(self) -> None:
        """Put the statistics buffer back into its ring."""
        if self._stats_chain is not None:
            index, _head = self._stats_chain
            self.queues[index].undo_pop()
            self._stats_chain = None

    def _start_timer(self) -> None:
        self._timer += 1
        if self._running and self._loop is not None and self.state.stats_interval_s:
            number = self._timer
            self._loop.call_at(self._clock() + self.state.stats_interval_s * 10**9, lambda: self._tick(number))

    def _tick(self, number: int) -> None:
        """Ask again, from the loop. Without the lock."""
        if self._lock is None or number != self._timer:
            return
        with self._lock:
            self.request_stats()
            self._start_timer()

    def _stopped(self, index: int) -> None:
        if self._stats_chain is not None and self._stats_chain[0] == index:
            self._stats_chain = None

    def _reset(self) -> None:
        self.state.actual = 0
        self.state.stats = []


def fresh_state(
    *, target_pages: int = 0, deflate_on_oom: bool = False, stats_interval_s: int = 0
) -> VirtioBalloonState:
    """Return the state of a new machine's balloon, which should come to hold *target_pages*.

    With *deflate_on_oom* the driver may take pages back before its guest runs out of memory.
    """
    offered = spec.BASE_FEATURES | numbers.VIRTIO_BALLOON_F_STATS_VQ | numbers.VIRTIO_BALLOON_F_PAGE_REPORTING
    if deflate_on_oom:
        offered |= numbers.VIRTIO_BALLOON_F_DEFLATE_ON_OOM
    return checked(
        VirtioBalloonState(
            offered=offered,
            queues=fresh_queues(VirtioBalloon.queue_sizes),
            num_pages=target_pages,
            stats_interval_s=stats_interval_s,
        )
    )


def joined(pfns: Iterable[int]) -> list[tuple[int, int]]:
    """Return page numbers in any order as (first, count), neighbours joined and each page once."""
    ranges: list[tuple[int, int]] = []
    first = following = -1
    for pfn in sorted(pfns):
        if pfn == following:
            following += 1
        elif pfn > following or first < 0:
            if first >= 0:
                ranges.append((first, following - first))
            first, following = pfn, pfn + 1
    if first >= 0:
        ranges.append((first, following - first))
    return ranges
