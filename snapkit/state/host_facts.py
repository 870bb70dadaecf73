"""What a host can do, as plain data: what ``snapkit doctor --json`` prints, and what a file is judged by before it runs.

It lies here, and not with who collects it, because both sides speak it: the monitor collects, a restore judges, and
neither imports the other. A fact that is not known is left at its default, and nothing is refused for it. What only one
architecture has stands beside the rest; the rules of another architecture bring their own fields.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from snapkit.errors import ConfigError
from snapkit.state.schema import U32, U64
from snapkit.state.vcpu_x86_64 import CpuidEntry

TSC_TOLERANCE_PPM = 250
"""KVM takes a rate this near to its own without scaling (module parameter kvm.tsc_tolerance_ppm)."""

_Word = Annotated[str, Meta(max_length=256)]
_Count = Annotated[int, Meta(ge=0, lt=1 << 32)]


class KvmFacts(msgspec.Struct, kw_only=True):
    """What a host's KVM is: *why* says why it is not usable; *capabilities* are what KVM_CHECK_EXTENSION gave by name."""

    path: _Word = ""
    usable: bool
    why: Annotated[str, Meta(max_length=1024)] = ""
    capabilities: dict[_Word, int] = {}
    vcpus_max: _Count = 0
    vcpus_recommended: _Count = 0


class RegisterFact(msgspec.Struct, kw_only=True):
    """What a new vCPU has in one register: KVM's *id* of it (`snapkit.state.spec.aarch64`), and its *value*."""

    id: U64
    value: U64


class HostFacts(msgspec.Struct, kw_only=True, eq=False):
    """A host. Compared by identity, so that what is worked out from one is worked out once."""

    architecture: _Word
    page_size: _Count
    kvm: KvmFacts
    kernel: _Word = ""
    cpus: _Count = 0
    memory_total: Annotated[int, Meta(ge=0)] = 0
    memory_available: Annotated[int, Meta(ge=0)] = 0
    clock_source: _Word = ""
    """What the host's own kernel keeps time by, as sysfs names it."""
    tun: bool | None = None
    """Whether a TAP can be had: /dev/net/tun is there and may be opened."""
    cpu_vendor: _Word = ""
    tsc_khz: _Count = 0
    cpuid: Annotated[list[CpuidEntry], Meta(max_length=1024)] = []
    """KVM_GET_SUPPORTED_CPUID: leaf 0 has the vendor, 0xd the vector state, 0x80000008 the address bits."""
    msrs: Annotated[list[U32], Meta(max_length=4096)] = []
    """KVM_GET_MSR_INDEX_LIST."""
    ipa_bits: _Count = 0
    """KVM_CAP_ARM_VM_IPA_SIZE: how wide a guest physical address may be."""
    gic_v3: bool | None = None
    """Whether KVM makes a GICv3 (KVM_CREATE_DEVICE_TEST of KVM_DEV_TYPE_ARM_VGIC_V3)."""
    its: bool | None = None
    """The same of an ITS, KVM_DEV_TYPE_ARM_VGIC_ITS."""
    id_registers: Annotated[list[RegisterFact], Meta(max_length=1024)] = []
    """MIDR_EL1 and its like, CTR_EL0, CCSIDR_EL1, ID_*: what a vCPU just made, with every feature, tells a guest it is."""
    sve_lengths: Annotated[list[U64], Meta(max_length=8)] = []
    """KVM_REG_ARM64_SVE_VLS of such a vCPU, eight words: bit n of all is set where vectors of 16 * (n + 1) bytes can be."""
    counter_hz: _Count = 0
    """CNTFRQ_EL0: the rate of the system counter, which no guest's can differ from."""


def read_facts(payload: bytes, *, where: str) -> HostFacts:
    """Read the facts that ``snapkit doctor --json`` wrote. Raises ConfigError naming *where* and what is wrong."""
    try:
        return msgspec.json.decode(payload, type=HostFacts)
    except msgspec.DecodeError as error:
        raise ConfigError(f"{where} is no output of snapkit doctor --json: {error}") from error


def same_rate(wanted_khz: int, has_khz: int) -> bool:
    """Whether KVM on a host of *has_khz* runs a counter of *wanted_khz* without scaling it."""
    return abs(wanted_khz - has_khz) * 1_000_000 <= TSC_TOLERANCE_PPM * has_khz
