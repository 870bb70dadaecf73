"""The kind resource-allocator: which guest-physical ranges and interrupt numbers are taken, and by whom.

Pools are bounds; a claim is a range inside one. Claims are derived: the devices of a machine make them, and what this
section says must agree with what they say.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.schema import KINDS, U64, State, doc, schema

Pool = Literal["gsi-legacy", "gsi-msi", "mmio32", "mmio64", "pci-slot"]
Owner = Annotated[str, Meta(min_length=1, max_length=65), doc("the section that the claim belongs to: kind/instance")]

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


def owned_by_a_section(owner: str) -> bool:
    """Return whether *owner* has the form ``kind/instance`` with a kind that there is."""
    kind, slash, instance = owner.partition("/")
    return bool(slash) and kind in KINDS and 0 < len(instance) <= 32 and "/" not in instance


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
    last: ClaimState | None = None
    for number, claim in enumerate(state.claims):
        findings += _claim(claim, last, pools.get(claim.pool), component, f"claims[{number}]")
        last = claim
    return findings


def _claim(
    claim: ClaimState, last: ClaimState | None, room: PoolState | None, component: str, path: str
) -> Iterator[Finding]:
    """Give what is wrong with *claim*, the one after *last*, whose pool is *room*."""
    if room is None:
        yield Finding(component, f"{path}.pool", claim.pool, "one of the pools", "claims.pool")
    elif not claim.length or claim.start < room.start or claim.start + claim.length > room.start + room.length:
        expected = f"inside {shown(room.start, room.length)}"
        yield Finding(component, path, _shown(claim), expected, "claims.inside")
    if not owned_by_a_section(claim.owner):
        yield Finding(component, f"{path}.owner", repr(claim.owner), "kind/instance", "claims.owner")
    if last is not None and claim.pool <= last.pool:
        if claim.pool < last.pool or claim.start < last.start:
            yield Finding(component, path, _shown(claim), "sorted by pool and start", "claims.sorted")
        elif _overlap(claim, last):
            expected = f"apart from {shown(last.start, last.length)} of {last.owner}"
            yield Finding(component, path, _shown(claim), expected, "claims.apart")


def _shown(claim: ClaimState) -> str:
    return f"{claim.pool} {shown(claim.start, claim.length)}"


def _overlap(one: PoolState | ClaimState, other: PoolState | ClaimState) -> bool:
    return one.start < other.start + other.length and other.start < one.start + one.length
