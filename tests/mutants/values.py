"""Other values for one place of a section: boundaries, flipped bits, what stands elsewhere, edges of the address map."""

import copy
from random import Random
from typing import Any

from snapkit.state.shape import Bool, Bytes, Choice, Fields, Int, Items, Maybe, Shape, Text
from tests.contract.generate import random_value
from tests.mutants.plain import Place

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
EDGES = (
    *(0xA_0000, 0xE_0000, 0xF_FFFF, MIB, 2 * MIB - 4096, 2 * MIB - 16, 2 * MIB - 1, 2 * MIB, 4 * MIB),
    *(3 * GIB, 3 * GIB - 4096, 4 * GIB, 4 * GIB - 1, 256 * GIB, 512 * GIB, 512 * GIB - 0x8_0000, 1 << 40, 1 << 52),
    *(0xEEB0_0000, 0xEEBF_F000, 0xEEC0_0000, 0xEED0_0000, 0xFEC0_0000, 0xFEE0_0000, 0xFFFB_C000, 0xFFFB_D000),
    *(0x900_0000, 0x3FFB_0000, 0x3FFD_0000, 0x3FFF_0000, GIB, 0x6FFF_F000, 0x7000_0000, 2 * GIB, 2 * GIB + 4 * MIB),
    *(1 << 39, 1 << 48),
    *((1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1),
)
"""Ends of RAM, of windows and of what KVM answers itself (both address maps), and of what a signed number holds."""
SMALL = (0, 1, 2, 3, 4, 7, 8, 15, 16, 23, 24, 31, 32, 63, 64, 127, 128, 255, 256, 4095, 4096, 0x7FFF, 0x8000, 0xFFFF)
TEXTS = ("", "0", "a", "root", "../x", "/", ".", "x\0y", "ä€𝄞", "A" * 32, "A" * 4097, "no-such-thing", "serial-16550/0")
WRONG: tuple[Any, ...] = (None, [], {}, "", b"", -1, 1 << 63, 1.5, True, [[]], {"a": 1})


class Pool:
    """What stands elsewhere in the same machine: integers and texts of all of its sections."""

    def __init__(self, scalars: list[Any], texts: tuple[str, ...] = ()) -> None:
        self.numbers = sorted({value for value in scalars if isinstance(value, int)}) or [0]
        self.texts = [*sorted({value for value in scalars if isinstance(value, str)}), *TEXTS, *texts]


def change(place: Place, pool: Pool, siblings: list[Place], rng: Random) -> None:
    """Give *place* another value; *siblings* are places of the same family, here and in other sections."""
    if rng.random() < 0.03:
        place.put(copy.deepcopy(rng.choice(WRONG)))
    elif siblings and rng.random() < 0.1:
        swap(place, rng.choice(siblings))
    elif siblings and rng.random() < 0.1:
        place.put(copy.deepcopy(rng.choice(siblings).value))
    else:
        place.put(another(place.value, place.shape, pool, rng))


def swap(one: Place, other: Place) -> None:
    """Exchange what two places hold, also where one of them holds the other."""
    first, second = copy.deepcopy(one.value), copy.deepcopy(other.value)
    one.put(second)
    other.put(first)


def another(value: Any, shape: Shape, pool: Pool, rng: Random) -> Any:
    """Return a value that a place of *shape* could be told instead of *value*, in its bounds or just outside."""
    match shape:
        case Int(minimum=low, maximum=high) if isinstance(value, int):
            return number(value, low, high, pool, rng)
        case Bool():
            return not value if rng.random() < 0.9 else rng.choice([0, 1, 2])
        case Bytes() if isinstance(value, bytes):
            return octets(value, pool, rng)
        case Text(max_len=most):
            return rng.choice(pool.texts) if rng.random() < 0.8 else "x" * (most + rng.randrange(2))
        case Choice(words=words):
            return rng.choice([*words, "none"])
        case Maybe(inner=inner):
            return random_plain(inner, rng) if value is None else None
        case Items() if isinstance(value, list):
            return items(value, shape, rng)
        case Fields() if isinstance(value, dict) and value:
            return fields(value, rng)
    return rng.choice(WRONG)


def number(value: int, low: int, high: int, pool: Pool, rng: Random) -> int:
    """Return another integer: mostly one that fits the field, since others end at decoding."""
    bits = high.bit_length()
    chosen = rng.choice(
        [
            rng.choice([low, low + 1, high, high - 1, high >> 1, (high >> 1) + 1]),
            value ^ 1 << rng.randrange(bits),
            value ^ 1 << rng.randrange(bits),
            value + rng.choice([-1, 1, -2, 2, 4, 8, 16, -4096, 4096]),
            rng.choice([value << 1, value >> 1, ~value & high, value * 3]),
            rng.choice(pool.numbers),
            rng.choice(EDGES) + rng.choice([0, 0, 0, -1, 1, -4096, 4096]),
            rng.choice(SMALL),
            rng.getrandbits(rng.randrange(1, bits + 1)),
        ]
    )
    if rng.random() < 0.02:
        return rng.choice([high + 1, low - 1]) if high < (1 << 64) - 1 else low - 1
    return chosen if low <= chosen <= high else low + chosen % (high - low + 1)


def octets(value: bytes, pool: Pool, rng: Random) -> bytes:
    """Return other bytes: flipped bits, words written over, pieces copied, now and then another length."""
    made = bytearray(value)
    if not made or rng.random() < 0.05:
        return bytes(rng.choice([made[:-1], made + b"\0", bytes(len(made)), b"\xff" * len(made), made * 2]))
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        at = rng.randrange(len(made))
        match rng.randrange(4):
            case 0:
                made[at] ^= 1 << rng.randrange(8)
            case 1:
                made[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)])
            case 2:
                width = rng.choice([2, 4, 8])
                at -= at % width
                word = rng.choice([*EDGES, *SMALL, rng.choice(pool.numbers), (1 << 8 * width) - 1])
                word = (max(word, 0)) & ((1 << 8 * width) - 1)
                made[at : at + width] = word.to_bytes(width, "little")[: len(made) - at]
            case 3:
                source, length = rng.randrange(len(made)), rng.choice([1, 4, 16])
                piece = made[source : source + length][: len(made) - at]
                made[at : at + len(piece)] = piece
    return bytes(made)


def items(value: list[Any], shape: Items, rng: Random) -> list[Any]:
    """Return another list: an item twice, gone, elsewhere, one too many."""
    made = copy.deepcopy(value)
    if not made:
        return [random_plain(shape.item, rng) for _ in range(rng.choice([1, 2]))]
    at = rng.randrange(len(made))
    match rng.randrange(7):
        case 0:
            made.insert(at, copy.deepcopy(made[at]))
        case 1:
            del made[at]
        case 2:
            rng.shuffle(made)
        case 3:
            other = rng.randrange(len(made))
            made[at], made[other] = made[other], made[at]
        case 4:
            made = made[:at]
        case 5:
            made.append(random_plain(shape.item, rng))
        case 6:
            made = (made * (shape.max_len // len(made) + 2))[: shape.max_len + rng.randrange(2)]
    return made


def fields(value: dict[str, Any], rng: Random) -> dict[str, Any]:
    """Return a map with a field missing, one too many, or in another order."""
    made = dict(value)
    match rng.randrange(3):
        case 0:
            del made[rng.choice(list(made))]
        case 1:
            made["unheard_of"] = 0
        case 2:
            order = list(made)
            rng.shuffle(order)
            made = {name: made[name] for name in order}
    return made


def random_plain(shape: Shape, rng: Random) -> Any:
    """Return a random value of *shape* as plain data."""
    import msgspec

    return msgspec.to_builtins(random_value(shape, rng), builtin_types=(bytes,))
