"""The allocators against a plain model of them: one cell for every number, searched from the front."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapkit.errors import ConfigError, ImageError, InternalError
from snapkit.state.codec import checked, decode, encode
from snapkit.state.resource_allocator import (
    CLAIMS_MAX,
    PoolState,
    ResourceAllocatorState,
    invariants,
)
from snapkit.state.schema import current
from snapkit.vmm.resource_allocator import AddressAllocator, IdAllocator, ResourceAllocator

GIB = 1 << 30
# The address map of an x86-64 machine, as its documentation has it.
POOLS = [
    PoolState(pool="pci-slot", start=1, length=31),
    PoolState(pool="gsi-legacy", start=5, length=19),
    PoolState(pool="gsi-msi", start=24, length=4072),
    PoolState(pool="mmio32", start=0xC000_0000, length=0x2EC0_0000),
    PoolState(pool="mmio64", start=256 * GIB, length=256 * GIB),
]
ROOT, OTHER = "pci-function/root", "pci-function/other"


@pytest.fixture
def resources():
    return ResourceAllocator(POOLS)


# One range of addresses

LENGTH = 48
starts = st.integers(-2, LENGTH + 40)
lengths = st.integers(1, 20)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("allocate"), lengths, st.sampled_from([1, 2, 4, 8, 16])),
        st.tuples(st.just("claim"), starts, lengths),
        st.tuples(st.just("free"), st.integers(0, 9), st.just(0)),
        st.tuples(st.just("free wrongly"), starts, lengths),
    ),
    max_size=30,
)


@given(start=st.integers(0, 20), steps=steps)
def test_every_answer_is_that_of_a_model_which_searches_cell_by_cell(start, steps):
    allocator = AddressAllocator(start, LENGTH)
    cells = set(range(start, start + LENGTH))
    held: list[tuple[int, int]] = []
    for what, first, second in steps:
        if what == "allocate":
            length, align = first, second
            wanted = next(
                (at for at in range(start + LENGTH) if at % align == 0 and cells.issuperset(range(at, at + length))),
                None,
            )
            if wanted is None:
                with pytest.raises(ConfigError, match="free in"):
                    allocator.allocate(length, align)
                continue
            assert allocator.allocate(length, align) == wanted
            held.append((wanted, length))
            cells -= set(range(wanted, wanted + length))
        elif what == "claim":
            if cells.issuperset(range(first, first + second)):
                allocator.claim(first, second)
                held.append((first, second))
                cells -= set(range(first, first + second))
            else:
                with pytest.raises(ConfigError, match=r"is taken by|is not inside"):
                    allocator.claim(first, second)
        elif what == "free":
            if first < len(held):
                at, length = held.pop(first)
                allocator.free(at, length)
                cells |= set(range(at, at + length))
        elif (first, second) not in held:
            with pytest.raises(InternalError, match="is not a claim"):
                allocator.free(first, second)
    assert [(claim.start, claim.end - claim.start) for claim in allocator.claims] == sorted(held)
    for at, length in held:
        allocator.free(at, length)
    assert allocator.allocate(LENGTH) == start, "ranges given back did not become one again"


def test_ranges_given_back_in_any_order_become_one_again():
    for order in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        allocator = AddressAllocator(0x1000, 0x3000)
        taken = [allocator.allocate(0x1000, 0x1000) for _ in range(3)]
        assert taken == [0x1000, 0x2000, 0x3000]
        for index in order:
            allocator.free(taken[index], 0x1000)
        allocator.claim(0x1000, 0x3000)


def test_the_last_byte_of_a_range_belongs_to_it_and_the_next_does_not():
    allocator = AddressAllocator(0x1000, 0x1000)
    allocator.claim(0x1FFF, 1)
    with pytest.raises(ConfigError, match=r"not inside"):
        allocator.claim(0x2000, 1)
    with pytest.raises(ConfigError, match=r"not inside"):
        allocator.claim(0xFFF, 1)
    assert allocator.allocate(0xFFF) == 0x1000


@pytest.mark.parametrize(("length", "align"), [(0, 1), (-1, 1), (1, 0), (1, 3), (1, -4)])
def test_a_length_or_alignment_that_is_none_is_refused(length, align):
    with pytest.raises(ConfigError, match="power of two"):
        AddressAllocator(0, 16).allocate(length, align)


def test_an_empty_range_cannot_be_claimed():
    with pytest.raises(ConfigError, match="not inside"):
        AddressAllocator(0, 16).claim(4, 0)


def test_the_lowest_free_number_is_taken_and_a_number_comes_back():
    numbers = IdAllocator(5, 3, name="lines")
    assert [numbers.allocate() for _ in range(3)] == [5, 6, 7]
    with pytest.raises(ConfigError, match=r"lines has no"):
        numbers.allocate()
    numbers.free(6)
    numbers.claim(6, "serial-16550/0")
    with pytest.raises(ConfigError, match=r"lines range 6 is taken by serial-16550/0"):
        numbers.claim(6)
    with pytest.raises(ConfigError, match=r"lines range 8 is not inside 5\.\.7"):
        numbers.claim(8)
    with pytest.raises(InternalError, match="not a claim"):
        numbers.free(6)


# The pools of a machine


def test_a_new_machine_takes_the_lowest_of_each_pool(resources):
    assert resources.allocate("gsi-legacy", 1, ROOT) == 5
    assert resources.allocate("gsi-msi", 1, ROOT) == 24
    assert resources.allocate("gsi-msi", 1, ROOT) == 25
    assert resources.allocate("pci-slot", 1, ROOT) == 1
    assert resources.allocate("mmio64", 0x8_0000, ROOT, align=0x8_0000) == 256 * GIB
    assert resources.allocate("mmio32", 0x1000, ROOT, align=0x1000) == 0xC000_0000


def test_a_taken_range_is_refused_by_the_name_of_its_holder(resources):
    resources.claim("mmio64", 256 * GIB, 0x8_0000, ROOT)
    with pytest.raises(ConfigError, match=r"mmio64 range 0x4000001000\.\.0x4000001fff is taken by pci-function/root"):
        resources.claim("mmio64", 256 * GIB + 0x1000, 0x1000, OTHER)


def test_only_the_owner_gives_back_and_only_what_it_took(resources):
    resources.claim("gsi-msi", 30, 4, ROOT)
    for start, length, owner in ((30, 4, OTHER), (30, 3, ROOT), (31, 3, ROOT), (30, 5, ROOT)):
        with pytest.raises(InternalError, match="not a claim"):
            resources.free("gsi-msi", start, length, owner)
    with pytest.raises(InternalError, match="not a claim"):
        resources.free("gsi-legacy", 30, 4, ROOT)
    resources.free("gsi-msi", 30, 4, ROOT)
    assert resources.save().claims == []


def test_an_owner_gives_everything_back_at_once_and_others_keep_theirs(resources):
    for owner in (ROOT, OTHER):
        resources.allocate("pci-slot", 1, owner)
        resources.allocate("gsi-msi", 3, owner)
        resources.allocate("mmio64", 0x8_0000, owner, align=0x8_0000)
    resources.free_owner(ROOT)
    assert {claim.owner for claim in resources.save().claims} == {OTHER}
    assert resources.allocate("pci-slot", 1, ROOT) == 1


def test_a_pool_that_is_used_up_says_so(resources):
    for _ in range(31):
        resources.allocate("pci-slot", 1, ROOT)
    with pytest.raises(ConfigError, match=r"pci-slot has no .* free in 1\.\.31"):
        resources.allocate("pci-slot", 1, ROOT)


def test_no_more_is_taken_than_a_snapshot_holds(resources):
    for _ in range(CLAIMS_MAX):
        resources.allocate("gsi-msi", 1, ROOT)
    with pytest.raises(ConfigError, match="all 1024 claims"):
        resources.allocate("mmio32", 1, ROOT)
    with pytest.raises(ConfigError, match="all 1024 claims"):
        resources.claim("mmio32", 0xC000_0000, 1, ROOT)
    assert checked(resources.save()) == resources.save()


def test_a_pool_that_the_machine_lacks_is_refused():
    with pytest.raises(ConfigError, match="no pool mmio64"):
        ResourceAllocator(POOLS[:2]).allocate("mmio64", 1, ROOT)


@pytest.mark.parametrize(
    ("address", "length", "pool"),
    [
        (0xC000_0000, 0x2EC0_0000, "mmio32"),
        (0xC000_0000, 0x2EC0_0001, None),
        (0xBFFF_FFFF, 2, None),
        (0xEEBF_FFFF, 1, "mmio32"),
        (0xEEC0_0000, 1, None),
        (256 * GIB, 1, "mmio64"),
        (256 * GIB - 1, 2, None),
        (512 * GIB - 0x8_0000, 0x8_0000, "mmio64"),
        (512 * GIB - 0x8_0000, 0x8_0001, None),
        (0, 1, None),
        (24, 1, None),
        ((1 << 64) - 1, 1 << 64, None),
        (0xC000_0000, 0, None),
    ],
)
def test_a_window_holds_what_lies_in_it_as_a_whole(resources, address, length, pool):
    assert resources.window(address, length) == pool


# As state


@pytest.fixture
def used(resources):
    resources.claim("mmio64", 300 * GIB, 0x8_0000, ROOT)
    resources.claim("mmio64", 256 * GIB, 0x8_0000, OTHER)
    resources.claim("pci-slot", 2, 1, ROOT)
    resources.claim("gsi-msi", 24, 2, ROOT)
    return resources


def test_what_is_saved_is_sorted_sound_and_decodes(used):
    state = used.save()
    assert [pool.pool for pool in state.pools] == ["gsi-legacy", "gsi-msi", "mmio32", "mmio64", "pci-slot"]
    assert [(claim.pool, claim.start) for claim in state.claims] == [
        ("gsi-msi", 24),
        ("mmio64", 256 * GIB),
        ("mmio64", 300 * GIB),
        ("pci-slot", 2),
    ]
    assert invariants(state, "resource-allocator/0") == []
    assert decode(current("resource-allocator"), encode(state), where="resource-allocator/0") == state


def test_a_saved_state_is_detached(used):
    before = used.save()
    used.free_owner(ROOT)
    assert len(before.claims) == 4


def test_restore_has_the_pools_and_nothing_taken(used):
    again = ResourceAllocator.restore(used.save())
    assert again.save() == ResourceAllocatorState(pools=used.save().pools)


def test_restore_refuses_a_state_out_of_its_bounds():
    with pytest.raises(ImageError, match=r"pools\[0\]\.start"):
        ResourceAllocator.restore(ResourceAllocatorState(pools=[PoolState(pool="mmio64", start=-1, length=1)]))


def test_claims_made_again_in_any_order_agree_with_the_saved_ones(used):
    state = used.save()
    again = ResourceAllocator.restore(state)
    for claim in reversed(state.claims):
        again.claim(claim.pool, claim.start, claim.length, claim.owner)
    assert again.agree(state) == []
    assert again.save() == state


def test_a_saved_claim_that_no_device_makes_is_found_by_its_path(used):
    state = used.save()
    used.free("mmio64", 300 * GIB, 0x8_0000, ROOT)
    (finding,) = used.agree(state)
    assert str(finding) == (
        "resource-allocator/0.claims[2] is mmio64 0x4b00000000..0x4b0007ffff of pci-function/root, "
        "must be what a device takes"
    )


def test_a_claim_of_a_device_that_was_not_saved_is_found(used):
    state = used.save()
    used.claim("gsi-legacy", 9, 1, "virtio-mmio/net0")
    (finding,) = used.agree(state)
    assert (finding.path, finding.expected) == ("claims", "with gsi-legacy 9 of virtio-mmio/net0")


def test_another_owner_and_other_pools_are_found(used):
    state = used.save()
    state.claims[0].owner = OTHER
    state.pools[0].length -= 1
    assert [finding.path for finding in used.agree(state)] == ["pools", "claims[0]", "claims"]


def claim(state, number, **change):
    for name, value in change.items():
        setattr(state.claims[number], name, value)


def pool(state, number, **change):
    for name, value in change.items():
        setattr(state.pools[number], name, value)


@pytest.mark.parametrize(
    ("break_it", "path", "rule"),
    [
        (lambda s: s.pools.reverse(), "pools[1].pool", "pools.sorted"),
        (lambda s: s.pools.insert(1, PoolState(pool="gsi-legacy", start=0, length=5)), "pools[1].pool", "pools.sorted"),
        (lambda s: pool(s, 1, length=4073), "pools[1]", "pools.limits"),
        (lambda s: pool(s, 0, length=20), "pools[1]", "pools.apart"),
        (lambda s: pool(s, 2, length=0), "pools[2]", "pools.limits"),
        (lambda s: pool(s, 3, length=(1 << 64) - 1), "pools[3]", "pools.limits"),
        (lambda s: pool(s, 4, start=0), "pools[4]", "pools.limits"),
        (lambda s: s.claims.reverse(), "claims[1]", "claims.sorted"),
        (lambda s: s.claims.insert(0, s.claims[0]), "claims[1]", "claims.apart"),
        (lambda s: claim(s, 0, start=23), "claims[0]", "claims.inside"),
        (lambda s: claim(s, 0, start=4095), "claims[0]", "claims.inside"),
        (lambda s: claim(s, 0, length=0), "claims[0]", "claims.inside"),
        (lambda s: claim(s, 1, length=(1 << 64) - 1), "claims[1]", "claims.inside"),
        (lambda s: claim(s, 1, length=45 * GIB), "claims[2]", "claims.apart"),
        (lambda s: claim(s, 3, start=0), "claims[3]", "claims.inside"),
        (lambda s: s.pools.pop(), "claims[3].pool", "claims.pool"),
        (lambda s: claim(s, 2, owner="root"), "claims[2].owner", "claims.owner"),
        (lambda s: claim(s, 2, owner="no-such-kind/root"), "claims[2].owner", "claims.owner"),
    ],
)
def test_a_state_that_no_allocator_saves_is_found_by_its_path(used, break_it, path, rule):
    state = used.save()
    break_it(state)
    assert (path, rule) in [(finding.path, finding.rule) for finding in invariants(state, "resource-allocator/0")]
