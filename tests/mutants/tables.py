"""Mutations of what KVM wrote into guest memory: the tables of an ITS, and the configuration and pending tables of LPIs.

A guest that keeps to its word never writes there, one that does not may write anything. Layout: Linux
Documentation/virt/kvm/devices/arm-vgic-its.rst, "ITS Table ABI REV0", restated here.
"""

import struct
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from tests.mutants.draft import Draft
from tests.mutants.values import EDGES, SMALL

Mutation = Callable[[Draft, Random], str]
VALID, INDIRECT = 1 << 63, 1 << 62
TABLE_LEN, ENTRY_LEN = 0x1_0000, 8
_ADDRESS = 0xFFFF_FFFF_0000
_LPI_TABLE = 0xF_FFFF_FFFF_F000
_LPIS, _LPI_BASE = 64, 8192
_FIELDS = {
    "device": ((4, 0), (48, 5), (62, 49), (63, 63)),
    "page": ((15, 0), (51, 16), (62, 62), (63, 63)),
    "event": ((15, 0), (47, 16), (63, 48)),
    "collection": ((15, 0), (51, 16), (63, 63)),
}
"""By kind of entry, the ends of its fields."""


def _basers(draft: Draft) -> list[int]:
    part = draft.find("gicv3-its")
    found = part.data.get("baser") if part is not None and isinstance(part.data, dict) else None
    registers = found if isinstance(found, list) else []
    return [one if isinstance(one, int) else 0 for one in [*registers, 0, 0][:2]]


def _entries(draft: Draft) -> Iterator[tuple[str, int]]:
    """Give kind and address of every entry that is there, and of the first ones that are not."""
    devices, collections = _basers(draft)
    pages = [devices & _ADDRESS]
    if devices & INDIRECT:
        first = pages[0]
        yield from (("page", gpa) for gpa in _used(draft, first))
        pages = [_word(draft, gpa) & _ADDRESS for gpa in _used(draft, first) if _word(draft, gpa) & VALID]
    for page in pages:
        for gpa in _used(draft, page):
            yield "device", gpa
            if (word := _word(draft, gpa)) & VALID:
                yield from (("event", event) for event in _used(draft, (word >> 5 & (1 << 44) - 1) << 8, 256))
    yield from (("collection", gpa) for gpa in _used(draft, collections & _ADDRESS))


def _used(draft: Draft, gpa: int, length: int = 4096) -> list[int]:
    """Return where a table has words, and the place behind the last."""
    words = struct.unpack(f"<{length // ENTRY_LEN}Q", draft.ram(gpa, length))
    found = [number for number, word in enumerate(words) if word]
    return [gpa + ENTRY_LEN * number for number in [*found, found[-1] + 1 if found else 0]]


def _word(draft: Draft, gpa: int) -> int:
    return int.from_bytes(draft.ram(gpa, ENTRY_LEN), "little")


def _put(draft: Draft, gpa: int, word: int) -> None:
    draft.poke(gpa, struct.pack("<Q", word & (1 << 64) - 1))


def change_an_entry(draft: Draft, rng: Random) -> str:
    """Have a field of one entry say something else, or flip one of its bits."""
    kinds = dict.fromkeys(kind for kind, _ in _entries(draft))
    if not kinds:
        return "nothing"
    kind = rng.choice(list(kinds))
    gpa = rng.choice([gpa for other, gpa in _entries(draft) if other == kind])
    word = before = _word(draft, gpa)
    high, low = rng.choice(_FIELDS[kind])
    most = (1 << high - low + 1) - 1
    field = word >> low & most
    shifted = rng.choice(EDGES) >> 8
    chosen = [field ^ 1 << rng.randrange(high - low + 1), field + 1, field - 1, 0, most, rng.choice(SMALL), shifted]
    word = word & ~(most << low) | (rng.choice(chosen) & most) << low
    _put(draft, gpa, word)
    return f"{kind} at {gpa:#x} was {before:#x}, is {word:#x}"


def move_an_entry(draft: Draft, rng: Random) -> str:
    """Copy an entry to another place of a table, its own or not, exchange two, or take one away."""
    entries = list(_entries(draft))
    if not entries:
        return "nothing"
    kind, source = rng.choice(entries)
    same = [gpa for other, gpa in entries if other == kind and gpa != source]
    target = rng.choice(same or [gpa for _, gpa in entries]) + rng.choice([0, 0, 0, ENTRY_LEN, 64 * ENTRY_LEN])
    one, other = _word(draft, source), _word(draft, target)
    how = rng.choice(["copy", "exchange", "take away"])
    if how != "take away":
        _put(draft, target, one)
    if how != "copy":
        _put(draft, source, other if how == "exchange" else 0)
    return f"{how} {kind} at {source:#x}, {target:#x}"


def change_lpi_bytes(draft: Draft, rng: Random) -> str:
    """Change what the configuration table says of an LPI, or which are pending."""
    parts = [part for part in draft.parts if part.kind == "gicv3-redistributor" and isinstance(part.data, dict)]
    name = rng.choice(["propbaser", "pendbaser"])
    registers = [part.data.get(name) for part in parts]
    found = [register for register in registers if isinstance(register, int) and register]
    if not found:
        return "nothing"
    table = rng.choice(found) & _LPI_TABLE
    at = rng.randrange(_LPIS) if name == "propbaser" else _LPI_BASE // 8 + rng.randrange(_LPIS // 8)
    at = rng.choice([at, at, at, rng.randrange(0x2000)])
    value = rng.choice([0, 1, 2, 0xA0, 0xA1, 0xFC, 0xFF, 1 << rng.randrange(8)])
    draft.poke(table + at, bytes([value]))
    return f"{name} {table:#x}, byte {at:#x} is {value:#x}"


def move_a_table(draft: Draft, rng: Random) -> str:
    """Have a register put a table elsewhere: over another, to an edge of RAM, outside of it; or say that there is none."""
    found = [part for part in draft.parts if isinstance(part.data, dict)]
    redistributors = [part.data for part in found if part.kind == "gicv3-redistributor"]
    places: list[tuple[list[Any], Any]] = [([one], "pendbaser") for one in redistributors]
    places += [(redistributors, "propbaser")] * bool(redistributors)  # KVM has one for all CPUs
    for its in [part.data for part in found if part.kind == "gicv3-its"]:
        places.append(([its], "cbaser"))
        places += [([its["baser"]], number) for number in (0, 1) if isinstance(its.get("baser"), list)]
    if not places:
        return "nothing"
    holders, key = rng.choice(places)
    try:
        before = holders[0][key]
    except (KeyError, IndexError):
        before = 0
    if not isinstance(before, int) or (isinstance(key, int) and len(holders[0]) <= key):
        return "nothing"
    tables = [_ADDRESS & register for register in _basers(draft)]
    address = rng.choice([*tables, *EDGES, draft.base, draft.base + 0x3F_0000, draft.base + 0x40_0000])
    after = before ^ VALID if rng.random() < 0.2 else before & ~_ADDRESS | address & _ADDRESS
    if rng.random() < 0.1:
        after ^= rng.choice([INDIRECT, 0xFF, 1 << rng.randrange(64)])
    for holder in holders:
        holder[key] = after
    return f"{key} was {before:#x}, is {after:#x}"


def change_a_device_id(draft: Draft, rng: Random) -> str:
    """Have a message come from another device, or with another event, than the tables know."""
    part = draft.find("interrupt-table")
    routes = part.data.get("routes") if part is not None and isinstance(part.data, dict) else None
    if not isinstance(routes, list) or not routes:
        return change_an_entry(draft, rng)
    number = rng.randrange(len(routes))
    name = rng.choice(["device_id", "data"])
    if not isinstance(routes[number], dict):
        return "nothing"
    routes[number][name] = rng.choice([0, 1, 8, 0x10, 0x18, 0xFF, 0xFFFF, 0x1_0000, (1 << 32) - 1, rng.choice(SMALL)])
    return f"routes[{number}].{name} is {routes[number][name]:#x}"


TABLES: tuple[Mutation, ...] = (
    *(change_an_entry,) * 4,
    *(move_an_entry,) * 2,
    change_lpi_bytes,
    move_a_table,
    move_a_table,
    change_a_device_id,
)
