"""The kind pci-function: one PCI function, its configuration space and where its BARs are.

PCI Local Bus Specification 3.0, chapter 6. *config* is the configuration space as the guest reads it, BAR registers
included. A BAR's *address* is where it is claimed and decoded; where its register says something else, the guest has
begun to move it (a pending move) or is probing its length (all ones written), and neither has taken effect yet.
"""

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Annotated

import msgspec
from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.schema import U8, U64, SectionId, State, doc, schema
from snapkit.state.spec import msix, pci
from snapkit.state.spec.pci import Command, HeaderType, MemoryBar, Status

CONFIG_LEN = 256
HOST_BRIDGE = SectionId("pci-function", "host-bridge")
"""The section of the function in slot 0, which belongs to no device."""

_ids_and_command = struct.Struct("<HHH").unpack_from
_bar_values = struct.Struct(f"<{pci.BARS}I").unpack_from


class BarState(State):
    """A memory BAR: *index* of its (first) register, its length and the address at which it is claimed."""

    index: Annotated[int, Meta(ge=0, le=5)]
    width: Annotated[U8, doc("bits of its register, 32 or 64")]
    length: U64
    address: Annotated[U64, doc("where it is claimed and, with memory decoding on, decoded")]


@schema("pci-function", version=1, max_len=4096)
class PciFunctionState(State):
    """One function, always function 0 of its slot."""

    slot: Annotated[int, Meta(ge=0, le=31)]
    config: Annotated[bytes, Meta(min_length=CONFIG_LEN, max_length=CONFIG_LEN)]
    bars: Annotated[list[BarState], Meta(max_length=6)] = msgspec.field(default_factory=list)

    @property
    def requester_id(self) -> int:
        """Who it is where messages tell their sender: bus, device and function (PCI Express 5.0, 2.2.4.2)."""
        return self.slot << 3


def register(config: bytes | bytearray, offset: int, length: int) -> int:
    """Return the *length* bytes at *offset* of a configuration space."""
    return int.from_bytes(config[offset : offset + length], "little")


def bar_offset(index: int) -> int:
    """Return where in the configuration space BAR register *index* is."""
    return pci.BAR0 + 4 * index


def bar_registers(bar: BarState) -> range:
    """Return the numbers of the registers that *bar* takes: one, or two for 64 bits."""
    return range(bar.index, bar.index + bar.width // 32)


def bar_type(config: bytes | bytearray, bar: BarState) -> int:
    """Return the type bits of the register of *bar*, which are not address bits."""
    return register(config, bar_offset(bar.index), 4) & ~MemoryBar.ADDRESS


def bar_pointed(config: bytes | bytearray, bar: BarState) -> int:
    """Return the address that the register of *bar* holds; other than `bar.address` while a move or a probe is under way."""
    return register(config, bar_offset(bar.index), bar.width // 8) & ~0xF


def capabilities(config: bytes | bytearray) -> tuple[tuple[int, int], ...]:
    """Return (ID, offset) of every capability in the order of their chain.

    Ends, whatever *config* holds: at the first pointer that is 0, lies outside of the chain's place, or was met before.
    """
    return _capabilities(bytes(config))


@lru_cache(maxsize=64)  # a restore asks five times for each function, and each answer costs 8 us
def _capabilities(config: bytes) -> tuple[tuple[int, int], ...]:
    found: dict[int, int] = {}
    if register(config, pci.STATUS, 2) & Status.CAP_LIST:
        at = config[pci.CAPABILITIES_POINTER]
        while _may_start(at) and at not in found:
            found[at] = config[at + pci.CAP_ID]
            at = config[at + pci.CAP_NEXT]
    return tuple((capability, at) for at, capability in found.items())


def find_capability(config: bytes | bytearray, capability_id: int) -> int | None:
    """Return the offset of the first capability with *capability_id*, None where there is none."""
    for found, offset in capabilities(config):
        if found == capability_id:
            return offset
    return None


RULES = {
    "pci.command": "The command register holds bits that a guest can set: no others are kept.",
    "pci.header": "A function has a type 0 header and is the only one of its slot.",
    "pci.vendor": "A function has a vendor: all ones would mean that there is none.",
    "pci.capabilities": "Capabilities form a list that ends inside of the configuration space, and do not overlap.",
    "pci.bar-width": "A memory BAR has 32 or 64 bits.",
    "pci.bar-index": "A BAR has registers of its own, and registers of no BAR read as zero.",
    "pci.bar-length": "A BAR's length is a power of two within its width: a guest finds it by writing ones.",
    "pci.bar-address": "A BAR is aligned to its length and ends within its width: its register can say nothing else.",
    "pci.bar-type": "The register of a BAR says what kind of BAR it is: those bits are read-only.",
    "pci.bar-bits": "The register of a BAR holds no address bits below its length: they are not in the register.",
    "pci.bar-overlap": "BARs of one function do not overlap: who answered were chance.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: PciFunctionState, component: str) -> list[Finding]:
    """Return what in *state* no function could hold, for the section *component*."""
    values = _bar_values(state.config, pci.BAR0)
    findings = [*_header(state, component), *_chain(state, component)]
    for number in range(len(state.bars)):
        findings += _bar(state, number, values, component)
    findings += _registers_apart(state, values, component)
    if len(state.bars) > 1:
        findings += _apart(state, component)
    return findings


def _may_start(pointer: int) -> bool:
    return pci.HEADER_LEN <= pointer <= pci.CAP_LAST_START and pointer % 4 == 0


def _header(state: PciFunctionState, component: str) -> Iterator[Finding]:
    vendor, _device, command = _ids_and_command(state.config)
    header_type = state.config[pci.HEADER_TYPE]
    if command & ~Command.writable:
        expected = f"within the writable bits {Command.writable:#06x} of the command register"
        yield Finding(component, "config[4:6]", f"{command:#06x}", expected, "pci.command")
    if header_type & HeaderType.defined:
        yield Finding(component, "config[14]", f"{header_type:#04x}", "0x00, one function, no bridge", "pci.header")
    if vendor == pci.NO_FUNCTION:
        yield Finding(component, "config[0:2]", "0xffff", "a vendor: 0xffff means no function", "pci.vendor")


def _chain(state: PciFunctionState, component: str) -> Iterator[Finding]:
    config, rule = state.config, "pci.capabilities"
    listed, first = register(config, pci.STATUS, 2) & Status.CAP_LIST, config[pci.CAPABILITIES_POINTER]
    if not listed:
        if first:
            yield Finding(component, f"config[{pci.CAPABILITIES_POINTER}]", f"{first:#04x}", "0 without a list", rule)
        return
    chain = [offset for _, offset in capabilities(config)]
    last = chain[-1] + pci.CAP_NEXT if chain else pci.CAPABILITIES_POINTER
    pointer = config[last]
    if pointer in chain:
        yield Finding(component, f"config[{last}]", f"{pointer:#04x}", "a capability not met before (a loop)", rule)
    elif pointer or not chain:
        expected = f"a multiple of 4 from {pci.HEADER_LEN:#x} to {pci.CAP_LAST_START:#x}"
        yield Finding(component, f"config[{last}]", f"{pointer:#04x}", expected, rule)
    offset = end = 0
    for following in (*sorted(chain), CONFIG_LEN):
        if end > following:
            text = f"{offset:#x}..{end:#x}"
            yield Finding(component, f"config[{offset}]", f"a capability at {text}", f"over by {following:#x}", rule)
        if following < CONFIG_LEN:
            offset, end = following, following + _least_len(config, following)


def _least_len(config: bytes, offset: int) -> int:
    """Return how long the capability at *offset* is, as far as its ID tells."""
    found = config[offset + pci.CAP_ID]
    if found == pci.CAP_ID_VENDOR:
        return max(config[offset + 2], 3)
    return msix.CAP_LEN if found == pci.CAP_ID_MSIX else 2


def _bar(state: PciFunctionState, number: int, values: Sequence[int], component: str) -> Iterator[Finding]:
    bar, path = state.bars[number], f"bars[{number}]"
    if bar.width not in {32, 64}:
        yield Finding(component, f"{path}.width", str(bar.width), "32 or 64", "pci.bar-width")
        return
    if bar.index + bar.width // 32 > pci.BARS:
        yield Finding(component, f"{path}.index", str(bar.index), "at most 4 for a 64-bit BAR", "pci.bar-index")
        return
    room = 1 << bar.width
    if bar.length < pci.BAR_LEN_MIN or bar.length & (bar.length - 1) or bar.length >= room:
        expected = f"a power of two from {pci.BAR_LEN_MIN} to {room >> 1:#x}"
        yield Finding(component, f"{path}.length", f"{bar.length:#x}", expected, "pci.bar-length")
        return
    if bar.address % bar.length or bar.address + bar.length > room:
        expected = f"a multiple of {bar.length:#x} within {bar.width} bits"
        yield Finding(component, f"{path}.address", f"{bar.address:#x}", expected, "pci.bar-address")
    low = values[bar.index]
    wanted = pci.BAR_TYPE_64 if bar.width == 64 else pci.BAR_TYPE_32
    if low & MemoryBar.IO or MemoryBar.TYPE.get(low) != wanted:
        expected = f"that of a {bar.width}-bit memory BAR in its type bits"
        yield Finding(component, f"config[{bar_offset(bar.index)}]", f"{low:#010x}", expected, "pci.bar-type")
    pointed = (low | values[bar.index + 1] << 32 if bar.width == 64 else low) & ~0xF
    if pointed % bar.length:
        expected = f"0 below bit {bar.length.bit_length() - 1}: those bits are not in the register"
        yield Finding(component, f"config[{bar_offset(bar.index)}]", f"{pointed:#x}", expected, "pci.bar-bits")


def _registers_apart(state: PciFunctionState, values: Sequence[int], component: str) -> Iterator[Finding]:
    taken: set[int] = set()
    for number, bar in enumerate(state.bars):
        registers = bar_registers(bar)
        if not taken.isdisjoint(registers):
            expected = "a register that no other BAR has"
            yield Finding(component, f"bars[{number}].index", str(bar.index), expected, "pci.bar-index")
        taken.update(registers)
    for index, value in enumerate(values):
        if value and index not in taken:
            path, expected = f"config[{bar_offset(index)}]", "0 where there is no BAR"
            yield Finding(component, path, f"{value:#010x}", expected, "pci.bar-index")


def _apart(state: PciFunctionState, component: str) -> Iterator[Finding]:
    ordered = sorted(enumerate(state.bars), key=lambda item: item[1].address)
    for (_, below), (number, bar) in pairwise(ordered):
        if below.address + below.length > bar.address:
            expected = f"at or above {below.address + below.length:#x}, where BAR {below.index} ends"
            yield Finding(component, f"bars[{number}].address", f"{bar.address:#x}", expected, "pci.bar-overlap")
