"""x86-64 processor registers and model-specific register numbers.

Intel 64 and IA-32 Architectures Software Developer's Manual (SDM): volume 3A "System Architecture Overview" for the
control registers, volume 1 for RFLAGS and XCR0, volume 3B "Debug" for DR6 and DR7, volume 4 for the MSRs; AMD64
Architecture Programmer's Manual volume 2, appendix "MSR cross-reference", for those from 0xC0000080 up; Linux
Documentation/virt/kvm/x86/msr.rst for KVM's own; Microsoft's Hypervisor Top-Level Functional Specification (TLFS) for
the synthetic ones that KVM lists when it emulates Hyper-V.

`MSRS` names an index and `MSR_INDEX` finds it by name. The names are those of the documents, kept even where the same
register has another name in Linux.
"""

from typing import Final

from snapkit.bits import Register, bit, bits

PHYSICAL_ADDRESS_BITS: Final = 52


class Cr0(Register, width=64, reset=0x6000_0010, ref="Intel SDM vol. 3A, control register CR0"):
    PE = bit(0, "protection enable")
    MP = bit(1, "monitor coprocessor")
    EM = bit(2, "emulation of the FPU")
    TS = bit(3, "task switched")
    ET = bit(4, "extension type, always 1", "ro")
    NE = bit(5, "numeric error")
    WP = bit(16, "write protect")
    AM = bit(18, "alignment mask")
    NW = bit(29, "not write-through")
    CD = bit(30, "cache disable")
    PG = bit(31, "paging")


class Cr3(Register, width=64, ref="Intel SDM vol. 3A, control register CR3"):
    PWT = bit(3, "page-level write-through (CR4.PCIDE = 0)")
    PCD = bit(4, "page-level cache disable (CR4.PCIDE = 0)")
    BASE = bits(51, 12, "page frame of the top paging structure")
    LAM_U57 = bit(61, "linear address masking, 57 bits")
    LAM_U48 = bit(62, "linear address masking, 48 bits")


class Cr4(Register, width=64, ref="Intel SDM vol. 3A, control register CR4"):
    VME = bit(0, "virtual-8086 mode extensions")
    PVI = bit(1, "protected-mode virtual interrupts")
    TSD = bit(2, "time stamp disable")
    DE = bit(3, "debugging extensions")
    PSE = bit(4, "page size extensions")
    PAE = bit(5, "physical address extension")
    MCE = bit(6, "machine check enable")
    PGE = bit(7, "page global enable")
    PCE = bit(8, "performance counter enable")
    OSFXSR = bit(9, "the system supports FXSAVE and FXRSTOR")
    OSXMMEXCPT = bit(10, "the system supports unmasked SIMD exceptions")
    UMIP = bit(11, "user-mode instruction prevention")
    LA57 = bit(12, "57-bit linear addresses")
    VMXE = bit(13, "VMX enable")
    SMXE = bit(14, "SMX enable")
    FSGSBASE = bit(16, "RDFSBASE and its kin enable")
    PCIDE = bit(17, "process-context identifiers enable")
    OSXSAVE = bit(18, "XSAVE and extended states enable")
    KL = bit(19, "key locker enable")
    SMEP = bit(20, "supervisor-mode execution prevention")
    SMAP = bit(21, "supervisor-mode access prevention")
    PKE = bit(22, "protection keys for user pages")
    CET = bit(23, "control-flow enforcement")
    PKS = bit(24, "protection keys for supervisor pages")
    UINTR = bit(25, "user interrupts")
    LAM_SUP = bit(28, "supervisor linear address masking")


class Efer(Register, width=64, ref="AMD APM vol. 2, extended feature enable register; Intel SDM vol. 3A, IA32_EFER"):
    SCE = bit(0, "system call extensions")
    LME = bit(8, "long mode enable")
    LMA = bit(10, "long mode active")
    NXE = bit(11, "no-execute enable")
    SVME = bit(12, "secure virtual machine enable (AMD)")
    LMSLE = bit(13, "long mode segment limit enable (AMD)")
    FFXSR = bit(14, "fast FXSAVE and FXRSTOR (AMD)")
    TCE = bit(15, "translation cache extension (AMD)")
    AIBRSE = bit(21, "automatic IBRS enable (AMD)")


class Rflags(Register, width=64, reset=0x2, ref="Intel SDM vol. 1, RFLAGS register"):
    CF = bit(0, "carry")
    ONE = bit(1, "always 1", "ro")
    PF = bit(2, "parity")
    AF = bit(4, "auxiliary carry")
    ZF = bit(6, "zero")
    SF = bit(7, "sign")
    TF = bit(8, "trap")
    IF = bit(9, "interrupt enable")
    DF = bit(10, "direction")
    OF = bit(11, "overflow")
    IOPL = bits(13, 12, "I/O privilege level")
    NT = bit(14, "nested task")
    RF = bit(16, "resume")
    VM = bit(17, "virtual-8086 mode")
    AC = bit(18, "alignment check, access control")
    VIF = bit(19, "virtual interrupt flag")
    VIP = bit(20, "virtual interrupt pending")
    ID = bit(21, "CPUID is there")


class ApicBase(Register, width=64, reset=0xFEE0_0000, ref="Intel SDM vol. 3A, IA32_APIC_BASE MSR"):
    BSP = bit(8, "bootstrap processor", "ro")
    EXTD = bit(10, "x2APIC mode")
    EN = bit(11, "APIC global enable")
    BASE = bits(51, 12, "page frame of the registers")


class Xcr0(Register, width=64, reset=0x1, ref="Intel SDM vol. 1, extended control register XCR0"):
    X87 = bit(0, "x87 state, always 1", "ro")
    SSE = bit(1, "XMM state")
    AVX = bit(2, "upper halves of YMM")
    BNDREG = bit(3, "MPX bound registers")
    BNDCSR = bit(4, "MPX configuration")
    OPMASK = bit(5, "AVX-512 masks")
    ZMM_HI256 = bit(6, "upper halves of ZMM0-15")
    HI16_ZMM = bit(7, "ZMM16-31")
    PKRU = bit(9, "protection key rights")
    TILECFG = bit(17, "AMX configuration")
    TILEDATA = bit(18, "AMX tiles")


class Mxcsr(Register, width=32, reset=0x1F80, ref="Intel SDM vol. 1, MXCSR; AMD APM vol. 1, MXCSR register"):
    FLAGS = bits(5, 0, "exceptions since they were cleared")
    DAZ = bit(6, "denormals are zeros")
    MASKS = bits(12, 7, "exceptions that are masked")
    RC = bits(14, 13, "rounding")
    FZ = bit(15, "flush to zero")
    MM = bit(17, "misaligned operands are no exceptions; of AMD's processors only")


MXCSR_AT: Final = 24
"""In the extended state: MXCSR, and behind it MXCSR_MASK, which bits of it the processor that saved it has."""
MXCSR_MASK_AT: Final = 28
MXCSR_LEN: Final = 4


class Dr6(Register, width=64, reset=0xFFFF_0FF0, ref="Intel SDM vol. 3B, debug status register DR6"):
    B0 = bit(0, "breakpoint 0 hit")
    B1 = bit(1, "breakpoint 1 hit")
    B2 = bit(2, "breakpoint 2 hit")
    B3 = bit(3, "breakpoint 3 hit")
    ONES = bits(10, 4, "always 1", "ro")
    BLD = bit(11, "0: bus lock detected")
    BD = bit(13, "debug register access")
    BS = bit(14, "single step")
    BT = bit(15, "task switch")
    RTM = bit(16, "0: inside a transactional region")
    ONES_HIGH = bits(31, 17, "always 1", "ro")


class Dr7(Register, width=64, reset=0x400, ref="Intel SDM vol. 3B, debug control register DR7"):
    L0 = bit(0, "breakpoint 0, local")
    G0 = bit(1, "breakpoint 0, global")
    L1 = bit(2, "breakpoint 1, local")
    G1 = bit(3, "breakpoint 1, global")
    L2 = bit(4, "breakpoint 2, local")
    G2 = bit(5, "breakpoint 2, global")
    L3 = bit(6, "breakpoint 3, local")
    G3 = bit(7, "breakpoint 3, global")
    LE = bit(8, "exact, local")
    GE = bit(9, "exact, global")
    ONE = bit(10, "always 1", "ro")
    RTM = bit(11, "transactional debugging")
    GD = bit(13, "general detect")
    RW0 = bits(17, 16, "breakpoint 0: 0 execute, 1 write, 2 I/O, 3 read or write")
    LEN0 = bits(19, 18, "breakpoint 0: 0 one byte, 1 two, 2 eight, 3 four")
    RW1 = bits(21, 20, "breakpoint 1")
    LEN1 = bits(23, 22, "breakpoint 1")
    RW2 = bits(25, 24, "breakpoint 2")
    LEN2 = bits(27, 26, "breakpoint 2")
    RW3 = bits(29, 28, "breakpoint 3")
    LEN3 = bits(31, 30, "breakpoint 3")


class MtrrCap(Register, width=64, ref="Intel SDM vol. 3A, IA32_MTRRCAP MSR"):
    VCNT = bits(7, 0, "number of variable ranges", "ro")
    FIX = bit(8, "fixed ranges are there", "ro")
    WC = bit(10, "write combining is there", "ro")
    SMRR = bit(11, "SMM ranges are there", "ro")


class MtrrDefType(Register, width=64, ref="Intel SDM vol. 3A, IA32_MTRR_DEF_TYPE MSR"):
    TYPE = bits(7, 0, "default: 0 uncacheable, 1 combining, 4 write-through, 5 write-protected, 6 write-back")
    FE = bit(10, "fixed ranges enable")
    E = bit(11, "MTRRs enable")


class McgCap(Register, width=64, ref="Intel SDM vol. 3B, IA32_MCG_CAP MSR"):
    COUNT = bits(7, 0, "number of error banks", "ro")
    CTL_P = bit(8, "IA32_MCG_CTL is there", "ro")
    EXT_P = bit(9, "extended state registers are there", "ro")
    CMCI_P = bit(10, "corrected error interrupts", "ro")
    TES_P = bit(11, "threshold-based error status", "ro")
    EXT_CNT = bits(23, 16, "number of extended state registers", "ro")
    SER_P = bit(24, "software error recovery", "ro")
    LMCE_P = bit(27, "local machine checks", "ro")


class MiscEnable(Register, width=64, ref="Intel SDM vol. 4, IA32_MISC_ENABLE"):
    FAST_STRING = bit(0, "fast strings")
    TCC = bit(3, "automatic thermal control")
    EMON = bit(7, "performance monitoring is there", "ro")
    BTS_UNAVAIL = bit(11, "branch trace storage is absent", "ro")
    PEBS_UNAVAIL = bit(12, "processor event sampling is absent", "ro")
    EIST = bit(16, "enhanced SpeedStep")
    MWAIT = bit(18, "MONITOR and MWAIT")
    LIMIT_CPUID = bit(22, "limit CPUID to leaf 2")
    XTPR_DISABLE = bit(23, "no task priority messages")
    XD_DISABLE = bit(34, "no execute-disable")


MSRS: Final[dict[int, str]] = {
    # Intel SDM vol. 4, architectural
    0x0000: "IA32_P5_MC_ADDR",
    0x0001: "IA32_P5_MC_TYPE",
    0x0006: "IA32_MONITOR_FILTER_SIZE",
    0x0010: "IA32_TIME_STAMP_COUNTER",
    0x0017: "IA32_PLATFORM_ID",
    0x001B: "IA32_APIC_BASE",
    0x002A: "MSR_EBL_CR_POWERON",
    0x0033: "MSR_TEST_CTRL",
    0x0034: "MSR_SMI_COUNT",
    0x003A: "IA32_FEATURE_CONTROL",
    0x003B: "IA32_TSC_ADJUST",
    0x0048: "IA32_SPEC_CTRL",
    0x0049: "IA32_PRED_CMD",
    0x0079: "IA32_BIOS_UPDT_TRIG",
    0x008B: "IA32_BIOS_SIGN_ID",
    0x008C: "IA32_SGXLEPUBKEYHASH0",
    0x008D: "IA32_SGXLEPUBKEYHASH1",
    0x008E: "IA32_SGXLEPUBKEYHASH2",
    0x008F: "IA32_SGXLEPUBKEYHASH3",
    0x009B: "IA32_SMM_MONITOR_CTL",
    0x009E: "IA32_SMBASE",
    0x00CD: "MSR_FSB_FREQ",
    0x00CE: "MSR_PLATFORM_INFO",
    0x00CF: "IA32_CORE_CAPABILITIES",
    0x00E1: "IA32_UMWAIT_CONTROL",
    0x00E7: "IA32_MPERF",
    0x00E8: "IA32_APERF",
    0x00FE: "IA32_MTRRCAP",
    0x010A: "IA32_ARCH_CAPABILITIES",
    0x010B: "IA32_FLUSH_CMD",
    0x010F: "IA32_TSX_FORCE_ABORT",
    0x0122: "IA32_TSX_CTRL",
    0x0123: "IA32_MCU_OPT_CTRL",
    0x0140: "MSR_MISC_FEATURE_ENABLES",
    0x0174: "IA32_SYSENTER_CS",
    0x0175: "IA32_SYSENTER_ESP",
    0x0176: "IA32_SYSENTER_EIP",
    0x0179: "IA32_MCG_CAP",
    0x017A: "IA32_MCG_STATUS",
    0x017B: "IA32_MCG_CTL",
    0x0198: "IA32_PERF_STATUS",
    0x0199: "IA32_PERF_CTL",
    0x019A: "IA32_CLOCK_MODULATION",
    0x019B: "IA32_THERM_INTERRUPT",
    0x019C: "IA32_THERM_STATUS",
    0x01A0: "IA32_MISC_ENABLE",
    0x01A4: "MSR_MISC_FEATURE_CONTROL",
    0x01A6: "MSR_OFFCORE_RSP_0",
    0x01A7: "MSR_OFFCORE_RSP_1",
    0x01B0: "IA32_ENERGY_PERF_BIAS",
    0x01C4: "IA32_XFD",
    0x01C5: "IA32_XFD_ERR",
    0x01C8: "MSR_LBR_SELECT",
    0x01C9: "MSR_LASTBRANCH_TOS",
    0x01CC: "IA32_FRED_RSP0",
    0x01CD: "IA32_FRED_RSP1",
    0x01CE: "IA32_FRED_RSP2",
    0x01CF: "IA32_FRED_RSP3",
    0x01D0: "IA32_FRED_STKLVLS",
    0x01D1: "IA32_FRED_SSP1",
    0x01D2: "IA32_FRED_SSP2",
    0x01D3: "IA32_FRED_SSP3",
    0x01D4: "IA32_FRED_CONFIG",
    0x01D9: "IA32_DEBUGCTL",
    0x01DB: "MSR_LASTBRANCHFROMIP",
    0x01DC: "MSR_LASTBRANCHTOIP",
    0x01DD: "MSR_LASTINTFROMIP",
    0x01DE: "MSR_LASTINTTOIP",
    0x01F2: "IA32_SMRR_PHYSBASE",
    0x01F3: "IA32_SMRR_PHYSMASK",
    0x01FC: "MSR_POWER_CTL",
    0x0277: "IA32_PAT",
    0x02FF: "IA32_MTRR_DEF_TYPE",
    0x0345: "IA32_PERF_CAPABILITIES",
    0x038D: "IA32_FIXED_CTR_CTRL",
    0x038E: "IA32_PERF_GLOBAL_STATUS",
    0x038F: "IA32_PERF_GLOBAL_CTRL",
    0x0390: "IA32_PERF_GLOBAL_OVF_CTRL",
    0x0391: "IA32_PERF_GLOBAL_STATUS_SET",
    0x03F1: "IA32_PEBS_ENABLE",
    0x03F2: "MSR_PEBS_DATA_CFG",
    0x0480: "IA32_VMX_BASIC",
    0x0481: "IA32_VMX_PINBASED_CTLS",
    0x0482: "IA32_VMX_PROCBASED_CTLS",
    0x0483: "IA32_VMX_EXIT_CTLS",
    0x0484: "IA32_VMX_ENTRY_CTLS",
    0x0485: "IA32_VMX_MISC",
    0x0486: "IA32_VMX_CR0_FIXED0",
    0x0487: "IA32_VMX_CR0_FIXED1",
    0x0488: "IA32_VMX_CR4_FIXED0",
    0x0489: "IA32_VMX_CR4_FIXED1",
    0x048A: "IA32_VMX_VMCS_ENUM",
    0x048B: "IA32_VMX_PROCBASED_CTLS2",
    0x048C: "IA32_VMX_EPT_VPID_CAP",
    0x048D: "IA32_VMX_TRUE_PINBASED_CTLS",
    0x048E: "IA32_VMX_TRUE_PROCBASED_CTLS",
    0x048F: "IA32_VMX_TRUE_EXIT_CTLS",
    0x0490: "IA32_VMX_TRUE_ENTRY_CTLS",
    0x0491: "IA32_VMX_VMFUNC",
    0x0492: "IA32_VMX_PROCBASED_CTLS3",
    0x0493: "IA32_VMX_EXIT_CTLS2",
    0x04D0: "IA32_MCG_EXT_CTL",
    0x0560: "IA32_RTIT_OUTPUT_BASE",
    0x0561: "IA32_RTIT_OUTPUT_MASK_PTRS",
    0x0570: "IA32_RTIT_CTL",
    0x0571: "IA32_RTIT_STATUS",
    0x0572: "IA32_RTIT_CR3_MATCH",
    0x0600: "IA32_DS_AREA",
    0x06A0: "IA32_U_CET",
    0x06A2: "IA32_S_CET",
    0x06A4: "IA32_PL0_SSP",
    0x06A5: "IA32_PL1_SSP",
    0x06A6: "IA32_PL2_SSP",
    0x06A7: "IA32_PL3_SSP",
    0x06A8: "IA32_INTERRUPT_SSP_TABLE_ADDR",
    0x06E0: "IA32_TSC_DEADLINE",
    0x06E1: "IA32_PKRS",
    0x0DA0: "IA32_XSS",
    0x0D90: "IA32_BNDCFGS",
    0x14CE: "IA32_LBR_CTL",
    0x14CF: "IA32_LBR_DEPTH",
    # AMD APM vol. 2, MSR cross-reference
    0xC000_0080: "EFER",
    0xC000_0081: "STAR",
    0xC000_0082: "LSTAR",
    0xC000_0083: "CSTAR",
    0xC000_0084: "SFMASK",
    0xC000_0100: "FS_BASE",
    0xC000_0101: "GS_BASE",
    0xC000_0102: "KERNEL_GS_BASE",
    0xC000_0103: "TSC_AUX",
    0xC000_0104: "TSC_RATIO",
    0xC000_0300: "PERF_CNTR_GLOBAL_STATUS",
    0xC000_0301: "PERF_CNTR_GLOBAL_CTL",
    0xC000_0302: "PERF_CNTR_GLOBAL_STATUS_CLR",
    0xC001_0010: "SYSCFG",
    0xC001_0015: "HWCR",
    0xC001_0016: "IORR_BASE0",
    0xC001_0017: "IORR_MASK0",
    0xC001_0018: "IORR_BASE1",
    0xC001_0019: "IORR_MASK1",
    0xC001_001A: "TOP_MEM",
    0xC001_001D: "TOP_MEM2",
    0xC001_001F: "NB_CFG",
    0xC001_0055: "INTERRUPT_PENDING",
    0xC001_0111: "SMBASE",
    0xC001_0112: "SMM_ADDR",
    0xC001_0113: "SMM_MASK",
    0xC001_0114: "VM_CR",
    0xC001_0115: "IGNNE",
    0xC001_0117: "VM_HSAVE_PA",
    0xC001_011E: "VM_PAGE_FLUSH",
    0xC001_011F: "VIRT_SPEC_CTRL",
    0xC001_0130: "GHCB",
    0xC001_0131: "SEV_STATUS",
    0xC001_0140: "OSVW_ID_LENGTH",
    0xC001_0141: "OSVW_STATUS",
    0xC001_1022: "DC_CFG",
    0xC001_1029: "DE_CFG",
    0xC001_102A: "BU_CFG2",
    # Linux Documentation/virt/kvm/x86/msr.rst
    0x0011: "MSR_KVM_WALL_CLOCK",
    0x0012: "MSR_KVM_SYSTEM_TIME",
    0x4B56_4D00: "MSR_KVM_WALL_CLOCK_NEW",
    0x4B56_4D01: "MSR_KVM_SYSTEM_TIME_NEW",
    0x4B56_4D02: "MSR_KVM_ASYNC_PF_EN",
    0x4B56_4D03: "MSR_KVM_STEAL_TIME",
    0x4B56_4D04: "MSR_KVM_PV_EOI_EN",
    0x4B56_4D05: "MSR_KVM_POLL_CONTROL",
    0x4B56_4D06: "MSR_KVM_ASYNC_PF_INT",
    0x4B56_4D07: "MSR_KVM_ASYNC_PF_ACK",
    0x4B56_4D08: "MSR_KVM_MIGRATION_CONTROL",
    # TLFS, synthetic MSRs
    0x4000_0000: "HV_X64_MSR_GUEST_OS_ID",
    0x4000_0001: "HV_X64_MSR_HYPERCALL",
    0x4000_0002: "HV_X64_MSR_VP_INDEX",
    0x4000_0003: "HV_X64_MSR_RESET",
    0x4000_0010: "HV_X64_MSR_VP_RUNTIME",
    0x4000_0020: "HV_X64_MSR_TIME_REF_COUNT",
    0x4000_0021: "HV_X64_MSR_REFERENCE_TSC",
    0x4000_0022: "HV_X64_MSR_TSC_FREQUENCY",
    0x4000_0023: "HV_X64_MSR_APIC_FREQUENCY",
    0x4000_0070: "HV_X64_MSR_EOI",
    0x4000_0071: "HV_X64_MSR_ICR",
    0x4000_0072: "HV_X64_MSR_TPR",
    0x4000_0073: "HV_X64_MSR_VP_ASSIST_PAGE",
    0x4000_0080: "HV_X64_MSR_SCONTROL",
    0x4000_0081: "HV_X64_MSR_SVERSION",
    0x4000_0082: "HV_X64_MSR_SIEFP",
    0x4000_0083: "HV_X64_MSR_SIMP",
    0x4000_0084: "HV_X64_MSR_EOM",
    **{0x4000_0090 + n: f"HV_X64_MSR_SINT{n}" for n in range(16)},
    **{0x4000_00B0 + 2 * n: f"HV_X64_MSR_STIMER{n}_CONFIG" for n in range(4)},
    **{0x4000_00B1 + 2 * n: f"HV_X64_MSR_STIMER{n}_COUNT" for n in range(4)},
    0x4000_0100: "HV_X64_MSR_CRASH_P0",
    0x4000_0101: "HV_X64_MSR_CRASH_P1",
    0x4000_0102: "HV_X64_MSR_CRASH_P2",
    0x4000_0103: "HV_X64_MSR_CRASH_P3",
    0x4000_0104: "HV_X64_MSR_CRASH_P4",
    0x4000_0105: "HV_X64_MSR_CRASH_CTL",
    0x4000_0106: "HV_X64_MSR_REENLIGHTENMENT_CONTROL",
    0x4000_0107: "HV_X64_MSR_TSC_EMULATION_CONTROL",
    0x4000_0108: "HV_X64_MSR_TSC_EMULATION_STATUS",
    0x4000_0118: "HV_X64_MSR_TSC_INVARIANT_CONTROL",
    0x4000_00F1: "HV_X64_MSR_SYNDBG_CONTROL",
    0x4000_00F2: "HV_X64_MSR_SYNDBG_STATUS",
    0x4000_00F3: "HV_X64_MSR_SYNDBG_SEND_BUFFER",
    0x4000_00F4: "HV_X64_MSR_SYNDBG_RECV_BUFFER",
    0x4000_00F5: "HV_X64_MSR_SYNDBG_PENDING_BUFFER",
    0x4000_00FF: "HV_X64_MSR_SYNDBG_OPTIONS",
    # Families, Intel SDM vol. 4 unless said otherwise
    **{0x00C1 + n: f"IA32_PMC{n}" for n in range(8)},
    **{0x0186 + n: f"IA32_PERFEVTSEL{n}" for n in range(8)},
    **{0x0200 + 2 * n: f"IA32_MTRR_PHYSBASE{n}" for n in range(10)},
    **{0x0201 + 2 * n: f"IA32_MTRR_PHYSMASK{n}" for n in range(10)},
    0x0250: "IA32_MTRR_FIX64K_00000",
    0x0258: "IA32_MTRR_FIX16K_80000",
    0x0259: "IA32_MTRR_FIX16K_A0000",
    **{0x0268 + n: f"IA32_MTRR_FIX4K_{0xC0 + 8 * n:X}000" for n in range(8)},
    **{0x0280 + n: f"IA32_MC{n}_CTL2" for n in range(32)},
    **{0x0309 + n: f"IA32_FIXED_CTR{n}" for n in range(4)},
    **{0x0400 + 4 * n: f"IA32_MC{n}_CTL" for n in range(32)},
    **{0x0401 + 4 * n: f"IA32_MC{n}_STATUS" for n in range(32)},
    **{0x0402 + 4 * n: f"IA32_MC{n}_ADDR" for n in range(32)},
    **{0x0403 + 4 * n: f"IA32_MC{n}_MISC" for n in range(32)},
    **{0x04C1 + n: f"IA32_A_PMC{n}" for n in range(8)},
    **{0x0580 + 2 * n: f"IA32_RTIT_ADDR{n}_A" for n in range(4)},
    **{0x0581 + 2 * n: f"IA32_RTIT_ADDR{n}_B" for n in range(4)},
    **{0xC001_0000 + n: f"PERF_LEGACY_CTL{n}" for n in range(4)},  # AMD
    **{0xC001_0004 + n: f"PERF_LEGACY_CTR{n}" for n in range(4)},
    **{0xC001_0200 + 2 * n: f"PERF_CTL{n}" for n in range(6)},
    **{0xC001_0201 + 2 * n: f"PERF_CTR{n}" for n in range(6)},
}
"""Name of an MSR by its index."""

MSR_INDEX: Final[dict[str, int]] = {name: index for index, name in MSRS.items()}
"""Index of an MSR by its name."""


def msr_name(index: int) -> str:
    """Return the name of the MSR *index*, or its number in hex where no document here names it."""
    return MSRS.get(index) or f"{index:#x}"


IA32_TIME_STAMP_COUNTER: Final = 0x0010
IA32_APIC_BASE: Final = 0x001B
IA32_TSC_ADJUST: Final = 0x003B
IA32_SPEC_CTRL: Final = 0x0048
IA32_MTRRCAP: Final = 0x00FE
IA32_SYSENTER_CS: Final = 0x0174
IA32_SYSENTER_ESP: Final = 0x0175
IA32_SYSENTER_EIP: Final = 0x0176
IA32_MCG_CAP: Final = 0x0179
IA32_MCG_STATUS: Final = 0x017A
IA32_MCG_CTL: Final = 0x017B
IA32_MISC_ENABLE: Final = 0x01A0
IA32_MTRR_PHYSBASE0: Final = 0x0200
IA32_MTRR_FIX64K_00000: Final = 0x0250
IA32_MTRR_FIX16K_80000: Final = 0x0258
IA32_MTRR_FIX16K_A0000: Final = 0x0259
IA32_MTRR_FIX4K_C0000: Final = 0x0268
IA32_PAT: Final = 0x0277
IA32_MC0_CTL2: Final = 0x0280
IA32_MTRR_DEF_TYPE: Final = 0x02FF
IA32_MC0_CTL: Final = 0x0400
IA32_MCG_EXT_CTL: Final = 0x04D0
IA32_TSC_DEADLINE: Final = 0x06E0
IA32_XSS: Final = 0x0DA0
EFER: Final = 0xC000_0080
STAR: Final = 0xC000_0081
LSTAR: Final = 0xC000_0082
CSTAR: Final = 0xC000_0083
SFMASK: Final = 0xC000_0084
FS_BASE: Final = 0xC000_0100
GS_BASE: Final = 0xC000_0101
KERNEL_GS_BASE: Final = 0xC000_0102
TSC_AUX: Final = 0xC000_0103
MSR_KVM_WALL_CLOCK: Final = 0x0011
MSR_KVM_SYSTEM_TIME: Final = 0x0012
MSR_KVM_WALL_CLOCK_NEW: Final = 0x4B56_4D00
MSR_KVM_SYSTEM_TIME_NEW: Final = 0x4B56_4D01
