"""Intel 8254 Programmable Interval Timer (Intel order number 231164), as wired on a PC at ports 0x40-0x43 and 0x61."""

from typing import Final

from snapkit.bits import Register, bit, bits

BASE: Final = 0x40
PORTS: Final = 4
CONTROL: Final = 3
"""Offset of the control word, after the three counters."""
SPEAKER_PORT: Final = 0x61
INPUT_HZ: Final = 1193182
COUNTERS: Final = 3
IRQ: Final = 0
"""ISA interrupt of counter 0."""

RW_LATCH: Final = 0
RW_LSB: Final = 1
RW_MSB: Final = 2
RW_WORD: Final = 3

MODES: Final = {
    0: "interrupt on terminal count",
    1: "hardware retriggerable one-shot",
    2: "rate generator",
    3: "square wave",
    4: "software triggered strobe",
    5: "hardware triggered strobe",
}


class ControlWord(Register, width=8, ref="Intel 8254, control word format"):
    BCD = bit(0, "count in decimal", "wo")
    M = bits(3, 1, "mode 0-5; 6 and 7 mean 2 and 3", "wo")
    RW = bits(5, 4, "0 latch, 1 low byte, 2 high byte, 3 low then high", "wo")
    SC = bits(7, 6, "counter 0-2; 3 is the read-back command", "wo")


class ReadBack(Register, width=8, reset=0xC0, ref="Intel 8254, read-back command format"):
    CNT0 = bit(1, "of counter 0", "wo")
    CNT1 = bit(2, "of counter 1", "wo")
    CNT2 = bit(3, "of counter 2", "wo")
    STATUS = bit(4, "0 latches the status", "wo")
    COUNT = bit(5, "0 latches the count", "wo")
    SC = bits(7, 6, "3", "wo")


class StatusByte(Register, width=8, ref="Intel 8254, status byte"):
    BCD = bit(0, "counts in decimal", "ro")
    M = bits(3, 1, "mode", "ro")
    RW = bits(5, 4, "1 low byte, 2 high byte, 3 low then high", "ro")
    NULL = bit(6, "the count written was not loaded yet", "ro")
    OUT = bit(7, "state of the OUT pin", "ro")


class SystemControlB(Register, width=8, ref="IBM PS/2 HITR, system control port B (0x61)"):
    GATE2 = bit(0, "gate of counter 2")
    SPKR = bit(1, "counter 2 drives the speaker")
    PCHK = bit(2, "parity check disabled")
    CCHK = bit(3, "channel check disabled")
    REFRESH = bit(4, "toggles with every refresh", "ro")
    OUT2 = bit(5, "OUT pin of counter 2", "ro")
    CCHK_S = bit(6, "channel check happened", "ro")
    PCHK_S = bit(7, "parity check happened", "ro")
