"""The orders in which a machine is restored: tables of edges, each with its reason, that `plan` sorts by.

Stages first, then, inside of three of them, kinds of sections. The order is one for all kinds of all architectures; a
machine has some of them. Kinds that a table does not list come after those that it does, in the file's order.
Sources: Documentation/virt/kvm/api.rst, arch/x86/kvm and arch/arm64/kvm of Linux.
"""

from snapkit.order import Edge, Order

STAGES = Order(
    "the order of stages",
    ("claim", "rebuild", "wire", "load", "activate", "run"),
    (
        Edge("claim", "rebuild", "the VM is made by the hypervisor, and a device around what the host lends to it"),
        Edge("rebuild", "wire", "doorbells and interrupts belong to parts, and are made on the VM's fd"),
        Edge(
            "wire",
            "load",
            "what an IOAPIC injects while it is loaded finds all routes there",
            either="arch/x86/kvm/ioapic.c: an IOAPIC delivers to local APICs itself, not by way of the routes",
        ),
        Edge("load", "activate", "a pin that is driven before its IOAPIC is loaded drives a masked one, and is lost"),
        Edge("activate", "run", "a guest that runs finds every thread and host end at work"),
    ),
)

CLAIM = Order("the order of claims", ("virtio-block", "virtio-net", "virtio-vsock"), ())
"""Kinds that have something of the host's: an image, a TAP, a socket. None of them needs another."""

_DEVICES = ("virtio-block", "virtio-net", "virtio-vsock", "virtio-rng", "virtio-balloon")
_CHIPS = ("serial-16550", "i8042", "serial-pl011", "rtc-pl031")
ON_MEMORY = ("resource-allocator", "interrupt-table", *_CHIPS, "pci-segment", *_DEVICES)

REBUILD = Order(
    "the order of construction",
    (
        "machine",
        "memory-layout",
        "irqchip-x86",
        "pit",
        "vcpu-x86-64",
        "kvm-clock",
        "vcpu-aarch64",
        "gicv3-distributor",
        "gicv3-redistributor",
        "gicv3-cpu-interface",
        "gicv3-its",
        "resource-allocator",
        "interrupt-table",
        *_CHIPS,
        "vmgenid",
        "pci-segment",
        *_DEVICES,
        "pci-function",
        "pci-msix",
        "virtio-pci",
        "virtio-mmio",
    ),
    (
        Edge("machine", "memory-layout", "memory slots are set on the VM's fd"),
        Edge("machine", "kvm-clock", "the clock is one of the VM's"),
        Edge(
            "memory-layout",
            "irqchip-x86",
            "a slot costs milliseconds once the irqchip is there",
            either="slower only: measured 6.8 ms against 0.35 ms for one slot; KVM waits for SRCU readers of its buses",
        ),
        Edge("irqchip-x86", "pit", "KVM_CREATE_PIT2 wants the PICs that it raises its interrupt at"),
        Edge("irqchip-x86", "vcpu-x86-64", "KVM makes a local APIC with a vCPU, and no irqchip once there is a vCPU"),
        Edge("machine", "vcpu-aarch64", "vCPUs are made on the VM's fd"),
        Edge("vcpu-aarch64", "gicv3-distributor", "the GIC is made with a redistributor for every vCPU that there is"),
        Edge("gicv3-distributor", "gicv3-redistributor", "its registers are attributes of the distributor's device"),
        Edge("gicv3-distributor", "gicv3-cpu-interface", "its registers are attributes of the distributor's device"),
        Edge(
            "gicv3-distributor",
            "gicv3-its",
            "an ITS sends LPIs to the redistributors of a GIC that is there",
            either="arch/arm64/kvm/vgic/vgic-its.c: who is sent to is looked up with each message",
        ),
        *(Edge("memory-layout", kind, "parts are built on the VM and its memory") for kind in ON_MEMORY),
        Edge("resource-allocator", "vmgenid", "claims its GSI"),
        Edge("resource-allocator", "pci-function", "claims the ranges of its BARs"),
        Edge("resource-allocator", "virtio-mmio", "claims its slot and its GSI"),
        Edge("pci-segment", "pci-function", "a function is put into a slot of the segment"),
        Edge("pci-function", "pci-msix", "its control word is in the function's configuration space"),
        Edge("pci-msix", "virtio-pci", "the transport interrupts by vectors, and maps their table into its BAR"),
        *(Edge(kind, "virtio-pci", "a transport wraps its device") for kind in _DEVICES),
        *(Edge(kind, "virtio-mmio", "a transport wraps its device") for kind in _DEVICES),
    ),
)

LOAD = Order(
    "the order of loading",
    (
        "vcpu-x86-64",
        "irqchip-x86",
        "pit",
        "kvm-clock",
        "vcpu-aarch64",
        "gicv3-distributor",
        "gicv3-redistributor",
        "gicv3-cpu-interface",
        "gicv3-its",
    ),
    (
        Edge(
            "vcpu-x86-64",
            "irqchip-x86",
            "an IOAPIC injects the edges that it holds into the local APICs; one that is set later forgets them",
        ),
        Edge(
            "irqchip-x86",
            "pit",
            "a PIT that runs raises an interrupt at chips that are not loaded yet",
            either="it is held until *run*, where it is written: loading it writes nothing",
        ),
        Edge(
            "vcpu-aarch64",
            "gicv3-redistributor",
            "a CPU has its affinity, by which attributes of the GIC find its redistributor, from being initialised on",
        ),
        Edge(
            "gicv3-distributor",
            "gicv3-redistributor",
            "its revision says how a redistributor's registers behave",
            either="only a revision older than this KVM's can show it: vgic_mmio_read_v3r_ctlr() asks at each look",
        ),
        Edge(
            "gicv3-redistributor",
            "gicv3-cpu-interface",
            "what is pending is there before it can be signalled",
            either="interrupts are signalled when a CPU enters the guest: kvm_vgic_flush_hwstate()",
        ),
        Edge(
            "gicv3-redistributor",
            "gicv3-its",
            "restoring an ITS's tables takes what is pending from where redistributors say",
        ),
    ),
)
