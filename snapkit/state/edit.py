"""Change one value of a State by its path, as `inspect` understands paths: ``vcpu-x86-64/0.sregs.cr0.PG=0``.

What stands right of the first ``=`` outside of brackets is read by the shape of what is there: a number (decimal, ``0x``,
negative where that may be) or its name, ``true`` or ``false``, a word, text as it is, a byte string in hexadecimal,
``none`` for a value that may be absent, and JSON, as `snapkit.state.codec.to_data` gives it, for a list or a State.
"""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from snapkit.bits import Field as Bits
from snapkit.errors import ConfigError, Finding, ImageError
from snapkit.state.codec import checked
from snapkit.state.inspect import Located, look_up, number_of, split_path
from snapkit.state.schema import SectionId, State
from snapkit.state.shape import Bool, Bytes, Fields, Int, Items, Maybe, Shape

_ASSIGNMENT = re.compile(r"((?:[^=\[]|\[[^\]]*\])+)=(.*)", re.DOTALL)


def split_assignment(text: str) -> tuple[str, str]:
    """Split ``PATH=VALUE``. Raises ConfigError when it is none."""
    match = _ASSIGNMENT.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text!r} is no change, must be PATH=VALUE, like vcpu-x86-64/0.sregs.cr0.PG=0")
    return match[1], match[2]


def with_value(sections: Mapping[SectionId, State], path: str, text: str) -> dict[SectionId, State]:
    """Return *sections* with the value at *path* as *text* says; those given stay as they are.

    Raises ConfigError, naming the path, when nothing is there, or *text* is nothing that could be.
    """
    section, rest = split_path(path)
    if section not in sections:
        look_up(sections, path)  # says what there is
    changed = checked(sections[section], where=str(section))
    located = look_up({section: changed}, path)
    value = _read(located.shape, text, located.path)
    if not rest:
        changed = value
    else:
        _put(located, value)
    try:
        return {**sections, section: checked(changed, where=str(section))}
    except ImageError as error:
        raise ConfigError(f"{located.path} cannot be {text}", findings=error.findings) from error


def _put(located: Located, value: Any) -> None:
    within, step = located.within, located.step
    assert within is not None
    if isinstance(step, Bits):
        _put(within, within.value & ~step | step.put(value))
    elif isinstance(step, int):
        within.value[step] = value
    else:
        assert step is not None
        setattr(within.value, step, value)


def _read(shape: Shape, text: str, path: str) -> Any:
    if isinstance(shape, Maybe):
        if text == "none":
            return None
        shape = shape.inner
    match shape:
        case Int():
            return _read_int(shape, text, path)
        case Bool():
            if text not in {"true", "false"}:
                raise _refusal(path, text, "true or false")
            return text == "true"
        case Bytes():
            try:
                return bytes.fromhex(text)
            except ValueError as error:
                raise _refusal(path, text, "hexadecimal digits, two a byte") from error
        case Fields() | Items():
            try:
                return _from_data(shape, msgspec.json.decode(text))
            except (msgspec.DecodeError, TypeError, UnicodeEncodeError) as error:
                raise _refusal(path, text, f"JSON as `snapkit decode` gives it: {error}") from error
        case _:
            return text


def _read_int(shape: Int, text: str, path: str) -> int:
    named = [value for value, name in (shape.names or {}).items() if name == text]
    sign = -1 if text.startswith("-") else 1
    number = named[0] if named else number_of(text.removeprefix("-"))
    if number is None or not shape.minimum <= sign * number <= shape.maximum:
        wanted = f"{shape.minimum} to {shape.maximum:#x}"
        raise _refusal(path, text, f"{wanted}, or its name" if shape.names else wanted)
    return sign * number


def _from_data(shape: Shape, fields: Any) -> Any:
    match shape:
        case Maybe(inner=inner):
            return None if fields is None else _from_data(inner, fields)
        case Items(item=item):
            return [_from_data(item, each) for each in fields]
        case Fields(type=cls):
            return msgspec.convert(fields, cls)
        case Bytes():
            return msgspec.convert(fields, bytes)
        case _:
            return fields


def _refusal(path: str, text: str, expected: str) -> ConfigError:
    component, _, rest = path.partition(".")
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return ConfigError("a value cannot be", findings=[Finding(component, rest, repr(shown), expected)])
