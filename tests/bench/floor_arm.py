"""The floor of an aarch64 machine: vCPUs, GICv3, ITS and the counter (see `tests.bench.floor`).

Registers have an ioctl each, and those are most of it: every register of a vCPU is written, as nothing tells that a new
vCPU has it already but reading it, which costs as much. Of the GIC what is 0 from reset on is written only where it is
not 0: the tables of `snapkit.vmm.arch.aarch64` say which registers those are, and the orders there in what order.

Left out: KVM_ARM_PREFERRED_TARGET and KVM_GET_REG_LIST, which only a new machine or a save needs; reading GITS_TYPER, by
which a host is found to have no such ITS, and the VM that tells the rate of the host's counter: both are checks.
"""

import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from snapkit.state.gicv3_cpu_interface import CpuInterfaceState, active_priority_registers
from snapkit.state.gicv3_distributor import DistributorState
from snapkit.state.gicv3_its import ItsState
from snapkit.state.gicv3_redistributor import RedistributorState
from snapkit.state.schema import State
from snapkit.state.spec import aarch64 as spec
from snapkit.state.spec.aarch64 import mpidr_of
from snapkit.state.spec.address_map import GICD_GPA, gicr_gpa, its_gpa
from snapkit.state.vcpu_aarch64 import Aarch64VcpuState
from snapkit.vmm.arch.aarch64 import gic_order, its
from snapkit.vmm.arch.aarch64.gic import _distributor_banks, _interface_banks, _redistributor_banks
from snapkit.vmm.arch.aarch64.registers import Bank, _values
from snapkit.vmm.kvm import abi, abi_arm
from snapkit.vmm.kvm.abi_arm import (
    KVM_ARM_VCPU_SVE,
    KVM_DEV_ARM_ITS_RESTORE_TABLES,
    KVM_DEV_ARM_VGIC_CTRL_INIT,
    KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_DEV_TYPE_ARM_VGIC_ITS,
    KVM_DEV_TYPE_ARM_VGIC_V3,
    KVM_VGIC_ITS_ADDR_TYPE,
    KVM_VGIC_V3_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION,
    VcpuInit,
)
from snapkit.vmm.kvm.vm_arm import FIRST_SPI, IPA_BITS
from tests.bench.calls import Call, expect, ioctl
from tests.bench.floor import Floor
from tests.bench.floor_devices import Pins


class ArmFloor(Floor[Aarch64VcpuState]):
    """The floor of an aarch64 machine in one snapshot."""

    vcpu = Aarch64VcpuState
    vm_type = IPA_BITS
    pins = Pins(lambda gsi: abi_arm.spi(FIRST_SPI + gsi), b"")

    def __init__(self, path: str, *, threads: bool = False) -> None:
        self._gic: list[int] = []
        self._its: list[int] = []
        self._values: list[ctypes.Array[ctypes.c_char]] = []
        super().__init__(path, threads=threads)

    def _create_after_vcpus(self) -> Iterator[Call]:
        (distributor,) = (state for state in self._states if isinstance(state, DistributorState))
        vcpus = len(self._vcpu_states)
        redistributors = abi_arm.redist_region(gicr_gpa(vcpus), vcpus)
        yield self._create_device(self._gic, KVM_DEV_TYPE_ARM_VGIC_V3)
        for group, attr, value in (
            (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, GICD_GPA),
            (KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, redistributors),
            (KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, distributor.nr_irqs),
        ):
            yield self._set(self._gic, group, attr, value)
        yield self._control(self._gic, KVM_DEV_ARM_VGIC_CTRL_INIT)
        if any(isinstance(state, ItsState) for state in self._states):
            yield self._create_device(self._its, KVM_DEV_TYPE_ARM_VGIC_ITS)
            yield self._set(self._its, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, its_gpa(vcpus))
            yield self._control(self._its, KVM_DEV_ARM_VGIC_CTRL_INIT)

    def _load(self) -> Iterator[Call]:
        for number, vcpu in enumerate(self._vcpu_states):
            yield from self._load_vcpu(number, vcpu)
        affinities = [abi_arm.affinity(mpidr_of(number)) for number in range(len(self._vcpu_states))]
        of_gic = partial(self._write, self._gic)
        redistributors, interfaces = iter(affinities), iter(affinities)
        for state in self._states:
            if isinstance(state, DistributorState):
                yield from of_gic(_distributor_banks(state.nr_irqs), gic_order.DISTRIBUTOR.names, state)
        for state in self._states:
            if isinstance(state, RedistributorState):
                yield from of_gic(_redistributor_banks(next(redistributors)), gic_order.REDISTRIBUTOR.names, state)
        for state in self._states:
            if isinstance(state, CpuInterfaceState):
                banks = _interface_banks(next(interfaces), active_priority_registers(state.icc_ctlr_el1))
                yield from of_gic(banks, gic_order.CPU_INTERFACE.names, state)
        for state in self._states:
            if isinstance(state, ItsState):
                for name in gic_order.ITS.names:
                    if name == "TABLES":
                        yield self._control(self._its, KVM_DEV_ARM_ITS_RESTORE_TABLES)
                    elif name != "CBASER" or state.cbaser:
                        yield from self._write(self._its, its._BANKS, (name,), state)

    def _load_vcpu(self, number: int, state: Aarch64VcpuState) -> Iterator[Call]:
        put = partial(self._on_vcpu, number)
        init = VcpuInit(state.target, tuple(state.features))
        lengths = [vector for vector in state.vectors if vector.id == spec.SVE_VLS]
        yield put(abi_arm.KVM_ARM_VCPU_INIT, init.write())
        for vector in lengths:
            yield self._set_reg(number, vector.id, vector.value)
        if init.has(KVM_ARM_VCPU_SVE):
            yield put(abi_arm.KVM_ARM_VCPU_FINALIZE, KVM_ARM_VCPU_SVE.to_bytes(4, "little"))
        for reg in state.regs:
            if reg.id not in spec.COUNTERS:
                yield self._set_reg(number, reg.id, reg.value.to_bytes(8, "little"))
        for vector in state.vectors:
            if vector not in lengths:
                yield self._set_reg(number, vector.id, vector.value)
        yield put(abi_arm.KVM_SET_VCPU_EVENTS, abi_arm.EVENTS.write(state.events))
        yield put(abi.KVM_SET_MP_STATE, state.mp_state.to_bytes(4, "little"))

    def _start_clocks(self) -> Iterator[Call]:
        for reg in self._vcpu_states[0].regs:
            if reg.id in spec.COUNTERS:
                yield self._set_reg(0, reg.id, reg.value.to_bytes(8, "little"))

    # The calls

    def _create_device(self, made: list[int], kind: int) -> Call:
        request = ctypes.create_string_buffer(abi_arm.create_device(kind))

        def create() -> None:
            expect(ioctl(self._vm, abi_arm.KVM_CREATE_DEVICE.number, request), 0)
            made[:] = [abi_arm.read_device_fd(request.raw)]

        return "KVM_CREATE_DEVICE", create

    def _set(self, device: list[int], group: int, attr: int, value: int) -> Call:
        return self._on_device(device, abi.attr_struct(group, attr, self._at(value.to_bytes(8, "little"))))

    def _control(self, device: list[int], attr: int) -> Call:
        return self._on_device(device, abi.attr_struct(KVM_DEV_ARM_VGIC_GRP_CTRL, attr, 0))

    def _write(
        self, device: list[int], banks: Mapping[str, Bank], order: Sequence[str], state: State
    ) -> Iterator[Call]:
        for name in order:
            bank = banks[name]
            for attr, value in zip(bank.attrs, _values(bank, state), strict=True):
                if value or not bank.clear:
                    yield self._set(device, bank.group, attr, value)

    def _set_reg(self, number: int, register: int, value: bytes) -> Call:
        return self._on_vcpu(number, abi_arm.KVM_SET_ONE_REG, abi_arm.ONE_REG.pack(register, self._at(value)))

    def _on_device(self, device: list[int], request: bytes) -> Call:
        what = abi.KVM_SET_DEVICE_ATTR
        return what.name, lambda: expect(ioctl(device[0], what.number, request), 0)

    def _at(self, value: bytes) -> int:
        """Put *value* where it stays; returns its address."""
        self._values.append(ctypes.create_string_buffer(value, len(value)))
        return ctypes.addressof(self._values[-1])

    # And back

    def _release(self) -> None:
        for fd in (*self._gic, *self._its):
            os.close(fd)
        super()._release()
