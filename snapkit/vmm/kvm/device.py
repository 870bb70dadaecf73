"""The fd of a device that KVM makes: attributes by group and number (Documentation/virt/kvm/devices/README).

A controller has hundreds of registers, each an ioctl of its own, so that many of them go through one block of values.
"""

from array import array
from collections.abc import Sequence

from snapkit import host
from snapkit.errors import HostError
from snapkit.vmm.kvm import abi

_VALUE_LEN = 8
_GROUP_SHIFT = 32


class DeviceFd:
    """One device. Owns its fd. Values are as wide as the attribute, at most 64 bits."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Close the fd; the device goes with its VM."""
        if self.fd >= 0:
            host.close(self.fd)
            self.fd = -1

    def control(self, group: int, attr: int) -> None:
        """Have the device do what an attribute without a value stands for."""
        abi.put(self.fd, abi.KVM_SET_DEVICE_ATTR, abi.attr_struct(group, attr, 0))

    def set(self, group: int, attr: int, value: int) -> None:
        """Write one attribute."""
        self.set_all([group], [attr], [value])

    def get_all(self, group: int, attrs: Sequence[int]) -> list[int]:
        """Read attributes of *group*, in order."""
        values = array("Q", bytes(_VALUE_LEN * len(attrs)))  # of this byte order, which is the guest's too
        self._each(abi.KVM_GET_DEVICE_ATTR, [group] * len(attrs), attrs, values)
        return values.tolist()

    def set_all(self, groups: Sequence[int], attrs: Sequence[int], values: Sequence[int]) -> None:
        """Write attributes, each of its group, in order; a HostError has a note of the one refused, `done` its place."""
        self._each(abi.KVM_SET_DEVICE_ATTR, groups, attrs, array("Q", values))

    def _each(self, ioctl: abi.Ioctl, groups: Sequence[int], attrs: Sequence[int], values: "array[int]") -> None:
        base, count = values.buffer_info()
        heads = [group << _GROUP_SHIFT for group in groups]  # flags 0 below it
        addresses = range(base, base + count * _VALUE_LEN, _VALUE_LEN)
        try:
            host.ioctl_row(self.fd, ioctl.name, ioctl.number, heads, attrs, addresses)  # struct kvm_device_attr each
        except HostError as error:
            error.add_note(f"device attribute {attrs[error.done]:#x} of group {groups[error.done]}")
            raise
