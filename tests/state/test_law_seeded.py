"""The law's own test: breaches are sown, one at a time, and what is reported is that breach and nothing else.

Sown is every way in which a field, a section, a list of kinds or a released file can change, each in every place where
it can happen: in a released version, in a new version whose converters say nothing of it, in a new version without
converters, up and down. The schema files of the tree are sown as well, at every field that they have.
"""

from copy import deepcopy
from dataclasses import replace
from types import new_class
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from snapkit.bits import Register, bit
from snapkit.state import converters
from snapkit.state.changes import compare
from snapkit.state.converters import downgrade, machine_downgrade, machine_upgrade, upgrade
from snapkit.state.describe import committed, render
from snapkit.state.law import violations
from snapkit.state.releases import Release, freeze
from snapkit.state.schema import KINDS, U8, U16, U32, State, doc, register, schema, versions_of
from snapkit.state.shape import shape_of, walk


class Control(Register, width=8, ref="a test"):
    """A register."""

    GO = bit(0, "go")


class Moved(Register, width=8, ref="a test"):
    """The same with its bit elsewhere."""

    GO = bit(1, "go")


class Inner(State):
    """A part."""

    port: U8 = 0
    rate: U16 = 0


class Narrow(State):
    """The part with less room."""

    port: U8 = 0
    rate: U8 = 0


class Lamp(State):
    """As released."""

    lit: U8
    level: Annotated[U16, doc("in lumen")] = 0
    control: Annotated[U8, register(Control)] = 0
    parts: Annotated[list[Inner], Meta(max_length=4)] = msgspec.field(default_factory=list)


FIELDS: dict[str, tuple[Any, Any]] = {
    "lit": (U8, msgspec.NODEFAULT),
    "level": (Annotated[U16, doc("in lumen")], 0),
    "control": (Annotated[U8, register(Control)], 0),
    "parts": (Annotated[list[Inner], Meta(max_length=4)], msgspec.field(default_factory=list)),
}


def lamp(order: tuple[str, ...] = tuple(FIELDS), **changed: tuple[Any, Any] | None) -> type[State]:
    """Return the lamp with fields *changed*, None for one that is gone."""
    fields = {name: {**FIELDS, **changed}[name] for name in (*order, *(name for name in changed if name not in order))}
    space = {name: field[1] for name, field in fields.items() if field and field[1] is not msgspec.NODEFAULT}
    hints = {name: field[0] for name, field in fields.items() if field}
    body = {"__doc__": "As released.", "__annotations__": hints, **space}
    return new_class("Lamp", (State,), exec_body=lambda namespace: namespace.update(body))


BREACHES = {
    "a field added": ("added", "colour", lamp(colour=(U8, 0))),
    "a field dropped": ("dropped", "level", lamp(level=None)),
    "a list dropped": ("dropped", "parts", lamp(parts=None)),
    "a field narrowed": ("narrowed", "level", lamp(level=(Annotated[U8, doc("in lumen")], 0))),
    "a field narrowed in a part": (
        "narrowed",
        "parts[].rate",
        lamp(parts=(Annotated[list[Narrow], Meta(max_length=4)], msgspec.field(default_factory=list))),
    ),
    "a list shortened": (
        "narrowed",
        "parts",
        lamp(parts=(Annotated[list[Inner], Meta(max_length=3)], msgspec.field(default_factory=list))),
    ),
    "a field widened": ("widened", "lit", lamp(lit=(U32, msgspec.NODEFAULT))),
    "a field re-typed": ("re-typed", "lit", lamp(lit=(Annotated[bytes, Meta(max_length=1)], msgspec.NODEFAULT))),
    "a field made optional": ("re-typed", "lit", lamp(lit=(U8 | None, msgspec.NODEFAULT))),
    "a field re-meant": ("re-meant", "level", lamp(level=(Annotated[U16, doc("in candela")], 0))),
    "a bit re-meant": ("re-meant", "control.GO", lamp(control=(Annotated[U8, register(Moved)], 0))),
    "another default": ("defaulted", "level", lamp(level=(Annotated[U16, doc("in lumen")], 7))),
    "a default taken away": (
        "defaulted",
        "control",
        lamp(control=(Annotated[U8, register(Control)], msgspec.NODEFAULT)),
    ),
    "fields reordered": ("reordered", "", lamp(("lit", "control", "level", "parts"))),
}
every_breach = pytest.mark.parametrize("name", BREACHES)
FIRST = Release(release="0.1.0", kinds={"lamp": 1})
SECOND = Release(release="0.2.0", kinds={"lamp": 2})


def files() -> dict[str, bytes]:
    return {f"{kind}/{number}": render(each) for kind in KINDS for number, each in versions_of(kind).items()}


@pytest.fixture
def frozen():
    """Return the first release as it was made, with its one file."""
    with converters.temporary(FIRST, kinds=("lamp",)):
        schema("lamp", version=1)(Lamp)
        return freeze(FIRST, "2020-01-31", files()), files()


def found(content: dict[str, bytes]) -> list[tuple[str, str, str]]:
    return sorted((finding.rule, finding.component, finding.path) for finding in violations(content))


@every_breach
def test_in_a_released_version_exactly_that_breach_is_found(name, frozen):
    entry, content = frozen
    what, path, changed = BREACHES[name]
    with converters.temporary(entry, kinds=("lamp",)):
        schema("lamp", version=1)(changed)
        assert found(content) == [(what, "lamp/1", path)]


@every_breach
def test_in_a_new_version_whose_converters_do_not_name_it_it_is_found_once_each_way(name, frozen):
    _what, path, changed = BREACHES[name]
    for unnamed in ({1, 2}, {1}, {2}):
        with converters.temporary(frozen[0], SECOND, kinds=("lamp",)):
            schema("lamp", version=1)(Lamp)
            schema("lamp", version=2)(changed)
            whole = {(path or "level").partition("[")[0].partition(".")[0]: "for a reason"}
            upgrade("lamp", 1, changes={} if 1 in unnamed else whole)(lambda old: old)
            downgrade("lamp", 2, changes={} if 2 in unnamed else whole)(lambda new, _: new)
            assert found({**files(), **frozen[1]}) == [("unexplained", "lamp/2", path)] * len(unnamed)


@every_breach
def test_in_a_new_version_without_converters_the_missing_ones_are_found_and_nothing_else(name, frozen):
    whole = {(BREACHES[name][1] or "level").partition("[")[0].partition(".")[0]: "for a reason"}
    for missing in ({1, 2}, {1}, {2}, set()):
        with converters.temporary(frozen[0], SECOND, kinds=("lamp",)):
            schema("lamp", version=1)(Lamp)
            schema("lamp", version=2)(BREACHES[name][2])
            if 1 not in missing:
                upgrade("lamp", 1, changes=whole)(lambda old: old)
            if 2 not in missing:
                downgrade("lamp", 2, changes=whole)(lambda new, _: new)
            said = [str(each) for each in violations({**files(), **frozen[1]})]
            wanted = {1: "a converter from version 1 to 2", 2: "a converter from version 2 to 1"}
            assert said == [
                f"lamp.versions[2] is declared alone, must be declared with {wanted[number]}"
                for number in sorted(missing)
            ]


def test_a_section_that_may_be_less_long_or_is_needed_otherwise_is_found(frozen):
    entry, content = frozen
    for options, what in (
        ({"max_len": 1 << 15}, "narrowed"),
        ({"max_len": 1 << 17}, "widened"),
        ({"required": False}, "re-meant"),
    ):
        with converters.temporary(entry, kinds=("lamp",)):
            schema("lamp", version=1, **options)(Lamp)
            assert found(content) == [(what, "lamp/1", "")]


def test_a_converter_that_names_what_there_is_not_is_found(frozen):
    with converters.temporary(frozen[0], SECOND, kinds=("lamp",)):
        schema("lamp", version=1)(Lamp)
        schema("lamp", version=2)(lamp(colour=(U8, 0)))
        upgrade("lamp", 1, changes={"colour": "new", "color": "a slip"})(lambda old: old)
        downgrade("lamp", 2, changes={"colour": "gone"})(lambda new, _: new)
        content = {**files(), **frozen[1]}
        assert found(content) == [("unknown", "lamp converter from version 1 to 2", "color")]
        changes = {"lamp.color": "a slip", "lamp.colour": "new"}
        machine_upgrade("0.1.0", "0.2.0", kinds=frozenset({"lamp", "bell"}), changes=changes)(dict)
        machine_downgrade("0.2.0", "0.1.0", kinds=frozenset({"lamp"}), changes={})(lambda sections, _: sections)
        assert found(content)[:2] == [
            ("unexplained", "machine converter 0.2.0 to 0.1.0", "changes.lamp"),
            ("unknown", "lamp converter from version 1 to 2", "color"),
        ]
        assert found(content)[2:] == [
            ("unknown", "machine converter 0.1.0 to 0.2.0", "changes.lamp.color"),
            ("unknown", "machine converter 0.1.0 to 0.2.0", "kinds.bell"),
        ]


def test_a_version_skipped_begun_late_or_taken_back_is_found(frozen):
    second, third = replace(SECOND, kinds={}), Release(release="0.3.0", kinds={"lamp": 3})
    with converters.temporary(frozen[0], second, third, kinds=("lamp",)):
        schema("lamp", version=1)(Lamp)
        assert ("skipped", "releases.json/0.3.0", "kinds.lamp") in found(frozen[1])
    with converters.temporary(replace(FIRST, kinds={"lamp": 2}), kinds=("lamp",)):
        schema("lamp", version=1)(Lamp)
        assert ("skipped", "releases.json/0.1.0", "kinds.lamp") in found(files())


def test_a_released_file_that_several_releases_wrote_is_found_once(frozen):
    entry, content = frozen
    again = replace(entry, release="0.2.0")
    with converters.temporary(entry, again, Release(release="0.3.0", kinds={"lamp": 1}), kinds=("lamp",)):
        schema("lamp", version=1)(Lamp)
        assert found(content) == []
        assert found({"lamp/1": content["lamp/1"] + b"\n"}) == [("edited", "schemas/lamp/1.json", "")]
        assert found({}) == [("missing", "schemas/lamp/1.json", "")]


# The schema files of the tree


def sown(node: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Give every change of one field's description in a schema file, with the word for it."""
    seeds: list[tuple[str, dict[str, Any]]] = []
    for low, high in (
        ("minimum", "maximum"),
        ("minItems", "maxItems"),
        ("minLength", "maxLength"),
        ("x-min-bytes", "x-max-bytes"),
    ):
        if high in node:
            seeds += [("widened", {high: node[high] + 1})]
            seeds += (
                [("narrowed", {high: node[high] - 1}), ("narrowed", {low: node[low] + 1})]
                if node[high] > node[low]
                else []
            )
    if "enum" in node:
        seeds += [("widened", {"enum": [*node["enum"], "?"]}), ("narrowed", {"enum": node["enum"][1:]})]
    if "type" in node:
        seeds.append(("re-typed", {"type": "null", "x-msgpack": None}))
    seeds.append(("re-meant", {"description": "something else"}))
    seeds.append(("defaulted", {"default": "another"}))
    return seeds


@pytest.mark.parametrize("kind", KINDS)
def test_every_change_sown_into_a_schema_file_is_found_at_its_field(kind):
    for version in versions_of(kind).values():
        whole = committed(version)
        shapes = {path for path, _ in walk(shape_of(version.type)) if path}
        seen = set()
        for name in whole["x-order"]:
            node = whole["properties"][name]
            for what, change in sown(node):
                edited = deepcopy(whole)
                edited["properties"][name] |= change
                assert [(each.what, each.path) for each in compare(whole, edited)] == [(what, name)], (name, change)
                seen.add(name)
            edited = deepcopy(whole)
            del edited["properties"][name]
            edited["x-order"].remove(name)
            assert [(each.what, each.path) for each in compare(whole, edited)] == [("dropped", name)]
            assert [(each.what, each.path) for each in compare(edited, whole)] == [("added", name)]
        assert seen == {path for path in shapes if "." not in path and "[" not in path}
        turned = deepcopy(whole)
        turned["x-order"].reverse()
        expected = [("reordered", "")] if len(whole["x-order"]) > 1 else []
        assert [(each.what, each.path) for each in compare(whole, turned)] == expected
