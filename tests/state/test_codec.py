"""The codec: one spelling per section, refusals that name the field and the value."""

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from snapkit.errors import Finding, ImageError
from snapkit.state import converters
from snapkit.state.codec import HandingOver, adopted, checked, decode, encode, from_data, to_data
from snapkit.state.schema import I8, U8, U64, State, current, schema


class Channel(State):
    """A part."""

    mode: U8
    load: U64 = 0


class Timer1(State):
    """A timer."""

    channels: Annotated[list[Channel], Meta(max_length=3)]
    shift: I8 = 0
    page: Annotated[bytes, Meta(max_length=64)] = b""
    profile: Literal["host", "baseline"] = "host"


@pytest.fixture(autouse=True)
def private_kind():
    with converters.temporary(kinds=("timer",)):
        schema("timer", version=1, max_len=1024)(Timer1)
        yield


def timer(**fields):
    return Timer1(**{"channels": [Channel(mode=1, load=2)], **fields})


def refusal_of(payload):
    with pytest.raises(ImageError) as refused:
        decode(current("timer"), payload, where="timer/0")
    return str(refused.value)


def packed(**fields):
    return msgspec.msgpack.encode({**msgspec.msgpack.decode(encode(timer())), **fields})


def test_encoding_decodes_to_an_equal_detached_state():
    state = timer(page=b"abc", shift=-3)
    decoded = decode(current("timer"), encode(state), where="timer/0")
    assert decoded == state
    assert isinstance(decoded, Timer1)
    decoded.channels.append(Channel(mode=0))
    assert len(state.channels) == 1


def test_value_out_of_bounds_is_refused_by_path_with_the_value():
    assert "timer/0.channels[0].mode is 256, must be int <= 255" in refusal_of(packed(channels=[{"mode": 256}]))
    assert "timer/0.shift is -129, must be int >= -128" in refusal_of(packed(shift=-129))
    assert "timer/0.channels[0].load is -1, must be int >= 0" in refusal_of(packed(channels=[{"mode": 1, "load": -1}]))


def test_value_of_another_type_is_refused_by_path():
    assert "timer/0.page is 'text', must be bytes" in refusal_of(packed(page="text"))
    assert "timer/0.shift is True, must be int" in refusal_of(packed(shift=True))
    assert "timer/0.channels[0].mode is 1.0, must be int" in refusal_of(packed(channels=[{"mode": 1.0}]))
    assert "timer/0 is list of length 0" in refusal_of(b"\x90") or "timer/0 is [], must be object" in refusal_of(
        b"\x90"
    )


def test_too_long_lists_and_bytes_are_refused_by_path():
    assert "timer/0.page is bytes of length 65, must be bytes of length <= 64" in refusal_of(packed(page=bytes(65)))
    assert "timer/0.channels is list of length 17, must be array of length <= 3" in refusal_of(
        packed(channels=[0] * 17)
    )


def test_missing_and_unknown_fields_are_refused_by_name():
    assert "timer/0.channels is missing, must be present" in refusal_of(b"\x80")
    assert "timer/0.channels[0].mode is missing, must be present" in refusal_of(packed(channels=[{}]))
    assert "timer/0.surprise is there, must be absent" in refusal_of(packed(surprise=1))


def test_choice_outside_its_list_is_refused():
    assert "timer/0.profile is 'best', must be valid: invalid enum value 'best'" in refusal_of(packed(profile="best"))


def test_other_spellings_of_the_same_values_are_refused():
    canonical = encode(timer(channels=[]))
    plain = msgspec.msgpack.decode(canonical)
    reordered = msgspec.msgpack.encode(dict(reversed(plain.items())))
    assert "not in canonical form: timer/0 has its fields out of order" in refusal_of(reordered)
    assert "not in canonical form: timer/0 lacks shift, page, profile" in refusal_of(b"\x81\xa8channels\x90")
    nested = packed(channels=[{"mode": 1}])
    assert "not in canonical form: timer/0.channels[0] lacks load" in refusal_of(nested)
    wide = canonical.replace(b"\xa5shift\x00", b"\xa5shift\xd0\x00")
    assert "not in canonical form: a value is spelled longer than needed" in refusal_of(wide)
    twice = b"\x85" + canonical[1:] + b"\xa5shift\x00"
    assert "not in canonical form" in refusal_of(twice)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x81",
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa8channels\xdd\xff\xff\xff\xff",
        b"\x81\xa1\xff\x00",
        b"\x84" * 900,
    ],
)
def test_what_is_not_msgpack_is_refused_without_a_traceback_or_an_allocation(payload):
    assert "section timer/0 version 1" in refusal_of(payload)


def test_bytes_after_the_state_are_refused():
    assert "trailing characters" in refusal_of(encode(timer()) + b"\x00")


def test_payload_longer_than_its_kind_allows_is_refused_undecoded():
    assert refusal_of(bytes(1025)) == "section timer/0 has 1025 bytes, timer allows 1024"


def test_checked_refuses_what_a_constructor_let_through():
    with pytest.raises(ImageError, match=r"timer.channels\[0\].mode is 300, must be int <= 255"):
        checked(timer(channels=[Channel(mode=300)]))
    with pytest.raises(ImageError, match=r"timer/7.shift is 'x', must be int"):
        checked(timer(shift="x"), where="timer/7")


def test_what_is_handed_over_is_adopted_as_it_is_once_and_copied_before_and_after():
    state = timer()
    assert adopted(state) is not state
    with HandingOver([state]):
        assert adopted(timer()) is not state
        assert adopted(state) is state
        assert adopted(state) is not state
    with HandingOver([state]):
        pass
    assert adopted(state) is not state
    assert adopted(state) == state


def test_adopting_checks_bounds_and_invariants_of_all_but_what_is_handed_over():
    def never(state, where):
        return [Finding(where, "shift", str(state.shift), "another")]

    with pytest.raises(ImageError) as caught:
        adopted(timer(shift=1000))
    assert caught.value.findings[0].path == "shift"
    with pytest.raises(ImageError) as caught:
        adopted(timer(shift=3), never, where="timer/0")
    assert caught.value.findings == (Finding("timer/0", "shift", "3", "another"),)
    state = timer(shift=3)
    with HandingOver([state]):
        assert adopted(state, never) is state


def test_integers_beyond_64_bits_are_refused_by_path_wherever_they_come_from():
    wide = 1 << 64
    expected = r"timer/0.channels\[1\].load is 18446744073709551616, must be an integer of 64 bits at most"
    with pytest.raises(ImageError, match=expected):
        checked(timer(channels=[Channel(mode=1), Channel(mode=1, load=wide)]), where="timer/0")
    from_json = {**to_data(timer()), "channels": [{"mode": 1, "load": 0}, {"mode": 1, "load": wide}]}
    with pytest.raises(ImageError, match=expected):
        from_data(current("timer"), from_json, where="timer/0")


def test_integer_subclass_is_refused_by_path():
    register = type("Mask", (int,), {})
    with pytest.raises(ImageError, match=r"timer.shift is 4, must be plain data, not Mask"):
        checked(timer(shift=register(4)))


def test_data_is_json_able_and_comes_back():
    state = timer(page=b"\x00\xff", shift=-1, channels=[Channel(mode=1, load=(1 << 64) - 1)])
    text = msgspec.json.encode(to_data(state))
    assert b'"page":"AP8="' in text
    assert from_data(current("timer"), msgspec.json.decode(text), where="timer/0") == state


def test_data_that_does_not_fit_is_refused_by_path():
    with pytest.raises(ImageError, match=r"timer/0.page is '!', must be valid: invalid base64"):
        from_data(current("timer"), {**to_data(timer()), "page": "!"}, where="timer/0")
    with pytest.raises(ImageError, match=r"timer/0.shift is 1.5, must be int"):
        from_data(current("timer"), {**to_data(timer()), "shift": 1.5}, where="timer/0")
