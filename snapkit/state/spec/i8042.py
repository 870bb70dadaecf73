"""Keyboard controller: Intel 8042 (UPI-41) with the firmware of IBM's AT and PS/2 systems.

Named by "IBM Personal System/2 Hardware Interface Technical Reference", keyboard and auxiliary device controller
(types 1 and 2), to which the AT's technical reference agrees in what stands here. Offsets are from port 0x60.
"""

from typing import Final

from snapkit.bits import Register, bit

BASE: Final = 0x60
PORTS: Final = 5
DATA: Final = 0
"""Port 0x60: reads the output buffer, writes the input buffer as data."""
COMMAND: Final = 4
"""Port 0x64: reads the status, writes the input buffer as a command."""

CMD_READ_COMMAND_BYTE: Final = 0x20
CMD_WRITE_COMMAND_BYTE: Final = 0x60
CMD_AUX_DISABLE: Final = 0xA7
CMD_AUX_ENABLE: Final = 0xA8
CMD_AUX_TEST: Final = 0xA9
CMD_SELF_TEST: Final = 0xAA
CMD_KEYBOARD_TEST: Final = 0xAB
CMD_KEYBOARD_DISABLE: Final = 0xAD
CMD_KEYBOARD_ENABLE: Final = 0xAE
CMD_READ_INPUT_PORT: Final = 0xC0
CMD_READ_OUTPUT_PORT: Final = 0xD0
CMD_WRITE_OUTPUT_PORT: Final = 0xD1
CMD_WRITE_OUTPUT_BUFFER: Final = 0xD2
CMD_WRITE_AUX_OUTPUT_BUFFER: Final = 0xD3
CMD_WRITE_AUX: Final = 0xD4
CMD_READ_TEST_INPUTS: Final = 0xE0
CMD_PULSE: Final = 0xF0
"""0xF0-0xFF: output port bits 3-0 whose bit in the command is *zero* go low for 6 us."""
CMD_RESET: Final = 0xFE
"""The pulse of `OutputPort.RESET` alone."""

SELF_TEST_PASSED: Final = 0x55
KEYBOARD_TEST_PASSED: Final = 0x00
AUX_CLOCK_STUCK_LOW: Final = 0x01
RESEND: Final = 0xFE
"""What stands in the output buffer, with `Status.TO`, when the keyboard did not answer."""


class Status(Register, width=8, reset=0x14, ref="IBM PS/2 HITR, keyboard controller, status register"):
    OBF = bit(0, "output buffer full", "ro")
    IBF = bit(1, "input buffer full", "ro")
    SYS = bit(2, "system flag: the self test passed", "ro")
    CD = bit(3, "the last write was a command (port 0x64)", "ro")
    INH = bit(4, "keyboard not inhibited by the lock", "ro")
    ODS = bit(5, "the output buffer came from the auxiliary device", "ro")
    TO = bit(6, "general time-out: no answer from the device", "ro")
    PERR = bit(7, "parity error", "ro")


class CommandByte(Register, width=8, reset=0x74, ref="IBM PS/2 HITR, keyboard controller, command byte"):
    KIE = bit(0, "interrupt 1 when the keyboard's output buffer is full")
    AIE = bit(1, "interrupt 12 when the auxiliary device's output buffer is full")
    SYS = bit(2, "system flag, shown in the status register")
    OVR = bit(3, "override the inhibit lock (AT only)")
    KDIS = bit(4, "keyboard disabled")
    ADIS = bit(5, "auxiliary device disabled")
    XLATE = bit(6, "translate scan codes to set 1")


class OutputPort(Register, width=8, reset=0xCF, ref="IBM PS/2 HITR, keyboard controller, output port"):
    RESET = bit(0, "system reset, active low")
    A20 = bit(1, "address line 20 passes")
    ADATA = bit(2, "auxiliary device data line")
    ACLK = bit(3, "auxiliary device clock line")
    IRQ1 = bit(4, "keyboard output buffer full", "ro")
    IRQ12 = bit(5, "auxiliary output buffer full", "ro")
    KCLK = bit(6, "keyboard clock line")
    KDATA = bit(7, "keyboard data line")
