"""The machine's own tables as parts: claims and interrupts. Both are derived, and compared with what was saved."""

from snapkit.errors import Finding, ImageError
from snapkit.state.interrupt_table import InterruptTableState
from snapkit.state.resource_allocator import ResourceAllocatorState
from snapkit.state.schema import SectionId, State
from snapkit.vmm.parts.part import Part, Site, expect
from snapkit.vmm.resource_allocator import ResourceAllocator


class AllocatorPart(Part):
    """The allocator: made with the saved pools and no claims. Each part that is built claims what is its own."""

    def __init__(self, saved: ResourceAllocatorState, site: Site) -> None:
        self._site, self._saved = site, saved
        site.vm.set_resources(ResourceAllocator.restore(saved))

    def save(self) -> ResourceAllocatorState:
        return self._site.vm.resources.save()

    def wire(self) -> None:
        """Compare: every part that claims is there by now."""
        _require_agreement("claims", self._site.vm.resources.agree(self._saved))

    def close(self) -> None:
        self._site.vm.set_resources(None)


class InterruptsPart(Part):
    """The interrupt table, which is empty until parts that interrupt are built and wired."""

    def __init__(self, saved: InterruptTableState, site: Site) -> None:
        self._site, self._saved = site, saved

    def save(self) -> InterruptTableState:
        return self._site.vm.interrupts.save()

    def activate(self) -> None:
        """Compare: every route that can fire is loaded by now."""
        _require_agreement("interrupts", self._site.vm.interrupts.agree(self._saved))


def _require_agreement(what: str, findings: list[Finding]) -> None:
    if findings:
        raise ImageError(f"the machine's parts and its saved {what} do not agree", findings=findings)


def build(section: SectionId, state: State, site: Site) -> Part:
    """Build the part of the allocator or of the interrupt table."""
    if section.kind == ResourceAllocator.kind:
        return AllocatorPart(expect(state, ResourceAllocatorState), site)
    return InterruptsPart(expect(state, InterruptTableState), site)
