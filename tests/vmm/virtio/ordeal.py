"""One device's ordeal: the machine of now, what deeds do to it, and what must hold after each and in every snapshot."""

import random
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from snapkit.state.codec import encode
from snapkit.state.virtio import VirtioState
from snapkit.vmm.parts.fresh import Transport
from tests.vmm.virtio.deeds import QUEUES, RAM, RING_AREA, RINGS, SLOT
from tests.vmm.virtio.driver import Driver
from tests.vmm.virtio.paper import Fence, guarded_memory
from tests.vmm.virtio.proper import answers
from tests.vmm.virtio.registers import DRIVER_OK, ECAM, NOTIFY, MmioRegisters, PciRegisters, Registers
from tests.vmm.virtio.whole import Sections, Whole, findings

COPIED_MAX = 24 << 20
POPS_MAX = 8 * 256
STEPS_AT_ONCE = 12


class Ordeal:
    """One example: the machine of now, its registers, and the drivers of the last proper start."""

    def __init__(self, machine: Whole, kind: str, fence: Fence, folder: str) -> None:
        self.machine, self.kind, self.fence, self._folder = machine, kind, fence, folder
        self.memory = machine.memory
        self.drivers: list[Driver] = []
        self.meet()

    def meet(self) -> None:
        """Find the registers of the machine of now."""
        self.registers = registers_of(self.machine, self.kind, SLOT)

    def place(self, where: str) -> int:
        """Where the device's registers are, the function's, or the segment's."""
        if where == "ecam":
            return ECAM
        if where == "function":
            return ECAM + (SLOT << 15)
        return base_of(self.machine, self.kind)

    def start(self, features: int, size_shift: int) -> None:
        self.settle_bar()
        offered = self.registers.offered() & features
        device = self.machine.device(self.kind)
        self.drivers = [
            Driver(
                self.memory, RINGS + index * RING_AREA, queue.max_size >> size_shift or 1, area_len=RING_AREA,
                event_idx=bool(offered & 1 << 29), indirect=bool(offered & 1 << 28),
            )
            for index, queue in enumerate(device.state.queues)
        ]  # fmt: skip
        self.registers.start(self.drivers, offered)

    def settle_bar(self) -> None:
        """Put the BAR's register where the BAR is: a driver is only told of one that works."""
        self.meet()
        settle_bar(self.registers)

    def outside(self, what: str, number: int) -> None:
        machine = self.machine
        if what == "packet" and machine.tap is not None:
            machine.tap.arrive(random.Random(number).randbytes(14 + number * 6))
        elif what == "caller" and self.kind == "virtio-vsock":
            device: Any = machine.device(self.kind)
            call(device._host.uds, number)
        elif what == "operator" and self.kind == "virtio-balloon":
            with machine.vm.lock:
                balloon: Any = machine.device(self.kind)
                balloon.set_target(number)
                balloon.request_stats()
        elif what == "work" and machine.worker is not None:
            machine.worker.work(number)
        elif what == "refusal":
            machine.kernel.refusals = number % 4
        elif what == "pause":
            machine.board.pause()
            machine.board.run()

    def serve(self) -> None:
        """Let the loop have a few turns, and look at what each of them took."""
        for _ in range(STEPS_AT_ONCE):
            self.fence.copied = self.fence.pops = 0
            if not self.machine.step():
                break
            assert self.fence.pops <= POPS_MAX, "one turn took too many chains"
            assert self.fence.copied <= COPIED_MAX, "one turn copied too much"
        self.look()

    def look(self) -> None:
        """See that the kernel has been told what the registers say, and no more."""
        machine, kernel, queues = self.machine, self.machine.kernel, range(QUEUES[self.kind])
        rung: set[tuple[int, int, int | None]]
        transport = machine.part(f"virtio-{machine.transport}", self.kind).transport
        if machine.transport == "mmio":
            state = transport.state
            assert kernel.levels.get(state.gsi, 0) == bool(state.interrupt_status), (
                "the line is not as the register says"
            )
            rung = {(state.address + 0x50, 4, index) for index in queues}
        else:
            base = machine.part("pci-function", self.kind).function.decoded(0)
            rung = {(base + NOTIFY + 4 * index, 0, None) for index in queues} if base else set()
        if not transport.status & DRIVER_OK:
            rung = set()
        # The kernel may have refused them, which is a fault: the stores are exits then.
        assert set(kernel.doorbells) == rung or (transport.faults and not kernel.doorbells)

    def restore(self) -> None:
        """Save, see that nothing is wrong with it, go on with what is restored."""
        self.machine.kernel.refusals = 0
        saved = self.machine.saved()
        assert findings(saved) == []
        at_rest(saved)
        self.machine = Whole(
            self.memory,
            self.machine.transport,
            self._folder,
            saved,
            kinds=[self.kind, neighbour(self.kind)],
            fence=self.fence,
            run=False,
        )
        again = self.machine.save()
        assert {str(section): encode(state) for section, state in again.items()} == {
            str(section): encode(state) for section, state in saved.items()
        }
        self.machine.run()
        assert findings(self.machine.flushed()) == []
        self.machine.board.run()
        self.meet()

    def conclude(self) -> None:
        """After one more snapshot a proper driver is answered, and so is the neighbour's."""
        self.restore()
        self.serve()
        for slot, kind in enumerate((self.kind, neighbour(self.kind)), SLOT):
            registers = registers_of(self.machine, kind, slot)
            settle_bar(registers)
            answers(self.machine, kind, registers)
            registers.reset()


def base_of(machine: Whole, kind: str) -> int:
    """Where the registers of the device of *kind* are now, or would be if they were decoded."""
    if machine.transport == "mmio":
        address: int = machine.part("virtio-mmio", kind).transport.state.address
    else:
        address = machine.part("pci-function", kind).function.state.bars[0].address
    return address


def registers_of(machine: Whole, kind: str, slot: int) -> Registers:
    """What a driver of the device of *kind* has, the device being in *slot* where there are slots."""
    if machine.transport == "pci":
        return PciRegisters(machine, slot, QUEUES[kind], bar=base_of(machine, kind))
    return MmioRegisters(machine, base_of(machine, kind), QUEUES[kind])


def settle_bar(registers: Registers) -> None:
    if isinstance(registers, PciRegisters):
        for step in registers.place():
            registers.do(step)


def call(uds: str, number: int) -> None:
    """A program of the host's that asks for a port of the guest, says something, and is gone."""
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(uds)
            client.send(b"CONNECT %d\n" % (number % 9) + bytes(number))
        except BlockingIOError:
            return


def at_rest(saved: Sections) -> None:
    """See that nothing is under way: what was taken from a ring is back in it, answered or not."""
    for section, state in saved.items():
        if isinstance(state, VirtioState) and not state.broken:
            for index, queue in enumerate(state.queues):
                assert queue.next_avail == queue.next_used, f"{section}.queues[{index}] is saved with chains under way"


def neighbour(kind: str) -> str:
    """The device beside it, which nobody drives meanwhile."""
    return "virtio-block" if kind == "virtio-rng" else "virtio-rng"


@contextmanager
def example(kind: str, transport: Transport) -> Iterator[Ordeal]:
    with tempfile.TemporaryDirectory(prefix="nonsense") as folder, guarded_memory(RAM) as memory:
        fence = Fence(memory)
        with fence.around():
            made = Whole(memory, transport, folder, kinds=[kind, neighbour(kind)], fence=fence)
            run = Ordeal(made, kind, fence, folder)
            try:
                yield run
            finally:
                run.machine.close()
