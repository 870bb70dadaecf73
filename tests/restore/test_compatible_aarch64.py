"""Whether a host can run an aarch64 machine: one fact of a good pair is changed at a time.

Encodings and fields are restated here by their numbers in the architecture's manual.
"""

import json
from typing import Any

import msgspec
import pytest

from snapkit.restore.compatible import compatible, forcible, overridden, rules_of
from snapkit.restore.compatible.machine import NEEDS
from snapkit.state.host_facts import HostFacts, KvmFacts, RegisterFact, read_facts
from snapkit.state.machine import EM_AARCH64
from snapkit.state.memory_layout import RegionState
from snapkit.state.schema import SectionId
from snapkit.state.vcpu_aarch64 import Reg
from tests.grounds import AARCH64
from tests.restore import arm_chips
from tests.restore.arm_chips import MPIDR, PFR0, PTRAUTH, REG64, SYSREG, TIMER_CNT, with_sve
from tests.restore.device_machine import States, fresh_machine

ARM0, ARM1 = SectionId("vcpu-aarch64", "0"), SectionId("vcpu-aarch64", "1")
MIDR, CTR, ISAR1, ISAR2, ZFR0 = (SYSREG | number for number in (0xC000, 0xD801, 0xC031, 0xC032, 0xC024))
CCSIDR = 0x6020_0000_0011_0001
KINDS = ("vcpu-aarch64", "gicv3-distributor")


def machine(transport: Any = None, vcpus: int = 2) -> States:
    return fresh_machine(transport, vcpus, AARCH64)


def identity(states: States | None = None, **changed: int) -> list[RegisterFact]:
    """Return what a host's new vCPU tells: what the machine's first does, but for what is *changed* by name."""
    others = {MPIDR, TIMER_CNT, arm_chips.SCTLR}
    found = {reg.id: reg.value for reg in (states or machine())[ARM0].regs if reg.id & 0xFFFF_0000 == 0x13_0000}
    known = {reg_id: value for reg_id, value in found.items() if reg_id not in others}
    known |= {globals()[name]: value for name, value in changed.items()}
    return [RegisterFact(id=reg_id, value=value) for reg_id, value in known.items()]


def facts(**fields: Any) -> HostFacts:
    usual: dict[str, Any] = {
        "architecture": "aarch64",
        "page_size": 4096,
        "kvm": KvmFacts(usable=True, vcpus_max=64, capabilities=capabilities()),
        "ipa_bits": 40,
        "gic_v3": True,
        "its": True,
        "id_registers": identity(),
        "sve_lengths": [0b1011, 0, 0, 0, 0, 0, 0, 0],
        "counter_hz": 62_500_000,
        "tun": True,
    }
    return HostFacts(**(usual | fields))


def capabilities(**fields: int) -> dict[str, int]:
    every = {name for names in NEEDS.values() for name in names}
    offered = dict.fromkeys(("KVM_CAP_ARM_SVE", "KVM_CAP_ARM_PTRAUTH_ADDRESS", "KVM_CAP_ARM_PTRAUTH_GENERIC"), 1)
    return dict.fromkeys(every, 1) | offered | {"KVM_CAP_IRQ_ROUTING": 4096} | fields


def lacking(**fields: int) -> dict[str, Any]:
    return {"kvm": KvmFacts(usable=True, capabilities=capabilities(**fields))}


def told(states: States, host: HostFacts) -> list[str]:
    return [str(finding) for finding in compatible(states, host)]


@pytest.mark.parametrize("transport", [None, "pci", "mmio"])
def test_a_good_host_has_nothing_against_it(transport):
    assert told(machine(transport), facts()) == []


def test_a_host_of_which_nothing_is_known_has_nothing_against_it():
    unknown = HostFacts(architecture="aarch64", page_size=4096, kvm=KvmFacts(usable=True))
    states = machine("pci", 1)
    states[ARM0].features[0] |= PTRAUTH
    with_sve(states[ARM0])
    assert told(states, unknown) == []


LACKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "x86-64": ({"architecture": "x86_64"}, ["machine/0.architecture is 183, must be 62 (x86_64)"]),
    "no PSCI": (
        lacking(KVM_CAP_ARM_PSCI_0_2=0),
        ["host.kvm.capabilities.KVM_CAP_ARM_PSCI_0_2 is 0, must be there, for vcpu-aarch64"],
    ),
    "no devices in the kernel": (
        lacking(KVM_CAP_DEVICE_CTRL=0),
        ["host.kvm.capabilities.KVM_CAP_DEVICE_CTRL is 0, must be there, for gicv3-distributor"],
    ),
    "narrow addresses": (
        {"ipa_bits": 36},
        [
            (
                "resource-allocator/0.pools[3] is a window up to 0x8000000000, 39 bits, "
                "must be at most 36 bits on this host"
            ),
        ],
    ),
    "a GICv2": (
        {"gic_v3": False},
        ["gicv3-distributor/0 is a GICv3, must be another: this host's KVM makes none"],
    ),
    "no ITS": ({"its": False}, ["gicv3-its/0 is an ITS, must be absent: this host's KVM makes none"]),
    "another processor": (
        {"id_registers": identity(MIDR=0x411F_D070)},
        ["vcpu-aarch64/0.regs[39].value is MIDR_EL1 0x410fd083, must be 0x411fd070, this host's"],
    ),
    "less of a feature": (
        {"id_registers": identity(PFR0=0x1100_0000_1111)},
        ["vcpu-aarch64/0.regs[40].value is ID_AA64PFR0_EL1 0x110000002222, must be 0x110000001111, this host's"],
    ),
    "another rate": (
        {"counter_hz": 24_000_000},
        ["vcpu-aarch64/0.counter_hz is 62500000, must be 24000000, this host's"],
    ),
}


@pytest.mark.parametrize("name", LACKS)
def test_what_a_host_lacks_is_named(name):
    changed, expected = LACKS[name]
    assert told(machine("pci", 1), facts(**changed)) == expected


def test_a_register_that_the_host_does_not_have_is_named():
    host = [fact for fact in identity() if fact.id != CTR]
    (finding,) = told(machine(), facts(id_registers=host))
    assert finding.endswith("CTR_EL0 0x8444c004, must be absent: this host's KVM has no such register")


def test_ram_beyond_the_hosts_addresses_is_named():
    states = machine()
    states[SectionId("memory-layout", "0")].regions = [RegionState(gpa=2 << 30, length=14 << 30)]
    assert told(states, facts(ipa_bits=34)) == []
    assert told(states, facts(ipa_bits=32, memory_total=1 << 40)) == [
        "memory-layout/0.regions is up to 0x400000000, 34 bits, must be at most 32 bits on this host"
    ]


def test_a_machine_without_pci_asks_for_no_window():
    assert told(machine("mmio"), facts(ipa_bits=36)) == []


@pytest.mark.parametrize(
    ("mine", "hosts", "fits"),
    [
        (0x1000_0000_0000_0000, 0x1000_0000_0000_0000, True),
        (0x0000_0000_0000_0000, 0x1100_0000_0000_0000, True),  # CSV2 and CSV3 may be lower
        (0x1000_0000_0000_0000, 0x0000_0000_0000_0000, False),
        (0x0100_0000_0000_0000, 0x0000_0000_0000_0000, False),
        (0x0000_0000_0000_0000, 0x0000_0000_0100_0000, True),  # GIC: a vCPU is made before it
        (0x0000_0000_0000_0000, 0x0000_0001_0000_0000, True),  # SVE, which this one was made without
        (0x0000_0000_0000_0000, 0x0000_0000_0000_1000, False),
    ],
)
def test_fields_are_compared_by_who_decides_them(mine, hosts, fits):
    states = machine(vcpus=1)
    next(reg for reg in states[ARM0].regs if reg.id == PFR0).value = mine
    assert (told(states, facts(id_registers=identity(PFR0=hosts))) == []) is fits


@pytest.mark.parametrize(("register", "bits"), [("ISAR1", 0x1100_0110), ("ISAR2", 0x1100), ("ZFR0", 0x1)])
def test_fields_of_a_feature_count_where_the_cpu_has_it(register, bits):
    states = machine(vcpus=1)
    states[ARM0].regs.append(Reg(id=globals()[register], value=0))
    host = facts(id_registers=[*identity(), RegisterFact(id=globals()[register], value=bits)])
    assert told(states, host) == []
    states[ARM0].features[0] |= PTRAUTH
    with_sve(states[ARM0])
    assert len(told(states, host)) == 1


def test_cache_sizes_are_compared_where_the_host_tells_them():
    states = machine(vcpus=1)
    states[ARM0].regs.append(Reg(id=CCSIDR, value=0x700F_E01A))
    assert told(states, facts()) == []
    (finding,) = told(states, facts(id_registers=[*identity(), RegisterFact(id=CCSIDR, value=1)]))
    assert "CCSIDR_EL1_1" in finding


@pytest.mark.parametrize(
    ("lengths", "found"),
    [
        (0b1, None),
        (0b11, None),
        (0b1011, None),
        (0b10, "vectors of 256 bits, must be vectors of 128 256 bits, this host's up to there"),
        (0b111, "vectors of 128 256 384 bits, must be vectors of 128 256 bits, this host's up to there"),
        (0b11011, "vectors of 128 256 512 640 bits, must be vectors of 128 256 512 bits, this host's up to there"),
    ],
)
def test_vector_lengths_are_the_hosts_up_to_the_longest(lengths, found):
    states = machine(vcpus=1)
    with_sve(states[ARM0], lengths)
    expected = [] if found is None else [f"vcpu-aarch64/0.vectors[49].value is {found}"]
    assert told(states, facts()) == expected


def test_a_host_without_sve_is_named_once():
    states = machine(vcpus=1)
    with_sve(states[ARM0])
    assert told(states, facts(sve_lengths=[], **lacking(KVM_CAP_ARM_SVE=0))) == [
        "vcpu-aarch64/0.features[0] is SVE, must be absent: this host's KVM does not offer it"
    ]


def test_a_host_without_pointer_authentication_is_named():
    states = machine(vcpus=1)
    assert told(states, facts(**lacking(KVM_CAP_ARM_PTRAUTH_GENERIC=0))) == []
    states[ARM0].features[0] |= PTRAUTH
    (finding,) = told(states, facts(**lacking(KVM_CAP_ARM_PTRAUTH_GENERIC=0)))
    assert finding.startswith("vcpu-aarch64/0.features[0] is pointer authentication, generic, must be absent")


def test_registers_that_are_forced_are_left_to_the_host_and_the_counter_runs_at_its_rate():
    host = facts(id_registers=identity(MIDR=0x411F_D070), counter_hz=24_000_000)
    states = machine()
    before = [len(states[name].regs) for name in (ARM0, ARM1)]
    assert [one.rule for one in overridden(states, host, ["id-registers"])] == ["host.counter-rate"]
    assert [len(states[name].regs) for name in (ARM0, ARM1)] == before
    assert overridden(states, host, ["id-registers", "counter-rate"]) == []
    assert [len(states[name].regs) for name in (ARM0, ARM1)] == [count - 1 for count in before]
    assert {reg.id for name in (ARM0, ARM1) for reg in states[name].regs} >= {PFR0, CTR, REG64}
    assert MIDR not in {reg.id for name in (ARM0, ARM1) for reg in states[name].regs}
    assert [states[name].counter_hz for name in (ARM0, ARM1)] == [24_000_000] * 2
    assert compatible(states, host) == []


def test_names_of_rules_are_those_that_findings_have():
    states = machine("pci", 1)
    states[ARM0].features[0] |= PTRAUTH
    with_sve(states[ARM0])
    bad = facts(
        ipa_bits=30,
        gic_v3=False,
        id_registers=identity(MIDR=0),
        sve_lengths=[1, 0, 0, 0, 0, 0, 0, 0],
        counter_hz=1,
        **lacking(KVM_CAP_ARM_PTRAUTH_ADDRESS=0),
    )
    own = {f"host.{rule.name}" for rule in rules_of(EM_AARCH64)} - {f"host.{rule.name}" for rule in rules_of(0)}
    assert {finding.rule for finding in compatible(states, bad)} == own
    assert {"id-registers", "counter-rate"} <= set(forcible())


def test_facts_of_an_aarch64_host_are_read_as_they_were_written():
    payload = json.dumps(msgspec.to_builtins(facts())).encode()
    assert msgspec.to_builtins(read_facts(payload, where="facts.json")) == msgspec.to_builtins(facts())
