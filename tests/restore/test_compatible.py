"""Whether a host can run a machine, judged from facts alone: one fact of a good host is changed at a time."""

import json
from typing import Any

import msgspec
import pytest

from snapkit.errors import ConfigError
from snapkit.restore.compatible import HostFacts, KvmFacts, compatible, read_facts
from snapkit.state.machine import EM_X86_64, MachineState
from snapkit.state.schema import SectionId


def machine(**fields):
    usual: dict[str, Any] = {
        "architecture": EM_X86_64,
        "machine_id": bytes(16),
        "vcpu_count": 2,
        "cpu_profile": "host",
        "tsc_khz": 2_500_000,
    }
    return {SectionId("machine", "0"): MachineState(**(usual | fields))}


def facts(**fields):
    usual: dict[str, Any] = {
        "architecture": "x86_64",
        "page_size": 4096,
        "kvm": KvmFacts(usable=True, vcpus_max=64),
        "tsc_khz": 2_500_000,
    }
    return HostFacts(**(usual | fields))


def test_a_good_host_has_nothing_against_it():
    assert compatible(machine(), facts()) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"architecture": "aarch64"}, "machine/0.architecture is 62, must be 183 (aarch64)"),
        ({"kvm": KvmFacts(usable=False, why="no /dev/kvm")}, "host.kvm is no /dev/kvm, must be usable"),
        ({"page_size": 65536}, "host.page_size is 65536, must be 4096"),
        ({"kvm": KvmFacts(usable=True, vcpus_max=1)}, "machine/0.vcpu_count is 2, must be at most 1 on this host"),
    ],
)
def test_each_lack_of_a_host_is_one_finding(changed, told):
    assert [str(finding) for finding in compatible(machine(), facts(**changed))] == [told]


@pytest.mark.parametrize(
    ("khz", "scales", "count"),
    [(2_500_000, 0, 0), (2_500_600, 0, 0), (2_501_000, 0, 1), (2_400_000, 0, 1), (2_400_000, 1, 0), (0, 0, 0)],
)
def test_another_rate_of_the_counter_is_refused_unless_near_scaled_or_of_no_matter(khz, scales, count):
    host = facts(kvm=KvmFacts(usable=True, vcpus_max=64, capabilities={"KVM_CAP_TSC_CONTROL": scales}))
    findings = compatible(machine(tsc_khz=khz), host)
    assert [finding.rule for finding in findings] == ["host.tsc"] * count


def test_all_reasons_come_at_once():
    host = facts(architecture="aarch64", page_size=65536, tsc_khz=1)
    assert len(compatible(machine(), host)) == 3


def test_facts_of_doctor_are_read_and_unknown_ones_passed_over():
    payload = json.dumps(msgspec.to_builtins(facts()) | {"msrs": [16], "later": "release"}).encode()
    assert read_facts(payload, where="facts.json") == facts()


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"\xff", b'{"architecture": 1}'])
def test_what_is_no_output_of_doctor_is_refused_by_name(payload):
    with pytest.raises(ConfigError, match=r"facts\.json"):
        read_facts(payload, where="facts.json")
