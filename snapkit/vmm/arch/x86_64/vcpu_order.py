"""The order in which KVM wants an x86-64 vCPU written: a table of edges with reasons.

Names are those of the KVM_SET_* ioctls; MSRs means all but the two that are written when the machine first runs, which
stand last: the time-stamp counter and the deadline that is measured by it.
Sources: Documentation/virt/kvm/api.rst; arch/x86/kvm/x86.c, cpuid.c and lapic.c of Linux. What an edge says was
measured on Linux 6.18, unless it is marked.
"""

from snapkit.order import Edge, Order

LOAD = Order(
    "the order of loading a vCPU",
    (
        "CPUID2",
        "TSC_KHZ",
        "REGS",
        "SREGS",
        "MP_STATE",
        "XSAVE",
        "XCRS",
        "DEBUGREGS",
        "LAPIC",
        "MSRS",
        "VCPU_EVENTS",
        "KVMCLOCK_CTRL",
        "TSC",
        "TSC_DEADLINE",
    ),
    (
        Edge("CPUID2", "SREGS", "without X2APIC in CPUID an APIC base in that mode is refused"),
        Edge(
            "CPUID2",
            "XSAVE",
            "only CPUID makes room for state that is enabled dynamically (AMX)",
            either="only a CPU with AMX can show it: kvm_check_cpuid() calls fpu_enable_guest_xfd_features()",
        ),
        Edge("CPUID2", "XCRS", "an XCR0 with more than CPUID offers is refused"),
        Edge("CPUID2", "MSRS", "a memory-type range above the physical bits that CPUID tells is refused"),
        Edge("SREGS", "MP_STATE", "a boot CPU whose CS:RIP is the reset vector is made runnable by setting SREGS"),
        Edge(
            "SREGS", "LAPIC", "a LAPIC that is not in x2APIC mode yet loses the upper half of ICR, and keeps another id"
        ),
        Edge("REGS", "VCPU_EVENTS", "setting REGS clears a pending exception"),
        Edge(
            "MP_STATE",
            "VCPU_EVENTS",
            "a vCPU that waits for a SIPI is refused its state while an SMI is pending",
            either="only a KVM with SMM can show it: kvm_arch_vcpu_ioctl_set_mpstate()",
        ),
        Edge("MSRS", "KVMCLOCK_CTRL", "KVM can tell a guest of its pause once it knows where the guest's clock is"),
        Edge(
            "TSC_KHZ",
            "TSC",
            "an offset is computed by the rate that is set when the counter is",
            either="only a CPU with TSC scaling can show it: kvm_synchronize_tsc(), kvm_compute_l1_tsc_offset()",
        ),
        Edge("LAPIC", "TSC_DEADLINE", "a deadline is dropped while the LAPIC's timer is in another mode"),
        Edge("TSC", "TSC_DEADLINE", "the timer is set by the counter's value at that moment; it would be stuck"),
    ),
)

AT_FIRST_RESUME = ("TSC", "TSC_DEADLINE")
"""What would run on while a restored machine waits paused, and so is not written by `load`."""
