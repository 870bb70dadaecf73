"""What makes a machine an x86-64 one: the parts of each kind, where they sit, and what a fresh one begins as."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from snapkit.errors import ConfigError
from snapkit.state.irqchip_x86 import IrqchipState
from snapkit.state.kvm_clock import KvmClockState
from snapkit.state.machine import EM_X86_64, MachineState
from snapkit.state.pit import PitState
from snapkit.state.schema import SectionId, State
from snapkit.state.vcpu_x86_64 import CpuidEntry, VcpuState
from snapkit.vmm.arch.x86_64 import layout
from snapkit.vmm.arch.x86_64.clock import ClockPolicy, KvmClock, save_together, start_together
from snapkit.vmm.arch.x86_64.irqchip import Irqchip, Pit
from snapkit.vmm.arch.x86_64.power import SleepRegisters
from snapkit.vmm.arch.x86_64.vcpu import VcpuArgs, X86Vcpu
from snapkit.vmm.kvm import abi
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.vcpu import ExitSink, VcpuThread
from snapkit.vmm.vm import Vm

if TYPE_CHECKING:
    from snapkit.vmm.arch.x86_64.boot_file import BootFile
    from snapkit.vmm.arch.x86_64.entry import BootEntry  # what only `boot` needs is imported when it is used
    from snapkit.vmm.parts.fresh import Fresh

ARCHITECTURE = EM_X86_64
VCPUS_MAX = 8

CHIPS: Mapping[str, type[Irqchip] | type[Pit] | type[KvmClock]] = {
    Irqchip.kind: Irqchip,
    Pit.kind: Pit,
    KvmClock.kind: KvmClock,
}
"""Parts that live in KVM beside the vCPUs, in the order in which they are made."""


class PowerSwitch(Protocol):
    """Who is told that the guest switched itself off."""

    def power_off(self) -> None: ...


def prepare_vm(vm: Vm, switch: PowerSwitch) -> None:
    """What comes before memory: the pages that KVM needs on some hosts, and the registers that hold no state."""
    vm.fd.set_tss_addr(layout.KVM_TSS_GPA)
    vm.fd.set_identity_map_addr(layout.KVM_IDENTITY_MAP_GPA)
    vm.ports.insert(layout.SLEEP_CONTROL_PORT, 2, SleepRegisters(switch.power_off))


def make_chip(state: State | None, kind: str, vm: Vm) -> Irqchip | Pit | KvmClock:
    """Create a chip in KVM, to be loaded with *state* later, or as KVM resets it."""
    if kind == Irqchip.kind:
        vm.fd.create_irqchip()
        return Irqchip.restore(state, vm.fd) if isinstance(state, IrqchipState) else Irqchip(vm.fd)
    if kind == Pit.kind:
        vm.fd.create_pit()
        return Pit.restore(state, vm.fd) if isinstance(state, PitState) else Pit(vm.fd)
    return KvmClock.restore(state, vm.fd) if isinstance(state, KvmClockState) else KvmClock(vm.fd)


Chip = Irqchip | Pit | KvmClock


class Vcpu(NamedTuple):
    """A vCPU: its thread and its state in KVM, which is only touched through `VcpuThread.post` and `call`."""

    thread: VcpuThread
    state: X86Vcpu


def make_vcpu(state: State | None, section: SectionId, vm: Vm, machine: MachineState, sink: ExitSink) -> Vcpu:
    """Create the vCPU *section* of *machine*, to be loaded with *state* later, or as KVM resets it."""
    number = int(section.instance)
    fd = vm.fd.create_vcpu(number)
    try:
        args = VcpuArgs(fd=fd, vm=vm, baseline=machine.cpu_profile == "baseline")
        inside = X86Vcpu.restore(state, args) if isinstance(state, VcpuState) else X86Vcpu(number, args)
        thread = VcpuThread(number, fd, lock=vm.lock, ports=vm.ports, mmio=vm.mmio, sink=sink)
    except BaseException:
        fd.close()
        raise
    return Vcpu(thread, inside)


def start_clocks(chips: Iterable[Chip], vcpus: Iterable[Vcpu], policy: ClockPolicy) -> None:
    """Set going, at the first resume, what a snapshot holds of time; before any vCPU was in KVM_RUN."""
    for chip in chips:
        if isinstance(chip, KvmClock):
            start_together(chip, [vcpu.state for vcpu in vcpus], policy)


def save_clocks(chips: Iterable[Chip], vcpus: Mapping[SectionId, Vcpu], saved: Mapping[SectionId, State]) -> None:
    """Make the clocks and the counters of *vcpus* in *saved* those of one moment."""
    first = next(iter(vcpus.values()))
    states = ((vcpu.state, saved[section]) for section, vcpu in vcpus.items())
    parts = [(vcpu, state) for vcpu, state in states if isinstance(state, VcpuState)]
    clocks = [state for state in saved.values() if isinstance(state, KvmClockState)]
    for chip, clock in zip((chip for chip in chips if isinstance(chip, KvmClock)), clocks, strict=True):
        first.thread.call(partial(save_together, chip, clock, parts))


def profile(vm: Vm, name: str) -> list[CpuidEntry]:
    """Return the CPUID of ``--cpu`` *name*, topology not yet told."""
    from snapkit.vmm.arch.x86_64 import cpuid

    if name == "baseline":
        return cpuid.baseline()
    if name != "host":
        raise ConfigError(f"cpu is {name!r}, must be host or baseline")
    return cpuid.host(vm.kvm.supported_cpuid(), tsc_deadline=bool(vm.kvm.extension(abi.KVM_CAP_TSC_DEADLINE_TIMER)))


def with_topology(leaves: list[CpuidEntry], number: int, vcpus: int) -> list[CpuidEntry]:
    """Return what CPU *number* of *vcpus* is told of itself and of the others."""
    from snapkit.vmm.arch.x86_64 import cpuid

    return cpuid.with_topology(leaves, number, vcpus)


class GuestFiles(NamedTuple):
    """What is booted, open."""

    kernel: "BootFile"
    initrd: "BootFile | None"


@contextmanager
def open_guest(kernel_path: str, initrd_path: str | None) -> Iterator[GuestFiles]:
    """Open what is to be booted for the length of a with block. Raises ConfigError."""
    from snapkit.vmm.arch.x86_64.boot_file import open_boot_file

    ramdisk = nullcontext() if initrd_path is None else open_boot_file(initrd_path, "initrd")
    with open_boot_file(kernel_path, "kernel") as kernel, ramdisk as initrd:
        yield GuestFiles(kernel, initrd)


def load_guest(memory: GuestMemory, guest: GuestFiles, fresh: "Fresh", *, cmdline: str, vcpus: int) -> "BootEntry":
    """Put firmware tables and the kernel into fresh RAM; return how the boot CPU starts."""
    from snapkit.vmm.arch.x86_64 import acpi, acpi_devices, firmware
    from snapkit.vmm.arch.x86_64.boot import load_kernel

    devices = [acpi_devices.virtio_mmio(number, slot.gpa, slot.gsi) for number, slot in enumerate(fresh.mmio_slots)]
    if fresh.generation_gsi is not None:
        devices.append(acpi_devices.vmgenid(layout.VMGENID_GPA, fresh.generation_gsi))
    for gpa, table in acpi.build_tables(vcpus, devices=devices, pci=fresh.transport == "pci"):
        memory.write(gpa, table)
    memory.write(layout.RESET_ENTRY_GPA, firmware.RESET_ENTRY)
    if fresh.transport == "mmio":
        cmdline = f"{cmdline} pci=off".strip()
    return load_kernel(memory, guest.kernel, initrd=guest.initrd, cmdline=cmdline)
