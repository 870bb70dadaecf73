"""Addresses, pages and byte counts as types, and how people write them.

`Gpa` guest-physical, `Gva` guest-virtual, `Hva` host-virtual (monitor's own), `Pfn` page frame number, `Gsi` global
system interrupt. They are plain integers at run time; the type checker keeps them apart.
"""

import re
from typing import NewType

from snapkit.errors import ConfigError

Gpa = NewType("Gpa", int)
Gva = NewType("Gva", int)
Hva = NewType("Hva", int)
Pfn = NewType("Pfn", int)
Gsi = NewType("Gsi", int)

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
PAGE_SHIFT = 12
PAGE_LEN = 1 << PAGE_SHIFT
CHUNK_LEN = 2 * MIB

_SUFFIX = {"": 1, "k": KIB, "m": MIB, "g": GIB, "t": GIB << 10}


def align_up(value: int, alignment: int) -> int:
    """Round *value* up to a multiple of *alignment* (a power of two)."""
    return (value + alignment - 1) & -alignment


def parse_len(text: str, *, what: str = "size") -> int:
    """Read a byte count as people write it: ``256M``, ``1G``, ``64KiB``, ``4096``.

    Raises ConfigError, naming *what*, when it is no such thing.
    """
    match = re.fullmatch(r"\s*(\d{1,20})\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{what} is {text!r}, must be a number with an optional K, M, G or T")
    return int(match[1]) * _SUFFIX[match[2].lower()]


def format_len(length: int) -> str:
    """Write a byte count the way `parse_len` reads it, exact where it is round: ``256 MiB``, ``1.5 GiB``."""
    for unit, scale in (("TiB", GIB << 10), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if length >= scale:
            number = f"{length / scale:.1f}".removesuffix(".0")
            return f"{number} {unit}"
    return f"{length} B"
