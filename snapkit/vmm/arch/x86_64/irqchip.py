"""The chips that live in KVM beside the vCPUs: PICs and IOAPIC, PIT, the paravirtual clock.

Loaded after all vCPUs: setting the IOAPIC injects the edges that it holds into the local APICs, and a local APIC set
later would wipe them.
"""

from typing import Self

from snapkit import host
from snapkit.state.codec import checked
from snapkit.state.irqchip_x86 import IrqchipState
from snapkit.state.kvm_clock import KvmClockState
from snapkit.state.pit import PitState
from snapkit.vmm.kvm.vm import VmFd


class Irqchip:
    """PIC master, PIC slave, IOAPIC."""

    kind = "irqchip-x86"

    def __init__(self, vm: VmFd, pending: IrqchipState | None = None) -> None:
        self._vm, self._pending = vm, pending

    @classmethod
    def restore(cls, state: IrqchipState, args: VmFd) -> Self:
        """Hold the checked state until `load`."""
        return cls(args, checked(state))

    def load(self) -> None:
        """Write the held state into KVM, once."""
        state, self._pending = self._pending, None
        if state is not None:
            self._vm.set_irqchip(state)

    def start_clock(self) -> None:
        """Nothing here keeps time."""

    def save(self) -> IrqchipState:
        return self._vm.get_irqchip()


class Pit:
    """The 8254."""

    kind = "pit"

    def __init__(self, vm: VmFd, pending: PitState | None = None) -> None:
        self._vm, self._pending = vm, pending

    @classmethod
    def restore(cls, state: PitState, args: VmFd) -> Self:
        """Hold the checked state until `load`."""
        return cls(args, checked(state))

    def load(self) -> None:
        """Write the held state into KVM, once."""
        state, self._pending = self._pending, None
        if state is not None:
            self._vm.set_pit(state)

    def start_clock(self) -> None:
        """KVM started it when it was loaded."""

    def save(self) -> PitState:
        return self._vm.get_pit()


class KvmClock:
    """The guest's paravirtual time. It starts when the machine first runs, not when it is loaded."""

    kind = "kvm-clock"

    def __init__(self, vm: VmFd, pending: KvmClockState | None = None) -> None:
        self._vm, self._pending = vm, pending

    @classmethod
    def restore(cls, state: KvmClockState, args: VmFd) -> Self:
        """Hold the checked state until `start_clock`."""
        return cls(args, checked(state))

    def load(self) -> None:
        """Nothing is written before the machine runs."""

    def start_clock(self) -> None:
        """Let the guest's time go on from where it was saved; once, at the first resume."""
        state, self._pending = self._pending, None
        if state is not None:
            self._vm.set_clock_ns(state.clock_ns)

    def save(self) -> KvmClockState:
        """Read the clock; one that was not started yet is given back as it was."""
        if self._pending is not None:
            return self._pending
        return KvmClockState(clock_ns=self._vm.get_clock_ns(), realtime_ns=host.realtime_ns())
