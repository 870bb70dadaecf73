"""What an aarch64 machine asks of its host's processor and KVM.

A guest keeps what identification registers told it at its boot. KVM before "KVM: arm64: Allow userspace to change ID
registers" (Linux 6.7) takes of them what a new vCPU has and nothing else, but for two fields; later ones take less of some.
So the host's side is what a new vCPU with every feature has there. Not compared is what follows from how a vCPU is made:
the fields of features that this one does not have, and of the interrupt controller.
"""

from functools import lru_cache
from typing import Final

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index
from snapkit.restore.check.vcpus_aarch64 import place, registers
from snapkit.restore.compatible.rule import Rule
from snapkit.state.gicv3_distributor import DistributorState
from snapkit.state.gicv3_its import ItsState
from snapkit.state.host_facts import HostFacts
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.state.resource_allocator import ResourceAllocatorState
from snapkit.state.schema import SectionId
from snapkit.state.spec import aarch64 as spec
from snapkit.state.spec.aarch64 import register_name, sysreg
from snapkit.state.vcpu_aarch64 import Aarch64VcpuState

_FIRST = SectionId("vcpu-aarch64", "0")
_ALL: Final = (1 << 64) - 1


def _nibbles(*lowest: int) -> int:
    """Return the mask of fields of four bits, each named by its lowest bit."""
    return sum(0xF << bit for bit in lowest)


AT_MOST: Final = {spec.ID_AA64PFR0_EL1: (56, 60)}
"""Fields that every KVM takes lower than its own: CSV2 and CSV3, by their lowest bits (set_id_aa64pfr0_el1)."""

BY_FEATURE: Final = {
    spec.SVE: {
        spec.ID_AA64PFR0_EL1: _nibbles(32),
        sysreg(3, 0, 0, 4, 4): _ALL,  # ID_AA64ZFR0_EL1
    },
    spec.PTRAUTH_ADDRESS | spec.PTRAUTH_GENERIC: {
        sysreg(3, 0, 0, 6, 1): _nibbles(4, 8, 24, 28),  # ID_AA64ISAR1_EL1: APA, API, GPA, GPI
        sysreg(3, 0, 0, 6, 2): _nibbles(8, 12),  # ID_AA64ISAR2_EL1: GPA3, APA3
    },
}
"""Bits that read zero for a vCPU without these features."""

_GIC: Final = {spec.ID_AA64PFR0_EL1: _nibbles(24), sysreg(3, 0, 0, 1, 1): _nibbles(28)}
"""Bits that say whether there is a GICv3, of ID_AA64PFR0_EL1 and ID_PFR1_EL1: a vCPU is made before it is."""


def ipa(index: Index, facts: HostFacts) -> Findings:
    """Guest physical addresses reach over RAM and over the window that the guest was told of: KVM refuses wider ones."""
    if not facts.ipa_bits:
        return
    rule, wanted = "host.ipa", f"at most {facts.ipa_bits} bits on this host"
    layout = index.get("memory-layout", "0", MemoryLayoutState)
    end = max((region.gpa + region.length for region in layout.regions), default=0) if layout else 0
    if end > 1 << facts.ipa_bits:
        yield Finding("memory-layout/0", "regions", f"up to {end:#x}, {(end - 1).bit_length()} bits", wanted, rule)
    allocator = index.get("resource-allocator", "0", ResourceAllocatorState)
    if allocator is None or not any(section.kind == "pci-segment" for section in index.sections):
        return
    for number, pool in enumerate(allocator.pools):
        top = pool.start + pool.length
        if pool.pool == "mmio64" and top > 1 << facts.ipa_bits:
            what = f"a window up to {top:#x}, {(top - 1).bit_length()} bits"
            yield Finding("resource-allocator/0", f"pools[{number}]", what, wanted, rule)


def gic(index: Index, facts: HostFacts) -> Findings:
    """KVM makes a GICv3, and an ITS where the machine has one: an older GIC has neither their registers nor their tables."""
    rule = "host.gic"
    for section, _distributor in index.each(DistributorState) if facts.gic_v3 is False else ():
        yield Finding(str(section), "", "a GICv3", "another: this host's KVM makes none", rule)
    for section, _its in index.each(ItsState) if facts.its is False else ():
        yield Finding(str(section), "", "an ITS", "absent: this host's KVM makes none", rule)


def id_registers(index: Index, facts: HostFacts) -> Findings:
    """What the guest was told that its processor is, it still is: it chose its instructions by that when it booted."""
    vcpu = index.get(*_FIRST, Aarch64VcpuState)
    if not facts.id_registers or vcpu is None:
        return
    for reg_id in _differing(index, vcpu, facts):
        name, value = register_name(reg_id), index.once(registers)[_FIRST.instance][reg_id]
        host = _known(facts).get(reg_id)
        wanted = "absent: this host's KVM has no such register" if host is None else f"{host:#x}, this host's"
        yield Finding(str(_FIRST), place(vcpu, reg_id), f"{name} {value:#x}", wanted, "host.id-registers")


def drop_id_registers(index: Index, facts: HostFacts) -> None:
    """Leave out the registers that KVM would refuse: the guest's processor is from then on the host's."""
    first = index.get(*_FIRST, Aarch64VcpuState)
    if first is None:
        return
    refused = set(_differing(index, first, facts))
    for _section, vcpu in index.each(Aarch64VcpuState):
        vcpu.regs = [reg for reg in vcpu.regs if reg.id not in refused]


def _differing(index: Index, vcpu: Aarch64VcpuState, facts: HostFacts) -> list[int]:
    """Return the identification registers of *vcpu* that this host's KVM would not take."""
    known = _known(facts)
    made = dict(_GIC)
    for feature, masks in BY_FEATURE.items():
        if not vcpu.features[0] & feature:
            for reg_id, mask in masks.items():
                made[reg_id] = made.get(reg_id, 0) | mask
    found = []
    for reg_id, value in index.once(registers).get(_FIRST.instance, {}).items():
        host = known.get(reg_id)
        if not spec.is_identity(reg_id) and not (spec.is_cache_size(reg_id) and host is not None):
            continue
        below = AT_MOST.get(reg_id, ())
        mask = _ALL & ~made.get(reg_id, 0) & ~_nibbles(*below)
        if host is None or (value ^ host) & mask or any(value >> bit & 0xF > host >> bit & 0xF for bit in below):
            found.append(reg_id)
    return found


@lru_cache(maxsize=8)
def _known(facts: HostFacts) -> dict[int, int]:
    return {register.id: register.value for register in facts.id_registers}


def sve(index: Index, facts: HostFacts) -> Findings:
    """Vectors have the lengths that the guest was told of, and no others up to the longest: KVM refuses other sets."""
    vcpu = index.get(*_FIRST, Aarch64VcpuState)
    if vcpu is None or not vcpu.features[0] & spec.SVE:
        return
    rule = "host.sve"
    if facts.kvm.capabilities.get("KVM_CAP_ARM_SVE") == 0:
        yield Finding(str(_FIRST), "features[0]", "SVE", "absent: this host's KVM does not offer it", rule)
    elif facts.sve_lengths:
        host = sum(word << 64 * number for number, word in enumerate(facts.sve_lengths))
        for number, vector in enumerate(vcpu.vectors):
            if vector.id != spec.SVE_VLS:
                continue
            lengths = int.from_bytes(vector.value, "little")
            offered = host & (1 << lengths.bit_length()) - 1
            if lengths != offered:
                wanted = f"{_lengths(offered)}, this host's up to there"
                yield Finding(str(_FIRST), f"vectors[{number}].value", _lengths(lengths), wanted, rule)


def _lengths(words: int) -> str:
    """Write a set of vector lengths."""
    named = " ".join(str(128 * (bit + 1)) for bit in range(words.bit_length()) if words >> bit & 1)
    return f"vectors of {named or 'no'} bits"


def pointer_auth(index: Index, facts: HostFacts) -> Findings:
    """Pointers that the guest has signed can be authenticated: they are in its memory, whatever runs it."""
    vcpu = index.get(*_FIRST, Aarch64VcpuState)
    for name, feature in (
        ("KVM_CAP_ARM_PTRAUTH_ADDRESS", spec.PTRAUTH_ADDRESS),
        ("KVM_CAP_ARM_PTRAUTH_GENERIC", spec.PTRAUTH_GENERIC),
    ):
        if vcpu is not None and vcpu.features[0] & feature and facts.kvm.capabilities.get(name) == 0:
            what = f"pointer authentication, {name.rpartition('_')[2].lower()}"
            wanted = "absent: this host's KVM does not offer it"
            yield Finding(str(_FIRST), "features[0]", what, wanted, "host.pointer-auth")


def counter_rate(index: Index, facts: HostFacts) -> Findings:
    """The counter runs at the rate that the guest read at its boot: nothing scales it, and all its time comes from it."""
    vcpu = index.get(*_FIRST, Aarch64VcpuState)
    if vcpu is not None and vcpu.counter_hz and facts.counter_hz and vcpu.counter_hz != facts.counter_hz:
        wanted = f"{facts.counter_hz}, this host's"
        yield Finding(str(_FIRST), "counter_hz", str(vcpu.counter_hz), wanted, "host.counter-rate")


def use_host_rate(index: Index, facts: HostFacts) -> None:
    """Let the counter run at the host's rate: what the guest measures by it is wrong by the ratio of the two."""
    for _section, vcpu in index.each(Aarch64VcpuState):
        vcpu.counter_hz = facts.counter_hz


RULES = (
    Rule("ipa", ipa),
    Rule("gic", gic),
    Rule("id-registers", id_registers, forcible=True, apply=drop_id_registers),
    Rule("sve", sve),
    Rule("pointer-auth", pointer_auth),
    Rule("counter-rate", counter_rate, forcible=True, apply=use_host_rate),
)
