"""A vCPU's fd on arm64: registers one by one, by id.

There are hundreds of them, each an ioctl of its own, so that all of at most 64 bits go through one block of values.
"""

import ctypes
import errno
from array import array
from collections.abc import Mapping, Sequence
from itertools import accumulate

from snapkit import host
from snapkit.errors import HostError, IncompatibleHost, InternalError
from snapkit.state.spec.aarch64 import REGISTERS, width_of
from snapkit.state.vcpu_aarch64 import SErrorEvents
from snapkit.vmm.kvm import abi, abi_arm
from snapkit.vmm.kvm.vcpu import VcpuFd

_WORD_LEN = 8
_REFUSALS = (errno.EINVAL, errno.ENOENT, errno.EPERM)


class ArmVcpuFd(VcpuFd):
    """One arm64 vCPU."""

    def init(self, init: abi_arm.VcpuInit) -> None:
        """Make it that model, reset. IncompatibleHost where KVM has not the model, or not a feature."""
        try:
            abi.put(self.fd, abi_arm.KVM_ARM_VCPU_INIT, init.write())
        except HostError as error:
            if error.errno not in _REFUSALS:
                raise
            words = " ".join(f"{word:#x}" for word in init.features)
            raise IncompatibleHost(f"KVM refuses a vCPU of target {init.target} with features {words}") from error

    def finalize(self, feature: int) -> None:
        """Settle how the KVM_ARM_VCPU_* *feature* is; before it most other calls are refused."""
        abi.put(self.fd, abi_arm.KVM_ARM_VCPU_FINALIZE, feature.to_bytes(4, "little"))

    def reg_list(self) -> list[int]:
        """Return the id of every register that KVM says is worth saving."""
        raw = abi.get(self.fd, abi_arm.KVM_GET_REG_LIST, abi_arm.REG_LIST_LEN, abi_arm.reg_list_request())
        return abi_arm.read_reg_list(raw)

    def get_regs(self, registers: Sequence[int]) -> list[int]:
        """Read registers of at most 64 bits each."""
        values = array("Q", bytes(_WORD_LEN * len(registers)))  # of this byte order, which is KVM's
        base, _ = values.buffer_info()
        self._each(abi_arm.KVM_GET_ONE_REG, registers, _words(base, len(registers)))
        return values.tolist()

    def set_regs(self, values: Mapping[int, int]) -> None:
        """Write registers of at most 64 bits each, in order; IncompatibleHost naming the one that KVM refuses."""
        registers, words = list(values), array("Q", list(values.values()))
        base, _ = words.buffer_info()
        try:
            self._each(abi_arm.KVM_SET_ONE_REG, registers, _words(base, len(registers)))
        except HostError as error:
            if error.errno not in _REFUSALS:
                raise
            register = registers[error.done]
            raise IncompatibleHost(f"KVM refuses {_called(register)} value {values[register]:#x}") from error

    def get_vector(self, register: int) -> bytes:
        """Read a register of any width."""
        block = bytearray(width_of(register))
        address = ctypes.addressof(ctypes.c_char.from_buffer(block))
        self._each(abi_arm.KVM_GET_ONE_REG, [register], [address])
        return bytes(block)

    def set_vectors(self, registers: Sequence[int], values: Sequence[bytes]) -> None:
        """Write registers of any width, in order; IncompatibleHost naming the one that KVM refuses.

        Raises InternalError for a value that is not as long as its register: KVM would read on behind it.
        """
        widths, lengths = list(map(width_of, registers)), list(map(len, values))
        if widths != lengths:
            raise InternalError(f"registers of {widths} bytes are written with {lengths}")
        words = array("Q", b"".join(values))
        base, _ = words.buffer_info()
        try:
            self._each(abi_arm.KVM_SET_ONE_REG, registers, [*accumulate(widths, initial=base)][:-1])
        except HostError as error:
            if error.errno not in _REFUSALS:
                raise
            called, value = _called(registers[error.done]), values[error.done]
            raise IncompatibleHost(f"KVM refuses {called} value {value[:16].hex()}...") from error

    def get_events(self) -> SErrorEvents:
        return abi_arm.EVENTS.read(abi.get(self.fd, abi_arm.KVM_GET_VCPU_EVENTS, abi_arm.EVENTS.length))

    def set_events(self, events: SErrorEvents) -> None:
        abi.put(self.fd, abi_arm.KVM_SET_VCPU_EVENTS, abi_arm.EVENTS.write(events))

    def _each(self, ioctl: abi.Ioctl, registers: Sequence[int], addresses: Sequence[int]) -> None:
        host.ioctl_row(self.fd, ioctl.name, ioctl.number, registers, addresses)  # struct kvm_one_reg each


def _words(base: int, count: int) -> range:
    """Return the addresses of so many words from *base* on."""
    return range(base, base + count * _WORD_LEN, _WORD_LEN)


def _called(register: int) -> str:
    return f"{REGISTERS.get(register, 'register')} ({register:#x})"
