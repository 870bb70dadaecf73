"""Devices that each decode but do not make one machine: a good machine, broken in one place, is refused by that place."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from snapkit.errors import Finding
from snapkit.restore.check import INVARIANTS, check
from snapkit.restore.check import devices as device_checks
from snapkit.restore.check import interrupts as interrupt_checks
from snapkit.state.codec import checked
from snapkit.state.interrupt_table import LineState, RouteState
from snapkit.state.pci_function import BarState, find_capability
from snapkit.state.pci_msix import MsixEntryState
from snapkit.state.pci_segment import PciSegmentState
from snapkit.state.resource_allocator import ClaimState, PoolState
from snapkit.state.schema import SectionId
from snapkit.state.spec.pci import CAP_ID_MSIX
from snapkit.state.virtio_pci import VirtioPciState
from snapkit.vmm.arch.x86_64 import layout
from snapkit.vmm.parts.fresh import POOLS, Transport
from snapkit.vmm.virtio import pci_layout
from tests.restore.device_machine import DEVICES, OneRegion, States, busy_machine, fresh_machine, with_ram

CLAIMS, TABLE = SectionId("resource-allocator", "0"), SectionId("interrupt-table", "0")
GENERATION, SEGMENT = SectionId("vmgenid", "0"), SectionId("pci-segment", "0")
BRIDGE = SectionId("pci-function", "host-bridge")
PCI: Transport = "pci"
MMIO: Transport = "mmio"


def findings(states: States) -> list[Finding]:
    pages: Any = OneRegion()
    return check(states, pages)


def at(states: States, kind: str, instance: str = "root") -> Any:
    return states[SectionId(kind, instance)]


def patch(states: States, instance: str, offset: int, payload: bytes) -> None:
    """Write into a configuration space."""
    config = bytearray(at(states, "pci-function", instance).config)
    config[offset : offset + len(payload)] = payload
    at(states, "pci-function", instance).config = bytes(config)


def msix_at(states: States, instance: str = "root") -> int:
    return find_capability(at(states, "pci-function", instance).config, CAP_ID_MSIX) or 0


def move_bar(states: States, instance: str, address: int, pool: str = "mmio64") -> None:
    """Move a BAR as a guest does, claim and register and all."""
    function = at(states, "pci-function", instance)
    owner = f"pci-function/{instance}"
    for claim in states[CLAIMS].claims:
        if claim.owner == owner and claim.start == function.bars[0].address:
            claim.pool, claim.start = pool, address
    states[CLAIMS].claims.sort(key=lambda claim: (claim.pool, claim.start))
    function.bars[0].address = address
    patch(states, instance, 0x10, (address | 4).to_bytes(8, "little"))


# The devices as a whole


def device_without_its_transport(states: States) -> None:
    del states[SectionId("virtio-pci", "rng")]


def device_without_any_transport(states: States) -> None:
    for kind in ("virtio-pci", "pci-function", "pci-msix"):
        del states[SectionId(kind, "rng")]


def transport_without_a_device(states: States) -> None:
    del states[SectionId("virtio-rng", "rng")]


def two_devices_of_one_id(states: States) -> None:
    states[SectionId("virtio-rng", "root")] = states.pop(SectionId("virtio-rng", "rng"))


def a_device_with_the_id_of_the_host_bridge(states: States) -> None:
    states[SectionId("virtio-rng", "host-bridge")] = copy.deepcopy(at(states, "virtio-rng", "rng"))


def both_transports(states: States) -> None:
    states.update({name: state for name, state in fresh_machine("mmio").items() if name == ("virtio-mmio", "rng")})


def functions_without_a_segment(states: States) -> None:
    del states[SEGMENT]


def a_segment_without_functions(states: States) -> None:
    states[SEGMENT] = PciSegmentState()


def a_second_segment(states: States) -> None:
    states[SectionId("pci-segment", "1")] = PciSegmentState()


def no_host_bridge(states: States) -> None:
    del states[BRIDGE]


def host_bridge_elsewhere(states: States) -> None:
    states[BRIDGE].slot = 9


def a_second_generation(states: States) -> None:
    states[SectionId("vmgenid", "1")] = copy.deepcopy(states[GENERATION])


def generation_outside_ram(states: States) -> None:
    states[GENERATION].gpa = 0xD000_0000


def generation_over_the_end_of_ram(states: States) -> None:
    states[GENERATION].gpa = 0x40_0000 - 8


# Claims


def pool_over_ram(states: States) -> None:
    states[CLAIMS].pools[2] = PoolState(pool="mmio32", start=0x1000, length=0xEEC0_0000 - 0x1000)


def pool_missing(states: States) -> None:
    del states[CLAIMS].pools[0]


def claim_missing(states: States) -> None:
    states[CLAIMS].claims = [claim for claim in states[CLAIMS].claims if claim.owner != "vmgenid/0"]


def claim_of_nobody(states: States) -> None:
    states[CLAIMS].claims.append(ClaimState(pool="pci-slot", start=31, length=1, owner="pci-function/gone"))


def claim_of_another(states: States) -> None:
    states[CLAIMS].claims[0].owner = "vmgenid/1"


def one_slot_twice(states: States) -> None:
    at(states, "pci-function", "rng").slot = at(states, "pci-function", "root").slot


def device_in_slot_0(states: States) -> None:
    at(states, "pci-function", "rng").slot = 0


def bar_in_no_window(states: States) -> None:
    at(states, "pci-function", "root").bars[0].address = 0x10_0000_0000


def one_gsi_twice(states: States) -> None:
    at(states, "pci-msix", "rng").gsis[0] = at(states, "pci-msix", "root").gsis[0]


def mmio_device_where_it_was_not_claimed(states: States) -> None:
    at(states, "virtio-mmio").address -= 0x10_0000


def mmio_gsi_that_was_not_claimed(states: States) -> None:
    at(states, "virtio-mmio").gsi = 23


# PCI


def bars_over_each_other(states: States) -> None:
    at(states, "pci-function", "rng").bars[0].address = at(states, "pci-function", "root").bars[0].address


def bar_where_mmio_slots_are(states: States) -> None:
    move_bar(states, "root", 0xEEB8_0000, "mmio32")


def wrong_device_id(states: States) -> None:
    patch(states, "root", 2, b"\x44\x10")


def bar_too_short_for_the_doorbells(states: States) -> None:
    at(states, "pci-function", "root").bars[0].length = 0x1000


def another_bar(states: States) -> None:
    at(states, "pci-function").bars.append(BarState(index=2, width=32, length=0x1000, address=0xC000_0000))


def no_bar(states: States) -> None:
    at(states, "pci-function").bars.clear()


def no_msix_capability(states: States) -> None:
    patch(states, "root", msix_at(states), b"\x09")


def msix_table_size(states: States) -> None:
    patch(states, "root", msix_at(states) + 2, b"\x07")


def msix_table_outside_its_bar(states: States) -> None:
    patch(states, "root", msix_at(states) + 4, (0x7FFF8).to_bytes(4, "little"))


def pba_over_the_table(states: States) -> None:
    patch(states, "root", msix_at(states) + 8, (0x8000).to_bytes(4, "little"))


def vectors_as_many_as_queues(states: States) -> None:
    del at(states, "pci-msix", "v0").entries[-1]


# What the driver said


def vector_list_too_short(states: States) -> None:
    at(states, "virtio-pci", "v0").queue_msix_vectors.pop()


def vector_that_there_is_not(states: States) -> None:
    at(states, "virtio-pci").queue_msix_vectors[0] = 2


def config_vector_that_there_is_not(states: States) -> None:
    at(states, "virtio-pci").config_msix_vector = 0xFFFE


def broken_without_needs_reset(states: States) -> None:
    at(states, "virtio-block").broken = True


def needs_reset_without_broken(states: States) -> None:
    at(states, "virtio-pci").device_status |= 0x40


def needs_reset_without_broken_mmio(states: States) -> None:
    at(states, "virtio-mmio").status |= 0x40


def driver_ok_without_features_ok(states: States) -> None:
    at(states, "virtio-pci").device_status = 0x07


def features_that_were_not_written(states: States) -> None:
    at(states, "virtio-pci").driver_features = [1 << 28, 1]


def features_before_features_ok(states: States) -> None:
    at(states, "virtio-mmio").status = 0x03


def features_not_offered(states: States) -> None:
    at(states, "virtio-rng", "rng").acked |= 1 << 34


def ring_outside_ram(states: States) -> None:
    at(states, "virtio-vsock", "v0").queues[1].driver = 0x4000_0000


def ring_over_the_end_of_ram(states: States) -> None:
    at(states, "virtio-block").queues[0].desc = 0x40_0000 - 16


def ring_on_an_odd_address(states: States) -> None:
    at(states, "virtio-block").queues[0].device += 2


def queue_of_an_odd_size(states: States) -> None:
    at(states, "virtio-block").queues[0].size = 3


def queue_larger_than_offered(states: States) -> None:
    at(states, "virtio-block").queues[0].size = 512


def a_queue_too_many(states: States) -> None:
    rng = at(states, "virtio-rng", "rng")
    rng.queues.append(copy.deepcopy(rng.queues[0]))


def a_queue_too_few(states: States) -> None:
    at(states, "virtio-balloon", "b").queues.pop()


# Interrupts


def line_missing(states: States) -> None:
    states[TABLE].lines.pop()


def line_of_nobody(states: States) -> None:
    states[TABLE].lines.append(LineState(gsi=23, edge=True, owner="vmgenid/0"))


def line_level_for_edge(states: States) -> None:
    states[TABLE].lines[0].edge = False


def one_line_for_two(states: States) -> None:
    at(states, "virtio-mmio", "rng").gsi = at(states, "virtio-mmio", "root").gsi


def generation_on_the_serial_line(states: States) -> None:
    states[GENERATION].gsi = 4


def route_missing(states: States) -> None:
    states[TABLE].routes.pop(0)


def route_of_a_masked_vector(states: States) -> None:
    at(states, "pci-msix").entries[1].control = 1


def route_while_the_function_is_masked(states: States) -> None:
    patch(states, "root", msix_at(states) + 3, b"\xc0")


def route_while_msix_is_off(states: States) -> None:
    patch(states, "root", msix_at(states) + 3, b"\x00")


def route_with_another_message(states: States) -> None:
    states[TABLE].routes[0].data ^= 1


def route_of_another(states: States) -> None:
    states[TABLE].routes[0].owner = "pci-msix/rng"


def route_of_a_gsi_that_nobody_has(states: States) -> None:
    states[TABLE].routes.append(RouteState(gsi=4000, address=0xFEE0_0000, data=1, owner="pci-msix/root"))


def pending_vector_that_there_is_not(states: States) -> None:
    at(states, "pci-msix").pending[0] = 1 << 2


BROKEN: list[tuple[Callable[[States], None], Transport, str, str]] = [
    (device_without_its_transport, PCI, "devices.complete", "rng"),
    (device_without_any_transport, PCI, "devices.complete", "rng"),
    (transport_without_a_device, PCI, "devices.complete", "rng"),
    (transport_without_a_device, MMIO, "devices.complete", "rng"),
    (two_devices_of_one_id, PCI, "devices.complete", "root"),
    (a_device_with_the_id_of_the_host_bridge, PCI, "devices.complete", "host-bridge"),
    (a_device_with_the_id_of_the_host_bridge, MMIO, "devices.complete", "host-bridge"),
    (both_transports, PCI, "devices.complete", "machine/0"),
    (functions_without_a_segment, PCI, "devices.complete", "pci-segment"),
    (a_segment_without_functions, MMIO, "devices.complete", "pci-segment"),
    (a_second_segment, PCI, "devices.complete", "pci-segment"),
    (no_host_bridge, PCI, "devices.complete", "pci-function/host-bridge.slot"),
    (host_bridge_elsewhere, PCI, "devices.complete", "pci-function/host-bridge.slot"),
    (a_second_generation, MMIO, "devices.complete", "vmgenid/1"),
    (generation_outside_ram, PCI, "vmgenid.in-ram", "vmgenid/0.gpa"),
    (generation_over_the_end_of_ram, MMIO, "vmgenid.in-ram", "vmgenid/0.gpa"),
    (pool_over_ram, PCI, "pools.known", "resource-allocator/0.pools"),
    (pool_missing, MMIO, "pools.known", "resource-allocator/0.pools"),
    (claim_missing, PCI, "claims.agree", "resource-allocator/0.claims"),
    (claim_of_nobody, PCI, "claims.agree", "resource-allocator/0.claims[28]"),
    (claim_of_another, MMIO, "claims.agree", "resource-allocator/0.claims[0]"),
    (one_slot_twice, PCI, "claims.agree", "resource-allocator/0.claims"),
    (device_in_slot_0, PCI, "claims.agree", "resource-allocator/0.claims"),
    (bar_in_no_window, PCI, "claims.agree", "resource-allocator/0.claims"),
    (one_gsi_twice, PCI, "claims.agree", "resource-allocator/0.claims"),
    (mmio_device_where_it_was_not_claimed, MMIO, "claims.agree", "resource-allocator/0.claims"),
    (mmio_gsi_that_was_not_claimed, MMIO, "claims.agree", "resource-allocator/0.claims"),
    (bars_over_each_other, PCI, "pci.bars-apart", "pci-function/root.bars[0].address"),
    (bar_where_mmio_slots_are, PCI, "pci.bar-window", "pci-function/root.bars[0].address"),
    (wrong_device_id, PCI, "pci.device-id", "pci-function/root.config[2:4]"),
    (bar_too_short_for_the_doorbells, PCI, "pci.virtio-bar", "pci-function/root.bars"),
    (another_bar, PCI, "pci.virtio-bar", "pci-function/root.bars"),
    (no_bar, PCI, "pci.virtio-bar", "pci-function/root.bars"),
    (no_msix_capability, PCI, "msix.capability", "pci-function/root.config"),
    (msix_table_size, PCI, "msix.size", "pci-msix/root.entries"),
    (msix_table_outside_its_bar, PCI, "msix.place", "pci-function/root.config[{msix+4}]"),
    (pba_over_the_table, PCI, "msix.place", "pci-function/root.config[{msix+8}]"),
    (vectors_as_many_as_queues, PCI, "msix.vectors", "pci-msix/v0.entries"),
    (vector_list_too_short, PCI, "virtio-pci.vectors", "virtio-pci/v0.queue_msix_vectors"),
    (vector_that_there_is_not, PCI, "virtio-pci.vectors", "virtio-pci/root.queue_msix_vectors[0]"),
    (config_vector_that_there_is_not, PCI, "virtio-pci.vectors", "virtio-pci/root.config_msix_vector"),
    (broken_without_needs_reset, PCI, "virtio.broken", "virtio-pci/root.device_status"),
    (broken_without_needs_reset, MMIO, "virtio.broken", "virtio-mmio/root.status"),
    (needs_reset_without_broken, PCI, "virtio.broken", "virtio-pci/root.device_status"),
    (needs_reset_without_broken_mmio, MMIO, "virtio.broken", "virtio-mmio/root.status"),
    (driver_ok_without_features_ok, PCI, "virtio.status", "virtio-pci/root.device_status"),
    (features_that_were_not_written, PCI, "virtio.features", "virtio-block/root.acked"),
    (features_before_features_ok, MMIO, "virtio.features", "virtio-block/root.acked"),
    (features_not_offered, PCI, "virtio.features", "virtio-rng/rng.acked"),
    (ring_outside_ram, PCI, "virtio.ring", "virtio-vsock/v0.queues[1].driver"),
    (ring_over_the_end_of_ram, MMIO, "virtio.ring", "virtio-block/root.queues[0].desc"),
    (ring_on_an_odd_address, MMIO, "virtio.ring", "virtio-block/root.queues[0].device"),
    (queue_of_an_odd_size, PCI, "virtio.queue-size", "virtio-block/root.queues[0].size"),
    (queue_larger_than_offered, MMIO, "virtio.queue-size", "virtio-block/root.queues[0].size"),
    (a_queue_too_many, MMIO, "virtio.queues", "virtio-rng/rng.queues"),
    (a_queue_too_few, MMIO, "virtio.queues", "virtio-balloon/b.queues"),
    (line_missing, MMIO, "interrupts.lines", "interrupt-table/0.lines"),
    (line_of_nobody, MMIO, "interrupts.lines", "interrupt-table/0.lines"),
    (line_level_for_edge, PCI, "interrupts.lines", "interrupt-table/0.lines"),
    (one_line_for_two, MMIO, "interrupts.lines", "interrupt-table/0.lines"),
    (generation_on_the_serial_line, PCI, "interrupts.lines", "interrupt-table/0.lines"),
    (route_missing, PCI, "interrupts.routes", "interrupt-table/0.routes"),
    (route_of_a_masked_vector, PCI, "interrupts.routes", "interrupt-table/0.routes[0]"),
    (route_while_the_function_is_masked, PCI, "interrupts.routes", "interrupt-table/0.routes[0]"),
    (route_while_msix_is_off, PCI, "interrupts.routes", "interrupt-table/0.routes[0]"),
    (route_with_another_message, PCI, "interrupts.routes", "interrupt-table/0.routes[0]"),
    (route_of_another, PCI, "interrupts.routes", "interrupt-table/0.routes[0]"),
    (route_of_a_gsi_that_nobody_has, PCI, "interrupts.routes", "interrupt-table/0.routes[12]"),
    (pending_vector_that_there_is_not, PCI, "msix.pending", "pci-msix/root.pending[0]"),
]


@pytest.mark.parametrize(
    ("change", "transport", "rule", "place"), BROKEN, ids=lambda item: getattr(item, "__name__", None)
)
def test_one_disagreement_is_found_by_its_rule_at_its_place(change, transport, rule, place):
    states = busy_machine(transport)
    change(states)
    offset = msix_at(states) if transport == PCI else 0
    place = place.replace("{msix+4}", str(offset + 4)).replace("{msix+8}", str(offset + 8))
    found = findings(states)
    told = {(finding.rule, f"{finding.component}.{finding.path}".rstrip(".")) for finding in found}
    assert (rule, place) in told, "\n".join(f"{finding} ({finding.rule})" for finding in found)


def test_every_rule_about_devices_has_a_machine_that_breaks_it():
    modules = {device_checks.__name__, interrupt_checks.__name__}
    about_devices = [invariant for invariant in INVARIANTS if invariant.__module__ in modules]
    pages: Any = OneRegion()
    unbroken = {invariant.__name__ for invariant in about_devices}
    assert len(unbroken) == 9
    for change, transport, _rule, _place in BROKEN:
        states = busy_machine(transport)
        change(states)
        unbroken -= {one.__name__ for one in about_devices if list(one(states, pages))}
    assert unbroken == set()


@pytest.mark.parametrize("transport", [None, "pci", "mmio"])
def test_a_machine_that_was_just_switched_on_has_nothing_wrong(transport):
    assert findings(fresh_machine(transport)) == []


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_machine_at_work_has_nothing_wrong_and_is_encodable(transport):
    states = busy_machine(transport)
    assert findings(states) == []
    assert {name: checked(state) for name, state in states.items()} == states


# What a guest may do, and no check may hold against it


def pending_bar_move(states: States) -> None:
    patch(states, "root", 4, b"\0\0")
    patch(states, "root", 0x10, (0xC000_0000 | 4).to_bytes(8, "little"))


def bar_moved_where_nothing_is(states: States) -> None:
    patch(states, "root", 4, b"\0\0")
    patch(states, "root", 0x10, (0x8_0000 | 4).to_bytes(8, "little"))


def half_a_size_probe(states: States) -> None:
    patch(states, "root", 4, b"\0\0")
    patch(states, "root", 0x10, (0xFFF8_0004).to_bytes(4, "little"))


def bar_moved_below_4_gib(states: States) -> None:
    move_bar(states, "rng", 0xC008_0000, "mmio32")


def bars_in_another_order(states: States) -> None:
    move_bar(states, "root", 0x70_0000_0000)


def nonsense_rings_before_driver_ok(states: States) -> None:
    at(states, "virtio-pci").device_status = 0x0B
    at(states, "virtio-block").queues[0].desc = 0xFFFF_FFFF_FFFF_FFFF


def nonsense_rings_of_a_broken_device(states: States) -> None:
    at(states, "virtio-pci").device_status |= 0x40
    at(states, "virtio-block").broken = True
    at(states, "virtio-block").queues[0].desc = 0xFFFF_FFFF_FFFF_FFFF


def nonsense_rings_that_are_not_ready(states: States) -> None:
    at(states, "virtio-block").queues[0].ready = False
    at(states, "virtio-block").queues[0].device = 7


def features_written_but_not_accepted(states: States) -> None:
    at(states, "virtio-block").acked = 0
    at(states, "virtio-pci").device_status = 0x03
    at(states, "virtio-pci").driver_features = [0xFFFF_FFFF, 0xFFFF_FFFF]


def driver_gave_up(states: States) -> None:
    at(states, "virtio-pci").device_status |= 0x80


def vectors_shared_by_all_queues(states: States) -> None:
    at(states, "virtio-pci", "v0").queue_msix_vectors = [0, 0, 0]


def no_vectors_chosen(states: States) -> None:
    carrier: VirtioPciState = at(states, "virtio-pci", "v0")
    carrier.config_msix_vector, carrier.queue_msix_vectors = 0xFFFF, [0xFFFF] * 3


def everything_pending(states: States) -> None:
    at(states, "pci-msix", "v0").pending[0] = 0xF


def open_vector_with_no_address(states: States) -> None:
    entry: MsixEntryState = at(states, "pci-msix", "root").entries[1]
    entry.address = entry.data = 0
    states[TABLE].routes[0].address = states[TABLE].routes[0].data = 0


def function_masked_with_open_entries(states: States) -> None:
    patch(states, "root", msix_at(states) + 3, b"\xc0")
    states[TABLE].routes = [route for route in states[TABLE].routes if route.owner != "pci-msix/root"]


def window_to_bar_left_open(states: States) -> None:
    at_window = pci_layout.window(at(states, "pci-function").config) or 0
    patch(states, "root", at_window + 8, (0xFFFF_FFFF).to_bytes(4, "little"))


ALLOWED = [
    pending_bar_move,
    bar_moved_where_nothing_is,
    half_a_size_probe,
    bar_moved_below_4_gib,
    bars_in_another_order,
    nonsense_rings_before_driver_ok,
    nonsense_rings_of_a_broken_device,
    nonsense_rings_that_are_not_ready,
    features_written_but_not_accepted,
    driver_gave_up,
    vectors_shared_by_all_queues,
    no_vectors_chosen,
    everything_pending,
    open_vector_with_no_address,
    function_masked_with_open_entries,
    window_to_bar_left_open,
]


@pytest.mark.parametrize("change", ALLOWED, ids=lambda change: change.__name__)
def test_what_a_guest_may_leave_behind_is_no_finding(change):
    states = busy_machine("pci")
    change(states)
    assert findings(states) == []


def test_everything_wrong_is_told_at_once_and_nothing_raises():
    states = busy_machine("pci")
    for change, transport, _rule, _place in BROKEN:
        if transport == PCI and change not in {no_bar, no_host_bridge, device_without_its_transport}:
            try:
                change(states)
            except (KeyError, IndexError):
                continue  # an earlier change took away what this one is about
    found = findings(states)
    assert {"devices.complete", "claims.agree", "interrupts.routes", "msix.capability"} <= {item.rule for item in found}


def test_rings_may_lie_in_any_region_of_ram_but_not_across_two():
    states = with_ram(busy_machine("pci"), (0, 0x40_0000), (1 << 32, 0x40_0000))
    block = at(states, "virtio-block")
    block.queues[0].desc = 1 << 32
    told = {finding.rule for finding in findings(states)}
    assert told == {"memory.regions"}  # the file's memory has one region only
    block.queues[0].desc = 0x40_0000 - 16
    assert "virtio.ring" in {finding.rule for finding in findings(states)}


def test_the_checks_restate_the_monitors_address_map():
    assert {pool.pool: (pool.start, pool.length) for pool in POOLS} == device_checks._POOLS
    assert device_checks._MMIO_SLOTS_START == layout.VIRTIO_MMIO_START
    assert device_checks._MMIO32_END == layout.MMIO32_END
    assert device_checks._VIRTIO_BAR == (pci_layout.BAR, 64, pci_layout.BAR_LEN)


def test_every_kind_of_device_is_in_the_machine_that_is_broken():
    kinds = {name.kind for transport in ("pci", "mmio") for name in fresh_machine(transport)}
    assert set(DEVICES) <= kinds
    assert {"virtio-pci", "virtio-mmio", "pci-msix", "pci-function", "pci-segment", "vmgenid"} <= kinds
