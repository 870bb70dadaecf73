"""PCI Local Bus Specification, revision 3.0 (PCI-SIG, February 2004): type 0 configuration space and how it is reached.

Chapter 6 for the registers of a function, section 3.2.2.3.2 for configuration mechanism 1 (ports 0xCF8 and 0xCFC), and
PCI Express Base Specification, revision 3.0, section 7.2.2 for the enhanced mechanism (ECAM). Only memory BARs are
declared: no function here has ports, a ROM, an INTx pin, or a second function beside it.
"""

from typing import Final

from snapkit.bits import Register, bit, bits

CONFIG_LEN: Final = 0x100
HEADER_LEN: Final = 0x40
SLOTS: Final = 32

# Section 6.1, figure 6-1: the type 0 header.
VENDOR_ID: Final = 0x00
DEVICE_ID: Final = 0x02
COMMAND: Final = 0x04
STATUS: Final = 0x06
REVISION_ID: Final = 0x08
CLASS_CODE: Final = 0x09
"""Three bytes: programming interface, sub-class, base class."""
CACHE_LINE_SIZE: Final = 0x0C
LATENCY_TIMER: Final = 0x0D
HEADER_TYPE: Final = 0x0E
BIST: Final = 0x0F
BAR0: Final = 0x10
SUBSYSTEM_VENDOR_ID: Final = 0x2C
SUBSYSTEM_ID: Final = 0x2E
EXPANSION_ROM: Final = 0x30
CAPABILITIES_POINTER: Final = 0x34
INTERRUPT_LINE: Final = 0x3C
INTERRUPT_PIN: Final = 0x3D

BARS: Final = 6
BAR_LEN_MIN: Final = 16
"""Section 6.2.5.1: the low four bits of a memory BAR are not address bits."""
SIZE_PROBE: Final = 0xFFFF_FFFF
"""Section 6.2.5.1, implementation note: software writes all ones to learn how many address bits there are."""

NO_FUNCTION: Final = 0xFFFF
"""What VENDOR_ID reads as where there is no function."""

# Appendix D: class codes, base class first.
CLASS_HOST_BRIDGE: Final = 0x06_0000

# Appendix H: capability IDs.
CAP_ID_VENDOR: Final = 0x09
CAP_ID_MSIX: Final = 0x11

# Section 6.7: every capability begins with its ID and a pointer to the next, in 0x40-0xFC, a multiple of 4.
CAP_ID: Final = 0
CAP_NEXT: Final = 1
CAP_LAST_START: Final = 0xFC

# Section 3.2.2.3.2.
CONFIG_ADDRESS_PORT: Final = 0xCF8
CONFIG_DATA_PORT: Final = 0xCFC
PORTS: Final = 8

# PCI Express, section 7.2.2: bits of an offset into the enhanced configuration space.
ECAM_BUS_LEN: Final = 1 << 20
ECAM_DEVICE_SHIFT: Final = 15
ECAM_FUNCTION_SHIFT: Final = 12
ECAM_FUNCTION_LEN: Final = 1 << 12


class Command(Register, width=16, ref="PCI 3.0, 6.2.2 device control, table 6-1"):
    IO = bit(0, "respond to I/O space; there is none", "ro")
    MEMORY = bit(1, "respond to memory space")
    MASTER = bit(2, "act as bus master")
    SPECIAL = bit(3, "monitor special cycles", "ro")
    MWI = bit(4, "use memory write and invalidate", "ro")
    VGA = bit(5, "snoop VGA palette writes", "ro")
    PARITY = bit(6, "respond to parity errors")
    SERR = bit(8, "drive SERR#")
    FAST_B2B = bit(9, "fast back-to-back transactions", "ro")
    INTX_OFF = bit(10, "keep INTx# quiet")


class Status(Register, width=16, ref="PCI 3.0, 6.2.3 device status, table 6-2"):
    INTX = bit(3, "INTx# wanted", "ro")
    CAP_LIST = bit(4, "there is a capability list", "ro")
    MHZ_66 = bit(5, "runs at 66 MHz", "ro")
    FAST_B2B = bit(7, "takes fast back-to-back transactions", "ro")
    MASTER_PERR = bit(8, "master data parity error", "w1c")
    DEVSEL = bits(10, 9, "DEVSEL timing", "ro")
    TARGET_ABORT_SENT = bit(11, "signalled target abort", "w1c")
    TARGET_ABORT_SEEN = bit(12, "received target abort", "w1c")
    MASTER_ABORT_SEEN = bit(13, "received master abort", "w1c")
    SERR = bit(14, "signalled system error", "w1c")
    PERR = bit(15, "detected parity error", "w1c")


class HeaderType(Register, width=8, ref="PCI 3.0, 6.2.1 device identification"):
    LAYOUT = bits(6, 0, "0 for a function that is no bridge", "ro")
    MULTI = bit(7, "the device has several functions", "ro")


class MemoryBar(Register, width=32, ref="PCI 3.0, 6.2.5.1 address maps, figure 6-5"):
    IO = bit(0, "0: in memory space", "ro")
    TYPE = bits(2, 1, "0 anywhere in 32 bits, 2 anywhere in 64 bits", "ro")
    PREFETCHABLE = bit(3, "reads have no side effects", "ro")
    ADDRESS = bits(31, 4, "base address; the bits below the length are 0")


BAR_TYPE_32: Final = 0
BAR_TYPE_64: Final = 2


class ConfigAddress(Register, width=32, ref="PCI 3.0, 3.2.2.3.2 software generation of configuration transactions"):
    REGISTER = bits(7, 2, "dword of the configuration space")
    FUNCTION = bits(10, 8, "function")
    DEVICE = bits(15, 11, "slot")
    BUS = bits(23, 16, "bus")
    ENABLE = bit(31, "accesses to CONFIG_DATA are configuration accesses")
