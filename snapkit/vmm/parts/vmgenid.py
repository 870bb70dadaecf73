"""The generation id as a part: a restored machine gets a new one before its first instruction."""

from snapkit import host
from snapkit.state.schema import SectionId, State
from snapkit.state.vmgenid import VmgenidState
from snapkit.units import Gpa, Gsi
from snapkit.vmm.devices.vmgenid import Vmgenid, VmgenidArgs, fresh_state
from snapkit.vmm.parts.part import Part, Site, expect


class GenerationPart(Part):
    """The id on its interrupt line."""

    def __init__(self, section: SectionId, state: VmgenidState, site: Site) -> None:
        self._site = site
        self._gsi = Gsi(state.gsi)
        site.vm.resources.claim("gsi-legacy", state.gsi, 1, str(section))
        self._owner = str(section)
        try:
            line = site.vm.interrupts.line(self._gsi, self._owner, edge=True)
        except BaseException:
            site.vm.resources.free("gsi-legacy", self._gsi, 1, self._owner)
            raise
        try:
            args = VmgenidArgs(memory=site.memory, line=line, urandom=host.urandom)
            self.chip = Vmgenid.restore(state, args)
        except BaseException:
            self.close()
            raise

    def save(self) -> VmgenidState:
        return self.chip.save()

    def activate(self) -> None:
        with self._site.vm.lock:
            if self._site.restored:
                self.chip.announce()
            else:
                self.chip.place()

    def close(self) -> None:
        self._site.vm.interrupts.drop_line(self._gsi)
        self._site.vm.resources.free("gsi-legacy", self._gsi, 1, self._owner)


def build(section: SectionId, state: State, site: Site) -> Part:
    """Build the part."""
    return GenerationPart(section, expect(state, VmgenidState), site)


def fresh(gpa: Gpa, gsi: Gsi, generation: bytes) -> VmgenidState:
    """Return the State of a new machine's id."""
    return fresh_state(gpa, gsi, generation)
