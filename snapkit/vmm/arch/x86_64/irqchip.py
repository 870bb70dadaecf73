"""The chips that live in KVM beside the vCPUs: PICs and IOAPIC, PIT.

Loaded after all vCPUs: setting the IOAPIC injects the edges that it holds into the local APICs, and a local APIC set
later would wipe them.
"""

from typing import Self

from snapkit.state.codec import checked
from snapkit.state.irqchip_x86 import IrqchipState
from snapkit.state.pit import PitState
from snapkit.vmm.kvm.vm_x86 import X86VmFd

_MODE_WITHOUT_TIMER = 5  # a mode of channel 0 for which KVM sets no timer (pit_load_count in arch/x86/kvm/i8254.c)


class Irqchip:
    """PIC master, PIC slave, IOAPIC."""

    kind = "irqchip-x86"

    def __init__(self, vm: X86VmFd, pending: IrqchipState | None = None) -> None:
        self._vm, self._pending = vm, pending

    @classmethod
    def restore(cls, state: IrqchipState, args: X86VmFd) -> Self:
        """Hold *state*, which must have been checked and is only read, until `load`."""
        return cls(args, state)

    def load(self) -> None:
        """Write the held state into KVM, once."""
        state, self._pending = self._pending, None
        if state is not None:
            self._vm.set_irqchip(state)

    def close(self) -> None:
        """It goes with its VM."""

    def start_clock(self) -> None:
        """Nothing here keeps time."""

    def stop_clock(self) -> None:
        """Nothing here keeps time."""

    def save(self) -> IrqchipState:
        return self._vm.get_irqchip()


class Pit:
    """The 8254. It stands still while the machine is paused: KVM's would go on, and raise its interrupt meanwhile.

    KVM restarts every channel when the PIT is written, so each pause sets a running period back to its beginning.
    """

    kind = "pit"

    def __init__(self, vm: X86VmFd, pending: PitState | None = None) -> None:
        self._vm, self._pending = vm, pending

    @classmethod
    def restore(cls, state: PitState, args: X86VmFd) -> Self:
        """Hold *state*, which must have been checked and is only read, until `start_clock`."""
        return cls(args, state)

    def load(self) -> None:
        """Nothing is written before the machine runs: it would tick at once."""

    def close(self) -> None:
        """It goes with its VM."""

    def start_clock(self) -> None:
        """Let it go on from the held state."""
        if self._pending is not None:
            self._vm.set_pit(self._pending)
            self._pending = None

    def stop_clock(self) -> None:
        """Hold its state, and have KVM run none of it."""
        if self._pending is None:
            state = self._vm.get_pit()
            quiet = checked(state)
            quiet.channels[0].mode = _MODE_WITHOUT_TIMER
            self._vm.set_pit(quiet)
            self._pending = state

    def save(self) -> PitState:
        return self._vm.get_pit() if self._pending is None else checked(self._pending)
