"""Converters, on private kinds and releases: a field renamed and split, one moved to another kind, one kind added."""

from typing import Annotated

import pytest
from msgspec import Meta

from snapkit.errors import ConfigError, ImageError, InternalError
from snapkit.state import converters
from snapkit.state.codec import decode, encode
from snapkit.state.converters import (
    Refusal,
    convert_sections,
    downgrade,
    kind_steps,
    machine_downgrade,
    machine_steps,
    machine_upgrade,
    upgrade,
    upgrade_sections,
)
from snapkit.state.releases import Release
from snapkit.state.schema import KINDS, U8, U16, SectionId, State, current, schema, schema_of, versions_of

UART, LAMP, PANEL = SectionId("uart", "0"), SectionId("lamp", "0"), SectionId("panel", "0")

RELEASES = (
    Release(release="0.1.0", released="2020-01-01", kinds={"uart": 1, "lamp": 1}),
    Release(release="0.2.0", released="2020-02-01", kinds={"uart": 2, "lamp": 1}),
    Release(release="0.3.0", released="2020-03-01", kinds={"uart": 3, "lamp": 2, "panel": 1}),
    Release(release="0.4.0", kinds={"uart": 3, "lamp": 2, "panel": 1, "note": 1}),
)


class Uart1(State):
    """A divisor in two halves."""

    dll: U8
    dlm: U8


class Uart2(State):
    """One divisor, and a queue."""

    divisor: U16
    queue: Annotated[bytes, Meta(max_length=16)] = b""


class Uart3(State):
    """A scratch register more."""

    divisor: U16
    queue: Annotated[bytes, Meta(max_length=16)] = b""
    scratch: U8 = 0


class Lamp1(State):
    """On or off, and how bright."""

    lit: U8
    brightness: U8 = 0


class Lamp2(State):
    """Brightness went to the panel."""

    lit: U8


class Panel1(State):
    """Brightness for all."""

    brightness: U8
    colour: U8 = 0


class Note1(State):
    """Optional."""

    text: Annotated[bytes, Meta(max_length=16)]


def declare():
    schema("uart", version=1)(Uart1)
    schema("uart", version=2)(Uart2)
    schema("uart", version=3)(Uart3)
    schema("lamp", version=1)(Lamp1)
    schema("lamp", version=2)(Lamp2)
    schema("panel", version=1)(Panel1)
    schema("note", version=1, required=False)(Note1)

    @upgrade("uart", 1, changes={"divisor": "dll and dlm made one", "queue": "added"})
    def uart_1_to_2(old):
        return Uart2(divisor=old.dlm << 8 | old.dll)

    @downgrade("uart", 2, changes={"divisor": "split", "queue": "cannot be held"})
    def uart_2_to_1(new, refuse):
        if new.queue:
            refuse("queue", new.queue, "empty")
        return Uart1(dll=new.divisor & 0xFF, dlm=new.divisor >> 8)

    @upgrade("uart", 2, changes={"scratch": "added"})
    def uart_2_to_3(old):
        return Uart3(divisor=old.divisor, queue=old.queue)

    @downgrade("uart", 3, changes={"scratch": "cannot be held"})
    def uart_3_to_2(new, refuse):
        if new.scratch:
            refuse("scratch", new.scratch, "0")
        return Uart2(divisor=new.divisor, queue=new.queue)

    moved = {"lamp.brightness": "moved to the panel", "panel.brightness": "moved from the lamp"}

    @machine_upgrade("0.2.0", "0.3.0", kinds=frozenset({"lamp", "panel"}), changes=moved)
    def brightness_to_panel(sections):
        lamp = sections[LAMP]
        return {**sections, LAMP: Lamp2(lit=lamp.lit), PANEL: Panel1(brightness=lamp.brightness)}

    @machine_downgrade("0.3.0", "0.2.0", kinds=frozenset({"lamp", "panel"}), changes=moved)
    def brightness_to_lamp(sections, refuse):
        panel = sections.pop(PANEL)
        if panel.colour:
            refuse(PANEL, "colour", panel.colour, "0")
        return {**sections, LAMP: Lamp1(lit=sections[LAMP].lit, brightness=panel.brightness)}


@pytest.fixture(autouse=True)
def private_kinds():
    with converters.temporary(*RELEASES, kinds=("uart", "lamp", "panel", "note")):
        declare()
        yield


def oldest():
    return {UART: Uart1(dll=0x34, dlm=0x12), LAMP: Lamp1(lit=1, brightness=7)}


def newest(**uart):
    return {UART: Uart3(divisor=0x1234, **uart), LAMP: Lamp2(lit=1), PANEL: Panel1(brightness=7)}


def test_upgrade_composes_kind_and_machine_steps_over_every_release():
    assert upgrade_sections(oldest(), "0.1.0") == newest()


def test_downgrade_is_the_way_back():
    assert convert_sections(newest(), "0.4.0", "0.1.0") == oldest()


def test_every_pair_of_releases_converts_there_and_back_to_equal_bytes():
    names = [release.release for release in RELEASES]
    at = {name: convert_sections(oldest(), "0.1.0", name) for name in names}
    for start in names:
        for end in names:
            converted = convert_sections(at[start], start, end)
            assert {where: encode(state) for where, state in converted.items()} == {
                where: encode(state) for where, state in at[end].items()
            }


def test_converting_leaves_its_input_alone():
    sections = newest()
    before = {where: encode(state) for where, state in sections.items()}
    convert_sections(sections, "0.4.0", "0.1.0")
    assert {where: encode(state) for where, state in sections.items()} == before


def test_refused_downgrade_gives_the_reasons_of_every_step_at_once():
    sections = {**newest(queue=b"ab", scratch=9), PANEL: Panel1(brightness=7, colour=3)}
    with pytest.raises(Refusal) as refused:
        convert_sections(sections, "0.4.0", "0.1.0")
    assert sorted(str(finding) for finding in refused.value.findings) == [
        "panel/0.colour is 3, must be 0",
        "uart/0.queue is b'ab', must be empty",
        "uart/0.scratch is 9, must be 0",
    ]
    assert refused.value.exit_code == ConfigError.exit_code
    assert "release 0.1.0 cannot hold this machine" in str(refused.value)


def test_downgrade_stops_refusing_where_the_release_can_hold_it():
    sections = newest(queue=b"ab")
    assert convert_sections(sections, "0.4.0", "0.2.0")[UART] == Uart2(divisor=0x1234, queue=b"ab")


def test_downgrade_refuses_a_kind_the_release_lacks_and_drops_an_optional_one():
    note = SectionId("note", "0")
    assert note not in convert_sections({**newest(), note: Note1(text=b"x")}, "0.4.0", "0.3.0")
    with converters.temporary(*RELEASES[2:], kinds=("uart", "lamp", "panel", "note")):
        schema("note", version=1)(Note1)
        with pytest.raises(Refusal, match=r"note/0 is there, must be absent: release 0.3.0 has no such kind"):
            convert_sections({note: Note1(text=b"x")}, "0.4.0", "0.3.0")


def test_sections_of_the_current_release_pass_unconverted():
    sections = newest()
    assert upgrade_sections(sections, "0.4.0") == sections


def test_release_that_is_not_known_is_the_files_fault_or_the_operators():
    with pytest.raises(ImageError, match=r"written by release '0.9.0', the newest known here is 0.4.0"):
        upgrade_sections({}, "0.9.0")
    with pytest.raises(ConfigError, match=r"release is '0.9.0', must be one of: 0.1.0, 0.2.0"):
        convert_sections({}, "0.4.0", "0.9.0")


def test_sections_that_the_release_did_not_write_are_refused_together():
    sections = {**oldest(), PANEL: Panel1(brightness=1), UART: Uart3(divisor=1)}
    with pytest.raises(ImageError) as refused:
        upgrade_sections(sections, "0.1.0")
    assert sorted(str(finding) for finding in refused.value.findings) == [
        "panel/0 is there, must be absent: release 0.1.0 has no such kind",
        "uart/0.version is 3, must be 1, which is what release 0.1.0 writes",
    ]


def test_section_holding_the_state_of_another_kind_is_refused():
    with pytest.raises(ImageError, match="uart/0 is a state of lamp, must be one of uart"):
        upgrade_sections({UART: Lamp1(lit=1)}, "0.1.0")


def test_state_that_a_converter_takes_out_of_bounds_is_refused_by_its_field():
    with converters.temporary(*RELEASES[:2], kinds=("uart", "lamp")):
        schema("uart", version=1)(Uart1)
        schema("uart", version=2)(Uart2)
        upgrade("uart", 1, changes={"divisor": "x"})(lambda old: Uart2(divisor=old.dll << 16))
        with pytest.raises(ImageError, match=r"uart/0.divisor is 65536, must be int <= 65535"):
            upgrade_sections({UART: Uart1(dll=1, dlm=0)}, "0.1.0")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda old: old.dll // 0, "failed on uart/0: ZeroDivisionError"),
        (lambda old: old, "gave a Uart1"),
        (None, "the converter of uart from version 1 to 2 is missing"),
    ],
)
def test_converter_that_fails_or_lies_is_our_bug(function, message):
    with converters.temporary(*RELEASES[:2], kinds=("uart", "lamp")):
        schema("uart", version=1)(Uart1)
        schema("uart", version=2)(Uart2)
        if function is not None:
            upgrade("uart", 1, changes={"divisor": "x"})(function)
        with pytest.raises(InternalError, match=message):
            upgrade_sections({UART: Uart1(dll=1, dlm=0)}, "0.1.0")


def test_kind_that_no_release_up_takes_over_is_our_bug():
    with converters.temporary(RELEASES[0], Release(release="0.2.0"), kinds=("lamp",)):
        schema("lamp", version=1)(Lamp1)
        with pytest.raises(InternalError, match=r"release 0.2.0 has no kind lamp and no converter removes lamp/0"):
            upgrade_sections({LAMP: Lamp1(lit=1)}, "0.1.0")


def test_way_between_two_lines_is_up_to_where_they_meet_and_down_from_there():
    names = ("own-1", "own-2", "0.1.0", "0.2.0", "0.3.0")
    entries = {name: Release(release=name, joins="0.2.0" if name == "own-2" else None) for name in names}

    def way(start, end):
        return [
            (before.release, after.release, direction)
            for before, after, direction in converters.route(entries[start], entries[end])
        ]

    with converters.temporary(*entries.values(), kinds=()):
        assert way("own-1", "0.3.0") == [
            ("own-1", "own-2", "upgrade"),
            ("own-2", "0.2.0", "upgrade"),
            ("0.2.0", "0.3.0", "upgrade"),
        ]
        assert way("0.3.0", "own-2") == [("0.3.0", "0.2.0", "downgrade"), ("0.2.0", "own-2", "downgrade")]
        assert way("own-2", "0.1.0") == [("own-2", "0.2.0", "upgrade"), ("0.2.0", "0.1.0", "downgrade")]
        assert way("0.1.0", "own-1") == [
            ("0.1.0", "0.2.0", "upgrade"),
            ("0.2.0", "own-2", "downgrade"),
            ("own-2", "own-1", "downgrade"),
        ]
        assert way("0.1.0", "0.1.0") == []


def test_steps_are_listed_with_what_changed():
    assert [(step.from_version, step.to_version) for step in kind_steps("uart")] == [(1, 2), (2, 3), (3, 2), (2, 1)]
    assert kind_steps("uart")[0].changes["divisor"] == "dll and dlm made one"
    assert [(step.from_release, step.to_release) for step in machine_steps()] == [
        ("0.2.0", "0.3.0"),
        ("0.3.0", "0.2.0"),
    ]


def test_the_same_converter_declared_twice_is_our_bug():
    with pytest.raises(InternalError, match="declared twice"):
        upgrade("uart", 1, changes={})(lambda old: old)
    with pytest.raises(InternalError, match="declared twice"):
        machine_upgrade("0.2.0", "0.3.0", kinds=frozenset(), changes={})(lambda sections: sections)


def test_temporary_registry_is_gone_afterwards():
    with converters.temporary(RELEASES[0], kinds=("private",)):
        schema("private", version=1)(type("Private1", (State,), {}))
        assert list(KINDS) == ["private"]
        assert current("private").version == 1
    assert "private" not in KINDS
    assert sorted(KINDS) == ["lamp", "note", "panel", "uart"]


def test_old_versions_stay_decodable():
    state = Uart1(dll=1, dlm=2)
    assert decode(schema_of(state), encode(state), where="uart/0") == state
    assert sorted(versions_of("uart")) == [1, 2, 3]
