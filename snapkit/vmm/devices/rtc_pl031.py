"""PL031 real-time clock: ARM DDI 0224. Counts seconds; interrupts when it reads what it is compared with.

The clock is the host's wall clock and an offset, so it shows the time of day whatever happened to the machine meanwhile:
a pause, a save, years as a file. A guest that sets its clock changes the offset. It runs from the beginning, as if it
had a battery: CR reads as started, and once that is so no write stops the chip (3.3.4).

The match is kept as a moment of the wall clock. Whoever has a timer calls `elapse` at `match_s`; every access does too.
A match that passed while the machine stood still or was a file is found when it goes on, and interrupts then. Setting
the clock past the match makes none: DR was never equal to MR.

Simpler than silicon: the counter takes a loaded value at once, not at the next second.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

from snapkit.state.codec import adopted, checked
from snapkit.state.rtc_pl031 import Pl031State
from snapkit.state.spec import pl031 as spec
from snapkit.state.spec.pl031 import COUNTS, Cr, Interrupt
from snapkit.state.spec.primecell import identification
from snapkit.vmm.devices.pins import IrqLine
from snapkit.vmm.devices.primecell import PrimeCell

_IDS = identification(spec.PART, spec.REVISION)


def _nothing() -> None:
    pass


class RtcArgs(NamedTuple):
    """Host things of a clock.

    *wall_s* gives Unix time in whole seconds. *match_moved* is called when `match_s` has another value; it runs inside a
    guest's access: it should note the fact and return.
    """

    irq: IrqLine
    wall_s: Callable[[], int]
    match_moved: Callable[[], None] = _nothing


class RtcPl031(PrimeCell):
    """One clock of 4 KiB, behind a bus. Every method needs the machine's lock."""

    kind: ClassVar[str] = "rtc-pl031"

    def __init__(self, state: Pl031State, args: RtcArgs) -> None:
        # Runtime glue
        self._irq, self._wall_s, self._match_moved = args
        self.faults = 0
        # Guest-visible state
        self.state = state
        self._level = self._irq_level()  # adopted: the pin had this level before

    @classmethod
    def restore(cls, state: Pl031State, args: RtcArgs) -> Self:
        """Construct the clock that *state* describes; its pin is not touched, and a match that passed not looked for.

        Raises ImageError naming the field that is out of bounds.
        """
        return cls(adopted(state), args)

    def save(self) -> Pl031State:
        """Return a detached copy of what the guest can see."""
        return checked(self.state)

    def reset(self) -> None:
        """Go back to the state after power-on and drop the pin: the time is the host's again."""
        self.state = Pl031State()
        self._update_irq()
        self._match_moved()

    def resync(self) -> None:
        """Drive the pin again after a restore, if its controller forgot the level without that being an edge."""
        if not self._irq.edge:
            self._irq.set_level(self._level)

    # Time

    @property
    def match_s(self) -> int | None:
        """When `elapse` is due, in Unix time; None while nothing would come of it."""
        return self.state.match_s if self.state.imsc and not self.state.ris else None

    def elapse(self) -> None:
        """Note that time has passed: interrupt if the match has come. Harmless at any time; due when the machine runs."""
        self._elapsed()

    def _elapsed(self) -> int:
        """Return what time it is, having seen to the match."""
        state, now_s = self.state, self._wall_s()
        if now_s >= state.match_s:
            state.match_s += ((now_s - state.match_s) // COUNTS + 1) * COUNTS
            state.ris |= Interrupt.MATCH
            self._update_irq()
            self._match_moved()
        return now_s

    # Registers, in offset order; what only reads a field is in the table above

    def _read_dr(self) -> int:
        return (self._elapsed() + self.state.offset_s) % COUNTS

    def _write_mr(self, value: int) -> None:
        now_s = self._elapsed()
        self.state.mr = value
        self._await_match(now_s)

    def _write_lr(self, value: int) -> None:
        now_s = self._elapsed()
        self.state.lr = value
        self.state.offset_s = (value - now_s) % COUNTS
        self._await_match(now_s)

    def _write_imsc(self, value: int) -> None:
        self._elapsed()
        self.state.imsc = Interrupt.merge(self.state.imsc, value)
        self._update_irq()
        self._match_moved()

    def _read_ris(self) -> int:
        self._elapsed()
        return self.state.ris

    def _write_icr(self, value: int) -> None:
        self._elapsed()
        self.state.ris &= ~value
        self._update_irq()
        self._match_moved()

    # Interrupt logic

    def _irq_level(self) -> bool:
        return bool(self.state.ris & self.state.imsc)

    def _update_irq(self) -> None:
        level = self._irq_level()
        if level != self._level:
            self._level = level
            self._irq.set_level(level)

    def _await_match(self, now_s: int) -> None:
        state = self.state
        state.match_s = now_s + (state.mr - state.offset_s - now_s) % COUNTS
        self._elapsed()  # equal by now: that is a match
        self._match_moved()


RtcPl031._connect(
    {
        spec.DR: RtcPl031._read_dr,
        spec.MR: lambda chip: chip.state.mr,
        spec.LR: lambda chip: chip.state.lr,
        spec.CR: lambda _chip: Cr.START,
        spec.IMSC: lambda chip: chip.state.imsc,
        spec.RIS: RtcPl031._read_ris,
        spec.MIS: lambda chip: chip._read_ris() & chip.state.imsc,
    },
    {
        spec.MR: RtcPl031._write_mr,
        spec.LR: RtcPl031._write_lr,
        spec.IMSC: RtcPl031._write_imsc,
        spec.ICR: RtcPl031._write_icr,
    },
    _IDS,
)
