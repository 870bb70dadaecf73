"""A guest whose program is a test: `Poker` has every access made by real instructions of the guest `poke.c`.

    with Poker(tmp_path, Asked("virtio-rng", "rng")) as guest:
        bar = guest.move_bar(1, 0, 0xC0000000)
        guest.write8(bar + 0x14, 1)
        guest.snapshot_and_restore()
        assert guest.read8(bar + 0x14) == 1

`snapshot_and_restore` saves to a file, closes the machine, restores the file by the pipeline and goes on: whoever holds
the Poker notices nothing. The event loop runs while an answer is awaited, so devices serve their queues then; with
`unserved` it does not, and a doorbell that was rung stays unanswered.

Surprise: new 64-bit BARs lie above 4 GiB. The guest goes into long mode for each access there, and for each of 64 bits.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Self

from snapkit import host
from snapkit.restore.restore import prepare
from snapkit.state.schema import SectionId, State
from snapkit.state.spec import pci
from snapkit.units import MIB
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import BootConfig, Machine
from snapkit.vmm.parts.fresh import Asked, Transport
from tests.guests.build import guest
from tests.kvm.harness import PATIENCE_S, Rig, Tape

CONFIG_ADDRESS, CONFIG_DATA = 0xCF8, 0xCFC
CONFIG_ENABLE = 1 << 31
ECAM = 0xEEC0_0000
IOAPIC = 0xFEC0_0000
MSI_ADDRESS = 0xFEE0_0000  # fixed delivery to the APIC with id 0
FREE_RAM = 0x0018_0000  # what lies between the guest's own and the end of 2 MiB
WINDOW_32 = 0xC000_0000  # where BARs can go in 32 bits
_LINE_BYTES = 64  # of `read_bytes` and `write_bytes`, what one line holds
_ONES = {width: (1 << 8 * width) - 1 for width in (1, 2, 4, 8)}


class Wire(Tape):
    """A tape that wakes the loop, or who waits, when a line is complete or the chip has room for input again."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.turns = 0
        self._wakes = loop

    def write(self, payload: bytes) -> None:
        super().write(payload)
        if b"\n" in payload:
            self._wake()

    def input_again(self) -> None:
        self._wake()

    def _wake(self) -> None:
        with self._grown:
            self.turns += 1
            self._grown.notify_all()
        self._wakes.post(self._wakes.stop)

    def wait_turn(self, seen: int) -> None:
        """Wait until something has happened since *turns* was *seen*."""
        with self._grown:
            self._grown.wait_for(lambda: self.turns != seen, PATIENCE_S)


class Poker:
    """A machine with *devices* that does what it is told; a context manager, inside of which it runs."""

    def __init__(
        self,
        folder: PathLike[str],
        *devices: Asked,
        transport: Transport | None = None,
        memory: int = 2 * MIB,
        cpu: str = "host",
    ) -> None:
        """*folder* is where snapshots go."""
        self._folder = Path(folder)
        self._config = BootConfig(
            kernel=guest("poke"), memory=memory, cpu=cpu, devices=tuple(devices), transport=transport
        )
        self._stack = ExitStack()
        self._rig: Rig | None = None
        self._numbers = itertools.count()
        self._partial = b""  # what the machine before had sent of a line
        self._read = 0
        self._served = True

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.callback(self.close)
            loop = self._stack.enter_context(Loop())
            wire = Wire(loop)
            machine = self._stack.enter_context(Machine.boot(self._config, loop, wire))
            self._rig = Rig(machine, wire, loop)
            machine.resume()
            assert self._line() == "ready"
            undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The machine

    @property
    def rig(self) -> Rig:
        """The machine of now, with its tape and loop."""
        assert self._rig is not None, "there is no machine"
        return self._rig

    def part(self, kind: str, instance: str) -> Any:
        """The part *kind*/*instance* of the machine of now; use it under `rig.vm.lock`."""
        return self.rig.machine.board.parts[SectionId(kind, instance)]

    def save(self, path: str | None = None) -> str:
        """Pause, and save to *path* or to a new file; the machine stays paused."""
        return self.rig.save(path or str(self._folder / f"poker{next(self._numbers)}.snap"))

    def close(self) -> None:
        """End the machine. The next one goes on where it was."""
        self._stack.close()
        if self._rig is not None:
            self._partial, self._read = self._unread(), 0
            self._rig = None

    def restore(self, path: str, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Restore *path* by the pipeline and let it run. *overrides* say, by device id, what host ends it gets."""
        assert self._rig is None, "close the other machine first"
        loop = self._stack.enter_context(Loop())
        wire = Wire(loop)
        machine = self._stack.enter_context(Machine(loop, wire, overrides=overrides))
        self._rig = Rig(machine, wire, loop)
        with prepare(path) as prepared:
            prepared.run(machine)

    def snapshot_and_restore(self, overrides: Mapping[str, Mapping[str, Any]] | None = None) -> str:
        """Save, close, restore, go on; returns the snapshot's path."""
        path = self.save()
        self.close()
        self.restore(path, overrides)
        return path

    def states(self) -> dict[SectionId, State]:
        """Pause, save to memory, go on."""
        self.rig.machine.pause()
        self.rig.machine.prepare_save()
        states = self.rig.machine.save()
        self.rig.machine.resume()
        return states

    @contextmanager
    def unserved(self) -> Iterator[None]:
        """Leave the event loop standing inside the block: no doorbell is answered."""
        self._served = False
        try:
            yield
        finally:
            self._served = True

    # Lines

    def ask(self, line: str) -> str:
        """Send a line and return the answer."""
        self.send(line)
        return self.answer()

    def send(self, line: str) -> None:
        """Send a line; `answer` is owed, by this machine or by the one that it is restored into."""
        unsent = line.encode() + b"\n"

        def gone() -> bool:
            nonlocal unsent
            unsent = unsent[self.rig.tape.type(unsent) :]
            return not unsent

        self._until(gone, f"the guest to take {line!r}")

    def answer(self) -> str:
        """Wait for the answer to what was sent."""
        answer = self._line()
        assert answer != "what", "the guest did not understand"
        return answer

    def _line(self) -> str:
        self._until(lambda: b"\n" in self._unread(), "a line")
        line = self._unread().partition(b"\n")[0]
        self._read += len(line) + 1
        return line.decode()

    def _unread(self) -> bytes:
        return (self._partial + bytes(self.rig.tape.sent))[self._read :]

    def _until(self, done: Callable[[], bool], what: str) -> None:
        """Run the loop, or wait for the vCPU alone, until *done*."""
        rig, wire = self.rig, self.rig.tape
        assert isinstance(wire, Wire)
        deadline_ns = host.monotonic_ns() + int(PATIENCE_S * 1e9)
        rig.loop.call_at(deadline_ns, rig.loop.stop)
        while True:
            seen = wire.turns
            if done():
                return
            rig.healthy()
            assert host.monotonic_ns() < deadline_ns, f"waited {PATIENCE_S} s for {what}, got {self._unread()!r}"
            if self._served:
                rig.loop.run()
            else:
                wire.wait_turn(seen)

    # Memory and ports

    def read(self, width: int, address: int) -> int:
        """Read *width* bytes (8: in 64-bit code) at a physical address."""
        return int(self.ask(f"r {width:x} {address:x}"), 16)

    def write(self, width: int, address: int, value: int) -> None:
        """Write *width* bytes (8: in 64-bit code) at a physical address."""
        assert self.ask(f"w {width:x} {address:x} {value & _ONES[width]:x}") == "ok"

    def read8(self, address: int) -> int:
        return self.read(1, address)

    def read16(self, address: int) -> int:
        return self.read(2, address)

    def read32(self, address: int) -> int:
        return self.read(4, address)

    def read64(self, address: int) -> int:
        return self.read(8, address)

    def write8(self, address: int, value: int) -> None:
        self.write(1, address, value)

    def write16(self, address: int, value: int) -> None:
        self.write(2, address, value)

    def write32(self, address: int, value: int) -> None:
        self.write(4, address, value)

    def write64(self, address: int, value: int) -> None:
        self.write(8, address, value)

    def read_bytes(self, address: int, length: int) -> bytes:
        """Read bytes, one access each."""
        return b"".join(
            bytes.fromhex(self.ask(f"l {at:x} {min(_LINE_BYTES, address + length - at):x}"))
            for at in range(address, address + length, _LINE_BYTES)
        )

    def write_bytes(self, address: int, payload: bytes) -> None:
        """Write bytes, one access each."""
        for at in range(0, len(payload), _LINE_BYTES):
            assert self.ask(f"s {address + at:x} {payload[at : at + _LINE_BYTES].hex()}") == "ok"

    def in_port(self, width: int, port: int) -> int:
        """Read a port."""
        return int(self.ask(f"i {width:x} {port:x}"), 16)

    def out_port(self, width: int, port: int, value: int) -> None:
        """Write a port."""
        assert self.ask(f"o {width:x} {port:x} {value & _ONES[width]:x}") == "ok"

    # Interrupts

    def count(self, vector: int) -> int:
        """How many interrupts came at *vector*, from 0x30 to 0xef, since they were forgotten.

        What was sent just now may still be on its way: wait for it, or for one of lower priority that was sent later.
        """
        return int(self.ask(f"c {vector:x}"), 16)

    def wait_vector(self, vector: int, count: int = 1) -> int:
        """Halt until *count* interrupts came at *vector* since they were forgotten; returns how many did."""
        return int(self.ask(f"h {vector:x} {count:x}"), 16)

    def forget_counts(self) -> None:
        """Begin to count again, at every vector."""
        assert self.ask("z") == "ok"

    def acknowledge(self, vector: int, cause: int, acknowledge: int = 0) -> None:
        """Have the handler of *vector* copy the word at *cause* to *acknowledge*: a level stays high until that is done.

        Compare `causes` then, not counts: a KVM that emulates the guest ends the interrupt when it injects it, so a
        level that is still high comes once more.
        """
        assert self.ask(f"a {vector:x} {cause:x} {acknowledge:x}") == "ok"

    def causes(self, vector: int) -> int:
        """All bits that the handler of *vector* found at its cause since they were forgotten."""
        return int(self.ask(f"g {vector:x}"), 16)

    def hold_interrupts(self) -> None:
        """Have the local APIC keep what arrives (task priority); input still comes."""
        assert self.ask("p f0") == "ok"

    def let_interrupts(self) -> None:
        """Let through what was held."""
        assert self.ask("p 0") == "ok"

    def cli(self) -> None:
        """Disable interrupts; the guest spins, so not for long."""
        assert self.ask("d") == "ok"

    def sti(self) -> None:
        """Enable interrupts."""
        assert self.ask("e") == "ok"

    def route_line(self, gsi: int, vector: int, *, level: bool = True) -> None:
        """Have the IOAPIC send its pin *gsi* to *vector*, unmasked (82093AA, redirection table)."""
        for index, value in ((0x11 + 2 * gsi, 0), (0x10 + 2 * gsi, vector | (1 << 15 if level else 0))):
            self.write32(IOAPIC, index)
            self.write32(IOAPIC + 0x10, value)

    # PCI

    def config_read(self, slot: int, offset: int, width: int = 4, *, ecam: bool = False) -> int:
        """Read configuration space by the ports 0xCF8 and 0xCFC, or by ECAM."""
        if ecam:
            return self.read(width, ECAM + (slot << 15) + offset)
        self.out_port(4, CONFIG_ADDRESS, config_address(slot, offset))
        return self.in_port(width, CONFIG_DATA + offset % 4)

    def config_write(self, slot: int, offset: int, value: int, width: int = 4, *, ecam: bool = False) -> None:
        """Write configuration space by the ports 0xCF8 and 0xCFC, or by ECAM."""
        if ecam:
            self.write(width, ECAM + (slot << 15) + offset, value)
        else:
            self.out_port(4, CONFIG_ADDRESS, config_address(slot, offset))
            self.out_port(width, CONFIG_DATA + offset % 4, value)

    def capabilities(self, slot: int) -> list[tuple[int, int]]:
        """(ID, offset) of every capability, as a driver walks the chain."""
        found = []
        at = self.config_read(slot, pci.CAPABILITIES_POINTER, 1)
        while at:
            found.append((self.config_read(slot, at, 1), at))
            at = self.config_read(slot, at + pci.CAP_NEXT, 1)
        return found

    def msix_capability(self, slot: int) -> int:
        """Where the MSI-X capability of *slot* is."""
        return next(at for found, at in self.capabilities(slot) if found == pci.CAP_ID_MSIX)

    def set_decoding(self, slot: int, on: bool) -> None:
        """Turn memory decoding on or off; bus mastering goes with it."""
        self.config_write(slot, pci.COMMAND, 0x6 if on else 0, 2)

    def write_bar(self, slot: int, index: int, address: int) -> None:
        """Write both halves of a 64-bit BAR."""
        at = pci.BAR0 + 4 * index
        self.config_write(slot, at, address & _ONES[4])
        self.config_write(slot, at + 4, address >> 32)

    def read_bar(self, slot: int, index: int) -> int:
        """Read a 64-bit BAR without its type bits."""
        at = pci.BAR0 + 4 * index
        return self.config_read(slot, at) & ~0xF | self.config_read(slot, at + 4) << 32

    def move_bar(self, slot: int, index: int, address: int) -> int:
        """Turn decoding off, write a 64-bit BAR, turn decoding on; returns *address*."""
        self.set_decoding(slot, False)
        self.write_bar(slot, index, address)
        self.set_decoding(slot, True)
        return address


def config_address(slot: int, offset: int) -> int:
    """The value of port 0xCF8 for the dword of *offset* on bus 0, function 0."""
    return CONFIG_ENABLE | slot << 11 | (offset & 0xFC)
