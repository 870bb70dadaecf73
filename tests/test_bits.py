"""Registers: masks, access modes, the checks made when one is declared."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapkit.bits import Field, Register, bit, bits
from snapkit.errors import InternalError


class Sample(Register, width=16, reset=0x0102, ref="test, sample register"):
    MODE = bits(3, 0, "what it does")
    BUSY = bit(4, "at work", "ro")
    GO = bit(5, "start", "wo")
    DONE = bit(6, "finished", "w1c")
    ARM = bit(7, "armed until served", "w1s")
    OE = bit(8, "overrun; cleared by reading", "rc")
    # 15:9 are reserved


words = st.integers(0, 0xFFFF)


def test_a_field_is_its_mask_and_arithmetic_gives_plain_ints():
    assert Sample.MODE == 0x000F
    assert Sample.OE == 0x0100
    assert type(0xFFFF & Sample.MODE) is int
    assert type(Sample.MODE | Sample.BUSY) is int
    assert type(~Sample.MODE) is int


def test_a_field_carries_its_declaration():
    assert isinstance(Sample.MODE, Field)
    field = Sample.MODE
    assert (field.name, field.msb, field.lsb, field.doc, field.access) == ("MODE", 3, 0, "what it does", "rw")
    assert repr(Sample.MODE) == "<MODE [3:0] rw>"
    assert repr(Sample.BUSY) == "<BUSY [4] ro>"


def test_a_field_reads_and_places_its_value():
    nibble = bits(7, 4, "a nibble")
    assert nibble.get(0xA5) == 0xA
    assert nibble.put(0xA) == 0xA0
    assert nibble.put(0x1F) == 0xF0


def test_a_field_survives_copying():
    assert copy.copy(Sample.MODE) is Sample.MODE
    assert copy.deepcopy([Sample.MODE])[0] is Sample.MODE


def test_the_masks_follow_the_access_modes():
    assert Sample.writable == 0x2F
    assert Sample.w1c == 0x40
    assert Sample.w1s == 0x80
    assert Sample.read_clear == 0x100
    assert Sample.defined == 0x1FF
    assert [field.name for field in Sample.fields] == ["MODE", "BUSY", "GO", "DONE", "ARM", "OE"]


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        (0x0000, 0x000F, 0x000F),  # rw takes
        (0x000F, 0x0000, 0x0000),
        (0x0010, 0x0000, 0x0010),  # ro stays
        (0x0000, 0x0010, 0x0000),
        (0x0000, 0x0020, 0x0020),  # wo takes
        (0x0040, 0x0040, 0x0000),  # w1c clears, never sets
        (0x0040, 0x0000, 0x0040),
        (0x0000, 0x0040, 0x0000),
        (0x0000, 0x0080, 0x0080),  # w1s sets, never clears
        (0x0080, 0x0000, 0x0080),
        (0x0100, 0x0000, 0x0100),  # rc is not written
        (0x8000, 0x0000, 0x8000),  # reserved stays
        (0x0000, 0x8000, 0x0000),
    ],
)
def test_a_write_is_merged_by_access_mode(old, new, merged):
    assert Sample.merge(old, new) == merged


@given(old=words, new=words)
def test_a_write_never_touches_what_the_guest_may_not_write(old, new):
    changed = old ^ Sample.merge(old, new)
    assert changed & ~(Sample.writable | Sample.w1c | Sample.w1s) == 0


@given(value=words)
def test_reading_clears_read_clear_fields_only(value):
    assert Sample.after_read(value) == value & ~0x100


@given(value=words)
def test_decode_loses_no_bit(value):
    decoded = dict(Sample.decode(value))
    rebuilt = decoded.pop("reserved", 0)
    for field in Sample.fields:
        rebuilt |= field.put(decoded[field.name])
    assert rebuilt == value


def test_decode_names_reserved_bits_only_when_set():
    assert ("reserved", 0x8000) in Sample.decode(0x8001)
    assert "reserved" not in dict(Sample.decode(0x01FF))


def test_the_description_is_json():
    described = json.loads(json.dumps(Sample.describe()))
    assert described["name"] == "Sample"
    assert described["width"] == 16
    assert described["ref"] == "test, sample register"
    assert described["fields"][0] == {"name": "MODE", "msb": 3, "lsb": 0, "doc": "what it does", "access": "rw"}


def test_overlapping_fields_are_refused():
    with pytest.raises(InternalError, match=r"register Bad field B .*overlaps"):

        class Bad(Register, width=8, ref="none"):
            A = bits(3, 0, "")
            B = bits(4, 3, "")


@pytest.mark.parametrize("field", [bit(8, ""), bits(9, 7, ""), bits(2, 4, ""), bit(-1, "")])
def test_a_field_outside_its_register_is_refused(field):
    with pytest.raises(InternalError, match="must lie in"):
        type("Bad", (Register,), {"A": field}, width=8, ref="none")


def test_an_unknown_access_mode_is_refused():
    with pytest.raises(InternalError, match="access 'rx'"):

        class Bad(Register, width=8, ref="none"):
            A = bit(0, "", "rx")


def test_a_reset_value_too_wide_is_refused():
    with pytest.raises(InternalError, match="must fit in 8 bits"):

        class Bad(Register, width=8, reset=0x100, ref="none"):
            A = bit(0, "")
