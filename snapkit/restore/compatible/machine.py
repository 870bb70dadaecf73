"""What a machine of any architecture asks of its host."""

from collections.abc import Mapping

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index
from snapkit.state.host_facts import HostFacts
from snapkit.state.interrupt_table import InterruptTableState
from snapkit.state.machine import EM_AARCH64, EM_X86_64, MachineState
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.units import PAGE_LEN, format_len

ELF_MACHINES = {"x86_64": EM_X86_64, "aarch64": EM_AARCH64}

NEEDS: Mapping[str, tuple[str, ...]] = {
    "memory-layout": ("KVM_CAP_USER_MEMORY",),
    "irqchip-x86": ("KVM_CAP_IRQCHIP",),
    "pit": ("KVM_CAP_PIT2",),
    "kvm-clock": ("KVM_CAP_ADJUST_CLOCK",),
    "vcpu-x86-64": (
        "KVM_CAP_IMMEDIATE_EXIT",
        "KVM_CAP_VCPU_EVENTS",
        "KVM_CAP_DEBUGREGS",
        "KVM_CAP_XSAVE",
        "KVM_CAP_XCRS",
        "KVM_CAP_GET_TSC_KHZ",
    ),
    "gicv3-distributor": ("KVM_CAP_IRQCHIP", "KVM_CAP_DEVICE_CTRL"),
    "vcpu-aarch64": ("KVM_CAP_IMMEDIATE_EXIT", "KVM_CAP_ONE_REG", "KVM_CAP_ARM_PSCI_0_2", "KVM_CAP_VCPU_EVENTS"),
    "interrupt-table": ("KVM_CAP_IRQ_ROUTING", "KVM_CAP_IRQFD"),
    "pci-msix": ("KVM_CAP_SIGNAL_MSI",),
    "virtio-pci": ("KVM_CAP_IOEVENTFD",),
    "virtio-mmio": ("KVM_CAP_IOEVENTFD",),
}
"""What a section of a kind cannot be rebuilt without."""
_ALL_NEEDS = frozenset(name for names in NEEDS.values() for name in names)


def architecture(index: Index, facts: HostFacts) -> Findings:
    """KVM runs a machine on its own architecture only."""
    host, found = ELF_MACHINES.get(facts.architecture), _machine(index).architecture
    if found != host:
        wanted = f"{host} ({facts.architecture})"
        yield Finding("machine/0", "architecture", str(found), wanted, "host.architecture")


def kvm(_index: Index, facts: HostFacts) -> Findings:
    """There is a KVM, and it may be used; one that lacks something is judged by what the machine needs of it."""
    if not facts.kvm.usable and not facts.kvm.capabilities:
        yield Finding("host", "kvm", facts.kvm.why or "not usable", "usable", "host.kvm")


def capabilities(index: Index, facts: HostFacts) -> Findings:
    """KVM has every capability that a part of the machine is rebuilt, run or saved by."""
    lacking = _ALL_NEEDS.intersection([name for name, value in facts.kvm.capabilities.items() if value == 0])
    for name in sorted(lacking):
        kind = next((section.kind for section in index.sections if name in NEEDS.get(section.kind, ())), None)
        if kind is not None:
            yield Finding("host", f"kvm.capabilities.{name}", "0", f"there, for {kind}", "host.capabilities")


def page_size(_index: Index, facts: HostFacts) -> Findings:
    """The file's memory is mapped in pages of 4 KiB."""
    if facts.page_size != PAGE_LEN:
        yield Finding("host", "page_size", str(facts.page_size), str(PAGE_LEN), "host.page-size")


def vcpus(index: Index, facts: HostFacts) -> Findings:
    """KVM creates that many vCPUs."""
    count = _machine(index).vcpu_count
    if facts.kvm.vcpus_max and count > facts.kvm.vcpus_max:
        wanted = f"at most {facts.kvm.vcpus_max} on this host"
        yield Finding("machine/0", "vcpu_count", str(count), wanted, "host.vcpus")


def memory(index: Index, facts: HostFacts) -> Findings:
    """The host has that much memory: RAM is only taken when it is used, but to map a terabyte of it costs seconds."""
    layout = index.get("memory-layout", "0", MemoryLayoutState)
    length = sum(region.length for region in layout.regions) if layout is not None else 0
    if facts.memory_total and length > facts.memory_total:
        wanted = f"at most {format_len(facts.memory_total)}, this host's"
        yield Finding("memory-layout/0", "regions", f"{format_len(length)} of RAM", wanted, "host.memory")


def routes(index: Index, facts: HostFacts) -> Findings:
    """KVM's routing table holds the machine's messages beside the controllers' pins, and numbers GSIs that far."""
    table = index.get("interrupt-table", "0", InterruptTableState)
    most = facts.kvm.capabilities.get("KVM_CAP_IRQ_ROUTING", 0)
    if table is None or not table.routes or not most:
        return
    where, rule = "interrupt-table/0", "host.routes"
    count = len(table.routes) + index.map.pin_routes
    if count > most:
        wanted = f"at most {most} with the controllers' pins on this host, which are {count - len(table.routes)}"
        yield Finding(where, "routes", f"{count} routes", wanted, rule)
    number = len(table.routes) - 1
    if table.routes[number].gsi >= most:
        found, wanted = str(table.routes[number].gsi), f"below {most} on this host"
        yield Finding(where, f"routes[{number}].gsi", found, wanted, rule)


def devices(index: Index, facts: HostFacts) -> Findings:
    """A network card's host end is a TAP. No other device needs more of a host than files, sockets and KVM."""
    if facts.tun is not False:
        return
    for section in index.sections:
        if section.kind == "virtio-net":
            yield Finding(str(section), "host", "a TAP", "absent: this host has no usable /dev/net/tun", "host.devices")


def _machine(index: Index) -> MachineState:
    found = index.get("machine", "0", MachineState)
    assert found is not None, "`compatible` judges no file without"
    return found
