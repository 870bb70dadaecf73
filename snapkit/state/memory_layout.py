"""Where guest RAM lies. The bytes themselves are the file's memory, in the order of these regions."""

from typing import Annotated

from msgspec import Meta

from snapkit.state.schema import U8, U64, State, schema


class RegionState(State):
    """A run of RAM: guest-physical start and length in bytes, both whole pages."""

    gpa: U64
    length: U64


@schema("memory-layout", version=1, max_len=4096)
class MemoryLayoutState(State):
    """RAM regions in address order."""

    page_shift: U8
    regions: Annotated[list[RegionState], Meta(min_length=1, max_length=32)]
