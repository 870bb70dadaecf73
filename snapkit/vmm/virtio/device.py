"""What every virtio device is, whatever carries it: VIRTIO 1.3, chapter 2, less the status register.

A transport owns the status machine and calls `activate`, `reset`, `kick`, `read_config` and `write_config`; the device
answers through the `Interrupt` that the transport bound. A device type subclasses this, names its `kind`, `type_id`
and `queue_sizes`, and writes `serve`, usually by `serve_each`. Those that take chains otherwise loop on their own: a NIC's
turn is measured in bytes, and takes receive buffers only as packets come; a socket device's ends where its answers find
no room, and its receive buffers too wait for packets.

Rules: *state* and its queues are changed in place, never replaced. Work that ends later (on another thread, by a loop
callback) checks `queue.active` under the lock before it touches guest memory, and what `_stopped` is told of must not
be pushed any more: after a reset the same queue may be active again with other rings.

The guest cannot raise: `QueueBroken` ends in `fail`, which stops this device and tells its driver (DEVICE_NEEDS_RESET).
"""

import threading
from collections.abc import Callable
from typing import ClassVar, Generic, Protocol, TypeVar

from snapkit.errors import InternalError
from snapkit.state.codec import checked
from snapkit.state.spec import virtio as spec
from snapkit.state.virtio import QueueState, VirtioState
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.queue import Chain, Queue, QueueBroken

S = TypeVar("S", bound=VirtioState)


class Interrupt(Protocol):
    """How a device reaches its driver. A transport implements it."""

    def queue(self, index: int) -> None:
        """Tell the driver that queue *index* has used buffers (2.9)."""
        ...

    def config(self) -> None:
        """Tell the driver that the configuration space changed."""
        ...

    def needs_reset(self) -> None:
        """Set DEVICE_NEEDS_RESET, and tell the driver if it has said DRIVER_OK (2.1.2)."""
        ...


class _Unbound:
    """Stands in until a transport binds."""

    def queue(self, index: int) -> None:
        pass

    def config(self) -> None:
        pass

    def needs_reset(self) -> None:
        pass


def _not_again(index: int) -> None:
    pass


def fresh_queues(sizes: tuple[int, ...]) -> list[QueueState]:
    """Return the queues of a new device with these maximum sizes."""
    return [QueueState(max_size=size, size=size) for size in sizes]


class VirtioDevice(Generic[S]):
    """Base of the device types. Every method needs the machine's lock unless it says otherwise."""

    kind: ClassVar[str]
    type_id: ClassVar[int]
    queue_sizes: ClassVar[tuple[int, ...]]
    """Maximum sizes of a fresh device's queues; their number is part of the type."""

    def __init__(self, state: S, *, memory: GuestMemory) -> None:
        if len(state.queues) != len(self.queue_sizes):
            raise InternalError(f"{self.kind} has {len(state.queues)} queues, must have {len(self.queue_sizes)}")
        # Runtime glue
        self.memory = memory
        self.interrupt: Interrupt = _Unbound()
        self._ring_doorbell: Callable[[int], None] = _not_again
        self.active = False
        """The driver has said DRIVER_OK, and the device is not broken."""
        self.faults = 0
        self.failure = ""
        """Why it broke, for people."""
        # Guest-visible state
        self.state = state
        self.queues = [Queue(queue, memory) for queue in state.queues]

    def bind(self, interrupt: Interrupt, doorbell: Callable[[int], None] = _not_again) -> None:
        """Take the way to the driver, and what makes queue *index* be kicked again soon."""
        self.interrupt, self._ring_doorbell = interrupt, doorbell

    # Configuration space

    def config_space(self) -> bytes:
        """Return the device-specific configuration as the driver reads it now; the default has none."""
        return b""

    def read_config(self, offset: int, length: int) -> int:
        """Read the configuration space; all ones for an access that leaves it. Total."""
        found = self.config_space()[offset : offset + length] if offset >= 0 else b""
        if len(found) == length:
            return int.from_bytes(found, "little")
        self.faults += 1
        return (1 << 8 * length) - 1

    def write_config(self, offset: int, length: int, value: int) -> None:
        """Take a write to the configuration space; the default has nothing writable. Total."""
        self.faults += 1

    # Driven by the transport

    def negotiated(self, feature: int) -> bool:
        """Return whether the driver accepted *feature*, a mask of one bit."""
        return bool(self.state.acked & feature)

    def accept(self, features: int) -> bool:
        """Take the driver's choice of *features*; False, and nothing is taken, when the device cannot work so (2.2.2)."""
        if features & ~self.state.offered or not features & spec.VIRTIO_F_VERSION_1 or not self._workable(features):
            return False
        self.state.acked = features
        return True

    def activate(self) -> None:
        """Start the queues: the driver said DRIVER_OK, or had done so before a snapshot that is restored now."""
        if self.active or self.state.broken:
            return
        self.active = True
        try:
            for queue in self.queues:
                if queue.state.ready:
                    self._start(queue)
        except QueueBroken as error:
            self.fail(str(error))
            return
        self._activated()

    def enable_queue(self, index: int) -> None:
        """Start queue *index*, which the driver made ready after DRIVER_OK (2.6.1)."""
        if self.active and not self.queues[index].active:
            try:
                self._start(self.queues[index])
            except QueueBroken as error:
                self.fail(f"queue {index}: {error}")

    def reset_queue(self, index: int) -> None:
        """Take queue *index* back from the driver (2.6.1); its State is as fresh."""
        self._stopped(index)
        self.queues[index].reset()

    def reset(self) -> None:
        """Forget the driver: features, rings, and whatever the type adds in `_reset`."""
        self._stop()
        for queue in self.queues:
            queue.reset()
        self.state.acked = 0
        self.state.broken = False
        self.failure = ""
        self._reset()

    def kick(self, index: int) -> None:
        """Serve queue *index*: its doorbell rang, or may have rung unheard."""
        if self.queues[index].active:
            try:
                self.serve(index)
            except QueueBroken as error:
                self.fail(f"queue {index}: {error}")

    def again(self, index: int) -> None:
        """Have queue *index* kicked again, after others had their turn."""
        self._ring_doorbell(index)

    def fail(self, why: str = "") -> None:
        """Stop until the driver resets the device, and tell it."""
        self.failure = why
        self.state.broken = True
        self._stop()
        self.interrupt.needs_reset()

    # Driven by the machine

    def connect(self, loop: Loop, lock: threading.Lock) -> None:
        """Make what host-side work needs: threads, parked; watches on host fds. Without the lock. Default: nothing."""

    def disconnect(self) -> None:
        """Undo `connect`; harmless twice, and without it. Without the lock."""

    def resync(self) -> None:
        """Re-derive what is neither state nor made by `activate`. Default: nothing."""

    def run(self) -> None:
        """Serve every active queue that is not idle, at each resume: doorbells rung before a snapshot are no state."""
        for index, queue in enumerate(self.queues):
            if not queue.idle():
                self.kick(index)

    def pause(self) -> None:
        """Stop reading host fds, let host-side work end. Without the lock. Default: nothing."""

    def prepare_save(self) -> None:
        """Bring what is in flight into guest memory or back into the rings, before any state is read. Default: nothing."""

    def save(self) -> S:
        """Return a detached copy of the State."""
        return checked(self.state)

    def close(self) -> None:
        """Let go of guest memory, and of the host end where the type has one."""
        for queue in self.queues:
            queue.stop()

    # Written by the type

    def serve(self, index: int) -> None:
        """Serve the chains of queue *index*, which is active. May raise QueueBroken."""
        raise NotImplementedError

    def serve_each(self, index: int, do: Callable[[Chain], bool]) -> None:
        """Give *do* every chain of queue *index*, for one turn that is bounded and loses no wake-up.

        *do* returns each chain by `Queue.push`, now or later, or takes it back by `Queue.undo_pop`. It ends the turn by
        returning False, and then sees to it that there is another: by `again`, or once what it waits for is there.
        """
        queue = self.queues[index]
        queue.disarm()
        for _ in range(queue.state.size):
            if (chain := queue.pop()) is None:
                if not queue.arm():
                    break
            elif not do(chain):
                break
        else:
            self.again(index)  # a driver that adds without end is served by turns
        if queue.should_notify():
            self.interrupt.queue(index)

    def _workable(self, features: int) -> bool:
        """Return whether *features*, all of them offered, have what each of them requires."""
        return True

    def _activated(self) -> None:
        """Follow `activate`."""

    def _stopped(self, index: int) -> None:
        """Forget what is in flight on queue *index*: it ends now, by reset or by failure, its State still as it was."""

    def _reset(self) -> None:
        """Put what the type's State adds back to how it is without a driver."""

    # Helpers

    def _start(self, queue: Queue) -> None:
        acked = self.state.acked
        queue.start(event_idx=bool(acked & spec.VIRTIO_F_EVENT_IDX), indirect=bool(acked & spec.VIRTIO_F_INDIRECT_DESC))

    def _stop(self) -> None:
        self.active = False
        for index, queue in enumerate(self.queues):
            if queue.active:
                self._stopped(index)
                queue.stop()
