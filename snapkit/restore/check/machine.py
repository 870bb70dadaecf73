"""The machine itself: its sections are all there, its CPUs, its memory, and what the file's labels say of them."""

from collections.abc import Iterable

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Sections
from snapkit.restore.manifest import Manifest
from snapkit.restore.pages import Pages
from snapkit.restore.preamble import Preamble
from snapkit.state.machine import EM_X86_64, MachineState
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.state.schema import SectionId
from snapkit.state.vcpu_x86_64 import VcpuState
from snapkit.units import PAGE_LEN, PAGE_SHIFT

_SHOWN = 16
_SINGLE_X86 = (
    "machine",
    "memory-layout",
    "irqchip-x86",
    "pit",
    "kvm-clock",
    "serial-16550",
    "i8042",
    "resource-allocator",
    "interrupt-table",
)


def sections_complete(sections: Sections, _pages: Pages) -> Findings:
    """Each kind that an x86-64 machine has once is there once, as instance 0: nothing would be rebuilt for it."""
    found: dict[str, list[str]] = {kind: [] for kind in _SINGLE_X86}
    for kind, instance in sections:
        if kind in found:
            found[kind].append(instance)
    for kind, instances in found.items():
        if instances != ["0"]:
            yield Finding(kind, "", f"there as {_few(instances)}", "there once, as instance 0", "sections.complete")


def architecture_known(sections: Sections, _pages: Pages) -> Findings:
    """The kinds of CPU and the machine's architecture agree: they decide who rebuilds it."""
    machine = sections.get(SectionId("machine", "0"))
    if isinstance(machine, MachineState) and machine.architecture != EM_X86_64:
        yield Finding("machine/0", "architecture", str(machine.architecture), f"{EM_X86_64} (x86-64)", "machine.arch")


def vcpus_dense(sections: Sections, _pages: Pages) -> Findings:
    """CPU ids are 0 to n-1, each under its own name: the tables in guest memory name them so."""
    machine = sections.get(SectionId("machine", "0"))
    if not isinstance(machine, MachineState):
        return
    found = {section.instance: state for section, state in sections.items() if section.kind == "vcpu-x86-64"}
    wanted = [str(number) for number in range(machine.vcpu_count)]
    if not wanted:
        yield Finding("machine/0", "vcpu_count", "0", "at least 1", "vcpus.dense")
    if sorted(found) != sorted(wanted):
        yield Finding("vcpu-x86-64", "", f"there as {_few(found)}", f"there as {_few(wanted)}", "vcpus.dense")
    for instance, state in found.items():
        if isinstance(state, VcpuState) and str(state.id) != instance:
            yield Finding(f"vcpu-x86-64/{instance}", "id", str(state.id), instance, "vcpus.dense")


def vcpu_lists_unique(sections: Sections, _pages: Pages) -> Findings:
    """No MSR and no CPUID leaf is there twice: which of the two counted would be KVM's whim."""
    for section, state in sections.items():
        if not isinstance(state, VcpuState):
            continue
        indices = {msr.index for msr in state.msrs}
        leaves = {(entry.function, entry.index) for entry in state.cpuid}
        for path, items, distinct in (("msrs", state.msrs, indices), ("cpuid", state.cpuid, leaves)):
            if len(distinct) != len(items):
                yield Finding(str(section), path, "a list with an entry twice", "free of repetitions", "vcpus.unique")


def regions_sound(sections: Sections, pages: Pages) -> Findings:
    """RAM regions are whole pages, in order, apart from each other, and those whose bytes the file holds."""
    layout = sections.get(SectionId("memory-layout", "0"))
    if not isinstance(layout, MemoryLayoutState):
        return
    where, rule = "memory-layout/0", "memory.regions"
    if layout.page_shift != PAGE_SHIFT:
        yield Finding(where, "page_shift", str(layout.page_shift), str(PAGE_SHIFT), rule)
    end = 0
    for number, region in enumerate(layout.regions):
        path = f"regions[{number}]"
        if region.gpa % PAGE_LEN or region.length % PAGE_LEN or not region.length:
            yield Finding(where, path, f"{region.gpa:#x}+{region.length:#x}", "whole pages", rule)
        if region.gpa < end or region.gpa + region.length > 1 << 52:
            yield Finding(where, f"{path}.gpa", f"{region.gpa:#x}", f"in order, between {end:#x} and 2^52", rule)
        end = region.gpa + region.length
    spans = [(region.gpa, region.length) for region in layout.regions]
    if spans != list(pages.regions):
        yield Finding(where, "regions", "different from the file's memory", "the regions whose bytes it holds", rule)


def check_labels(sections: Sections, preamble: Preamble, manifest: Manifest) -> list[Finding]:
    """Return where preamble and manifest, which people and tools read, say something else than the machine itself."""
    machine, layout = sections.get(SectionId("machine", "0")), sections.get(SectionId("memory-layout", "0"))
    if not isinstance(machine, MachineState) or not isinstance(layout, MemoryLayoutState):
        return []  # `check` has said so
    labels = [
        ("preamble", "architecture", preamble.architecture, machine.architecture),
        ("preamble", "machine_id", preamble.machine_id.hex(), machine.machine_id.hex()),
    ]
    facts: dict[str, object] = {
        "vcpus": machine.vcpu_count,
        "memory": sum(region.length for region in layout.regions),
        "cpu": machine.cpu_profile,
    }
    labels += [("manifest", f"machine.{name}", manifest.machine.get(name, fact), fact) for name, fact in facts.items()]
    return [
        Finding(where, path, str(found), f"{wanted}, as the sections say", "labels")
        for where, path, found, wanted in labels
        if found != wanted
    ]


def _few(names: Iterable[str]) -> str:
    """Write *names* for a finding; of many, which only a hostile file has, the first few and how many there are."""
    every = sorted(names)
    return str(every) if len(every) <= _SHOWN else f"{every[:_SHOWN]} and {len(every) - _SHOWN} more"
