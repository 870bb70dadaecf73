"""What a restore needs of the thing that it restores into; `snapkit.vmm.machine.Machine` is one.

Each method does one thing that its counterpart takes back. Nothing here says in which order: that is `plan`'s.
"""

from collections.abc import Sequence
from typing import Protocol

from snapkit.restore.pages import Pages
from snapkit.state.machine import MachineState
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.state.schema import SectionId, State


class Target(Protocol):
    """A machine under construction."""

    def create_vm(self, state: MachineState) -> None: ...

    def close_vm(self) -> None: ...

    def map_memory(self, state: MemoryLayoutState, pages: Pages) -> None: ...

    def unmap_memory(self) -> None: ...

    def construct(self, section: SectionId, state: State) -> None: ...

    def discard(self, section: SectionId) -> None: ...

    def load(self, section: SectionId) -> None: ...

    def activate(self) -> None: ...

    def deactivate(self) -> None: ...

    def resume(self) -> None: ...


class Source(Protocol):
    """A machine that can be saved."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def prepare_save(self) -> None: ...

    def save(self) -> dict[SectionId, State]: ...

    def memory_spans(self) -> Sequence[tuple[int, int, int]]: ...
