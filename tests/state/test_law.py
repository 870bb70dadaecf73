"""The law over schemas: nothing to report on the tree as it is, and every seeded breach reported by name."""

from dataclasses import replace
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from snapkit.bits import Register, bit
from snapkit.state import converters, releases
from snapkit.state.converters import downgrade, machine_downgrade, machine_upgrade, upgrade
from snapkit.state.describe import render
from snapkit.state.law import committed_files, violations
from snapkit.state.releases import Release, freeze
from snapkit.state.schema import KINDS, U8, U16, U32, State, doc, register, schema, versions_of


class Control(Register, width=8, ref="a test"):
    """A register."""

    GO = bit(0, "go")
    STOP = bit(1, "stop")


class Lamp1(State):
    """A lamp."""

    lit: U8
    level: Annotated[U16, doc("brightness in lumen")] = 0
    control: Annotated[U8, register(Control)] = 0
    steps: Annotated[list[U8], Meta(max_length=4)] = msgspec.field(default_factory=list)


class Lamp2(State):
    """A lamp with a colour."""

    lit: U8
    level: Annotated[U16, doc("brightness in lumen")] = 0
    control: Annotated[U8, register(Control)] = 0
    steps: Annotated[list[U8], Meta(max_length=4)] = msgspec.field(default_factory=list)
    colour: U8 = 0


class Bell1(State):
    """A bell."""

    rings: U32


FIRST = Release(release="0.1.0", kinds={"lamp": 1, "bell": 1})
SECOND = Release(release="0.2.0", kinds={"lamp": 2, "bell": 1})
COLOUR = {"colour": "added: lamps have one now"}


def declare(lamp=Lamp1, *, second=True, up=COLOUR, down=COLOUR):
    schema("lamp", version=1)(lamp)
    schema("bell", version=1)(Bell1)
    if second:
        schema("lamp", version=2)(Lamp2)
    if up is not None:
        upgrade("lamp", 1, changes=up)(lambda old: Lamp2(lit=old.lit))
    if down is not None:
        downgrade("lamp", 2, changes=down)(lambda new, _: Lamp1(lit=new.lit))


def files():
    return {f"{kind}/{number}": render(each) for kind in KINDS for number, each in versions_of(kind).items()}


def frozen_first():
    """Freeze release 0.1.0 as it was when Lamp1 and Bell1 were all there was."""
    with converters.temporary(FIRST, kinds=("lamp", "bell")):
        declare(second=False, up=None, down=None)
        return freeze(FIRST, "2020-01-31", files()), files()


@pytest.fixture
def law():
    """Two releases, the first frozen, kept to the letter; gives the first's entry and files."""
    entry, old_files = frozen_first()
    with converters.temporary(entry, SECOND, kinds=("lamp", "bell")):
        yield entry, old_files


def said(found):
    return sorted(f"{finding.rule}: {finding}" for finding in violations(found))


def test_tree_as_it_is_keeps_the_law():
    found = [str(finding) for finding in violations(committed_files())]
    assert not found, "\n".join(found)


@pytest.mark.usefixtures("law")
def test_second_version_with_both_converters_keeps_the_law():
    declare()
    assert said(files()) == []


def test_struct_changed_without_a_version_is_reported_field_by_field(law):
    class Sharp(Register, width=8, ref="a test"):
        GO = bit(2, "go")
        STOP = bit(1, "halt, in other words")

    class Lamp(State):
        """A lamp, in other words."""

        steps: Annotated[list[U8], Meta(max_length=2)] = msgspec.field(default_factory=list)
        level: Annotated[U16, doc("brightness in candela")] = 7
        control: Annotated[U8, register(Sharp)] = 0
        lit: U32
        extra: U8 = 0

    declare(Lamp)
    law_says = "must be as released: declare the next version, with both converters (release 0.1.0)"
    reported = said({**files(), "lamp/1": law[1]["lamp/1"]})
    assert [line for line in reported if "lamp/1" in line] == [
        f"added: lamp/1.extra is added: integer 0..255, {law_says}",
        f"defaulted: lamp/1.level is defaulted, from 0 to 7, {law_says}",
        f"narrowed: lamp/1.steps is narrowed, from 0..4 to 0..2, {law_says}",
        f"re-meant: lamp/1.control.GO is re-meant, from bits 0:0 to bits 2:2, {law_says}",
        f"re-meant: lamp/1.level is re-meant, from 'brightness in lumen' to 'brightness in candela', {law_says}",
        f"reordered: lamp/1 is reordered, from lit, level, control, steps to steps, level, control, lit, {law_says}",
        f"widened: lamp/1.lit is widened, from 0..255 to 0..4294967295, {law_says}",
    ]


def test_field_dropped_or_retyped_without_a_version_is_reported(law):
    class Lamp(State):
        """A lamp."""

        lit: Annotated[bytes, Meta(max_length=1)]
        level: Annotated[U16, doc("brightness in lumen")] = 0
        control: Annotated[U8, register(Control)] = 0

    declare(Lamp)
    reported = "\n".join(said({**files(), "lamp/1": law[1]["lamp/1"]}))
    assert "re-typed: lamp/1.lit is re-typed, from integer 0..255 to bytes 0..1" in reported
    assert "dropped: lamp/1.steps is dropped, was array 0..4" in reported


def test_words_about_a_released_state_or_bit_may_be_corrected(law):
    class Better(Register, width=8, ref="a test"):
        GO = bit(0, "go on")
        STOP = bit(1, "stop")

    class Lamp(State):
        """A lamp, better said."""

        lit: U8
        level: Annotated[U16, doc("brightness in lumen")] = 0
        control: Annotated[U8, register(Better)] = 0
        steps: Annotated[list[U8], Meta(max_length=4)] = msgspec.field(default_factory=list)

    declare(Lamp)
    assert said({**files(), "lamp/1": law[1]["lamp/1"]}) == []


def test_released_file_edited_is_reported_even_if_it_fits_the_declaration(law):
    declare()
    edited = law[1]["lamp/1"].replace(b'"A lamp."', b'"The lamp."')
    assert edited != law[1]["lamp/1"]
    assert [line.partition(" is edited")[0] for line in said({**files(), "lamp/1": edited})] == [
        "edited: schemas/lamp/1.json"
    ]
    assert any(line.startswith("edited:") for line in said({**files(), "lamp/1": b"no JSON"}))


@pytest.mark.usefixtures("law")
def test_missing_and_stale_schema_files_are_reported():
    declare()
    found = files()
    del found["bell/1"]
    found["lamp/2"] = found["lamp/2"].replace(b"colour", b"color")
    assert said(found) == [
        "missing: schemas/bell/1.json is missing, must be there: take it back from the repository (git checkout)",
        "stale: schemas/lamp/2.json is stale, must be what the declaration gives: run `make schemas`",
    ]


@pytest.mark.usefixtures("law")
@pytest.mark.parametrize(("gone", "step"), [("up", "1 to 2"), ("down", "2 to 1")])
def test_missing_converter_of_either_direction_is_reported(gone, step):
    declare(**{gone: None})
    assert said(files()) == [
        f"converter: lamp.versions[2] is declared alone, must be declared with a converter from version {step}"
    ]


@pytest.mark.usefixtures("law")
def test_changed_field_that_no_converter_names_is_reported():
    declare(up={"lit": "something else"}, down={"lit": "something else"})
    assert said(files()) == [
        f"unexplained: lamp/2.colour is added: integer 0..255, must be named in the changes of the converter {step}, "
        "with the reason"
        for step in ("from version 1 to 2", "from version 2 to 1")
    ]


@pytest.mark.usefixtures("law")
def test_machine_converters_stand_in_for_kind_converters():
    declare(up=None, down=None)
    moved = {"lamp.colour": "moved here"}
    machine_upgrade("0.1.0", "0.2.0", kinds=frozenset({"lamp"}), changes=moved)(dict)
    assert any("machine converter 0.1.0 to 0.2.0 is alone, must be paired" in line for line in said(files()))
    machine_downgrade("0.2.0", "0.1.0", kinds=frozenset({"lamp"}), changes=moved)(lambda sections, _: sections)
    assert said(files()) == []


@pytest.mark.usefixtures("law")
def test_machine_converter_between_strangers_is_reported():
    declare()
    machine_upgrade("0.1.0", "0.7.0", kinds=frozenset({"lamp"}), changes={})(dict)
    assert said(files()) == [
        "converter: machine converter 0.1.0 to 0.7.0 is there, must be between two neighbouring releases"
    ]


def test_line_of_its_own_keeps_the_law_where_its_last_step_is_converted(law):
    entry, _ = law
    declare()
    own = Release(
        release="own-1", released="2020-01-01", kinds={"lamp": 1}, digests={"lamp/1": entry.digests["lamp/1"]}
    )
    with releases.temporary(replace(own, joins="0.2.0"), entry, SECOND):
        assert said(files()) == []
    older = replace(own, kinds={"bell": 1}, digests={"bell/1": entry.digests["bell/1"]})
    with releases.temporary(older, replace(own, release="own-2", joins="0.2.0"), entry, SECOND):
        assert said(files()) == [
            "removed: releases.json/own-2.kinds.bell is absent, must be there, as release own-1 writes it, or taken over by a machine converter"
        ]
        machine_upgrade("own-2", "0.1.0", kinds=frozenset({"bell"}), changes={})(dict)
        assert any(
            "own-2 to 0.1.0 is there, must be between two neighbouring releases" in each for each in said(files())
        )


def test_name_that_no_preamble_has_room_for_is_reported(law):
    entry, _ = law
    declare()
    with releases.temporary(replace(entry, release="a-long-name-0.1.0"), SECOND):
        (line,) = said(files())
        assert line.startswith("stamp: releases.json/a-long-name-0.1.0.stamp is 'a-long-name-0.1.0', must be a name of")
    with releases.temporary(replace(entry, release="a-long-name-0.1.0", stamp="0.1.0"), SECOND):
        assert said(files()) == []


def test_kind_and_version_removed_are_reported(law):
    entry, old = law
    with converters.temporary(entry, replace(SECOND, kinds={"lamp": 2}), kinds=("lamp",)):
        schema("lamp", version=2)(Lamp2)
        reported = said({**old, **files()})
    assert reported == [
        "removed: lamp.versions is [2], must be 1, 2, 3 and so on without a gap",
        "removed: releases.json/0.1.0.kinds.bell is 1, must be declared: what was written once stays readable",
        "removed: releases.json/0.1.0.kinds.lamp is 1, must be declared: what was written once stays readable",
        "removed: releases.json/0.2.0.kinds.bell is absent, must be there, as release 0.1.0 writes it, or taken over by a machine converter",
        "removed: schemas/bell/1.json is there, must be declared: a kind or version, once written, stays for ever",
        "removed: schemas/lamp/1.json is there, must be declared: a kind or version, once written, stays for ever",
    ]


def test_list_of_releases_is_held_to_its_own_rules(law):
    entry, _ = law
    declare()
    with releases.temporary(replace(entry, digests={}), replace(SECOND, digests={"x/1": "1"})):
        assert said(files()) == [
            "digests: releases.json/0.1.0.digests is for nothing, must be one for each of bell/1, lamp/1",
            "open: releases.json/0.2.0.digests is there, must be empty until it is released",
        ]
    with releases.temporary(FIRST, replace(SECOND, kinds={"lamp": 1, "bell": 1})):
        reported = said(files())
        assert (
            "open: releases.json/0.1.0.released is null, must be a date: only the newest release may be open"
            in reported
        )
        assert "unlisted: releases.json/0.2.0.kinds.lamp is 1, must be 2, the newest declared" in reported
    with releases.temporary(entry, replace(SECOND, kinds={"lamp": 3, "bell": 1})):
        assert "skipped: releases.json/0.2.0.kinds.lamp is 3, must be 2, the next" in said(files())


def test_state_without_a_bound_or_too_long_for_its_section_is_reported():
    with converters.temporary(Release(release="0.1.0", kinds={"lamp": 1, "bell": 1}), kinds=("lamp", "bell")):
        schema("lamp", version=1, max_len=8)(Lamp1)

        @schema("bell", version=1)
        class Bare(State):
            rings: int

        reported = said({"lamp/1": render(versions_of("lamp")[1])})
    assert reported[0].startswith("unbounded: bell/1 is Bare.rings is an integer without a width")
    assert reported[1] == "unbounded: lamp/1.max_len is 8, must be at least 101, its longest encoding"
