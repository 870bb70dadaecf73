"""Valid instances of any State, made from its shape: seeded, or as a Hypothesis strategy.

`instances` is what the contract suite runs on: the smallest and the largest values first, then random ones. Lists are
kept short, but none is empty unless the shape's smallest value is asked for: every part of a State is there to be tested.
"""

from collections.abc import Iterator
from random import Random
from typing import TYPE_CHECKING, Any

from snapkit.state.schema import State
from snapkit.state.shape import Bool, Bytes, Choice, Fields, Int, Items, Maybe, Shape, Text, shape_of

if TYPE_CHECKING:
    from hypothesis import strategies as st  # which the lab's machines have not

LONGEST_LIST = 6
_ALPHABET = "aZ09-_ é€𝄞"


def smallest(shape: Shape) -> Any:
    """Return the smallest value of *shape*: lower bounds, nothing optional."""
    match shape:
        case Int(minimum=minimum):
            return minimum
        case Bool():
            return False
        case Bytes(min_len=length):
            return bytes(length)
        case Text(min_len=length):
            return "a" * length
        case Choice(words=words):
            return words[0]
        case Items(item=item, min_len=length):
            return [smallest(item) for _ in range(length)]
        case Maybe():
            return None
        case Fields(type=cls, fields=fields):
            return cls(**{field.name: smallest(field.shape) for field in fields})
    raise AssertionError(shape)


def largest(shape: Shape) -> Any:
    """Return the largest value of *shape*: upper bounds, full lists, everything optional there."""
    match shape:
        case Int(maximum=maximum):
            return maximum
        case Bool():
            return True
        case Bytes(max_len=length):
            return b"\xff" * length
        case Text(max_len=length):
            return "𝄞" * length
        case Choice(words=words):
            return max(words, key=len)
        case Items(item=item, max_len=length):
            return [largest(item) for _ in range(length)]
        case Maybe(inner=inner):
            return largest(inner)
        case Fields(type=cls, fields=fields):
            return cls(**{field.name: largest(field.shape) for field in fields})
    raise AssertionError(shape)


def random_value(shape: Shape, rng: Random) -> Any:
    """Return a value of *shape* drawn from *rng*; bounds and powers of two are likelier than their share."""
    match shape:
        case Int(minimum=low, maximum=high):
            edge = (1 << rng.randrange(high.bit_length() + 1)) - rng.randrange(2)
            return rng.choice([low, high, rng.randint(low, high), min(max(edge, low), high)])
        case Bool():
            return rng.random() < 0.5
        case Bytes(min_len=low, max_len=high):
            return rng.randbytes(rng.randint(low, min(high, low + 64)))
        case Text(min_len=low, max_len=high):
            return "".join(rng.choice(_ALPHABET) for _ in range(rng.randint(low, min(high, low + 16))))
        case Choice(words=words):
            return rng.choice(words)
        case Items(item=item, min_len=low, max_len=high):
            length = rng.randint(max(low, min(1, high)), max(low, min(high, LONGEST_LIST)))
            return [random_value(item, rng) for _ in range(length)]
        case Maybe(inner=inner):
            return None if rng.random() < 0.3 else random_value(inner, rng)
        case Fields(type=cls, fields=fields):
            return cls(**{field.name: random_value(field.shape, rng) for field in fields})
    raise AssertionError(shape)


def full(shape: Shape, rng: Random) -> Any:
    """Return a random value with everything optional there and at least one item in every list that may have one."""
    match shape:
        case Maybe(inner=inner):
            return full(inner, rng)
        case Items(item=item, min_len=low, max_len=high):
            return [full(item, rng) for _ in range(max(low, min(high, 2)))]
        case Fields(type=cls, fields=fields):
            return cls(**{field.name: full(field.shape, rng) for field in fields})
        case _:
            return random_value(shape, rng)


def instances(cls: type[State], *, seed: int = 1, count: int = 20) -> Iterator[State]:
    """Give *count* valid instances of *cls*, the same for the same *seed*: smallest, largest, then random ones."""
    shape, rng = shape_of(cls), Random(seed)
    yield smallest(shape)
    yield largest(shape)
    for _ in range(count - 2):
        yield random_value(shape, rng)


def strategy(shape: Shape) -> "st.SearchStrategy[Any]":
    """Return a Hypothesis strategy for *shape*; for a State class, give it ``shape_of(cls)``."""
    from hypothesis import strategies as st

    match shape:
        case Int(minimum=low, maximum=high):
            return st.integers(low, high)
        case Bool():
            return st.booleans()
        case Bytes(min_len=low, max_len=high):
            return st.binary(min_size=low, max_size=max(low, min(high, 64)))
        case Text(min_len=low, max_len=high):
            characters = st.characters(exclude_categories=["Cs"])
            return st.text(characters, min_size=low, max_size=max(low, min(high, 32)))
        case Choice(words=words):
            return st.sampled_from(words)
        case Items(item=item, min_len=low, max_len=high):
            return st.lists(strategy(item), min_size=low, max_size=max(low, min(high, LONGEST_LIST)))
        case Maybe(inner=inner):
            return st.none() | strategy(inner)
        case Fields(type=cls, fields=fields):
            return st.builds(cls, **{field.name: strategy(field.shape) for field in fields})
    raise AssertionError(shape)
