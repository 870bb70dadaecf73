"""What this host can do, as plain data: what `snapkit doctor` prints, and what a restore can be judged by elsewhere."""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import NamedTuple, Protocol

from snapkit import host
from snapkit.errors import HostError, IncompatibleHost
from snapkit.state.host_facts import HostFacts, KvmFacts
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.system import KVM_PATH, Kvm

ARCHITECTURES = ("x86_64", "aarch64")


class Capability(NamedTuple):
    """KVM_CHECK_EXTENSION: its name and number, whether snapkit needs it, what it is for or what its lack means."""

    name: str
    number: int
    needed: bool
    meaning: str


class Own(Protocol):
    """What only one architecture has; the module `facts` of its package is one."""

    CAPABILITIES: Sequence[Capability]

    def ask(self, kvm: Kvm, facts: HostFacts) -> None:
        """Find out what costs little."""
        ...

    def ask_vm(self, kvm: Kvm, facts: HostFacts) -> None:
        """Find out what costs a VM."""
        ...


COMMON: Sequence[Capability] = (
    Capability("KVM_CAP_IRQCHIP", abi.KVM_CAP_IRQCHIP, True, "in-kernel interrupt controllers; no machine without"),
    Capability("KVM_CAP_USER_MEMORY", abi.KVM_CAP_USER_MEMORY, True, "guest RAM from the monitor's memory; no machine without"),
    Capability("KVM_CAP_IRQ_ROUTING", abi.KVM_CAP_IRQ_ROUTING, True, "interrupt routes; no message-signalled interrupts without"),
    Capability("KVM_CAP_IRQFD", abi.KVM_CAP_IRQFD, True, "interrupts from an eventfd; no device threads without"),
    Capability("KVM_CAP_IOEVENTFD", abi.KVM_CAP_IOEVENTFD, True, "doorbells to an eventfd; slow queues without"),
    Capability("KVM_CAP_IOEVENTFD_ANY_LENGTH", abi.KVM_CAP_IOEVENTFD_ANY_LENGTH, False, "doorbells whatever the store's width; slow queues over PCI without"),
    Capability("KVM_CAP_SIGNAL_MSI", abi.KVM_CAP_SIGNAL_MSI, True, "message-signalled interrupts"),
    Capability("KVM_CAP_VCPU_EVENTS", abi.KVM_CAP_VCPU_EVENTS, True, "pending exceptions; a snapshot would lose them without"),
    Capability("KVM_CAP_IMMEDIATE_EXIT", abi.KVM_CAP_IMMEDIATE_EXIT, True, "completing an exit in flight"),
)  # fmt: skip
"""What every architecture's KVM is asked for; each has more."""


def capabilities(architecture: str) -> Sequence[Capability]:
    """Return what KVM is asked for on *architecture*, as uname(2) names it."""
    found = _own(architecture)
    return COMMON if found is None else (*COMMON, *found.CAPABILITIES)


_asked: dict[tuple[int, int, int], HostFacts] = {}
"""What KVM answered in this process, by the device that it was asked through."""


def collect() -> HostFacts:
    """Return everything that is known of this host; never raises for what it lacks, but says so."""
    facts = _plain()
    facts.cpus, facts.memory_available = os.cpu_count() or 0, _memory_available()
    try:
        with Kvm() as kvm:
            _ask(kvm, facts)
            _ask_vm(kvm, facts)
    except (IncompatibleHost, HostError) as error:
        facts.kvm.usable, facts.kvm.why = False, str(error)
    return facts


def live(*, rate: bool = False) -> HostFacts:
    """Return what a restore here is judged by; without *rate* not the rate of the counter, and what else a VM tells.

    KVM's answers are asked for once: its list of CPUID leaves costs 0.3 ms on a host that is a guest itself. They hold
    while the module stays loaded, and loading it again makes another /dev/kvm. The rate costs a VM, 1 ms, so that it is
    only asked for when it is wanted: a counter that cannot have the machine's rate is refused when it is loaded, too, and
    so are an aarch64 machine's identification registers.

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
    if rate and not (facts.tsc_khz or facts.counter_hz):
        with Kvm() as kvm:
            _ask_vm(kvm, facts)
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
    found, asked = facts.kvm, capabilities(facts.architecture)
    found.capabilities = {one.name: kvm.extension(one.number) for one in asked}
    found.vcpus_max = kvm.extension(abi.KVM_CAP_MAX_VCPUS)
    found.vcpus_recommended = kvm.extension(abi.KVM_CAP_NR_VCPUS)
    own = _own(facts.architecture)
    if own is not None:
        own.ask(kvm, facts)
    lacking = [one.name for one in asked if one.needed and not found.capabilities[one.name]]
    found.usable, found.why = not lacking, f"it lacks {', '.join(lacking)}" if lacking else ""


def _ask_vm(kvm: Kvm, facts: HostFacts) -> None:
    own = _own(facts.architecture)
    if own is not None:
        own.ask_vm(kvm, facts)


def _own(architecture: str) -> Own | None:
    """Return what only *architecture* has; None for one that snapkit does not run on."""
    if architecture not in ARCHITECTURES:
        return None
    own: Own = import_module(f"snapkit.vmm.arch.{architecture}.facts")
    return own


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
