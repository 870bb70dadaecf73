"""A VM's fd on arm64: CPU models, and the devices of the interrupt controller.

Surprise: the id of who sends a message matters here, as the ITS translates by it. 0 stands for none: it would be slot 0,
function 0, the host bridge, which sends none.
"""

import errno
from collections.abc import Iterable

from snapkit.errors import HostError, IncompatibleHost
from snapkit.state.interrupt_table import RouteState
from snapkit.units import Gsi
from snapkit.vmm.kvm import abi, abi_arm
from snapkit.vmm.kvm.device import DeviceFd
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.kvm.vcpu_arm import ArmVcpuFd
from snapkit.vmm.kvm.vm import VmFd

FIRST_SPI = 32
IPA_BITS = 40
"""Of a guest's physical addresses, where the host has as many: all that the address map needs, whatever more there is."""


def ipa_bits(kvm: Kvm) -> int:
    """Return how wide the physical addresses of a guest are: the type of VM, as KVM_CREATE_VM takes it."""
    return min(IPA_BITS, kvm.extension(abi_arm.KVM_CAP_ARM_VM_IPA_SIZE) or IPA_BITS)


class ArmVmFd(VmFd):
    """A VM whose interrupt controller is a device of its own."""

    def create_vcpu(self, vcpu_id: int) -> ArmVcpuFd:
        return ArmVcpuFd(abi.call(self.fd, abi.KVM_CREATE_VCPU, vcpu_id), self._vcpu_mmap_length)

    def set_irq_line(self, gsi: Gsi, level: int) -> None:
        # by INTID: pins are injected as they are, whatever the routes say
        abi.put(self.fd, abi.KVM_IRQ_LINE, abi.irq_level(abi_arm.spi(FIRST_SPI + gsi), level))

    def set_gsi_routing(self, routes: Iterable[RouteState]) -> None:
        entries = b"".join(abi.msi_route(route.gsi, route.address, route.data, route.device_id) for route in routes)
        abi.put(self.fd, abi.KVM_SET_GSI_ROUTING, abi.routing(entries))

    def preferred_target(self) -> abi_arm.VcpuInit:
        """Return the model that a vCPU is like on this host, without features."""
        return abi_arm.read_init(abi.get(self.fd, abi_arm.KVM_ARM_PREFERRED_TARGET, abi_arm.VCPU_INIT_LEN))

    def create_device(self, device_type: int, name: str) -> DeviceFd:
        """Create a KVM_DEV_TYPE_* device; IncompatibleHost, by its *name*, where KVM has none of that type."""
        request = abi_arm.create_device(device_type)
        try:
            raw = abi.get(self.fd, abi_arm.KVM_CREATE_DEVICE, len(request), request)
        except HostError as error:
            if error.errno != errno.ENODEV:
                raise
            raise IncompatibleHost(f"this host's KVM makes no {name}, which the machine needs") from error
        return DeviceFd(abi_arm.read_device_fd(raw))

    def has_device(self, device_type: int) -> bool:
        """Whether KVM could create one."""
        try:
            abi.put(
                self.fd, abi_arm.KVM_CREATE_DEVICE, abi_arm.create_device(device_type, abi_arm.KVM_CREATE_DEVICE_TEST)
            )
        except HostError:
            return False
        return True
