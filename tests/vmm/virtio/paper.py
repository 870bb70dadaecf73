"""The host of paper, for tests: a kernel without KVM, a worker without a thread, a TAP of lists, memory behind fences.

All of it is deterministic: what happens, happens when the test says so, and on its thread.
"""

import errno
import random
import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from snapkit import host, host_io, host_memory, host_net
from snapkit.errors import HostError
from snapkit.state.interrupt_table import RouteState
from snapkit.units import Gsi, Hva
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.block_backend import Job
from snapkit.vmm.virtio.queue import Queue

GUARD_LEN = 16 << 20


# The kernel


class PaperKernel:
    """What the VM's fd is to the monitor: routes, irqfds, pins and doorbells, with the kernel's own rules."""

    def __init__(self) -> None:
        self.routes: dict[int, tuple[int, int]] = {}
        self.irqfds: dict[int, int] = {}  # eventfd -> GSI
        self.levels: dict[int, int] = {}
        self.doorbells: dict[tuple[int, int, int | None], int] = {}
        self.refusals = 0
        """How many of the next calls that want something fail."""

    def _may_refuse(self, call: str) -> None:
        if self.refusals:
            self.refusals -= 1
            raise HostError(call, errno.ENOSPC)

    def set_gsi_routing(self, routes: Iterable[RouteState]) -> None:
        self._may_refuse("KVM_SET_GSI_ROUTING")
        self.routes = {route.gsi: (route.address, route.data) for route in routes}
        assert self.routes.keys() >= set(self.irqfds.values()), "a route is taken away under an irqfd"

    def irqfd(self, fd: int, gsi: int, *, assign: bool) -> None:
        if assign:
            self._may_refuse("KVM_IRQFD")
            assert gsi in self.routes, "an irqfd comes before its route"
            assert fd not in self.irqfds, "an irqfd is registered twice"
            self.irqfds[fd] = gsi
        else:
            assert self.irqfds.pop(fd) == gsi

    def set_irq_line(self, gsi: Gsi, level: int) -> None:
        self.levels[gsi] = level

    def ioeventfd(
        self, fd: int, gpa: int, length: int, *, datamatch: int | None = None, assign: bool = True, pio: bool = False
    ) -> None:
        key = gpa, length, datamatch
        if not assign:
            assert self.doorbells.pop(key) == fd
        elif any(
            gpa == at
            and (not length or not other or (length == other and (None in {datamatch, value} or datamatch == value)))
            for at, other, value in self.doorbells
        ):
            raise HostError("KVM_IOEVENTFD", errno.EEXIST)
        else:
            self._may_refuse("KVM_IOEVENTFD")
            self.doorbells[key] = fd

    def close(self) -> None:
        """The VM's fd is closed."""

    # The guest

    def rang(self, gpa: int, length: int, value: int) -> bool:
        """Signal the eventfd of a store, if it has one; False when the store is an exit."""
        for (at, wanted, match), fd in self.doorbells.items():
            if at == gpa and wanted in {0, length} and match in {None, value}:
                host.eventfd_signal(fd)
                return True
        return False

    def messages(self, gsi: int) -> int:
        """Take how often the message of *gsi* was sent."""
        return sum(host.eventfd_take(fd) for fd, its in self.irqfds.items() if its == gsi)


class PatientWorker:
    """A disk's worker that works on this thread, when it is told to or waited for."""

    def __init__(self) -> None:
        self.done_fd = -1
        self.waiting: deque[Job] = deque()
        self._finished: list[Job] = []

    def start(self) -> None:
        if self.done_fd < 0:
            self.done_fd = host.eventfd()

    def stop(self) -> None:
        self.drain()
        if self.done_fd >= 0:
            host.close(self.done_fd)
            self.done_fd = -1

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def work(self, jobs: int = 1 << 30) -> None:
        """Do the next *jobs*."""
        while self.waiting and jobs:
            job = self.waiting.popleft()
            job.run()
            self._finished.append(job)
            jobs -= 1
        if self._finished and self.done_fd >= 0:
            host.eventfd_signal(self.done_fd)

    def finished(self) -> Sequence[Job]:
        if self.done_fd >= 0:
            host.eventfd_take(self.done_fd)
        done, self._finished = self._finished, []
        return done

    def drain(self) -> None:
        self.work()

    def cancel(self) -> None:
        self.waiting.clear()
        self._finished.clear()


class PaperTap:
    """A TAP whose packets are bytes in lists; what has no room is cut off, as Linux does."""

    name, offloads, mtu = "paper0", 0x17, 1500

    def __init__(self, fence: "Fence | None" = None) -> None:
        self.fd = host.eventfd()
        self.waiting: deque[bytes] = deque()
        self.sent: list[bytes] = []
        self._fence = fence

    def arrive(self, frame: bytes) -> None:
        self.waiting.append(bytes(12) + frame)
        host.eventfd_signal(self.fd)

    def set_offload(self, offload: int) -> None:
        if offload & ~self.offloads:
            raise HostError("TUNSETOFFLOAD", errno.EINVAL)

    def read(self, vector: "array[int]") -> int:
        if not self.waiting:
            host.eventfd_take(self.fd)
            return -1
        payload, done = self.waiting.popleft(), 0
        for at in range(0, len(vector), 2):
            last = at == len(vector) - 2  # the spare byte, which is the card's own
            if self._fence is not None and not last:
                self._fence.inside(vector[at], vector[at + 1])
            piece = payload[done : done + vector[at + 1]]
            if piece and not last:
                host_memory.copy_in(vector[at], piece)
            done += len(piece)
        return done

    def write(self, spans: Sequence[tuple[int, int]]) -> int:
        frame = b"".join(host_memory.copy_out(address, length) for address, length in spans)
        if frame[:1] == b"\xff":
            raise HostError("writev", errno.EINVAL)  # a header that contradicts itself
        self.sent.append(frame)
        return len(frame)

    def close(self) -> None:
        if self.fd >= 0:
            host.close(self.fd)
            self.fd = -1

    def withdraw(self) -> None:
        self.close()


# Memory


@contextmanager
def guarded_memory(ram: Sequence[tuple[int, int]]) -> Iterator[GuestMemory]:
    """Guest RAM with inaccessible pages on both sides: what leaves it ends the test's process."""
    length = sum(span for _gpa, span in ram)
    real = host_memory.mmap
    whole = real(
        length + 2 * GUARD_LEN, 0, host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS | host_memory.MAP_NORESERVE
    )

    def inside(length: int, prot: int, flags: int) -> Hva:
        return real(length, prot, flags | host_memory.MAP_FIXED, at=whole + GUARD_LEN)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_memory, "mmap", inside)
        memory = GuestMemory(ram)
    try:
        yield memory
    finally:
        memory.close()  # only the guards are left, and somebody else's mapping may be between them by now
        for guard in (whole, Hva(whole + GUARD_LEN + length)):
            host_memory.munmap(guard, GUARD_LEN)


class Fence:
    """Every address that reaches memory through the seam lies in one region of RAM; and how much was done."""

    def __init__(self, memory: GuestMemory) -> None:
        self._regions = [(region.hva, region.hva + region.length) for region in memory.regions]
        self.copied = self.pops = 0

    def inside(self, address: int, length: int) -> None:
        """Assert that a span is RAM."""
        assert length >= 0
        assert any(start <= address and address + length <= end for start, end in self._regions), (
            f"{address:#x}+{length:#x} is outside RAM, {self._regions}"
        )
        self.copied += length

    def _vector(self, vector: bytes) -> None:
        words = struct.unpack(f"={len(vector) // 8}Q", vector)
        for address, length in zip(words[::2], words[1::2], strict=True):
            self.inside(address, length)

    @contextmanager
    def around(self) -> Iterator["Fence"]:
        """Watch the seam in the with block."""
        with pytest.MonkeyPatch.context() as patch:
            for module, name, look in (
                (host_memory, "copy_out", self.inside),
                (host_memory, "copy_in", lambda address, payload: self.inside(address, len(payload))),
                (host_memory, "view", self.inside),
                (host_memory, "madvise", lambda address, length, _advice: self.inside(address, length)),
                (host_io, "put_byte", lambda address, _value: self.inside(address, 1)),
                (host_io, "preadv", lambda _fd, vector, *_: self._vector(vector)),
                (host_io, "pwritev", lambda _fd, vector, *_: self._vector(vector)),
                (host_net, "put8", lambda address, _value: self.inside(address, 1)),
                (host_net, "put16", lambda address, _value: self.inside(address, 2)),
            ):
                patch.setattr(module, name, _looking(look, getattr(module, name)))
            patch.setattr(Queue, "pop", self._counting(Queue.pop))
            patch.setattr(host, "urandom", random.Random(1).randbytes)
            yield self

    def _counting(self, pop: Callable[[Queue], Any]) -> Callable[[Queue], Any]:
        def counted(queue: Queue) -> Any:
            self.pops += 1
            return pop(queue)

        return counted


def _looking(look: Callable[..., None], real: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        look(*arguments)
        return real(*arguments, **named)

    return call
