"""Orders as tables: sorted by their edges, stable, and not to be contradicted."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapkit.errors import InternalError
from snapkit.order import Edge, Order
from snapkit.restore import orders
from snapkit.state.memory_layout import RegionState
from snapkit.state.schema import SectionId, State
from snapkit.vmm import save_order
from snapkit.vmm.arch import Platform
from snapkit.vmm.arch.aarch64 import vcpu as aarch64_vcpu
from snapkit.vmm.arch.aarch64 import vcpu_order as aarch64_order
from snapkit.vmm.arch.x86_64 import vcpu, vcpu_order
from snapkit.vmm.parts.board import CONSTRUCT_ORDER
from tests.grounds import PLATFORMS
from tests.order_tables import EDGES, TABLES, name_of, places, reverse, swapped

NAMES = "abcdefg"


def edge(pair: str, why: str = "so it is") -> Edge:
    return Edge(pair[0], pair[1], why)


def test_names_stand_as_listed_unless_an_edge_asks_for_something_else():
    assert Order("t", "dcba", ()).names == tuple("dcba")
    assert Order("t", "dcba", [edge("ad")]).names == tuple("cbad")
    assert Order("t", "dcba", [edge("ac"), edge("cb")]).names == tuple("dacb")


def test_each_name_has_the_reasons_for_its_place():
    order = Order("t", "abc", [edge("ac", "one"), edge("bc", "two")])
    assert order.reasons == {"a": [], "b": [], "c": ["after a: one", "after b: two"]}


@pytest.mark.parametrize("pair", ["ax", "xa"])
def test_an_edge_of_a_name_that_is_not_listed_is_refused(pair):
    with pytest.raises(
        InternalError, match=f"the edge {pair[0]} before {pair[1]}: so it is must be between two of a, b"
    ):
        Order("t", "ab", [edge(pair)])


def test_a_longer_contradiction_gives_every_reason_on_the_way():
    with pytest.raises(InternalError) as caught:
        Order("t", "abcd", [edge("da", "0"), edge("ab", "1"), edge("bc", "2"), edge("ca", "3")])
    assert str(caught.value) == "t contradicts itself: a before b: 1; but b before c: 2; but c before a: 3"


def test_nothing_comes_before_itself():
    with pytest.raises(InternalError, match="t contradicts itself: a before a: so it is"):
        Order("t", "ab", [edge("aa")])


@given(st.permutations(NAMES), st.sets(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES))))
def test_whatever_the_edges_each_is_respected_or_all_are_refused(names, pairs):
    edges = [Edge(before, after, "") for before, after in pairs]
    try:
        place = places(Order("t", names, edges))
    except InternalError:
        assert pairs
        return
    assert sorted(place) == list(NAMES)
    assert all(place[before] < place[after] for before, after in pairs)


# The tables themselves


@pytest.mark.parametrize(("table", "edge"), EDGES, ids=name_of)
def test_the_reverse_of_an_edge_is_refused_with_both_reasons(table, edge):
    order = TABLES[table]
    with pytest.raises(InternalError) as caught:
        Order(order.title, order.names, [*order.edges, reverse(edge)])
    assert edge.why in str(caught.value)
    assert reverse(edge).why in str(caught.value)


@pytest.mark.parametrize(("table", "edge"), EDGES, ids=name_of)
def test_no_edge_follows_from_the_others_so_that_without_it_the_order_could_be_another(table, edge):
    place = places(swapped(TABLES[table], edge))
    assert place[edge.after] < place[edge.before]


@pytest.mark.parametrize("table", TABLES)
def test_every_name_and_edge_stands_once_and_every_edge_has_its_reason(table):
    order = TABLES[table]
    pairs = [(edge.before, edge.after) for edge in order.edges]
    assert len(set(order.names)) == len(order.names)
    assert len(set(pairs)) == len(pairs)
    assert all(edge.why for edge in order.edges)


def constructed(platform: Platform) -> list[str]:
    """Kinds in the order in which a boot makes them, those of the other architecture left out."""
    own = dict.fromkeys(section.kind for section in platform.kernel_parts(2, "pci"))
    others = {kind for one in PLATFORMS for kind in one.MAP.pins} - platform.MAP.pins.keys()
    return ["machine", "memory-layout", *own, *(kind for kind in CONSTRUCT_ORDER if kind not in others)]


def test_what_machines_are_constructed_of_is_in_the_table_and_nothing_else():
    assert {kind for platform in PLATFORMS for kind in constructed(platform)} == set(orders.REBUILD.names)
    loaded = {kind for platform in PLATFORMS for kind in (platform.VCPU, *platform.CHIPS)}
    assert loaded == set(orders.LOAD.names) <= set(save_order.SAVE.names)


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.MAP.name)
def test_a_boot_constructs_in_an_order_that_the_edges_allow(platform):
    kinds = constructed(platform)
    for edge in orders.REBUILD.edges:
        if edge.before in kinds and edge.after in kinds:
            assert kinds.index(edge.before) < kinds.index(edge.after), edge


def test_what_is_written_at_the_first_resume_comes_last_of_a_vcpu():
    last = vcpu_order.AT_FIRST_RESUME
    assert vcpu_order.LOAD.names[-len(last) :] == last == ("TSC", "TSC_DEADLINE")
    assert list(vcpu.CLOCK_MSRS) == [0x10, 0x6E0]
    assert {*vcpu._WRITE, *last} == set(vcpu_order.LOAD.names)


def test_what_is_written_of_an_aarch64_vcpu_is_what_its_table_names():
    last = aarch64_order.AT_FIRST_RESUME
    assert aarch64_order.LOAD.names[-len(last) :] == last
    assert {*aarch64_vcpu._WRITE, *last} == set(aarch64_order.LOAD.names)


def test_a_machine_is_read_in_its_order_and_gives_the_order_of_the_file():
    seen: list[str] = []
    kinds = ["vcpu-x86-64", "pit", "virtio-rng", "kvm-clock", "interrupt-table", "irqchip-x86", "serial-16550"]
    state = RegionState(gpa=0, length=4096)

    def reader(kind: str) -> Callable[[], State]:
        def read() -> State:
            seen.append(kind)
            return state

        return read

    saved = save_order.read_in_order({SectionId(kind, "0"): reader(kind) for kind in kinds})
    assert [section.kind for section in saved] == kinds
    first = ["virtio-rng", "serial-16550", "interrupt-table"]
    assert seen == [*first, "vcpu-x86-64", "irqchip-x86", "pit", "kvm-clock"]
