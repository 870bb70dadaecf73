"""Sections that each decode but do not make one machine are refused before anything is rebuilt, all findings at once."""

import copy
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapkit.errors import ImageError, IncompatibleHost
from snapkit.restore.check import explained
from snapkit.restore.restore import prepare
from snapkit.state.memory_layout import RegionState
from snapkit.state.schema import SectionId
from snapkit.state.vcpu_x86_64 import CpuidEntry, Msr
from tests.restore.forge import CHUNK
from tests.restore.real import states_of, taken_apart, with_states, write_real

States = dict[SectionId, Any]
MACHINE, LAYOUT = SectionId("machine", "0"), SectionId("memory-layout", "0")
VCPU0, VCPU1 = SectionId("vcpu-x86-64", "0"), SectionId("vcpu-x86-64", "1")
SERIAL, I8042, PIT = SectionId("serial-16550", "0"), SectionId("i8042", "0"), SectionId("pit", "0")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_real(tmp_path_factory.mktemp("real") / "real.snap")


def vcpus_twice(states: States) -> None:
    states[VCPU1].id = 0


def one_vcpu_more(states: States) -> None:
    states[MACHINE].vcpu_count = 3


def no_vcpus(states: States) -> None:
    states[MACHINE].vcpu_count = 0
    del states[VCPU0], states[VCPU1]


def a_vcpu_by_name(states: States) -> None:
    states[SectionId("vcpu-x86-64", "spare")] = states.pop(VCPU1)


def msr_twice(states: States) -> None:
    states[VCPU0].msrs = [Msr(index=0x10, data=1), Msr(index=0x10, data=2)]


def cpuid_twice(states: States) -> None:
    states[VCPU1].cpuid = [CpuidEntry(function=1, index=0), CpuidEntry(function=1, index=0, eax=7)]


def no_pit(states: States) -> None:
    del states[PIT]


def two_pits(states: States) -> None:
    states[SectionId("pit", "1")] = copy.deepcopy(states[PIT])


def more_ram_than_the_file_has(states: States) -> None:
    states[LAYOUT].regions = [RegionState(gpa=0, length=2 * CHUNK)]


def ram_elsewhere(states: States) -> None:
    states[LAYOUT].regions = [RegionState(gpa=1 << 32, length=CHUNK)]


def ram_over_itself(states: States) -> None:
    states[LAYOUT].regions = [RegionState(gpa=0, length=CHUNK), RegionState(gpa=4096, length=CHUNK)]


def ram_in_half_pages(states: States) -> None:
    states[LAYOUT].regions = [RegionState(gpa=7, length=CHUNK)]


def ram_beyond_the_end(states: States) -> None:
    states[LAYOUT].regions = [RegionState(gpa=(1 << 64) - 4096, length=4096)]


def other_pages(states: States) -> None:
    states[LAYOUT].page_shift = 16


def other_architecture(states: States) -> None:
    states[MACHINE].architecture = 243


def other_machine(states: States) -> None:
    states[MACHINE].machine_id = b"X" * 16


def other_profile(states: States) -> None:
    states[MACHINE].cpu_profile = "baseline"


DISAGREEMENTS: dict[Callable[[States], None], str] = {
    vcpus_twice: r"vcpu-x86-64/1.id is 0, must be 1",
    one_vcpu_more: r"vcpu-x86-64 is there as \['0', '1'\], must be there as \['0', '1', '2'\]",
    no_vcpus: r"machine/0.vcpu_count is 0, must be at least 1",
    a_vcpu_by_name: r"there as \['0', 'spare'\], must be there as \['0', '1'\]",
    msr_twice: r"vcpu-x86-64/0.msrs is a list with an entry twice",
    cpuid_twice: r"vcpu-x86-64/1.cpuid is a list with an entry twice",
    no_pit: r"pit is there as \[\], must be there once",
    two_pits: r"pit is there as \['0', '1'\], must be there once",
    more_ram_than_the_file_has: r"memory-layout/0.regions is different from the file's memory",
    ram_elsewhere: r"memory-layout/0.regions is different from the file's memory",
    ram_over_itself: r"memory-layout/0.regions\[1\].gpa is 0x1000, must be in order",
    ram_in_half_pages: r"memory-layout/0.regions\[0\] is 0x7\+0x200000, must be whole pages",
    ram_beyond_the_end: r"memory-layout/0.regions\[0\] is 0xfffffffffffff000",
    other_pages: r"memory-layout/0.page_shift is 16, must be 12",
    other_architecture: r"machine/0.architecture is 243, must be 62",
    other_machine: r"preamble.machine_id is [0-9a-f]{32}, must be 58585858",
    other_profile: r"manifest.machine.cpu is host, must be baseline",
}


def refuse(real: Path, path: Path, changes: Sequence[Callable[[States], None]]) -> ImageError:
    forge = taken_apart(real)
    states = states_of(forge)
    for change in changes:
        change(states)
    with_states(forge, states).write(path)
    with pytest.raises(ImageError, match="does not hold a machine that could have been saved") as caught:
        prepare(str(path))
    return caught.value


@pytest.mark.parametrize("change", DISAGREEMENTS, ids=lambda change: change.__name__)
def test_sections_that_disagree_are_refused_by_field(real, tmp_path, change):
    error = refuse(real, tmp_path / "guest.snap", [change])
    assert re.search(DISAGREEMENTS[change], str(error)), error


def test_everything_that_is_wrong_is_told_at_once(real, tmp_path):
    together = [vcpus_twice, msr_twice, cpuid_twice, two_pits, ram_over_itself, other_pages, other_architecture]
    error = refuse(real, tmp_path / "guest.snap", together)
    for change in together:
        assert re.search(DISAGREEMENTS[change], str(error)), (change.__name__, str(error))
    assert len(error.findings) >= len(together)
    assert len({str(finding) for finding in error.findings}) == len(error.findings)


def test_labels_for_people_must_say_what_the_machine_is(real, tmp_path):
    forge = taken_apart(real)
    describe = forge.manifest

    def lie(made: dict[str, Any]) -> None:
        describe(made)
        made["machine"] = {"vcpus": 64, "memory": 1 << 40, "cpu": "baseline", "anything": "else"}

    other = {**forge.preamble, "machine_id": b"L" * 16, "architecture": 183}
    replace(forge, manifest=lie, preamble=other).write(tmp_path / "guest.snap")
    with pytest.raises(ImageError) as caught:
        prepare(str(tmp_path / "guest.snap"))
    told = {f"{finding.component}.{finding.path}" for finding in caught.value.findings}
    labels = {"manifest.machine.vcpus", "manifest.machine.memory", "manifest.machine.cpu"}
    assert told == labels | {"preamble.machine_id", "preamble.architecture"}
    assert {finding.rule for finding in caught.value.findings} == {"labels"} <= {rule.name for rule in explained()}


def test_the_machine_of_another_architecture_is_the_hosts_problem_and_comes_first(real, tmp_path):
    forge = taken_apart(real)
    replace(forge, preamble={**forge.preamble, "architecture": 183}).write(tmp_path / "guest.snap")
    with pytest.raises(IncompatibleHost, match=r"preamble.architecture is 183 \(aarch64\), must be 62 \(x86-64\)"):
        prepare(str(tmp_path / "guest.snap"), architecture=62)
