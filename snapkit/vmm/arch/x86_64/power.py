"""The ACPI sleep registers (ACPI 6.5 section 4.8.3.7): writing S5 with SLP_EN powers the machine off.

SLEEP_CONTROL reads as zero and SLEEP_STATUS never reports a wake-up, so there is nothing to save.
"""

from collections.abc import Callable

from snapkit.vmm.arch.x86_64.layout import SLEEP_CONTROL_S5


class SleepRegisters:
    """SLEEP_CONTROL at offset 0, SLEEP_STATUS at offset 1."""

    def __init__(self, powered_off: Callable[[], None]) -> None:
        self._powered_off = powered_off

    def read(self, offset: int, length: int) -> int:
        return 0

    def write(self, offset: int, length: int, value: int) -> None:
        if offset == 0 and value & 0xFF == SLEEP_CONTROL_S5:
            self._powered_off()
