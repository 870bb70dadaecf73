"""The floor of an x86-64 machine: chips, vCPUs and clocks (see `tests.bench.floor`)."""

import time
from collections.abc import Iterator
from functools import partial

from snapkit.state.irqchip_x86 import IrqchipState
from snapkit.state.kvm_clock import KvmClockState
from snapkit.state.pit import PitState
from snapkit.state.vcpu_x86_64 import VcpuState
from snapkit.vmm.arch.x86_64 import layout
from snapkit.vmm.arch.x86_64.vcpu import CLOCK_MSRS
from snapkit.vmm.kvm import abi, abi_x86
from tests.bench.calls import Call
from tests.bench.floor import Floor
from tests.bench.floor_devices import Pins


class X86Floor(Floor[VcpuState]):
    """The floor of an x86-64 machine in one snapshot."""

    vcpu = VcpuState
    pins = Pins(lambda gsi: gsi, abi_x86.IDENTITY_ROUTES)

    def _create_before_memory(self) -> Iterator[Call]:
        yield self._on_vm(abi_x86.KVM_SET_TSS_ADDR, layout.KVM_TSS_GPA)
        yield self._on_vm(abi_x86.KVM_SET_IDENTITY_MAP_ADDR, layout.KVM_IDENTITY_MAP_GPA.to_bytes(8, "little"))

    def _create_before_vcpus(self) -> Iterator[Call]:
        yield self._on_vm(abi_x86.KVM_CREATE_IRQCHIP, 0)
        yield self._on_vm(abi_x86.KVM_CREATE_PIT2, abi_x86.KVM_PIT_SPEAKER_DUMMY.to_bytes(64, "little"))

    def _load(self) -> Iterator[Call]:
        (irqchip,) = (state for state in self._states if isinstance(state, IrqchipState))
        for number, state in enumerate(self._vcpu_states):
            yield from self._load_vcpu(number, state)
        for chip, payload in (
            (abi_x86.KVM_IRQCHIP_PIC_MASTER, abi_x86.PIC.write(irqchip.pic_master)),
            (abi_x86.KVM_IRQCHIP_PIC_SLAVE, abi_x86.PIC.write(irqchip.pic_slave)),
            (abi_x86.KVM_IRQCHIP_IOAPIC, abi_x86.write_ioapic(irqchip.ioapic)),
        ):
            yield self._on_vm(abi_x86.KVM_SET_IRQCHIP, abi_x86.irqchip(chip, payload))

    def _start_clocks(self) -> Iterator[Call]:
        (pit,) = (state for state in self._states if isinstance(state, PitState))
        (clock,) = (state for state in self._states if isinstance(state, KvmClockState))
        yield self._on_vm(abi_x86.KVM_SET_PIT2, abi_x86.write_pit(pit, time.monotonic_ns()))
        yield self._on_vm(abi_x86.KVM_SET_CLOCK, abi_x86.write_clock(clock.clock_ns))
        for number, state in enumerate(self._vcpu_states):
            values = {msr.index: msr.data for msr in state.msrs if msr.index in CLOCK_MSRS}
            held = {index: values[index] for index in CLOCK_MSRS if index in values}
            yield self._on_vcpu(number, abi_x86.KVM_SET_MSRS, abi_x86.write_msrs(held), len(held))

    def _load_vcpu(self, number: int, state: VcpuState) -> Iterator[Call]:
        put = partial(self._on_vcpu, number)
        msrs = {msr.index: msr.data for msr in state.msrs if msr.index not in CLOCK_MSRS}
        yield put(abi_x86.KVM_SET_CPUID2, abi_x86.write_cpuid(state.cpuid))
        if state.tsc_khz:  # to be set if it is another, which nothing but asking tells
            yield put(abi_x86.KVM_GET_TSC_KHZ, 0, state.tsc_khz)
        yield put(abi.KVM_SET_MP_STATE, state.mp_state.to_bytes(4, "little"))
        yield put(abi_x86.KVM_SET_REGS, abi_x86.REGS.write(state.regs))
        yield put(abi_x86.KVM_SET_SREGS, abi_x86.write_sregs(state.sregs))
        yield put(abi_x86.KVM_SET_XSAVE, state.xsave)
        yield put(abi_x86.KVM_SET_XCRS, abi_x86.write_xcrs(state.xcrs))
        yield put(abi_x86.KVM_SET_DEBUGREGS, abi_x86.write_debugregs(state.debugregs))
        yield put(abi_x86.KVM_SET_LAPIC, state.lapic)
        yield put(abi_x86.KVM_SET_MSRS, abi_x86.write_msrs(msrs), len(msrs))
        yield put(abi_x86.KVM_SET_VCPU_EVENTS, abi_x86.EVENTS.write(state.events))
