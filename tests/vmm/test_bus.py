"""The bus against a plain model of it: a list of ranges that is searched from the front."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapkit.errors import ConfigError
from snapkit.vmm.bus import Bus

TOP = 64


class Noted:
    def __init__(self, name: int) -> None:
        self.name = name
        self.seen: list[tuple[int, int, int]] = []

    def read(self, offset: int, length: int) -> int:
        self.seen.append((offset, length, -1))
        return self.name

    def write(self, offset: int, length: int, value: int) -> None:
        self.seen.append((offset, length, value))


ranges = st.tuples(st.integers(0, TOP), st.integers(1, 12))


@given(wanted=st.lists(ranges, max_size=12), dropped=st.sets(st.integers(0, 11)))
def test_every_access_reaches_the_device_that_claims_all_of_it_and_no_other(wanted, dropped):
    bus = Bus("test")
    claims: list[tuple[int, int, Noted]] = []
    for name, (start, length) in enumerate(wanted):
        device = Noted(name)
        if any(start < last and first < start + length for first, last, _ in claims):
            with pytest.raises(ConfigError, match="overlaps"):
                bus.insert(start, length, device)
        else:
            bus.insert(start, length, device)
            claims.append((start, start + length, device))
    for index in sorted(dropped, reverse=True):
        if index < len(claims):
            bus.remove(claims.pop(index)[0])
    unclaimed = 0
    for address in range(TOP + 16):
        for length in (1, 2, 4, 8):
            owner = next((c for c in claims if c[0] <= address and address + length <= c[1]), None)
            bus.write(address, length, 7)
            if owner is None:
                unclaimed += 2
                assert bus.read(address, length) == (1 << 8 * length) - 1
            else:
                assert bus.read(address, length) == owner[2].name
                offset = address - owner[0]
                assert owner[2].seen[-2:] == [(offset, length, 7), (offset, length, -1)]
    assert bus.unclaimed == unclaimed


@pytest.mark.parametrize("start", [0, 7, 8, 9, 12, 15])
def test_a_range_that_overlaps_is_refused_whichever_side_it_comes_from(start):
    bus = Bus("port")
    bus.insert(8, 8, Noted(0))
    with pytest.raises(ConfigError, match=r"port range .* overlaps 0x8\.\.0x10"):
        bus.insert(start, 9, Noted(1))
    assert bus.read(start, 1) == (0 if 8 <= start < 16 else 0xFF)


def test_ranges_may_touch():
    bus = Bus("port")
    order = list(range(0, 64, 4))
    random.Random(5).shuffle(order)
    for start in order:
        bus.insert(start, 4, Noted(start))
    assert [bus.read(address, 1) for address in range(64)] == [address & ~3 for address in range(64)]
    assert bus.read(2, 4) == 0xFFFF_FFFF  # over the end of one range into another belongs to nobody
    assert bus.unclaimed == 1


def test_what_was_removed_can_be_claimed_again_and_what_is_not_there_cannot_be_removed():
    bus = Bus("mmio")
    bus.insert(0x100, 0x10, Noted(1))
    with pytest.raises(ConfigError, match="mmio has no range at 0x101"):
        bus.remove(0x101)
    bus.remove(0x100)
    bus.insert(0x108, 0x10, Noted(2))
    assert bus.read(0x108, 1) == 2
    with pytest.raises(ConfigError, match="no range"):
        bus.remove(0x100)
