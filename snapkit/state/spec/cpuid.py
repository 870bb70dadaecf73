"""CPUID leaves that say what a processor can do, one bit a feature.

Intel SDM volume 2, instruction CPUID; AMD APM volume 3, appendix E; Linux Documentation/virt/kvm/x86/cpuid.rst for
KVM's own leaf. A register is its 32 names from bit 0 up, ``-`` where no document names the bit. Names are those of
/proc/cpuinfo where Linux has one, else the document's in lower case.

Not here: leaves that count or measure (caches, topology, sizes), and the hints among KVM's (register EDX).
"""

from typing import Final

REGISTERS: Final = ("eax", "ebx", "ecx", "edx")

FEATURES: Final[dict[tuple[int, int, str], str]] = {
    (0x1, 0, "ecx"): "sse3 pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm"
    " - pcid dca sse4_1 sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
    (0x1, 0, "edx"): "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov"
    " pat pse36 pn clflush - dts acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
    (0x6, 0, "eax"): "dtherm ida arat - pln ecmd pts hwp hwp_notify hwp_act_window hwp_epp hwp_pkg_req - hdc",
    (0x7, 0, "ebx"): "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds"
    " mpx rdt_a avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel_pt avx512pf avx512er avx512cd"
    " sha_ni avx512bw avx512vl",
    (0x7, 0, "ecx"): "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni"
    " avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid kl bus_lock_detect cldemote - movdiri movdir64b enqcmd"
    " sgx_lc pks",
    (0x7, 0, "edx"): "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear"
    " rtm_always_abort - tsx_force_abort serialize hybrid tsxldtrk - pconfig arch_lbr ibt - amx_bf16 avx512_fp16"
    " amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities spec_ctrl_ssbd",
    (0x7, 1, "eax"): "sha512 sm3 sm4 rao_int avx_vnni avx512_bf16 lass cmpccxadd arch_perfmon_ext - fzrm fsrs fsrc"
    " - - - - fred lkgs wrmsrns nmi_src amx_fp16 hreset avx_ifma - - lam msrlist - - invd_disable movrs",
    (0x7, 1, "ebx"): "ppin",
    (0x7, 1, "ecx"): "- - - - - msr_imm",
    (0x7, 1, "edx"): "- - - - avx_vnni_int8 avx_ne_convert - - amx_complex - avx_vnni_int16 - - - prefetchi user_msr"
    " - uiret_uif cet_sss avx10 - apx_f",
    (0x7, 2, "edx"): "psfd ipred_ctrl rrsba_ctrl ddpd_u bhi_ctrl mcdt_no",
    (0xD, 0, "eax"): "x87 sse avx bndregs bndcsr opmask zmm_hi256 hi16_zmm - pkru - - - - - - - tilecfg tiledata apx",
    (0xD, 0, "edx"): "",
    (0xD, 1, "eax"): "xsaveopt xsavec xgetbv1 xsaves xfd",
    (0xD, 1, "ecx"): "- - - - - - - - pt - pasid cet_user cet_supervisor hdc uintr lbr hwp",
    (0xD, 1, "edx"): "",
    (0x4000_0001, 0, "eax"): "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 kvm_async_pf kvm_steal_time"
    " kvm_pv_eoi kvm_pv_unhalt - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control"
    " kvm_pv_sched_yield kvm_async_pf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control"
    " - - - - - - kvm_clocksource_stable_bit",
    (
        0x8000_0001,
        0,
        "ecx",
    ): "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop"
    " skinit wdt - lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx"
    " addr_mask_ext",
    (0x8000_0001, 0, "edx"): "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov"
    " pat pse36 - mp nx - mmxext mmx fxsr fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
    (0x8000_0007, 0, "ebx"): "overflow_recov succor hwa smca",
    (0x8000_0007, 0, "edx"): "ts fid vid ttp htc stc 100mhzsteps hw_pstate invariant_tsc cpb aperfmperf_ro"
    " proc_feedback acc_power",
    (0x8000_0008, 0, "ebx"): "clzero irperf xsaveerptr invlpgb rdpru - - - mcommit wbnoinvd - - amd_ibpb int_wbinvd"
    " amd_ibrs amd_stibp ibrs_always_on amd_stibp_always_on ibrs_preferred ibrs_same_mode no_efer_lmsle invlpgb_nested"
    " - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no amd_ibpb_ret brs",
    (0x8000_000A, 0, "edx"): "npt lbrv svm_lock nrip_save tsc_scale vmcb_clean flushbyasid decodeassists - -"
    " pausefilter - pfthreshold avic - v_vmsave_vmload vgif gmet x2avic ssscheck v_spec_ctrl rogpt - host_mce_override"
    " tlbictl vnmi ibsvirt",
    (0x8000_001F, 0, "eax"): "sme sev vm_page_flush sev_es sev_snp vmpl rmpquery vmpl_sss secure_tsc",
    (0x8000_0021, 0, "eax"): "no_nested_data_bp fsgs_nonserializing lfence_rdtsc smm_page_cfg_lock - verw_clear"
    " null_sel_clr_base upper_addr_ignore autoibrs no_smm_ctl_msr fsrs fsrc - prefetch_ctl_msr - - - cpuid_user_dis"
    " epsf - prefetchi - - - eraps - - sbpb ibpb_brtype srso_no srso_user_kernel_no srso_bp_spec_reduce",
    (0x8000_0021, 0, "ecx"): "- tsa_sq_no tsa_l1_no",
    (0x8000_0022, 0, "eax"): "perfmon_v2 amd_lbr_v2 amd_lbr_pmc_freeze",
}
"""Names of a register's bits, by leaf, subleaf and register."""

LEVELS: Final[dict[tuple[int, int, str], tuple[tuple[int, int, str], ...]]] = {
    (0xA, 0, "eax"): ((7, 0, "PMU version"), (15, 8, "PMU counters"), (23, 16, "bits of a PMU counter")),
    (0xA, 0, "edx"): ((4, 0, "fixed PMU counters"),),
    (0x24, 0, "ebx"): ((7, 0, "AVX10 version"),),
    (0x8000_0022, 0, "ebx"): ((3, 0, "PMU counters"),),
}
"""Numbers (highest bit, lowest bit, what) of which a processor with more can do what one with less can."""


def leaf_name(function: int, index: int, register: str) -> str:
    """Return how people write a register of a leaf: ``7.0:EBX``."""
    subleaf = f".{index}" if index or function in {0x7, 0xD, 0x24} else ""
    return f"{function:x}{subleaf}:{register.upper()}"


def feature_name(function: int, index: int, register: str, number: int) -> str:
    """Return the name of bit *number*: ``avx2``, or ``bit 30`` where no document here names it."""
    names = FEATURES.get((function, index, register), "").split()
    name = names[number] if number < len(names) else "-"
    return f"bit {number}" if name == "-" else name
