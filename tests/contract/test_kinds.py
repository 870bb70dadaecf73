"""What every version of every kind must keep to. A new kind is covered as soon as it is listed in KINDS."""

import subprocess
import sys
from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapkit.errors import ImageError
from snapkit.state.codec import checked, decode, encode, from_data, to_data
from snapkit.state.converters import kind_steps
from snapkit.state.inspect import flat, locate
from snapkit.state.releases import schema_file
from snapkit.state.schema import KINDS, Schema, State, schema_of, versions_of
from snapkit.state.shape import Bool, Bytes, Choice, Fields, Int, Items, Maybe, Shape, Text, max_encoded_len, shape_of
from tests.contract.generate import full, instances, largest, strategy
from tests.contract.places import replaced, sites, spelled
from tests.contract.plain_reader import Reader

EVERY = [schema for kind in KINDS for _, schema in sorted(versions_of(kind).items())]


@pytest.fixture(params=EVERY, ids=lambda schema: f"{schema.kind}-{schema.version}")
def version(request):
    return request.param


def plain(state: State) -> Any:
    return msgspec.msgpack.decode(encode(state))


def outside(shape: Shape, value: Any) -> Iterator[Any]:
    """Give values just out of the bounds of *shape*, and some of another type."""
    match shape:
        case Int(minimum=low, maximum=high):
            yield from (number for number in (low - 1, high + 1) if -(1 << 63) <= number < 1 << 64)
            yield from (None, "1", 1.0, True, [])
        case Bool():
            yield from (0, 1, None)
        case Bytes(min_len=low, max_len=high):
            yield bytes(high + 1)
            if low:
                yield bytes(low - 1)
            yield from ("text", None)
        case Text(min_len=low, max_len=high):
            yield "a" * (high + 1)
            if low:
                yield "a" * (low - 1)
            yield from (b"bytes", None)
        case Choice(words=words):
            yield from ("".join(words) + "?", 0, None)
        case Items(min_len=low, max_len=high):
            yield (value * (high + 1))[: high + 1] if value else [0] * (high + 1)
            if low:
                yield value[: low - 1]
            yield from (None, {})
        case Maybe(inner=inner):
            yield from (each for each in outside(inner, value) if each is not None)
        case Fields():
            yield from (None, [], 0)


def refusal(version: Schema, payload: bytes) -> str:
    with pytest.raises(ImageError) as refused:
        decode(version, payload, where="kind/0")
    return str(refused.value)


def test_every_valid_instance_decodes_from_its_encoding_byte_for_byte(version):
    for state in instances(version.type):
        payload = encode(state)
        decoded = decode(version, payload, where="kind/0")
        assert decoded == state
        assert encode(decoded) == payload


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(source=st.data())
@pytest.mark.parametrize("version", EVERY, ids=lambda schema: f"{schema.kind}-{schema.version}")
def test_any_valid_instance_survives_being_checked_encoded_and_put_as_json(version, source):
    state = source.draw(strategy(shape_of(version.type)))
    assert checked(state) == state
    text = msgspec.json.encode(to_data(state))
    assert from_data(version, msgspec.json.decode(text), where="kind/0") == state


def test_default_instance_is_valid_where_every_field_has_a_default(version):
    if any(field.required for field in shape_of(version.type).fields):
        with pytest.raises(TypeError, match="Missing required argument"):
            version.type()
    else:
        assert checked(version.type()) == version.type()


def test_states_are_constructed_by_keyword_only(version):
    with pytest.raises(TypeError, match="positional"):
        version.type(*(0 for _ in version.type.__struct_fields__))


def test_longest_instance_fits_its_section(version):
    assert len(encode(largest(shape_of(version.type)))) <= max_encoded_len(shape_of(version.type)) <= version.max_len


def test_every_value_pushed_out_of_its_bounds_is_refused_by_its_path(version):
    shape = shape_of(version.type)
    data = plain(full(shape, Random(2)))
    tried = 0
    for path, site, value in sites(shape, data):
        for wrong in outside(site, value):
            if wrong is not None and path == ():
                continue
            where = f"kind/0.{spelled(path)}" if path else "kind/0"
            assert f"{where} is " in refusal(version, msgspec.msgpack.encode(replaced(data, path, wrong)))
            tried += 1
    assert tried > len(shape.fields)


def test_integers_beyond_64_bits_are_refused_by_their_path(version):
    shape = shape_of(version.type)
    state = full(shape, Random(3))
    for path, site, _ in sites(shape, to_data(state)):
        if isinstance(site, Int) and site.maximum == (1 << 64) - 1:
            with pytest.raises(ImageError) as refused:
                from_data(version, replaced(to_data(state), path, 1 << 64), where="kind/0")
            assert f"kind/0.{spelled(path)} is {1 << 64}" in str(refused.value)


def test_unknown_missing_and_reordered_fields_are_refused_by_name_at_every_level(version):
    shape = shape_of(version.type)
    data = plain(full(shape, Random(4)))
    for path, site, value in sites(shape, data):
        inner = site.inner if isinstance(site, Maybe) else site
        if not isinstance(inner, Fields) or not isinstance(value, dict):
            continue
        more = replaced(data, path, {**value, "no_such_field": 0})
        below = f"kind/0.{spelled((*path, 'no_such_field'))}"
        assert f"{below} is there, must be absent" in refusal(version, msgspec.msgpack.encode(more))
        for name in value:
            less = replaced(data, path, {other: each for other, each in value.items() if other != name})
            assert name in refusal(version, msgspec.msgpack.encode(less))
        if len(value) > 1:
            turned = replaced(data, path, dict(reversed(value.items())))
            assert "not in canonical form" in refusal(version, msgspec.msgpack.encode(turned))


def test_truncated_and_extended_payloads_are_refused(version):
    payload = encode(full(shape_of(version.type), Random(5)))
    for length in {*range(0, len(payload), max(1, len(payload) // 50)), len(payload) - 1}:
        assert "section kind/0" in refusal(version, payload[:length])
    assert "section kind/0" in refusal(version, payload + b"\x00")


def test_random_bytes_are_refused_or_are_the_state_they_spell(version):
    rng = Random(6)
    payload = bytearray(encode(full(shape_of(version.type), rng)))
    for _ in range(300):
        mutant = payload.copy()
        for _ in range(rng.randint(1, 3)):
            mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        assert said_of(version, bytes(mutant)) in {"the same bytes", "refused by name"}


def said_of(version: Schema, payload: bytes) -> str:
    try:
        state = decode(version, payload, where="kind/0")
    except ImageError as error:
        return "refused by name" if "kind/0" in str(error) else str(error)
    return "the same bytes" if encode(state) == payload else "other bytes"


def test_every_value_is_bounded_and_has_one_spelling(version):
    shape = shape_of(version.type)  # raises, naming the field, for what is not
    assert schema_of(checked(full(shape, Random(7)))) is version
    assert version.type.__struct_config__.forbid_unknown_fields


def test_schema_file_and_msgpack_alone_are_enough_to_read_and_write_a_section(version):
    content = schema_file(f"{version.kind}/{version.version}.json")
    assert content is not None
    reader = Reader(content)
    for state in instances(version.type, seed=8):
        payload = encode(state)
        leaves = reader.read(payload)
        assert {f"x.{path}": value for path, value in leaves.items()} == dict(flat(state, "x"))
        assert reader.write(leaves) == payload


def test_every_leaf_is_found_by_its_path(version):
    state = full(shape_of(version.type), Random(9))
    for path, value in flat(state, "kind/0"):
        found = locate(state, path.removeprefix("kind/0"), where="kind/0")
        assert (found.path, found.value) == (path, value)


def test_converters_take_every_valid_instance_up_and_let_it_come_back(version):
    """What an upgrade makes of a state can always go back, and going up again gives the same."""
    refused: list[str] = []

    def refuse(path, value, expected):
        refused.append(f"{path} is {value}, must be {expected}")

    steps = {(step.from_version, step.to_version): step.run for step in kind_steps(version.kind)}
    up, down = (version.version, version.version + 1), (version.version + 1, version.version)
    for state in instances(version.type, seed=10) if up in steps else ():
        before = encode(state)
        newer = checked(steps[up](state))
        older = checked(steps[down](newer, refuse))
        assert encode(state) == before, "the upgrade changed its input"
        assert refused == []
        assert encode(checked(steps[up](older))) == encode(newer)


def test_importing_all_of_state_brings_in_no_system_call_module_and_nothing_heavy():
    program = """
import sys, pkgutil, importlib, snapkit.state
for found in pkgutil.walk_packages(snapkit.state.__path__, "snapkit.state."):
    importlib.import_module(found.name)
unwanted = {"fcntl", "ctypes", "mmap", "termios", "select", "signal", "numpy", "zstandard", "click", "elftools", "threading"}
print(len(sys.modules), *sorted(unwanted & set(sys.modules)))
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.split()[1:] == []
