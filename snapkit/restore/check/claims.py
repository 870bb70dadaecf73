"""What is taken: the pools of the address map, and that the allocator and the devices agree on who has what."""

from collections.abc import Mapping

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index, invariant
from snapkit.restore.pages import Pages
from snapkit.state.pci_function import HOST_BRIDGE, PciFunctionState
from snapkit.state.pci_msix import PciMsixState
from snapkit.state.resource_allocator import ResourceAllocatorState, shown
from snapkit.state.spec import virtio as spec
from snapkit.state.virtio_mmio import VirtioMmioState
from snapkit.state.vmgenid import VmgenidState

Claim = tuple[str, int, int, str]
"""Pool, start, length, owner."""

_WHERE = "resource-allocator/0"
_WINDOWS = ("mmio32", "mmio64")


def known_pools(index: Index) -> Mapping[str, tuple[int, int]]:
    """Return the pools of this machine's address map, by name: (start, length)."""
    pools = index.map.pools
    allocator = index.get("resource-allocator", "0", ResourceAllocatorState)
    for pool in allocator.pools if allocator is not None else ():
        if pool.pool == "mmio64" and (pool.start, pool.length) in index.map.windows64:
            return {**pools, "mmio64": (pool.start, pool.length)}
    return pools


@invariant("pools.known")
def pools_known(index: Index, _pages: Pages) -> Findings:
    """The pools are those of the address map: others would reach over RAM, interrupt controllers or each other."""
    for section, allocator in index.each(ResourceAllocatorState):
        known = index.once(known_pools)
        found: dict[str, tuple[int, int]] = {pool.pool: (pool.start, pool.length) for pool in allocator.pools}
        if found == known:
            continue
        for name in sorted({*found, *known}):
            if found.get(name) != known.get(name):
                got = f"{name} {shown(*found[name])}" if name in found else f"without {name}"
                wanted = f"{name} {shown(*known[name])}" if name in known else f"without {name}"
                yield Finding(str(section), "pools", got, wanted)


@invariant("claims.agree")
def claims_agree(index: Index, _pages: Pages) -> Findings:
    """The allocator's claims are what the devices have, no more, no less: else a range would be given out twice."""
    allocator = index.get("resource-allocator", "0", ResourceAllocatorState)
    if allocator is None:
        return
    derived = set(index.once(_claims))
    saved = {(claim.pool, claim.start, claim.length, claim.owner): n for n, claim in enumerate(allocator.claims)}
    if derived == saved.keys():
        return
    for pool, start, length, owner in sorted(derived - saved.keys()):
        text = f"without {pool} {shown(start, length)} of {owner}"
        yield Finding(_WHERE, "claims", text, "with every range and number that a device has")
    for claim, number in saved.items():
        if claim not in derived:
            text = f"{claim[0]} {shown(claim[1], claim[2])} of {claim[3]}"
            yield Finding(_WHERE, f"claims[{number}]", text, "what a device has")


@invariant("claims.once")
def claims_once(index: Index, _pages: Pages) -> Findings:
    """No number, slot or address belongs to two: an interrupt would wake the wrong driver, a slot hold two functions."""
    derived = index.once(_claims)
    starts = {claim[:2] for claim in derived}
    if len(starts) == len(derived):
        return
    holders: dict[tuple[str, int], str] = {}
    for pool, start, length, owner in derived:
        holder = holders.setdefault((pool, start), owner)
        if holder is not owner:
            yield Finding(owner, "", f"with {pool} {shown(start, length)}", f"without it: {holder} has it")


@invariant("virtio-mmio.slot")
def slots_in_place(index: Index, _pages: Pages) -> Findings:
    """A memory-mapped device is in the part of its window that no BAR may enter: there it cannot be covered."""
    low, end = index.map.slots
    for section, mmio in index.each(VirtioMmioState):
        if not low <= mmio.address <= end - spec.MMIO_LEN:
            expected = f"from {low:#x} to {end - spec.MMIO_LEN:#x}"
            yield Finding(str(section), "address", f"{mmio.address:#x}", expected)


def _claims(index: Index) -> list[Claim]:
    """Return every claim that the devices' own States tell of."""
    claims: list[Claim] = []
    pools = index.once(known_pools)
    windows = [(pool, pools[pool][0], sum(pools[pool])) for pool in _WINDOWS]
    for section, function in index.each(PciFunctionState):
        owner = str(section)
        if function.slot or section != HOST_BRIDGE:
            claims.append(("pci-slot", function.slot, 1, owner))
        claims += [(_window(windows, bar.address, bar.length), bar.address, bar.length, owner) for bar in function.bars]
    for section, msix in index.each(PciMsixState):
        owner = str(section)
        claims += [("gsi-msi", gsi, 1, owner) for gsi in msix.gsis]
    for section, mmio in index.each(VirtioMmioState):
        owner = str(section)
        claims.append(("mmio32", mmio.address, spec.MMIO_LEN, owner))
        claims.append(("gsi-legacy", mmio.gsi, 1, owner))
    for section, generation in index.each(VmgenidState):
        claims.append(("gsi-legacy", generation.gsi, 1, str(section)))
    return claims


def _window(windows: list[tuple[str, int, int]], start: int, length: int) -> str:
    for pool, low, high in windows:
        if low <= start and start + length <= high:
            return pool
    return "no window"
