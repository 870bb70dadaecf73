"""What invariants are given, and what they give."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, cast

from snapkit.errors import Finding
from snapkit.restore.pages import Pages
from snapkit.state.machine import EM_X86_64, MachineState
from snapkit.state.memory_layout import MemoryLayoutState
from snapkit.state.schema import SectionId, State
from snapkit.state.spec.address_map import MAPS, X86_64
from snapkit.state.virtio import VirtioState

Sections = Mapping[SectionId, State]
Findings = Iterator[Finding]
S = TypeVar("S", bound=State)
T = TypeVar("T")


class Index:
    """The sections of one machine, sorted once: by class, and the RAM that its layout says.

    Some thirty invariants look at each machine, and each wants a few kinds only; going through all sections for each of
    them was half of what a check cost.
    """

    __slots__ = ("_by_class", "_by_name", "_derived", "devices", "map", "ram", "sections")

    def __init__(self, sections: Sections) -> None:
        self.sections = sections
        self._by_name = cast(
            "Mapping[tuple[str, str], State]", sections
        )  # a SectionId takes longer to make than to find
        self._derived: dict[Any, Any] = {}
        by_class: dict[type[State], list[tuple[SectionId, Any]]] = {}
        for item in sections.items():
            by_class.setdefault(type(item[1]), []).append(item)
        self._by_class = by_class
        self.devices: list[tuple[SectionId, VirtioState]] = [
            item for cls, items in by_class.items() if issubclass(cls, VirtioState) for item in items
        ]
        """Every virtio device, whatever its type."""
        machine = self.get("machine", "0", MachineState)
        self.map = MAPS.get(machine.architecture if machine is not None else EM_X86_64, X86_64)
        """Where things lie in machines of this architecture; of one that is not known, x86-64, which is a finding."""
        layout = self.get("memory-layout", "0", MemoryLayoutState)
        self.ram = [(region.gpa, region.length) for region in layout.regions] if layout is not None else []
        """Where RAM is, as (gpa, length)."""

    def each(self, cls: type[S]) -> Sequence[tuple[SectionId, S]]:
        """Return every section whose State is a *cls*, in the order of the file."""
        return self._by_class.get(cls, ())

    def get(self, kind: str, instance: str, cls: type[S]) -> S | None:
        """Return one section's State, None where it is not there."""
        state = self._by_name.get((kind, instance))
        return state if isinstance(state, cls) else None

    def once(self, derive: Callable[..., T], *given: object) -> T:
        """Return what *derive* makes of this machine and of what is *given*, always the same, and make it once."""
        if derive not in self._derived:
            self._derived[derive] = derive(self, *given)
        made: T = self._derived[derive]
        return made


class Invariant(Protocol):
    """A named function that gives what breaks it. Its docstring is the reason, and is shown to people.

    *rule* is its name. One that only asks the modules of `snapkit.state`, whose findings have their own names, has none.
    """

    rule: str
    __doc__: str | None
    __module__: str
    __name__: str

    def __call__(self, index: Index, pages: Pages, /) -> Findings: ...


def invariant(rule: str = "") -> Callable[[Callable[[Index, Pages], Findings]], Invariant]:
    """Make a function the invariant *rule*: what it yields need not say so."""

    def named(function: Any) -> Invariant:
        function.rule = rule
        made: Invariant = function
        return made

    return named
