"""PrimeCell UART (PL011), revision r1p5 (ARM DDI 0183G).

Register and field names are the manual's, section 3.3, without their common UART. Every register is a word of its own;
none has more than 16 bits. Offset 4 reads as RSR and writes as ECR.
"""

from typing import Final

from snapkit.bits import Register, bit, bits

PART: Final = 0x011
REVISION: Final = 3
"""r1p5, which is the one whose FIFOs are 32 deep: drivers ask for this number (3.3.15)."""
FIFO_LEN: Final = 32

DR: Final = 0x000
RSR_ECR: Final = 0x004
FR: Final = 0x018
ILPR: Final = 0x020
IBRD: Final = 0x024
FBRD: Final = 0x028
LCR_H: Final = 0x02C
CR: Final = 0x030
IFLS: Final = 0x034
IMSC: Final = 0x038
RIS: Final = 0x03C
MIS: Final = 0x040
ICR: Final = 0x044
DMACR: Final = 0x048

TRIGGER_LEN: Final = (4, 8, 16, 24, 28)
"""Bytes in the receive FIFO at which the receive interrupt rises, by the value of `Ifls.RXIFLSEL`: 1/8 to 7/8."""


class Dr(Register, width=12, ref="DDI 0183, 3.3.1 data register"):
    DATA = bits(7, 0, "received or to be transmitted")
    FE = bit(8, "framing error", "ro")
    PE = bit(9, "parity error", "ro")
    BE = bit(10, "break error", "ro")
    OE = bit(11, "overrun: a character was lost; until the next one is put into the FIFO", "ro")


class Rsr(Register, width=4, ref="DDI 0183, 3.3.2 receive status register; writing anything clears it"):
    FE = bit(0, "framing error", "ro")
    PE = bit(1, "parity error", "ro")
    BE = bit(2, "break error", "ro")
    OE = bit(3, "overrun", "ro")


class Fr(Register, width=9, reset=0x90, ref="DDI 0183, 3.3.3 flag register"):
    CTS = bit(0, "clear to send", "ro")
    DSR = bit(1, "data set ready", "ro")
    DCD = bit(2, "data carrier detect", "ro")
    BUSY = bit(3, "transmitting, or something waits to be", "ro")
    RXFE = bit(4, "receive FIFO, or holding register, empty", "ro")
    TXFF = bit(5, "transmit FIFO, or holding register, full", "ro")
    RXFF = bit(6, "receive FIFO, or holding register, full", "ro")
    TXFE = bit(7, "transmit FIFO, or holding register, empty", "ro")
    RI = bit(8, "ring indicator", "ro")


class Fbrd(Register, width=6, ref="DDI 0183, 3.3.6 fractional baud rate register"):
    DIVFRAC = bits(5, 0, "fractional part of the baud rate divisor, in 64ths")


class LcrH(Register, width=8, ref="DDI 0183, 3.3.7 line control register"):
    BRK = bit(0, "send break")
    PEN = bit(1, "parity enable")
    EPS = bit(2, "even parity select")
    STP2 = bit(3, "two stop bits select")
    FEN = bit(4, "enable FIFOs; without them each is a holding register of one character")
    WLEN = bits(6, 5, "word length: 5, 6, 7 or 8 bits")
    SPS = bit(7, "stick parity select")


class Cr(Register, width=16, reset=0x300, ref="DDI 0183, 3.3.8 control register"):
    UARTEN = bit(0, "UART enable")
    SIREN = bit(1, "SIR enable")
    SIRLP = bit(2, "SIR low-power mode")
    LBE = bit(7, "loopback enable")
    TXE = bit(8, "transmit enable")
    RXE = bit(9, "receive enable")
    DTR = bit(10, "data transmit ready")
    RTS = bit(11, "request to send")
    OUT1 = bit(12, "auxiliary output 1")
    OUT2 = bit(13, "auxiliary output 2")
    RTSEN = bit(14, "RTS hardware flow control enable")
    CTSEN = bit(15, "CTS hardware flow control enable")


class Ifls(Register, width=6, reset=0x12, ref="DDI 0183, 3.3.9 interrupt FIFO level select register"):
    TXIFLSEL = bits(2, 0, "transmit: at or below 1/8, 1/4, 1/2, 3/4, 7/8 full; others are reserved")
    RXIFLSEL = bits(5, 3, "receive: at or above 1/8, 1/4, 1/2, 3/4, 7/8 full; others are reserved")


class Interrupts(Register, width=11, ref="DDI 0183, 3.3.10 to 3.3.13: IMSC, RIS, MIS and ICR"):
    RIM = bit(0, "ring indicator changed")
    CTSM = bit(1, "clear to send changed")
    DCDM = bit(2, "data carrier detect changed")
    DSRM = bit(3, "data set ready changed")
    RX = bit(4, "receive FIFO at its level, or holding register full")
    TX = bit(5, "transmit FIFO went through its level, or holding register became empty")
    RT = bit(6, "receive timeout: something is in the FIFO and nothing more comes")
    FE = bit(7, "framing error")
    PE = bit(8, "parity error")
    BE = bit(9, "break error")
    OE = bit(10, "overrun")


class Dmacr(Register, width=3, ref="DDI 0183, 3.3.14 DMA control register"):
    RXDMAE = bit(0, "receive DMA enable")
    TXDMAE = bit(1, "transmit DMA enable")
    DMAONERR = bit(2, "no receive DMA on error")
