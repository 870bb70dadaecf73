"""PL011 UART: ARM DDI 0183. The chip only; the wire is *out* and `receive`, the pin is *irq*, the combined UARTINTR.

Where it is simpler than silicon, and no driver can tell or none minds:

- no baud rate and no character times: a byte written goes to the wire at once, so that the transmitter is empty and its
  interrupt has risen by the time that the write is over, whatever its level says. It is full and busy only while the
  wire takes no more, until `transmit_ready`; that throttles a guest without losing a byte;
- what is received below the FIFO's level is reported by the receive timeout at once;
- the transmitter sends whether it is enabled or not: early consoles write to DR and nothing else, as firmware enabled
  it, and here there is none. The receiver must be enabled: until then the host keeps what comes;
- the wire has no parity, framing or break, so of the errors only the overrun happens, and that in loopback only: the
  host keeps what `receive` has no room for;
- the far end asserts CTS, DSR and DCD for ever, so modem interrupts come from loopback only;
- there is no infrared, no DMA, and none of the integration test registers.

Surprises: writing ICR takes the receiver's interrupts away although bytes are waiting; the next one that comes raises
one again, and so does a read that leaves some below the level. The transmitter's interrupt follows a write, not its being
enabled: a driver sends its first characters unasked.
"""

from typing import ClassVar

from snapkit.state.serial_pl011 import Pl011State
from snapkit.state.spec import pl011 as spec
from snapkit.state.spec.pl011 import Cr, Dmacr, Dr, Fbrd, Fr, Ifls, Interrupts, LcrH, Rsr
from snapkit.state.spec.primecell import identification
from snapkit.vmm.devices.primecell import PrimeCell
from snapkit.vmm.devices.uart import BYTES, Uart

_IDS = identification(spec.PART, spec.REVISION)
_MODEM_INPUTS = Fr.CTS | Fr.DSR | Fr.DCD
_RECEIVER = Cr.UARTEN | Cr.RXE
_LOOPED = ((Cr.RTS, Fr.CTS), (Cr.DTR, Fr.DSR), (Cr.OUT1, Fr.DCD), (Cr.OUT2, Fr.RI))
_CHANGES = (
    (Fr.RI, Interrupts.RIM),
    (Fr.CTS, Interrupts.CTSM),
    (Fr.DCD, Interrupts.DCDM),
    (Fr.DSR, Interrupts.DSRM),
)


class SerialPl011(PrimeCell, Uart[Pl011State]):
    """One UART of 4 KiB, behind a bus. Every method needs the machine's lock."""

    kind: ClassVar[str] = "serial-pl011"

    def reset(self) -> None:
        """Go back to the state after power-on, dropping received bytes and the pin."""
        self.state = Pl011State()
        self._update_irq()

    # The wire

    @property
    def room(self) -> int:
        """How many bytes `receive` would take now; none in loopback, or before the receiver is enabled."""
        state = self.state
        if state.cr & (_RECEIVER | Cr.LBE) != _RECEIVER:
            return 0
        return max(0, self._capacity() - len(state.rx))

    def transmit_ready(self) -> None:
        if self.state.tx_held and not self._out.full:
            self._transmitter_empty()

    # Registers, in offset order; what only reads a field is in the table above

    def _read_dr(self) -> int:
        state = self.state
        lost = Dr.OE if state.overrun else 0
        received = state.rx
        if not received:
            return lost
        state.rx = received[1:]
        if not state.rx:
            state.ris &= ~(Interrupts.RX | Interrupts.RT)
        elif len(state.rx) < self._trigger_len():
            state.ris = state.ris & ~Interrupts.RX | Interrupts.RT
        self._update_irq()
        self._offer_room()
        return received[0] | lost

    def _write_dr(self, value: int) -> None:
        state = self.state
        value &= Dr.DATA
        if state.cr & Cr.LBE:
            self._shift_in(value)
            if not state.tx_held:
                self._transmitter_empty()
            return
        self._out.write(BYTES[value])
        if self._out.full:
            state.tx_held = True
            state.ris &= ~Interrupts.TX
            self._update_irq()
        else:
            self._transmitter_empty()

    def _write_ecr(self, _value: int) -> None:
        self.state.rsr = 0

    def _flags(self) -> int:
        state = self.state
        flags = _inputs(state.cr)
        flags |= Fr.TXFF | Fr.BUSY if state.tx_held else Fr.TXFE
        if not state.rx:
            return flags | Fr.RXFE
        return flags | Fr.RXFF if len(state.rx) >= self._capacity() else flags

    def _write_ilpr(self, value: int) -> None:
        self.state.ilpr = value & 0xFF

    def _write_ibrd(self, value: int) -> None:
        self.state.ibrd = value & 0xFFFF

    def _write_fbrd(self, value: int) -> None:
        self.state.fbrd = Fbrd.merge(self.state.fbrd, value)

    def _write_lcr_h(self, value: int) -> None:
        state = self.state
        old, state.lcr_h = state.lcr_h, LcrH.merge(state.lcr_h, value)
        if (old ^ state.lcr_h) & LcrH.FEN:  # FIFO and holding register are not the same place
            state.rx = b""
            state.ris &= ~(Interrupts.RX | Interrupts.RT)
            self._update_irq()
            self._offer_room()

    def _write_cr(self, value: int) -> None:
        state = self.state
        old, state.cr = state.cr, Cr.merge(state.cr, value)
        changed = _inputs(old) ^ _inputs(state.cr)
        for flag, interrupt in _CHANGES if changed else ():
            if changed & flag:
                state.ris |= interrupt
        self._update_irq()
        self._offer_room()

    def _write_ifls(self, value: int) -> None:
        self.state.ifls = Ifls.merge(self.state.ifls, value)

    def _write_imsc(self, value: int) -> None:
        self.state.imsc = Interrupts.merge(self.state.imsc, value)
        self._update_irq()

    def _write_icr(self, value: int) -> None:
        self.state.ris &= ~value
        self._update_irq()

    def _write_dmacr(self, value: int) -> None:
        self.state.dmacr = Dmacr.merge(self.state.dmacr, value)

    # Interrupt logic

    def _irq_level(self) -> bool:
        return bool(self.state.ris & self.state.imsc)

    # Helpers

    def _capacity(self) -> int:
        return spec.FIFO_LEN if self.state.lcr_h & LcrH.FEN else 1

    def _trigger_len(self) -> int:
        if not self.state.lcr_h & LcrH.FEN:
            return 1
        select = Ifls.RXIFLSEL.get(self.state.ifls)
        return spec.TRIGGER_LEN[min(select, len(spec.TRIGGER_LEN) - 1)]  # the reserved ones: as the highest

    def _take(self, payload: bytes) -> None:
        state = self.state
        state.rx += payload
        state.overrun = False
        state.ris |= Interrupts.RX if len(state.rx) >= self._trigger_len() else Interrupts.RT

    def _transmitter_empty(self) -> None:
        self.state.tx_held = False
        self.state.ris |= Interrupts.TX
        self._update_irq()

    def _shift_in(self, value: int) -> None:
        # Loopback only. An overrun leaves the FIFO as it is and loses the new byte (3.3.2).
        state = self.state
        if len(state.rx) < self._capacity():
            self._take(BYTES[value])
        else:
            state.overrun = True
            state.rsr |= Rsr.OE
            state.ris |= Interrupts.OE
        self._update_irq()


def _inputs(cr: int) -> int:
    """The modem inputs that FR shows: the far end's, or in loopback the four outputs (3.3.8)."""
    return sum(pin for out, pin in _LOOPED if cr & out) if cr & Cr.LBE else _MODEM_INPUTS


SerialPl011._connect(
    {
        spec.DR: SerialPl011._read_dr,
        spec.RSR_ECR: lambda chip: chip.state.rsr,
        spec.FR: SerialPl011._flags,
        spec.ILPR: lambda chip: chip.state.ilpr,
        spec.IBRD: lambda chip: chip.state.ibrd,
        spec.FBRD: lambda chip: chip.state.fbrd,
        spec.LCR_H: lambda chip: chip.state.lcr_h,
        spec.CR: lambda chip: chip.state.cr,
        spec.IFLS: lambda chip: chip.state.ifls,
        spec.IMSC: lambda chip: chip.state.imsc,
        spec.RIS: lambda chip: chip.state.ris,
        spec.MIS: lambda chip: chip.state.ris & chip.state.imsc,
        spec.DMACR: lambda chip: chip.state.dmacr,
    },
    {
        spec.DR: SerialPl011._write_dr,
        spec.RSR_ECR: SerialPl011._write_ecr,
        spec.ILPR: SerialPl011._write_ilpr,
        spec.IBRD: SerialPl011._write_ibrd,
        spec.FBRD: SerialPl011._write_fbrd,
        spec.LCR_H: SerialPl011._write_lcr_h,
        spec.CR: SerialPl011._write_cr,
        spec.IFLS: SerialPl011._write_ifls,
        spec.IMSC: SerialPl011._write_imsc,
        spec.ICR: SerialPl011._write_icr,
        spec.DMACR: SerialPl011._write_dmacr,
    },
    _IDS,
)
