"""``snapkit verify``: what it prints, explains and exits with, on files that need no KVM."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from snapkit.cli.verify import verify
from snapkit.errors import ImageError
from snapkit.restore.check import explained
from snapkit.state.schema import SectionId
from snapkit.state.virtio import VirtioState
from tests.restore.broken import GENERATION
from tests.restore.device_machine import RAM_LEN, States, busy_machine
from tests.restore.machines import save


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(verify, arguments, standalone_mode=False)
    assert result.exception is None, result.exception
    assert (result.return_value or 0) == code, result.output
    return result


def write(path: Path, states: States, *, used_index: int | None = None) -> str:
    """Write a machine whose rings are as its devices left them; with *used_index*, but for the disk's."""
    content = bytearray(RAM_LEN)
    for name, state in states.items():
        if isinstance(state, VirtioState):
            for queue in state.queues:
                there = queue.next_used if used_index is None or name.kind != "virtio-block" else used_index
                content[queue.driver + 2 : queue.driver + 4] = queue.next_avail.to_bytes(2, "little")
                content[queue.device + 2 : queue.device + 4] = there.to_bytes(2, "little")
    generation = states[GENERATION]
    content[generation.gpa : generation.gpa + 16] = generation.generation
    facts = {"cpu": "host", "vcpus": 1, "memory": RAM_LEN}
    save(path, memoryview(content), sections=states, facts=facts, release="0.3.0")
    return str(path)


def test_a_sound_file_is_said_to_be_sound(tmp_path):
    path = write(tmp_path / "vm.snap", busy_machine("pci"))
    result = run(path)
    assert result.stdout == f"{path} is sound: 33 sections, {RAM_LEN} bytes of memory\n"
    assert result.stderr == ""


def test_strange_rings_are_told_and_the_file_is_sound(tmp_path):
    path = write(tmp_path / "vm.snap", busy_machine("mmio"), used_index=9)
    result = run(path)
    assert "is sound" in result.stdout
    assert "virtio-block/root.queues[0].device is a ring with index 9, not at 7" in result.stderr
    (remark,) = json.loads(run(path, "--json").stdout)["remarks"]
    assert (remark["rule"], remark["path"]) == ("rings.used", "queues[0].device")


def test_findings_have_component_path_value_expectation_and_rule(tmp_path):
    states = busy_machine("mmio")
    block: Any = states[SectionId("virtio-block", "root")]
    block.queues[0].size = 3
    path = write(tmp_path / "vm.snap", states)
    with pytest.raises(ImageError, match=r"virtio-block/root.queues\[0\].size is 3, must be a power of two <= 256"):
        CliRunner().invoke(verify, [path], standalone_mode=False, catch_exceptions=False)
    told = json.loads(run(path, "--json", code=3).stdout)
    assert told["findings"] == [
        {
            "component": "virtio-block/root",
            "path": "queues[0].size",
            "value": "3",
            "expected": "a power of two <= 256",
            "rule": "virtio.queue-size",
        }
    ]


def test_every_rule_is_explained_with_its_reason_in_words_and_as_json():
    text, rules = run("--explain").stdout, json.loads(run("--explain", "--json").stdout)
    assert [tuple(rule.values()) for rule in rules] == [tuple(rule) for rule in explained()]
    words = " ".join(text.split())
    for rule in rules:
        assert f"\n  {rule['name']}\n" in text
        assert rule["reason"] in words
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("arguments", [(), ("--json",), ("vm.snap", "--explain")])
def test_a_file_is_wanted_but_by_explain(arguments):
    result = CliRunner().invoke(verify, arguments)
    assert result.exit_code == 2
    assert "FILE" in result.output
