"""virtio over memory-mapped registers: VIRTIO 1.3, section 4.2, version 2. One interrupt line.

The line is level-triggered and high while InterruptStatus is not 0. Registers are 32 bits wide and answer accesses of
that width only; the configuration space behind them takes any. All else reads as ones and is counted, a register that
is only written included. The generation of the configuration is kept over a reset.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from snapkit.errors import SnapkitError
from snapkit.state.codec import adopted, checked
from snapkit.state.resource_allocator import Pool
from snapkit.state.spec import virtio as spec
from snapkit.state.virtio_mmio import VirtioMmioState
from snapkit.vmm.bus import Bus
from snapkit.vmm.devices.pins import IrqLine
from snapkit.vmm.virtio.device import VirtioDevice
from snapkit.vmm.virtio.transport import Doorbells, Transport

_U32 = 0xFFFF_FFFF
_ADDRESSES = (
    (spec.MMIO_QUEUE_DESC, "desc"),
    (spec.MMIO_QUEUE_DRIVER, "driver"),
    (spec.MMIO_QUEUE_DEVICE, "device"),
)


class Resources(Protocol):
    """What the transport needs of the resource allocator."""

    def claim(self, pool: Pool, start: int, length: int, owner: str) -> None: ...

    def free(self, pool: Pool, start: int, length: int, owner: str) -> None: ...


class VirtioMmioArgs(NamedTuple):
    """What a transport joins. *owner* is its section's name, *line* its pin, level-triggered, wired by the caller."""

    device: VirtioDevice[Any]
    line: IrqLine
    bus: Bus
    resources: Resources
    doorbells: Doorbells
    owner: str


class VirtioMmio(Transport):
    """The registers. Constructing claims their range and the GSI, and puts them on the bus.

    Every method needs the machine's lock.
    """

    kind: ClassVar[str] = "virtio-mmio"

    def __init__(
        self,
        state: VirtioMmioState,
        *,
        device: VirtioDevice[Any],
        line: IrqLine,
        bus: Bus,
        resources: Resources,
        doorbells: Doorbells,
        owner: str,
    ) -> None:
        # Configuration
        self.owner = owner
        self._claims: list[tuple[Pool, int, int]] = []
        # Runtime glue
        self._line, self._bus, self._resources = line, bus, resources
        self._on_bus = False
        # Guest-visible state
        self.state = state
        self._level = bool(state.interrupt_status)  # adopted: the pin had this level before
        super().__init__(device, doorbells)
        self._reads = self._readers()
        self._writes = self._writers()
        try:
            self._claim("mmio32", state.address, spec.MMIO_LEN)
            self._claim("gsi-legacy", state.gsi, 1)
            bus.insert(state.address, spec.MMIO_LEN, self)
        except SnapkitError:
            self.close()
            raise
        self._on_bus = True
        self._bases.append(state.address)

    @classmethod
    def restore(cls, state: VirtioMmioState, args: VirtioMmioArgs) -> Self:
        """Construct the transport that *state* describes, on the bus, its pin not touched.

        Raises ImageError naming the field that is out of bounds, ConfigError when range or GSI is taken.
        """
        return cls(
            adopted(state),
            device=args.device,
            line=args.line,
            bus=args.bus,
            resources=args.resources,
            doorbells=args.doorbells,
            owner=args.owner,
        )

    def save(self) -> VirtioMmioState:
        """Return a detached copy of what the guest can see."""
        return checked(self.state)

    def resync(self) -> None:
        """Drive the pin again after a restore, if its controller forgot the level without that being an edge."""
        if not self._line.edge:
            self._line.set_level(self._level)

    def close(self) -> None:
        """Leave the bus, give range and GSI back, close the doorbells."""
        super().close()
        if self._on_bus:
            self._on_bus = False
            self._bus.remove(self.state.address)
        while self._claims:
            pool, start, length = self._claims.pop()
            self._resources.free(pool, start, length, self.owner)

    # What the base asks

    @property
    def status(self) -> int:
        return self.state.status

    @status.setter
    def status(self, value: int) -> None:
        self.state.status = value

    @property
    def driver_features(self) -> list[int]:
        return self.state.driver_features

    def _forget(self) -> None:
        state = self.state
        state.device_features_sel = state.driver_features_sel = state.queue_sel = 0
        state.driver_features = [0, 0]
        state.interrupt_status = 0
        self._drive_irq()

    def _doorbell(self, base: int, index: int) -> tuple[int, int | None, int]:
        return base + spec.MMIO_QUEUE_NOTIFY, index, 4

    # The bus

    def read(self, offset: int, length: int) -> int:
        """Read a register, or the configuration space; all ones where there is none of that width."""
        if offset >= spec.MMIO_CONFIG:
            return self.device.read_config(offset - spec.MMIO_CONFIG, length)
        reader = self._reads.get(offset) if length == 4 else None
        return reader() if reader is not None else self._fault(length)

    def write(self, offset: int, length: int, value: int) -> None:
        """Write a register, or the configuration space; nothing where there is none of that width."""
        if offset >= spec.MMIO_CONFIG:
            self.device.write_config(offset - spec.MMIO_CONFIG, length, value)
            return
        writer = self._writes.get(offset) if length == 4 else None
        if writer is not None:
            writer(value & _U32)
        else:
            self.faults += 1

    # Interrupt logic

    def queue(self, index: int) -> None:
        """Tell the driver that a queue has used buffers; which one, the line cannot say."""
        self.state.interrupt_status |= spec.INTERRUPT_QUEUE
        self._drive_irq()

    def config(self) -> None:
        """Tell the driver that the configuration space changed."""
        self.state.config_generation = (self.state.config_generation + 1) & _U32
        if self.state.status & spec.STATUS_DRIVER_OK:
            self._tell_config()

    def _tell_config(self) -> None:
        self.state.interrupt_status |= spec.INTERRUPT_CONFIG
        self._drive_irq()

    def _drive_irq(self) -> None:
        level = bool(self.state.interrupt_status)
        if level != self._level:
            self._level = level
            self._line.set_level(level)

    # Registers

    def _write_device_features_sel(self, value: int) -> None:
        self.state.device_features_sel = value

    def _write_driver_features_sel(self, value: int) -> None:
        self.state.driver_features_sel = value

    def _write_driver_features(self, value: int) -> None:
        self.write_driver_word(self.state.driver_features_sel, value)

    def _write_queue_sel(self, value: int) -> None:
        self.state.queue_sel = value

    def _read_queue_size_max(self) -> int:
        queue = self.queue_at(self.state.queue_sel)
        return queue.state.max_size if queue else 0

    def _write_queue_size(self, value: int) -> None:
        self.write_queue_size(self.state.queue_sel, value)

    def _read_queue_ready(self) -> int:
        queue = self.queue_at(self.state.queue_sel)
        return int(queue.state.ready) if queue else 0

    def _write_queue_ready(self, value: int) -> None:
        queue = self.queue_at(self.state.queue_sel)
        if value == 1:
            self.make_queue_ready(self.state.queue_sel)
        elif value or queue is None:
            self.faults += 1
        elif queue.state.ready:
            self.device.reset_queue(self.state.queue_sel)

    def _write_interrupt_ack(self, value: int) -> None:
        self.state.interrupt_status &= ~value
        self._drive_irq()

    def _write_status(self, value: int) -> None:
        self.write_status(value)

    def _write_queue_address(self, name: str, shift: int, value: int) -> None:
        self.write_queue_address(self.state.queue_sel, name, shift, _U32, value)

    def _write_shm_sel(self, value: int) -> None:
        pass  # there is no shared memory region, whichever is selected: length and base read as ones (4.2.2)

    def _write_queue_reset(self, value: int) -> None:
        if value == 1:
            self.reset_queue(self.state.queue_sel)

    # Helpers

    def _claim(self, pool: Pool, start: int, length: int) -> None:
        self._resources.claim(pool, start, length, self.owner)
        self._claims.append((pool, start, length))

    # Tables: one look-up for every access

    def _readers(self) -> dict[int, Callable[[], int]]:
        state, device = self.state, self.device
        constants = {
            spec.MMIO_MAGIC_VALUE: spec.MMIO_MAGIC,
            spec.MMIO_VERSION: spec.MMIO_VERSION_MODERN,
            spec.MMIO_DEVICE_ID: device.type_id,
            spec.MMIO_VENDOR_ID: spec.MMIO_VENDOR,
            spec.MMIO_SHM_LEN: _U32,
            spec.MMIO_SHM_LEN + 4: _U32,
            spec.MMIO_SHM_BASE: _U32,
            spec.MMIO_SHM_BASE + 4: _U32,
            spec.MMIO_QUEUE_RESET: 0,  # a queue's reset is over when its write returns
        }
        return {offset: partial(int, value) for offset, value in constants.items()} | {
            spec.MMIO_DEVICE_FEATURES: lambda: self.offered_word(state.device_features_sel),
            spec.MMIO_QUEUE_SIZE_MAX: self._read_queue_size_max,
            spec.MMIO_QUEUE_READY: self._read_queue_ready,
            spec.MMIO_INTERRUPT_STATUS: lambda: state.interrupt_status,
            spec.MMIO_STATUS: lambda: state.status,
            spec.MMIO_CONFIG_GENERATION: lambda: state.config_generation,
        }

    def _writers(self) -> dict[int, Callable[[int], None]]:
        table: dict[int, Callable[[int], None]] = {
            spec.MMIO_DEVICE_FEATURES_SEL: self._write_device_features_sel,
            spec.MMIO_DRIVER_FEATURES: self._write_driver_features,
            spec.MMIO_DRIVER_FEATURES_SEL: self._write_driver_features_sel,
            spec.MMIO_QUEUE_SEL: self._write_queue_sel,
            spec.MMIO_QUEUE_SIZE: self._write_queue_size,
            spec.MMIO_QUEUE_READY: self._write_queue_ready,
            spec.MMIO_QUEUE_NOTIFY: self.notify,
            spec.MMIO_INTERRUPT_ACK: self._write_interrupt_ack,
            spec.MMIO_STATUS: self._write_status,
            spec.MMIO_SHM_SEL: self._write_shm_sel,
            spec.MMIO_QUEUE_RESET: self._write_queue_reset,
        }
        for at, name in _ADDRESSES:
            table[at] = partial(self._write_queue_address, name, 0)
            table[at + 4] = partial(self._write_queue_address, name, 32)
        return table
