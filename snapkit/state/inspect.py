"""Looking into States: a path to a value, a tree for people, a flat list for comparing.

A section path is ``kind/instance``, then ``.field`` and ``[index]``: ``vcpu-x86-64/0.sregs.cr3``. Beyond that, for people:

- ``.sregs.cr0.PG`` is one field of a register;
- ``.cpuid[function=1]`` is the one list item whose fields have these values (``[function=4,index=1]``, ``0x`` allowed);
- ``.msrs[MSR_IA32_TSC]`` is the list item that has a field with a value of that name.

In the tree a register is shown in hexadecimal with the names of its set fields, other integers above 9 in decimal and
hexadecimal up to 16 bits and in hexadecimal above, byte strings as their length and their first bytes in hexadecimal, and
of a long list the first items. As data (`as_data`) byte strings are base64 text, as in `snapkit.state.codec.to_data`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from snapkit.bits import Field as Bits
from snapkit.errors import ConfigError
from snapkit.state.schema import SectionId, State
from snapkit.state.shape import Fields, Int, Items, Maybe, Shape, shape_of

_SECTION = re.compile(r"([a-z0-9][a-z0-9_-]{0,31})/([a-z0-9][a-z0-9_-]{0,31})(.*)", re.DOTALL)
_PART = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)|\[([^\[\]]+)\]")
_BYTES_SHOWN, _ITEMS_SHOWN, _LINE_LEN = 16, 8, 110


@dataclass(frozen=True, slots=True)
class Located:
    """A value inside a State, with its full *path* and its *shape*; *within* which other, and how to get from there."""

    path: str
    value: Any
    shape: Shape
    within: "Located | None" = None
    step: str | int | Bits | None = None


def split_path(text: str) -> tuple[SectionId, str]:
    """Split a section path into the section and what follows it (empty, or starting with ``.``).

    Raises ConfigError when it does not begin with ``kind/instance``.
    """
    match = _SECTION.fullmatch(text)
    if match is None:
        raise ConfigError(f"path is {text!r}, must begin with kind/instance, like vcpu-x86-64/0.sregs.cr3")
    return SectionId(match[1], match[2]), match[3]


def find_section(sections: Mapping[SectionId, object], where: SectionId) -> None:
    """Make sure that *where* is one of *sections*; raises ConfigError naming what there is."""
    if where in sections:
        return
    instances = [each.instance for each in sections if each.kind == where.kind]
    if instances:
        raise ConfigError(f"there is no {where}: {where.kind} has the instances {', '.join(instances)}")
    kinds = ", ".join(dict.fromkeys(each.kind for each in sections)) or "nothing"
    raise ConfigError(f"there is no {where}: there are {kinds}")


def locate(state: State, rest: str, *, where: str) -> Located:
    """Find the value that *rest* (``.sregs.cr3``, empty for all of it) names in *state*, the section *where*.

    Raises ConfigError naming the nearest part that exists and what is there.
    """
    here = Located(where, state, shape_of(type(state)))
    position = 0
    while position < len(rest):
        match = _PART.match(rest, position)
        if match is None:
            raise ConfigError(
                f"path {where}{rest} cannot be read from {rest[position:]!r} on, must be .field or [index]"
            )
        here = _field(here, match[1]) if match[1] else _item(here, match[2])
        position = match.end()
    return here


def look_up(sections: Mapping[SectionId, State], path: str) -> Located:
    """Find the value that *path* names in *sections*; raises ConfigError like `split_path` and `locate`."""
    where, rest = split_path(path)
    find_section(sections, where)
    return locate(sections[where], rest, where=str(where))


def bare(shape: Shape, value: object) -> Shape:
    """Return the shape of what is there: of a value that may be absent and is not, the value's own."""
    return shape.inner if isinstance(shape, Maybe) and value is not None else shape


def _field(here: Located, name: str) -> Located:
    shape = bare(here.shape, here.value)
    if isinstance(shape, Fields):
        field = shape.field(name)
        if field is not None:
            return Located(f"{here.path}.{name}", getattr(here.value, name), field.shape, here, name)
        names = ", ".join(field.name for field in shape.fields)
        raise ConfigError(f"{here.path} has no field {name}, it has {names}")
    if isinstance(shape, Int) and shape.register is not None:
        for bits in shape.register.fields:
            if bits.name == name:
                top = (1 << (bits.msb - bits.lsb + 1)) - 1
                field_shape = Int(minimum=0, maximum=top, doc=bits.doc)
                return Located(f"{here.path}.{name}", bits.get(here.value), field_shape, here, bits)
        names = ", ".join(bits.name for bits in shape.register.fields)
        raise ConfigError(f"{here.path} has no field {name}, the register {shape.register.__name__} has {names}")
    raise ConfigError(f"{here.path} is {_brief(shape, here.value)}, it has no field {name}")


def _item(here: Located, selector: str) -> Located:
    shape = bare(here.shape, here.value)
    if not isinstance(shape, Items):
        raise ConfigError(f"{here.path} is {_brief(shape, here.value)}, it has no items")
    number = number_of(selector)
    if number is not None:
        if not 0 <= number < len(here.value):
            raise ConfigError(f"{here.path} has {len(here.value)} items, there is no [{selector}]")
        return Located(f"{here.path}[{number}]", here.value[number], shape.item, here, number)
    found = [index for index, value in enumerate(here.value) if _selects(selector, shape.item, value)]
    if len(found) != 1:
        which = f"{len(found)} items, like [{found[0]}] and [{found[1]}]" if found else "no item"
        raise ConfigError(f"{here.path} has {which} for [{selector}], of {len(here.value)}")
    return Located(f"{here.path}[{found[0]}]", here.value[found[0]], shape.item, here, found[0])


def number_of(text: str) -> int | None:
    """Read a number as paths have them, decimal or ``0x``; None for what is none."""
    return int(text, 0) if re.fullmatch(r"0[xX][0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,19}", text) else None


def _selects(selector: str, shape: Shape, value: object) -> bool:
    """Tell whether the list item *value* is one that *selector* (``NAME`` or ``field=value,...``) means."""
    if not isinstance(shape, Fields):
        return False
    named = {
        field.name: field.shape.names for field in shape.fields if isinstance(field.shape, Int) and field.shape.names
    }
    if "=" not in selector:
        return any(names.get(getattr(value, field)) == selector for field, names in named.items())
    for part in selector.split(","):
        name, _, wanted = part.strip().partition("=")
        if shape.field(name) is None:
            return False
        there, number = getattr(value, name), number_of(wanted)
        if there != (wanted if number is None else number) and named.get(name, {}).get(there) != wanted:
            return False
    return True


def as_data(value: object) -> Any:
    """Return *value*, or a State, as JSON-able data; byte strings are base64 text."""
    return msgspec.to_builtins(value)


def flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Give every scalar and byte string below *value* with its path; an empty list gives itself."""
    if isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from flat(getattr(value, name), f"{path}.{name}")
    elif isinstance(value, list) and value:
        for index, item in enumerate(value):
            yield from flat(item, f"{path}[{index}]")
    else:
        yield path, value


def tree(located: Located, *, whole: bool = False) -> Iterator[str]:
    """Give *located* as lines of text for people; *whole* shortens no list and no byte string."""
    yield from _lines(located.path, located.shape, located.value, "", whole)


def show_scalar(shape: Shape, value: Any, *, whole: bool = False) -> str:
    """Write one value, not a State or a list, for people."""
    shape = bare(shape, value)
    if isinstance(value, bytes):
        return _show_bytes(value, whole)
    if isinstance(shape, Int):
        return _show_int(shape, value)
    return "none" if value is None else str(value)


def _show_int(shape: Int, value: int) -> str:
    if shape.register is not None:
        fields = []
        for name, field in shape.register.decode(value):
            single = any(bits.name == name and bits.msb == bits.lsb for bits in shape.register.fields)
            if field:
                fields.append(name if single else f"{name}={field:#x}" if field > 9 else f"{name}={field}")
        return " ".join([f"{value:#0{shape.register.width // 4 + 2}x}", *fields])
    name = f" {shape.names[value]}" if shape.names and value in shape.names else ""
    if -10 < value < 10:
        return f"{value}{name}"
    return f"{value} ({value:#x}){name}" if abs(value) <= 0xFFFF else f"{value:#x}{name}"


def _show_bytes(value: bytes, whole: bool) -> str:
    if not value:
        return "0 bytes"
    what = f"{len(value)} bytes: " if len(value) > 1 else "1 byte: "
    if not any(value):
        return f"{what}all zero"
    return f"{what}{value.hex()}" if whole or len(value) <= _BYTES_SHOWN else f"{what}{value[:_BYTES_SHOWN].hex()}..."


def _brief(shape: Shape, value: Any) -> str:
    match shape:
        case Fields():
            return f"a {shape.type.__name__}"
        case Items():
            return f"a list of {len(value)}"
        case _:
            return show_scalar(shape, value)


def _lines(name: str, shape: Shape, value: Any, indent: str, whole: bool) -> Iterator[str]:
    shape = bare(shape, value)
    match shape:
        case Fields(fields=fields):
            if indent and _is_flat(shape):
                line = f"{indent}{name}: {_one_line(shape, value)}"
                if len(line) <= _LINE_LEN:
                    yield line
                    return
            yield f"{indent}{name}"
            for field in fields:
                yield from _lines(field.name, field.shape, getattr(value, field.name), f"{indent}  ", whole)
        case Items(item=item):
            yield from _list_lines(name, item, value, indent, whole)
        case _:
            yield f"{indent}{name}: {show_scalar(shape, value, whole=whole)}"


def _list_lines(name: str, item: Shape, value: list[Any], indent: str, whole: bool) -> Iterator[str]:
    shown = value if whole else value[:_ITEMS_SHOWN]
    left = len(value) - len(shown)
    if not value:
        yield f"{indent}{name}: empty"
    elif isinstance(item, (Fields, Items, Maybe)):
        yield f"{indent}{name}: {len(value)} item{'s' if len(value) > 1 else ''}"
        for index, each in enumerate(shown):
            yield from _lines(f"[{index}]", item, each, f"{indent}  ", whole)
        if left:
            yield f"{indent}  ... {left} more, up to [{len(value) - 1}]"
    else:
        words = [show_scalar(item, each, whole=whole) for each in shown]
        more = [f"... {left} more"] if left else []
        yield f"{indent}{name}: [{', '.join([*words, *more])}]"


def _is_flat(shape: Fields) -> bool:
    return all(isinstance(field.shape, Int) and field.shape.register is None for field in shape.fields)


def _one_line(shape: Fields, value: Any) -> str:
    parts = []
    for field in shape.fields:
        assert isinstance(field.shape, Int)
        number = getattr(value, field.name)
        name = f" {field.shape.names[number]}" if field.shape.names and number in field.shape.names else ""
        parts.append(f"{field.name}={number if -10 < number < 10 else f'{number:#x}'}{name}")
    return " ".join(parts)
