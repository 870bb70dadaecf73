"""Mutations of the container: preamble, manifest, chunk table, memory layout; and bytes without regard to what they say."""

import struct
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from tests.mutants.draft import Draft
from tests.mutants.values import EDGES, SMALL
from tests.restore.forge import CHUNK, ENTRY, PREAMBLE
from tests.restore.spoil import spoil

Mutation = Callable[[Draft, Random], str]


def _numbers(rng: Random, bits: int = 64) -> int:
    return rng.choice([*EDGES, *SMALL, rng.getrandbits(bits)]) & ((1 << bits) - 1)


def change_the_preamble(draft: Draft, rng: Random) -> str:
    """Have a field of the preamble say something else."""
    name = rng.choice([name for name in PREAMBLE if name != "padding"])
    code = PREAMBLE[name][1]
    if code.endswith("s"):
        value: Any = rng.choice([b"", b"0.2.0", b"0.3.0", b"9.9.9", b"\xff" * 4, rng.randbytes(int(code[:-1]))])
    else:
        value = _numbers(rng, 8 * struct.calcsize("<" + code))
    draft.preamble[name] = value
    return f"{name} is {value!r:.50}"


def change_the_manifest(draft: Draft, rng: Random) -> str:
    """Have a fact, the regions or a section's entry say something else."""
    path, value = rng.choice(
        [
            (f"machine.{rng.choice(['vcpus', 'memory', 'cpu', 'x'])}", rng.choice([0, 1, 2, 3, 1 << 21, "host", None])),
            ("machine", rng.choice([{}, [], {"a": 1.5}, {str(n): n for n in range(65)}])),
            ("memory.chunk_length", _numbers(rng)),
            ("memory.regions", _regions(rng, draft.base)),
            ("memory.separate", rng.choice([{}, {"path": "x", "length": 1, "chunk_table_digest": "00" * 32}])),
            (rng.choice(["unheard_of", "memory.unheard_of"]), 1),
            ("sections", rng.choice([[], lambda entries: [*entries, entries[0]], lambda entries: entries[::-1]])),
            (
                f"sections.{rng.randrange(max(1, len(draft.parts)))}.{rng.choice(['kind', 'instance', 'version', 'codec'])}",
                rng.choice(["", "0", 0, 1, "raw", "zstd", "machine", None]),
            ),
        ]
    )
    draft.edit_manifest(path, value)
    return f"{path} is {value!r:.60}"


def change_the_chunk_table(draft: Draft, rng: Random) -> str:
    """Have an entry say something else."""
    what = rng.choice(["offset", "length", "codec", "digest", "hole", "more", "fewer", "padding"])
    number = _numbers(rng)

    def edit(table: bytearray, seeded: Random) -> None:
        if len(table) < ENTRY.size:
            return
        at = ENTRY.size * seeded.randrange(len(table) // ENTRY.size)
        offset, length, codec, digest = ENTRY.unpack_from(table, at)
        match what:
            case "offset":
                offset = number
            case "length":
                length = number & 0xFFFF_FFFF
            case "codec":
                codec = number & 0xFF
            case "digest":
                digest = seeded.randbytes(32)
            case "hole":
                offset = length = codec = 0
                digest = bytes(32)
            case "more":
                table += table[at : at + ENTRY.size]
            case "fewer":
                del table[at : at + ENTRY.size]
                return
        ENTRY.pack_into(table, at, offset, length, codec, digest)
        if what == "padding":
            table[at + 13 + seeded.randrange(3)] = 1

    draft.table.append(edit)
    return f"{what} {number:#x}"


def _regions(rng: Random, base: int) -> list[dict[str, int]]:
    return rng.choice(
        [
            [],
            [{"gpa": base, "length": CHUNK}],
            [{"gpa": base, "length": CHUNK // 2}, {"gpa": base + CHUNK // 2, "length": CHUNK // 2}],
            [{"gpa": base, "length": CHUNK // 2}, {"gpa": rng.choice(EDGES), "length": CHUNK // 2}],
            [{"gpa": rng.choice(EDGES), "length": CHUNK}],
            [{"gpa": base, "length": CHUNK}, {"gpa": rng.choice(EDGES), "length": rng.choice([4096, CHUNK, 1 << 30])}],
            [{"gpa": base, "length": rng.choice(EDGES)}],
            [{"gpa": base + 4096 * number, "length": 4096} for number in range(33)],
        ]
    )


def move_memory(draft: Draft, rng: Random) -> str:
    """Have other regions, in the layout and in the manifest alike, or in one of them; chunks for them, or not."""
    regions = _regions(rng, draft.base)
    layout = draft.find("memory-layout")
    both = rng.random()
    if layout is not None and isinstance(layout.data, dict) and both < 0.9:
        layout.data["regions"] = [dict(region) for region in regions]
    if both > 0.1:
        draft.edit_manifest("memory.regions", regions)
        draft.edit_manifest("machine.memory", sum(region["length"] for region in regions))
    wanted = sum(-(-region["length"] // CHUNK) for region in regions)
    if wanted <= 1024 and rng.random() < 0.9:
        room = [region["length"] - at for region in regions for at in range(0, region["length"], CHUNK)]
        content = (draft.chunks[0] if draft.chunks else None) or bytes(CHUNK)
        draft.chunks = [content[: min(left, CHUNK)] if number < 2 else None for number, left in enumerate(room)]
    return ", ".join(f"{region['gpa']:#x}+{region['length']:#x}" for region in regions[:3])


def spoil_memory(draft: Draft, rng: Random) -> str:
    """Change bytes of RAM and leave their digest: nobody notices but --verify-memory."""
    count = rng.choice([1, 1, 16, 4096])

    def edit(content: bytearray, seeded: Random) -> None:
        for _ in range(count if len(content) > 65536 else 0):  # else there is no memory any more
            content[seeded.randrange(65536, len(content))] ^= 1 << seeded.randrange(8)

    draft.spoil.append(edit)
    return f"{count} bits"


def spoil_bytes(draft: Draft, rng: Random) -> str:
    """Damage the file anywhere, digests and all."""
    seed = rng.getrandbits(32)

    def edit(content: bytearray, _seeded: Random) -> None:
        content[:] = spoil(bytes(content), seed)[0]

    draft.spoil.append(edit)
    return f"seed {seed}"


def flip_one_bit(draft: Draft, rng: Random) -> str:
    """Flip one bit somewhere in front of memory."""
    at, mask = rng.randrange(65536), 1 << rng.randrange(8)
    draft.spoil.append(partial(_flip, at, mask))
    return f"{mask:#x} at {at}"


def _flip(at: int, mask: int, content: bytearray, _seeded: Random) -> None:
    content[at % len(content)] ^= mask


CONTAINER: tuple[Mutation, ...] = (
    change_the_preamble,
    change_the_manifest,
    change_the_chunk_table,
    move_memory,
    move_memory,
    spoil_memory,
)
BYTES: tuple[Mutation, ...] = (spoil_bytes, flip_one_bit)
