"""The machine converter between 0.1.0 and 0.2.0: two tables come and go, and what needs them cannot go down."""

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit.errors import ImageError
from snapkit.state.codec import encode
from snapkit.state.converters import Refusal, convert_sections
from snapkit.state.interrupt_table import InterruptTableState, LineState
from snapkit.state.law import committed_files, violations
from snapkit.state.releases import release_named
from snapkit.state.resource_allocator import PoolState, ResourceAllocatorState, invariants
from snapkit.state.schema import SectionId, State, current, versions_of
from snapkit.state.shape import shape_of
from snapkit.vmm.parts.fresh import fresh_sections
from tests.contract.generate import random_value, smallest, strategy
from tests.grounds import X86_64
from tests.restore.device_machine import DEVICES, States, bare_machine, busy_machine, fresh_machine

OLD, NEW = "0.1.0", "0.2.0"
CLAIMS, TABLE = SectionId("resource-allocator", "0"), SectionId("interrupt-table", "0")
OLD_KINDS = release_named(OLD).kinds


def old_machine() -> States:
    """A machine of 0.1.0, with every kind that it had."""
    return {
        SectionId(kind, "0"): smallest(shape_of(versions_of(kind)[version].type)) for kind, version in OLD_KINDS.items()
    }


def reasons(states: States) -> set[str]:
    with pytest.raises(Refusal, match=r"release 0\.1\.0 cannot hold this machine") as caught:
        convert_sections(states, NEW, OLD)
    return {f"{finding.component}.{finding.path}".rstrip(".") for finding in caught.value.findings}


def test_going_up_adds_the_two_tables_and_leaves_the_rest_as_it_was():
    before = old_machine()
    after = convert_sections(before, OLD, NEW)
    assert set(after) - set(before) == {CLAIMS, TABLE}
    assert {name: encode(state) for name, state in after.items() if name in before} == {
        name: encode(state) for name, state in before.items()
    }


def test_what_is_added_is_what_a_new_machine_without_devices_begins_with():
    after = convert_sections(old_machine(), OLD, NEW)
    begun = fresh_sections([], None, X86_64, bytes(16)).sections
    assert after[CLAIMS] == begun[CLAIMS]
    assert after[TABLE] == begun[TABLE]
    assert after[TABLE] == InterruptTableState(lines=[LineState(gsi=4, edge=True, owner="serial-16550/0")])
    allocator = after[CLAIMS]
    assert isinstance(allocator, ResourceAllocatorState)
    assert not allocator.claims
    assert not invariants(allocator, "resource-allocator/0")


def test_the_pools_are_those_of_the_address_map():
    allocator = convert_sections(old_machine(), OLD, NEW)[CLAIMS]
    assert isinstance(allocator, ResourceAllocatorState)
    assert allocator.pools == [
        PoolState(pool="gsi-legacy", start=5, length=23 - 5 + 1),
        PoolState(pool="gsi-msi", start=24, length=4095 - 24 + 1),
        PoolState(pool="mmio32", start=0xC000_0000, length=0xEEBF_FFFF - 0xC000_0000 + 1),
        PoolState(pool="mmio64", start=256 << 30, length=256 << 30),
        PoolState(pool="pci-slot", start=1, length=31),
    ]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, 3))
def test_up_and_down_again_is_equal_byte_for_byte(seed: int, more_vcpus: int):
    rng = Random(seed)
    before: dict[SectionId, State] = {
        SectionId(kind, "0"): random_value(shape_of(versions_of(kind)[version].type), rng)
        for kind, version in OLD_KINDS.items()
    }
    for number in range(1, more_vcpus + 1):
        before[SectionId("vcpu-x86-64", str(number))] = before[SectionId("vcpu-x86-64", "0")]
    again = convert_sections(convert_sections(before, OLD, NEW), NEW, OLD)
    assert {name: encode(state) for name, state in again.items()} == {
        name: encode(state) for name, state in before.items()
    }


def test_a_machine_of_0_2_0_without_devices_goes_down_and_comes_back():
    states = fresh_machine(None)
    down = convert_sections(states, NEW, OLD)
    assert {name.kind for name in down} == set(OLD_KINDS)
    assert convert_sections(down, OLD, NEW) == states


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_machine_with_devices_is_refused_with_every_reason(transport):
    states = busy_machine(transport)
    told = reasons(states)
    allocator, table = states[CLAIMS], states[TABLE]
    sections = {str(name) for name in states if name.kind not in {*OLD_KINDS, CLAIMS.kind, TABLE.kind}}
    claims = {f"resource-allocator/0.claims[{number}]" for number in range(len(allocator.claims))}
    lines = {f"interrupt-table/0.lines[{n}]" for n, line in enumerate(table.lines) if line.owner != "serial-16550/0"}
    routes = {f"interrupt-table/0.routes[{number}]" for number in range(len(table.routes))}
    assert told == sections | claims | lines | routes
    assert len(sections) == (len(DEVICES) * 4 + 3 if transport == "pci" else len(DEVICES) * 2 + 1)
    assert (transport == "pci") == bool(routes)


def test_a_transport_alone_is_a_reason():
    states = {**bare_machine(), **fresh_sections([], "pci", X86_64, bytes(16)).sections}
    assert reasons(states) == {
        "pci-segment/0",
        "pci-function/host-bridge",
        "vmgenid/0",
        "resource-allocator/0.claims[0]",
        "interrupt-table/0.lines[1]",
    }


def test_a_line_of_another_kind_on_the_serial_ports_pin_is_a_reason():
    states = fresh_machine(None)
    states[TABLE].lines[0].edge = False
    assert reasons(states) == {"interrupt-table/0.lines", "interrupt-table/0.lines[0]"}


def test_a_serial_port_that_cannot_interrupt_and_a_pool_elsewhere_are_reasons():
    states = fresh_machine(None)
    states[TABLE].lines.clear()
    states[CLAIMS].pools[0].length -= 1
    assert reasons(states) == {"interrupt-table/0.lines", "resource-allocator/0.pools"}
    twice = fresh_machine(None)
    twice[TABLE].lines *= 2
    assert reasons(twice) == {"interrupt-table/0.lines[1]"}


def test_a_section_of_0_2_0_in_a_file_of_0_1_0_is_refused_by_name():
    states = {**old_machine(), CLAIMS: fresh_machine(None)[CLAIMS]}
    with pytest.raises(ImageError, match=r"resource-allocator/0 is there, must be absent"):
        convert_sections(states, OLD, NEW)


new_tables: Any = st.fixed_dictionaries(
    {CLAIMS: strategy(shape_of(current(CLAIMS.kind).type)), TABLE: strategy(shape_of(current(TABLE.kind).type))}
)


@settings(max_examples=100, deadline=None)
@given(new_tables)
def test_any_tables_go_down_or_are_refused_by_the_field_that_says_more(tables: States):
    idle = fresh_machine(None)
    states = {**idle, **tables}
    if tables == {name: idle[name] for name in tables}:
        assert {name.kind for name in convert_sections(states, NEW, OLD)} == set(OLD_KINDS)
    else:
        assert all(path.startswith(("resource-allocator/0.", "interrupt-table/0.")) for path in reasons(states))


def test_the_converter_keeps_the_law():
    assert [str(finding) for finding in violations(committed_files()) if "converter" in finding.rule] == []
