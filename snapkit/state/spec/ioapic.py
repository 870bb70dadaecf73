"""Intel 82093AA I/O Advanced Programmable Interrupt Controller (Intel order number 290566), 24 pins."""

from typing import Final

from snapkit.bits import Register, bit, bits

BASE: Final = 0xFEC0_0000
MMIO_LEN: Final = 0x1000
PINS: Final = 24

IOREGSEL: Final = 0x00
IOWIN: Final = 0x10
EOIR: Final = 0x40
"""Version 0x20 and above only."""

IOAPICID: Final = 0x00
IOAPICVER: Final = 0x01
IOAPICARB: Final = 0x02
IOREDTBL: Final = 0x10
"""Index of the low word of entry 0; entry n has 0x10 + 2n (low) and 0x11 + 2n (high)."""

DELIVERY_MODES: Final = {
    0: "fixed",
    1: "lowest priority",
    2: "SMI",
    4: "NMI",
    5: "INIT",
    7: "ExtINT",
}


class IoApicId(Register, width=32, ref="Intel 82093AA, 3.2.1 IOAPICID"):
    ID = bits(27, 24, "identification")


class IoApicVer(Register, width=32, reset=0x0017_0011, ref="Intel 82093AA, 3.2.2 IOAPICVER"):
    VERSION = bits(7, 0, "0x11 for the 82093AA", "ro")
    MRE = bits(23, 16, "highest redirection entry", "ro")


class RedirectionEntry(Register, width=64, reset=0x1_0000, ref="Intel 82093AA, 3.2.4 IOREDTBL"):
    VECTOR = bits(7, 0, "interrupt vector, 0x10-0xFE")
    DELMOD = bits(10, 8, "delivery: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT")
    DESTMOD = bit(11, "logical destination")
    DELIVS = bit(12, "delivery pending", "ro")
    INTPOL = bit(13, "active low")
    RIRR = bit(14, "remote IRR: level interrupt accepted, no EOI yet", "ro")
    TM = bit(15, "level triggered")
    MASK = bit(16, "masked")
    DEST = bits(63, 56, "destination")
