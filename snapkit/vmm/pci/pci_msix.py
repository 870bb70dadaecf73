"""MSI-X of one function: vector table, pending bits, and which vectors the kernel may fire.

PCI Local Bus Specification 3.0, section 6.8.2. A vector is *open* while MSI-X is enabled, the function is not masked and
its own entry is not masked; only then does it hold a route and an irqfd. A message that finds its vector shut sets the
pending bit, and opening the vector sends it: whichever of the three let go last.

The control word with enable and function mask is in the configuration space, in the function's State; this listens to
it. Function mask and entry masks are kept apart: neither changes the other.

Surprises:

- A guest may change address or data of an open vector. The specification leaves that undefined; here the route follows
  each write, as software on other hypervisors has come to expect.
- If the kernel refuses a route or an irqfd in the middle of a run, the vector stays shut, the fault is counted, messages
  wait in their pending bits, and the next write to the entry or to the control word tries again; so does a save.
- Messages wait while MSI-X as a whole is off, too: there is no INTx to send them by.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple, Self

from snapkit.errors import Finding, SnapkitError
from snapkit.state.codec import adopted, checked
from snapkit.state.pci_function import find_capability, register
from snapkit.state.pci_msix import (
    MsixEntryState,
    PciMsixState,
    fits,
    invariants,
    pba_len,
    pba_words,
    table_len,
)
from snapkit.state.spec import msix, pci
from snapkit.state.spec.msix import MessageAddress, MessageControl, VectorControl
from snapkit.units import Gsi
from snapkit.vmm.interrupt_table import InterruptTable, MsiVector
from snapkit.vmm.pci.pci_function import PciFunction
from snapkit.vmm.resource_allocator import ResourceAllocator

_CONTROL_WRITABLE = MessageControl.writable


class PciMsixArgs(NamedTuple):
    """Host things of MSI-X. *function* has the capability; *device_id* is bus, device and function, or 0."""

    interrupts: InterruptTable
    resources: ResourceAllocator
    function: PciFunction
    owner: str
    device_id: int = 0


class PciMsix:
    """The vectors of one function, none of them open before `wire`. Every method needs the machine's lock."""

    kind: ClassVar[str] = "pci-msix"

    def __init__(
        self,
        state: PciMsixState,
        *,
        interrupts: InterruptTable,
        resources: ResourceAllocator,
        function: PciFunction,
        owner: str,
        device_id: int = 0,
    ) -> None:
        # Configuration
        self.owner = owner
        self._control_at = (find_capability(function.state.config, pci.CAP_ID_MSIX) or 0) + msix.MESSAGE_CONTROL
        # Runtime glue
        self._interrupts, self._resources, self._function = interrupts, resources, function
        self._vectors: list[MsiVector] = []
        self._claimed: list[int] = []
        self.faults = 0
        # Guest-visible state
        self.state = state
        try:
            for gsi in state.gsis:
                resources.claim("gsi-msi", gsi, 1, owner)
                self._claimed.append(gsi)
                self._vectors.append(interrupts.vector(Gsi(gsi), owner, device_id))
        except SnapkitError:
            self.close()
            raise
        function.allow_writes(self._control_at, 2, _CONTROL_WRITABLE)
        function.on_config_write(self._control_at, 2, self._control_written)

    @classmethod
    def restore(cls, state: PciMsixState, args: PciMsixArgs) -> Self:
        """Construct what *state* describes, with its claims; `wire` opens the vectors.

        Raises ImageError naming the field that is out of bounds or does not fit the function's capability,
        ConfigError when a GSI is taken.
        """
        function = args.function

        def sound(state: PciMsixState, owner: str) -> list[Finding]:
            return [*invariants(state, owner), *fits(state, owner, function.state, function.owner)]

        return cls(
            adopted(state, sound, where=args.owner),
            interrupts=args.interrupts,
            resources=args.resources,
            function=function,
            owner=args.owner,
            device_id=args.device_id,
        )

    def wire(self) -> None:
        """Open every vector that may be. Inside a batch of the caller's, whose end brings it about or raises."""
        self._drive(self._all())

    def resync(self) -> None:
        """Send what is still owed to vectors that have come to be open; nothing after a regular save."""
        self._deliver(self._all())

    def retry(self) -> None:
        """Open what is to be open and the kernel refused. Raises HostError when it refuses again.

        Before a save: a machine whose routes are not what its tables say could not be restored.
        """
        with self._interrupts.batch():
            self._drive(self._all())
        self._deliver(self._all())

    def save(self) -> PciMsixState:
        """Return a detached copy of what the guest can see."""
        return checked(self.state)

    def close(self) -> None:
        """Shut every vector and give the GSIs back."""
        with self._interrupts.batch():
            for vector in self._vectors:
                vector.close()
        self._vectors.clear()
        for gsi in self._claimed:
            self._resources.free("gsi-msi", gsi, 1, self.owner)
        self._claimed.clear()

    # Messages

    @property
    def vectors(self) -> int:
        """How many vectors there are."""
        return len(self.state.entries)

    def trigger(self, number: int) -> None:
        """Send message *number*, or have it pend while its vector is shut; a number that there is not is a fault."""
        if not 0 <= number < len(self._vectors):
            self.faults += 1
        elif self._vectors[number].enabled:
            self._vectors[number].trigger()
        else:
            word, bit = divmod(number, msix.PBA_WORD_BITS)
            self.state.pending[word] |= 1 << bit

    def open(self, number: int) -> bool:
        """Return whether nothing that the guest wrote keeps vector *number* shut."""
        return self._enabled() and not self.state.entries[number].control & VectorControl.MASK

    # Table and PBA, offsets from their start

    def read_table(self, offset: int, length: int) -> int:
        """Read an aligned dword or qword of the table; all ones for anything else."""
        if not _aligned(offset, length, table_len(self.vectors)):
            self.faults += 1
            return (1 << 8 * max(length, 0)) - 1
        number, at = divmod(offset, msix.ENTRY_LEN)
        return _entry_value(self.state.entries[number]) >> 8 * at & ((1 << 8 * length) - 1)

    def write_table(self, offset: int, length: int, value: int) -> None:
        """Write an aligned dword or qword of the table, with all that follows from it; nothing for anything else."""
        if not _aligned(offset, length, table_len(self.vectors)):
            self.faults += 1
            return
        number, at = divmod(offset, msix.ENTRY_LEN)
        entry = self.state.entries[number]
        mask = ((1 << 8 * length) - 1) << 8 * at
        whole = (_entry_value(entry) & ~mask) | (value << 8 * at & mask)
        entry.address = whole & MessageAddress.writable
        entry.data = whole >> 8 * msix.ENTRY_DATA & 0xFFFF_FFFF
        entry.control = whole >> 8 * msix.ENTRY_CONTROL & VectorControl.writable
        self._update([number])

    def read_pba(self, offset: int, length: int) -> int:
        """Read an aligned dword or qword of the pending bits; all ones for anything else."""
        if not _aligned(offset, length, pba_len(self.vectors)):
            self.faults += 1
            return (1 << 8 * max(length, 0)) - 1
        word, at = divmod(offset, 8)
        return self.state.pending[word] >> 8 * at & ((1 << 8 * length) - 1)

    # Interrupt logic

    def _enabled(self) -> bool:
        """Return whether the function as a whole may send."""
        control = register(self._function.state.config, self._control_at, 2)
        return bool(control & MessageControl.ENABLE) and not control & MessageControl.FUNCTION_MASK

    def _control_written(self, offset: int, length: int, value: int) -> None:
        self._update(self._all())

    def _update(self, numbers: Sequence[int]) -> None:
        """Bring about what the guest wrote for the vectors *numbers*, at once, then send what waited for it."""
        try:
            with self._interrupts.batch():
                self._drive(numbers)
        except SnapkitError:
            self.faults += 1
        self._deliver(numbers)

    def _drive(self, numbers: Iterable[int]) -> None:
        enabled = self._enabled()
        for number in numbers:
            vector, entry = self._vectors[number], self.state.entries[number]
            if enabled and not entry.control & VectorControl.MASK:
                vector.enable(entry.address, entry.data)
            else:
                vector.disable()

    def _deliver(self, numbers: Iterable[int]) -> None:
        if not any(self.state.pending):
            return
        for number in numbers:
            word, bit = divmod(number, msix.PBA_WORD_BITS)
            if self.state.pending[word] >> bit & 1 and self._vectors[number].enabled:
                self.state.pending[word] &= ~(1 << bit)
                self._vectors[number].trigger()

    # Helpers

    def _all(self) -> Sequence[int]:
        return range(len(self._vectors))


def fresh_msix(vectors: int, gsis: Iterable[int]) -> PciMsixState:
    """Return the table of a new function: every vector masked, nothing pending."""
    return PciMsixState(
        entries=[MsixEntryState() for _ in range(vectors)], pending=[0] * pba_words(vectors), gsis=list(gsis)
    )


def _aligned(offset: int, length: int, end: int) -> bool:
    return length in {4, 8} and offset % length == 0 and 0 <= offset <= end - length


def _entry_value(entry: MsixEntryState) -> int:
    """Return the 16 bytes of a table entry as an integer."""
    data_shift, control_shift = 8 * msix.ENTRY_DATA, 8 * msix.ENTRY_CONTROL
    return entry.address | entry.data << data_shift | entry.control << control_shift
