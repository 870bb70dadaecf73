"""virtio over PCI: VIRTIO 1.3, section 4.1. The registers behind BAR 0 of a function, and its virtio capabilities.

Where they are is `pci_layout`. Vectors are queues and one. Interrupts go by queue *index*: which vector that is, the
driver says. There is no INTx pin: a driver without MSI-X finds its causes in the ISR status.

Surprises:

- Registers answer accesses of their own width only, the three 64-bit addresses also those of either half (4.1.3.1).
  All else reads as ones and is counted.
- The fifth capability is a window (4.1.4.9): the guest writes place and width into it, and an access to its data is an
  access to BAR 0, whether the BAR is decoded or not. An access of any width there moves as many bytes as the window says.
- The generation of the configuration is kept over a reset: a driver that read across one must see that.
"""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from snapkit.errors import InternalError
from snapkit.state.codec import adopted, checked
from snapkit.state.pci_function import find_capability, register
from snapkit.state.spec import msix as msix_spec
from snapkit.state.spec import pci
from snapkit.state.spec import virtio as spec
from snapkit.state.spec.msix import MessageControl
from snapkit.state.virtio_pci import NO_VECTOR, VirtioPciState
from snapkit.vmm.pci.pci_function import PciFunction
from snapkit.vmm.virtio.device import VirtioDevice
from snapkit.vmm.virtio.pci_layout import (
    BAR,
    BAR_LEN,
    COMMON,
    DEVICE,
    ISR,
    MSIX_PBA,
    MSIX_TABLE,
    NOTIFY,
    NOTIFY_MULTIPLIER,
    REGION_LEN,
    window,
)
from snapkit.vmm.virtio.transport import Doorbells, Transport, require_queues

_U32 = 0xFFFF_FFFF
_ADDRESSES = (
    (spec.COMMON_QUEUE_DESC, "desc"),
    (spec.COMMON_QUEUE_DRIVER, "driver"),
    (spec.COMMON_QUEUE_DEVICE, "device"),
)


class Msix(Protocol):
    """What the transport needs of MSI-X."""

    def trigger(self, number: int) -> None: ...

    def read_table(self, offset: int, length: int) -> int: ...

    def write_table(self, offset: int, length: int, value: int) -> None: ...

    def read_pba(self, offset: int, length: int) -> int: ...


class VirtioPciArgs(NamedTuple):
    """What a transport joins: the device, its function, its vectors, and who makes stores into signals."""

    device: VirtioDevice[Any]
    function: PciFunction
    msix: Msix
    doorbells: Doorbells


class VirtioPci(Transport):
    """The target of BAR 0. Every method needs the machine's lock."""

    kind: ClassVar[str] = "virtio-pci"

    def __init__(
        self,
        state: VirtioPciState,
        *,
        device: VirtioDevice[Any],
        function: PciFunction,
        msix: Msix,
        doorbells: Doorbells,
    ) -> None:
        require_queues(self.kind, len(state.queue_msix_vectors), device)
        msix_at = find_capability(function.state.config, pci.CAP_ID_MSIX)
        if msix_at is None:
            raise InternalError(f"{function.owner} has no MSI-X capability, {self.kind} needs one")
        # Configuration
        self._vectors = len(device.queues) + 1
        self._msix_control_at = msix_at + msix_spec.MESSAGE_CONTROL
        self._window_at = window(function.state.config)
        # Runtime glue
        self._function, self._msix = function, msix
        # Guest-visible state
        self.state = state
        super().__init__(device, doorbells)
        try:
            function.attach(BAR, self)
            base = function.decoded(BAR)
            if base is not None:
                self._bases.append(base)
            self._open_window()
        except BaseException:
            self._close_fds()
            raise

    @classmethod
    def restore(cls, state: VirtioPciState, args: VirtioPciArgs) -> Self:
        """Construct the transport that *state* describes, behind its function's BAR, inert.

        Raises ImageError naming the field that is out of bounds.
        """
        return cls(adopted(state), device=args.device, function=args.function, msix=args.msix, doorbells=args.doorbells)

    def save(self) -> VirtioPciState:
        """Return a detached copy of what the guest can see."""
        return checked(self.state)

    # What the base asks

    @property
    def status(self) -> int:
        return self.state.device_status

    @status.setter
    def status(self, value: int) -> None:
        self.state.device_status = value

    @property
    def driver_features(self) -> list[int]:
        return self.state.driver_features

    def _forget(self) -> None:
        state = self.state
        state.device_feature_select = state.driver_feature_select = state.queue_select = 0
        state.driver_features = [0, 0]
        state.config_msix_vector = NO_VECTOR
        state.queue_msix_vectors = [NO_VECTOR] * len(state.queue_msix_vectors)
        state.isr_status = 0

    def _doorbell(self, base: int, index: int) -> tuple[int, int | None, int]:
        return base + NOTIFY + NOTIFY_MULTIPLIER * index, None, 0

    # BAR 0

    def read(self, offset: int, length: int) -> int:
        """Read a register; all ones where there is none of that width."""
        reader = self._reads.get((offset, length))
        if reader is not None:
            return reader()
        if DEVICE <= offset < DEVICE + REGION_LEN:
            return self.device.read_config(offset - DEVICE, length)
        if MSIX_PBA <= offset < BAR_LEN:
            return self._msix.read_pba(offset - MSIX_PBA, length)
        if MSIX_TABLE <= offset < MSIX_PBA:
            return self._msix.read_table(offset - MSIX_TABLE, length)
        return self._fault(length)

    def write(self, offset: int, length: int, value: int) -> None:
        """Write a register; nothing where there is none of that width."""
        writer = self._writes.get((offset, length))
        if writer is not None:
            writer(value)
        elif DEVICE <= offset < DEVICE + REGION_LEN:
            self.device.write_config(offset - DEVICE, length, value)
        elif MSIX_TABLE <= offset < MSIX_PBA:
            self._msix.write_table(offset - MSIX_TABLE, length, value)
        else:
            self.faults += 1

    # Interrupt logic

    def queue(self, index: int) -> None:
        """Tell the driver that queue *index* has used buffers."""
        if self._function.state.config[self._msix_control_at + 1] & _ENABLE_BYTE:
            vector = self.state.queue_msix_vectors[index]
            if vector != NO_VECTOR:
                self._msix.trigger(vector)
        else:
            self.state.isr_status |= spec.INTERRUPT_QUEUE

    def config(self) -> None:
        """Tell the driver that the configuration space changed."""
        self.state.config_generation = (self.state.config_generation + 1) & 0xFF
        if self.state.device_status & spec.STATUS_DRIVER_OK:
            self._tell_config()

    def _tell_config(self) -> None:
        self.state.isr_status |= spec.INTERRUPT_CONFIG
        vector = self.state.config_msix_vector
        if vector != NO_VECTOR and self._function.state.config[self._msix_control_at + 1] & _ENABLE_BYTE:
            self._msix.trigger(vector)

    # Registers of the common configuration, and ISR

    def _read_isr(self) -> int:
        value, self.state.isr_status = self.state.isr_status, 0
        return value

    def _write_device_feature_select(self, value: int) -> None:
        self.state.device_feature_select = value & _U32

    def _write_driver_feature_select(self, value: int) -> None:
        self.state.driver_feature_select = value & _U32

    def _write_driver_feature(self, value: int) -> None:
        self.write_driver_word(self.state.driver_feature_select, value & _U32)

    def _write_config_vector(self, value: int) -> None:
        self.state.config_msix_vector = self._vector(value & 0xFFFF)

    def _write_status(self, value: int) -> None:
        self.write_status(value & 0xFF)

    def _write_queue_select(self, value: int) -> None:
        self.state.queue_select = value & 0xFFFF

    def _read_queue_size(self) -> int:
        queue = self.queue_at(self.state.queue_select)
        return queue.state.size if queue else 0

    def _write_queue_size(self, value: int) -> None:
        self.write_queue_size(self.state.queue_select, value & 0xFFFF)

    def _read_queue_vector(self) -> int:
        vectors, index = self.state.queue_msix_vectors, self.state.queue_select
        return vectors[index] if index < len(vectors) else NO_VECTOR

    def _write_queue_vector(self, value: int) -> None:
        index = self.state.queue_select
        if index < len(self.state.queue_msix_vectors):
            self.state.queue_msix_vectors[index] = self._vector(value & 0xFFFF)
        else:
            self.faults += 1

    def _read_queue_enable(self) -> int:
        queue = self.queue_at(self.state.queue_select)
        return int(queue.state.ready) if queue else 0

    def _write_queue_enable(self, value: int) -> None:
        if value & 0xFFFF == 1:
            self.make_queue_ready(self.state.queue_select)
        else:
            self.faults += 1  # 4.1.4.3.2: the driver writes no 0

    def _read_queue_notify_off(self) -> int:
        index = self.state.queue_select
        return index if index < len(self.device.queues) else 0

    def _read_queue_address(self, name: str, shift: int, mask: int) -> int:
        queue = self.queue_at(self.state.queue_select)
        address: int = getattr(queue.state, name) if queue else 0
        return (address >> shift) & mask

    def _write_queue_address(self, name: str, shift: int, mask: int, value: int) -> None:
        self.write_queue_address(self.state.queue_select, name, shift, mask, value)

    def _write_queue_reset(self, value: int) -> None:
        index = self.state.queue_select
        if value & 0xFFFF == 1 and self.reset_queue(index):
            self.state.queue_msix_vectors[index] = NO_VECTOR

    def _vector(self, value: int) -> int:
        if value < self._vectors or value == NO_VECTOR:
            return value
        self.faults += 1
        return NO_VECTOR

    # The window of VIRTIO_PCI_CAP_PCI_CFG

    def _open_window(self) -> None:
        at, function = self._window_at, self._function
        if at is None:
            return
        function.allow_writes(at, _WINDOW_LEN, _WINDOW_WRITABLE)
        function.on_config_read(at + spec.PCI_CAP_DATA, 4, self._read_window)
        function.on_config_write(at + spec.PCI_CAP_DATA, 4, self._write_window)

    def _windowed(self, at: int) -> tuple[int, int] | None:
        """Return offset and width of the access that the window stands for, None when it is out of order."""
        config = self._function.state.config
        offset = register(config, at + spec.PCI_CAP_OFFSET, 4)
        length = register(config, at + spec.PCI_CAP_LENGTH, 4)
        fine = length in {1, 2, 4} and not offset % length and offset + length <= BAR_LEN
        return (offset, length) if fine and config[at + spec.PCI_CAP_BAR] == BAR else None

    def _read_window(self, offset: int, length: int) -> int:
        place = self._windowed(self._window_at or 0)
        if place is None:
            return self._fault(length)
        return self.read(*place) >> 8 * offset

    def _write_window(self, offset: int, length: int, value: int) -> None:
        at = self._window_at or 0
        place = self._windowed(at)
        if place is None:
            self.faults += 1
            return
        data = register(self._function.state.config, at + spec.PCI_CAP_DATA, 4)  # what was written, and is stored
        self.write(*place, data & ((1 << 8 * place[1]) - 1))

    # Tables: one look-up for every access; made at the first, which a restored guest may never need

    @cached_property
    def _reads(self) -> dict[tuple[int, int], Callable[[], int]]:
        state = self.state
        table: dict[tuple[int, int], Callable[[], int]] = {
            (COMMON + spec.COMMON_DEVICE_FEATURE_SELECT, 4): lambda: state.device_feature_select,
            (COMMON + spec.COMMON_DEVICE_FEATURE, 4): lambda: self.offered_word(state.device_feature_select),
            (COMMON + spec.COMMON_DRIVER_FEATURE_SELECT, 4): lambda: state.driver_feature_select,
            (COMMON + spec.COMMON_DRIVER_FEATURE, 4): lambda: self.driver_word(state.driver_feature_select),
            (COMMON + spec.COMMON_CONFIG_MSIX_VECTOR, 2): lambda: state.config_msix_vector,
            (COMMON + spec.COMMON_NUM_QUEUES, 2): lambda: len(self.device.queues),
            (COMMON + spec.COMMON_DEVICE_STATUS, 1): lambda: state.device_status,
            (COMMON + spec.COMMON_CONFIG_GENERATION, 1): lambda: state.config_generation,
            (COMMON + spec.COMMON_QUEUE_SELECT, 2): lambda: state.queue_select,
            (COMMON + spec.COMMON_QUEUE_SIZE, 2): self._read_queue_size,
            (COMMON + spec.COMMON_QUEUE_MSIX_VECTOR, 2): self._read_queue_vector,
            (COMMON + spec.COMMON_QUEUE_ENABLE, 2): self._read_queue_enable,
            (COMMON + spec.COMMON_QUEUE_NOTIFY_OFF, 2): self._read_queue_notify_off,
            (COMMON + spec.COMMON_QUEUE_NOTIF_CONFIG_DATA, 2): _zero,  # NOTIF_CONFIG_DATA is not offered
            (COMMON + spec.COMMON_QUEUE_RESET, 2): _zero,  # a queue's reset is over when its write returns
            (COMMON + spec.COMMON_ADMIN_QUEUE_INDEX, 2): _zero,  # ADMIN_VQ is not offered
            (COMMON + spec.COMMON_ADMIN_QUEUE_NUM, 2): _zero,
            (ISR, 1): self._read_isr,
        }
        for at, name in _ADDRESSES:
            table[COMMON + at, 4] = partial(self._read_queue_address, name, 0, _U32)
            table[COMMON + at + 4, 4] = partial(self._read_queue_address, name, 32, _U32)
            table[COMMON + at, 8] = partial(self._read_queue_address, name, 0, (1 << 64) - 1)
        return table

    @cached_property
    def _writes(self) -> dict[tuple[int, int], Callable[[int], None]]:
        table: dict[tuple[int, int], Callable[[int], None]] = {
            (COMMON + spec.COMMON_DEVICE_FEATURE_SELECT, 4): self._write_device_feature_select,
            (COMMON + spec.COMMON_DRIVER_FEATURE_SELECT, 4): self._write_driver_feature_select,
            (COMMON + spec.COMMON_DRIVER_FEATURE, 4): self._write_driver_feature,
            (COMMON + spec.COMMON_CONFIG_MSIX_VECTOR, 2): self._write_config_vector,
            (COMMON + spec.COMMON_DEVICE_STATUS, 1): self._write_status,
            (COMMON + spec.COMMON_QUEUE_SELECT, 2): self._write_queue_select,
            (COMMON + spec.COMMON_QUEUE_SIZE, 2): self._write_queue_size,
            (COMMON + spec.COMMON_QUEUE_MSIX_VECTOR, 2): self._write_queue_vector,
            (COMMON + spec.COMMON_QUEUE_ENABLE, 2): self._write_queue_enable,
            (COMMON + spec.COMMON_QUEUE_RESET, 2): self._write_queue_reset,
        }
        for at, name in _ADDRESSES:
            table[COMMON + at, 4] = partial(self._write_queue_address, name, 0, _U32)
            table[COMMON + at + 4, 4] = partial(self._write_queue_address, name, 32, _U32)
            table[COMMON + at, 8] = partial(self._write_queue_address, name, 0, (1 << 64) - 1)
        for index in range(len(self.device.queues)):
            for length in (1, 2, 4):
                table[NOTIFY + NOTIFY_MULTIPLIER * index, length] = partial(self._write_notify, index)
        return table

    def _write_notify(self, index: int, value: int) -> None:
        self.notify(index)


_ENABLE_BYTE = MessageControl.ENABLE >> 8
_WINDOW_LEN = spec.PCI_CAP_DATA + 4
_WINDOW_WRITABLE = 0xFF << 8 * spec.PCI_CAP_BAR | sum(
    _U32 << 8 * offset for offset in (spec.PCI_CAP_OFFSET, spec.PCI_CAP_LENGTH, spec.PCI_CAP_DATA)
)


def _zero() -> int:
    return 0
