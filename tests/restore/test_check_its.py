"""What KVM would refuse of an ITS's tables is a finding, before anything is done to the host; what it takes is none."""

from typing import Any

import pytest

from snapkit.errors import Finding
from snapkit.restore.check import aarch64, check, invariants_of, remarks
from snapkit.restore.check.sections import Index
from snapkit.state.interrupt_table import RouteState
from snapkit.state.its_tables import Places, decode, interrupts
from snapkit.state.machine import EM_AARCH64
from tests.restore.broken import LAYOUT, good
from tests.restore.its_machine import its_machine
from tests.state.its_faults import FAULTS, TAKEN
from tests.state.its_writer import BASE, FLAT_BASER, PAGE, PENDING, PROPERTIES, RAM_LEN, Ram, linux

TRANSLATER_OF_TWO_CPUS = 0x3FFF_0000 - 2 * 0x2_0000 - 0x2_0000 + 0x1_0040


def found(where: Places, ram: Any) -> list[Finding]:
    return check(its_machine(where), ram)


@pytest.mark.parametrize(("change", "expected"), FAULTS, ids=[change.__name__ for change, _ in FAULTS])
def test_what_kvm_would_refuse_is_found_by_its_rule(change, expected):
    its = linux()
    ram = its.write(Ram())
    assert [f"{one.rule}: {one.path}" for one in found(change(its, ram), ram)] == [expected]


def test_nothing_else_reads_memory():
    its = linux()
    nothing: Any = Unreadable([(BASE, RAM_LEN)])
    index = Index(its_machine(its.places))
    for one in invariants_of(EM_AARCH64):
        if not one.__module__.endswith(".its"):
            assert list(one(index, nothing)) == []


def test_every_rule_about_tables_has_a_case():
    rules = {one.rule for one in aarch64.INVARIANTS if one.__module__.endswith(".its")}
    assert rules == {rule.partition(":")[0] for _, rule in FAULTS} - {"its.iidr"}  # that one is the section's own


def test_what_kvm_takes_is_no_finding():
    its = linux()
    assert found(its.places, its.write(Ram())) == []


@pytest.mark.parametrize("change", TAKEN, ids=[change.__name__ for change in TAKEN])
def test_what_is_strange_and_kvm_takes_it_is_no_finding(change):
    its = linux()
    ram = its.write(Ram())
    where = change(its, ram)
    assert found(where, ram) == []
    assert not any(one.pending for one in interrupts(where, decode(where, ram), ram) if one.device == 0x08)


def test_tables_are_read_once_for_all_rules():
    its = linux()
    ram = its.write(Ram())
    ram.reads.clear()
    found(its.places, ram)
    assert len(ram.reads) == len(set(ram.reads))
    assert sum(length for _gpa, length in ram.reads) < 0x1_0000


def test_what_is_pending_or_enabled_is_nothing_to_a_check():
    its = linux()
    ram = its.write(Ram())
    ram.reads.clear()
    found(its.places, ram)
    assert not [gpa for gpa, _length in ram.reads if PROPERTIES <= gpa < PENDING + 2 * PAGE]


@pytest.mark.parametrize("on", ["pci", "mmio", "none", "arm-mmio", "arm-none"])
def test_a_machine_without_an_its_is_not_read(on):
    states = good(on)
    memory: Any = Unreadable([(region.gpa, region.length) for region in states[LAYOUT].regions])
    assert check(states, memory) == []


class Unreadable:
    def __init__(self, regions: list[tuple[int, int]]) -> None:
        self.regions = regions


def test_a_machine_whose_tables_are_too_large_to_be_looked_through_is_not_refused():
    where, ram = linux().places._replace(devices=FLAT_BASER | BASE | 0xFF), Ram()
    assert found(where, ram) == []
    assert not decode(where, ram).whole


def remarked(*routes: RouteState) -> list[str]:
    its = linux()
    ram: Any = its.write(Ram())
    told = remarks(its_machine(its.places, *routes), ram)
    return [f"{one.path} is {one.value}" for one in told if one.rule == "its.mapped"]


def route(device: int, event: int, address: int = TRANSLATER_OF_TWO_CPUS) -> RouteState:
    return RouteState(gsi=96, address=address, data=event, device_id=device, owner="pci-msix/root")


def test_messages_to_mapped_events_are_not_remarked_upon():
    assert remarked(route(0x08, 0), route(0x10, 2)) == []


def test_messages_to_an_event_that_is_not_mapped_are_remarked_upon():
    told = "is to event 3 of device 0x10, which is not mapped"
    assert remarked(route(0x08, 1), route(0x10, 3)) == [f"routes[1] {told}"]
    assert len(remarked(route(0x18, 0))) == 1


def test_messages_to_elsewhere_are_none_of_the_its():
    assert remarked(route(0x18, 0, 0x9000_0000)) == []
