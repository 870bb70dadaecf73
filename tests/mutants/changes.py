"""The mutations: each changes a draft in one way, and says how. `mutate` makes a mutant by some of them.

Most machines that differ in one place are refused at once, so some mutations change several places together: a number or
a name wherever it stands, RAM in the layout and in the manifest, a ring and what lies in it, the tables of an ITS.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from snapkit.state.schema import KINDS
from tests.mutants.container import BYTES, CONTAINER
from tests.mutants.draft import Draft, Part
from tests.mutants.plain import Place
from tests.mutants.rings import RINGS
from tests.mutants.tables import TABLES
from tests.mutants.values import EDGES, another, change, number, swap

Mutation = Callable[[Draft, Random], str]


def mutate(draft: Draft, rng: Random) -> None:
    """Change *draft* in one place or a few."""
    tables = 20 if draft.find("gicv3-its") else 0
    group = rng.choices([FIELDS, SECTIONS, RINGS, CONTAINER, BYTES, TABLES], [62, 10, 14, 10, 4, tables])[0]
    for _ in range(rng.choice([1, 1, 1, 2, 3]) if group is not BYTES else 1):
        mutation: Mutation = rng.choice(group)
        draft.told.append(f"{mutation.__name__}: {mutation(draft, rng)}")


# Fields


def _pick(draft: Draft, rng: Random) -> tuple[Part, Place, list[Place]] | None:
    """Choose a kind, then a section, then a family of places, then one of them."""
    kind = rng.choice(sorted({part.kind for part in draft.parts}))
    part = rng.choice([part for part in draft.parts if part.kind == kind])
    found = draft.places(part)
    if not found:
        return None
    family = rng.choice(sorted({place.family for place in found}))
    place = rng.choice([place for place in found if place.family == family])
    siblings = [
        other
        for neighbour in draft.parts
        if neighbour.kind == kind
        for other in draft.places(neighbour)
        if other.family == family and (other.holder is not place.holder or other.key != place.key)
    ]
    return part, place, siblings


def change_a_field(draft: Draft, rng: Random) -> str:
    """Give one place another value."""
    picked = _pick(draft, rng)
    if picked is None:
        return "nothing"
    part, place, siblings = picked
    before = place.value
    change(place, draft.pool(), siblings, rng)
    return f"{part.name}.{place.path} was {before!r:.60}, is {place.value!r:.60}"


def change_a_number_everywhere(draft: Draft, rng: Random) -> str:
    """Replace a number wherever it stands, inside byte strings too: what must agree goes on agreeing."""
    numbers = [value for value in draft.pool().numbers if value > 4]
    if not numbers:
        return "nothing"
    old = rng.choice(numbers)
    bits = max(old.bit_length(), 8)
    new = number(old, 0, (1 << bits) - 1, draft.pool(), rng) if rng.random() < 0.8 else rng.choice(EDGES)
    for holder, key in draft.scalars():
        if type(holder[key]) is int and holder[key] == old:
            holder[key] = new
        elif isinstance(holder[key], bytes) and old > 0xFFFF and 0 <= new < 1 << 64:
            width = 8 if max(old, new) > 0xFFFF_FFFF else 4
            holder[key] = holder[key].replace(old.to_bytes(width, "little"), new.to_bytes(width, "little"))
    return f"{old:#x} to {new:#x}"


def rename_an_instance_everywhere(draft: Draft, rng: Random) -> str:
    """Give an instance another name, also where others name it as their owner."""
    old = rng.choice(sorted({part.instance for part in draft.parts}))
    new = rng.choice([*sorted({part.instance for part in draft.parts}), "x", "a-b_c", "0", "host-bridge", "q" * 32])
    for part in draft.parts:
        if part.instance == old:
            part.instance = new
    for holder, key in draft.scalars():
        if isinstance(holder[key], str) and holder[key].endswith(f"/{old}"):
            holder[key] = holder[key].removesuffix(old) + new
    return f"{old} to {new}"


def swap_two_lists(draft: Draft, rng: Random) -> str:
    """Exchange lists of one family between sections."""
    lists: dict[tuple[str, str], list[tuple[Part, Place]]] = {}
    for part in draft.parts:
        for place in draft.places(part):
            if isinstance(place.value, list):
                lists.setdefault((part.kind, place.family), []).append((part, place))
    several = [found for found in lists.values() if len(found) > 1]
    if not several:
        return "nothing"
    (first, one), (second, other) = rng.sample(rng.choice(several), 2)
    swap(one, other)
    return f"{first.name}.{one.path} and {second.name}.{other.path}"


def change_a_list(draft: Draft, rng: Random) -> str:
    """Make an item of a list be there twice, not at all, or elsewhere."""
    lists = [(part, place) for part in draft.parts for place in draft.places(part) if isinstance(place.value, list)]
    if not lists:
        return "nothing"
    part, place = rng.choice(lists)
    before = len(place.value)
    place.put(another(place.value, place.shape, draft.pool(), rng))
    return f"{part.name}.{place.path} of {before}"


def change_an_address(draft: Draft, rng: Random) -> str:
    """Put something that has a place in guest-physical memory to the edge of what is there."""
    words = {"gpa", "address", "desc", "driver", "device", "start", "base", "length"}
    found = [
        (part, place) for part in draft.parts for place in draft.places(part) if place.path.split(".")[-1] in words
    ]
    if not found:
        return "nothing"
    part, place = rng.choice(found)
    before = place.value
    place.put(rng.choice(EDGES))
    return f"{part.name}.{place.path} was {before!r}, is {place.value!r}"


# Sections


def remove_a_section(draft: Draft, rng: Random) -> str:
    """Leave one out."""
    part = draft.parts.pop(rng.randrange(len(draft.parts))) if draft.parts else None
    return part.name if part else "nothing"


def repeat_a_section(draft: Draft, rng: Random) -> str:
    """Have one twice, under its own name or another."""
    part = rng.choice(draft.parts)
    other = copy.deepcopy(part)
    other.instance = rng.choice([part.instance, "0", "1", "copy", *(one.instance for one in draft.parts)])
    draft.parts.insert(rng.randrange(len(draft.parts) + 1), other)
    return f"{part.name} as {other.name}"


def rename_a_section(draft: Draft, rng: Random) -> str:
    """Give one another kind or instance."""
    part = rng.choice(draft.parts)
    before = part.name
    if rng.random() < 0.5:
        part.kind = rng.choice([*sorted(KINDS), "unheard-of"])
    else:
        names = ["0", "1", "", "-", "A", "a/b", "../x", "x" * 33, *(one.instance for one in draft.parts)]
        part.instance = rng.choice(names)
    return f"{before} to {part.name}"


def swap_two_sections(draft: Draft, rng: Random) -> str:
    """Exchange what two sections hold, of one kind if there are such."""
    part = rng.choice(draft.parts)
    same = [one for one in draft.parts if one.kind == part.kind and one is not part]
    other = rng.choice(same or draft.parts)
    part.data, other.data = other.data, part.data
    return f"{part.name} and {other.name}"


def reorder_sections(draft: Draft, rng: Random) -> str:
    """Write them in another order: it means nothing."""
    rng.shuffle(draft.parts)
    return "all"


def relabel_a_section(draft: Draft, rng: Random) -> str:
    """Say another version, codec or length of one, or that it need not be there."""
    part = rng.choice(draft.parts)
    changes: list[dict[str, Any]] = [
        {"version": rng.choice([0, 1, 2, 9, 1 << 32])},
        {"required": not part.stored.required},
        {"codec": rng.choice(["zstd", "parent", ""])},
        {"length": rng.choice([0, 1, len(part.section().payload) + 1, 1 << 24, (1 << 63) - 1])},
        {"says": {rng.choice(["offset", "stored_length", "length"]): rng.choice([-1, 0, 1, 4096, *EDGES])}},
        {"says": {"digest": rng.choice(["", "00" * 32, "zz" * 32, "AB" * 32])}},
    ]
    chosen = rng.choice(changes)
    part.stored = replace(part.stored, **chosen)
    return f"{part.name} {chosen}"


def compress_a_section(draft: Draft, rng: Random) -> str:
    """Store one as zstd: that is allowed."""
    import zstandard

    part = rng.choice(draft.parts)
    payload = part.section().payload
    frames = zstandard.ZstdCompressor(write_content_size=rng.random() < 0.9)
    part.raw, part.stored = frames.compress(payload), replace(part.stored, codec="zstd", length=len(payload))
    return part.name


def spell_a_section_otherwise(draft: Draft, rng: Random) -> str:
    """Change bytes of a payload, its digest made right."""
    part = rng.choice(draft.parts)
    payload = bytearray(part.section().payload)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if payload:
            payload[rng.randrange(len(payload))] = rng.choice([0, 0x80, 0xC0, 0xCF, 0xDF, 0xFF, rng.randrange(256)])
    if rng.random() < 0.2:
        payload = payload[: rng.randrange(len(payload) + 1)] if rng.random() < 0.5 else payload + b"\xc0"
    part.raw = bytes(payload)
    return part.name


FIELDS: tuple[Mutation, ...] = (
    *(change_a_field,) * 10,
    change_a_number_everywhere,
    change_a_number_everywhere,
    rename_an_instance_everywhere,
    swap_two_lists,
    change_a_list,
    change_an_address,
)
SECTIONS: tuple[Mutation, ...] = (
    remove_a_section,
    repeat_a_section,
    rename_a_section,
    swap_two_sections,
    reorder_sections,
    relabel_a_section,
    compress_a_section,
    spell_a_section_otherwise,
)
