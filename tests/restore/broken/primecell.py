"""A serial port and a clock of aarch64 machines that contradict themselves."""

from snapkit.state.rtc_pl031 import Pl031State
from snapkit.state.schema import SectionId
from snapkit.state.serial_pl011 import Pl011State
from tests.restore.broken import broken
from tests.restore.device_machine import States

SERIAL, RTC = SectionId("serial-pl011", "0"), SectionId("rtc-pl031", "0")


@broken("arm-none", "pl011.reserved-bits: serial-pl011/0.cr")
def reserved_bits(states: States) -> None:
    states[SERIAL] = Pl011State(cr=0x308)


@broken("arm-none", "pl011.rx-room: serial-pl011/0.rx")
def fifo_too_full(states: States) -> None:
    states[SERIAL] = Pl011State(rx=b"ab", ris=0x10)


@broken("arm-none", "pl011.rx-announced: serial-pl011/0.ris")
def nothing_received_announced(states: States) -> None:
    states[SERIAL] = Pl011State(ris=0x40)


@broken("arm-none", "pl011.tx-latch: serial-pl011/0.ris")
def transmitter_announced_while_held(states: States) -> None:
    states[SERIAL] = Pl011State(ris=0x20, tx_held=True)


@broken("arm-none", "rtc.match: rtc-pl031/0.match_s")
def match_at_another_moment(states: States) -> None:
    states[RTC] = Pl031State(mr=1)
