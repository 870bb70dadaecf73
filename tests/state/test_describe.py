"""Schema files: committed, deterministic, and refused for what has no bound."""

import json
import types
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from snapkit.bits import Register, bit, bits
from snapkit.errors import InternalError
from snapkit.state import converters
from snapkit.state.changes import compare, rows_of
from snapkit.state.describe import committed, describe, render, stale
from snapkit.state.law import committed_files
from snapkit.state.releases import Release, releases
from snapkit.state.schema import I8, KINDS, U8, U16, U64, State, current, doc, named, register, schema, versions_of
from snapkit.state.shape import Bytes, Int, Items, max_encoded_len, shape_of, walk
from tests.contract.generate import instances, largest

ROOT = Path(__file__).parents[2] / "schemas"
ADVICE = """schemas/ is not what the declarations give.
If the version is released: put the struct back and declare version N+1 beside it, with both converters.
If the release is still being worked on: run `make schemas` and commit what it writes."""


class Mode(Register, width=8, reset=1, ref="a data sheet, page 7"):
    """A register."""

    ON = bit(0, "is on")
    SPEED = bits(3, 1, "how fast")


class Part(State):
    """A part."""

    mode: Annotated[U8, register(Mode)] = Mode.reset
    index: Annotated[U16, named({1: "ONE", 2: "TWO"})] = 0


class Whole1(State):
    """The whole."""

    load_ns: Annotated[U64, doc("time since the load, at the save")]
    shift: I8 = 0
    """Powers of two to scale by;
    negative to the right."""
    parts: Annotated[list[Part], Meta(min_length=1, max_length=3)] = msgspec.field(default_factory=lambda: [Part()])
    spare: Part | None = None
    page: Annotated[bytes, Meta(min_length=2, max_length=5)] = b"\x00\x00"
    name: Annotated[str, Meta(max_length=4)] = ""
    lit: bool = False


@pytest.fixture
def whole():
    with converters.temporary(Release(release="0.1.0", kinds={"whole": 1}), kinds=("whole",)):
        schema("whole", version=1, max_len=512, required=False)(Whole1)
        yield current("whole")


def test_committed_schema_files_are_what_the_declarations_give():
    assert [name for name, _ in stale()] == [], ADVICE


def test_schemas_directory_holds_nothing_but_the_files_of_declared_versions():
    there = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*") if path.is_file()}
    files = {f"{kind}/{version}.json" for kind in KINDS for version in versions_of(kind)}
    assert there == files | {"releases.json", "README.md"}


def test_every_release_has_its_files():
    names = {f"{kind}/{version}" for each in releases() for kind, version in each.kinds.items()}
    assert names <= set(committed_files())


def test_the_same_declaration_gives_the_same_bytes(whole):
    assert render(whole) == render(whole)
    assert json.loads(render(whole)) == describe(whole)


def test_schema_says_everything_that_the_declaration_says(whole):
    node = describe(whole)
    assert (node["x-kind"], node["x-version"], node["x-required"], node["x-max-bytes"]) == ("whole", 1, False, 512)
    assert node["x-order"] == ["load_ns", "shift", "parts", "spare", "page", "name", "lit"] == node["required"]
    fields = node["properties"]
    assert fields["load_ns"] == {
        "description": "time since the load, at the save", "type": "integer", "minimum": 0, "maximum": (1 << 64) - 1,
    }  # fmt: skip
    assert fields["shift"]["description"] == "Powers of two to scale by;\nnegative to the right."
    assert fields["page"] == {
        "type": "string", "contentEncoding": "base64", "x-msgpack": "bin", "x-min-bytes": 2, "x-max-bytes": 5, "default": "AAA=",
    }  # fmt: skip
    assert fields["spare"] == {"anyOf": [{"$ref": "#/$defs/Part"}, {"type": "null"}], "default": None}
    part = node["$defs"]["Part"]["properties"]
    assert part["mode"]["x-register"]["fields"][1] == {
        "name": "SPEED", "msb": 3, "lsb": 1, "doc": "how fast", "access": "rw",
    }  # fmt: skip
    assert part["index"]["x-names"] == {"1": "ONE", "2": "TWO"}


def test_schema_validates_the_json_form_of_its_states(whole):
    """Spot-checked by hand: the tree depends on no JSON Schema validator."""
    fields = describe(whole)["properties"]
    for state in instances(whole.type):
        data = msgspec.to_builtins(state)
        assert list(data) == describe(whole)["x-order"]
        assert fields["shift"]["minimum"] <= data["shift"] <= fields["shift"]["maximum"]
        assert fields["parts"]["minItems"] <= len(data["parts"]) <= fields["parts"]["maxItems"]


def test_rows_name_every_field_with_its_type_meaning_and_bits(whole):
    rows = {row.path: row for row in rows_of(describe(whole))}
    assert rows["load_ns"].type == "integer 0..0xffffffffffffffff"
    assert rows["parts[].mode"].bits == ("[0] ON: is on", "[3:1] SPEED: how fast")
    assert rows["parts[].mode"].doc == "a data sheet, page 7"
    assert rows["page"].type == "bytes 2..5"
    assert rows["spare"].type == "object or null"
    assert "spare.index" in rows


def test_schema_without_a_file_is_described_from_its_declaration(whole):
    assert committed(whole) == describe(whole)


def test_schema_equals_itself_and_what_it_says_of_another_names_every_difference(whole):
    assert compare(describe(whole), describe(whole)) == ()

    class Whole(State):
        """Another whole."""

        load_ns: Annotated[U64, doc("time since the load, in ns, at the save")]
        shift: Annotated[int, Meta(ge=-9, le=200)] = 0
        parts: Annotated[list[U8], Meta(min_length=1, max_length=3)] = msgspec.field(default_factory=lambda: [0])
        spare: Part
        page: Annotated[bytes, Meta(min_length=2, max_length=50)] = b"\x00\x00"

    schema("whole", version=2)(Whole)
    changes = {(change.path, change.what) for change in compare(describe(whole), describe(versions_of("whole")[2]))}
    assert changes == {
        ("", "widened"),
        ("", "re-meant"),
        ("load_ns", "re-meant"),
        ("shift", "narrowed"),
        ("parts", "defaulted"),
        ("parts[]", "re-typed"),
        ("spare", "re-typed"),
        ("page", "widened"),
        ("name", "dropped"),
        ("lit", "dropped"),
    }


def test_longest_encoding_bounds_the_largest_instance(whole):
    shape = shape_of(whole.type)
    assert len(msgspec.msgpack.encode(largest(shape))) <= max_encoded_len(shape)


def test_shape_names_every_part_by_path(whole):
    paths = dict(walk(shape_of(whole.type)))
    assert isinstance(paths["load_ns"], Int)
    assert isinstance(paths["parts"], Items)
    assert isinstance(paths["page"], Bytes)
    mode = paths["parts[].mode"]
    assert isinstance(mode, Int)
    assert mode.register is Mode


def made(name: str, **annotations: object) -> type[State]:
    """Declare a State class at run time."""
    return types.new_class(name, (State,), {}, lambda body: body.update(__annotations__=annotations))


class Stranger(msgspec.Struct):
    """No State."""


class Renamed(State, rename="camel"):
    """Renames."""

    two_words: U8


class Tagged(State, tag=True):
    """Tagged."""


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "integer without a width"),
        (Annotated[int, Meta(ge=0)], "integer without a width"),
        (Annotated[int, Meta(gt=0, le=5)], "integer without a width"),
        (bytes, "no maximum length"),
        (str, "no maximum length"),
        (list[U8], "no maximum length"),
        (Annotated[list[bytes], Meta(max_length=1)], r"odd\[\] has no maximum length"),
        (float, "a State cannot hold: Float"),
        (dict[str, U8], "a State cannot hold: Dict"),
        (U8 | str, "a State cannot hold: Union"),
        (object, "a State cannot hold"),
        (Stranger, "must be a State"),
        (Tagged, "must be a State"),
        (Renamed, "must keep its name"),
    ],
)
def test_field_without_a_bound_or_with_a_second_spelling_is_our_bug(annotation, words):
    with pytest.raises(InternalError, match=rf"Odd\.odd.*{words}|Odd\.{words}"):
        shape_of(made("Odd", odd=annotation))


def test_two_states_of_one_name_in_one_schema_are_our_bug():
    pair = made("Pair", one=made("Twin", at=U8), two=made("Twin", at=U8))
    with converters.temporary(kinds=("pair",)):
        schema("pair", version=1)(pair)
        with pytest.raises(InternalError, match="two States of one schema are called Twin"):
            describe(current("pair"))
