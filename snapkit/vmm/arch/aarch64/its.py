"""The ITS in KVM: registers, and tables that KVM keeps to itself until it is told to write them into guest memory.

Saving writes guest memory (KVM_DEV_ARM_ITS_SAVE_TABLES): mappings go where the guest gave the ITS room for them, and are
read back from there (KVM_DEV_ARM_ITS_RESTORE_TABLES), which also takes what is pending out of the CPUs' pending tables.

A queue's address that the guest never wrote reads 0, and is not written: KVM would give it attributes.
Source: Documentation/virt/kvm/devices/arm-vgic-its.rst.
"""

import errno
from typing import Self

from snapkit.errors import HostError, IncompatibleHost
from snapkit.state.gicv3_its import BASERS, ItsState
from snapkit.state.spec import gicv3 as spec
from snapkit.state.spec.address_map import its_gpa
from snapkit.vmm.arch.aarch64 import gic_order
from snapkit.vmm.arch.aarch64.gic import Inert
from snapkit.vmm.arch.aarch64.registers import Bank, read, words, write, write_tables
from snapkit.vmm.kvm import abi_arm
from snapkit.vmm.kvm.abi_arm import (
    KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_ITS_REGS,
)
from snapkit.vmm.kvm.device import DeviceFd
from snapkit.vmm.kvm.vm_arm import ArmVmFd

_REFUSALS = (errno.EINVAL, errno.ENOENT, errno.EFAULT)


def _one(field: str, register: int) -> Bank:
    return Bank(field, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, (register,))


_TYPER = _one("typer", spec.GITS_TYPER)
_BANKS = {
    "IIDR": _one("iidr", spec.GITS_IIDR),
    "CTLR": _one("ctlr", spec.GITS_CTLR),
    "CBASER": _one("cbaser", spec.GITS_CBASER),
    "CREADR": _one("creadr", spec.GITS_CREADR),
    "CWRITER": _one("cwriter", spec.GITS_CWRITER),
    "BASER": Bank("baser", KVM_DEV_ARM_VGIC_GRP_ITS_REGS, words(spec.GITS_BASER, BASERS, 8), listed=True),
}


class Its(Inert):
    """The interrupt translation service."""

    kind = "gicv3-its"

    def __init__(self, device: DeviceFd, pending: ItsState | None = None) -> None:
        self._device, self._pending = device, pending

    @classmethod
    def restore(cls, state: ItsState, args: DeviceFd) -> Self:
        """Hold *state*, which must have been checked and is only read, until `load`."""
        return cls(args, state)

    def load(self) -> None:
        """Write the held state into KVM, once, and have it read its tables."""
        state, self._pending = self._pending, None
        if state is None:
            return
        (typer,) = self._device.get_all(_TYPER.group, _TYPER.attrs)
        if typer != state.typer:
            raise IncompatibleHost(f"the machine's GITS_TYPER is {state.typer:#x}, KVM's is {typer:#x}")
        for name in gic_order.ITS.names:
            if name == "TABLES":
                self._restore_tables()
            elif name != "CBASER" or state.cbaser:
                write(self.kind, self._device, _BANKS, [name], state)

    def save(self) -> ItsState:
        """Have KVM write its tables into guest memory, and read all registers."""
        write_tables(self._device, abi_arm.KVM_DEV_ARM_ITS_SAVE_TABLES, "GITS_BASER and its commands")
        return ItsState(**read(self._device, (_TYPER, *_BANKS.values())))

    def close(self) -> None:
        self._device.close()

    def _restore_tables(self) -> None:
        try:
            self._device.control(KVM_DEV_ARM_VGIC_GRP_CTRL, abi_arm.KVM_DEV_ARM_ITS_RESTORE_TABLES)
        except HostError as error:
            if error.errno not in _REFUSALS:
                raise
            raise IncompatibleHost("KVM refuses the tables of the ITS that are in guest memory") from error


def create_its(vm: ArmVmFd, vcpus: int) -> DeviceFd:
    """Create the ITS of a VM that has its GIC, where the address map puts it."""
    device = vm.create_device(abi_arm.KVM_DEV_TYPE_ARM_VGIC_ITS, "ITS")
    try:
        device.set(KVM_DEV_ARM_VGIC_GRP_ADDR, abi_arm.KVM_VGIC_ITS_ADDR_TYPE, its_gpa(vcpus))
        device.control(KVM_DEV_ARM_VGIC_GRP_CTRL, abi_arm.KVM_DEV_ARM_VGIC_CTRL_INIT)
    except BaseException:
        device.close()
        raise
    return device
