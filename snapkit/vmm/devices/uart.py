"""What every UART does alike, whatever its registers: it takes bytes off the wire as it has room, and drives one pin.

The wire is *out* and `receive`, the pin is *irq*. A receiver never overruns from outside: the host keeps what there is
no room for, and is told when the receiver has emptied.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, NamedTuple, Self, TypeVar

from snapkit.state.codec import adopted, checked
from snapkit.state.schema import State
from snapkit.vmm.devices.pins import ByteSink, IrqLine

S = TypeVar("S", bound=State)

BYTES = tuple(bytes((value,)) for value in range(256))  # made once, not for every character written


def _nothing() -> None:
    pass


class SerialArgs(NamedTuple):
    """Host things of a UART.

    *room_ready* is called, once, when the receiver has emptied after `receive` took less than it was given. It runs
    inside a guest's access: it should note the fact and return.
    """

    irq: IrqLine
    out: ByteSink
    room_ready: Callable[[], None] = _nothing


class Uart(ABC, Generic[S]):
    """The side of a UART that is away from the guest. Every method needs the machine's lock."""

    def __init__(self, state: S, args: SerialArgs) -> None:
        # Runtime glue
        self._irq, self._out, self._room_ready = args
        self._starved = False  # `receive` refused bytes, and the host is owed a call of room_ready
        self.faults = 0
        # Guest-visible state
        self.state = state
        self._level = self._irq_level()  # adopted: the pin had this level before

    @classmethod
    def restore(cls, state: S, args: SerialArgs) -> Self:
        """Construct the UART that *state* describes; its pin is not touched.

        Raises ImageError naming the field that is out of bounds.
        """
        return cls(adopted(state), args)

    def save(self) -> S:
        """Return a detached copy of what the guest can see."""
        return checked(self.state)

    def resync(self) -> None:
        """Drive the pin again after a restore, if its controller forgot the level without that being an edge."""
        if not self._irq.edge:
            self._irq.set_level(self._level)

    # The wire

    @property
    @abstractmethod
    def room(self) -> int:
        """How many bytes `receive` would take now; none while the wire is disconnected."""

    def receive(self, payload: bytes) -> int:
        """Take bytes off the wire, as many as there is room for, and return how many. The caller keeps the others."""
        count = min(self.room, len(payload))
        if count < len(payload):
            self._starved = True
        if count:
            self._take(bytes(payload[:count]))
            self._update_irq()
        return count

    @abstractmethod
    def transmit_ready(self) -> None:
        """Note that the wire takes bytes again. Harmless at any time; due once after a restore, when the machine runs:
        the saved wire may have been full where the new one is not.
        """

    # The bus

    @abstractmethod
    def read(self, offset: int, length: int) -> int:
        """Read a register."""

    @abstractmethod
    def write(self, offset: int, length: int, value: int) -> None:
        """Write a register."""

    # What a chip does its own way

    @abstractmethod
    def _capacity(self) -> int:
        """How many bytes the receiver holds at most."""

    @abstractmethod
    def _take(self, payload: bytes) -> None:
        """Put *payload* into the receiver, which has room for it."""

    @abstractmethod
    def _irq_level(self) -> bool:
        """Whether some enabled cause is there."""

    # Helpers

    def _update_irq(self) -> None:
        level = self._irq_level()
        if level != self._level:
            self._level = level
            self._irq.set_level(level)

    def _offer_room(self) -> None:
        # Last in its caller: the host may give bytes at once, and finds a consistent chip.
        if self._starved and self.room == self._capacity():
            self._starved = False
            self._room_ready()
