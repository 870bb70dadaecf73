"""A VM's fd, as far as architectures agree: `snapkit.vmm.kvm.vm_x86` and `snapkit.vmm.kvm.vm_arm` say the rest."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

from snapkit import host
from snapkit.state.interrupt_table import RouteState
from snapkit.units import Gpa, Gsi, Hva
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.vcpu import VcpuFd


class VmFd(ABC):
    """One VM. Owns its fd; the vCPUs that it makes own theirs."""

    def __init__(self, fd: int, vcpu_mmap_length: int) -> None:
        self.fd = fd
        self._vcpu_mmap_length = vcpu_mmap_length

    def close(self) -> None:
        """Close the fd; the kernel keeps the VM while a vCPU fd or a kvm_run mapping lives."""
        if self.fd >= 0:
            host.close(self.fd)
            self.fd = -1

    def extension(self, cap: int) -> int:
        """Return KVM_CHECK_EXTENSION of *cap* as this VM has it."""
        return abi.call(self.fd, abi.KVM_CHECK_EXTENSION, cap)

    def set_memory_slot(self, slot: int, gpa: Gpa, hva: Hva, length: int) -> None:
        """Back guest-physical *gpa* by the monitor's memory at *hva*; length 0 removes the slot."""
        abi.put(self.fd, abi.KVM_SET_USER_MEMORY_REGION, abi.memory_region(slot, 0, gpa, length, hva))

    @abstractmethod
    def create_vcpu(self, vcpu_id: int) -> VcpuFd:
        """Create a vCPU and map its kvm_run."""

    @abstractmethod
    def set_irq_line(self, gsi: Gsi, level: int) -> None:
        """Drive an interrupt controller's pin."""

    @abstractmethod
    def set_gsi_routing(self, routes: Iterable[RouteState]) -> None:
        """Make *routes* the messages that GSIs stand for; pins stay what they are."""

    def irqfd(self, fd: int, gsi: int, *, assign: bool) -> None:
        """Have a write to the eventfd *fd* raise *gsi*, or no longer. Its route must be there before, or it is lost."""
        abi.put(self.fd, abi.KVM_IRQFD, abi.irqfd(fd, gsi, 0 if assign else abi.KVM_IRQFD_FLAG_DEASSIGN))

    def ioeventfd(
        self, fd: int, gpa: int, length: int, *, datamatch: int | None = None, assign: bool = True, pio: bool = False
    ) -> None:
        """Have a guest's store to *gpa* (port *gpa* with *pio*) signal the eventfd *fd* without an exit, or no longer.

        *length* 0 takes a store of any length; a *datamatch* takes only that value. Taking back needs the same
        arguments.
        """
        flags = (
            (0 if datamatch is None else abi.KVM_IOEVENTFD_FLAG_DATAMATCH)
            | (abi.KVM_IOEVENTFD_FLAG_PIO if pio else 0)
            | (0 if assign else abi.KVM_IOEVENTFD_FLAG_DEASSIGN)
        )
        abi.put(self.fd, abi.KVM_IOEVENTFD, abi.ioeventfd(fd, gpa, length, datamatch or 0, flags))

    def signal_msi(self, address: int, data: int, device_id: int = 0) -> bool:
        """Deliver one message now; False when the guest has it blocked."""
        return abi.put(self.fd, abi.KVM_SIGNAL_MSI, abi.msi(address, data, device_id)) > 0
