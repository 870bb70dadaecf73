"""/dev/kvm itself."""

import errno
import os
from typing import Self, TypeVar

from snapkit import host
from snapkit.errors import HostError, IncompatibleHost
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.vm import VmFd

KVM_PATH = "/dev/kvm"

F = TypeVar("F", bound=VmFd)


class Kvm:
    """The system fd: what this host's KVM can do, and the maker of VMs."""

    def __init__(self, path: str = KVM_PATH) -> None:
        try:
            self.fd = host.open_fd(path, os.O_RDWR)
        except HostError as error:
            if error.errno != errno.ENOENT:
                raise
            raise IncompatibleHost(f"{path} is not there: this host has no KVM, or its module is not loaded") from error
        try:
            version = abi.call(self.fd, abi.KVM_GET_API_VERSION)
            if version != abi.KVM_API_VERSION:
                raise IncompatibleHost(f"KVM API version is {version}, must be {abi.KVM_API_VERSION}")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the fd; VMs made from it live on."""
        if self.fd >= 0:
            host.close(self.fd)
            self.fd = -1

    def extension(self, cap: int) -> int:
        """Return KVM_CHECK_EXTENSION of *cap*: 0 where it lacks."""
        return abi.call(self.fd, abi.KVM_CHECK_EXTENSION, cap)

    def create_vm(self, make: type[F], machine_type: int = 0) -> F:
        """Create a VM whose fd is a *make*; *machine_type* is what the architecture's KVM knows."""
        mmap_length = self.vcpu_mmap_length()  # first: once there is a VM, nothing may fail before it has an owner
        return make(abi.call(self.fd, abi.KVM_CREATE_VM, machine_type), mmap_length)

    def vcpu_mmap_length(self) -> int:
        """Return the length of a vCPU's kvm_run mapping in bytes."""
        return abi.call(self.fd, abi.KVM_GET_VCPU_MMAP_SIZE)
