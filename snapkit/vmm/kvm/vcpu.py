"""A vCPU's fd and its kvm_run page, as far as architectures agree.

Every method here must be called on the vCPU's own thread once that thread runs the guest: KVM serialises a vCPU's
ioctls, so a call from elsewhere waits for KVM_RUN to end.
"""

import fcntl

from snapkit import host, host_memory
from snapkit.errors import HostError
from snapkit.vmm.kvm import abi


class VcpuFd:
    """One vCPU: `run`, and what all have. What else KVM holds of one is in `vcpu_x86` and `vcpu_arm`."""

    def __init__(self, fd: int, mmap_length: int) -> None:
        self.fd = fd
        self._mmap_length = mmap_length
        try:
            self._address = host_memory.mmap(
                mmap_length, host_memory.PROT_READ | host_memory.PROT_WRITE, host_memory.MAP_SHARED, fd
            )
        except HostError:
            host.close(fd)
            raise
        self.run_page = host_memory.view(self._address, mmap_length)

    def close(self) -> None:
        """Unmap kvm_run and close the fd, in the order that lets the VM go."""
        if self.fd >= 0:
            self.run_page.release()
            try:
                host_memory.munmap(self._address, self._mmap_length)
            finally:
                host.close(self.fd)
                self.fd = -1

    def run(self) -> None:
        """Enter the guest once; InterruptedError when a signal ended it, BlockingIOError for one that waited to start.

        HostError for what KVM cannot go on with. A guest can bring that about: on arm64 by a load of two registers from
        where no memory is, which the processor does not describe and KVM does not decode.
        """
        try:
            fcntl.ioctl(self.fd, abi.KVM_RUN.number, 0)
        except (InterruptedError, BlockingIOError):
            raise
        except OSError as error:
            raise HostError("KVM_RUN", error.errno or 0) from error

    def set_signal_mask(self, unblocked: int) -> None:
        """While the guest runs, block every signal but *unblocked*."""
        mask = ~(1 << (unblocked - 1)) & 0xFFFF_FFFF_FFFF_FFFF
        abi.put(self.fd, abi.KVM_SET_SIGNAL_MASK, abi.signal_mask(mask))

    def get_mp_state(self) -> int:
        return int.from_bytes(abi.get(self.fd, abi.KVM_GET_MP_STATE, 4), "little")

    def set_mp_state(self, mp_state: int) -> None:
        abi.put(self.fd, abi.KVM_SET_MP_STATE, mp_state.to_bytes(4, "little"))
