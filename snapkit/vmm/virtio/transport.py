"""What both transports share: the status machine, the registers of a queue, doorbells. VIRTIO 1.3, sections 2.1, 3.1.

The status machine takes a step only after the ones before it: ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK. Several in
one write are taken in that order. A step out of order, a bit taken back other than by writing 0, FEATURES_OK for
features that the device does not accept: the status stays, the fault is counted, and the driver reads what it got.
From FEATURES_OK on the features stay; while a queue is ready, so do its size and places.

A doorbell is an eventfd per queue, which KVM signals without an exit once the device runs (`wire`). Where KVM cannot,
and before, the store comes to the transport as any other, which signals the same eventfd: only slower. The eventfds are
made here and watched by whoever owns the loop (`doorbell_fds`).
"""

from typing import Any, Protocol

from snapkit import host
from snapkit.errors import HostError, InternalError
from snapkit.state.spec import virtio as spec
from snapkit.vmm.virtio.device import VirtioDevice
from snapkit.vmm.virtio.queue import Queue


class Doorbells(Protocol):
    """Guest stores that become eventfd signals without an exit. Both raise HostError."""

    def add(self, gpa: int, fd: int, *, datamatch: int | None, length: int) -> None:
        """Signal *fd* on a store at *gpa* of *length* bytes (0: any) and of the value *datamatch* (None: any)."""
        ...

    def remove(self, gpa: int, fd: int, *, datamatch: int | None, length: int) -> None:
        """Take the same back."""
        ...


class Transport:
    """Base of both. Every method needs the machine's lock."""

    def __init__(self, device: VirtioDevice[Any], doorbells: Doorbells) -> None:
        # Runtime glue
        self.device = device
        self.faults = 0
        self._doorbells = doorbells
        self._bases: list[int] = []  # where the registers are decoded; two while they move
        self._wired = False
        self._fds: list[int] = []
        try:
            for _ in device.queues:
                self._fds.append(host.eventfd())
        except BaseException:
            self._close_fds()
            raise
        device.bind(self, self.notify)

    # Said by the transport that this is

    @property
    def status(self) -> int:
        """The device status register."""
        raise NotImplementedError

    @status.setter
    def status(self, value: int) -> None:
        raise NotImplementedError

    @property
    def driver_features(self) -> list[int]:
        """The features that the driver wrote, as two words."""
        raise NotImplementedError

    def queue(self, index: int) -> None:
        """Tell the driver that queue *index* has used buffers."""
        raise NotImplementedError

    def config(self) -> None:
        """Tell the driver that the configuration space changed."""
        raise NotImplementedError

    def _tell_config(self) -> None:
        """Send the interrupt of a configuration change."""
        raise NotImplementedError

    def _forget(self) -> None:
        """Put the transport's own registers back to how they are after reset, the status excepted."""
        raise NotImplementedError

    def _doorbell(self, base: int, index: int) -> tuple[int, int | None, int]:
        """Return address, value and length of the store that rings for queue *index*, registers being at *base*."""
        raise NotImplementedError

    # Stages

    def activate(self) -> None:
        """Start the device of a restored machine where its driver had said DRIVER_OK."""
        if self.status & spec.STATUS_DRIVER_OK and not self.device.state.broken:
            self.device.activate()

    def wire(self) -> None:
        """Have KVM ring the doorbells, if the driver has said DRIVER_OK. Raises HostError; nothing is wired then."""
        if self._wired or not self.status & spec.STATUS_DRIVER_OK:
            return
        done: list[int] = []
        try:
            for base in self._bases:
                self._ring_at(base)
                done.append(base)
        except HostError:
            for base in done:
                self._silence(base)
            raise
        self._wired = True

    def unwire(self) -> None:
        """Take `wire` back."""
        if self._wired:
            self._wired = False
            for base in self._bases:
                self._silence(base)

    def mapped(self, base: int) -> None:
        """The registers are decoded at *base* now. Raises HostError, having changed nothing."""
        if self._wired:
            self._ring_at(base)
        self._bases.append(base)

    def unmapped(self, base: int) -> None:
        """The registers are no longer decoded at *base*."""
        if base in self._bases:
            self._bases.remove(base)
            if self._wired:
                self._silence(base)

    def close(self) -> None:
        """Unwire, and give the eventfds back."""
        self.unwire()
        self._close_fds()

    def doorbell_fds(self) -> list[int]:
        """Return an eventfd per queue: when it is readable, take it and kick the device's queue of that index."""
        return list(self._fds)

    # Interrupt, the part that does not depend on how it is sent

    def needs_reset(self) -> None:
        """Tell the driver that the device is broken (2.1.2)."""
        self.status |= spec.STATUS_DEVICE_NEEDS_RESET
        if self.status & spec.STATUS_DRIVER_OK:
            self._tell_config()

    # Registers

    def notify(self, index: int) -> None:
        """Ring the doorbell of queue *index*: the store came here, or the device wants another turn."""
        if index < len(self._fds):
            host.eventfd_signal(self._fds[index])
        else:
            self.faults += 1

    def write_status(self, value: int) -> None:
        """Take a write of the device status; 0 resets."""
        if not value:
            self.reset()
            return
        status = self.status
        if status & ~value & spec.STATUS_DRIVERS or value & ~spec.STATUS_BITS:
            self.faults += 1  # a bit taken back, or one that means nothing; what else the write says counts
        new = value & ~status
        for step, before in spec.STATUS_STEPS:
            if not new & step:
                continue
            if before & ~status or (step == spec.STATUS_FEATURES_OK and not self._features_taken()):
                self.faults += 1
            else:
                status |= step
        began = status & ~self.status & spec.STATUS_DRIVER_OK
        self.status = status
        if began:
            self.device.activate()
            try:
                self.wire()
            except HostError:
                self.faults += 1  # doorbells then come by way of an exit

    def reset(self) -> None:
        """Reset device and transport (2.4)."""
        self.unwire()
        self.device.reset()
        self._forget()
        self.status = 0

    def _features_taken(self) -> bool:
        low, high = self.driver_features
        return self.device.accept(low | high << 32)

    def offered_word(self, select: int) -> int:
        """Return 32 bits of the offered features."""
        return (self.device.state.offered >> 32 * select) & 0xFFFF_FFFF if select < 2 else 0

    def driver_word(self, select: int) -> int:
        """Return 32 bits of what the driver wrote."""
        return self.driver_features[select] if select < 2 else 0

    def write_driver_word(self, select: int, value: int) -> None:
        """Take 32 bits of the driver's features, until FEATURES_OK."""
        if select < 2 and not self.status & spec.STATUS_FEATURES_OK:
            self.driver_features[select] = value
        elif value:  # a driver may well clear words of features that nobody has
            self.faults += 1

    def queue_at(self, index: int) -> Queue | None:
        """Return the queue that is selected, None where there is none."""
        return self.device.queues[index] if index < len(self.device.queues) else None

    def write_queue_size(self, index: int, value: int) -> None:
        """Take a queue size: a power of two within the maximum, before the queue is ready."""
        queue = self.queue_at(index)
        if queue is None or queue.state.ready or not 0 < value <= queue.state.max_size or value & (value - 1):
            self.faults += 1
        else:
            queue.state.size = value

    def write_queue_address(self, index: int, name: str, shift: int, mask: int, value: int) -> None:
        """Take the bits *mask*, shifted by *shift*, of one of the three addresses, before the queue is ready."""
        queue = self.queue_at(index)
        if queue is None or queue.state.ready:
            self.faults += 1
        else:
            old: int = getattr(queue.state, name)
            setattr(queue.state, name, (old & ~(mask << shift)) | (value & mask) << shift)

    def make_queue_ready(self, index: int) -> None:
        """Enable queue *index*: it is served from DRIVER_OK on, or at once after that."""
        queue = self.queue_at(index)
        if queue is None or queue.state.ready:
            self.faults += 1
            return
        queue.state.ready = True
        self.device.enable_queue(index)

    def reset_queue(self, index: int) -> bool:
        """Take queue *index* back from the driver (2.6.1); False where that was not negotiated or there is none."""
        if self.queue_at(index) is None or not self.device.negotiated(spec.VIRTIO_F_RING_RESET):
            self.faults += 1
            return False
        self.device.reset_queue(index)
        return True

    # Helpers

    def _fault(self, length: int) -> int:
        """Count an access that makes no sense; what it reads."""
        self.faults += 1
        return (1 << 8 * length) - 1

    def _ring_at(self, base: int) -> None:
        done = 0
        try:
            for index, fd in enumerate(self._fds):
                gpa, value, length = self._doorbell(base, index)
                self._doorbells.add(gpa, fd, datamatch=value, length=length)
                done += 1
        except HostError:
            self._silence(base, done)
            raise

    def _silence(self, base: int, count: int | None = None) -> None:
        for index, fd in enumerate(self._fds[:count]):
            gpa, value, length = self._doorbell(base, index)
            try:
                self._doorbells.remove(gpa, fd, datamatch=value, length=length)
            except HostError:
                self.faults += 1  # a spurious kick at worst, and gone when the eventfd is closed

    def _close_fds(self) -> None:
        for fd in self._fds:
            host.close(fd)
        self._fds.clear()


def require_queues(what: str, count: int, device: VirtioDevice[Any]) -> None:
    """Raise InternalError unless a transport's State tells of as many queues as its device has."""
    if count != len(device.queues):
        raise InternalError(f"{what} tells of {count} queues, {device.kind} has {len(device.queues)}")
