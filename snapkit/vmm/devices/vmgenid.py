"""The generation id: 16 bytes in guest memory that change whenever the guest may be a copy of one that ran before.

Microsoft, "Virtual Machine Generation ID" (2018). The bytes lie in memory that the guest's operating system never uses
for itself; ACPI says where (acpi_devices.py), and an edge on the interrupt says that they are new. Linux then reseeds
its random number generator (drivers/virt/vmgenid.c), so two machines restored from one file draw different numbers.

Surprises:

- The first id of a fresh machine is placed without an interrupt: nobody has read an older one.
- Between the write and the interrupt the guest must not run, or it could draw from the old pool: `announce` is called
  while every vCPU is parked, at a restore before the first of them runs.
- There are no registers: the guest reads plain memory. What it writes there is its own loss; the next id replaces it.
"""

from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol, Self

from snapkit.errors import ConfigError, Finding, ImageError
from snapkit.state.codec import adopted, checked
from snapkit.state.vmgenid import GENERATION_LEN, VmgenidState, invariants
from snapkit.vmm.devices.pins import IrqLine


class Memory(Protocol):
    """Guest memory, as far as an id needs it."""

    def hva(self, gpa: int, length: int) -> int: ...

    def write(self, gpa: int, payload: bytes) -> None: ...


class VmgenidArgs(NamedTuple):
    """Host things of a generation id. *line* is edge triggered; *urandom* gives so many random bytes."""

    memory: Memory
    line: IrqLine
    urandom: Callable[[int], bytes]


class Vmgenid:
    """One generation id. Every method needs the machine's lock."""

    kind: ClassVar[str] = "vmgenid"

    def __init__(self, state: VmgenidState, *, args: VmgenidArgs) -> None:
        # Runtime glue
        self._memory, self._line, self._urandom = args
        self.faults = 0
        # Guest-visible state
        self.state = state

    @classmethod
    def restore(cls, state: VmgenidState, args: VmgenidArgs) -> Self:
        """Construct the id that *state* describes; neither memory nor the pin is touched.

        Raises ImageError naming the field that is wrong, also when the id would not lie in RAM.
        """
        kept = adopted(state, invariants)
        try:
            args.memory.hva(kept.gpa, GENERATION_LEN)
        except ConfigError as error:
            finding = Finding(cls.kind, "gpa", f"{kept.gpa:#x}", "in RAM", "vmgenid.ram")
            raise ImageError("the generation id is refused", findings=[finding]) from error
        return cls(kept, args=args)

    def save(self) -> VmgenidState:
        """Return a detached copy of what the guest can see."""
        return checked(self.state)

    def resync(self) -> None:
        """Do nothing: the pin is edge triggered, and an edge that was taken is not driven again."""

    def place(self) -> None:
        """Write the id where the guest will look for it, without an interrupt: what a fresh machine begins with."""
        self._memory.write(self.state.gpa, self.state.generation)

    def announce(self) -> None:
        """Give the machine a new id and tell the guest; every vCPU must be parked."""
        self.state.generation = self._urandom(GENERATION_LEN)
        self.place()
        self._line.set_level(True)
        self._line.set_level(False)


def fresh_state(gpa: int, gsi: int, generation: bytes) -> VmgenidState:
    """Return the state of an id at *gpa* that announces itself on *gsi* and begins as *generation*, 16 random bytes."""
    return checked(VmgenidState(gpa=gpa, gsi=gsi, generation=generation))
