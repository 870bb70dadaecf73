"""A whole machine's parts over a kernel of paper, for tests: real board, buses, tables, loop; no KVM, no thread.

memory = stack.enter_context(guarded_memory(RAM))
machine = Whole(memory, "pci", folder)             # switched on; every kind of device, or those in *kinds*
machine.write(gpa, 4, value)                       # as a vCPU does it: a doorbell of the kernel's, or the bus
machine.turn()                                     # what the event loop and the disk's worker have to do, to its end
again = Whole(memory, "pci", folder, machine.saved())   # once the first is closed

Everything that depends on time or chance is out: random bytes are seeded, the disk's worker works when it is told to.
`Fence` looks at every address with which the devices reach memory, and counts.
"""

import os
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from snapkit.restore.check import check
from snapkit.restore.orders import REBUILD
from snapkit.state.codec import decode, encode
from snapkit.state.machine import EM_X86_64, MachineState
from snapkit.state.schema import SectionId, State, schema_of
from snapkit.state.virtio import VirtioState
from snapkit.vmm.backends.console import Console
from snapkit.vmm.backends.disk import DiskOptions, open_disk
from snapkit.vmm.backends.vsock import VsockHost
from snapkit.vmm.loop import Loop
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.parts.board import CONSTRUCT_ORDER, Board, module_of
from snapkit.vmm.parts.fresh import Asked, Transport, fresh_sections
from snapkit.vmm.virtio.device import VirtioDevice
from snapkit.vmm.vm import Vm
from tests.grounds import X86_64
from tests.restore.chips import chips
from tests.vmm.virtio.paper import Fence, PaperKernel, PaperTap, PatientWorker

Sections = dict[SectionId, State]
DISK_SECTORS = 256
CID = 3
KINDS = ("virtio-block", "virtio-net", "virtio-vsock", "virtio-rng", "virtio-balloon")
TURNS_MAX = 20_000
_MACHINE, _MEMORY = SectionId("machine", "0"), SectionId("memory-layout", "0")


# The machine


class Whole:
    """All parts of one machine."""

    def __init__(
        self,
        memory: GuestMemory,
        transport: Transport,
        folder: str,
        saved: Sections | None = None,
        *,
        kinds: Sequence[str] = KINDS,
        fence: Fence | None = None,
        run: bool = True,
    ) -> None:
        self.memory, self.transport, self._folder, self._fence = memory, transport, folder, fence
        self.kernel = PaperKernel()
        self.vm = Vm(cast("Any", None), cast("Any", self.kernel), lines=X86_64.map.lines)
        self.loop = Loop()
        stopper = SimpleNamespace(power_off=lambda: None, reset=lambda: None, request_stop=lambda _stop: None)
        self.board = Board(self.loop, Console(None), stopper, {})
        self.board.place(self.vm, X86_64.map, memory, restored=saved is not None)
        self.worker: PatientWorker | None = None
        self.tap: PaperTap | None = None
        if saved is None:
            sections, order = self._fresh(kinds), list(CONSTRUCT_ORDER)
        else:
            sections, order = saved, list(REBUILD.names)
            for section in saved:
                if section.kind in KINDS[:3]:
                    self.board.adopt(section, self._end(section))
        self.constant = {section: state for section, state in sections.items() if section.kind not in CONSTRUCT_ORDER}
        if saved is None:
            self.constant |= _chips()
        for kind in order:
            for section, state in sections.items():
                if section.kind == kind and kind in CONSTRUCT_ORDER:
                    self.board.construct(section, state)
        self.board.wire(self.vm)
        if run:
            self.run()

    def _fresh(self, kinds: Sequence[str]) -> Sections:
        states = []
        values = {
            "virtio-block": {"path": self._path("disk.img")},
            "virtio-net": {"tap": PaperTap.name, "mac": "02:00:00:00:00:01", "mtu": "1500"},
            "virtio-vsock": {"uds": self._path("v.sock"), "cid": str(CID)},
        }
        for kind in kinds:
            section = SectionId(kind, kind.removeprefix("virtio-"))
            end = self._end(section) if kind in values else None
            if end is not None:
                self.board.adopt(section, end)
            asked = Asked(kind, section.instance, values.get(kind, {}))
            states.append((asked, cast("VirtioState", module_of(kind).fresh(section, asked.values, end))))
        return fresh_sections(states, self.transport, X86_64, bytes(range(16))).sections

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _end(self, section: SectionId) -> Any:
        if section.kind == "virtio-block":
            path = self._path("disk.img")
            if not os.path.exists(path):
                with open(path, "wb") as file:
                    file.write(disk_content())
            disk = open_disk(DiskOptions(id=section.instance, path=path))
            self.worker = PatientWorker()
            disk.worker = cast("Any", self.worker)
            return disk
        if section.kind == "virtio-net":
            self.tap = PaperTap(self._fence)
            return self.tap
        return VsockHost(self._path("v.sock"))

    def run(self) -> None:
        self.board.activate()
        self.board.run()

    def device(self, kind: str) -> VirtioDevice[Any]:
        part = self.board.device(kind)
        assert part is not None
        return part.device

    def part(self, kind: str, device: str) -> Any:
        """The part *kind* that belongs to the device of kind *device*."""
        return self.board.parts[SectionId(kind, device.removeprefix("virtio-"))]

    # The guest

    def read(self, gpa: int, length: int) -> int:
        with self.vm.lock:
            found = self.vm.mmio.read(gpa, length)
        assert 0 <= found < 1 << 8 * length, f"{length} bytes at {gpa:#x} read as {found:#x}"
        return found

    def write(self, gpa: int, length: int, value: int) -> None:
        if not self.kernel.rang(gpa, length, value):
            with self.vm.lock:
                self.vm.mmio.write(gpa, length, value)

    def read_port(self, port: int, length: int) -> int:
        with self.vm.lock:
            found = self.vm.ports.read(port, length)
        assert 0 <= found < 1 << 8 * length
        return found

    def write_port(self, port: int, length: int, value: int) -> None:
        with self.vm.lock:
            self.vm.ports.write(port, length, value)

    # The loop

    def step(self) -> bool:
        """Serve what is ready once; False when nothing is."""
        if not self.loop._poll.poll(0):
            return False
        self.loop._step()
        return True

    def turn(self) -> None:
        """Serve loop and worker until nothing is left to do."""
        for _ in range(TURNS_MAX):
            if self.worker is not None:
                self.worker.work()
            if not self.step():
                return
        raise AssertionError("the loop never comes to rest")

    # Saving

    def save(self) -> Sections:
        """Read every State, the machine's own included."""
        parts = {section: part.save() for section, part in self.board.parts.items()}
        return {**self.constant, _MEMORY: self.memory.save(), **parts}

    def flushed(self) -> Sections:
        """Pause, flush and save; it stays paused."""
        self.board.pause()
        self.board.prepare_save()
        return self.save()

    def saved(self) -> Sections:
        """Pause, flush, save, and give the machine back; as a file would hold it."""
        found = self.flushed()
        self.close()
        return {
            section: decode(schema_of(state), encode(state), where=str(section)) for section, state in found.items()
        }

    def close(self) -> None:
        self.board.deactivate()
        self.board.unwire(self.vm)
        self.board.close_parts()
        self.board.close_hosts()
        self.vm.close()
        self.loop.close()


def disk_content() -> bytes:
    """What a disk begins with."""
    return random.Random(2).randbytes(DISK_SECTORS * 512)


def findings(sections: Sections) -> list[str]:
    """What a restore would refuse."""
    layout = cast("Any", sections[_MEMORY])
    pages = SimpleNamespace(regions=[(region.gpa, region.length) for region in layout.regions])
    return [str(finding) for finding in check(sections, cast("Any", pages))]


def _chips() -> Sections:
    """What a machine has beside its parts: never touched here."""
    machine = MachineState(architecture=EM_X86_64, machine_id=bytes(16), vcpu_count=1, cpu_profile="host", tsc_khz=0)
    return {_MACHINE: machine, **chips()}
