"""What this host can do, as plain data: what `snapkit doctor` prints, and what a restore can be judged by elsewhere."""

import os
from typing import Any

from snapkit import host
from snapkit.errors import HostError, IncompatibleHost
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.system import KVM_PATH, Kvm
from snapkit.vmm.kvm.vcpu import VcpuFd

CAPABILITIES = (
    ("KVM_CAP_IRQCHIP", abi.KVM_CAP_IRQCHIP, True, "in-kernel interrupt controllers; no machine without"),
    ("KVM_CAP_USER_MEMORY", abi.KVM_CAP_USER_MEMORY, True, "guest RAM from the monitor's memory; no machine without"),
    ("KVM_CAP_PIT2", abi.KVM_CAP_PIT2, True, "in-kernel timer; no machine without"),
    ("KVM_CAP_IRQ_ROUTING", abi.KVM_CAP_IRQ_ROUTING, True, "interrupt routes; no message-signalled interrupts without"),
    ("KVM_CAP_IRQFD", abi.KVM_CAP_IRQFD, True, "interrupts from an eventfd; no device threads without"),
    ("KVM_CAP_IOEVENTFD", abi.KVM_CAP_IOEVENTFD, True, "doorbells to an eventfd; slow queues without"),
    ("KVM_CAP_IOEVENTFD_ANY_LENGTH", abi.KVM_CAP_IOEVENTFD_ANY_LENGTH, False, "doorbells whatever the store's width; slow queues over PCI without"),
    ("KVM_CAP_SIGNAL_MSI", abi.KVM_CAP_SIGNAL_MSI, True, "message-signalled interrupts"),
    ("KVM_CAP_VCPU_EVENTS", abi.KVM_CAP_VCPU_EVENTS, True, "pending exceptions; a snapshot would lose them without"),
    ("KVM_CAP_DEBUGREGS", abi.KVM_CAP_DEBUGREGS, True, "debug registers; a snapshot would lose them without"),
    ("KVM_CAP_XSAVE", abi.KVM_CAP_XSAVE, True, "vector registers; a snapshot would lose them without"),
    ("KVM_CAP_XSAVE2", abi.KVM_CAP_XSAVE2, False, "length of large vector state (AMX); only such guests need it"),
    ("KVM_CAP_XCRS", abi.KVM_CAP_XCRS, True, "extended control registers; a snapshot would lose them without"),
    ("KVM_CAP_ADJUST_CLOCK", abi.KVM_CAP_ADJUST_CLOCK, True, "kvm-clock goes on from a snapshot; jumps without"),
    ("KVM_CAP_GET_TSC_KHZ", abi.KVM_CAP_GET_TSC_KHZ, True, "rate of the time-stamp counter, recorded in snapshots"),
    ("KVM_CAP_TSC_CONTROL", abi.KVM_CAP_TSC_CONTROL, False, "scaled time-stamp counter; snapshots from hosts with another rate are refused without"),
    ("KVM_CAP_IMMEDIATE_EXIT", abi.KVM_CAP_IMMEDIATE_EXIT, True, "completing an exit in flight"),
)  # fmt: skip
"""Name, number, whether snapkit needs it, and what it is for or what its lack means."""


def collect() -> dict[str, Any]:
    """Return what this host can do, as JSON-able data; never raises for what it lacks, but says so."""
    facts: dict[str, Any] = {
        "architecture": host.machine_name(),
        "kernel": host.kernel_release(),
        "cpus": os.cpu_count() or 0,
        "page_size": os.sysconf("SC_PAGESIZE"),
        "memory_available": _memory_available(),
        "kvm": {"path": KVM_PATH, "usable": False, "why": "", "capabilities": {}},
    }
    kvm_facts = facts["kvm"]
    try:
        with Kvm() as kvm:
            kvm_facts["capabilities"] = {name: kvm.extension(number) for name, number, _, _ in CAPABILITIES}
            kvm_facts["vcpus_max"] = kvm.extension(abi.KVM_CAP_MAX_VCPUS)
            kvm_facts["vcpus_recommended"] = kvm.extension(abi.KVM_CAP_NR_VCPUS)
            if host.machine_name() == "x86_64":
                _collect_x86(kvm, facts)
            lacking = [name for name, _, needed, _ in CAPABILITIES if needed and not kvm_facts["capabilities"][name]]
            kvm_facts["usable"] = not lacking
            kvm_facts["why"] = f"it lacks {', '.join(lacking)}" if lacking else ""
    except (IncompatibleHost, HostError) as error:
        kvm_facts["why"] = str(error)
    return facts


def _collect_x86(kvm: Kvm, facts: dict[str, Any]) -> None:
    leaves = kvm.supported_cpuid()
    facts["cpuid"] = [{name: getattr(leaf, name) for name in leaf.__struct_fields__} for leaf in leaves]
    facts["msrs"] = kvm.msr_indices()
    first = next((leaf for leaf in leaves if leaf.function == 0), None)
    if first is not None:
        facts["cpu_vendor"] = b"".join(word.to_bytes(4, "little") for word in (first.ebx, first.edx, first.ecx)).decode(
            "ascii", "replace"
        )
    vm = kvm.create_vm()
    vcpu: VcpuFd | None = None
    try:
        vm.create_irqchip()
        vcpu = vm.create_vcpu(0)
        facts["tsc_khz"] = vcpu.get_tsc_khz()
    finally:
        if vcpu is not None:
            vcpu.close()
        vm.close()


def _memory_available() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")
