"""16550A UART: PC16550D (National Semiconductor). The chip only; the wire is *out* and `receive`, the pin is *irq*.

Where it is simpler than silicon, and no driver can tell or none minds:

- no baud rate: a byte written goes to the wire at once and whole, whatever the word length says, so the transmitter's
  FIFO is always empty. THRE and TEMT read 0 only while the wire takes no more, until `transmit_ready`; that throttles a
  guest without losing a byte;
- no character times: a receiver FIFO below its trigger level reports its time-out at once, rather than after four idle
  characters. Either way the interrupt is immediate, only IIR tells the two apart;
- the wire has no parity, framing or break, so of the line errors only the overrun happens, and that in loopback only:
  the host keeps what `receive` has no room for;
- the far end asserts CTS, DSR and DCD for ever, so modem interrupts come from loopback only;
- OUT2 does not gate the interrupt: that gate was the IBM board's, not the chip's.

Surprise: the transmitter-empty interrupt is a latch, not the LSR bit. It is set when the transmitter becomes empty or
when its interrupt is enabled while it is empty, and cleared by reading IIR while IIR names it, or by writing a byte.
On an edge-triggered pin that byte must take the pin down and up again, or the next interrupt is never seen.
"""

from typing import ClassVar

from snapkit.state.serial_16550 import MODEM_INPUTS, SerialState
from snapkit.state.spec import ns16550a as spec
from snapkit.state.spec.ns16550a import Fcr, Ier, Lcr, Lsr, Mcr, Msr
from snapkit.vmm.devices.uart import BYTES, SerialArgs, Uart

_ERRORS = Lsr.OE | Lsr.PE | Lsr.FE | Lsr.BI
_EMPTY = Lsr.THRE | Lsr.TEMT
_INPUTS = Msr.CTS | Msr.DSR | Msr.RI | Msr.DCD
_DELTAS = Msr.DCTS | Msr.DDSR | Msr.TERI | Msr.DDCD


class Serial16550(Uart[SerialState]):
    """One UART of eight ports, behind a bus. Every method needs the machine's lock."""

    kind: ClassVar[str] = "serial-16550"

    def __init__(self, state: SerialState, args: SerialArgs) -> None:
        super().__init__(state, args)
        # Ports: dumb lists by offset, one pair for either meaning of offsets 0 and 1
        reads = [
            self._read_rbr,
            self._read_ier,
            self._read_iir,
            self._read_lcr,
            self._read_mcr,
            self._read_lsr,
            self._read_msr,
            self._read_scr,
        ]
        writes = [
            self._write_thr,
            self._write_ier,
            self._write_fcr,
            self._write_lcr,
            self._write_mcr,
            self._ignore_write,
            self._ignore_write,
            self._write_scr,
        ]
        self._plain = reads, writes
        self._latch = [self._read_dll, self._read_dlm, *reads[2:]], [self._write_dll, self._write_dlm, *writes[2:]]
        self._select_ports()

    def reset(self) -> None:
        """Go back to the state after power-on, dropping received bytes and the pin."""
        self.state = SerialState()
        self._select_ports()
        self._update_irq()
        self._offer_room()

    # The wire

    @property
    def room(self) -> int:
        """How many bytes `receive` would take now; none in loopback, which disconnects the wire."""
        if self.state.mcr & Mcr.LOOP:
            return 0
        return max(0, self._capacity() - len(self.state.rx))

    def transmit_ready(self) -> None:
        if not self.state.lsr & Lsr.THRE and not self._out.full:
            self._transmitter_empty()

    # The bus

    def read(self, offset: int, length: int) -> int:
        """Read the port at *offset*; all ones for an access that is not one byte of the eight."""
        if length == 1 and 0 <= offset < spec.PORTS:
            return self._reads[offset]()
        self.faults += 1
        return (1 << 8 * length) - 1

    def write(self, offset: int, length: int, value: int) -> None:
        """Write the port at *offset*; nothing for an access that is not one byte of the eight."""
        if length == 1 and 0 <= offset < spec.PORTS:
            self._writes[offset](value & 0xFF)
        else:
            self.faults += 1

    # Registers, in offset order

    def _read_rbr(self) -> int:
        state = self.state
        received = state.rx
        if not received:
            return 0
        state.rx = received[1:]
        if state.rx:
            self._update_irq()  # may have fallen below the trigger level
        else:
            state.lsr &= ~Lsr.DR
            self._update_irq()
            self._offer_room()
        return received[0]

    def _write_thr(self, value: int) -> None:
        state = self.state
        if state.thre_pending:
            state.thre_pending = False
            self._update_irq()
        if state.mcr & Mcr.LOOP:
            self._shift_in(value)
            if state.lsr & Lsr.THRE:
                self._transmitter_empty()
            return
        self._out.write(BYTES[value])
        if self._out.full:
            state.lsr &= ~_EMPTY
        else:
            self._transmitter_empty()

    def _read_dll(self) -> int:
        return self.state.dll

    def _write_dll(self, value: int) -> None:
        self.state.dll = value

    def _read_dlm(self) -> int:
        return self.state.dlm

    def _write_dlm(self, value: int) -> None:
        self.state.dlm = value

    def _read_ier(self) -> int:
        return self.state.ier

    def _write_ier(self, value: int) -> None:
        state = self.state
        old, state.ier = state.ier, Ier.merge(state.ier, value)
        if state.ier & ~old & Ier.ETBEI and state.lsr & Lsr.THRE:
            state.thre_pending = True
        self._update_irq()

    def _read_iir(self) -> int:
        state = self.state
        cause = self._cause()
        if cause == spec.IID_THRE:
            state.thre_pending = False
            self._update_irq()
        return cause | spec.Iir.FE if state.fcr & Fcr.FE else cause

    def _write_fcr(self, value: int) -> None:
        state = self.state
        # The other bits are taken only together with FE (8.4); the reset bits clear themselves.
        new = value & (Fcr.FE | Fcr.DMA | Fcr.RTL) if value & Fcr.FE else 0
        empties = (state.fcr ^ new) & Fcr.FE or (new and value & Fcr.RFR)
        state.fcr = new
        if empties:
            state.rx = b""
            state.lsr &= ~(Lsr.DR | Lsr.RFE)
        self._update_irq()
        if empties:
            self._offer_room()

    def _read_lcr(self) -> int:
        return self.state.lcr

    def _write_lcr(self, value: int) -> None:
        self.state.lcr = Lcr.merge(self.state.lcr, value)
        self._select_ports()

    def _read_mcr(self) -> int:
        return self.state.mcr

    def _write_mcr(self, value: int) -> None:
        self.state.mcr = Mcr.merge(self.state.mcr, value)
        self._update_inputs()
        self._update_irq()
        self._offer_room()

    def _read_lsr(self) -> int:
        value = self.state.lsr
        if value & Lsr.read_clear:
            self.state.lsr = Lsr.after_read(value)
            self._update_irq()
        return value

    def _read_msr(self) -> int:
        value = self.state.msr
        if value & Msr.read_clear:
            self.state.msr = Msr.after_read(value)
            self._update_irq()
        return value

    def _read_scr(self) -> int:
        return self.state.scr

    def _write_scr(self, value: int) -> None:
        self.state.scr = value

    def _ignore_write(self, value: int) -> None:
        pass  # LSR and MSR: writes are for factory tests (8.3, 8.8)

    # Interrupt logic

    def _cause(self) -> int:
        """The cause that IIR names: the highest of the enabled ones (table IV)."""
        state = self.state
        ier = state.ier
        if ier & Ier.ELSI and state.lsr & _ERRORS:
            return spec.IID_RLS
        if ier & Ier.ERBFI and state.lsr & Lsr.DR:
            below = state.fcr & Fcr.FE and len(state.rx) < spec.RTL_LEN[Fcr.RTL.get(state.fcr)]
            return spec.IID_CTI if below else spec.IID_RDA
        if ier & Ier.ETBEI and state.thre_pending:
            return spec.IID_THRE
        if ier & Ier.EDSSI and state.msr & _DELTAS:
            return spec.IID_MS
        return spec.IID_NONE

    def _irq_level(self) -> bool:
        return self._cause() != spec.IID_NONE

    # Helpers

    def _select_ports(self) -> None:
        self._reads, self._writes = self._latch if self.state.lcr & Lcr.DLAB else self._plain

    def _capacity(self) -> int:
        return spec.FIFO_LEN if self.state.fcr & Fcr.FE else 1

    def _take(self, payload: bytes) -> None:
        self.state.rx += payload
        self.state.lsr |= Lsr.DR

    def _transmitter_empty(self) -> None:
        self.state.lsr |= _EMPTY
        self.state.thre_pending = True
        self._update_irq()

    def _shift_in(self, value: int) -> None:
        # Loopback only. An overrun loses the new byte while the FIFO is on, the old one while it is off (8.3).
        state = self.state
        if len(state.rx) < self._capacity():
            state.rx += BYTES[value]
        else:
            state.lsr |= Lsr.OE
            if not state.fcr & Fcr.FE:
                state.rx = BYTES[value]
        state.lsr |= Lsr.DR
        self._update_irq()

    def _update_inputs(self) -> None:
        # In loopback the four outputs become the four inputs (8.7).
        state = self.state
        inputs: int = MODEM_INPUTS
        if (mcr := state.mcr) & Mcr.LOOP:
            inputs = sum(pin for out, pin in _LOOPED if mcr & out)
        changed = (state.msr ^ inputs) & _INPUTS
        deltas = (changed >> 4) & (Msr.DCTS | Msr.DDSR | Msr.DDCD)
        if changed & state.msr & Msr.RI:  # the trailing edge only
            deltas |= Msr.TERI
        state.msr = (state.msr & _DELTAS) | deltas | inputs


_LOOPED = ((Mcr.RTS, Msr.CTS), (Mcr.DTR, Msr.DSR), (Mcr.OUT1, Msr.RI), (Mcr.OUT2, Msr.DCD))
