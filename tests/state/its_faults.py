"""Tables of an ITS with one thing wrong that KVM refuses, each with the rule that it breaks and where.

A case changes what an ITS of Linux's saved, in memory or in the registers that it returns.
"""

from collections.abc import Callable

from snapkit.state.its_tables import Places
from tests.state.its_writer import (
    BASE,
    COLLECTION_BASER,
    COLLECTIONS,
    DEVICE_BASER,
    FLAT_BASER,
    IIDR,
    ITTS,
    LEVEL1,
    LEVEL2,
    PAGE,
    PENDING,
    RAM_LEN,
    VALID,
    Its,
    Ram,
)

OUTSIDE = BASE + RAM_LEN


def collection_of_no_cpu(its: Its, ram: Ram) -> Places:
    ram.word(COLLECTIONS, VALID | its.vcpus << 16)
    return its.places


def collection_there_twice(its: Its, ram: Ram) -> Places:
    ram.word(COLLECTIONS + 8, VALID)
    return its.places


def collection_beyond_its_table(its: Its, ram: Ram) -> Places:
    ram.word(COLLECTIONS, VALID | PAGE // 8)
    return its.places


def collection_whose_place_is_not_ram(its: Its, ram: Ram) -> Places:
    base = OUTSIDE - PAGE
    ram.word(base, VALID | PAGE // 8)
    return its.places._replace(collections=COLLECTION_BASER | base | 1)


def collections_outside_of_ram(its: Its, _ram: Ram) -> Places:
    return its.places._replace(collections=COLLECTION_BASER | OUTSIDE)


def collections_that_leave_ram(its: Its, ram: Ram) -> Places:
    base = OUTSIDE - PAGE
    for number in range(PAGE // 8):
        ram.word(base + 8 * number, VALID | number)
    return its.places._replace(collections=COLLECTION_BASER | base | 1)


def devices_outside_of_ram(its: Its, _ram: Ram) -> Places:
    return its.places._replace(devices=FLAT_BASER | OUTSIDE)


def first_level_outside_of_ram(its: Its, _ram: Ram) -> Places:
    return its.places._replace(devices=DEVICE_BASER | OUTSIDE)


def second_level_outside_of_ram(its: Its, ram: Ram) -> Places:
    ram.word(LEVEL1, VALID | OUTSIDE)
    return its.places


def device_number_too_wide(its: Its, ram: Ram) -> Places:
    ram.word(LEVEL1, 0)
    ram.word(LEVEL1 + 8 * 8, VALID | LEVEL2)
    return its.places


def events_of_too_many_bits(its: Its, ram: Ram) -> Places:
    ram.word(its.device_at(0x10), VALID | ITTS >> 8 << 5 | 16)
    return its.places


def events_outside_of_ram(its: Its, ram: Ram) -> Places:
    ram.word(its.device_at(0x10), VALID | OUTSIDE >> 8 << 5)
    return its.places


def event_of_no_lpi(its: Its, ram: Ram) -> Places:
    ram.word(ITTS, 8191 << 16)
    return its.places


def event_of_an_lpi_beyond(its: Its, ram: Ram) -> Places:
    ram.word(ITTS, 65536 << 16)
    return its.places


def event_before_one_beyond(its: Its, ram: Ram) -> Places:
    ram.word(ITTS, 2 << 48 | 8192 << 16)
    return its.places


def event_in_no_collection(its: Its, ram: Ram) -> Places:
    ram.word(ITTS, 8192 << 16 | 7)
    return its.places


def configuration_outside_of_ram(its: Its, _ram: Ram) -> Places:
    return its.places._replace(propbaser=OUTSIDE)


def pending_bits_outside_of_ram(its: Its, _ram: Ram) -> Places:
    return its.places._replace(pendbasers=(PENDING, OUTSIDE))


def layout_of_another_revision(its: Its, _ram: Ram) -> Places:
    return its.places._replace(iidr=IIDR | 1 << 12)


FAULTS: list[tuple[Callable[[Its, Ram], Places], str]] = [
    (layout_of_another_revision, "its.iidr: iidr"),
    (collection_of_no_cpu, "its.collections: tables.collections[0]"),
    (collection_there_twice, "its.collections: tables.collections[0]"),
    (collection_beyond_its_table, "its.collections: tables.collections[8192]"),
    (collection_whose_place_is_not_ram, "its.collections: tables.collections[8192]"),
    (collections_outside_of_ram, "its.ram: baser[1]"),
    (collections_that_leave_ram, "its.ram: baser[1]"),
    (devices_outside_of_ram, "its.ram: baser[0]"),
    (first_level_outside_of_ram, "its.ram: baser[0]"),
    (second_level_outside_of_ram, "its.ram: tables.pages[0]"),
    (device_number_too_wide, "its.devices: tables.devices[0x10008]"),
    (events_of_too_many_bits, "its.devices: tables.devices[0x10]"),
    (events_outside_of_ram, "its.ram: tables.devices[0x10]"),
    (event_of_no_lpi, "its.events: tables.devices[0x8].events[0]"),
    (event_of_an_lpi_beyond, "its.events: tables.devices[0x8].events[0]"),
    (event_before_one_beyond, "its.events: tables.devices[0x8].events[0]"),
    (event_in_no_collection, "its.events: tables.devices[0x8].events[0]"),
    (configuration_outside_of_ram, "its.lpis: tables.devices[0x8].events[0]"),
    (pending_bits_outside_of_ram, "its.lpis: tables.devices[0x8].events[1]"),
]


def lpi_whose_second_event_goes_to_a_cpu_without_a_pending_table(its: Its, ram: Ram) -> Places:
    """KVM looks at the tables of an LPI when it maps it first (vgic_add_lpi), and at no others for a second event."""
    its.devices, its.pending = {0x08: (1, {0: (8192, 0), 1: (8192, 1)})}, set()
    its.write(ram)
    return its.places._replace(pendbasers=(PENDING, OUTSIDE))


def lpi_whose_first_event_goes_to_no_cpu(its: Its, ram: Ram) -> Places:
    its.collections[0] = None
    its.devices, its.pending = {0x08: (1, {0: (8192, 0), 1: (8192, 1)})}, set()
    its.write(ram)
    return its.places._replace(pendbasers=(PENDING, OUTSIDE))


def device_that_no_event_is_mapped_of(its: Its, ram: Ram) -> Places:
    ram.word(ITTS, 0)
    ram.word(ITTS + 8, 0)
    return its.places


TAKEN: list[Callable[[Its, Ram], Places]] = [
    lpi_whose_second_event_goes_to_a_cpu_without_a_pending_table,
    lpi_whose_first_event_goes_to_no_cpu,
    device_that_no_event_is_mapped_of,
]
"""What is strange, and KVM takes it."""
