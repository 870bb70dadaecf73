"""PrimeCell Real Time Clock (PL031) (ARM DDI 0224).

Register names are the manual's, section 3.3, without their common RTC. Every register is a word.
"""

from typing import Final

from snapkit.bits import Register, bit

PART: Final = 0x031
REVISION: Final = 0

DR: Final = 0x000
MR: Final = 0x004
LR: Final = 0x008
CR: Final = 0x00C
IMSC: Final = 0x010
RIS: Final = 0x014
MIS: Final = 0x018
ICR: Final = 0x01C

COUNTS: Final = 1 << 32
"""The counter goes through so many values, one a second."""


class Cr(Register, width=1, reset=0, ref="DDI 0224, 3.3.4 control register"):
    START = bit(0, "the clock runs; once it does, writing has no effect", "w1s")


class Interrupt(Register, width=1, ref="DDI 0224, 3.3.5 to 3.3.8: IMSC, RIS, MIS and ICR"):
    MATCH = bit(0, "DR became equal to MR")
