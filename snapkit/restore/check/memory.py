"""Guest RAM: whole pages in order, where the address map has room for it, and those whose bytes the file holds.

Where the bytes themselves lie (chunk table against regions, against the file's length, against each other) is looked at
when a file is opened, before there are sections.
"""

from snapkit.errors import Finding
from snapkit.restore.check.claims import known_pools
from snapkit.restore.check.sections import Findings, Index, invariant
from snapkit.restore.pages import Pages
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.units import PAGE_LEN, PAGE_SHIFT

WHERE = "memory-layout/0"


@invariant("memory.pages")
def page_len_known(index: Index, _pages: Pages) -> Findings:
    """A page has 4 KiB: lengths, zero scans and mappings all count in it."""
    layout = index.get("memory-layout", "0", MemoryLayoutState)
    if layout is not None and layout.page_shift != PAGE_SHIFT:
        yield Finding(WHERE, "page_shift", str(layout.page_shift), str(PAGE_SHIFT))


@invariant("memory.regions")
def regions_sound(index: Index, _pages: Pages) -> Findings:
    """RAM regions are whole pages, in order and apart: KVM refuses other slots, or one would hide another."""
    end = 0
    for number, (gpa, length) in enumerate(index.ram):
        if gpa % PAGE_LEN or length % PAGE_LEN or not length:
            yield Finding(WHERE, f"regions[{number}]", f"{gpa:#x}+{length:#x}", "whole pages")
        if gpa < end:
            yield Finding(WHERE, f"regions[{number}].gpa", f"{gpa:#x}", f"in order, at or above {end:#x}")
        end = max(end, gpa + length)


@invariant("memory.map")
def regions_in_the_map(index: Index, _pages: Pages) -> Findings:
    """RAM lies where the address map has it: elsewhere it would hide devices and interrupt controllers."""
    window = index.once(known_pools)["mmio64"][0]
    ram = [(low, min(high, window)) for low, high in index.map.ram]
    for number, (gpa, length) in enumerate(index.ram):
        if not any(low <= gpa and gpa + length <= high for low, high in ram):
            windows = " or ".join(f"{low:#x}..{high - 1:#x}" for low, high in ram)
            yield Finding(WHERE, f"regions[{number}]", f"{gpa:#x}+{length:#x}", f"within {windows}")


@invariant("memory.file")
def regions_in_the_file(index: Index, pages: Pages) -> Findings:
    """RAM is what the file holds the bytes of: a page of the one without the other would be lost, or made up."""
    if index.ram and index.ram != list(pages.regions):
        yield Finding(WHERE, "regions", "different from the file's memory", "the regions whose bytes it holds")
