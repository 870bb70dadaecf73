"""Snapshots of aarch64 machines under every verb that reads files, on whatever host this is."""

import json
from pathlib import Path
from typing import Any

import pytest

from snapkit.errors import ImageError, IncompatibleHost
from snapkit.restore.image import Image
from snapkit.state.converters import Refusal
from snapkit.state.schema import SectionId
from snapkit.vmm.facts import collect
from tests.cli.test_tools import fails, run
from tests.grounds import AARCH64
from tests.restore.arm_chips import with_sve
from tests.restore.device_machine import RAM_LEN, States, busy_machine
from tests.restore.machines import ram, save

BASE = AARCH64.map.ram[0][0]


def write(path: Path, states: States) -> Path:
    generation = states[SectionId("vmgenid", "0")]
    content = ram(RAM_LEN, {generation.gpa - BASE: generation.generation})
    facts = {"cpu": "host", "vcpus": 1, "memory": RAM_LEN}
    memory = [(BASE, content, RAM_LEN)]
    save(path, content, sections=states, memory=memory, architecture=183, facts=facts, release="0.5.0")
    return path


@pytest.fixture
def file(tmp_path):
    return write(tmp_path / "vm.snap", busy_machine("pci", AARCH64))


def test_it_verifies(file):
    assert "vm.snap is sound: 34 sections" in run("verify", file).output


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("vcpu-aarch64/0.regs[X0]", ["id: 0x6030000000100000 X0"]),
        ("vcpu-aarch64/0.regs[SCTLR_EL1].value", ["0x30d0198d"]),
        ("vcpu-aarch64/0.regs[KVM_REG_ARM_TIMER_CNT].value", ["0x100000000"]),
        ("vcpu-aarch64/0.vectors[V31]", ["0x60400000001000d0 V31", "16 bytes: all zero"]),
        ("gicv3-distributor/0.ctlr", ["0x00000052 ENABLE_GRP1 ARE DS"]),
        ("gicv3-redistributor/0.propbaser.ID_BITS", ["15"]),
        ("gicv3-redistributor/0.typer", ["PLPIS LAST"]),
        ("gicv3-cpu-interface/0.icc_ctlr_el1.PRI_BITS", ["4"]),
        ("gicv3-its/0.baser[1].TYPE", ["4"]),
    ],
)
def test_registers_are_found_and_shown_by_their_names(file, path, shown):
    output = run("inspect", file, path).output
    for text in shown:
        assert text in output


def test_a_register_that_nobody_has_named_is_called_by_its_encoding(tmp_path):
    states = busy_machine("pci", AARCH64)
    states[SectionId("vcpu-aarch64", "0")].regs[-1].id = 0x6030_0000_0013_C01B
    file = write(tmp_path / "vm.snap", states)
    assert "S3_0_C0_C3_3" in run("inspect", file, "vcpu-aarch64/0.regs[S3_0_C0_C3_3]").output


def test_a_register_is_edited_by_its_name_and_differs_by_it(file, tmp_path):
    other = tmp_path / "other.snap"
    run("edit", file, "vcpu-aarch64/0.regs[X7].value=0x1234", "gicv3-its/0.ctlr.ENABLED=0", "-o", other)
    told = run("diff", file, other, code=1).output
    assert "vcpu-aarch64/0.regs[7].value X7: 7 -> 4660 (0x1234)" in told
    assert "gicv3-its/0.ctlr.ENABLED: 1 -> 0" in told


def test_decode_then_encode_gives_the_bytes_of_every_section(file):
    with Image.open(str(file)) as image:
        for entry in image.entries:
            document = run("decode", file, entry.path).stdout
            assert run("encode", stdin=document.encode()).stdout_bytes == image.payload(entry)


def test_a_gic_of_another_maker_is_refused_by_its_field(tmp_path):
    states = busy_machine("pci", AARCH64)
    states[SectionId("gicv3-distributor", "0")].iidr = 0x0200_143B
    error = fails("verify", write(tmp_path / "vm.snap", states))
    assert isinstance(error, ImageError)
    assert "gicv3-distributor/0.iidr is 0x200143b" in str(error)


@pytest.mark.parametrize("release", ["0.4.0", "0.1.0"])
def test_an_older_release_is_refused_for_the_architecture(file, tmp_path, release):
    error = fails("convert", file, tmp_path / "old.snap", "--to", release)
    assert isinstance(error, Refusal)
    assert [finding.path for finding in error.findings] == ["architecture"]
    assert not (tmp_path / "old.snap").exists()


def test_another_hosts_facts_judge_it(file, tmp_path):
    facts: dict[str, Any] = {
        "architecture": "aarch64",
        "page_size": 4096,
        "kvm": {"usable": True},
        "ipa_bits": 36,
        "its": False,
    }
    where = tmp_path / "facts.json"
    where.write_text(json.dumps(facts))
    error = fails("restore", file, "--dry-run", "--host", where)
    assert isinstance(error, IncompatibleHost)
    assert {finding.rule for finding in error.findings} == {"host.ipa", "host.gic"}
    facts |= {"ipa_bits": 40, "its": True}
    where.write_text(json.dumps(facts))
    assert "vcpu-aarch64/0" in run("restore", file, "--dry-run", "--host", where).output


@pytest.mark.skipif(collect().architecture != "x86_64", reason="is about a host of the other architecture")
def test_this_host_is_told_what_it_is_not(file):
    error = fails("doctor", file)
    assert "machine/0.architecture is 183, must be 62 (x86_64)" in str(error)


def test_sve_is_inspected(tmp_path):
    states = busy_machine("pci", AARCH64)
    with_sve(states[SectionId("vcpu-aarch64", "0")])
    file = write(tmp_path / "vm.snap", states)
    assert "256 bytes: all zero" in run("inspect", file, "vcpu-aarch64/0.vectors[Z0]").output
    run("verify", file)
