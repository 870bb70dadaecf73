"""What a machine's device sections are built into, and what they are built from.

The stages call a part's hooks in the order of construction, their undos in reverse:

| stage | hook | undo |
|---|---|---|
| rebuild | (constructed, inert) | `close` |
| wire | `wire`, all in one batch of interrupt routes | `unwire` |
| activate | `activate` | `deactivate` |
| run, and every resume | `run` | `pause` |
| save | `prepare_save` on all, then `save` on all | |

The default of every hook is nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar, cast

from snapkit.errors import InternalError
from snapkit.state.schema import SectionId, State
from snapkit.state.spec.address_map import AddressMap
from snapkit.units import Gpa
from snapkit.vmm.backends.console import Console
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.run_state import Stop
from snapkit.vmm.vm import Vm

P = TypeVar("P", bound="Part")
S = TypeVar("S", bound=State)


class Part:
    """One section, built. Hooks are called on the main thread without the machine's lock."""

    @property
    def faults(self) -> int:
        """How often the guest did what makes no sense, since this process has the machine."""
        return 0

    def save(self) -> State:
        """Return a detached State."""
        raise NotImplementedError

    def wire(self) -> None:
        """Arm doorbells and stage interrupt routes."""

    def unwire(self) -> None:
        """Take `wire` back."""

    def activate(self) -> None:
        """Drive level-triggered pins again, watch host fds, make threads. What fails half-way has undone its half."""

    def deactivate(self) -> None:
        """Take `activate` back; harmless where nothing is active."""

    def run(self) -> None:
        """The guest is about to go on."""

    def pause(self) -> None:
        """The guest stands still; bring what is under way to rest."""

    def prepare_save(self) -> None:
        """Flush what is parsed or under way, so that the State says all. The guest stands still."""

    def close(self) -> None:
        """Give ranges, claims and fds back. Called once, whatever came before."""


class HostEnd(Protocol):
    """Something of the host's that a device needs: owned by the board, which closes it."""

    def close(self) -> None:
        """Let go of it; harmless twice."""
        ...

    def withdraw(self) -> None:
        """Close, and take back what was made for the machine, a file say: it neither ran nor was saved."""
        ...


class Stopper(Protocol):
    """Who is told that the machine is to end."""

    def power_off(self) -> None: ...

    def reset(self) -> None: ...

    def request_stop(self, stop: Stop) -> None: ...


class Ground(NamedTuple):
    """What of a new machine its architecture decides: where things lie, and the devices that every machine has."""

    map: AddressMap
    generation_gpa: Gpa
    parts: Mapping[SectionId, State]


class Site:
    """What parts are built from: VM, address map, memory, loop, host ends, and the parts that are there already."""

    def __init__(
        self,
        *,
        vm: Vm,
        address_map: AddressMap,
        memory: GuestMemory,
        loop: Loop,
        console: Console,
        stopper: Stopper,
        running: Callable[[], bool],
        restored: bool,
        hosts: dict[SectionId, HostEnd],
        parts: Mapping[SectionId, Part],
    ) -> None:
        self.vm, self.map, self.memory, self.loop, self.console = vm, address_map, memory, loop, console
        self.stopper, self.running, self.hosts, self.parts = stopper, running, hosts, parts
        self.restored = restored
        self._by_name = cast("Mapping[tuple[str, str], Part]", parts)  # a SectionId takes longer to make than to find

    def host(self, section: SectionId) -> Any:
        """Return the host end of *section*, which the stage *claim* opened."""
        if section not in self.hosts:
            raise InternalError(f"{section} is built before its host end was claimed")
        return self.hosts[section]

    def exchange(self, section: SectionId, end: HostEnd) -> None:
        """Put *end* in the place of the host end of *section*, which the caller closes."""
        self.hosts[section] = end

    def find(self, kind: str, instance: str) -> Part | None:
        """Return the part *kind*/*instance* if it is built."""
        return self._by_name.get((kind, instance))

    def part(self, kind: str, instance: str, cls: type[P]) -> P:
        """Return the part *kind*/*instance*, which was to be built before."""
        found = self.find(kind, instance)
        if not isinstance(found, cls):
            raise InternalError(f"{kind}/{instance} is not there yet, or is a {type(found).__name__}")
        return found


def expect(state: State, cls: type[S]) -> S:
    """Return *state* as the State class that its kind has now."""
    if not isinstance(state, cls):
        raise InternalError(f"{type(state).__name__} is no {cls.__name__}")
    return state
