"""What differs between architectures. Each has a package of its own, whose module `platform` is a `Platform`.

The rest of the monitor asks `native` for that of this host's, and knows neither.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from snapkit import host
from snapkit.errors import IncompatibleHost
from snapkit.state.machine import MachineState
from snapkit.state.schema import SectionId, State
from snapkit.state.spec.address_map import AddressMap
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.parts.part import Ground
from snapkit.vmm.vcpu import ExitSink, VcpuThread
from snapkit.vmm.vm import Vm

if TYPE_CHECKING:
    from snapkit.vmm.kvm.system import Kvm
    from snapkit.vmm.parts.fresh import Fresh

ClockPolicy = Literal["continue", "realtime"]
"""Where the clocks of a restored guest go on: where they were saved, or further by the wall time since."""


class Chip(Protocol):
    """A part that lives in KVM beside the vCPUs."""

    def load(self) -> None:
        """Write the held state into KVM, once."""
        ...

    def save(self) -> State: ...

    def start_clock(self) -> None:
        """Go on with what it counts, from the first resume on."""
        ...

    def stop_clock(self) -> None:
        """Stand still while the machine is paused."""
        ...

    def close(self) -> None:
        """Give back what it has of the host; KVM keeps the chip as long as the VM."""
        ...


class VcpuState(Protocol):
    """A vCPU's state in KVM; only touched through its thread."""

    def load(self) -> None: ...

    def save(self) -> State: ...

    def tell_paused(self) -> None:
        """Tell the guest's watchdog that it was stopped."""
        ...


class Vcpu(NamedTuple):
    """A vCPU: its thread and its state in KVM, which is only touched through `VcpuThread.post` and `call`."""

    thread: VcpuThread
    state: VcpuState


Vcpus = Mapping[SectionId, Vcpu]
Chips = Mapping[SectionId, Chip]


class PowerSwitch(Protocol):
    """Who is told that the guest switched itself off."""

    def power_off(self) -> None: ...


class Platform(Protocol):
    """What makes a machine one of its architecture: the parts of each kind, where they sit, what a fresh one begins as.

    A module `platform` of an architecture's package is one.
    """

    MAP: AddressMap
    VCPUS_MAX: int
    CPUS: Sequence[str]
    """Names that ``--cpu`` takes."""
    VCPU: str
    """The kind of its vCPUs."""
    CHIPS: Collection[str]
    """Kinds of parts that live in KVM beside the vCPUs."""

    def open_vm(self, kvm: "Kvm", switch: PowerSwitch) -> Vm:
        """Create a VM, with what comes before its memory."""
        ...

    def ram_regions(self, length: int, /) -> Sequence[tuple[int, int]]:
        """Return where *length* bytes of RAM lie, as (gpa, length). Raises ConfigError for a length that cannot be."""
        ...

    def ground(self, kvm: "Kvm | None", regions: Sequence[tuple[int, int]], /) -> Ground:
        """Return what of a new machine's sections the architecture decides, on a usual KVM if none is given.

        Raises ConfigError when *regions* of RAM leave no room for the rest.
        """
        ...

    def kernel_parts(self, vcpus: int, transport: str | None, /) -> Sequence[SectionId]:
        """Return the chips and vCPUs of a new machine, in the order in which they are made."""
        ...

    def make_vcpu(
        self, state: State | None, section: SectionId, vm: Vm, machine: MachineState, sink: ExitSink, /
    ) -> Vcpu:
        """Create the vCPU *section* of *machine*, to be loaded with *state* later, or as KVM resets it."""
        ...

    def make_chip(
        self, state: State | None, section: SectionId, vm: Vm, machine: MachineState, chips: Chips, /
    ) -> Chip:
        """Create a chip in KVM, to be loaded with *state* later, or as KVM resets it. *chips* are those before it."""
        ...

    def reset(self, vm: Vm, machine: MachineState, vcpus: Vcpus, entry: Any) -> None:
        """Make fresh vCPUs what firmware would leave; the first begins at *entry*, as `load_guest` returned it."""
        ...

    def start_clocks(self, chips: Iterable[Chip], vcpus: Iterable[Vcpu], policy: ClockPolicy) -> None:
        """Set going, at the first resume, what a snapshot holds of time; before any vCPU was in KVM_RUN."""
        ...

    def save_clocks(self, chips: Iterable[Chip], vcpus: Vcpus, saved: Mapping[SectionId, State]) -> None:
        """Make the clocks and the counters of *vcpus* in *saved* those of one moment."""
        ...

    def open_guest(self, kernel_path: str, initrd_path: str | None) -> AbstractContextManager[Any]:
        """Open what is to be booted for the length of a with block. Raises ConfigError."""
        ...

    def load_guest(self, memory: GuestMemory, guest: Any, fresh: "Fresh", *, cmdline: str, vcpus: int) -> Any:
        """Put firmware tables and the kernel into fresh RAM; return how the boot CPU starts."""
        ...


_ARCHITECTURES = ("x86_64", "aarch64")
"""As uname(2) names them, and as their packages are named."""


def native() -> Platform:
    """Return that of this host. Raises IncompatibleHost where there is none."""
    name = host.machine_name()
    if name not in _ARCHITECTURES:
        raise IncompatibleHost(f"the host's architecture is {name}, must be {' or '.join(_ARCHITECTURES)}")
    platform: Platform = import_module(f"{__name__}.{name}.platform")
    return platform
