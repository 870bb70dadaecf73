"""The sweep: every scalar of every section, once put to each boundary, with nothing else changed.

Of a list the first item stands for all, but of registers that have numbers each; of alike sections the first; of the
machines those of the newest release, or where there is none of any all.
"""

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple

from snapkit.state.shape import Bool, Bytes, Choice, Int, Shape
from tests.mutants.draft import Draft
from tests.mutants.plain import Place
from tests.mutants.specimen import Specimen


class Step(NamedTuple):
    """One place of one machine, and the value that it gets."""

    machine: str
    part: int
    place: int
    value: Any


def boundaries(value: Any, shape: Shape) -> list[Any]:
    """Return the values next to what a field may hold, and next to what it holds."""
    match shape:
        case Int(minimum=low, maximum=high) if isinstance(value, int):
            half = high.bit_length() // 2
            near = {value - 1, value + 1, value ^ 1, value ^ 2, value ^ 8, value ^ 1 << half}
            ends = {low, low + 1, 2, high >> 1, (high >> 1) + 1, high - 1, high}
            outside = {one for one in (low - 1, high + 1) if -(1 << 63) <= one < 1 << 64}  # what msgpack can hold
            return sorted({one for one in near | ends if low <= one <= high} - {value} | outside)
        case Bool():
            return [not value, 2]
        case Bytes() if isinstance(value, bytes):
            return [b"", bytes(len(value)), b"\xff" * len(value), value[:-1], value + b"\0"]
        case Choice(words=words):
            return [*(word for word in words if word != value), ""]
    return []


def sweep(machines: list[Specimen]) -> list[Step]:
    """Return every step."""
    return list(_steps(machines))


def _steps(machines: list[Specimen]) -> Iterator[Step]:
    newest = max((machine.name.split(" ")[0] for machine in machines if machine.name[0].isdigit()), default="")
    seen: set[tuple[str, str, Any]] = set()
    for machine in machines:
        if not machine.name.startswith(newest):
            continue
        draft = Draft(machine, Random(0))
        for number, part in enumerate(draft.parts):
            for at, place in enumerate(draft.places(part)):
                family = (part.kind, place.family, _number(place))
                if family not in seen and (values := boundaries(place.value, place.shape)):
                    seen.add(family)
                    yield from (Step(machine.name, number, at, value) for value in values)


def _number(place: Place) -> Any:
    """Return which register a value is of, where registers stand in a list by their numbers."""
    return place.holder.get("id") if place.key == "value" and isinstance(place.holder, dict) else None


def swept(step: Step, machines: list[Specimen], rng: Random) -> Draft:
    """Return the machine of *step* with its one change."""
    draft = Draft(next(machine for machine in machines if machine.name == step.machine), rng)
    part = draft.parts[step.part]
    place = draft.places(part)[step.place]
    before = place.value
    place.put(step.value)
    draft.told.append(f"put_to_a_boundary: {part.name}.{place.path} was {before!r:.60}, is {step.value!r:.60}")
    return draft
