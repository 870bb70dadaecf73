"""PC16550D Universal Asynchronous Receiver/Transmitter with FIFOs (National Semiconductor, June 1995).

Register names and field names are the data sheet's, section 8 and table II. Offsets are from the first port; offsets 0
and 1 have a second meaning while `Lcr.DLAB` is set, offset 2 reads as IIR and writes as FCR.
"""

from typing import Final

from snapkit.bits import Register, bit, bits

PORTS: Final = 8
FIFO_LEN: Final = 16

RBR_THR: Final = 0
IER: Final = 1
IIR_FCR: Final = 2
LCR: Final = 3
MCR: Final = 4
LSR: Final = 5
MSR: Final = 6
SCR: Final = 7
DLL: Final = 0
DLM: Final = 1

RTL_LEN: Final = (1, 4, 8, 14)
"""Bytes in the receiver FIFO at which "received data available" rises, by the value of `Fcr.RTL`."""

# Table IV: what IIR 3:0 says, highest priority first.
IID_RLS: Final = 0x06
IID_RDA: Final = 0x04
IID_CTI: Final = 0x0C
IID_THRE: Final = 0x02
IID_MS: Final = 0x00
IID_NONE: Final = 0x01


class Ier(Register, width=8, ref="PC16550D, 8.6 interrupt enable register"):
    ERBFI = bit(0, "received data available interrupt (and FIFO time-out)")
    ETBEI = bit(1, "transmitter holding register empty interrupt")
    ELSI = bit(2, "receiver line status interrupt")
    EDSSI = bit(3, "modem status interrupt")


class Iir(Register, width=8, reset=0x01, ref="PC16550D, 8.5 interrupt identification register"):
    IP = bit(0, "0 if an interrupt is pending", "ro")
    IID = bits(3, 1, "which: 3 line status, 2 data available, 6 time-out, 1 transmitter empty, 0 modem status", "ro")
    FE = bits(7, 6, "both set while the FIFOs are enabled", "ro")


class Fcr(Register, width=8, ref="PC16550D, 8.4 FIFO control register"):
    FE = bit(0, "FIFO enable; changing it empties both FIFOs", "wo")
    RFR = bit(1, "receiver FIFO reset, clears itself", "wo")
    XFR = bit(2, "transmitter FIFO reset, clears itself", "wo")
    DMA = bit(3, "DMA mode select", "wo")
    RTL = bits(7, 6, "receiver trigger: 1, 4, 8 or 14 bytes", "wo")


class Lcr(Register, width=8, ref="PC16550D, 8.1 line control register"):
    WLS = bits(1, 0, "word length: 5, 6, 7 or 8 bits")
    STB = bit(2, "number of stop bits")
    PEN = bit(3, "parity enable")
    EPS = bit(4, "even parity select")
    SP = bit(5, "stick parity")
    SB = bit(6, "set break")
    DLAB = bit(7, "divisor latch access bit")


class Mcr(Register, width=8, ref="PC16550D, 8.7 modem control register"):
    DTR = bit(0, "data terminal ready")
    RTS = bit(1, "request to send")
    OUT1 = bit(2, "auxiliary output 1")
    OUT2 = bit(3, "auxiliary output 2; gates the interrupt on IBM PC boards")
    LOOP = bit(4, "local loopback")


class Lsr(Register, width=8, reset=0x60, ref="PC16550D, 8.3 line status register"):
    DR = bit(0, "data ready", "ro")
    OE = bit(1, "overrun error; cleared by reading", "rc")
    PE = bit(2, "parity error; cleared by reading", "rc")
    FE = bit(3, "framing error; cleared by reading", "rc")
    BI = bit(4, "break interrupt; cleared by reading", "rc")
    THRE = bit(5, "transmitter holding register empty", "ro")
    TEMT = bit(6, "transmitter empty", "ro")
    RFE = bit(7, "an error in the receiver FIFO; cleared by reading", "rc")


class Msr(Register, width=8, ref="PC16550D, 8.8 modem status register"):
    DCTS = bit(0, "CTS changed; cleared by reading", "rc")
    DDSR = bit(1, "DSR changed; cleared by reading", "rc")
    TERI = bit(2, "RI went inactive; cleared by reading", "rc")
    DDCD = bit(3, "DCD changed; cleared by reading", "rc")
    CTS = bit(4, "clear to send", "ro")
    DSR = bit(5, "data set ready", "ro")
    RI = bit(6, "ring indicator", "ro")
    DCD = bit(7, "data carrier detect", "ro")
