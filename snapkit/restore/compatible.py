"""Can a host run a machine? Pure: judged from the machine's sections and the host's facts, this host's or another's.

The facts are what ``snapkit doctor --json`` prints. Each rule is a small named function with its reason, like those of
`check`; `RULES` lists them. All findings at once.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from snapkit.errors import ConfigError, Finding
from snapkit.state.machine import EM_AARCH64, EM_X86_64, MachineState
from snapkit.state.schema import SectionId, State
from snapkit.units import PAGE_LEN

TSC_TOLERANCE_PPM = 250
"""KVM takes a rate this near to its own without scaling (module parameter kvm.tsc_tolerance_ppm)."""

_MACHINES = {"x86_64": EM_X86_64, "aarch64": EM_AARCH64}
_Word = Annotated[str, Meta(max_length=256)]


class KvmFacts(msgspec.Struct, kw_only=True):
    """What ``doctor`` says of KVM."""

    usable: bool
    why: _Word = ""
    capabilities: dict[str, int] = {}
    vcpus_max: int = 0


class HostFacts(msgspec.Struct, kw_only=True):
    """What a host can do, as far as a restore asks. Facts that it does not know are passed over."""

    architecture: _Word
    page_size: int
    kvm: KvmFacts
    tsc_khz: int = 0


Sections = Mapping[SectionId, State]
Findings = Iterator[Finding]


def read_facts(payload: bytes, *, where: str) -> HostFacts:
    """Read the facts that ``snapkit doctor --json`` wrote. Raises ConfigError naming *where* and what is wrong."""
    try:
        return msgspec.json.decode(payload, type=HostFacts)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where} is no output of snapkit doctor --json: {error}") from error


def architecture(machine: MachineState, facts: HostFacts) -> Findings:
    """KVM runs a machine on its own architecture only."""
    host = _MACHINES.get(facts.architecture)
    if machine.architecture != host:
        wanted = f"{host} ({facts.architecture})"
        yield Finding("machine/0", "architecture", str(machine.architecture), wanted, "host.architecture")


def kvm(_machine: MachineState, facts: HostFacts) -> Findings:
    """There is a KVM, and it has what snapkit needs."""
    if not facts.kvm.usable:
        yield Finding("host", "kvm", facts.kvm.why or "not usable", "usable", "host.kvm")


def page_size(_machine: MachineState, facts: HostFacts) -> Findings:
    """The file's memory is mapped in pages of 4 KiB."""
    if facts.page_size != PAGE_LEN:
        yield Finding("host", "page_size", str(facts.page_size), str(PAGE_LEN), "host.page-size")


def vcpus(machine: MachineState, facts: HostFacts) -> Findings:
    """KVM creates that many vCPUs."""
    if facts.kvm.usable and machine.vcpu_count > facts.kvm.vcpus_max:
        yield Finding(
            "machine/0",
            "vcpu_count",
            str(machine.vcpu_count),
            f"at most {facts.kvm.vcpus_max} on this host",
            "host.vcpus",
        )


def tsc(machine: MachineState, facts: HostFacts) -> Findings:
    """The guest measured its time-stamp counter once; at another rate all its time would be wrong."""
    if not machine.tsc_khz or not facts.tsc_khz or facts.kvm.capabilities.get("KVM_CAP_TSC_CONTROL"):
        return
    if abs(machine.tsc_khz - facts.tsc_khz) * 1_000_000 > TSC_TOLERANCE_PPM * facts.tsc_khz:
        wanted = f"within {TSC_TOLERANCE_PPM} ppm of {facts.tsc_khz}: this host cannot scale its counter"
        yield Finding("machine/0", "tsc_khz", str(machine.tsc_khz), wanted, "host.tsc")


RULES: tuple[Callable[[MachineState, HostFacts], Findings], ...] = (architecture, kvm, page_size, vcpus, tsc)


def compatible(sections: Sections, facts: HostFacts) -> list[Finding]:
    """Return every reason why the host of *facts* cannot run the machine of *sections*; empty when it can."""
    machine = sections.get(SectionId("machine", "0"))
    if not isinstance(machine, MachineState):
        return []  # `check` has refused such a file
    return [finding for rule in RULES for finding in rule(machine, facts)]
