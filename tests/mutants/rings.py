"""Mutations of what a driver wrote: rings and descriptors in the saved RAM, and what their buffers hold.

All of it is the guest's to write, so no check refuses it: a machine restored from it has to serve it, or to find it broken.
VIRTIO 1.3, section 2.7.
"""

import struct
from collections.abc import Callable
from random import Random
from typing import Any

from tests.mutants.draft import Draft
from tests.mutants.values import EDGES

Mutation = Callable[[Draft, Random], str]
NEXT, WRITE, INDIRECT = 1, 2, 4
_DESCRIPTOR = struct.Struct("<QIHH")
PAGE = 4096


def _queue(draft: Draft, rng: Random) -> tuple[str, dict[str, Any]] | None:
    """Choose a queue that the driver has enabled."""
    ready = [
        (f"{part.name}.queues[{number}]", queue)
        for part in draft.parts
        if isinstance(part.data, dict)
        for number, queue in enumerate(part.data.get("queues") or [])
        if isinstance(queue, dict) and queue.get("ready") is True and _sane(queue)
    ]
    return rng.choice(ready) if ready else None


def _sane(queue: dict[str, Any]) -> bool:
    names = ("size", "desc", "driver", "device", "next_avail", "next_used")
    return all(type(queue.get(name)) is int for name in names) and 0 < queue["size"] <= 1024


def offer_chains(draft: Draft, rng: Random) -> str:
    """Make chains available that no driver would: loops, lengths and addresses of any kind."""
    found = _queue(draft, rng)
    if found is None:
        return scribble(draft, rng)
    name, queue = found
    size = queue["size"]
    for index in range(min(size, rng.choice([1, 4, 16]))):
        gpa = rng.choice([queue["desc"], queue["device"], draft.base + rng.randrange(1 << 21), rng.choice(EDGES)])
        length = rng.choice([0, 1, 4, 16, 44, 512, PAGE, 1 << 21, 0x7FFF_FFFF, 0xFFFF_FFFF, rng.getrandbits(12)])
        flags = rng.choice([0, NEXT, WRITE, NEXT | WRITE, INDIRECT, INDIRECT | NEXT, 0xFFFF])
        following = rng.choice([index + 1, index, 0, size - 1, size, 0xFFFF])
        draft.poke(queue["desc"] + 16 * index, _DESCRIPTOR.pack(gpa & (1 << 64) - 1, length, flags, following))
    _offer(draft, queue, rng.choice([1, 2, size]), rng)
    return f"{name}, {size} entries"


def offer_requests(draft: Draft, rng: Random) -> str:
    """Make proper chains of two or three buffers available, with any request in them."""
    found = _queue(draft, rng)
    if found is None:
        return scribble(draft, rng)
    name, queue = found
    parts = rng.choice([2, 3])
    writable = rng.randrange(parts + 1)
    for index in range(parts):
        gpa = draft.base + rng.randrange(0x10_0000, 0x1F_0000)
        length = rng.choice([1, 8, 12, 16, 44, 512, PAGE])
        flags = (NEXT if index + 1 < parts else 0) | (WRITE if index >= writable else 0)
        draft.poke(queue["desc"] + 16 * index, _DESCRIPTOR.pack(gpa, length, flags, index + 1))
        words = [rng.choice([0, 1, 4, 8, 11, 13, 0xFFFF_FFFF, rng.getrandbits(32)]), 0, rng.getrandbits(64)]
        draft.poke(gpa, struct.pack("<IIQ", *words) + rng.randbytes(44))
    _offer(draft, queue, 1, rng)
    return f"{name}, {parts} buffers, {parts - writable} writable"


def _offer(draft: Draft, queue: dict[str, Any], count: int, rng: Random) -> None:
    """Put descriptor 0, or any, into the available ring *count* times."""
    size, at = queue["size"], queue["next_avail"]
    for number in range(count):
        head = 0 if rng.random() < 0.7 else rng.choice([1, size - 1, size, 0xFFFF])
        draft.poke(queue["driver"] + 4 + 2 * ((at + number) % size), struct.pack("<H", head))
    draft.poke(queue["driver"], struct.pack("<HH", rng.choice([0, 0, 1, 0xFFFF]), (at + count) & 0xFFFF))


def move_indices(draft: Draft, rng: Random) -> str:
    """Have an index of a ring, in RAM or in the State, say something else."""
    found = _queue(draft, rng)
    if found is None:
        return scribble(draft, rng)
    name, queue = found
    size = queue["size"]
    steps = [0, 1, 2, -1, size, size - 1, size + 1, -size, 0x7FFF, 0x8000, rng.getrandbits(16)]
    what = rng.choice(["avail", "used", "next_avail", "next_used", "used_event"])
    step = rng.choice(steps)
    match what:
        case "avail":
            draft.poke(queue["driver"] + 2, struct.pack("<H", (queue["next_avail"] + step) & 0xFFFF))
        case "used":
            draft.poke(queue["device"], struct.pack("<HH", rng.choice([0, 1]), (queue["next_used"] + step) & 0xFFFF))
        case "used_event":
            draft.poke(queue["driver"] + 4 + 2 * size, struct.pack("<H", (queue["next_used"] + step) & 0xFFFF))
        case _:
            queue[what] = (queue[what] + step) & 0xFFFF
    return f"{name} {what} by {step}"


def move_rings(draft: Draft, rng: Random) -> str:
    """Put rings elsewhere: over each other, over code, at the end of RAM, outside of it."""
    found = _queue(draft, rng)
    if found is None:
        return scribble(draft, rng)
    name, queue = found
    for area in rng.sample(["desc", "driver", "device"], rng.choice([1, 2, 3])):
        queue[area] = rng.choice(
            [
                *(queue["desc"], queue["driver"], rng.choice(EDGES)),
                *(draft.base + at for at in (0, PAGE, 0x10_0000, (1 << 21) - PAGE, (1 << 21) - 16)),
            ]
        )
    if rng.random() < 0.3:
        queue["size"] = rng.choice([1, 2, 3, 256, 1024, 32768, 0])
    return f"{name} to {queue['desc']:#x}, {queue['driver']:#x}, {queue['device']:#x}, {queue['size']} entries"


def scribble(draft: Draft, rng: Random) -> str:
    """Write over pages of RAM that hold something: code, tables, buffers."""
    used = [gpa for gpa in range(draft.base, draft.base + (1 << 21), PAGE) if any(draft.ram(gpa, PAGE))]
    if not used:
        return "nothing"
    page = rng.choice(used)
    for _ in range(rng.choice([1, 4, 64])):
        draft.poke(page + rng.randrange(PAGE - 8), rng.choice([b"\0", b"\xff", b"\xf4", rng.randbytes(8)]))
    return f"page {page:#x}"


RINGS: tuple[Mutation, ...] = (offer_chains, offer_requests, move_indices, move_rings, scribble)
