"""How two machines differ, by path: pure, over States of the same versions.

A register differs by field, a byte string by range (``.lapic[912:916]``), a list by item. Items that a value names (MSRs,
registers of aarch64) are compared by that name wherever they stand, and called by it. Of other lists the place counts, as
it does for queues and channels; where one list is longer, what was put in or taken out is looked for. Paths are those of
the first machine where it has one.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, Final, NamedTuple

import msgspec

from snapkit.state.codec import encode
from snapkit.state.inspect import as_data, bare, show_scalar
from snapkit.state.schema import SectionId, State
from snapkit.state.shape import Fields, Int, Items, Shape, shape_of

ABSENT: Final = msgspec.UNSET
_JOIN_LEN = 4
"""Ranges of bytes that are less than this apart are told as one."""
_SHOWN_LEN = 80
_MATCH_MAX = 1 << 20
"""Pairs of items that are looked at to find what was put in or taken out; beyond it only the places count."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that is *before* in one machine and *after* in the other, `ABSENT` where one has none."""

    path: str
    shape: Shape
    before: Any
    after: Any
    name: str = ""
    """Of the list item that it is in, where that has one: ``SCTLR_EL1``."""

    def __str__(self) -> str:
        name = f" {self.name}" if self.name else ""
        return f"{self.path}{name}: {self.text(self.before)} -> {self.text(self.after)}"

    def text(self, value: object) -> str:
        """Write one of both values for people, short."""
        if value is ABSENT:
            return "absent"
        if isinstance(value, (State, list)):
            shown = msgspec.json.encode(value).decode()
        elif isinstance(value, bytes) and len(value) <= _SHOWN_LEN // 2:
            shown = value.hex() or "0 bytes"
        else:
            shown = show_scalar(self.shape, value)
        return shown if len(shown) <= _SHOWN_LEN else f"{shown[: _SHOWN_LEN - 3]}..."

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON-able data, without the value that is absent; byte strings are base64 text."""
        values = {"before": self.before, "after": self.after}
        told: dict[str, Any] = {"path": self.path, "name": self.name} if self.name else {"path": self.path}
        return told | {side: as_data(value) for side, value in values.items() if value is not ABSENT}


def differences(before: Mapping[SectionId, State], after: Mapping[SectionId, State]) -> Iterator[Difference]:
    """Give every difference between two machines whose sections are of the same versions."""
    for section in dict.fromkeys((*before, *after)):
        old, new = before.get(section), after.get(section)
        if old is None or new is None:
            there = old or new
            assert there is not None
            one, other = (ABSENT if state is None else state for state in (old, new))
            yield Difference(str(section), shape_of(type(there)), one, other)
        elif encode(old) != encode(new):
            yield from state_differences(old, new, str(section))


def state_differences(before: State, after: State, path: str) -> Iterator[Difference]:
    """Give every difference between two States of one class."""
    yield from _compare(shape_of(type(before)), before, after, path)


def _compare(shape: Shape, before: Any, after: Any, path: str) -> Iterator[Difference]:
    if before is ABSENT or after is ABSENT:
        yield Difference(path, shape, before, after)
        return
    if before == after:
        return
    shape = bare(shape, before if after is not None else None)
    if before is None or after is None:
        yield Difference(path, shape, before, after)
        return
    match shape:
        case Fields(fields=fields):
            for field in fields:
                names = getattr(before, field.name), getattr(after, field.name)
                yield from _compare(field.shape, *names, f"{path}.{field.name}")
        case Items(item=item):
            yield from _compare_lists(item, before, after, path)
        case Int(register=register) if register is not None:
            for bits in register.fields:
                if (before ^ after) & bits:
                    top = bits.get(int(bits))
                    yield Difference(
                        f"{path}.{bits.name}", Int(minimum=0, maximum=top), bits.get(before), bits.get(after)
                    )
            if (before ^ after) & ~register.defined:
                yield Difference(path, shape, before, after)
        case _ if isinstance(before, bytes) and len(before) == len(after):
            for start, stop in _ranges(before, after):
                yield Difference(f"{path}[{start}:{stop}]", shape, before[start:stop], after[start:stop])
        case _:
            yield Difference(path, shape, before, after)


def _compare_lists(item: Shape, before: list[Any], after: list[Any], path: str) -> Iterator[Difference]:
    naming = _naming(item)
    for old, new in _pairs(naming, before, after):
        place = f"{path}[{new if old is None else old}]"
        one: Any = ABSENT if old is None else before[old]
        other: Any = ABSENT if new is None else after[new]
        found = _compare(item, one, other, place)
        if naming is not None:
            name = naming.names.get(getattr(other if old is None else one, naming.field), "")
            found = (replace(each, name=name) for each in found)
        yield from found


class _Naming(NamedTuple):
    """The field whose values name the items of a list, and the names."""

    field: str
    names: Mapping[int, str]


def _pairs(naming: _Naming | None, before: list[Any], after: list[Any]) -> Iterator[tuple[int | None, int | None]]:
    """Say which item of one list is which of the other, by place; None where there is none."""
    if naming is not None:
        places = [{getattr(value, naming.field): at for at, value in enumerate(each)} for each in (before, after)]
        if [len(each) for each in places] == [len(before), len(after)]:
            yield from ((places[0].get(name), places[1].get(name)) for name in dict.fromkeys((*places[0], *places[1])))
            return
    shorter, longer = sorted((len(before), len(after)))
    if shorter == longer or shorter * longer > _MATCH_MAX:
        for at in range(longer):
            yield at if at < len(before) else None, at if at < len(after) else None
        return
    old_items, new_items = ([msgspec.msgpack.encode(value) for value in each] for each in (before, after))
    matcher = SequenceMatcher(None, old_items, new_items, autojunk=False)
    for _tag, a_start, a_stop, b_start, b_stop in matcher.get_opcodes():
        for at in range(max(a_stop - a_start, b_stop - b_start)):
            old, new = a_start + at, b_start + at
            yield old if old < a_stop else None, new if new < b_stop else None


def _naming(item: Shape) -> _Naming | None:
    """Return what names the items of a list, if exactly one of their fields does."""
    if not isinstance(item, Fields):
        return None
    shapes = [(field.name, field.shape) for field in item.fields]
    named = [_Naming(name, shape.names) for name, shape in shapes if isinstance(shape, Int) and shape.names]
    return named[0] if len(named) == 1 else None


def _ranges(before: bytes, after: bytes) -> list[tuple[int, int]]:
    """Return where two byte strings of one length differ, as (start, end)."""
    ranges: list[tuple[int, int]] = []
    for at, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new:
            if ranges and at - ranges[-1][1] < _JOIN_LEN:
                ranges[-1] = (ranges[-1][0], at + 1)
            else:
                ranges.append((at, at + 1))
    return ranges
