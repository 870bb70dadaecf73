"""The kind resource-allocator: which guest-physical ranges and interrupt numbers are taken, and by whom.

Pools are bounds; a claim is a range inside one. Claims are derived: the devices of a machine make them, and what this
section says must agree with what they say.
"""

from functools import lru_cache
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.schema import KINDS, U64, State, doc, schema

Pool = Literal["gsi-legacy", "gsi-msi", "mmio32", "mmio64", "pci-slot"]
OWNER_MAX = 65
"""A kind and an instance of 32 characters each, and the slash."""
Owner = Annotated[
    str, Meta(min_length=1, max_length=OWNER_MAX), doc("the section that the claim belongs to: kind/instance")
]

CLAIMS_MAX = 1024

LIMITS: dict[Pool, tuple[int, int]] = {
    "gsi-legacy": (0, 4096),
    "gsi-msi": (0, 4096),
    "mmio32": (0, 1 << 32),
    "mmio64": (1 << 32, 1 << 52),
    "pci-slot": (1, 32),
}
"""What numbers a pool can be made of at all, [from, to): KVM_MAX_IRQ_ROUTES, address widths, device numbers of a bus."""

_SPACES: dict[Pool, str] = {
    "gsi-legacy": "gsi",
    "gsi-msi": "gsi",
    "mmio32": "mmio",
    "mmio64": "mmio",
    "pci-slot": "slot",
}


class PoolState(State):
    """What there is to be had: *length* numbers or bytes from *start* on."""

    pool: Pool
    start: U64
    length: U64


class ClaimState(State):
    """A range of a pool that is taken."""

    pool: Pool
    start: U64
    length: U64
    owner: Owner


@schema("resource-allocator", version=1, max_len=512 << 10)
class ResourceAllocatorState(State):
    """Pools by name and claims by pool and start, both sorted."""

    pools: Annotated[list[PoolState], Meta(max_length=8)]
    claims: Annotated[list[ClaimState], Meta(max_length=CLAIMS_MAX)] = msgspec.field(default_factory=list)


def shown(start: int, length: int) -> str:
    """Write a range as a person reads it: ``5..23`` in numbers, ``0xc0000000..0xc0000fff`` in addresses, both included."""
    last = start + length - 1
    if length <= 0:
        return f"{start:#x}+{length}"
    if last >= 1 << 16:
        return f"{start:#x}..{last:#x}"
    return f"{start}..{last}" if length > 1 else f"{start}"


@lru_cache(maxsize=256)  # every vector, BAR and slot of a device names the same few
def owned_by_a_section(owner: str) -> bool:
    """Return whether *owner* has the form ``kind/instance`` with a kind that there is."""
    kind, slash, instance = owner.partition("/")
    return bool(slash) and kind in KINDS and 0 < len(instance) <= 32 and "/" not in instance


RULES = {
    "pools.sorted": "Pools are there once each, by name: the allocator saves them so.",
    "pools.limits": "A pool lies within the numbers that its resource has.",
    "pools.apart": "Pools of one kind of number do not overlap: a claim in one would not be seen in the other.",
    "claims.pool": "A claim is made of a pool that there is.",
    "claims.inside": "A claim lies inside its pool: nothing else is there to be had.",
    "claims.owner": "A claim belongs to a section: it says who has it.",
    "claims.sorted": "Claims are saved by pool and start.",
    "claims.apart": "Claims of one pool do not overlap: two would share it.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: ResourceAllocatorState, component: str) -> list[Finding]:
    """Return where *state* is not what an allocator saves: sorted, inside its pools, nothing taken twice."""
    findings = []
    pools: dict[Pool, PoolState] = {}
    before = ""
    for number, pool in enumerate(state.pools):
        path = f"pools[{number}]"
        low, high = LIMITS[pool.pool]
        if pool.pool <= before:
            findings.append(Finding(component, f"{path}.pool", pool.pool, f"sorted, after {before}", "pools.sorted"))
        if not pool.length or pool.start < low or pool.start + pool.length > high:
            value, expected = shown(pool.start, pool.length), f"inside {shown(low, high - low)}"
            findings.append(Finding(component, path, value, expected, "pools.limits"))
        for other in pools.values():
            if _SPACES[other.pool] == _SPACES[pool.pool] and _overlap(other, pool):
                value = f"{pool.pool} {shown(pool.start, pool.length)}"
                expected = f"apart from {other.pool} {shown(other.start, other.length)}"
                findings.append(Finding(component, path, value, expected, "pools.apart"))
        pools[pool.pool] = pool
        before = pool.pool
    return findings + _claims(state.claims, pools, component)


def _claims(claims: list[ClaimState], pools: dict[Pool, PoolState], component: str) -> list[Finding]:
    """Return what is wrong with *claims*. One loop, and no text before it is needed: a device has five of them."""
    findings = []
    last: ClaimState | None = None
    for number, claim in enumerate(claims):
        room, start, end = pools.get(claim.pool), claim.start, claim.start + claim.length
        if room is None:
            path = f"claims[{number}].pool"
            findings.append(Finding(component, path, claim.pool, "one of the pools", "claims.pool"))
        elif start == end or start < room.start or end > room.start + room.length:
            path, expected = f"claims[{number}]", f"inside {shown(room.start, room.length)}"
            findings.append(Finding(component, path, _shown(claim), expected, "claims.inside"))
        if not owned_by_a_section(claim.owner):
            path = f"claims[{number}].owner"
            findings.append(Finding(component, path, repr(claim.owner), "kind/instance", "claims.owner"))
        if last is not None and claim.pool <= last.pool:
            if claim.pool < last.pool or start < last.start:
                path, expected = f"claims[{number}]", "sorted by pool and start"
                findings.append(Finding(component, path, _shown(claim), expected, "claims.sorted"))
            elif start < last.start + last.length and last.start < end:
                path, expected = f"claims[{number}]", f"apart from {shown(last.start, last.length)} of {last.owner}"
                findings.append(Finding(component, path, _shown(claim), expected, "claims.apart"))
        last = claim
    return findings


def _shown(claim: ClaimState) -> str:
    return f"{claim.pool} {shown(claim.start, claim.length)}"


def _overlap(one: PoolState, other: PoolState) -> bool:
    return one.start < other.start + other.length and other.start < one.start + one.length
