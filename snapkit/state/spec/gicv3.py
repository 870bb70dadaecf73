"""GICv3 and its ITS: Arm IHI 0069, chapters 12.2 (ICC), 12.9 (GICD), 12.10 and 12.11 (GICR), 12.19 (GITS).

Offsets are from a frame's start. The layouts are those for one security state and affinity routing, which KVM's GIC has
(GICD_CTLR.DS and ARE always read one). Interrupt ids (INTIDs): SGIs 0 to 15 and PPIs 16 to 31 are a CPU's own, SPIs are
shared, from 32 on, LPIs are messages, from 8192 on.
"""

from typing import Final

from snapkit.bits import Register, bit, bits

SPI_BASE: Final = 32
LPI_BASE: Final = 8192

SGI_BASE: Final = 0x1_0000
"""The second frame of a redistributor, behind RD_base."""

GICD_CTLR: Final = 0x0000
GICD_TYPER: Final = 0x0004
GICD_IIDR: Final = 0x0008
GICD_STATUSR: Final = 0x0010
IGROUPR: Final = 0x0080
"""This and the next eight: in the distributor for SPIs, in SGI_base for a CPU's own."""
ISENABLER: Final = 0x0100
ICENABLER: Final = 0x0180
ISPENDR: Final = 0x0200
ICPENDR: Final = 0x0280
ISACTIVER: Final = 0x0300
ICACTIVER: Final = 0x0380
IPRIORITYR: Final = 0x0400
ICFGR: Final = 0x0C00
GICD_IROUTER: Final = 0x6000

GICR_CTLR: Final = 0x0000
GICR_IIDR: Final = 0x0004
GICR_TYPER: Final = 0x0008
GICR_STATUSR: Final = 0x0010
GICR_WAKER: Final = 0x0014
GICR_PROPBASER: Final = 0x0070
GICR_PENDBASER: Final = 0x0078

GITS_CTLR: Final = 0x0000
GITS_IIDR: Final = 0x0004
GITS_TYPER: Final = 0x0008
GITS_CBASER: Final = 0x0080
GITS_CWRITER: Final = 0x0088
GITS_CREADR: Final = 0x0090
GITS_BASER: Final = 0x0100
TABLE_NONE: Final = 0
TABLE_DEVICES: Final = 1
TABLE_COLLECTIONS: Final = 4
"""GITS_BASER.TYPE."""
PAGE_64K: Final = 2
"""GITS_BASER.PAGE_SIZE."""

KVM_PRODUCT: Final = 0x4B
ARM_IMPLEMENTER: Final = 0x43B
"""How KVM signs its GIC in an IIDR: arch/arm64/kvm/vgic/vgic.h."""


def words_of(interrupts: int, bits_each: int) -> int:
    """Return how many 32-bit registers hold *bits_each* bits of each of *interrupts*."""
    return interrupts * bits_each // 32


class Iidr(Register, width=32, ref="Arm IHI 0069, GICD_IIDR, GICR_IIDR and GITS_IIDR"):
    IMPLEMENTER = bits(11, 0, "JEP106 code of who made it", "ro")
    REVISION = bits(15, 12, "KVM: of its behaviour (GICD), of its tables' layout (GITS)", "ro")
    VARIANT = bits(19, 16, "variant", "ro")
    PRODUCT = bits(31, 24, "product", "ro")


class GicdCtlr(Register, width=32, reset=0x50, ref="Arm IHI 0069, 12.9.4, GICD_CTLR, one security state"):
    ENABLE_GRP0 = bit(0, "group 0 forwarded")
    ENABLE_GRP1 = bit(1, "group 1 forwarded")
    ARE = bit(4, "affinity routing", "ro")
    DS = bit(6, "one security state", "ro")
    E1NWF = bit(7, "1-of-N wakes CPUs")
    N_ASSGI_REQ = bit(8, "SGIs without an active state (GICv4.1)")
    RWP = bit(31, "a write has not taken effect", "ro")


class Statusr(Register, width=32, ref="Arm IHI 0069, GICD_STATUSR and GICR_STATUSR"):
    RRD = bit(0, "read of a reserved location", "w1c")
    WRD = bit(1, "write to a reserved location", "w1c")
    RWOD = bit(2, "read of a write-only location", "w1c")
    WROD = bit(3, "write to a read-only location", "w1c")


class GicrCtlr(Register, width=32, ref="Arm IHI 0069, 12.11.2, GICR_CTLR"):
    ENABLE_LPIS = bit(0, "LPIs enabled: tables are in use, their addresses fixed")
    CES = bit(1, "LPIs can be disabled again", "ro")
    IR = bit(2, "invalidation registers are there", "ro")
    RWP = bit(3, "a write has not taken effect", "ro")
    DPG0 = bit(24, "not a target of 1-of-N in group 0")
    DPG1NS = bit(25, "not a target of 1-of-N in group 1")
    DPG1S = bit(26, "not a target of 1-of-N in secure group 1")
    UWP = bit(31, "SGIs have not all been sent", "ro")


class GicrTyper(Register, width=64, ref="Arm IHI 0069, 12.11.12, GICR_TYPER"):
    PLPIS = bit(0, "physical LPIs", "ro")
    VLPIS = bit(1, "virtual LPIs", "ro")
    DIRTY = bit(2, "GICR_VPENDBASER.Dirty", "ro")
    DIRECT_LPI = bit(3, "LPIs without an ITS", "ro")
    LAST = bit(4, "last redistributor of a run of frames", "ro")
    DPGS = bit(5, "GICR_CTLR.DPG*", "ro")
    MPAM = bit(6, "memory partitioning", "ro")
    RVPEID = bit(7, "vPE ids (GICv4.1)", "ro")
    PROCESSOR_NUMBER = bits(23, 8, "how an ITS names this CPU", "ro")
    COMMON_LPI_AFF = bits(25, 24, "which CPUs share a configuration table", "ro")
    VSGI = bit(26, "virtual SGIs", "ro")
    PPI_NUM = bits(31, 27, "extended PPIs", "ro")
    AFFINITY = bits(63, 32, "affinity levels 3 to 0 of its CPU", "ro")


class Waker(Register, width=32, ref="Arm IHI 0069, 12.11.42, GICR_WAKER"):
    PROCESSOR_SLEEP = bit(1, "the CPU is not to be sent interrupts")
    CHILDREN_ASLEEP = bit(2, "the CPU interface is quiescent", "ro")


class Propbaser(Register, width=64, ref="Arm IHI 0069, 12.11.28, GICR_PROPBASER"):
    ID_BITS = bits(4, 0, "INTID bits - 1")
    INNER_CACHE = bits(9, 7, "inner cacheability")
    SHAREABILITY = bits(11, 10, "shareability")
    PHYSICAL_ADDRESS = bits(51, 12, "configuration table, in units of 4 KiB")
    OUTER_CACHE = bits(58, 56, "outer cacheability")


class Pendbaser(Register, width=64, ref="Arm IHI 0069, 12.11.27, GICR_PENDBASER"):
    INNER_CACHE = bits(9, 7, "inner cacheability")
    SHAREABILITY = bits(11, 10, "shareability")
    PHYSICAL_ADDRESS = bits(51, 16, "pending table, in units of 64 KiB")
    OUTER_CACHE = bits(58, 56, "outer cacheability")
    PTZ = bit(62, "the table is all zero", "wo")


class IccSre(Register, width=64, ref="Arm IHI 0069, 12.2.23, ICC_SRE_EL1"):
    SRE = bit(0, "system registers in use")
    DFB = bit(1, "FIQ bypass disabled")
    DIB = bit(2, "IRQ bypass disabled")


class IccCtlr(Register, width=64, ref="Arm IHI 0069, 12.2.7, ICC_CTLR_EL1"):
    CBPR = bit(0, "one binary point for both groups")
    EOIMODE = bit(1, "deactivation is apart from priority drop")
    PMHE = bit(6, "priority mask as a hint")
    PRI_BITS = bits(10, 8, "priority bits - 1", "ro")
    ID_BITS = bits(13, 11, "INTID bits: 0 is 16, 1 is 24", "ro")
    SEIS = bit(14, "SErrors are generated", "ro")
    A3V = bit(15, "affinity level 3 may be other than 0", "ro")
    RSS = bit(18, "level 0 of SGIs up to 255", "ro")
    EXT_RANGE = bit(19, "extended SPIs and PPIs", "ro")


class IccPmr(Register, width=64, ref="Arm IHI 0069, 12.2.19, ICC_PMR_EL1"):
    PRIORITY = bits(7, 0, "interrupts of a lower value are signalled")


class IccBpr(Register, width=64, ref="Arm IHI 0069, 12.2.5 and 12.2.6, ICC_BPR0_EL1 and ICC_BPR1_EL1"):
    BINARY_POINT = bits(2, 0, "where group priority ends")


class IccIgrpen(Register, width=64, ref="Arm IHI 0069, 12.2.15 and 12.2.16, ICC_IGRPEN0_EL1 and ICC_IGRPEN1_EL1"):
    ENABLE = bit(0, "interrupts of the group are signalled")


class GitsCtlr(Register, width=32, reset=0x8000_0000, ref="Arm IHI 0069, 12.19.4, GITS_CTLR"):
    ENABLED = bit(0, "messages are translated, commands taken")
    IM_DE = bit(1, "errors of commands are reported")
    ITS_NUMBER = bits(7, 4, "its number (GICv4)")
    QUIESCENT = bit(31, "nothing is under way", "ro")


class GitsTyper(Register, width=64, ref="Arm IHI 0069, 12.19.9, GITS_TYPER"):
    PHYSICAL = bit(0, "physical LPIs", "ro")
    VIRTUAL = bit(1, "virtual LPIs", "ro")
    CCT = bit(2, "cumulative collections", "ro")
    ITT_ENTRY_SIZE = bits(7, 4, "bytes of a translation entry - 1", "ro")
    ID_BITS = bits(12, 8, "event id bits - 1", "ro")
    DEVBITS = bits(17, 13, "device id bits - 1", "ro")
    SEIS = bit(18, "SErrors are generated", "ro")
    PTA = bit(19, "targets are addresses, not processor numbers", "ro")
    HCC = bits(31, 24, "collections that it holds itself", "ro")
    CID_BITS = bits(35, 32, "collection id bits - 1, where CIL", "ro")
    CIL = bit(36, "CID_BITS counts", "ro")
    VMOVP = bit(37, "VMOVP to one ITS", "ro")
    MPAM = bit(38, "memory partitioning", "ro")
    VSGI = bit(39, "virtual SGIs", "ro")
    VMAPP = bit(40, "VMAPP (GICv4.1)", "ro")
    SVPET = bits(42, 41, "which redistributors share vPE tables", "ro")
    NID = bit(43, "individual doorbells", "ro")
    UMSI = bit(44, "unmapped messages are reported", "ro")
    UMSIIRQ = bit(45, "unmapped messages raise an interrupt", "ro")
    INV = bit(46, "caches are invalidated when disabled", "ro")


class GitsCbaser(Register, width=64, ref="Arm IHI 0069, 12.19.2, GITS_CBASER"):
    SIZE = bits(7, 0, "4 KiB pages - 1")
    SHAREABILITY = bits(11, 10, "shareability")
    PHYSICAL_ADDRESS = bits(51, 12, "command queue, in units of 4 KiB")
    OUTER_CACHE = bits(55, 53, "outer cacheability")
    INNER_CACHE = bits(61, 59, "inner cacheability")
    VALID = bit(63, "there is a queue")


class GitsCreadr(Register, width=64, ref="Arm IHI 0069, 12.19.3, GITS_CREADR"):
    STALLED = bit(0, "a command failed", "ro")
    OFFSET = bits(19, 5, "next command to take, in units of 32 bytes", "ro")


class GitsCwriter(Register, width=64, ref="Arm IHI 0069, 12.19.5, GITS_CWRITER"):
    RETRY = bit(0, "go on after a failed command", "wo")
    OFFSET = bits(19, 5, "next command to be written, in units of 32 bytes")


class GitsBaser(Register, width=64, ref="Arm IHI 0069, 12.19.1, GITS_BASER<n>"):
    SIZE = bits(7, 0, "pages - 1")
    PAGE_SIZE = bits(9, 8, "0 4 KiB, 1 16 KiB, 2 64 KiB")
    SHAREABILITY = bits(11, 10, "shareability")
    PHYSICAL_ADDRESS = bits(47, 12, "table, in units of 4 KiB; of 64 KiB pages bits 15:12 are address bits 51:48")
    ENTRY_SIZE = bits(52, 48, "bytes of an entry - 1", "ro")
    OUTER_CACHE = bits(55, 53, "outer cacheability")
    TYPE = bits(58, 56, "0 none, 1 devices, 2 vPEs, 4 collections", "ro")
    INNER_CACHE = bits(61, 59, "inner cacheability")
    INDIRECT = bit(62, "two levels")
    VALID = bit(63, "there is a table")
