"""A driver's view of both transports, for tests: the writes that bring a device up as plain data, and what it reads.

registers = PciRegisters(access, slot=1, queues=1)        # or MmioRegisters(access, base, queues=1)
for step in registers.steps([driver], features):          # one register write each, named
    registers.do(step)
registers.notify(0)

*access* is the guest: ``read(gpa, length)`` and ``write(gpa, length, value)``. Numbers are declared again, from VIRTIO 1.3
sections 4.1 and 4.2 and the PCI Local Bus Specification, so that a slip in the monitor's own tables cannot hide.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from tests.vmm.virtio.driver import Driver

ECAM = 0xEEC0_0000
COMMAND, BAR0, CAPABILITIES = 0x04, 0x10, 0x34
MEMORY, BUS_MASTER = 0x2, 0x4
MSI_ADDRESS = 0xFEE0_0000
ISR, CONFIG, NOTIFY, TABLE, PBA = 0x2000, 0x4000, 0x6000, 0x8000, 0x4_8000
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
VERSION_1 = 1 << 32


class Access(Protocol):
    """The guest that does what the driver wants."""

    def read(self, gpa: int, length: int) -> int: ...

    def write(self, gpa: int, length: int, value: int) -> None: ...


class Write(NamedTuple):
    """One register write of the initialisation."""

    name: str
    gpa: int
    length: int
    value: int


class Registers:
    """What both have. *queues* is how many the device has."""

    def __init__(self, access: Access, queues: int) -> None:
        self.access, self.queues = access, queues

    def steps(self, drivers: Sequence[Driver], features: int = 0) -> list[Write]:
        """Give what a driver writes from power-on to DRIVER_OK (3.1.1), for *features* on top of VERSION_1."""
        wanted = features | VERSION_1
        listed = [
            *self.enable_steps(),
            self.step_status("acknowledge", ACKNOWLEDGE),
            self.step_status("driver", ACKNOWLEDGE | DRIVER),
            *self.choose_steps(wanted),
            self.step_status("features-ok", ACKNOWLEDGE | DRIVER | FEATURES_OK),
            *self._interrupts(),
        ]
        for index, driver in enumerate(drivers):
            listed += self.queue_steps(index, driver)
        return [*listed, self.step_status("driver-ok", ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)]

    def do(self, step: Write) -> None:
        self.access.write(step.gpa, step.length, step.value)

    def start(self, drivers: Sequence[Driver], features: int = 0) -> None:
        """Bring the device up."""
        for step in self.steps(drivers, features):
            self.do(step)

    def reset(self) -> None:
        self.do(self.step_status("reset", 0))

    def step_status(self, name: str, value: int) -> Write:
        raise NotImplementedError

    def queue_steps(self, index: int, driver: Driver) -> Iterator[Write]:
        raise NotImplementedError

    def enable_steps(self) -> Iterator[Write]:
        raise NotImplementedError

    def choose_steps(self, features: int) -> Iterator[Write]:
        raise NotImplementedError

    def _interrupts(self) -> Iterator[Write]:
        yield from ()

    def status(self) -> int:
        raise NotImplementedError

    def notify(self, index: int) -> None:
        raise NotImplementedError

    def config(self, offset: int, length: int) -> int:
        """Read the device's configuration space."""
        return self.access.read(self.config_gpa + offset, length)

    def write_config(self, offset: int, length: int, value: int) -> None:
        self.access.write(self.config_gpa + offset, length, value)

    @property
    def config_gpa(self) -> int:
        raise NotImplementedError

    def offered(self) -> int:
        raise NotImplementedError

    def acknowledge(self) -> int:
        """Read why it interrupted, and have the interrupt go."""
        raise NotImplementedError

    def reset_queue(self, index: int) -> None:
        """Take queue *index* back."""
        raise NotImplementedError


class MmioRegisters(Registers):
    """Those at *base*."""

    def __init__(self, access: Access, base: int, queues: int) -> None:
        super().__init__(access, queues)
        self.base = base

    def _write(self, name: str, offset: int, value: int) -> Write:
        return Write(name, self.base + offset, 4, value & 0xFFFF_FFFF)

    def step_status(self, name: str, value: int) -> Write:
        return self._write(name, 0x70, value)

    def enable_steps(self) -> Iterator[Write]:
        yield self.step_status("reset", 0)

    def choose_steps(self, features: int) -> Iterator[Write]:
        for word in (0, 1):
            yield self._write(f"select-features-{word}", 0x24, word)
            yield self._write(f"features-{word}", 0x20, features >> 32 * word)

    def queue_steps(self, index: int, driver: Driver) -> Iterator[Write]:
        queue = f"queue-{index}"
        yield self._write(f"{queue}-select", 0x30, index)
        yield self._write(f"{queue}-size", 0x38, driver.size)
        for name, offset, gpa in (
            ("desc", 0x80, driver.desc),
            ("avail", 0x90, driver.avail),
            ("used", 0xA0, driver.ring),
        ):
            yield self._write(f"{queue}-{name}-low", offset, gpa)
            yield self._write(f"{queue}-{name}-high", offset + 4, gpa >> 32)
        yield self._write(f"{queue}-ready", 0x44, 1)

    def status(self) -> int:
        return self.access.read(self.base + 0x70, 4)

    def notify(self, index: int) -> None:
        self.access.write(self.base + 0x50, 4, index)

    @property
    def config_gpa(self) -> int:
        return self.base + 0x100

    def offered(self) -> int:
        found = 0
        for word in (0, 1):
            self.access.write(self.base + 0x14, 4, word)
            found |= self.access.read(self.base + 0x10, 4) << 32 * word
        return found

    def acknowledge(self) -> int:
        cause = self.access.read(self.base + 0x60, 4)
        self.access.write(self.base + 0x64, 4, cause)
        return cause

    def reset_queue(self, index: int) -> None:
        self.access.write(self.base + 0x30, 4, index)
        self.access.write(self.base + 0x44, 4, 0)


class PciRegisters(Registers):
    """Those of the function in *slot*, whose BAR is at *bar*, or where its register says when this is made."""

    def __init__(
        self, access: Access, slot: int, queues: int, *, bar: int | None = None, first_vector: int = 0x40
    ) -> None:
        super().__init__(access, queues)
        self.function, self.first_vector = ECAM + (slot << 15), first_vector
        if bar is None:
            bar = access.read(self.function + BAR0, 4) & ~0xF | access.read(self.function + BAR0 + 4, 4) << 32
        self.bar = bar
        self.msix = self._capability(0x11)

    def _capability(self, wanted: int) -> int:
        at = self.access.read(self.function + CAPABILITIES, 1)
        while at:
            if self.access.read(self.function + at, 1) == wanted:
                return at
            at = self.access.read(self.function + at + 1, 1)
        raise AssertionError(f"no capability {wanted:#x}")

    def _common(self, name: str, offset: int, length: int, value: int) -> Write:
        return Write(name, self.bar + offset, length, value & ((1 << 8 * length) - 1))

    def place(self) -> Iterator[Write]:
        """Put the BAR where it is expected, decoding off meanwhile."""
        yield Write("decoding-off", self.function + COMMAND, 2, 0)
        yield Write("bar-high", self.function + BAR0 + 4, 4, self.bar >> 32)
        yield Write("bar-low", self.function + BAR0, 4, self.bar & 0xFFFF_FFFF)

    def step_status(self, name: str, value: int) -> Write:
        return self._common(name, 0x14, 1, value)

    def enable_steps(self) -> Iterator[Write]:
        yield Write("decoding-on", self.function + COMMAND, 2, MEMORY | BUS_MASTER)
        yield self.step_status("reset", 0)
        for vector in range(self.queues + 1):
            at = self.bar + TABLE + 16 * vector
            yield Write(f"vector-{vector}-address", at, 4, MSI_ADDRESS)
            yield Write(f"vector-{vector}-address-high", at + 4, 4, 0)
            yield Write(f"vector-{vector}-data", at + 8, 4, self.first_vector + vector)
            yield Write(f"vector-{vector}-unmask", at + 12, 4, 0)
        yield self.step_msix(0x8000)

    def step_msix(self, control: int) -> Write:
        """Enable (0x8000) or mask (0x4000) MSI-X as a whole."""
        return Write("msix-control", self.function + self.msix + 2, 2, control)

    def choose_steps(self, features: int) -> Iterator[Write]:
        for word in (0, 1):
            yield self._common(f"select-features-{word}", 0x08, 4, word)
            yield self._common(f"features-{word}", 0x0C, 4, features >> 32 * word)

    def _interrupts(self) -> Iterator[Write]:
        yield self._common("config-vector", 0x10, 2, 0)

    def queue_steps(self, index: int, driver: Driver) -> Iterator[Write]:
        queue = f"queue-{index}"
        yield self._common(f"{queue}-select", 0x16, 2, index)
        yield self._common(f"{queue}-size", 0x18, 2, driver.size)
        yield self._common(f"{queue}-vector", 0x1A, 2, index + 1)
        for name, offset, gpa in (
            ("desc", 0x20, driver.desc),
            ("avail", 0x28, driver.avail),
            ("used", 0x30, driver.ring),
        ):
            yield self._common(f"{queue}-{name}-low", offset, 4, gpa)
            yield self._common(f"{queue}-{name}-high", offset + 4, 4, gpa >> 32)
        yield self._common(f"{queue}-enable", 0x1C, 2, 1)

    def status(self) -> int:
        return self.access.read(self.bar + 0x14, 1)

    def notify(self, index: int) -> None:
        self.access.write(self.bar + NOTIFY + 4 * index, 2, index)

    @property
    def config_gpa(self) -> int:
        return self.bar + CONFIG

    def offered(self) -> int:
        found = 0
        for word in (0, 1):
            self.access.write(self.bar, 4, word)
            found |= self.access.read(self.bar + 4, 4) << 32 * word
        return found

    def acknowledge(self) -> int:
        return self.access.read(self.bar + ISR, 1)

    def reset_queue(self, index: int) -> None:
        self.access.write(self.bar + 0x16, 2, index)
        self.access.write(self.bar + 0x3A, 2, 1)
