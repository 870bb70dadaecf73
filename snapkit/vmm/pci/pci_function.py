"""One PCI function: type 0 configuration space, BARs that the guest may move, hooks for what its capabilities do.

PCI Local Bus Specification 3.0, chapter 6. The registers behind a BAR belong to its target; this is about where they
are. What a guest may write is the header's own writable bits, the address bits of the BARs, and what `allow_writes`
adds for a capability; all else is read-only.

How a BAR moves. The register is one thing (`config`), where the BAR is claimed and decoded another (`BarState.address`).
They part when the guest writes the register, and meet again when memory decoding is on or is turned on: then the new
range is claimed, put on the bus and announced to the target (`mapped`), and only after all that has succeeded the old
one is taken away. Whatever fails is undone in reverse, counted in `faults`, and the old range stays. So "decoding on"
always means "decoded at `address`", which is why nothing more than `config` and `address` has to be saved.

Surprises:

- A dword of all ones is a size probe and moves nothing, even with decoding on: between the two halves of a 64-bit probe
  the register holds an address that could be a good one.
- With decoding on, each half of a 64-bit BAR that is written is a move of its own, as in hardware; Linux turns decoding
  off around the two.
- If decoding cannot be turned on even at the old address, the command bit reads 0 again.
- A move that failed stays in the register. It is tried again when the guest writes the register or turns decoding off
  and on, not whenever it writes the command register: a probe may be under way.
- A claim is kept while decoding is off, so two functions cannot swap their addresses without a third one in between.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar, NamedTuple, Protocol, Self

from snapkit.errors import ConfigError, InternalError, SnapkitError
from snapkit.state.codec import adopted, checked
from snapkit.state.pci_function import (
    BarState,
    PciFunctionState,
    bar_offset,
    bar_pointed,
    bar_registers,
    register,
)
from snapkit.state.resource_allocator import Pool
from snapkit.state.spec import pci
from snapkit.state.spec.pci import Command
from snapkit.vmm.bus import Bus, BusDevice
from snapkit.vmm.resource_allocator import ResourceAllocator

HOST_BRIDGE_SLOT = 0  # outside of the pool of slots: it is always there


class BarTarget(BusDevice, Protocol):
    """The registers behind a BAR, and what has to follow when it moves, such as doorbells."""

    def mapped(self, base: int) -> None:
        """Learn that the BAR is decoded at *base* from now on; on SnapkitError nothing may have changed."""
        ...

    def unmapped(self, base: int) -> None:
        """Learn that the BAR is no longer decoded at *base*. Cannot fail."""
        ...


class PciFunctionArgs(NamedTuple):
    """Host things of a function: what addresses are claimed from, the bus its BARs are on, and its section's name.

    *reserved* are addresses inside a window that are not for BARs.
    """

    resources: ResourceAllocator
    bus: Bus
    owner: str
    reserved: range = range(0)


class _ReadHook(NamedTuple):
    start: int
    end: int
    call: Callable[[int, int], int]


class _WriteHook(NamedTuple):
    start: int
    end: int
    call: Callable[[int, int, int], None]


class PciFunction:
    """One function. Constructing claims its slot and its BARs; nothing is on the bus before `attach`.

    Every method needs the machine's lock.
    """

    kind: ClassVar[str] = "pci-function"

    def __init__(
        self,
        state: PciFunctionState,
        *,
        resources: ResourceAllocator,
        bus: Bus,
        owner: str,
        reserved: range = range(0),
    ) -> None:
        # Configuration
        self.owner, self._reserved = owner, reserved
        self._writable = _writable(state)
        # Runtime glue
        self._resources, self._bus = resources, bus
        self._targets: dict[int, BarTarget] = {}
        self._on_bus: dict[int, int] = {}  # by BAR index, where its target is decoded
        self._read_hooks: list[_ReadHook] = []
        self._write_hooks: list[_WriteHook] = []
        self._closed = False
        self.faults = 0
        # Guest-visible state
        self.state = state
        self._claim()

    @classmethod
    def restore(cls, state: PciFunctionState, args: PciFunctionArgs) -> Self:
        """Construct the function that *state* describes, with its claims.

        Raises ImageError naming the field that is out of bounds, ConfigError when a claim cannot be had.
        """
        return cls(adopted(state), resources=args.resources, bus=args.bus, owner=args.owner, reserved=args.reserved)

    def save(self) -> PciFunctionState:
        """Return a detached copy of what the guest can see."""
        return checked(self.state)

    def close(self) -> None:
        """Leave the bus and give the claims back; targets are not told, since their owner closes them as well."""
        if self._closed:
            return
        self._closed = True
        for base in self._on_bus.values():
            self._bus.remove(base)
        self._on_bus.clear()
        for pool, start, length in self._claims():
            self._resources.free(pool, start, length, self.owner)

    # Wiring

    def attach(self, bar_index: int, target: BarTarget) -> None:
        """Put *target* behind a BAR; with decoding on it is on the bus at once, without being told (`decoded` says where)."""
        bar = next((bar for bar in self.state.bars if bar.index == bar_index), None)
        if bar is None or bar_index in self._targets:
            raise InternalError(f"{self.owner} has no free BAR {bar_index}")
        if self._decoding():
            self._bus.insert(bar.address, bar.length, target)
            self._on_bus[bar_index] = bar.address
        self._targets[bar_index] = target

    def decoded(self, bar_index: int) -> int | None:
        """Return the address at which an attached BAR is decoded now, None while it is not."""
        return self._on_bus.get(bar_index)

    def allow_writes(self, offset: int, length: int, mask: int) -> None:
        """Let the guest write the bits *mask* of the *length* bytes at *offset*, behind the header."""
        if offset < pci.HEADER_LEN or offset + length > pci.CONFIG_LEN:
            raise InternalError(f"{self.owner} config {offset:#x}+{length} is not behind the header")
        bits = register(self._writable, offset, length) | mask
        self._writable[offset : offset + length] = bits.to_bytes(length, "little")

    def on_config_read(self, start: int, length: int, call: Callable[[int, int], int]) -> None:
        """Have reads of [start, start+length) answered by ``call(offset, length)``, *offset* counted from *start*.

        A read that covers more than the range asks for the part inside it.
        """
        self._read_hooks.append(_ReadHook(start, start + length, call))

    def on_config_write(self, start: int, length: int, call: Callable[[int, int, int], None]) -> None:
        """Have ``call(offset, length, value)`` told of writes to [start, start+length), *offset* counted from *start*.

        It comes after the bits that may be written have been stored, with the part of the write inside the range.
        """
        self._write_hooks.append(_WriteHook(start, start + length, call))

    # Configuration space

    def read_config(self, offset: int, length: int) -> int:
        """Read bytes that lie in one dword; all ones for anything else."""
        if not _in_a_dword(offset, length):
            self.faults += 1
            return (1 << 8 * max(length, 0)) - 1
        value = register(self.state.config, offset, length)
        for start, end, call in self._read_hooks:
            low, high = max(start, offset), min(end, offset + length)
            if low < high:
                shift, mask = 8 * (low - offset), (1 << 8 * (high - low)) - 1
                value = (value & ~(mask << shift)) | (call(low - start, high - low) & mask) << shift
        return value

    def write_config(self, offset: int, length: int, value: int) -> None:
        """Write bytes that lie in one dword, with all that follows from it; nothing for anything else."""
        if not _in_a_dword(offset, length):
            self.faults += 1
            return
        decoding = self._decoding()
        mask = register(self._writable, offset, length)
        self._store(offset, length, (register(self.state.config, offset, length) & ~mask) | (value & mask))
        if offset < pci.HEADER_LEN:
            if self._decoding() != decoding:
                self._drive_decoding(not decoding)
            elif decoding and not (length == 4 and value == pci.SIZE_PROBE):
                self._move_written(offset)
        for start, end, call in self._write_hooks:
            low, high = max(start, offset), min(end, offset + length)
            if low < high:
                part = value >> 8 * (low - offset) & ((1 << 8 * (high - low)) - 1)
                call(low - start, high - low, part)

    # BARs

    def _decoding(self) -> bool:
        return bool(self.state.config[pci.COMMAND] & Command.MEMORY)

    def _drive_decoding(self, on: bool) -> None:
        """Follow the command register: every BAR on the bus, or none."""
        for bar in self.state.bars:
            if not on:
                self._unmap(bar)
            elif not (self._move(bar) or self._map(bar, bar.address)):
                for other in self.state.bars:
                    self._unmap(other)
                command = register(self.state.config, pci.COMMAND, 2)
                self._store(pci.COMMAND, 2, command & ~Command.MEMORY)
                return

    def _move_written(self, offset: int) -> None:
        """Move the BAR whose register at *offset* was written while it is decoded."""
        for bar in self.state.bars:
            if (offset - pci.BAR0) // 4 in bar_registers(bar):
                self._move(bar)

    def _move(self, bar: BarState) -> bool:
        """Bring *bar*, decoded or about to be, to where its register points; False if it has to stay where it is."""
        new, old = bar_pointed(self.state.config, bar), bar.address
        if new == old:
            return False
        pool, old_pool = self._resources.window(new, bar.length), self._window(bar)
        if pool is None or (new < self._reserved.stop and new + bar.length > self._reserved.start):
            self.faults += 1
            return False
        try:
            self._resources.claim(pool, new, bar.length, self.owner)
        except SnapkitError:
            self.faults += 1
            return False
        old_base = self._on_bus.get(bar.index)
        if not self._map(bar, new):
            self._resources.free(pool, new, bar.length, self.owner)
            return False
        bar.address = new
        if old_base is not None:
            self._targets[bar.index].unmapped(old_base)
            self._bus.remove(old_base)
        self._resources.free(old_pool, old, bar.length, self.owner)
        return True

    def _map(self, bar: BarState, base: int) -> bool:
        """Put *bar* on the bus at *base* and tell its target; undone, counted and False where that fails."""
        target = self._targets.get(bar.index)
        if target is None:
            return True
        try:
            self._bus.insert(base, bar.length, target)
        except SnapkitError:
            self.faults += 1
            return False
        try:
            target.mapped(base)
        except SnapkitError:
            self.faults += 1
            self._bus.remove(base)
            return False
        self._on_bus[bar.index] = base
        return True

    def _unmap(self, bar: BarState) -> None:
        base = self._on_bus.pop(bar.index, None)
        if base is not None:
            self._targets[bar.index].unmapped(base)
            self._bus.remove(base)

    # Helpers

    def _store(self, offset: int, length: int, value: int) -> None:
        config = bytearray(self.state.config)
        config[offset : offset + length] = value.to_bytes(length, "little")
        self.state.config = bytes(config)

    def _claim(self) -> None:
        claimed: list[tuple[Pool, int, int]] = []
        try:
            for pool, start, length in self._claims():
                self._resources.claim(pool, start, length, self.owner)
                claimed.append((pool, start, length))
        except SnapkitError:
            for pool, start, length in claimed:
                self._resources.free(pool, start, length, self.owner)
            raise

    def _claims(self) -> Iterator[tuple[Pool, int, int]]:
        if self.state.slot != HOST_BRIDGE_SLOT:
            yield "pci-slot", self.state.slot, 1
        for bar in self.state.bars:
            yield self._window(bar), bar.address, bar.length

    def _window(self, bar: BarState) -> Pool:
        pool = self._resources.window(bar.address, bar.length)
        if pool is None:
            where = f"{bar.address:#x}..{bar.address + bar.length:#x}"
            raise ConfigError(f"{self.owner} BAR {bar.index} is at {where}, must lie in a window for memory BARs")
        return pool


def _in_a_dword(offset: int, length: int) -> bool:
    return 0 <= offset < pci.CONFIG_LEN and 1 <= length <= 4 - offset % 4


def _writable(state: PciFunctionState) -> bytearray:
    """Return which bits of the header a guest may write."""
    mask = bytearray(pci.CONFIG_LEN)
    mask[pci.COMMAND : pci.COMMAND + 2] = Command.writable.to_bytes(2, "little")
    mask[pci.CACHE_LINE_SIZE] = mask[pci.INTERRUPT_LINE] = 0xFF  # notes of the guest's, without effect
    for bar in state.bars:
        at, length = bar_offset(bar.index), bar.width // 8
        mask[at : at + length] = (-bar.length & ((1 << bar.width) - 1)).to_bytes(length, "little")
    return mask
