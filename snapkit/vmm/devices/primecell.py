"""How a PrimeCell peripheral's registers are reached: a word each, by its offset in 4 KiB, identification at the end.

On the peripheral bus (AMBA APB) a register is a word, and the processor's narrower accesses meet its low end: drivers
use halfwords and bytes as well. So an access of 1, 2 or 4 bytes at a register's offset is one; what it writes is
extended by zeros. Any other is none of the chip's, nor is one to where it has no register.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final

_MASKS: Final = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFF_FFFF}


class PrimeCell:
    """The bus's side of a peripheral. Every method needs the machine's lock."""

    faults: int
    _reads: ClassVar[Mapping[int, Callable[[Any], int]]]
    _writes: ClassVar[Mapping[int, Callable[[Any, int], None]]]
    _fixed: ClassVar[Mapping[int, int]]
    _known: ClassVar[frozenset[int]]

    @classmethod
    def _connect(
        cls,
        reads: Mapping[int, Callable[[Any], int]],
        writes: Mapping[int, Callable[[Any, int], None]],
        fixed: Mapping[int, int],
    ) -> None:
        """Say what reads each register, what writes it, and what is the same for ever, by offset.

        What is only read ignores writes, what is only written reads as 0.
        """
        cls._reads, cls._writes, cls._fixed = reads, writes, fixed
        cls._known = frozenset((*reads, *writes, *fixed))

    def read(self, offset: int, length: int) -> int:
        """Read the register at *offset*; all ones where there is none, or none so wide."""
        mask = _MASKS.get(length)
        if mask is None or offset not in self._known:
            self.faults += 1
            return (1 << 8 * length) - 1
        read = self._reads.get(offset)
        return (self._fixed.get(offset, 0) if read is None else read(self)) & mask

    def write(self, offset: int, length: int, value: int) -> None:
        """Write the register at *offset*; nothing where there is none, or none so wide."""
        mask = _MASKS.get(length)
        if mask is None or offset not in self._known:
            self.faults += 1
        elif (write := self._writes.get(offset)) is not None:
            write(self, value & mask)
