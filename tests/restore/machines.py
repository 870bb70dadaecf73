"""Small machines to save: sections that exist, and memory with pages where a test wants them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapkit.restore.capture import Capture
from snapkit.restore.writer import WriteResult, write_image
from snapkit.state.machine import MachineState
from snapkit.state.memory_layout import MemoryLayoutState, RegionState
from snapkit.state.schema import SectionId, State

MACHINE_ID = bytes(range(16))
MIB = 1 << 20
PAGE = 4096


def sections(length: int = 4 * MIB) -> dict[SectionId, State]:
    machine = MachineState(architecture=62, machine_id=MACHINE_ID, vcpu_count=1, cpu_profile="host", tsc_khz=0)
    layout = MemoryLayoutState(page_shift=12, regions=[RegionState(gpa=0, length=length)])
    return {SectionId("machine", "0"): machine, SectionId("memory-layout", "0"): layout}


def ram(length: int, pages: Mapping[int, bytes] | None = None) -> memoryview:
    """Return *length* bytes of zeros, with each of *pages* at its offset."""
    content = bytearray(length)
    for offset, page in (pages or {}).items():
        content[offset : offset + len(page)] = page
    return memoryview(content)


def save(path: Path | str, content: memoryview | None = None, **options: Any) -> WriteResult:
    """Write a machine with *content* as its RAM from 0, or with the regions in *memory*."""
    if content is None:
        content = ram(4 * MIB, {0: b"first", 3 * PAGE: b"fourth"})
    spans = options.pop("memory", [(0, content, len(content))])
    memory = Capture(spans, absent_is_zero=options.pop("absent_is_zero", True))
    states = options.pop("sections", None) or sections(len(content))
    options = {"architecture": 62, "release": "0.1.0", "machine_id": MACHINE_ID, "facts": {"vcpus": 1}, **options}
    return write_image(path, sections=states, memory=memory, **options)
