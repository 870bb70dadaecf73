"""Every golden of every release: opened, checked, decoded as its release says. What runs it is `test_matrix`."""

from snapkit.restore.image import Image
from snapkit.state.codec import encode
from snapkit.state.machine import MachineState
from snapkit.state.releases import find_release, release_named
from snapkit.state.schema import schema_of
from snapkit.state.vcpu_aarch64 import Aarch64VcpuState
from snapkit.state.vcpu_x86_64 import VcpuState
from tests.compat.conftest import GoldenFile, goldens_where

every_golden = goldens_where()
of_x86_64 = goldens_where(architectures=["x86-64"])
of_aarch64 = goldens_where(architectures=["aarch64"])

MACHINES = {"x86-64": 62, "aarch64": 183}  # ELF: EM_X86_64, EM_AARCH64
PAGE_SHIFT = 12

# The profile, declared once more: a slip in the program's own tables must not hide.
BASELINE_LEAVES = {0, 1, 0x4000_0000, 0x8000_0000, 0x8000_0001, *range(0x8000_0002, 0x8000_0005), 0x8000_0008}
IA32_TSC, MISC_ENABLE, PAT, EFER, KERNEL_GS_BASE = 0x10, 0x1A0, 0x277, 0xC000_0080, 0xC000_0102
SYSENTER = {0x174, 0x175, 0x176}
SYSCALL = {0xC000_0081, 0xC000_0082, 0xC000_0083, 0xC000_0084}
MTRRS = {*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF}
BASELINE_MSRS = {IA32_TSC, MISC_ENABLE, PAT, EFER, KERNEL_GS_BASE} | SYSENTER | SYSCALL | MTRRS
# Intel SDM volume 2, CPUID leaf 1: what a host of 2006 may lack. In ECX all but SSE3, CMPXCHG16B, x2APIC, hypervisor.
LEAF1_ECX = 1 << 0 | 1 << 13 | 1 << 21 | 1 << 31
INVARIANT_TSC = 1 << 8
# Arm DDI 0487, MIDR_EL1: implementer and part of a Neoverse N1; include/uapi/asm/kvm.h of arm64: its id, features
MIDR_EL1, NEOVERSE_N1, IMPLEMENTER_AND_PART = 0x6030_0000_0013_C000, 0x4100_D0C0, 0xFF00_FFF0
PSCI_0_2 = 1 << 2
FXSAVE_AND_HEADER_LEN, KVM_XSAVE_LEN = 576, 4096
LEGACY_COMPONENTS = 0b11  # XSTATE_BV: x87 and SSE


def vcpus(file: GoldenFile) -> list[VcpuState]:
    with Image.open(file.path) as image:
        states = [state for state in image.sections().states.values() if isinstance(state, VcpuState)]
    assert len(states) == file.about.vcpus
    return states


@every_golden
def test_opens_and_every_byte_matches_its_digest(golden_file: GoldenFile) -> None:
    with Image.open(golden_file.path) as image:
        assert image.verify() == []
        assert find_release(image.preamble.release) == release_named(golden_file.release)
        machine = MACHINES[golden_file.about.architecture]
        assert (image.preamble.architecture, image.preamble.page_shift) == (machine, PAGE_SHIFT)
        assert sum(region.length for region in image.manifest.memory.regions) == golden_file.about.memory == 2 << 20


@every_golden
def test_decodes_at_the_versions_of_its_release_to_the_same_bytes(golden_file: GoldenFile) -> None:
    release = find_release(golden_file.release)
    assert release is not None
    with Image.open(golden_file.path) as image:
        states = image.sections().states
        assert {(name.kind, schema_of(state).version) for name, state in states.items()} <= set(release.kinds.items())
        assert [encode(state) for state in states.values()] == [image.payload(entry) for entry in image.entries]


@of_x86_64
def test_needs_no_counter_rate_and_no_clock_of_the_host(golden_file: GoldenFile) -> None:
    with Image.open(golden_file.path) as image:
        (machine,) = (state for state in image.sections().states.values() if isinstance(state, MachineState))
    assert (machine.tsc_khz, machine.cpu_profile) == (0, "baseline")
    for state in vcpus(golden_file):
        leaves = {entry.function: entry for entry in state.cpuid}
        assert state.tsc_khz == 0
        name = leaves[0x4000_0000]
        signature = b"".join(word.to_bytes(4, "little") for word in (name.ebx, name.ecx, name.edx))
        assert signature != b"KVMKVMKVM\0\0\0"
        assert 0x4000_0001 not in leaves, "where KVM would offer its clock"
        power = leaves.get(0x8000_0007)
        assert power is None or not power.edx & INVARIANT_TSC
        assert {0x12, 0x4B56_4D01}.isdisjoint(msr.index for msr in state.msrs), "the clock's own registers"


@of_x86_64
def test_tells_the_guest_nothing_of_the_host_that_wrote_it(golden_file: GoldenFile) -> None:
    for state in vcpus(golden_file):
        assert {entry.function for entry in state.cpuid} == BASELINE_LEAVES
        leaves = {entry.function: entry for entry in state.cpuid}
        assert leaves[1].ecx & ~LEAF1_ECX == 0
        assert leaves[0x8000_0008].eax & 0xFF >= 40
        assert {msr.index for msr in state.msrs} <= BASELINE_MSRS
        assert len(state.msrs) == len({msr.index for msr in state.msrs})


@of_x86_64
def test_holds_no_vector_state_that_another_processor_may_lack(golden_file: GoldenFile) -> None:
    for state in vcpus(golden_file):
        assert [(entry.xcr, entry.value) for entry in state.xcrs] in ([], [(0, 1)])
        assert len(state.xsave) == KVM_XSAVE_LEN
        assert int.from_bytes(state.xsave[512:520], "little") & ~LEGACY_COMPONENTS == 0
        assert state.xsave[FXSAVE_AND_HEADER_LEN:] == bytes(KVM_XSAVE_LEN - FXSAVE_AND_HEADER_LEN)


@of_aarch64
def test_is_of_a_fixed_processor_without_what_is_optional(golden_file: GoldenFile) -> None:
    assert golden_file.about.host_cpu == "neoverse-n1"
    assert golden_file.about.host_kernel
    with Image.open(golden_file.path) as image:
        states = image.sections().states.values()
    (machine,) = (state for state in states if isinstance(state, MachineState))
    assert (machine.tsc_khz, machine.cpu_profile) == (0, "host")
    cpus = [state for state in states if isinstance(state, Aarch64VcpuState)]
    assert len(cpus) == golden_file.about.vcpus
    for state in cpus:
        assert state.features == [PSCI_0_2, *[0] * 6], "neither SVE nor pointer authentication"
        values = {reg.id: reg.value for reg in state.regs}
        assert values[MIDR_EL1] & IMPLEMENTER_AND_PART == NEOVERSE_N1
