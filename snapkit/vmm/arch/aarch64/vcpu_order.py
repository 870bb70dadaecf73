"""The order in which KVM wants an aarch64 vCPU written: a table of edges with reasons.

Names are those of the ioctls, and for KVM_SET_ONE_REG of what is written by it: SVE_VLS the set of vector lengths, VECTORS
the other registers of more than 64 bits, REGS all of at most 64 bits but TIMER_CNT, the virtual counter.
Sources: Documentation/virt/kvm/api.rst; arch/arm64/kvm/arm.c, reset.c, guest.c and arch_timer.c of Linux.
"""

from snapkit.order import Edge, Order

LOAD = Order(
    "the order of loading a vCPU",
    ("VCPU_INIT", "SVE_VLS", "VCPU_FINALIZE", "REGS", "VECTORS", "VCPU_EVENTS", "MP_STATE", "TIMER_CNT"),
    (
        Edge("VCPU_INIT", "SVE_VLS", "a vCPU without SVE among its features has no such register"),
        Edge("SVE_VLS", "VCPU_FINALIZE", "finalising settles the vector lengths, which are refused from then on"),
        Edge("VCPU_INIT", "REGS", "a vCPU that is no model yet has no registers, and becoming one resets them"),
        Edge("VCPU_FINALIZE", "VECTORS", "vectors are refused while how long they are is not settled"),
        Edge("VCPU_INIT", "VCPU_EVENTS", "a vCPU that is no model yet refuses events"),
        Edge("VCPU_INIT", "MP_STATE", "initialising makes a vCPU run that was stopped"),
        Edge(
            "REGS",
            "TIMER_CNT",
            "the timer's lines are made of its control, its compare value and the counter",
            either="KVM makes them anew each time it looks at a vCPU: kvm_timer_vcpu_load()",
        ),
    ),
)

AT_FIRST_RESUME = ("TIMER_CNT",)
"""What would run on while a restored machine waits paused, and so is not written by `load`."""
