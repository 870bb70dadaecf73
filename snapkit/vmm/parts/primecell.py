"""Parts of the aarch64 machine that are always there: serial port and real-time clock, PrimeCell peripherals both."""

from functools import partial

from snapkit import host
from snapkit.state.rtc_pl031 import Pl031State
from snapkit.state.schema import SectionId, State
from snapkit.state.serial_pl011 import Pl011State
from snapkit.state.spec.address_map import PL011_GPA, PL031_GPA, PRIMECELL_LEN
from snapkit.vmm.devices.pins import IrqLine
from snapkit.vmm.devices.rtc_pl031 import RtcArgs, RtcPl031
from snapkit.vmm.devices.serial_pl011 import SerialPl011
from snapkit.vmm.parts.chip import ChipPart, Place, SerialPart
from snapkit.vmm.parts.part import Part, Site, expect

_NS_PER_S = 10**9
_LONGEST_NS = 60 * _NS_PER_S
"""How long the loop's clock is trusted to keep step with the wall clock, which may be set."""


class ClockPart(ChipPart[RtcPl031]):
    """A real-time clock, with a timer on the loop while its guest waits for a match.

    The loop's timers cannot be taken back. At most one is the next, and another is set only for an earlier moment: those
    that a guest can have pending, by waiting for one second after the other, are as many as `_LONGEST_NS` has seconds.
    """

    def __init__(self, section: SectionId, state: Pl031State, site: Site) -> None:
        self._noted = False  # the loop has been asked to look when the match is
        self._timer_ns: int | None = None  # when the loop looks next
        self._active = False

        def make(line: IrqLine) -> RtcPl031:
            return RtcPl031.restore(state, RtcArgs(line, _wall_s, self._match_moved))

        super().__init__(section, site, Place(site.vm.mmio, PL031_GPA, PRIMECELL_LEN), make)

    def activate(self) -> None:
        super().activate()
        self._active = True

    def deactivate(self) -> None:
        self._active = False

    def run(self) -> None:
        self._look()

    def _match_moved(self) -> None:
        if self._active and not self._noted:
            self._noted = True
            self._site.loop.post(self._look)

    def _due(self, timer_ns: int) -> None:
        if self._timer_ns == timer_ns:
            self._timer_ns = None
        self._look()

    def _look(self) -> None:
        """Let the chip see what time it is, and have the loop look again at the match, or before."""
        self._noted = False
        if not self._active or not self._site.running():
            return  # `run` looks
        with self._site.vm.lock:
            self.chip.elapse()
            match_s = self.chip.match_s
        if match_s is None:
            return
        wait_ns = min(max(match_s * _NS_PER_S - host.realtime_ns(), 0), _LONGEST_NS)
        timer_ns = host.monotonic_ns() + wait_ns
        if self._timer_ns is None or timer_ns < self._timer_ns:
            self._timer_ns = timer_ns
            self._site.loop.call_at(timer_ns, partial(self._due, timer_ns))


def _wall_s() -> int:
    return host.realtime_ns() // _NS_PER_S


def build(section: SectionId, state: State, site: Site) -> Part:
    """Build the part of a serial port or a clock."""
    if section.kind == RtcPl031.kind:
        return ClockPart(section, expect(state, Pl031State), site)
    place = Place(site.vm.mmio, PL011_GPA, PRIMECELL_LEN)
    return SerialPart(section, expect(state, Pl011State), site, place, SerialPl011)
