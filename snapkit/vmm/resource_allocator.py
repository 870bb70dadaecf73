"""Who has which interrupt number, PCI slot and MMIO range. Every method is called with the machine's lock held.

An allocator keeps what is taken, sorted, and nothing else: what is free are the gaps between, so that ranges given back
have coalesced by themselves, and save, comparison and "taken by whom" read the one list there is.

Surprise: nothing here is restored from a snapshot. Claims are derived: devices make theirs again while they are
constructed, and what came together is compared with what was saved (`ResourceAllocator.agree`).
"""

from bisect import bisect_right, insort
from collections.abc import Iterable
from typing import ClassVar, Self

import msgspec

from snapkit.errors import ConfigError, Finding, InternalError
from snapkit.state.codec import adopted
from snapkit.state.resource_allocator import CLAIMS_MAX, ClaimState, Pool, PoolState, ResourceAllocatorState, shown
from snapkit.units import align_up


class Claim(msgspec.Struct, frozen=True, order=True):
    """[start, end) taken by *owner*, "" where nobody said."""

    start: int
    end: int
    owner: str


class AddressAllocator:
    """Ranges inside [start, start+length): the first that fits, or exactly the one asked for."""

    def __init__(self, start: int, length: int, *, name: str = "addresses") -> None:
        self.name, self.start, self.end = name, start, start + length
        self._claims: list[Claim] = []

    @property
    def claims(self) -> list[Claim]:
        """What is taken, in order."""
        return list(self._claims)

    def allocate(self, length: int, align: int = 1, owner: str = "") -> int:
        """Take the lowest free range of *length* whose start is a multiple of *align*, a power of two.

        Raises ConfigError when there is none.
        """
        if length <= 0 or align <= 0 or align & (align - 1):
            raise ConfigError(f"{self.name}: {length:#x} aligned to {align:#x} is no range with a power of two")
        start = align_up(self.start, align)
        for taken in self._claims:
            if start + length <= taken.start:
                break
            start = max(start, align_up(taken.end, align))
        if start + length > self.end:
            raise ConfigError(f"{self.name} has no {length:#x} aligned to {align:#x} free in {self._bounds}")
        insort(self._claims, Claim(start, start + length, owner))
        return start

    def claim(self, start: int, length: int, owner: str = "") -> None:
        """Take exactly [start, start+length). Raises ConfigError, naming the holder, when any of it is not free."""
        end = start + length
        if length <= 0 or start < self.start or end > self.end:
            raise ConfigError(f"{self.name} range {shown(start, length)} is not inside {self._bounds}")
        claims = self._claims
        if not claims or start >= claims[-1].end:  # a machine's parts are built in the order in which they took
            claims.append(Claim(start, end, owner))
            return
        at = bisect_right(claims, start, key=_start)
        for held in claims[max(0, at - 1) : at + 1]:
            if held.start < end and start < held.end:
                where = f"{self.name} range {shown(start, length)}"
                raise ConfigError(f"{where} is taken by {held.owner or 'another'} ({_shown(held)})")
        claims.insert(at, Claim(start, end, owner))

    def free(self, start: int, length: int, owner: str = "") -> None:
        """Give a range back; InternalError unless it is, as a whole, what *owner* has taken."""
        at = bisect_right(self._claims, start, key=_start) - 1
        if at < 0 or self._claims[at] != Claim(start, start + length, owner):
            raise InternalError(f"{self.name} range {shown(start, length)} is not a claim of {owner or 'anybody'}")
        del self._claims[at]

    def free_owner(self, owner: str) -> None:
        """Give everything back that *owner* has taken."""
        self._claims = [claim for claim in self._claims if claim.owner != owner]

    @property
    def _bounds(self) -> str:
        return shown(self.start, self.end - self.start)


class IdAllocator:
    """Numbers from *start* on, *length* of them, taken one at a time."""

    def __init__(self, start: int, length: int, *, name: str = "numbers") -> None:
        self._numbers = AddressAllocator(start, length, name=name)

    def allocate(self, owner: str = "") -> int:
        """Take the lowest free number; ConfigError when there is none."""
        return self._numbers.allocate(1, 1, owner)

    def claim(self, number: int, owner: str = "") -> None:
        """Take *number*; ConfigError when it is taken or none of these."""
        self._numbers.claim(number, 1, owner)

    def free(self, number: int, owner: str = "") -> None:
        """Give *number* back; InternalError unless *owner* has it."""
        self._numbers.free(number, 1, owner)


class ResourceAllocator:
    """The pools of one machine. An owner is the section that a claim belongs to: ``pci-function/root``."""

    kind: ClassVar[str] = "resource-allocator"

    def __init__(self, pools: Iterable[PoolState]) -> None:
        self._pools: dict[Pool, AddressAllocator] = {
            pool.pool: AddressAllocator(pool.start, pool.length, name=pool.pool)
            for pool in sorted(pools, key=lambda pool: pool.pool)
        }
        self._windows = [(name, pool) for name, pool in self._pools.items() if name.startswith("mmio")]
        self._taken = 0  # claims in all pools

    @classmethod
    def restore(cls, state: ResourceAllocatorState, args: object = None) -> Self:
        """Build the pools of *state*, with nothing taken: the devices take their own."""
        del args  # there is nothing of the host's in it
        return cls(adopted(state).pools)

    def save(self) -> ResourceAllocatorState:
        """Return pools and claims, both sorted."""
        return ResourceAllocatorState(
            pools=self._pool_states(),
            claims=[
                ClaimState(pool=pool, start=start, length=length, owner=owner)
                for pool, start, length, owner in self._claimed()
            ],
        )

    def allocate(self, pool: Pool, length: int, owner: str, *, align: int = 1) -> int:
        """Take the first range of *length* in *pool* that fits; ConfigError when there is none."""
        start = self._with_room(pool).allocate(length, align, owner)
        self._taken += 1
        return start

    def claim(self, pool: Pool, start: int, length: int, owner: str) -> None:
        """Take exactly this range of *pool*; ConfigError, naming the holder, when any of it is taken or outside."""
        ranges = self._pools.get(pool)
        if ranges is None or self._taken >= CLAIMS_MAX:  # asked here: a restore has dozens of claims
            ranges = self._with_room(pool)
        ranges.claim(start, length, owner)
        self._taken += 1

    def free(self, pool: Pool, start: int, length: int, owner: str) -> None:
        """Give back what *owner* took by one `allocate` or `claim`; InternalError for anything else."""
        self._pool(pool).free(start, length, owner)
        self._taken -= 1

    def free_owner(self, owner: str) -> None:
        """Give everything back that *owner* has taken."""
        for pool in self._pools.values():
            pool.free_owner(owner)
        self._taken = sum(len(pool.claims) for pool in self._pools.values())

    def window(self, address: int, length: int) -> Pool | None:
        """Return the MMIO pool that contains the whole range, None where none does."""
        for name, window in self._windows:
            if window.start <= address < address + length <= window.end:
                return name
        return None

    def agree(self, state: ResourceAllocatorState, component: str = "resource-allocator/0") -> list[Finding]:
        """Return where *state*, as it was saved, differs from what the devices have taken by now."""
        findings: list[Finding] = []
        claimed, pools = self._claimed(), self._pool_states()
        listed = [(claim.pool, claim.start, claim.length, claim.owner) for claim in state.claims]
        if claimed == listed and pools == state.pools:
            return findings
        if pools != state.pools:
            expected = ", ".join(_pool_shown(pool) for pool in pools)
            value = ", ".join(_pool_shown(pool) for pool in state.pools)
            findings.append(Finding(component, "pools", value, expected, "resource-allocator.agree"))
        taken = set(claimed)
        saved = {claim: number for number, claim in enumerate(listed)}
        for claim, number in saved.items():
            if claim not in taken:
                value = _claim_shown(*claim)
                finding = Finding(
                    component, f"claims[{number}]", value, "what a device takes", "resource-allocator.agree"
                )
                findings.append(finding)
        for claim in sorted(taken - saved.keys()):
            expected = f"with {_claim_shown(*claim)}"
            findings.append(Finding(component, "claims", "without it", expected, "resource-allocator.agree"))
        return findings

    def _pool_states(self) -> list[PoolState]:
        return [
            PoolState(pool=name, start=pool.start, length=pool.end - pool.start) for name, pool in self._pools.items()
        ]

    def _claimed(self) -> list[tuple[Pool, int, int, str]]:
        """Return every claim as (pool, start, length, owner), by pool and start."""
        return [
            (name, claim.start, claim.end - claim.start, claim.owner)
            for name, pool in self._pools.items()
            for claim in pool._claims
        ]

    def _pool(self, name: Pool) -> AddressAllocator:
        try:
            return self._pools[name]
        except KeyError:
            raise ConfigError(f"this machine has no pool {name}") from None

    def _with_room(self, name: Pool) -> AddressAllocator:
        """Return a pool to take something of; ConfigError for more claims than a snapshot could hold."""
        if self._taken >= CLAIMS_MAX:
            raise ConfigError(f"{name}: all {CLAIMS_MAX} claims that a machine can have are taken")
        return self._pool(name)


def _start(claim: Claim) -> int:
    return claim.start


def _shown(claim: Claim) -> str:
    return shown(claim.start, claim.end - claim.start)


def _pool_shown(pool: PoolState) -> str:
    return f"{pool.pool} {shown(pool.start, pool.length)}"


def _claim_shown(pool: Pool, start: int, length: int, owner: str) -> str:
    return f"{pool} {shown(start, length)} of {owner}"
