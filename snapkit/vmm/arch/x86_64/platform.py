"""What makes a machine an x86-64 one: the parts of each kind, where they sit, and what a fresh one begins as."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple, Protocol

from snapkit.errors import ConfigError, InternalError
from snapkit.state.i8042 import I8042State
from snapkit.state.irqchip_x86 import IrqchipState
from snapkit.state.kvm_clock import KvmClockState
from snapkit.state.machine import EM_X86_64
from snapkit.state.pit import PitState
from snapkit.state.schema import State
from snapkit.state.serial_16550 import SerialState
from snapkit.state.vcpu_x86_64 import CpuidEntry
from snapkit.vmm.arch.x86_64 import layout
from snapkit.vmm.arch.x86_64.irqchip import Irqchip, KvmClock, Pit
from snapkit.vmm.arch.x86_64.power import SleepRegisters
from snapkit.vmm.backends.console import Console
from snapkit.vmm.devices.i8042 import I8042, I8042Args
from snapkit.vmm.devices.serial_16550 import Serial16550, SerialArgs
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.vm import Vm

if TYPE_CHECKING:
    from snapkit.vmm.arch.x86_64.entry import BootEntry  # what only `boot` needs is imported when it is used

ARCHITECTURE = EM_X86_64
KVM_CAP_TSC_DEADLINE_TIMER = 72
VCPUS_MAX = 8

CHIPS: Mapping[str, type[Irqchip] | type[Pit] | type[KvmClock]] = {
    Irqchip.kind: Irqchip,
    Pit.kind: Pit,
    KvmClock.kind: KvmClock,
}
"""Parts that live in KVM beside the vCPUs, in the order in which they are made."""


class Stopper(Protocol):
    """Who is told that the guest ended the machine."""

    def power_off(self) -> None: ...

    def reset(self) -> None: ...


class DeviceArgs(NamedTuple):
    """Host things that devices are made of."""

    vm: Vm
    console: Console
    stopper: Stopper


def prepare_vm(vm: Vm, stopper: Stopper) -> None:
    """What comes before memory: the pages that KVM needs on some hosts, and the registers that hold no state."""
    vm.fd.set_tss_addr(layout.KVM_TSS_GPA)
    vm.fd.set_identity_map_addr(layout.KVM_IDENTITY_MAP_GPA)
    vm.ports.insert(layout.SLEEP_CONTROL_PORT, 2, SleepRegisters(stopper.power_off))


def make_chip(state: State | None, kind: str, vm: Vm) -> Irqchip | Pit | KvmClock:
    """Create a chip in KVM, to be loaded with *state* later, or as KVM resets it."""
    if kind == Irqchip.kind:
        vm.fd.create_irqchip()
        return Irqchip.restore(state, vm.fd) if isinstance(state, IrqchipState) else Irqchip(vm.fd)
    if kind == Pit.kind:
        vm.fd.create_pit()
        return Pit.restore(state, vm.fd) if isinstance(state, PitState) else Pit(vm.fd)
    return KvmClock.restore(state, vm.fd) if isinstance(state, KvmClockState) else KvmClock(vm.fd)


def _serial(state: State, args: DeviceArgs) -> Serial16550:
    if not isinstance(state, SerialState):
        raise InternalError(f"{type(state).__name__} is no state of serial-16550")
    line = args.vm.line(layout.GSI_SERIAL, edge=True)
    serial = Serial16550.restore(state, SerialArgs(irq=line, out=args.console, room_ready=args.console.input_again))
    args.vm.ports.insert(layout.SERIAL_PORT, layout.SERIAL_PORT_LEN, serial)
    return serial


def _i8042(state: State, args: DeviceArgs) -> I8042:
    if not isinstance(state, I8042State):
        raise InternalError(f"{type(state).__name__} is no state of i8042")
    device = I8042.restore(state, I8042Args(reset_requested=args.stopper.reset))
    args.vm.ports.insert(layout.I8042_PORT, layout.I8042_PORT_LEN, device)
    return device


DEVICES: Mapping[str, Callable[[State, DeviceArgs], Serial16550 | I8042]] = {
    Serial16550.kind: _serial,
    I8042.kind: _i8042,
}
PORTS: Mapping[str, int] = {Serial16550.kind: layout.SERIAL_PORT, I8042.kind: layout.I8042_PORT}
"""Where each device sits on the port bus."""

Device = Serial16550 | I8042
Chip = Irqchip | Pit | KvmClock


def fresh_devices() -> dict[str, State]:
    """The states of the devices of a machine that was just switched on, by kind."""
    return {Serial16550.kind: SerialState(), I8042.kind: I8042State()}


def profile(vm: Vm, name: str) -> list[CpuidEntry]:
    """Return the CPUID of ``--cpu`` *name*, topology not yet told."""
    from snapkit.vmm.arch.x86_64 import cpuid

    if name == "baseline":
        return cpuid.baseline()
    if name != "host":
        raise ConfigError(f"cpu is {name!r}, must be host or baseline")
    return cpuid.host(vm.kvm.supported_cpuid(), tsc_deadline=bool(vm.kvm.extension(KVM_CAP_TSC_DEADLINE_TIMER)))


def with_topology(leaves: list[CpuidEntry], number: int, vcpus: int) -> list[CpuidEntry]:
    """Return what CPU *number* of *vcpus* is told of itself and of the others."""
    from snapkit.vmm.arch.x86_64 import cpuid

    return cpuid.with_topology(leaves, number, vcpus)


def load_guest(memory: GuestMemory, vcpus: int, kernel: str, initrd: str | None, cmdline: str) -> "BootEntry":
    """Put firmware tables and the kernel into fresh RAM; return how the boot CPU starts."""
    from snapkit.vmm.arch.x86_64 import acpi, firmware
    from snapkit.vmm.arch.x86_64.boot import load_kernel

    for gpa, table in acpi.build_tables(vcpus):
        memory.write(gpa, table)
    memory.write(layout.RESET_ENTRY_GPA, firmware.RESET_ENTRY)
    return load_kernel(memory, kernel, initrd_path=initrd, cmdline=cmdline)
