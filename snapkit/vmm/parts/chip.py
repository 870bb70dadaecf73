"""A platform chip as a part: its registers in a range of a bus, its interrupt on the pin that its kind always has."""

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from snapkit.state.schema import SectionId, State
from snapkit.units import Gsi
from snapkit.vmm.bus import Bus
from snapkit.vmm.devices.pins import IrqLine
from snapkit.vmm.devices.uart import SerialArgs, Uart
from snapkit.vmm.parts.part import Part, Site
from snapkit.vmm.run_state import Reason, Stop


class Chip(Protocol):
    """What a part needs of the chip that it holds."""

    faults: int

    def read(self, offset: int, length: int) -> int: ...

    def write(self, offset: int, length: int, value: int) -> None: ...

    def save(self) -> State: ...

    def resync(self) -> None: ...


C = TypeVar("C", bound=Chip)


class Place(NamedTuple):
    """Where a chip's registers are."""

    bus: Bus
    start: int
    length: int


class ChipPart(Part, Generic[C]):
    """A chip in its place."""

    def __init__(self, section: SectionId, site: Site, place: Place, make: Callable[[IrqLine], C]) -> None:
        """*make* builds the chip around its pin."""
        self._site, self._place = site, place
        pin = site.map.pins[section.kind]
        self._gsi = Gsi(pin.gsi)
        line = site.vm.interrupts.line(self._gsi, str(section), edge=pin.edge)
        try:
            self.chip = make(line)
            place.bus.insert(place.start, place.length, self.chip)
        except BaseException:
            site.vm.interrupts.drop_line(self._gsi)
            raise

    @property
    def faults(self) -> int:
        return self.chip.faults

    def save(self) -> State:
        return self.chip.save()

    def activate(self) -> None:
        with self._site.vm.lock:
            self.chip.resync()

    def close(self) -> None:
        self._place.bus.remove(self._place.start)
        self._site.vm.interrupts.drop_line(self._gsi)


class SerialPart(ChipPart[Uart[Any]]):
    """A serial port, its wire on the console."""

    def __init__(self, section: SectionId, state: State, site: Site, place: Place, chip: type[Uart[Any]]) -> None:
        def make(line: IrqLine) -> Uart[Any]:
            return chip.restore(state, SerialArgs(irq=line, out=site.console, room_ready=site.console.input_again))

        super().__init__(section, site, place, make)

    def activate(self) -> None:
        lock, chip, stopper = self._site.vm.lock, self.chip, self._site.stopper

        def receive(payload: bytes) -> int:
            with lock:
                return chip.receive(payload)

        super().activate()
        self._site.console.attach(
            self._site.loop,
            receive=receive,
            room_again=self._room_again,
            lost=lambda detail: stopper.request_stop(Stop(Reason.CONSOLE_LOST, detail)),
            quit_asked=lambda: stopper.request_stop(Stop(Reason.INTERRUPTED, "Ctrl-A x")),
        )

    def _room_again(self) -> None:
        with self._site.vm.lock:
            self.chip.transmit_ready()

    def deactivate(self) -> None:
        self._site.console.detach()

    def run(self) -> None:
        self._room_again()

    def prepare_save(self) -> None:
        self._site.console.drain()
