"""What makes a machine an aarch64 one: the parts of each kind, where they sit, and what a fresh one begins as."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from snapkit.errors import ConfigError, InternalError
from snapkit.state.gicv3_cpu_interface import CpuInterfaceState
from snapkit.state.gicv3_distributor import DistributorState
from snapkit.state.gicv3_its import ItsState
from snapkit.state.gicv3_redistributor import RedistributorState
from snapkit.state.machine import MachineState
from snapkit.state.rtc_pl031 import Pl031State as RtcState
from snapkit.state.schema import SectionId, State
from snapkit.state.serial_pl011 import Pl011State as SerialState
from snapkit.state.spec.aarch64 import mpidr_of
from snapkit.state.spec.address_map import AARCH64, GIC_IRQS
from snapkit.state.vcpu_aarch64 import Aarch64VcpuState
from snapkit.units import format_len
from snapkit.vmm.arch import Chip, Chips, ClockPolicy, PowerSwitch, Vcpu, Vcpus
from snapkit.vmm.arch.aarch64 import clock, layout
from snapkit.vmm.arch.aarch64.gic import CpuArgs, CpuInterface, Distributor, Redistributor, create_gic
from snapkit.vmm.arch.aarch64.its import Its, create_its
from snapkit.vmm.arch.aarch64.vcpu import Aarch64Vcpu, VcpuArgs, fresh_init
from snapkit.vmm.kvm.device import DeviceFd
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.kvm.vm_arm import IPA_BITS, ArmVmFd, ipa_bits
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.parts.part import Ground
from snapkit.vmm.vcpu import ExitSink, VcpuThread
from snapkit.vmm.vm import Vm

if TYPE_CHECKING:
    from snapkit.vmm.arch.aarch64.boot import BootEntry  # what only `boot` needs is imported when it is used
    from snapkit.vmm.arch.boot_file import GuestFiles
    from snapkit.vmm.parts.fresh import Fresh

MAP = AARCH64
VCPUS_MAX = 8
CPUS: Sequence[str] = ("host",)
VCPU = Aarch64Vcpu.kind
CHIPS: Collection[str] = (Distributor.kind, Redistributor.kind, CpuInterface.kind, Its.kind)

ram_regions = layout.ram_regions


def open_vm(kvm: Kvm, _switch: PowerSwitch) -> Vm:
    """Create a VM; a guest switches itself off by PSCI, which KVM tells of by KVM_EXIT_SYSTEM_EVENT."""
    return Vm(kvm, kvm.create_vm(ArmVmFd, ipa_bits(kvm)), lines=MAP.lines)


def ground(kvm: Kvm | None, regions: Sequence[tuple[int, int]]) -> Ground:
    """Return what of a new machine's sections the architecture decides; the 64-bit window by what KVM can address.

    Raises ConfigError when *regions* of RAM leave no room for that window.
    """
    window = layout.mmio64_window(IPA_BITS if kvm is None else ipa_bits(kvm))
    ((gpa, length),) = regions
    if gpa + length > window.gpa:
        room = format_len(window.gpa - gpa)
        raise ConfigError(
            f"memory is {format_len(length)}, must be at most {room} on this host: it has no wider addresses"
        )
    pools = {**MAP.pools, "mmio64": (int(window.gpa), window.length)}
    parts = {SectionId("serial-pl011", "0"): SerialState(), SectionId("rtc-pl031", "0"): RtcState()}
    return Ground(MAP._replace(pools=pools), layout.vmgenid_gpa(length), parts)


def kernel_parts(vcpus: int, transport: str | None) -> list[SectionId]:
    """Return vCPUs and chips of a new machine, in the order of their making: the GIC wants all vCPUs, the ITS the GIC."""
    numbers = [str(number) for number in range(vcpus)]
    parts = [SectionId(VCPU, number) for number in numbers]
    parts.append(SectionId(Distributor.kind, "0"))
    parts += [SectionId(kind, number) for kind in (Redistributor.kind, CpuInterface.kind) for number in numbers]
    return [*parts, SectionId(Its.kind, "0")] if transport == "pci" else parts


def make_chip(state: State | None, section: SectionId, vm: Vm, machine: MachineState, chips: Chips) -> Chip:
    """Create a chip in KVM, to be loaded with *state* later, or as KVM resets it."""
    kind, fd, vcpus = section.kind, _fd(vm), machine.vcpu_count
    if kind == Distributor.kind:
        if isinstance(state, DistributorState):
            return Distributor.restore(state, create_gic(fd, vcpus, state.nr_irqs))
        return Distributor(create_gic(fd, vcpus, GIC_IRQS), GIC_IRQS)
    if kind == Its.kind:
        device = create_its(fd, vcpus)
        return Its.restore(state, device) if isinstance(state, ItsState) else Its(device)
    args = CpuArgs(_gic(chips), mpidr_of(int(section.instance)))
    if kind == Redistributor.kind:
        return Redistributor.restore(state, args) if isinstance(state, RedistributorState) else Redistributor(args)
    return CpuInterface.restore(state, args) if isinstance(state, CpuInterfaceState) else CpuInterface(args)


def make_vcpu(state: State | None, section: SectionId, vm: Vm, _machine: MachineState, sink: ExitSink) -> Vcpu:
    """Create the vCPU *section*, to be loaded with *state* later, or as KVM resets it."""
    number = int(section.instance)
    if isinstance(state, Aarch64VcpuState) and not number:
        clock.require_rate(vm.kvm, state.counter_hz)
    fd = _fd(vm).create_vcpu(number)
    try:
        args = VcpuArgs(fd=fd)
        inside = Aarch64Vcpu.restore(state, args) if isinstance(state, Aarch64VcpuState) else Aarch64Vcpu(number, args)
        thread = VcpuThread(number, fd, lock=vm.lock, ports=vm.ports, mmio=vm.mmio, sink=sink)
    except BaseException:
        fd.close()
        raise
    return Vcpu(thread, inside)


def reset(vm: Vm, _machine: MachineState, vcpus: Vcpus, entry: "BootEntry") -> None:
    """Make fresh vCPUs what firmware would leave; the first begins at *entry*, the others wait for PSCI's CPU_ON."""
    init, rate = fresh_init(vm.kvm, _fd(vm)), clock.counter_hz(vm.kvm)
    for number, (vcpu, inside) in enumerate(_inside(vcpus.values())):
        vcpu.thread.call(partial(inside.reset, init, rate, None if number else entry))


def start_clocks(_chips: Iterable[Chip], vcpus: Iterable[Vcpu], policy: ClockPolicy) -> None:
    """Set going, at the first resume, what a snapshot holds of time; before any vCPU was in KVM_RUN."""
    clock.start([inside for _, inside in _inside(vcpus)], policy)


def save_clocks(chips: Iterable[Chip], vcpus: Vcpus, saved: Mapping[SectionId, State]) -> None:
    """Nothing is left to do: there is one counter for all vCPUs, and the first one's State has it with its wall time."""


def open_guest(kernel_path: str, initrd_path: str | None) -> AbstractContextManager["GuestFiles"]:
    """Open what is to be booted for the length of a with block. Raises ConfigError."""
    from snapkit.vmm.arch import boot_file

    return boot_file.open_guest(kernel_path, initrd_path)


def load_guest(memory: GuestMemory, guest: "GuestFiles", fresh: "Fresh", *, cmdline: str, vcpus: int) -> "BootEntry":
    """Put the kernel and the device tree into fresh RAM; return how the boot CPU starts."""
    from snapkit.vmm.arch.aarch64 import boot

    return boot.load_guest(memory, guest, fresh, cmdline=cmdline, vcpus=vcpus)


def _fd(vm: Vm) -> ArmVmFd:
    assert isinstance(vm.fd, ArmVmFd)  # as `open_vm` made it
    return vm.fd


def _gic(chips: Chips) -> DeviceFd:
    for chip in chips.values():
        if isinstance(chip, Distributor):
            return chip.device
    raise InternalError("a part of the GIC is made before its distributor")


def _inside(vcpus: Iterable[Vcpu]) -> list[tuple[Vcpu, Aarch64Vcpu]]:
    return [(vcpu, vcpu.state) for vcpu in vcpus if isinstance(vcpu.state, Aarch64Vcpu)]
