"""MSI-X: PCI Local Bus Specification, revision 3.0 (PCI-SIG, February 2004), section 6.8.2.

The capability structure is in configuration space; the table and the pending bit array (PBA) are in memory space, in
the BARs that the capability names. Software reads and writes both in aligned dwords or qwords only.
"""

from typing import Final

from snapkit.bits import Register, bit, bits

# Figure 6-11: the capability structure.
CAP_LEN: Final = 12
MESSAGE_CONTROL: Final = 2
TABLE: Final = 4
PBA: Final = 8

# Figure 6-12: an entry of the table.
ENTRY_LEN: Final = 16
ENTRY_ADDRESS: Final = 0
ENTRY_UPPER_ADDRESS: Final = 4
ENTRY_DATA: Final = 8
ENTRY_CONTROL: Final = 12

PBA_WORD_BITS: Final = 64
"""Figure 6-13: pending bits are packed into qwords; the last one may be partly filled."""


class MessageControl(Register, width=16, ref="PCI 3.0, 6.8.2.3 message control for MSI-X"):
    TABLE_SIZE = bits(10, 0, "vectors less one", "ro")
    FUNCTION_MASK = bit(14, "all vectors are masked, whatever their own mask bits say")
    ENABLE = bit(15, "interrupts are sent as MSI-X")


class TableOffset(Register, width=32, ref="PCI 3.0, 6.8.2.4 table offset, table BIR; 6.8.2.5 is the same for the PBA"):
    BIR = bits(2, 0, "which BAR it is in", "ro")
    OFFSET = bits(31, 3, "where in that BAR; a multiple of 8", "ro")


class MessageAddress(Register, width=64, ref="PCI 3.0, 6.8.2.6 and 6.8.2.7 message address, message upper address"):
    ADDRESS = bits(63, 2, "where the message is written; the low bits are 0")


class VectorControl(Register, width=32, reset=1, ref="PCI 3.0, 6.8.2.9 vector control"):
    MASK = bit(0, "this vector is masked")
