"""Local APIC: Intel SDM volume 3A, chapter "Advanced Programmable Interrupt Controller (APIC)".

Offsets are those of the xAPIC's page, which is also the layout of the UAPI's `struct kvm_lapic_state`; every register
is 32 bits at a 16-byte step. In x2APIC mode the MSR is 0x800 + offset / 16, and ICR and ID are wider.
"""

from typing import Final

from snapkit.bits import Register, bit, bits

BASE: Final = 0xFEE0_0000
PAGE_LEN: Final = 0x400
"""Bytes of `kvm_lapic_state.regs`."""

ID: Final = 0x020
VERSION: Final = 0x030
TPR: Final = 0x080
APR: Final = 0x090
PPR: Final = 0x0A0
EOI: Final = 0x0B0
RRD: Final = 0x0C0
LDR: Final = 0x0D0
DFR: Final = 0x0E0
SVR: Final = 0x0F0
ISR: Final = 0x100
TMR: Final = 0x180
IRR: Final = 0x200
"""ISR, TMR and IRR: eight registers each, vector v is bit v % 32 of the one at + 16 * (v // 32)."""
ESR: Final = 0x280
LVT_CMCI: Final = 0x2F0
ICR_LOW: Final = 0x300
ICR_HIGH: Final = 0x310
LVT_TIMER: Final = 0x320
LVT_THERMAL: Final = 0x330
LVT_PMC: Final = 0x340
LVT_LINT0: Final = 0x350
LVT_LINT1: Final = 0x360
LVT_ERROR: Final = 0x370
TMICT: Final = 0x380
TMCCT: Final = 0x390
TDCR: Final = 0x3E0

DELIVERY_FIXED: Final = 0
DELIVERY_SMI: Final = 2
DELIVERY_NMI: Final = 4
DELIVERY_INIT: Final = 5
DELIVERY_STARTUP: Final = 6
DELIVERY_EXTINT: Final = 7

TIMER_ONE_SHOT: Final = 0
TIMER_PERIODIC: Final = 1
TIMER_TSC_DEADLINE: Final = 2


class Version(Register, width=32, ref="Intel SDM vol. 3A, local APIC version register"):
    VERSION = bits(7, 0, "0x10-0x15 for an integrated APIC", "ro")
    MAX_LVT = bits(23, 16, "number of LVT entries - 1", "ro")
    SUPPRESS_EOI = bit(24, "EOI broadcast can be suppressed", "ro")


class Priority(Register, width=32, ref="Intel SDM vol. 3A, task and processor priority registers"):
    SUBCLASS = bits(3, 0, "priority sub-class")
    CLASS = bits(7, 4, "priority class")


class Ldr(Register, width=32, ref="Intel SDM vol. 3A, logical destination register"):
    LOGICAL_ID = bits(31, 24, "logical APIC id (xAPIC)")


class Dfr(Register, width=32, reset=0xFFFF_FFFF, ref="Intel SDM vol. 3A, destination format register"):
    ONES = bits(27, 0, "all ones", "ro")
    MODEL = bits(31, 28, "15 flat, 0 cluster")


class Svr(Register, width=32, reset=0xFF, ref="Intel SDM vol. 3A, spurious-interrupt vector register"):
    VECTOR = bits(7, 0, "spurious vector")
    ENABLE = bit(8, "APIC software enable")
    FOCUS = bit(9, "focus processor checking")
    SUPPRESS_EOI = bit(12, "suppress EOI broadcast")


class Esr(Register, width=32, ref="Intel SDM vol. 3A, error status register"):
    SEND_CS = bit(0, "send checksum error")
    RECV_CS = bit(1, "receive checksum error")
    SEND_ACC = bit(2, "send accept error")
    RECV_ACC = bit(3, "receive accept error")
    REDIR_IPI = bit(4, "redirectable IPI")
    SEND_ILL = bit(5, "illegal vector sent")
    RECV_ILL = bit(6, "illegal vector received")
    REG_ILL = bit(7, "illegal register address")


class IcrLow(Register, width=32, ref="Intel SDM vol. 3A, interrupt command register, bits 31:0"):
    VECTOR = bits(7, 0, "vector")
    DELMOD = bits(10, 8, "delivery: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 6 start-up")
    DESTMOD = bit(11, "logical destination")
    DELIVS = bit(12, "send pending", "ro")
    LEVEL = bit(14, "assert")
    TM = bit(15, "level triggered")
    SHORTHAND = bits(19, 18, "0 none, 1 self, 2 all including self, 3 all excluding self")


class IcrHigh(Register, width=32, ref="Intel SDM vol. 3A, interrupt command register, bits 63:32"):
    DEST = bits(31, 24, "destination (xAPIC)")


class LvtTimer(Register, width=32, reset=0x1_0000, ref="Intel SDM vol. 3A, local vector table, timer"):
    VECTOR = bits(7, 0, "vector")
    DELIVS = bit(12, "send pending", "ro")
    MASK = bit(16, "masked")
    MODE = bits(18, 17, "0 one-shot, 1 periodic, 2 TSC deadline")


class Lvt(Register, width=32, reset=0x1_0000, ref="Intel SDM vol. 3A, local vector table, CMCI, thermal, PMC, error"):
    VECTOR = bits(7, 0, "vector")
    DELMOD = bits(10, 8, "delivery: 0 fixed, 2 SMI, 4 NMI, 5 INIT")
    DELIVS = bit(12, "send pending", "ro")
    MASK = bit(16, "masked")


class LvtLint(Register, width=32, reset=0x1_0000, ref="Intel SDM vol. 3A, local vector table, LINT0 and LINT1"):
    VECTOR = bits(7, 0, "vector")
    DELMOD = bits(10, 8, "delivery: 0 fixed, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT")
    DELIVS = bit(12, "send pending", "ro")
    INTPOL = bit(13, "active low")
    RIRR = bit(14, "remote IRR", "ro")
    TM = bit(15, "level triggered")
    MASK = bit(16, "masked")


class Tdcr(Register, width=32, ref="Intel SDM vol. 3A, divide configuration register"):
    DIV_LOW = bits(1, 0, "with bit 3: 0 by 2, 1 by 4, 2 by 8, 3 by 16, 4 by 32, 5 by 64, 6 by 128, 7 by 1")
    DIV_HIGH = bit(3, "bit 2 of the divisor's code")
