"""What a device has outside itself: an interrupt pin, a wire."""

from typing import Protocol


class IrqLine(Protocol):
    """An interrupt pin. A device drives levels on either kind; what *edge* decides is whether one is driven again.

    The interrupt controller has forgotten levels after a restore but not the edges it took, so that driving a high
    edge pin again would be a second interrupt.
    """

    @property
    def edge(self) -> bool:
        """True for an edge-triggered pin, such as the ISA ones."""
        ...

    def set_level(self, level: bool) -> None:
        """Drive the pin."""
        ...


class ByteSink(Protocol):
    """A wire that takes bytes. Being full is advice: what is written all the same is kept."""

    @property
    def full(self) -> bool:
        """True while the wire would rather take nothing."""
        ...

    def write(self, payload: bytes) -> None:
        """Send *payload*, all of it."""
        ...
