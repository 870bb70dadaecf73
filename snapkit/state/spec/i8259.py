"""Intel 8259A Programmable Interrupt Controller (Intel order number 231468), the PC's pair at ports 0x20 and 0xA0.

The edge/level control registers (0x4D0, 0x4D1) are the chipset's: Intel 82371 (PIIX), ELCR1 and ELCR2.
"""

from typing import Final

from snapkit.bits import Register, bit, bits

MASTER_BASE: Final = 0x20
SLAVE_BASE: Final = 0xA0
PORTS: Final = 2
ELCR1: Final = 0x4D0
ELCR2: Final = 0x4D1
PINS: Final = 8
CASCADE_IRQ: Final = 2

ELCR1_WRITABLE: Final = 0xF8
"""Interrupts 0, 1 and 2 are always edge triggered."""
ELCR2_WRITABLE: Final = 0xDE
"""Interrupts 8 and 13 are always edge triggered."""


class Icw1(Register, width=8, reset=0x10, ref="Intel 8259A, initialization command word 1"):
    IC4 = bit(0, "ICW4 follows", "wo")
    SNGL = bit(1, "single: no ICW3", "wo")
    ADI = bit(2, "call address interval (MCS-80)", "wo")
    LTIM = bit(3, "level triggered", "wo")
    ICW1 = bit(4, "always 1", "wo")
    A7_5 = bits(7, 5, "vector address bits (MCS-80)", "wo")


class Icw2(Register, width=8, ref="Intel 8259A, initialization command word 2"):
    T7_3 = bits(7, 3, "interrupt vector of pin 0", "wo")


class Icw4(Register, width=8, ref="Intel 8259A, initialization command word 4"):
    UPM = bit(0, "8086 mode", "wo")
    AEOI = bit(1, "automatic end of interrupt", "wo")
    MS = bit(2, "buffered master", "wo")
    BUF = bit(3, "buffered mode", "wo")
    SFNM = bit(4, "special fully nested mode", "wo")


class Ocw2(Register, width=8, ref="Intel 8259A, operation control word 2"):
    L = bits(2, 0, "interrupt level acted upon", "wo")
    OCW = bits(4, 3, "always 0", "wo")
    EOI = bit(5, "end of interrupt", "wo")
    SL = bit(6, "specific: L counts", "wo")
    R = bit(7, "rotate", "wo")


class Ocw3(Register, width=8, reset=0x08, ref="Intel 8259A, operation control word 3"):
    RIS = bit(0, "read ISR rather than IRR", "wo")
    RR = bit(1, "RIS counts", "wo")
    P = bit(2, "poll command", "wo")
    OCW = bits(4, 3, "always 1", "wo")
    SMM = bit(5, "special mask mode", "wo")
    ESMM = bit(6, "SMM counts", "wo")


class Pins(Register, width=8, ref="Intel 8259A, IRR, ISR and IMR: one bit per pin"):
    IR0 = bit(0, "master: timer; slave: RTC")
    IR1 = bit(1, "master: keyboard")
    IR2 = bit(2, "master: the slave")
    IR3 = bit(3, "master: COM2; slave: 11")
    IR4 = bit(4, "master: COM1; slave: mouse")
    IR5 = bit(5, "master: 5; slave: FPU")
    IR6 = bit(6, "master: floppy; slave: 14")
    IR7 = bit(7, "master: 7, spurious; slave: 15, spurious")
