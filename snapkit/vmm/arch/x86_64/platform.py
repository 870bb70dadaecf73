"""What makes a machine an x86-64 one: the parts of each kind, where they sit, and what a fresh one begins as."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from snapkit.errors import ConfigError
from snapkit.state.i8042 import I8042State
from snapkit.state.irqchip_x86 import IrqchipState
from snapkit.state.kvm_clock import KvmClockState
from snapkit.state.machine import MachineState
from snapkit.state.pit import PitState
from snapkit.state.schema import SectionId, State
from snapkit.state.serial_16550 import SerialState
from snapkit.state.spec.address_map import X86_64
from snapkit.state.vcpu_x86_64 import CpuidEntry, VcpuState
from snapkit.vmm.arch import Chip, Chips, ClockPolicy, PowerSwitch, Vcpu, Vcpus
from snapkit.vmm.arch.x86_64 import layout
from snapkit.vmm.arch.x86_64.clock import KvmClock, save_together, start_together
from snapkit.vmm.arch.x86_64.irqchip import Irqchip, Pit
from snapkit.vmm.arch.x86_64.power import SleepRegisters
from snapkit.vmm.arch.x86_64.vcpu import VcpuArgs, X86Vcpu
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.kvm.system_x86 import supported_cpuid
from snapkit.vmm.kvm.vm_x86 import X86VmFd
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.parts.part import Ground
from snapkit.vmm.vcpu import ExitSink, VcpuThread
from snapkit.vmm.vm import Vm

if TYPE_CHECKING:
    from snapkit.vmm.arch.boot_file import GuestFiles
    from snapkit.vmm.arch.x86_64.entry import BootEntry  # what only `boot` needs is imported when it is used
    from snapkit.vmm.parts.fresh import Fresh

MAP = X86_64
VCPUS_MAX = 8
CPUS: Sequence[str] = ("host", "baseline")
VCPU = X86Vcpu.kind
CHIPS: Collection[str] = (Irqchip.kind, Pit.kind, KvmClock.kind)

ram_regions = layout.ram_regions


def open_vm(kvm: Kvm, switch: PowerSwitch) -> Vm:
    """Create a VM; with the pages that KVM needs on some hosts, and the registers that hold no state."""
    fd = kvm.create_vm(X86VmFd)
    vm = Vm(kvm, fd, lines=MAP.lines)
    try:
        fd.set_tss_addr(layout.KVM_TSS_GPA)
        fd.set_identity_map_addr(layout.KVM_IDENTITY_MAP_GPA)
        vm.ports.insert(layout.SLEEP_CONTROL_PORT, 2, SleepRegisters(switch.power_off))
    except BaseException:
        vm.close()
        raise
    return vm


def ground(_kvm: Kvm | None, _regions: Sequence[tuple[int, int]]) -> Ground:
    """Return what of a new machine's sections the architecture decides."""
    parts = {SectionId("serial-16550", "0"): SerialState(), SectionId("i8042", "0"): I8042State()}
    return Ground(MAP, layout.VMGENID_GPA, parts)


def kernel_parts(vcpus: int, _transport: str | None) -> list[SectionId]:
    """Return the chips and vCPUs of a new machine: a local APIC is made with its vCPU, and only beside an irqchip."""
    return [SectionId(kind, "0") for kind in CHIPS] + [SectionId(VCPU, str(number)) for number in range(vcpus)]


def make_chip(state: State | None, section: SectionId, vm: Vm, _machine: MachineState, _chips: Chips) -> Chip:
    """Create a chip in KVM, to be loaded with *state* later, or as KVM resets it."""
    fd = _fd(vm)
    if section.kind == Irqchip.kind:
        fd.create_irqchip()
        return Irqchip.restore(state, fd) if isinstance(state, IrqchipState) else Irqchip(fd)
    if section.kind == Pit.kind:
        fd.create_pit()
        return Pit.restore(state, fd) if isinstance(state, PitState) else Pit(fd)
    return KvmClock.restore(state, fd) if isinstance(state, KvmClockState) else KvmClock(fd)


def make_vcpu(state: State | None, section: SectionId, vm: Vm, machine: MachineState, sink: ExitSink) -> Vcpu:
    """Create the vCPU *section* of *machine*, to be loaded with *state* later, or as KVM resets it."""
    number = int(section.instance)
    fd = _fd(vm).create_vcpu(number)
    try:
        args = VcpuArgs(fd=fd, vm=vm, baseline=machine.cpu_profile == "baseline")
        inside = X86Vcpu.restore(state, args) if isinstance(state, VcpuState) else X86Vcpu(number, args)
        thread = VcpuThread(number, fd, lock=vm.lock, ports=vm.ports, mmio=vm.mmio, sink=sink)
    except BaseException:
        fd.close()
        raise
    return Vcpu(thread, inside)


def reset(vm: Vm, machine: MachineState, vcpus: Vcpus, entry: "BootEntry") -> None:
    """Make fresh vCPUs what firmware would leave; the first begins at *entry*, the others wait for it."""
    leaves = profile(vm, machine.cpu_profile)
    for number, (vcpu, inside) in enumerate(_inside(vcpus.values())):
        told = with_topology(leaves, number, len(vcpus))
        vcpu.thread.call(partial(inside.reset, told, None if number else entry))
        if not number and machine.cpu_profile == "host":
            machine.tsc_khz = vcpu.thread.call(inside.tsc_khz)


def start_clocks(chips: Iterable[Chip], vcpus: Iterable[Vcpu], policy: ClockPolicy) -> None:
    """Set going, at the first resume, what a snapshot holds of time; before any vCPU was in KVM_RUN."""
    for chip in chips:
        if isinstance(chip, KvmClock):
            start_together(chip, [inside for _, inside in _inside(vcpus)], policy)


def save_clocks(chips: Iterable[Chip], vcpus: Vcpus, saved: Mapping[SectionId, State]) -> None:
    """Make the clocks and the counters of *vcpus* in *saved* those of one moment."""
    first = next(iter(vcpus.values()))
    states = ((vcpu.state, saved[section]) for section, vcpu in vcpus.items())
    parts = [(vcpu, state) for vcpu, state in states if isinstance(vcpu, X86Vcpu) and isinstance(state, VcpuState)]
    clocks = [state for state in saved.values() if isinstance(state, KvmClockState)]
    for chip, clock in zip((chip for chip in chips if isinstance(chip, KvmClock)), clocks, strict=True):
        first.thread.call(partial(save_together, chip, clock, parts))


def _fd(vm: Vm) -> X86VmFd:
    assert isinstance(vm.fd, X86VmFd)  # as `open_vm` made it
    return vm.fd


def _inside(vcpus: Iterable[Vcpu]) -> list[tuple[Vcpu, X86Vcpu]]:
    return [(vcpu, vcpu.state) for vcpu in vcpus if isinstance(vcpu.state, X86Vcpu)]


def profile(vm: Vm, name: str) -> list[CpuidEntry]:
    """Return the CPUID of ``--cpu`` *name*, topology not yet told."""
    from snapkit.vmm.arch.x86_64 import cpuid

    if name == "baseline":
        return cpuid.baseline()
    if name != "host":
        raise ConfigError(f"cpu is {name!r}, must be host or baseline")
    return cpuid.host(supported_cpuid(vm.kvm), tsc_deadline=bool(vm.kvm.extension(abi.KVM_CAP_TSC_DEADLINE_TIMER)))


def with_topology(leaves: list[CpuidEntry], number: int, vcpus: int) -> list[CpuidEntry]:
    """Return what CPU *number* of *vcpus* is told of itself and of the others."""
    from snapkit.vmm.arch.x86_64 import cpuid

    return cpuid.with_topology(leaves, number, vcpus)


def open_guest(kernel_path: str, initrd_path: str | None) -> AbstractContextManager["GuestFiles"]:
    """Open what is to be booted for the length of a with block. Raises ConfigError."""
    from snapkit.vmm.arch import boot_file

    return boot_file.open_guest(kernel_path, initrd_path)


def load_guest(memory: GuestMemory, guest: "GuestFiles", fresh: "Fresh", *, cmdline: str, vcpus: int) -> "BootEntry":
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
