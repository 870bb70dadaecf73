"""Seeded damage to the bytes of a snapshot file, without regard to what they mean."""

import random
import struct
from collections.abc import Callable
from typing import Any

from tests.restore.forge import Forge, snapshot_parts
from tests.restore.real import re_labelled

MAX = (1 << 64) - 1
Damage = Callable[[random.Random, bytearray, dict[str, Any]], None]


def somewhere(seeded: random.Random, content: bytearray, parts: dict[str, Any]) -> int:
    """Return an offset: in preamble, manifest, sections and table more often than their lengths would have it."""
    table = parts["chunks_offset"]
    start, end = seeded.choice(
        [
            (0, 320),
            (4064, 4096),
            (0, 4096),
            (4096, 4096 + parts["manifest_len"]),
            (4096 + parts["manifest_len"], table),
            (table, table + parts["chunks_len"]),
            (table, 65536),
            (65536, len(content)),
        ]
    )
    return seeded.randrange(start, end) if end > start else 0  # a file may have no memory


def flip_a_bit(seeded: random.Random, content: bytearray, parts: dict[str, Any]) -> None:
    content[somewhere(seeded, content, parts)] ^= 1 << seeded.randrange(8)


def cut_the_end(seeded: random.Random, content: bytearray, parts: dict[str, Any]) -> None:
    del content[somewhere(seeded, content, parts) :]


def add_to_the_end(seeded: random.Random, content: bytearray, _parts: dict[str, Any]) -> None:
    content += bytes(seeded.choice([1, 16, 4096, 65536])) if seeded.random() < 0.5 else seeded.randbytes(100)


def take_out_a_range(seeded: random.Random, content: bytearray, parts: dict[str, Any]) -> None:
    start = somewhere(seeded, content, parts)
    del content[start : start + seeded.choice([1, 8, 48, 4096])]


def write_over_a_range(seeded: random.Random, content: bytearray, parts: dict[str, Any]) -> None:
    start = somewhere(seeded, content, parts)
    length = min(seeded.choice([2, 16, 500, 4096]), len(content) - start)
    content[start : start + length] = seeded.choice([bytes(length), b"\xff" * length, seeded.randbytes(length)])


def copy_a_range_elsewhere(seeded: random.Random, content: bytearray, parts: dict[str, Any]) -> None:
    start, to = somewhere(seeded, content, parts), somewhere(seeded, content, parts)
    length = min(64, len(content) - max(start, to))
    content[to : to + length] = content[start : start + length]


def lie_about_a_place(seeded: random.Random, content: bytearray, _parts: dict[str, Any]) -> None:
    """With the preamble's digest made right, so that the lie is what is met."""
    field = seeded.choice([200, 208, 248, 256, 296, 304])
    value = seeded.choice([0, 1, 4095, 65536, 1 << 40, (1 << 63) - 1, MAX, seeded.getrandbits(24)])
    struct.pack_into("<Q", content, field, value)
    content[:] = re_labelled(bytes(content), Forge())


DAMAGES: tuple[Damage, ...] = (
    flip_a_bit,
    cut_the_end,
    add_to_the_end,
    take_out_a_range,
    write_over_a_range,
    copy_a_range_elsewhere,
    lie_about_a_place,
)


def spoil(whole: bytes, seed: int) -> tuple[bytes, str]:
    """Return *whole* with seeded damage, and what was done."""
    seeded = random.Random(seed)
    while True:
        content, damage = bytearray(whole), seeded.choice(DAMAGES)
        damage(seeded, content, snapshot_parts(whole))
        if content != whole:
            return bytes(content), damage.__name__
