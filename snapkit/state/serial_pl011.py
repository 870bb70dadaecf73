"""The kind serial-pl011: what a guest can see of a PrimeCell UART (PL011).

ARM DDI 0183. FR is not stored: it follows from what waits in the receiver, from whether the wire takes bytes, and from
CR, since the far end asserts CTS, DSR and DCD for ever and loopback puts CR's outputs in their place. MIS is RIS under
IMSC. The transmitter holds nothing: a byte goes to the wire when it is written.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.schema import U8, U16, State, doc, register, schema
from snapkit.state.spec.pl011 import FIFO_LEN, Cr, Dmacr, Fbrd, Ifls, Interrupts, LcrH, Rsr


@schema("serial-pl011", version=1, max_len=1024)
class Pl011State(State):
    """Registers of one UART, and what waits in its receiver."""

    rsr: Annotated[U8, register(Rsr)] = 0
    ilpr: Annotated[U8, doc("IrDA low-power counter: kept, without effect")] = 0
    ibrd: Annotated[U16, doc("integer part of the baud rate divisor: kept, without effect")] = 0
    fbrd: Annotated[U8, register(Fbrd)] = 0
    lcr_h: Annotated[U8, register(LcrH)] = 0
    cr: Annotated[U16, register(Cr)] = Cr.reset
    ifls: Annotated[U8, register(Ifls)] = Ifls.reset
    imsc: Annotated[U16, register(Interrupts)] = 0
    ris: Annotated[U16, register(Interrupts)] = 0
    dmacr: Annotated[U8, register(Dmacr)] = 0
    rx: Annotated[bytes, Meta(max_length=FIFO_LEN), doc("the receiver, oldest byte first")] = b""
    overrun: Annotated[bool, doc("a character was lost and none was put into the receiver since")] = False
    tx_held: Annotated[bool, doc("the wire takes no more: the transmitter says that it is full and busy")] = False


RULES = {
    "pl011.reserved-bits": "Registers hold bits that the chip has: others are not kept.",
    "pl011.rx-room": "The receiver holds what its FIFO has room for.",
    "pl011.rx-announced": "A receiver that was emptied takes its interrupts back.",
    "pl011.tx-latch": "The transmitter's interrupt rises when it can take more: never while it is held.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: Pl011State, component: str) -> list[Finding]:
    """Return what in *state* no PL011 could hold, for the section *component*."""
    findings = [
        Finding(component, name, f"{value:#x}", f"within the defined bits {defined:#x}", "pl011.reserved-bits")
        for name, value, defined in (
            ("rsr", state.rsr, Rsr.defined),
            ("fbrd", state.fbrd, Fbrd.defined),
            ("cr", state.cr, Cr.defined),
            ("ifls", state.ifls, Ifls.defined),
            ("imsc", state.imsc, Interrupts.defined),
            ("ris", state.ris, Interrupts.defined),
            ("dmacr", state.dmacr, Dmacr.defined),
        )
        if value & ~defined
    ]
    room = FIFO_LEN if state.lcr_h & LcrH.FEN else 1
    if len(state.rx) > room:
        findings.append(Finding(component, "rx", f"{len(state.rx)} bytes", f"at most {room} by lcr_h", "pl011.rx-room"))
    if state.ris & (Interrupts.RX | Interrupts.RT) and not state.rx:
        wanted = "without RX and RT (rx is empty)"
        findings.append(Finding(component, "ris", f"{state.ris:#x}", wanted, "pl011.rx-announced"))
    if state.tx_held and state.ris & Interrupts.TX:
        findings.append(Finding(component, "ris", f"{state.ris:#x}", "without TX (tx_held)", "pl011.tx-latch"))
    return findings
