"""An ITS's tables are read as KVM reads them: what was written comes back, and nothing in memory can do harm."""

import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapkit.state import its_tables
from snapkit.state.its_tables import Device, Event, Places, Tables, decode, difference, interrupts
from tests.state import its_writer
from tests.state.its_faults import FAULTS, OUTSIDE
from tests.state.its_writer import (
    BASE,
    COLLECTIONS,
    FLAT,
    ITTS,
    LEVEL1,
    LEVEL2,
    PAGE,
    PENDING,
    PROPERTIES,
    RAM_LEN,
    VALID,
    Its,
    Ram,
    linux,
)


@st.composite
def translation_services(draw: st.DrawFn) -> Its:
    """Any ITS that commands can make, with few devices."""
    vcpus = draw(st.integers(1, 8))
    collections = draw(
        st.dictionaries(st.integers(0, PAGE // 8 - 1), st.none() | st.integers(0, vcpus - 1), max_size=10)
    )
    lpis = st.integers(8192, 65535)
    devices = {}
    for number in draw(st.sets(st.integers(0, 65535), max_size=6)):
        bits = draw(st.integers(1, 6) | st.integers(1, 16))
        events = st.tuples(lpis, st.sampled_from(sorted(collections))) if collections else st.nothing()
        devices[number] = (bits, draw(st.dictionaries(st.integers(0, (1 << bits) - 1), events, max_size=6)))
    mapped = {lpi for _bits, events in devices.values() for lpi, _icid in events.values()}
    return Its(
        vcpus=vcpus,
        collections=collections,
        devices=devices,
        lpis={lpi: draw(st.integers(0, 255)) for lpi in sorted(mapped)},
        pending=draw(st.sets(st.sampled_from(sorted(mapped)))) if mapped else set(),
        indirect=draw(st.booleans()),
    )


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(its=translation_services())
def test_what_an_its_saved_is_read_again(its):
    ram = its.write(Ram())
    tables = decode(its.places, ram)
    assert tables.fault is None
    assert tables.whole
    assert (tables.collections, tables.devices) == its.decoded()
    assert list(interrupts(its.places, tables, ram)) == its.interrupts()


def test_what_linux_makes_is_told_event_by_event():
    its = linux()
    ram = its.write(Ram())
    found = interrupts(its.places, decode(its.places, ram), ram)
    told = [(one.device, one.event, one.lpi, one.vcpu, one.pending, one.enabled, one.priority) for one in found]
    assert told == [
        (0x08, 0, 8192, 0, False, True, 0xA0),
        (0x08, 1, 8193, 1, True, True, 0xA0),
        (0x10, 0, 8194, 0, False, True, 0xA0),
        (0x10, 1, 8195, 1, False, True, 0xA0),
        (0x10, 2, 8196, 0, False, False, 0xA0),
    ]


def test_tables_that_the_guest_has_not_given_memory_for_are_empty():
    its = linux()
    where = its.places._replace(devices=its.places.devices & ~VALID, collections=its.places.collections & ~VALID)
    assert decode(where, its.write(Ram())) == Tables()


def test_a_device_table_without_collections_maps_events_to_nowhere():
    its = linux()
    where = its.places._replace(collections=its.places.collections & ~VALID)
    assert rule(decode(where, its.write(Ram()))) == "its.events"


def test_an_address_above_48_bits_is_put_together_from_both_of_its_fields():
    high = 0xF << 48 | 0x1234_5678 << 16
    register = VALID | 0x1234_5678 << 16 | 0xF << 12
    ram = Ram((high, PAGE))
    ram.word(high, VALID | 1 << 16 | 5)
    places = Places(its_writer.IIDR, 0, register, 0, (0, 0))
    assert decode(places, ram).collections == ((5, 1),)


def test_a_device_table_of_one_level_is_looked_through_to_the_end_of_its_numbers():
    its = Its(vcpus=1, collections={0: 0}, devices={65535: (1, {1: (9000, 0)})}, indirect=False)
    assert decode(its.places, its.write(Ram())).devices == (Device(65535, 1, ITTS, (Event(1, 9000, 0),)),)


def test_devices_whose_tables_are_one_are_each_read():
    its = linux()
    ram = its.write(Ram())
    ram.word(its.device_at(0x08), VALID | 8 << 49 | ITTS >> 8 << 5)
    ram.word(its.device_at(0x10), VALID | ITTS >> 8 << 5)
    first, second = decode(its.places, ram).devices
    assert first.events == second.events


def rule(tables: Tables) -> str:
    assert tables.fault is not None
    return tables.fault.rule


@pytest.mark.parametrize(("change", "expected"), FAULTS, ids=[change.__name__ for change, _ in FAULTS])
def test_where_kvm_would_stop_is_told(change, expected):
    its = linux()
    ram = its.write(Ram())
    tables = decode(change(its, ram), ram)
    assert tables.fault is not None
    assert f"{tables.fault.rule}: {tables.fault.path}" == expected
    assert tables.fault.component == "gicv3-its/0"
    assert tables.whole
    interrupts(its.places, tables, ram)


def test_a_table_may_leave_ram_behind_its_last_entry():
    its = linux()
    ram = its.write(Ram())
    where = its.places._replace(collections=its.places.collections | 0xFF, devices=its.places.devices | 0xFF)
    assert decode(where, ram).fault is None


def test_a_table_may_go_on_in_the_next_region():
    its = linux()
    middle = LEVEL2 + 0x1000
    ram, split = its.write(Ram()), its.write(Ram((BASE, middle - BASE), (middle, RAM_LEN - (middle - BASE))))
    assert decode(its.places, split) == decode(its.places, ram)


def test_entries_behind_one_that_says_it_is_the_last_are_not_looked_at():
    its = linux()
    ram = its.write(Ram())
    ram.word(its.device_at(0x18), VALID | OUTSIDE >> 8 << 5)
    ram.word(ITTS + 256 + 8 * 3, 1 << 16)
    assert decode(its.places, ram).fault is None


def test_an_entry_in_front_of_the_first_that_was_saved_counts():
    its = linux()
    ram = its.write(Ram())
    stale = ITTS + 0x1000
    ram.word(its.device_at(0x00), VALID | stale >> 8 << 5 | 8 << 49)
    assert [device.number for device in decode(its.places, ram).devices] == [0x00, 0x08, 0x10]


@settings(deadline=None, max_examples=150)
@given(
    registers=st.lists(st.integers(0, (1 << 64) - 1), min_size=4, max_size=4),
    keep=st.booleans(),
    indirect=st.booleans(),
    seeds=st.lists(st.tuples(st.integers(0, RAM_LEN // 8 - 1), st.integers(0, (1 << 64) - 1)), max_size=40),
    noise=st.binary(max_size=512),
)
def test_no_memory_and_no_register_makes_reading_raise(registers, keep, indirect, seeds, noise):
    its = linux()
    its.indirect = indirect
    ram = its.write(Ram())
    for gpa in (LEVEL1, LEVEL2 + 8, FLAT, COLLECTIONS + 16, ITTS + 16, PROPERTIES):
        ram.write(gpa, noise)
    for number, value in seeds:
        ram.word(BASE + 8 * number, value)
    devices, collections, propbaser, pendbaser = registers
    made_up = Places(its_writer.IIDR, devices, collections, propbaser, (pendbaser, propbaser))
    where = its.places if keep else made_up
    tables = decode(where, ram)
    assert len(interrupts(where, tables, ram)) == sum(len(device.events) for device in tables.devices)


def _in_time(act: Callable[[], Tables]) -> Tables:
    """Hold *act* to processor time: ten times what it takes on a slow machine."""
    begin = time.process_time()
    tables = act()
    assert time.process_time() - begin < 10
    return tables


def test_the_most_that_tables_can_make_us_look_at_is_bounded():
    # 65536 devices whose tables of 65536 events each are one and the same, all of them unmapped but not zero
    its = Its(vcpus=1, collections={0: 0}, indirect=False)
    ram = its.write(Ram())
    itt = BASE + 0x80_0000
    ram.write(itt, (7).to_bytes(8, "little") * 65536)
    ram.write(
        FLAT, b"".join((VALID | 1 << 49 | (itt >> 8) + n % 64 << 5 | 14).to_bytes(8, "little") for n in range(65536))
    )
    tables = _in_time(lambda: decode(its.places, ram))
    assert not tables.whole
    assert tables.fault is None
    assert sum(length for _gpa, length in ram.reads) < 1.1 * 8 * its_tables.WORDS_MAX


def test_the_most_that_tables_can_make_us_keep_is_bounded():
    its = Its(vcpus=1, collections={0: 0}, indirect=False)
    ram = its.write(Ram())
    itt = BASE + 0x80_0000
    ram.write(itt, (1 << 48 | 8192 << 16).to_bytes(8, "little") * 65535 + (8192 << 16).to_bytes(8, "little"))
    ram.write(FLAT, b"".join((VALID | 1 << 49 | itt >> 8 << 5 | 15).to_bytes(8, "little") for n in range(65536)))
    tables = _in_time(lambda: decode(its.places, ram))
    assert not tables.whole
    assert sum(len(device.events) for device in tables.devices[:1]) <= its_tables.EVENTS_MAX


def test_many_small_tables_are_not_all_read():
    its = Its(vcpus=1, collections={0: 0}, indirect=False)
    ram = its.write(Ram())
    itt = BASE + 0x80_0000
    ram.write(
        FLAT, b"".join((VALID | 1 << 49 | (itt >> 8) + n % 30000 << 5).to_bytes(8, "little") for n in range(65536))
    )
    assert not _in_time(lambda: decode(its.places, ram)).whole
    assert len(ram.reads) < 10_000


def test_each_table_is_read_once_as_far_as_it_is_used():
    its = linux()
    ram = its.write(Ram())
    ram.reads.clear()
    tables = decode(its.places, ram)
    assert ram.reads == [
        (COLLECTIONS, 4096),
        (LEVEL1, 4096),
        (LEVEL2, 4096),
        (ITTS, 16),
        (ITTS + 256, 32),
    ]
    ram.reads.clear()
    interrupts(its.places, tables, ram)
    assert sorted(ram.reads) == [(PROPERTIES, 4096), (PENDING, 4096), (PENDING + PAGE, 4096)]


def test_the_difference_of_two_machines_is_what_was_lost_and_what_was_made():
    before = tuple(linux().interrupts())
    served = linux()
    served.pending = set()
    del served.devices[0x10][1][2]
    after = tuple(served.interrupts())
    lost, made = difference(before, after)
    assert [(one.lpi, one.pending) for one in lost] == [(8193, True), (8196, False)]
    assert [(one.lpi, one.pending) for one in made] == [(8193, False)]
    assert difference(before, before) == ((), ())
