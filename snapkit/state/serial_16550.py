"""The kind serial-16550: what a guest can see of a 16550A UART.

PC16550D (National Semiconductor). IIR is not stored: it follows from the enabled causes, which are LSR, MSR, the
receiver's bytes and the transmitter-empty latch. The transmitter holds nothing, since a byte goes to the wire when it
is written; `Lsr.THRE` reads 0 only while the wire takes no more.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.schema import U8, State, register, schema
from snapkit.state.spec.ns16550a import FIFO_LEN, Fcr, Ier, Lcr, Lsr, Mcr, Msr

MODEM_INPUTS = Msr.CTS | Msr.DSR | Msr.DCD
"""The far end as the guest finds it: there, and ready to receive."""


@schema("serial-16550", version=1, max_len=1024)
class SerialState(State):
    """Registers of one UART, and what waits in its receiver."""

    dll: U8 = 0
    """Divisor latch, low byte."""
    dlm: U8 = 0
    """Divisor latch, high byte."""
    ier: Annotated[U8, register(Ier)] = 0
    fcr: Annotated[U8, register(Fcr)] = 0
    """What the guest last programmed, without the reset bits, which clear themselves."""
    lcr: Annotated[U8, register(Lcr)] = 0
    mcr: Annotated[U8, register(Mcr)] = 0
    lsr: Annotated[U8, register(Lsr)] = Lsr.reset
    msr: Annotated[U8, register(Msr)] = MODEM_INPUTS
    scr: U8 = 0
    """Scratch."""
    thre_pending: bool = False
    """The transmitter became empty and the guest has neither read IIR for it nor written again."""
    rx: Annotated[bytes, Meta(max_length=FIFO_LEN)] = b""
    """The receiver: its FIFO, oldest byte first, or its one buffer register while the FIFO is off."""


RULES = {
    "serial.reserved-bits": "Registers hold bits that the chip has: others are not kept.",
    "serial.rx-room": "The receiver holds what its FIFO has room for.",
    "serial.data-ready": "LSR.DR says whether the receiver holds a byte.",
    "serial.thre-latch": "An empty transmitter is announced only while it is empty.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: SerialState, component: str) -> list[Finding]:
    """Return what in *state* no 16550A could hold, for the section *component*."""
    findings = [
        Finding(component, name, f"{value:#04x}", f"within the defined bits {defined:#04x}", "serial.reserved-bits")
        for name, value, defined in (
            ("ier", state.ier, Ier.defined),
            ("fcr", state.fcr, Fcr.defined & ~(Fcr.RFR | Fcr.XFR)),
            ("mcr", state.mcr, Mcr.defined),
        )
        if value & ~defined
    ]
    room = FIFO_LEN if state.fcr & Fcr.FE else 1
    if len(state.rx) > room:
        findings.append(Finding(component, "rx", f"{len(state.rx)} bytes", f"at most {room} by fcr", "serial.rx-room"))
    if bool(state.lsr & Lsr.DR) != bool(state.rx):
        expected = "set (rx holds bytes)" if state.rx else "clear (rx is empty)"
        findings.append(Finding(component, "lsr", f"{state.lsr:#04x}", f"with DR {expected}", "serial.data-ready"))
    if state.thre_pending and not state.lsr & Lsr.THRE:
        findings.append(Finding(component, "thre_pending", "true", "false while lsr.THRE is 0", "serial.thre-latch"))
    return findings
