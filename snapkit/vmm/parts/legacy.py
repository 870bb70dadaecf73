"""Parts of the x86-64 machine that are there since the first release: serial port, keyboard controller."""

from snapkit.state.i8042 import I8042State
from snapkit.state.schema import SectionId, State
from snapkit.state.serial_16550 import SerialState
from snapkit.vmm.arch.x86_64 import layout
from snapkit.vmm.devices.i8042 import I8042, I8042Args
from snapkit.vmm.devices.serial_16550 import Serial16550
from snapkit.vmm.parts.chip import Place, SerialPart
from snapkit.vmm.parts.part import Part, Site, expect


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
        place = Place(site.vm.ports, layout.SERIAL_PORT, layout.SERIAL_PORT_LEN)
        return SerialPart(section, expect(state, SerialState), site, place, Serial16550)
    return KeyboardPart(expect(state, I8042State), site)
