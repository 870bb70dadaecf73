"""/dev/kvm itself."""

import errno
import os
from typing import Self

from snapkit import host
from snapkit.errors import HostError, IncompatibleHost
from snapkit.state.vcpu_x86_64 import CpuidEntry
from snapkit.vmm.kvm import abi, abi_x86
from snapkit.vmm.kvm.vm import VmFd

KVM_PATH = "/dev/kvm"


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

    def create_vm(self) -> VmFd:
        """Create a VM of the default type."""
        mmap_length = self.vcpu_mmap_length()  # first: once there is a VM, nothing may fail before it has an owner
        return VmFd(abi.call(self.fd, abi.KVM_CREATE_VM), mmap_length)

    def vcpu_mmap_length(self) -> int:
        """Return the length of a vCPU's kvm_run mapping in bytes."""
        return abi.call(self.fd, abi.KVM_GET_VCPU_MMAP_SIZE)

    def supported_cpuid(self) -> list[CpuidEntry]:
        """Return the CPUID leaves that this KVM can give a guest."""
        request = abi_x86.cpuid_request()
        return abi_x86.read_cpuid(abi.get(self.fd, abi_x86.KVM_GET_SUPPORTED_CPUID, abi_x86.CPUID_LEN, request))

    def msr_indices(self) -> list[int]:
        """Return the MSRs that this KVM says are worth saving."""
        length = 4 + 4 * abi_x86.MSR_INDEX_MAX
        seed = abi_x86.MSR_INDEX_MAX.to_bytes(4, "little")
        return abi_x86.read_msr_indices(abi.get(self.fd, abi_x86.KVM_GET_MSR_INDEX_LIST, length, seed))
