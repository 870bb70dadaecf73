"""What this host can do, as plain data: what `snapkit doctor` prints, and what a restore can be judged by elsewhere."""

import os

from snapkit import host
from snapkit.errors import HostError, IncompatibleHost
from snapkit.state.host_facts import HostFacts, KvmFacts
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
    ("KVM_CAP_TSC_DEADLINE_TIMER", abi.KVM_CAP_TSC_DEADLINE_TIMER, False, "the APIC timer's deadline mode; guests that were told of it need it"),
    ("KVM_CAP_TSC_CONTROL", abi.KVM_CAP_TSC_CONTROL, False, "scaled time-stamp counter; snapshots from hosts with another rate are refused without"),
    ("KVM_CAP_IMMEDIATE_EXIT", abi.KVM_CAP_IMMEDIATE_EXIT, True, "completing an exit in flight"),
)  # fmt: skip
"""Name, number, whether snapkit needs it, and what it is for or what its lack means."""


_asked: dict[tuple[int, int, int], HostFacts] = {}
"""What KVM answered in this process, by the device that it was asked through."""


def collect() -> HostFacts:
    """Return everything that is known of this host; never raises for what it lacks, but says so."""
    facts = _plain()
    facts.cpus, facts.memory_available = os.cpu_count() or 0, _memory_available()
    try:
        with Kvm() as kvm:
            _ask(kvm, facts)
            _ask_rate(kvm, facts)
    except (IncompatibleHost, HostError) as error:
        facts.kvm.usable, facts.kvm.why = False, str(error)
    return facts


def live(*, rate: bool = False) -> HostFacts:
    """Return what a restore here is judged by; without *rate* not that of the time-stamp counter.

    KVM's answers are asked for once: its list of CPUID leaves costs 0.3 ms on a host that is a guest itself. They hold
    while the module stays loaded, and loading it again makes another /dev/kvm. The rate costs a VM, 1 ms, so that it is
    only asked for when it is wanted: a counter that cannot have the machine's rate is refused when it is loaded, too.

    Raises IncompatibleHost where there is no KVM, HostError when it cannot be asked.
    """
    try:
        node = host.stat_path(KVM_PATH)
    except HostError:
        Kvm().close()  # which says it better
        raise
    identity = (node.st_dev, node.st_ino, node.st_ctime_ns)
    facts = _asked.get(identity)
    if facts is None:
        facts = _plain()
        with Kvm() as kvm:
            _ask(kvm, facts)
        _asked.clear()
        _asked[identity] = facts
    if rate and not facts.tsc_khz:
        with Kvm() as kvm:
            _ask_rate(kvm, facts)
    if not facts.tun:
        facts.tun = _tun()  # its module may have been loaded since
    return facts


def _plain() -> HostFacts:
    return HostFacts(
        architecture=host.machine_name(),
        page_size=os.sysconf("SC_PAGESIZE"),
        memory_total=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE"),
        kvm=KvmFacts(path=KVM_PATH, usable=False, capabilities={}),
        kernel=host.kernel_release(),
        clock_source=_clock_source(),
        tun=_tun(),
    )


def _ask(kvm: Kvm, facts: HostFacts) -> None:
    found = facts.kvm
    found.capabilities = {name: kvm.extension(number) for name, number, _, _ in CAPABILITIES}
    found.vcpus_max = kvm.extension(abi.KVM_CAP_MAX_VCPUS)
    found.vcpus_recommended = kvm.extension(abi.KVM_CAP_NR_VCPUS)
    if facts.architecture == "x86_64":
        facts.cpuid, facts.msrs = kvm.supported_cpuid(), kvm.msr_indices()
        first = next((leaf for leaf in facts.cpuid if leaf.function == 0), None)
        if first is not None:
            words = (first.ebx, first.edx, first.ecx)
            facts.cpu_vendor = b"".join(word.to_bytes(4, "little") for word in words).decode("ascii", "replace")
    lacking = [name for name, _, needed, _ in CAPABILITIES if needed and not found.capabilities[name]]
    found.usable, found.why = not lacking, f"it lacks {', '.join(lacking)}" if lacking else ""


def _ask_rate(kvm: Kvm, facts: HostFacts) -> None:
    if facts.architecture != "x86_64":
        return
    vm = kvm.create_vm()
    vcpu: VcpuFd | None = None
    try:
        vcpu = vm.create_vcpu(0)
        facts.tsc_khz = vcpu.get_tsc_khz()
    finally:
        if vcpu is not None:
            vcpu.close()
        vm.close()


def _clock_source() -> str:
    """Return what Linux keeps time by; nothing where it does not say."""
    try:
        fd = host.open_fd("/sys/devices/system/clocksource/clocksource0/current_clocksource", os.O_RDONLY)
    except HostError:
        return ""
    try:
        return (host.read(fd, 64) or b"").decode("ascii", "replace").strip()
    finally:
        host.close(fd)


def _tun() -> bool:
    return host.may_use("/dev/net/tun")


def _memory_available() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")
