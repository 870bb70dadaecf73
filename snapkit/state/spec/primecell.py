"""What every ARM PrimeCell peripheral has at the end of its 4 KiB: who made it, which part it is, that it is one.

ARM DDI 0183 section 3.3.15 on, ARM DDI 0224 section 3.3.9 on; the layout is the same in both. Eight identification
registers of eight bits each, one a word. `identification` says what they read as.
"""

from typing import Final

PERIPH_ID: Final = 0xFE0
"""Four words: together, lowest byte first, part number 11:0, designer 19:12, revision 23:20, configuration 31:24."""
PCELL_ID: Final = 0xFF0
"""Four words: together, lowest byte first, the class and preamble 0xB105F00D."""
CELL_ID: Final = 0xB105_F00D
DESIGNER_ARM: Final = 0x41


def identification(part: int, revision: int) -> dict[int, int]:
    """Return what the identification registers of ARM's *part* in *revision* read as, by offset."""
    words = ((PERIPH_ID, part | DESIGNER_ARM << 12 | revision << 20), (PCELL_ID, CELL_ID))
    return {start + 4 * n: word >> 8 * n & 0xFF for start, word in words for n in range(4)}
