"""All parts of one machine beside its vCPUs and in-kernel chips, and the host ends that they use."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from snapkit.errors import InternalError
from snapkit.state.schema import SectionId, State
from snapkit.state.spec.address_map import AddressMap
from snapkit.vmm.backends.console import Console
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.parts.part import HostEnd, Part, Site, Stopper
from snapkit.vmm.vm import Vm

if TYPE_CHECKING:
    from snapkit.vmm.parts.device import DevicePart  # imported when there are devices

MODULES: Mapping[str, str] = {
    "resource-allocator": "tables",
    "interrupt-table": "tables",
    "serial-16550": "legacy",
    "i8042": "legacy",
    "serial-pl011": "primecell",
    "rtc-pl031": "primecell",
    "vmgenid": "vmgenid",
    "pci-segment": "pci",
    "pci-function": "pci",
    "pci-msix": "pci",
    "virtio-block": "block",
    "virtio-net": "net",
    "virtio-vsock": "vsock",
    "virtio-rng": "rng",
    "virtio-balloon": "balloon",
    "virtio-pci": "transport",
    "virtio-mmio": "transport",
}
"""The module of `snapkit.vmm.parts` that builds each kind: its function ``build``, and for host ends ``reopen``."""

CONSTRUCT_ORDER = tuple(MODULES)
"""The order in which a boot constructs; a restore's is the plan's."""


@cache
def module_of(kind: str) -> Any:
    """Import the module that builds parts of *kind*."""
    return import_module(f"snapkit.vmm.parts.{MODULES[kind]}")


class Board:
    """The parts and host ends of one machine, in the order in which they came."""

    def __init__(
        self, loop: Loop, console: Console, stopper: Stopper, overrides: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """*overrides* are what the operator says of a device's host end at a restore, by id."""
        # Configuration
        self._loop, self._console, self._stopper = loop, console, stopper
        self._overrides = overrides or {}
        # Runtime glue
        self.parts: dict[SectionId, Part] = {}
        self.hosts: dict[SectionId, HostEnd] = {}
        self.running = False
        self._used = False
        self._site: Site | None = None

    # Host ends

    def adopt(self, section: SectionId, end: HostEnd) -> None:
        """Own *end*, which the section's device will use."""
        self.hosts[section] = end

    def claim(self, section: SectionId, state: State) -> None:
        """Open the host end that *section* was saved with, or the one that the operator names instead."""
        self.adopt(section, module_of(section.kind).reopen(section, state, self._overrides.get(section.instance, {})))

    def unclaim(self, section: SectionId) -> None:
        """Close the host end of *section*, if it has one."""
        end = self.hosts.pop(section, None)
        if end is None:
            return
        if self._used:
            end.close()
        else:
            end.withdraw()

    # Parts

    def place(self, vm: Vm, address_map: AddressMap, memory: GuestMemory, *, restored: bool) -> None:
        """Say what parts are built on, and whether they ran before."""
        self._site = Site(
            vm=vm,
            address_map=address_map,
            memory=memory,
            loop=self._loop,
            console=self._console,
            stopper=self._stopper,
            running=lambda: self.running,
            restored=restored,
            hosts=self.hosts,
            parts=self.parts,
        )

    def construct(self, section: SectionId, state: State) -> None:
        """Build the part *section*, inert."""
        if self._site is None:
            raise InternalError(f"{section} is built before memory is there")
        with self._site.vm.lock:
            self.parts[section] = module_of(section.kind).build(section, state, self._site)

    def discard(self, section: SectionId) -> None:
        """Take the part *section* back."""
        part = self.parts.pop(section, None)
        if part is not None and self._site is not None:
            with self._site.vm.lock:
                part.close()

    def device(self, kind: str, instance: str | None = None) -> "DevicePart | None":
        """Return the device *kind*/*instance*, or the only one of *kind*; None where there is none."""
        found = [part for name, part in self.devices(kind) if instance in {None, name}]
        return found[0] if found else None

    def devices(self, kind: str) -> "Iterator[tuple[str, DevicePart]]":
        """Give the devices of *kind* with their ids."""
        from snapkit.vmm.parts.device import DevicePart

        for section, part in self.parts.items():
            if section.kind == kind and isinstance(part, DevicePart):
                yield section.instance, part

    # Stages

    def wire(self, vm: Vm) -> None:
        """Arm every doorbell, then load all interrupt routes at once, then register what fires them."""
        with ExitStack() as undo:
            undo.callback(self.unwire, vm)
            with vm.lock, vm.interrupts.batch():
                for part in self.parts.values():
                    part.wire()
            undo.pop_all()

    def unwire(self, vm: Vm) -> None:
        """Take `wire` back."""
        with vm.lock, vm.interrupts.batch():
            self._backwards(Part.unwire)

    def activate(self) -> None:
        """Let parts drive pins and watch their host ends."""
        try:
            for part in self.parts.values():
                part.activate()
        except BaseException:
            self.deactivate()
            raise

    def deactivate(self) -> None:
        """Take `activate` back, all of it, whatever fails."""
        self._backwards(Part.deactivate)

    def run(self) -> None:
        """The guest goes on; or, where that fails, every part stands still as before."""
        self.running = True
        with ExitStack() as undo:
            undo.callback(self.pause)
            for part in self.parts.values():
                part.run()
            undo.pop_all()
        self._used = True

    def pause(self) -> None:
        """The guest stands still; so does every part."""
        self.running = False
        for part in self.parts.values():
            part.pause()

    def prepare_save(self) -> None:
        """Have every part flushed, before any is read."""
        self._used = True
        for part in self.parts.values():
            part.prepare_save()

    def faults(self) -> dict[str, int]:
        """How often the guest did what makes no sense, by section."""
        return {str(section): part.faults for section, part in self.parts.items()}

    def close_parts(self) -> None:
        """Take every part back, last one first."""
        with ExitStack() as order:
            for section in self.parts:
                order.callback(self.discard, section)

    def close_hosts(self) -> None:
        """Close every host end, last one first."""
        with ExitStack() as order:
            for section in self.hosts:
                order.callback(self.unclaim, section)

    def _backwards(self, hook: Callable[[Part], None]) -> None:
        with ExitStack() as order:  # every one is called, whichever fails
            for part in self.parts.values():
                order.callback(hook, part)
