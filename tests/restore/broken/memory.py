"""Guest RAM that is not whole, not in order, not where RAM is, or not what the file holds."""

from snapkit.state.memory_layout import RegionState
from tests.restore.broken import (
    LAYOUT,
    broken,
)
from tests.restore.device_machine import States


@broken("none", "memory.pages: memory-layout/0.page_shift")
def pages_of_another_length(states: States) -> None:
    states[LAYOUT].page_shift = 16


@broken("none", "memory.file: memory-layout/0.regions", "memory.regions: memory-layout/0.regions[0]")
def ram_in_half_pages(states: States) -> None:
    states[LAYOUT].regions = [RegionState(gpa=0, length=0x40_0800)]


@broken("none", "memory.file: memory-layout/0.regions", "memory.regions: memory-layout/0.regions[1].gpa")
def ram_over_itself(states: States) -> None:
    states[LAYOUT].regions.append(RegionState(gpa=0x1000, length=0x1000))


@broken("none", "memory.file: memory-layout/0.regions", "memory.regions: memory-layout/0.regions[1].gpa")
def ram_out_of_order(states: States) -> None:
    states[LAYOUT].regions = [RegionState(gpa=0x10_0000, length=0x30_0000), RegionState(gpa=0, length=0x10_0000)]


@broken("none", "memory.file: memory-layout/0.regions", "memory.regions: memory-layout/0.regions[1]")
def ram_of_no_length(states: States) -> None:
    states[LAYOUT].regions.append(RegionState(gpa=0x40_0000, length=0))


@broken("none", "memory.file: memory-layout/0.regions", "memory.map: memory-layout/0.regions[1]")
def ram_where_devices_are(states: States) -> None:
    states[LAYOUT].regions.append(RegionState(gpa=0xC000_0000, length=0x1000))


@broken("none", "memory.file: memory-layout/0.regions", "memory.map: memory-layout/0.regions[1]")
def ram_into_the_hole(states: States) -> None:
    states[LAYOUT].regions.append(RegionState(gpa=0xBFFF_F000, length=0x2000))


@broken("none", "memory.file: memory-layout/0.regions", "memory.map: memory-layout/0.regions[1]")
def ram_where_64_bit_bars_are(states: States) -> None:
    states[LAYOUT].regions.append(RegionState(gpa=0x40_0000_0000, length=0x1000))


@broken("none", "memory.file: memory-layout/0.regions", "memory.map: memory-layout/0.regions[1]")
def ram_beyond_the_end(states: States) -> None:
    states[LAYOUT].regions.append(RegionState(gpa=(1 << 64) - 4096, length=0x1000))


@broken("none", "memory.file: memory-layout/0.regions")
def more_ram_than_the_file_has(states: States) -> None:
    states[LAYOUT].regions[0].length = 0x80_0000


@broken("none", "memory.file: memory-layout/0.regions")
def less_ram_than_the_file_has(states: States) -> None:
    states[LAYOUT].regions[0].length = 0x20_0000


@broken("none", "memory.file: memory-layout/0.regions")
def ram_elsewhere(states: States) -> None:
    states[LAYOUT].regions[0].gpa = 1 << 32
