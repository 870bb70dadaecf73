"""What relocation and routing need, in one owner: the VM's fd, both buses, claims, interrupts, doorbells, the lock."""

import threading

from snapkit.errors import InternalError
from snapkit.vmm.bus import Bus
from snapkit.vmm.interrupt_table import InterruptTable
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.kvm.vm import VmFd
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.resource_allocator import ResourceAllocator


class Doorbells:
    """Guest stores that KVM turns into eventfd signals, without an exit to the monitor."""

    def __init__(self, fd: VmFd) -> None:
        self._fd = fd

    def add(self, gpa: int, fd: int, *, datamatch: int | None, length: int) -> None:
        """Signal the eventfd *fd* on a store at *gpa*: of *length* bytes (0: any), of the value *datamatch* (None: any)."""
        self._fd.ioeventfd(fd, gpa, length, datamatch=datamatch)

    def remove(self, gpa: int, fd: int, *, datamatch: int | None, length: int) -> None:
        """Take the same back."""
        self._fd.ioeventfd(fd, gpa, length, datamatch=datamatch, assign=False)


class Vm:
    """One virtual machine in KVM. `lock` is the machine's one lock: held by whoever touches device state."""

    def __init__(self, kvm: Kvm, fd: VmFd, *, lines: int) -> None:
        """*lines*: how many GSIs are pins of the interrupt controllers; those from there on stand for messages."""
        self.kvm = kvm
        self.fd = fd
        self.ports = Bus("port")
        self.mmio = Bus("mmio")
        self.interrupts = InterruptTable(self.fd, lines)
        self.doorbells = Doorbells(self.fd)
        self.lock = threading.Lock()
        self._resources: ResourceAllocator | None = None

    @property
    def resources(self) -> ResourceAllocator:
        """Who has which range and number; there once its section is constructed."""
        if self._resources is None:
            raise InternalError("a claim is made before there is an allocator")
        return self._resources

    def set_resources(self, resources: ResourceAllocator | None) -> None:
        """Put the allocator in its place, or take it away."""
        self._resources = resources

    def set_memory(self, memory: GuestMemory) -> None:
        """Back the guest's memory; before the irqchip, after which every slot costs milliseconds."""
        for slot, region in enumerate(memory.regions):
            self.fd.set_memory_slot(slot, region.gpa, region.hva, region.length)

    def close(self) -> None:
        """Close the VM's fd, after its vCPUs."""
        self.interrupts.close()
        self.fd.close()
