"""Whether a host can run a machine, judged from facts alone: one fact of a good pair is changed at a time.

Feature bits are restated here by their numbers in the processors' manuals, so that a slip in the tables cannot hide.
"""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapkit.errors import ConfigError, Finding
from snapkit.restore.compatible import advice, compatible, forcible, overridden, rules_of
from snapkit.restore.compatible.machine import NEEDS
from snapkit.restore.compatible.x86_64 import BASELINE, MMIO64_END, TOLD, UNLISTED
from snapkit.state.host_facts import HostFacts, KvmFacts, read_facts
from snapkit.state.interrupt_table import InterruptTableState, RouteState
from snapkit.state.machine import EM_X86_64, MachineState
from snapkit.state.memory_layout import MemoryLayoutState, RegionState
from snapkit.state.schema import SectionId
from snapkit.state.shape import shape_of
from snapkit.state.spec.address_map import X86_64
from snapkit.state.spec.cpuid import FEATURES, LEVELS, REGISTERS, feature_name, leaf_name
from snapkit.state.spec.x86 import MSRS
from snapkit.state.vcpu_x86_64 import CpuidEntry, Msr, VcpuState, Xcr
from snapkit.vmm import facts as vmm_facts
from snapkit.vmm.arch.x86_64 import cpuid as profiles
from snapkit.vmm.arch.x86_64 import layout, msrs
from snapkit.vmm.kvm import abi, abi_x86
from tests.contract.generate import smallest
from tests.restore.device_machine import fresh_machine

States = dict[SectionId, Any]
MACHINE, BOOT, SECOND = SectionId("machine", "0"), SectionId("vcpu-x86-64", "0"), SectionId("vcpu-x86-64", "1")
TABLE, LAYOUT = SectionId("interrupt-table", "0"), SectionId("memory-layout", "0")
GIB = 1 << 30
ARM_KINDS = {"vcpu-aarch64", "gicv3-distributor"}
EXACT = 1  # KVM_CPUID_FLAG_SIGNIFCANT_INDEX
AVX2, LA57 = 1 << 5, 1 << 16  # leaf 7.0, EBX and ECX
KVM_CLOCK = 0x4B56_4D01


def vendor(function: int, name: bytes = b"GenuineIntel") -> CpuidEntry:
    ebx, edx, ecx = (int.from_bytes(name[at : at + 4], "little") for at in (0, 4, 8))
    return CpuidEntry(function=function, eax=0xD, ebx=ebx, ecx=ecx, edx=edx)


def leaves() -> list[CpuidEntry]:
    """Return CPUID as a processor with AVX2, a PMU and 46 address bits has it; guest and host begin with the same."""
    return [
        vendor(0),
        CpuidEntry(function=1, eax=0x306F2, ebx=0x800, ecx=0x9E98_2203, edx=0x0F8B_FBFF),
        CpuidEntry(function=7, index=0, flags=EXACT, ebx=AVX2 | 1 << 7, edx=1 << 26),
        CpuidEntry(function=0xA, eax=0x0730_0402, edx=0x603),
        CpuidEntry(function=0xD, index=0, flags=EXACT, eax=0b111, ebx=0x340, ecx=0x340),
        CpuidEntry(function=0xD, index=1, flags=EXACT, eax=1),
        CpuidEntry(function=0xD, index=2, flags=EXACT, eax=0x100, ebx=0x240),
        CpuidEntry(function=0x4000_0000, eax=0x4000_0001, ebx=0x4B4D564B, ecx=0x564B4D56, edx=0x4D),
        CpuidEntry(function=0x4000_0001, eax=0x0100_0009),
        CpuidEntry(function=0x8000_0001, ecx=1, edx=1 << 11 | 1 << 20 | 1 << 29),
        CpuidEntry(function=0x8000_0007, edx=1 << 8),
        CpuidEntry(function=0x8000_0008, eax=0x3000 | 46),
    ]


def machine(vcpus: int = 1, **fields: Any) -> States:
    usual: dict[str, Any] = {
        "architecture": EM_X86_64,
        "machine_id": bytes(16),
        "vcpu_count": vcpus,
        "cpu_profile": "host",
        "tsc_khz": 2_500_000,
    }
    states: States = {
        MACHINE: MachineState(**(usual | fields)),
        LAYOUT: MemoryLayoutState(page_shift=12, regions=[RegionState(gpa=0, length=GIB)]),
        TABLE: InterruptTableState(),
    }
    for number in range(vcpus):
        vcpu: Any = smallest(shape_of(VcpuState))
        vcpu.id, vcpu.cpuid, vcpu.tsc_khz = number, leaves(), 2_500_000
        vcpu.msrs = [Msr(index=0x10, data=5), Msr(index=0x2FF, data=6), Msr(index=KVM_CLOCK, data=0x1001)]
        vcpu.xcrs = [Xcr(xcr=0, value=0b111)]
        states[SectionId("vcpu-x86-64", str(number))] = vcpu
    return states


def facts(**fields: Any) -> HostFacts:
    usual: dict[str, Any] = {
        "architecture": "x86_64",
        "page_size": 4096,
        "kvm": KvmFacts(usable=True, vcpus_max=64, capabilities=capabilities()),
        "tsc_khz": 2_500_000,
        "clock_source": "tsc",
        "tun": True,
        "cpuid": leaves(),
        "msrs": [0x10, 0x11, 0x12, 0x174, 0xC000_0081, KVM_CLOCK],
    }
    return HostFacts(**(usual | fields))


def capabilities(**fields: int) -> dict[str, int]:
    usual = {name: 1 for name, *_ in vmm_facts.capabilities("x86_64")}
    return usual | {"KVM_CAP_IRQ_ROUTING": 4096, "KVM_CAP_XSAVE2": 4096, "KVM_CAP_TSC_CONTROL": 0} | fields


def told(states: States, host: HostFacts) -> list[str]:
    return [str(finding) for finding in compatible(states, host)]


def leaf(entries: list[CpuidEntry], function: int, index: int = 0) -> CpuidEntry:
    return next(entry for entry in entries if (entry.function, entry.index) == (function, index))


def test_a_good_host_has_nothing_against_it():
    assert told(machine(vcpus=2), facts()) == []


# The host changes


def lack(function: int, index: int, **clear: int) -> dict[str, Any]:
    """Return the facts of a host without bits of a leaf."""
    entries = leaves()
    found = leaf(entries, function, index)
    for register, bits in clear.items():
        setattr(found, register, getattr(found, register) & ~bits)
    return {"cpuid": entries}


def have(function: int, index: int, **values: int) -> dict[str, Any]:
    """Return the facts of a host where a leaf says something else."""
    entries = leaves()
    found = leaf(entries, function, index)
    for register, value in values.items():
        setattr(found, register, value)
    return {"cpuid": entries}


LACKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no KVM": (
        {"kvm": KvmFacts(usable=False, why="no /dev/kvm"), "cpuid": [], "msrs": [], "tsc_khz": 0},
        ["host.kvm is no /dev/kvm, must be usable"],
    ),
    "a KVM without debug registers": (
        {"kvm": KvmFacts(usable=False, why="it lacks", capabilities=capabilities(KVM_CAP_DEBUGREGS=0))},
        ["host.kvm.capabilities.KVM_CAP_DEBUGREGS is 0, must be there, for vcpu-x86-64"],
    ),
    "pages of 64 KiB": ({"page_size": 65536}, ["host.page_size is 65536, must be 4096"]),
    "one vCPU": (
        {"kvm": KvmFacts(usable=True, vcpus_max=1, capabilities=capabilities())},
        ["machine/0.vcpu_count is 2, must be at most 1 on this host"],
    ),
    "less memory": (
        {"memory_total": GIB // 2},
        ["memory-layout/0.regions is 1 GiB of RAM, must be at most 512 MiB, this host's"],
    ),
    "another vendor": (
        {"cpuid": [vendor(0, b"AuthenticAMD"), *leaves()[1:]]},
        ["vcpu-x86-64/0.cpuid[0] is 'GenuineIntel', must be 'AuthenticAMD', this host's"],
    ),
    "no AVX2": (
        lack(7, 0, ebx=AVX2),
        ["vcpu-x86-64/0.cpuid[2].ebx is cpuid 7.0:EBX avx2, must be absent: this host's KVM does not offer it"],
    ),
    "no leaf 7": (
        {"cpuid": [entry for entry in leaves() if entry.function != 7]},
        [
            f"vcpu-x86-64/0.cpuid[2].{name.lower()} is cpuid 7.0:{name} {feature}, "
            "must be absent: this host's KVM does not offer it"
            for name, feature in (("EBX", "avx2"), ("EBX", "smep"), ("EDX", "spec_ctrl"))
        ],
    ),
    "no kvm-clock": (
        lack(0x4000_0001, 0, eax=0b1000),
        [
            (
                "vcpu-x86-64/0.cpuid[8].eax is cpuid 40000001:EAX kvm_clocksource2, "
                "must be absent: this host's KVM does not offer it"
            ),
            *(
                f"vcpu-x86-64/{number}.msrs[2] is MSR_KVM_SYSTEM_TIME_NEW, where the guest reads kvm-clock, "
                "must be one that this host's KVM offers"
                for number in (0, 1)
            ),
        ],
    ),
    "fewer counters": (
        have(0xA, 0, eax=0x0730_0302, edx=0x603),
        ["vcpu-x86-64/0.cpuid[3].eax is cpuid a:EAX PMU counters 4, must be at most 3 on this host"],
    ),
    "no AVX": (
        lack(0xD, 0, eax=0b100),
        [
            "vcpu-x86-64/0.cpuid[4].eax is cpuid d.0:EAX avx, must be absent: this host's KVM does not offer it",
            *(
                f"vcpu-x86-64/{number}.xcrs[0].value is 0x7, with avx, "
                "must be within 0x3, which this host's KVM supports"
                for number in (0, 1)
            ),
        ],
    ),
    "AVX elsewhere": (
        have(0xD, 2, eax=0x100, ebx=0x280),
        [
            f"vcpu-x86-64/{number}.cpuid[6] is avx of 256 bytes at 576, must be avx of 256 bytes at 640, this host's"
            for number in (0, 1)
        ],
    ),
    "an MSR fewer": (
        {"msrs": [0x11, 0x12, KVM_CLOCK]},
        [
            "vcpu-x86-64/0.msrs[0] is IA32_TIME_STAMP_COUNTER (0x10), must be one that this host's KVM keeps",
        ],
    ),
    "fewer address bits": (
        have(0x8000_0008, 0, eax=0x3000 | 39),
        ["vcpu-x86-64/0.cpuid[11].eax is 46 physical address bits, must be at most 39 on this host"],
    ),
    "a clock of its own that is no TSC": (
        {"clock_source": "hpet"},
        ["vcpu-x86-64/0.cpuid[10].edx is an invariant TSC, must be absent: this host itself keeps time by hpet"],
    ),
    "another rate": (
        {"tsc_khz": 2_600_000},
        [
            "machine/0.tsc_khz is 2500000, must be within 250 ppm of 2600000: this host cannot scale its counter",
        ],
    ),
}


@pytest.mark.parametrize("name", LACKS)
def test_each_lack_of_a_host_is_told_by_what_the_machine_has_of_it(name):
    changed, expected = LACKS[name]
    assert told(machine(vcpus=2), facts(**changed)) == expected


def test_a_host_of_another_architecture_is_refused_for_that():
    host = HostFacts(architecture="aarch64", page_size=4096, kvm=KvmFacts(usable=True, vcpus_max=8))
    assert told(machine(), host) == ["machine/0.architecture is 62, must be 183 (aarch64)"]


def test_what_is_not_known_of_a_host_is_held_against_no_machine():
    bare = HostFacts(architecture="x86_64", page_size=4096, kvm=KvmFacts(usable=True))
    states = machine(vcpus=2)
    states[BOOT].xsave = bytes(8192)
    assert told(states, bare) == []


def test_all_reasons_come_at_once():
    several = ("pages of 64 KiB", "another vendor", "an MSR fewer", "another rate")
    together = {name: value for lack in several for name, value in LACKS[lack][0].items()}
    expected = [line for lack in several for line in LACKS[lack][1]]
    assert told(machine(), facts(**together)) == expected


# The machine changes


def many_routes(states: States) -> None:
    states[TABLE].routes = [RouteState(gsi=24 + n, address=0xFEE0_0000, data=n, owner="pci-msix/a") for n in range(30)]


def high_gsi(states: States) -> None:
    states[TABLE].routes = [RouteState(gsi=70, address=0xFEE0_0000, data=1, owner="pci-msix/a")]


def much_memory(states: States) -> None:
    states[LAYOUT].regions = [RegionState(gpa=0, length=GIB), RegionState(gpa=1 << 46, length=GIB)]


def long_vector_state(states: States) -> None:
    states[BOOT].xsave = bytes(11008)


def misaligned_sse_mode(states: States) -> None:
    states[BOOT].xsave = bytes(24) + b"\x80\x1f\2\0" + bytes(4068)


def five_levels(states: States) -> None:
    leaf(states[BOOT].cpuid, 7).ecx = LA57


def unheard_of(states: States) -> None:
    leaf(states[BOOT].cpuid, 0x8000_0007).edx |= 1 << 30


def second_cpu_has_more(states: States) -> None:
    leaf(states[SECOND].cpuid, 7).ecx = LA57


WANTS: dict[Callable[[States], None], list[str]] = {
    many_routes: [
        (
            "interrupt-table/0.routes is 70 routes, "
            "must be at most 64 with the controllers' pins on this host, which are 40"
        ),
    ],
    high_gsi: ["interrupt-table/0.routes[0].gsi is 70, must be below 64 on this host"],
    much_memory: ["memory-layout/0.regions is up to 0x400040000000, 47 bits, must be at most 46 on this host"],
    long_vector_state: ["vcpu-x86-64/0.xsave is 11008 bytes, must be at most 4096 on this host"],
    misaligned_sse_mode: [
        (
            "vcpu-x86-64/0.xsave[24:28] is 0x21f80, with MXCSR.MM, "
            "must be without: this host's processor has no such bit"
        ),
    ],
    five_levels: [
        "vcpu-x86-64/0.cpuid[2].ecx is cpuid 7.0:ECX la57, must be absent: this host's KVM does not offer it"
    ],
    second_cpu_has_more: [
        "vcpu-x86-64/1.cpuid[2].ecx is cpuid 7.0:ECX la57, must be absent: this host's KVM does not offer it"
    ],
    unheard_of: [
        "vcpu-x86-64/0.cpuid[10].edx is cpuid 80000007:EDX bit 30, must be absent: this host's KVM does not offer it"
    ],
}


@pytest.mark.parametrize("want", WANTS, ids=lambda want: want.__name__)
def test_each_thing_that_a_machine_wants_beyond_a_host_is_told(want):
    states = machine(vcpus=2)
    want(states)
    host = facts(kvm=KvmFacts(usable=True, vcpus_max=64, capabilities=capabilities(KVM_CAP_IRQ_ROUTING=64)))
    assert told(states, host) == WANTS[want]


def test_a_network_card_wants_a_tap_and_a_bridge_wants_its_window():
    states = machine() | {name: state for name, state in fresh_machine("pci").items() if name.kind != "vcpu-x86-64"}
    states[MACHINE] = machine()[MACHINE]
    leaf(states[BOOT].cpuid, 0x8000_0008).eax = 38
    assert told(states, facts()) == []
    assert told(states, facts(tun=False, **have(0x8000_0008, 0, eax=38))) == [
        "virtio-net/eth0.host is a TAP, must be absent: this host has no usable /dev/net/tun",
        "pci-segment/0 is a bridge with a window up to 0x8000000000, 39 bits, must be at most 38 on this host",
    ]


def test_a_host_that_maps_less_than_its_address_bits_is_asked_for_what_is_used():
    host = facts(**have(0x8000_0008, 0, eax=40 << 16 | 0x3000 | 46))
    states = machine()
    assert told(states, host) == []
    states[LAYOUT].regions.append(RegionState(gpa=1 << 40, length=GIB))
    assert told(states, host) == [
        "memory-layout/0.regions is up to 0x10040000000, 41 bits, must be at most 40 on this host"
    ]


@pytest.mark.parametrize(
    ("khz", "scales", "count"),
    [(2_500_000, 0, 0), (2_500_600, 0, 0), (2_501_000, 0, 1), (2_400_000, 0, 1), (2_400_000, 1, 0), (0, 0, 0)],
)
def test_another_rate_of_the_counter_is_refused_unless_near_scaled_or_of_no_matter(khz, scales, count):
    host = facts(kvm=KvmFacts(usable=True, vcpus_max=64, capabilities=capabilities(KVM_CAP_TSC_CONTROL=scales)))
    assert [finding.rule for finding in compatible(machine(tsc_khz=khz), host)] == ["host.tsc"] * count


# What is not compared


def test_bits_that_follow_the_guest_or_come_from_kvm_are_not_asked_of_the_host():
    states = machine()
    one, seven = leaf(states[BOOT].cpuid, 1), leaf(states[BOOT].cpuid, 7)
    one.ecx |= 1 << 21 | 1 << 27 | 1 << 31
    one.ebx, one.edx, seven.ecx = 0x0702_0800, one.edx | 1 << 28, 1 << 4
    leaf(states[BOOT].cpuid, 0x8000_0001).ecx |= 1 << 1
    states[BOOT].cpuid.append(CpuidEntry(function=0xB, index=1, flags=EXACT, eax=3, ebx=8, ecx=0x201, edx=7))
    assert told(states, facts(**lack(1, 0, ecx=1 << 31 | 1 << 21))) == []


@pytest.mark.parametrize(("offered", "count"), [(0, 1), (1, 0)])
def test_the_deadline_timer_is_offered_by_a_capability(offered, count):
    states = machine()
    leaf(states[BOOT].cpuid, 1).ecx |= 1 << 24
    kvm = KvmFacts(usable=True, vcpus_max=64, capabilities=capabilities(KVM_CAP_TSC_DEADLINE_TIMER=offered))
    host = facts(kvm=kvm, **lack(1, 0, ecx=1 << 24))
    assert [finding.value for finding in compatible(states, host)] == ["cpuid 1:ECX tsc_deadline_timer"] * count


def baseline() -> States:
    states = machine(cpu_profile="baseline", tsc_khz=0, vcpus=2)
    for number, name in enumerate((BOOT, SECOND)):
        states[name].cpuid = profiles.with_topology(profiles.baseline(), number, 2)
        states[name].msrs = [Msr(index=index, data=0) for index in msrs.BASELINE]
        states[name].xcrs = [Xcr(xcr=0, value=1)]
    return states


def bare_host() -> HostFacts:
    """Return the facts of a host that lists no feature at all, whose processor is the other vendor's."""
    listed = [0x10, 0x174, 0x175, 0x176, 0x1A0, 0x277, *range(0xC000_0081, 0xC000_0085), 0xC000_0102]
    entries = [vendor(0), CpuidEntry(function=0x8000_0008, eax=profiles.BASELINE_PHYSICAL_BITS)]
    return facts(cpuid=entries, msrs=listed, clock_source="hpet")


def test_a_baseline_machine_asks_for_address_bits_by_where_its_memory_ends_and_not_by_what_all_of_them_are_told():
    narrow = facts(cpuid=[vendor(0), CpuidEntry(function=0x8000_0008, eax=36)], msrs=bare_host().msrs)
    for host in (bare_host(), narrow):
        assert told(baseline(), host) == []
    states = baseline()
    states[LAYOUT].regions = [RegionState(gpa=0, length=GIB), RegionState(gpa=1 << 36, length=GIB)]
    assert told(states, narrow) == [
        "memory-layout/0.regions is up to 0x1040000000, 37 bits, must be at most 36 on this host"
    ]


def test_a_baseline_machine_that_shows_more_than_its_profile_is_asked_for_it():
    states = baseline()
    states[BOOT].cpuid[1].ecx |= 1 << 9
    assert [finding.value for finding in compatible(states, bare_host())] == ["cpuid 1:ECX ssse3"]


def test_the_profile_is_stated_as_the_monitor_makes_it():
    shown = {
        (entry.function, entry.index, register): getattr(entry, register)
        for entry in profiles.with_topology(profiles.baseline(), 0, 2)
        for register in REGISTERS
        if (entry.function, entry.index, register) in FEATURES
    }
    mine = {key: BASELINE.get(key, 0) | TOLD.get(key, 0) for key in shown}
    assert {key: value & ~mine[key] for key, value in shown.items() if value & ~mine[key]} == {}
    assert {key: value & ~shown[key] for key, value in BASELINE.items() if value & ~shown[key]} == {}


def test_what_the_rules_restate_of_the_monitor_is_so():
    assert MMIO64_END == layout.MMIO64_START + layout.MMIO64_LEN
    pins = len(abi_x86.IDENTITY_ROUTES) // len(abi.irqchip_route(0, 0, 0))
    assert X86_64.pin_routes == pins
    asked = {one.name for machine in vmm_facts.ARCHITECTURES for one in vmm_facts.capabilities(machine)}
    assert {name for names in NEEDS.values() for name in names} <= asked
    assert set(msrs.BASELINE) - set(bare_host().msrs) <= UNLISTED


# Forcing


def test_names_of_rules_are_those_that_findings_have():
    given = {"host." + rule.name for rule in rules_of(EM_X86_64)}
    everything = [facts(**changed) for changed, _ in LACKS.values()]
    states = machine(vcpus=2)
    for want in (many_routes, much_memory, long_vector_state):
        want(states)
    states[SectionId("virtio-net", "a")] = states[TABLE]
    everything += [
        facts(tun=False, architecture="aarch64", kvm=KvmFacts(usable=True, capabilities={"KVM_CAP_IRQ_ROUTING": 8}))
    ]
    assert {finding.rule for host in everything for finding in compatible(states, host)} == given


def test_forced_findings_are_left_out_and_the_rest_stays():
    host = facts(**(LACKS["no AVX2"][0] | LACKS["another rate"][0] | LACKS["an MSR fewer"][0]))
    states = machine(vcpus=2)
    assert [finding.rule for finding in overridden(states, host, ["cpuid", "msrs"])] == ["host.tsc"]
    assert [[msr.index for msr in states[name].msrs] for name in (BOOT, SECOND)] == [[0x10, 0x2FF, KVM_CLOCK]] * 2
    assert overridden(states, host, forcible()) == []
    assert [[msr.index for msr in states[name].msrs] for name in (BOOT, SECOND)] == [[0x2FF, KVM_CLOCK]] * 2
    assert (states[MACHINE].tsc_khz, states[BOOT].tsc_khz, states[SECOND].tsc_khz) == (2_600_000, 0, 0)
    assert compatible(states, host) == overridden(states, host, ["msrs"])


def test_forcing_what_is_not_found_changes_nothing():
    states = machine()
    assert overridden(states, facts(), forcible()) == []
    assert msgspec.to_builtins(states[BOOT]) == msgspec.to_builtins(machine()[BOOT])
    assert states[MACHINE] == machine()[MACHINE]


@pytest.mark.parametrize(
    ("name", "why"), [("avx2", "avx2 is no finding's name"), ("architecture", "architecture cannot be overridden")]
)
def test_a_name_that_cannot_be_forced_is_refused_with_those_that_can(name, why):
    with pytest.raises(ConfigError, match=rf"--force {name}: {why}.*these can: memory, cpu-vendor, cpuid, .*tsc"):
        overridden(machine(), facts(), [name])


def test_a_refusal_says_what_overrides_it_and_what_nothing_does():
    findings = [Finding("a", "", "", "", f"host.{name}") for name in ("page-size", "cpuid", "cpuid", "tsc")]
    assert advice(findings) == "overridden by --force cpuid --force tsc; nothing overrides page-size"


# Facts and names


def test_facts_of_doctor_are_read_and_unknown_ones_passed_over():
    payload = json.dumps(msgspec.to_builtins(facts()) | {"sandbox": {"usable": True}, "later": "release"}).encode()
    assert msgspec.to_builtins(read_facts(payload, where="facts.json")) == msgspec.to_builtins(facts())


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"\xff", b'{"architecture": 1}'])
def test_what_is_no_output_of_doctor_is_refused_by_name(payload):
    with pytest.raises(ConfigError, match=r"facts\.json"):
        read_facts(payload, where="facts.json")


def test_every_register_has_at_most_a_name_for_each_bit_and_no_name_twice():
    for key, names in FEATURES.items():
        named = [name for name in names.split() if name != "-"]
        assert len(names.split()) <= 32, key
        assert len(named) == len(set(named)), key
        assert key[2] in REGISTERS, key
    assert not set(FEATURES) & set(LEVELS)


@pytest.mark.parametrize(
    ("where", "number", "name"),
    [
        ((0x1, 0, "ecx"), 28, "1:ECX avx"),
        ((0x1, 0, "edx"), 26, "1:EDX sse2"),
        ((0x7, 0, "ebx"), 5, "7.0:EBX avx2"),
        ((0x7, 0, "ebx"), 16, "7.0:EBX avx512f"),
        ((0x7, 0, "ecx"), 16, "7.0:ECX la57"),
        ((0x7, 0, "edx"), 24, "7.0:EDX amx_tile"),
        ((0x7, 1, "eax"), 4, "7.1:EAX avx_vnni"),
        ((0xD, 1, "eax"), 3, "d.1:EAX xsaves"),
        ((0x8000_0001, 0, "edx"), 29, "80000001:EDX lm"),
        ((0x8000_0001, 0, "ecx"), 6, "80000001:ECX sse4a"),
        ((0x8000_0008, 0, "ebx"), 12, "80000008:EBX amd_ibpb"),
        ((0x4000_0001, 0, "eax"), 24, "40000001:EAX kvm_clocksource_stable_bit"),
        ((0x7, 0, "ecx"), 31, "7.0:ECX pks"),
        ((0x7, 1, "edx"), 31, "7.1:EDX bit 31"),
    ],
)
def test_bits_have_the_names_of_the_manuals(where, number, name):
    function, index, register = where
    assert f"{leaf_name(*where)} {feature_name(function, index, register, number)}" == name


@given(key=st.sampled_from(sorted(FEATURES)), number=st.integers(0, 31))
def test_any_feature_bit_that_only_the_guest_has_is_one_finding_that_names_it(key, number):
    function, index, register = key
    states, bit = machine(), 1 << number
    host = [entry for entry in leaves() if (entry.function, entry.index) != (function, index)]
    states[BOOT].cpuid = [*host, CpuidEntry(function=function, index=index, flags=EXACT, **{register: bit})]
    states[BOOT].xcrs, states[BOOT].msrs = [], []
    found = [
        finding for finding in compatible(states, facts(cpuid=host, clock_source="")) if finding.rule == "host.cpuid"
    ]
    expected = f"cpuid {leaf_name(function, index, register)} {feature_name(function, index, register, number)}"
    given = TOLD.get(key, 0) | (1 << 24 if key == (1, 0, "ecx") else 0)
    assert [finding.value for finding in found] == ([] if bit & given else [expected])


def test_every_msr_that_the_monitor_may_save_beside_kvms_list_is_known_as_such():
    assert {0x200, 0x20F, 0x250, 0x26F, 0x2FF, 0x48, 0xDA0, 0x17A, 0x17B, 0x400, 0x47F, 0xC000_0080} <= UNLISTED
    assert {index for index in UNLISTED if index not in MSRS} <= {*range(0x200, 0x214)}
