"""What relocation and routing need, in one owner: the VM's fd, guest memory, both buses, the lock."""

import threading

from snapkit.units import Gsi
from snapkit.vmm.bus import Bus
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.kvm.vm import VmFd
from snapkit.vmm.memory import GuestMemory


class GsiLine:
    """An interrupt pin of the in-kernel controllers, as a device sees it."""

    def __init__(self, vm: VmFd, gsi: Gsi, *, edge: bool) -> None:
        self._vm, self._gsi, self._edge = vm, gsi, edge

    @property
    def edge(self) -> bool:
        return self._edge

    def set_level(self, level: bool) -> None:
        self._vm.set_irq_line(self._gsi, int(level))


class Vm:
    """One virtual machine in KVM. `lock` is the machine's one lock: held by whoever touches device state."""

    def __init__(self, kvm: Kvm) -> None:
        self.kvm = kvm
        self.fd = kvm.create_vm()
        self.ports = Bus("port")
        self.mmio = Bus("mmio")
        self.lock = threading.Lock()

    def set_memory(self, memory: GuestMemory) -> None:
        """Back the guest's memory; before the irqchip, after which every slot costs milliseconds."""
        for slot, region in enumerate(memory.regions):
            self.fd.set_memory_slot(slot, region.gpa, region.hva, region.length)

    def line(self, gsi: Gsi, *, edge: bool) -> GsiLine:
        """Return the pin *gsi*."""
        return GsiLine(self.fd, gsi, edge=edge)

    def close(self) -> None:
        """Close the VM's fd, after its vCPUs."""
        self.fd.close()
