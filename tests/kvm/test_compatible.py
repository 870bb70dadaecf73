"""A file that this host lacks something for, on real KVM: refused before anything is done to the host, or forced."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapkit import host
from snapkit.errors import IncompatibleHost
from snapkit.restore.compatible import compatible
from snapkit.restore.restore import prepare
from snapkit.state.schema import SectionId
from snapkit.state.spec.cpuid import FEATURES, feature_name, leaf_name
from snapkit.state.vcpu_x86_64 import Msr
from snapkit.vmm import facts as asked
from snapkit.vmm.facts import collect, live
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.vm import VmFd
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import Machine
from tests.kvm.commands import finished
from tests.kvm.harness import Tape, booted
from tests.restore.real import states_of, taken_apart, with_states, write_real

States = dict[SectionId, Any]
MACHINE = SectionId("machine", "0")
NO_MSR = 0x4B56_4DFF  # in KVM's own range, where it has none


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_real(tmp_path_factory.mktemp("real") / "real.snap")


def cpus(states: States) -> list[Any]:
    return [state for section, state in states.items() if section.kind == "vcpu-x86-64"]


def absent_feature() -> tuple[int, str]:
    """Return a bit of leaf 7.0 EBX that this host's KVM does not offer, and how it is called."""
    offered = next((leaf.ebx for leaf in live().cpuid if (leaf.function, leaf.index) == (7, 0)), 0)
    number = next(number for number in (5, 16, 26, 27, 2, 22, 14) if not offered >> number & 1)
    return 1 << number, f"cpuid {leaf_name(7, 0, 'ebx')} {feature_name(7, 0, 'ebx', number)}"


def feature(states: States) -> None:
    bit, _name = absent_feature()
    for cpu in cpus(states):
        next(leaf for leaf in cpu.cpuid if (leaf.function, leaf.index) == (7, 0)).ebx |= bit


def unknown_msr(states: States) -> None:
    for cpu in cpus(states):
        cpu.msrs.append(Msr(index=NO_MSR, data=0))


def misaligned_sse(states: States) -> None:
    for cpu in cpus(states):
        cpu.xsave = cpu.xsave[:26] + bytes([cpu.xsave[26] | 2]) + cpu.xsave[27:]  # MXCSR.MM


def slower(states: States) -> None:
    for part in (states[MACHINE], *cpus(states)):
        part.tsc_khz = part.tsc_khz * 9 // 10


def faster(states: States) -> None:
    for part in (states[MACHINE], *cpus(states)):
        part.tsc_khz = part.tsc_khz * 11 // 10


def changed(real: Path, path: Path, *changes: Callable[[States], None]) -> str:
    forge = taken_apart(real)
    states = states_of(forge)
    for change in changes:
        change(states)
    return str(with_states(forge, states).write(path))


def restore(file: str, *words: str) -> Any:
    return finished("restore", file, "--exit-when", "tick", "--timeout", "60", *words)


def test_what_was_saved_here_can_run_here(real):
    done = finished("doctor", str(real))
    assert (done.returncode, done.stdout) == (0, f"this host can run {real}\n")
    with prepare(str(real)) as prepared:
        assert compatible(prepared.sections, collect()) == []


@pytest.mark.parametrize("cpu", ["host", "baseline"])
def test_a_machine_that_was_booted_here_can_run_here(cpu, tmp_path):
    with booted(cpu=cpu, vcpus=2) as rig:
        path = rig.save(str(tmp_path / "m.snap"))
    with prepare(path) as prepared:
        assert compatible(prepared.sections, collect()) == []


def test_a_file_that_wants_a_feature_which_is_not_there_is_refused_by_its_name_and_can_be_forced(real, tmp_path):
    file, (_bit, name) = changed(real, tmp_path / "m.snap", feature), absent_feature()
    refused = restore(file)
    assert refused.returncode == 4, refused
    assert f"is {name}, must be absent" in refused.stderr
    assert "overridden by --force cpuid" in refused.stderr
    forced = restore(file, "--force", "cpuid")
    assert forced.returncode == 0, forced
    assert "tick" in forced.stdout


def test_a_file_with_an_msr_that_kvm_does_not_keep_is_refused_by_its_number_and_can_be_forced(real, tmp_path):
    file = changed(real, tmp_path / "m.snap", unknown_msr)
    refused = restore(file)
    assert refused.returncode == 4, refused
    assert f"is {NO_MSR:#x}, must be one that this host's KVM keeps" in refused.stderr
    assert restore(file, "--force", "msrs").returncode == 0


def test_a_file_in_misaligned_sse_mode_runs_on_a_host_that_has_it_and_is_refused_by_any_other(real, tmp_path):
    file = changed(real, tmp_path / "m.snap", misaligned_sse)
    done = restore(file)
    if live().cpu_vendor in {"AuthenticAMD", "HygonGenuine"}:
        assert done.returncode == 0, done
    else:
        assert done.returncode == 4, done
        assert "with MXCSR.MM, must be without" in done.stderr


@pytest.mark.parametrize("rate", [slower, faster], ids=lambda rate: rate.__name__)
def test_a_file_with_another_rate_is_refused_by_name_unless_the_host_scales_and_can_be_forced(real, tmp_path, rate):
    file = changed(real, tmp_path / "m.snap", rate)
    refused = restore(file)
    if live().kvm.capabilities["KVM_CAP_TSC_CONTROL"]:
        assert refused.returncode == 0, refused
    else:
        assert refused.returncode == 4, refused
        assert "snapkit: tsc: the machine's counter runs at" in refused.stderr
        assert finished("doctor", file).returncode == 4
    assert restore(file, "--force", "tsc").returncode == 0


def test_all_that_is_lacking_is_told_at_once_the_rate_too(real, tmp_path):
    file = changed(real, tmp_path / "m.snap", feature, unknown_msr, slower)
    names = ["cpuid", "msrs", *([] if live().kvm.capabilities["KVM_CAP_TSC_CONTROL"] else ["tsc"])]
    refused = restore(file)
    assert refused.returncode == 4, refused
    assert f"overridden by {' '.join(f'--force {name}' for name in names)}\n" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1 + len(names)
    assert restore(file, "--force", "msrs", "--force", "tsc").returncode == 4
    forced = [word for name in names for word in ("--force", name)]
    assert restore(file, *forced).returncode == 0
    done = finished("doctor", file, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["compatible"]) == (4, False)
    assert [finding["name"] for finding in told["findings"]] == names
    assert all(finding["forcible"] for finding in told["findings"])


def test_another_host_is_judged_by_its_facts(real, tmp_path):
    told = finished("doctor", "--json")
    assert told.returncode == 0
    other = json.loads(told.stdout)
    (tmp_path / "same.json").write_text(told.stdout)
    other["kvm"]["vcpus_max"], other["page_size"] = 1, 16384
    (tmp_path / "other.json").write_text(json.dumps(other))
    for command in (("doctor", str(real)), ("restore", str(real), "--dry-run")):
        assert finished(*command, "--host", str(tmp_path / "same.json")).returncode == 0
        refused = finished(*command, "--host", str(tmp_path / "other.json"))
        assert refused.returncode == 4, refused
        assert "nothing overrides page-size, vcpus" in refused.stderr
        assert "host.page_size is 16384, must be 4096" in refused.stderr
        assert "machine/0.vcpu_count is 2, must be at most 1 on this host" in refused.stderr


@pytest.mark.parametrize("words", [("--force", "avx2"), ("--force", "vcpus"), ("--force", "tsc", "--force", "")])
def test_a_name_that_cannot_be_forced_exits_with_2(real, words):
    done = restore(str(real), "--dry-run", *words)
    assert done.returncode == 2, done
    assert "these can: memory, cpu-vendor, cpuid, msrs, physical-bits, clock, tsc" in done.stderr


def test_a_machine_is_judged_by_its_host_though_nobody_asks_for_it_and_nothing_is_begun(real, tmp_path):
    file = changed(real, tmp_path / "m.snap", feature)
    with Loop() as loop, Machine(loop, Tape()) as machine, prepare(file) as prepared:
        with pytest.raises(IncompatibleHost) as refused:
            prepared.run(machine)
        assert [finding.rule for finding in refused.value.findings] == ["host.cpuid"]
        assert {row["stage"] for row in prepared.timeline.rows()} == {"open", "decode", "upgrade", "check", "plan"}
        prepared.judge(live, force=["cpuid"])
        prepared.run(machine)


@pytest.mark.parametrize("forced", [(), ("--force", "cpuid", "--force", "tsc")], ids=["refused", "forced"])
def test_a_file_is_judged_before_its_machine_is_in_a_sandbox_where_kvm_could_not_be_opened(real, tmp_path, forced):
    file = changed(real, tmp_path / "m.snap", feature, slower)
    done = restore(file, "--sandbox", *forced)
    if forced:
        assert done.returncode == 0, done
        assert "tick" in done.stdout
    else:
        assert done.returncode == 4, done
        assert f"is {absent_feature()[1]}, must be absent" in done.stderr


def test_kvm_is_asked_once_for_what_cannot_change(monkeypatch):
    monkeypatch.setattr(asked, "_asked", {})
    first = live()
    calls = host.calls_made()
    assert live() is first
    assert host.calls_made() - calls == 1  # whether it is the same /dev/kvm
    assert first.tsc_khz == 0
    assert live(rate=True).tsc_khz == collect().tsc_khz > 0


@pytest.mark.parametrize(("area", "read"), [(0, 4096), (4096, 4096), (11008, 11008)])
def test_vector_state_that_is_shorter_than_kvm_reads_it_is_followed_by_zeros(real, monkeypatch, area, read):
    written: list[bytes] = []
    extension, put = VmFd.extension, abi.put

    def extended(fd: VmFd, cap: int) -> int:
        return area if cap == abi.KVM_CAP_XSAVE2 else extension(fd, cap)

    def witnessed(fd: int, ioctl: abi.Ioctl, payload: bytes) -> int:
        if ioctl.name == "KVM_SET_XSAVE":
            written.append(payload)
        return put(fd, ioctl, payload)

    monkeypatch.setattr(VmFd, "extension", extended)
    monkeypatch.setattr(abi, "put", witnessed)
    shorter = [cpu.xsave[:4096] for cpu in cpus(states_of(taken_apart(real)))]
    with Loop() as loop, Machine(loop, Tape()) as machine, prepare(str(real), paused=True) as prepared:
        for cpu, xsave in zip(cpus(dict(prepared.sections)), shorter, strict=True):
            cpu.xsave = xsave
        prepared.run(machine)
    assert written == [xsave + bytes(read - 4096) for xsave in shorter]


def test_a_kvm_that_was_loaded_again_is_asked_again(monkeypatch):
    first = live()
    monkeypatch.setattr(asked, "_asked", {(0, 0, 0): first})
    assert live() is not first


def test_what_kvm_lists_has_a_place_among_the_facts():
    facts = collect()
    assert facts.kvm.usable
    assert facts.kvm.capabilities["KVM_CAP_IRQ_ROUTING"] >= 1024
    assert facts.cpu_vendor.isascii()
    assert {leaf.function for leaf in facts.cpuid} >= {0, 1, 7, 0xD, 0x8000_0008}
    assert 0x10 in facts.msrs
    assert facts.clock_source
    assert abi.KVM_CAP_TSC_DEADLINE_TIMER == 72
    assert (7, 0, "ebx") in FEATURES
