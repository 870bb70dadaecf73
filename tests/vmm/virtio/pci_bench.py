"""A device on the PCI transport with everything around it real but the hypervisor, and the guest's accesses to it."""

from collections.abc import Iterable

from snapkit import host
from snapkit.errors import HostError
from snapkit.state.interrupt_table import RouteState
from snapkit.state.resource_allocator import PoolState
from snapkit.units import GIB, Gsi
from snapkit.vmm.bus import Bus
from snapkit.vmm.interrupt_table import InterruptTable
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.pci.pci_function import PciFunction
from snapkit.vmm.pci.pci_msix import PciMsix
from snapkit.vmm.resource_allocator import ResourceAllocator
from snapkit.vmm.virtio.pci_layout import FreshPci, fresh
from snapkit.vmm.virtio.virtio_pci import VirtioPci
from tests.vmm.virtio.driver import Driver
from tests.vmm.virtio.echo import Echo, echo_state

BAR0 = 256 * GIB
ELSEWHERE = 300 * GIB
COMMON, ISR, CONFIG, NOTIFY, TABLE, PBA = (
    BAR0,
    BAR0 + 0x2000,
    BAR0 + 0x4000,
    BAR0 + 0x6000,
    BAR0 + 0x8000,
    BAR0 + 0x48000,
)
GSIS = [24, 25, 26]
POOLS = [
    PoolState(pool="gsi-legacy", start=5, length=19),
    PoolState(pool="gsi-msi", start=24, length=4072),
    PoolState(pool="mmio32", start=0xC000_0000, length=0x2EC0_0000),
    PoolState(pool="mmio64", start=256 * GIB, length=256 * GIB),
    PoolState(pool="pci-slot", start=1, length=31),
]


class Hypervisor:
    """Routes, irqfds, lines and doorbells as KVM would keep them; *refuse* makes the next calls of a name fail."""

    def __init__(self) -> None:
        self.routes: dict[int, RouteState] = {}
        self.irqfds: dict[int, int] = {}
        self.levels: dict[int, int] = {}
        self.doorbells: dict[tuple[int, int | None, int], int] = {}
        self.history: list[str] = []
        self.refuse: dict[str, int] = {}

    def _may_fail(self, call: str) -> None:
        if call in self.refuse:
            self.refuse[call] -= 1
            if self.refuse[call] < 0:
                raise HostError(call, 28)

    def set_gsi_routing(self, routes: Iterable[RouteState]) -> None:
        self.routes = {route.gsi: route for route in routes}

    def irqfd(self, fd: int, gsi: int, *, assign: bool) -> None:
        if assign:
            self.irqfds[gsi] = fd
        else:
            del self.irqfds[gsi]

    def set_irq_line(self, gsi: Gsi, level: int) -> None:
        self.levels[gsi] = level
        self.history.append(f"line {gsi} {level}")

    def add(self, gpa: int, fd: int, *, datamatch: int | None, length: int) -> None:
        self._may_fail("add")
        assert (gpa, datamatch, length) not in self.doorbells
        self.doorbells[gpa, datamatch, length] = fd
        self.history.append(f"add {gpa:#x}")

    def remove(self, gpa: int, fd: int, *, datamatch: int | None, length: int) -> None:
        self._may_fail("remove")
        assert self.doorbells.pop((gpa, datamatch, length)) == fd
        self.history.append(f"remove {gpa:#x}")

    def interrupts(self, gsi: int) -> int:
        """Take how often the message of *gsi* was sent."""
        return host.eventfd_take(self.irqfds[gsi]) if gsi in self.irqfds else 0


class Bench:
    """One machine with one echo device; `Bench(saved)` is another one restored from what `save` gave."""

    def __init__(self, memory: GuestMemory, saved=None) -> None:
        self.memory = memory
        device_state = echo_state()
        parts: FreshPci = fresh("virtio-rng", device_state, slot=3, address=BAR0, gsis=GSIS)
        if saved is not None:
            device_state, parts = saved
        self.kvm = Hypervisor()
        self.bus = Bus("mmio")
        self.resources = ResourceAllocator(POOLS)
        self.interrupts = InterruptTable(self.kvm)
        self.function = PciFunction(parts.function, resources=self.resources, bus=self.bus, owner="pci-function/a")
        self.msix = PciMsix(
            parts.msix,
            interrupts=self.interrupts,
            resources=self.resources,
            function=self.function,
            owner="pci-msix/a",
        )
        self.device = Echo(device_state, memory=memory)
        self.transport = VirtioPci(
            parts.transport, device=self.device, function=self.function, msix=self.msix, doorbells=self.kvm
        )
        if saved is not None:
            self.wire()
            self.transport.activate()

    def wire(self) -> None:
        with self.interrupts.batch():
            self.transport.wire()
            self.msix.wire()

    def save(self):
        return self.device.save(), FreshPci(self.transport.save(), self.function.save(), self.msix.save())

    def close(self) -> None:
        self.device.close()
        self.transport.close()
        self.msix.close()
        self.function.close()

    # The guest

    def read(self, address: int, length: int) -> int:
        return self.bus.read(address, length)

    def write(self, address: int, length: int, value: int) -> None:
        self.bus.write(address, length, value)

    def decode(self, on: bool = True) -> None:
        self.function.write_config(4, 2, 6 if on else 4)

    def move(self, base: int) -> None:
        """Write the BAR's register as a guest does, upper half first: the lower one completes the address."""
        self.function.write_config(0x14, 4, base >> 32)
        self.function.write_config(0x10, 4, base & 0xFFFF_FFFF)

    def capability(self, kind: int, cfg_type: int | None = None) -> int:
        at = self.function.read_config(0x34, 1)
        while at:
            told = self.function.read_config(at, 1), self.function.read_config(at + 3, 1)
            if told == (kind, told[1] if cfg_type is None else cfg_type):
                return at
            at = self.function.read_config(at + 1, 1)
        raise AssertionError("no such capability")

    def enable_msix(self) -> None:
        for vector in range(3):
            self.write(TABLE + 16 * vector, 4, 0xFEE0_0000)
            self.write(TABLE + 16 * vector + 8, 4, 0x40 + vector)
            self.write(TABLE + 16 * vector + 12, 4, 0)
        self.function.write_config(self.capability(0x11) + 2, 2, 0x8000)

    def status(self, value: int | None = None, *, base: int = BAR0) -> int:
        if value is not None:
            self.write(base + 0x14, 1, value)
        return self.read(base + 0x14, 1)

    def features(self, wanted: int) -> None:
        for word in (0, 1):
            self.write(COMMON + 0x08, 4, word)
            self.write(COMMON + 0x0C, 4, wanted >> 32 * word & 0xFFFF_FFFF)

    def queue(self, index: int, driver: Driver) -> None:
        self.write(COMMON + 0x16, 2, index)
        self.write(COMMON + 0x18, 2, driver.size)
        self.write(COMMON + 0x1A, 2, index + 1)
        for register, gpa in ((0x20, driver.desc), (0x28, driver.avail), (0x30, driver.ring)):
            self.write(COMMON + register, 4, gpa & 0xFFFF_FFFF)
            self.write(COMMON + register + 4, 4, gpa >> 32)
        self.write(COMMON + 0x1C, 2, 1)

    def steps(self, drivers):
        """What a driver does from reset to DRIVER_OK, one step an item (3.1.1)."""
        yield self.decode
        yield self.enable_msix
        yield lambda: self.status(1)
        yield lambda: self.status(3)
        yield lambda: self.features(1 << 32 | 1 << 40)
        yield lambda: self.status(11)
        yield lambda: self.write(COMMON + 0x10, 2, 0)
        for index, driver in enumerate(drivers):
            yield lambda index=index, driver=driver: self.queue(index, driver)
        yield lambda: self.status(15)

    def start(self) -> list[Driver]:
        drivers = self.drivers()
        for step in self.steps(drivers):
            step()
        return drivers

    def drivers(self) -> list[Driver]:
        sizes = enumerate(Echo.queue_sizes)
        return [Driver(self.memory, 0x1000 + index * 0x8000, size, area_len=0x8000) for index, size in sizes]

    def serve(self) -> list[int]:
        """Do what the loop does: kick the queues whose doorbells rang; returns which."""
        rang = [index for index, fd in enumerate(self.transport.doorbell_fds()) if host.eventfd_take(fd)]
        for index in rang:
            self.device.kick(index)
        return rang
