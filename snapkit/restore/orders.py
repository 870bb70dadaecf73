"""The orders in which a machine is restored: tables of edges, each with its reason, that `plan` sorts by.

Stages first, then, inside of three of them, kinds of sections. The order is one for all kinds of all architectures; a
machine has some of them. Kinds that a table does not list come after those that it does, in the file's order.
Sources: Documentation/virt/kvm/api.rst, arch/x86/kvm of Linux.
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
ON_MEMORY = ("resource-allocator", "interrupt-table", "serial-16550", "i8042", "pci-segment", *_DEVICES)

REBUILD = Order(
    "the order of construction",
    (
        "machine",
        "memory-layout",
        "irqchip-x86",
        "pit",
        "vcpu-x86-64",
        "kvm-clock",
        "resource-allocator",
        "interrupt-table",
        "serial-16550",
        "i8042",
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
    ("vcpu-x86-64", "irqchip-x86", "pit", "kvm-clock"),
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
    ),
)
