"""A value is changed by its path: every shape takes what a person writes, and refuses the rest by name."""

import json

import pytest

from snapkit.errors import ConfigError
from snapkit.state.codec import encode, to_data
from snapkit.state.document import from_document, to_document
from snapkit.state.edit import split_assignment, with_value
from snapkit.state.inspect import flat, look_up
from snapkit.state.schema import SectionId, State
from tests.restore.device_machine import busy_machine

VCPU = "vcpu-x86-64/0"


def machine() -> dict[SectionId, State]:
    return dict(busy_machine("pci"))


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        (f"{VCPU}.regs.rip", "0xFFFFFFFFFFFFFFFF", (1 << 64) - 1),
        (f"{VCPU}.regs.rip", "4096", 4096),
        (f"{VCPU}.sregs.cr0.WP", "1", 1),
        (f"{VCPU}.cpuid[function=1].ecx", "0x10", 16),
        (f"{VCPU}.msrs[0].data", "0x7", 7),
        ("serial-16550/0.thre_pending", "true", True),
        ("serial-16550/0.rx", "00ff10", b"\0\xff\x10"),
        ("machine/0.cpu_profile", "baseline", "baseline"),
        ("pit/0.channels[2].gate", "1", 1),
    ],
)
def test_a_value_becomes_what_is_written(path, text, value):
    before = machine()
    spelled = {section: encode(state) for section, state in before.items()}
    after = with_value(before, path, text)
    assert look_up(after, path).value == value
    assert {section: encode(state) for section, state in before.items()} == spelled, "the original was changed"


def test_a_field_of_a_register_leaves_the_others():
    before = machine()
    cr0 = look_up(before, f"{VCPU}.sregs.cr0").value
    after = with_value(before, f"{VCPU}.sregs.cr0.WP", str(cr0 >> 16 & 1 ^ 1))
    assert look_up(after, f"{VCPU}.sregs.cr0").value == cr0 ^ 1 << 16


def test_a_list_a_part_and_a_whole_section_are_given_as_json():
    before = machine()
    for path in (f"{VCPU}.msrs", f"{VCPU}.sregs", VCPU, "virtio-block/root.queues", "serial-16550/0"):
        value = look_up(before, path).value
        text = json.dumps(to_data(value))
        assert {name: encode(state) for name, state in with_value(before, path, text).items()} == {
            name: encode(state) for name, state in before.items()
        }
    after = with_value(before, f"{VCPU}.msrs", '[{"index": 16, "data": 3}]')
    assert [(msr.index, msr.data) for msr in look_up(after, f"{VCPU}.msrs").value] == [(16, 3)]


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        (f"{VCPU}.regs.rip", "0x10000000000000000", r"regs\.rip is .* must be 0 to 0xffffffffffffffff"),
        (f"{VCPU}.regs.rip", "-1", "must be 0 to"),
        (f"{VCPU}.regs.rip", "ten", "must be 0 to"),
        (f"{VCPU}.sregs.cr0.WP", "2", r"sregs\.cr0\.WP is '2', must be 0 to 0x1"),
        (f"{VCPU}.sregs.cr0.NOPE", "1", "has no field NOPE"),
        (f"{VCPU}.msrs[999].data", "1", "there is no"),
        ("serial-16550/0.thre_pending", "1", "true or false"),
        ("serial-16550/0.rx", "0", "hexadecimal"),
        ("serial-16550/0.rx", "00" * 100000, "must be"),
        ("machine/0.cpu_profile", "mine", "cpu_profile"),
        (f"{VCPU}.msrs", "[{", "JSON"),
        (f"{VCPU}.msrs", "7", "JSON"),
        (f"{VCPU}.sregs", '{"cr0": 1}', "JSON"),
        ("nothing/0.a", "1", "there is no nothing/0"),
        ("pit/9.flags", "1", "there is no pit/9"),
    ],
)
def test_what_cannot_be_is_refused_by_its_path(path, text, message):
    with pytest.raises(ConfigError, match=message):
        with_value(machine(), path, text)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a/0.b=1", ("a/0.b", "1")),
        ("a/0.c[function=1,index=2].d=0x3", ("a/0.c[function=1,index=2].d", "0x3")),
        ("a/0.t=x=y", ("a/0.t", "x=y")),
        ("a/0.t=", ("a/0.t", "")),
    ],
)
def test_a_change_is_cut_at_its_first_equals_sign_outside_of_brackets(text, parts):
    assert split_assignment(text) == parts


@pytest.mark.parametrize("text", ["", "=1", "a/0.b", "a/0.c[function=1]"])
def test_a_change_without_path_or_value_is_refused(text):
    with pytest.raises(ConfigError, match="PATH=VALUE"):
        split_assignment(text)


def test_every_scalar_can_be_written_as_it_is():
    """What is read off a machine and written back by its path changes nothing."""
    sections = machine()
    spelled = {section: encode(state) for section, state in sections.items()}
    tried = 0
    for section, state in sections.items():
        for path, value in list(flat(state, str(section)))[:40]:
            text = value.hex() if isinstance(value, bytes) else json.dumps(value) if value != [] else "[]"
            text = value if isinstance(value, str) else "none" if value is None else text
            sections = with_value(sections, path, text)
            tried += 1
    assert tried > 300
    assert {section: encode(state) for section, state in sections.items()} == spelled


def test_a_section_as_a_document_comes_back_as_the_same_bytes():
    for section, state in machine().items():
        content = json.dumps(to_document(section, state)).encode()
        again, read = from_document(content)
        assert (again, encode(read)) == (section, encode(state))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no section"),
        (b"[]", "no section"),
        (b'{"kind": "pit"}', "no section"),
        (b'{"kind": "nope", "instance": "0", "version": 1, "state": {}}', "nope version 1 is unknown"),
        (b'{"kind": "pit", "instance": "0", "version": 99, "state": {}}', "pit version 99 is unknown"),
        (b'{"kind": "pit", "instance": "0", "version": 1, "state": {}}', "channels"),
        (b'{"kind": "machine", "instance": "0", "version": 1, "state": {"tsc_khz": 1e30}}', "machine/0"),
        (b"\xff", "no section"),
        (b"[" * 100000, "no section"),
    ],
)
def test_json_that_is_no_section_is_refused(content, message):
    with pytest.raises(ConfigError, match=message):
        from_document(content)
