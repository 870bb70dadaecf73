"""Parts of the x86-64 machine that are there since the first release: serial port, keyboard controller."""

from snapkit.state.i8042 import I8042State
from snapkit.state.schema import SectionId, State
from snapkit.state.serial_16550 import SerialState
from snapkit.vmm.arch.x86_64 import layout
from snapkit.vmm.devices.i8042 import I8042, I8042Args
from snapkit.vmm.devices.serial_16550 import Serial16550, SerialArgs
from snapkit.vmm.parts.part import Part, Site, expect
from snapkit.vmm.run_state import Reason, Stop


class SerialPart(Part):
    """The serial port on its ports and its pin, its wire on the console."""

    def __init__(self, section: SectionId, state: SerialState, site: Site) -> None:
        self._site = site
        self._line = site.vm.interrupts.line(layout.GSI_SERIAL, str(section), edge=True)
        try:
            args = SerialArgs(irq=self._line, out=site.console, room_ready=site.console.input_again)
            self.chip = Serial16550.restore(state, args)
            site.vm.ports.insert(layout.SERIAL_PORT, layout.SERIAL_PORT_LEN, self.chip)
        except BaseException:
            site.vm.interrupts.drop_line(layout.GSI_SERIAL)
            raise

    @property
    def faults(self) -> int:
        return self.chip.faults

    def save(self) -> SerialState:
        return self.chip.save()

    def activate(self) -> None:
        lock, chip, stopper = self._site.vm.lock, self.chip, self._site.stopper

        def receive(payload: bytes) -> int:
            with lock:
                return chip.receive(payload)

        with lock:
            chip.resync()
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

    def close(self) -> None:
        self._site.vm.ports.remove(layout.SERIAL_PORT)
        self._site.vm.interrupts.drop_line(layout.GSI_SERIAL)


class KeyboardPart(Part):
    """The keyboard controller on its ports. Its pin is not wired."""

    def __init__(self, state: I8042State, site: Site) -> None:
        self._site = site
        self.chip = I8042.restore(state, I8042Args(reset_requested=site.stopper.reset))
        site.vm.ports.insert(layout.I8042_PORT, layout.I8042_PORT_LEN, self.chip)

    @property
    def faults(self) -> int:
        return self.chip.faults

    def save(self) -> I8042State:
        return self.chip.save()

    def activate(self) -> None:
        with self._site.vm.lock:
            self.chip.resync()

    def close(self) -> None:
        self._site.vm.ports.remove(layout.I8042_PORT)


def build(section: SectionId, state: State, site: Site) -> Part:
    """Build the part of a serial port or a keyboard controller."""
    if section.kind == Serial16550.kind:
        return SerialPart(section, expect(state, SerialState), site)
    return KeyboardPart(expect(state, I8042State), site)
