"""Who is who: the sections that a machine must have, whose parts they are, and what the file's labels say of it."""

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index, Sections, invariant
from snapkit.restore.manifest import Fact, Manifest
from snapkit.restore.pages import Pages
from snapkit.restore.preamble import Preamble
from snapkit.state.machine import EM_AARCH64, EM_X86_64, MachineState
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.state.pci_function import HOST_BRIDGE, PciFunctionState
from snapkit.state.pci_segment import PciSegmentState
from snapkit.state.schema import SectionId
from snapkit.state.spec import virtio as spec
from snapkit.state.spec.address_map import MAPS
from snapkit.state.vmgenid import GENERATION_LEN, VmgenidState

_SHOWN = 16
_SINGLE = ("machine", "memory-layout", "resource-allocator", "interrupt-table")
_SINGLE_OF = {
    EM_X86_64: ("irqchip-x86", "pit", "kvm-clock", "serial-16550", "i8042"),
    EM_AARCH64: ("gicv3-distributor", "serial-pl011", "rtc-pl031"),
}
_CPU_OF = {
    EM_X86_64: ("vcpu-x86-64",),
    EM_AARCH64: ("vcpu-aarch64", "gicv3-redistributor", "gicv3-cpu-interface"),
}
"""What there is once a CPU, the CPU first."""
_HOME = {
    "gicv3-its": EM_AARCH64,
    **{kind: architecture for each in (_SINGLE_OF, _CPU_OF) for architecture, kinds in each.items() for kind in kinds},
}
"""Kinds that machines of one architecture have."""
_PCI_SECTIONS = frozenset({"virtio-pci", "pci-function", "pci-msix"})
_MMIO_SECTIONS = frozenset({"virtio-mmio"})
_DEVICE_KINDS = frozenset(spec.TYPE_IDS)
_OF_A_DEVICE = _DEVICE_KINDS | _PCI_SECTIONS | _MMIO_SECTIONS


@invariant("sections.complete")
def sections_complete(index: Index, _pages: Pages) -> Findings:
    """Each kind that a machine of its architecture has once is there once, as instance 0: none is rebuilt for another."""
    found: dict[str, list[str]] = {kind: [] for kind in (*_SINGLE, *_SINGLE_OF[index.map.architecture])}
    for kind, instance in index.sections:
        if kind in found:
            found[kind].append(instance)
    for kind, instances in found.items():
        if instances != ["0"]:
            yield Finding(kind, "", f"there as {few(instances)}", "there once, as instance 0")


@invariant("machine.arch")
def architecture_known(index: Index, _pages: Pages) -> Findings:
    """The machine's architecture is known, and every chip and CPU is one of its: it decides who rebuilds them."""
    machine = index.get("machine", "0", MachineState)
    if machine is not None and machine.architecture not in MAPS:
        wanted = " or ".join(f"{number} ({known.name})" for number, known in MAPS.items())
        yield Finding("machine/0", "architecture", str(machine.architecture), wanted)
    kinds = dict.fromkeys(kind for kind, _ in index.sections)
    for kind in kinds:
        if _HOME.get(kind, index.map.architecture) != index.map.architecture:
            yield Finding(kind, "", "there", f"absent: the machine is an {index.map.name} one")


@invariant("vcpus.dense")
def vcpus_dense(index: Index, _pages: Pages) -> Findings:
    """CPUs, and what each has of its own, are 0 to n-1, each under its own name: the guest's tables name them so."""
    machine = index.get("machine", "0", MachineState)
    if machine is None:
        return
    wanted = [str(number) for number in range(machine.vcpu_count)]
    if not wanted:
        yield Finding("machine/0", "vcpu_count", "0", "at least 1")
    found: dict[str, list[str]] = {kind: [] for kind in _CPU_OF[index.map.architecture]}
    for section, state in index.sections.items():
        if section.kind in found:
            found[section.kind].append(section.instance)
            vcpu = getattr(state, "id", None)
            if vcpu is not None and str(vcpu) != section.instance:
                yield Finding(str(section), "id", str(vcpu), section.instance)
    for kind, instances in found.items():
        if sorted(instances) != sorted(wanted):
            yield Finding(kind, "", f"there as {few(instances)}", f"there as {few(wanted)}")


@invariant("devices.complete")
def devices_complete(index: Index, _pages: Pages) -> Findings:
    """A device has one transport and all that belongs to it, a transport one device: none is found or served alone."""
    found: dict[str, set[str]] = {}
    for kind, instance in index.sections:
        if kind in _OF_A_DEVICE:
            found.setdefault(instance, set()).add(kind)
    bridge_kinds = found.pop(HOST_BRIDGE.instance, set())
    if bridge_kinds - {HOST_BRIDGE.kind}:
        told = f"the id of {sorted(bridge_kinds)}"
        yield Finding(HOST_BRIDGE.instance, "", told, "the id of the host bridge alone")
    for instance, kinds in found.items():
        devices, rest = kinds & _DEVICE_KINDS, kinds - _DEVICE_KINDS
        if len(devices) != 1:
            yield Finding(instance, "", f"the id of {sorted(devices) or 'no device'}", "the id of one device")
        if rest not in (_MMIO_SECTIONS, _PCI_SECTIONS):
            wanted = f"virtio-mmio, or all of {', '.join(sorted(_PCI_SECTIONS))}"
            yield Finding(instance, "", f"carried by {sorted(rest) or 'nothing'}", f"carried by {wanted}")


@invariant("devices.transport")
def one_transport(index: Index, _pages: Pages) -> Findings:
    """A machine has PCI or it has not: its guest was told so when it booted, by tables that a restore leaves alone."""
    transports = {kind for kind, _ in index.sections if kind in {"virtio-mmio", "virtio-pci"}}
    if len(transports) > 1:
        yield Finding("machine/0", "", "on two transports", "on one")
    if "virtio-mmio" in transports:
        for section, _state in index.each(PciSegmentState):
            yield Finding(str(section), "", "there", "absent: devices are on virtio-mmio")


@invariant("pci.segment")
def segment_complete(index: Index, _pages: Pages) -> Findings:
    """Functions are on the one segment that there is, with its host bridge in slot 0: a guest begins there."""
    segments = sorted(section.instance for section, _ in index.each(PciSegmentState))
    functions = bool(index.each(PciFunctionState))
    if segments != (["0"] if functions else []):
        yield Finding("pci-segment", "", f"there as {few(segments)}", "there once as 0, where there are functions")
    bridge = index.get(*HOST_BRIDGE, PciFunctionState)
    if functions and (bridge is None or bridge.slot):
        yield Finding(str(HOST_BRIDGE), "slot", "missing or elsewhere", "0")


@invariant("vmgenid.single")
def one_generation(index: Index, _pages: Pages) -> Findings:
    """There is one generation id, as instance 0: a guest reads one, and a restore has to change it."""
    for section, _generation in index.each(VmgenidState):
        if section.instance != "0":
            yield Finding(str(section), "", "there", "there as instance 0 only")


@invariant("vmgenid.in-ram")
def generation_in_memory(index: Index, _pages: Pages) -> Findings:
    """The generation id lies in RAM: a new one is written there before the guest runs."""
    for section, state in index.each(VmgenidState):
        end = state.gpa + GENERATION_LEN
        if index.ram and not any(gpa <= state.gpa and end <= gpa + length for gpa, length in index.ram):
            yield Finding(str(section), "gpa", f"{state.gpa:#x}", "inside RAM")


LABELS = "labels"
LABELS_REASON = "Preamble and manifest say of a machine what it is: people and tools read it there and decide by it."


def facts_of(machine: MachineState, layout: MemoryLayoutState) -> dict[str, Fact]:
    """Return what a manifest repeats of a machine, for people."""
    return {
        "vcpus": machine.vcpu_count,
        "memory": sum(region.length for region in layout.regions),
        "cpu": machine.cpu_profile,
    }


def check_labels(sections: Sections, preamble: Preamble, manifest: Manifest) -> list[Finding]:
    """Return where preamble and manifest, which people and tools read, say something else than the machine itself."""
    machine, layout = sections.get(SectionId("machine", "0")), sections.get(SectionId("memory-layout", "0"))
    if not isinstance(machine, MachineState) or not isinstance(layout, MemoryLayoutState):
        return []  # `check` has said so
    labels = [
        ("preamble", "architecture", preamble.architecture, machine.architecture),
        ("preamble", "machine_id", preamble.machine_id.hex(), machine.machine_id.hex()),
    ]
    facts = facts_of(machine, layout)
    labels += [("manifest", f"machine.{name}", manifest.machine.get(name, fact), fact) for name, fact in facts.items()]
    return [
        Finding(where, path, str(found), f"{wanted}, as the sections say", LABELS)
        for where, path, found, wanted in labels
        if found != wanted
    ]


def few(names: list[str]) -> str:
    """Write *names* for a finding; of many, which only a hostile file has, the first few and how many there are."""
    every = sorted(names)
    return str(every) if len(every) <= _SHOWN else f"{every[:_SHOWN]} and {len(every) - _SHOWN} more"
