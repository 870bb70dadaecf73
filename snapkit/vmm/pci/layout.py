"""Configuration spaces of new functions: the header, its BARs, its capabilities, built purely.

PCI Local Bus Specification 3.0, chapter 6. `header` makes a `FreshConfig`, `add_bar` and `add_capability` fill it, and
``bytes(config)`` is what a `PciFunctionState` holds:

    config = header(vendor=0x1AF4, device=0x1042, revision=1, class_code=0x018000)
    bars = [add_bar(config, 0, width=64, address=0x40_0000_0000, length=512 * KIB)]
    add_capability(config, CAP_ID_MSIX, msix_capability(2, table=(0, 0x8000), pba=(0, 0x48000)))
    state = PciFunctionState(slot=1, config=bytes(config), bars=bars)

Only the operator's and our own numbers get here, never a guest's: what does not fit is a bug and raises InternalError.
"""

from snapkit.errors import InternalError
from snapkit.state.pci_function import BarState, PciFunctionState, bar_offset, bar_registers, capabilities, register
from snapkit.state.spec import pci
from snapkit.state.spec.msix import MessageControl, TableOffset
from snapkit.state.spec.pci import MemoryBar, Status
from snapkit.units import align_up

# What Linux and lspci show for slot 0. The identity is one that existing guests know as the bridge of a microVM.
HOST_BRIDGE_VENDOR = 0x8086
HOST_BRIDGE_DEVICE = 0x0D57


class FreshConfig(bytearray):
    """A configuration space under construction; remembers where the next capability goes."""

    def __init__(self) -> None:
        super().__init__(pci.CONFIG_LEN)
        self.capabilities_end = pci.HEADER_LEN

    def put(self, offset: int, length: int, value: int) -> None:
        """Set the *length* bytes at *offset*."""
        self[offset : offset + length] = value.to_bytes(length, "little")


def header(
    *,
    vendor: int,
    device: int,
    class_code: int,
    revision: int = 0,
    subsystem_vendor: int = 0,
    subsystem: int = 0,
    command: int = 0,
) -> FreshConfig:
    """Begin a type 0 configuration space. *class_code* has 24 bits, base class highest; decoding is off by default."""
    config = FreshConfig()
    config.put(pci.VENDOR_ID, 2, vendor)
    config.put(pci.DEVICE_ID, 2, device)
    config.put(pci.COMMAND, 2, command)
    config.put(pci.REVISION_ID, 1, revision)
    config.put(pci.CLASS_CODE, 3, class_code)
    config.put(pci.SUBSYSTEM_VENDOR_ID, 2, subsystem_vendor)
    config.put(pci.SUBSYSTEM_ID, 2, subsystem)
    return config


def add_bar(
    config: FreshConfig, index: int, *, width: int, address: int, length: int, prefetchable: bool = False
) -> BarState:
    """Put a memory BAR of 32 or 64 bits at register *index*, pointing at *address*; return its State."""
    if width not in {32, 64}:
        raise InternalError(f"BAR {index} has {width} bits, must have 32 or 64")
    bar = BarState(index=index, width=64 if width == 64 else 32, length=length, address=address)
    if bar_registers(bar).stop > pci.BARS:
        raise InternalError(f"BAR {index} of {width} bits must lie within {pci.BARS} registers")
    if length < pci.BAR_LEN_MIN or length & (length - 1) or address % length or address + length > 1 << width:
        raise InternalError(
            f"BAR {index} is {address:#x}+{length:#x}, must be a power of two, aligned, in {width} bits"
        )
    if register(config, bar_offset(index), width // 8):
        raise InternalError(f"BAR {index} of {width} bits takes a register that another BAR has")
    kind = MemoryBar.TYPE.put(pci.BAR_TYPE_64 if width == 64 else pci.BAR_TYPE_32)
    config.put(bar_offset(index), width // 8, address | kind | (MemoryBar.PREFETCHABLE if prefetchable else 0))
    return bar


def add_capability(config: FreshConfig, capability_id: int, payload: bytes) -> int:
    """Append a capability to the chain; return its offset.

    *payload* is what follows the ID and the next pointer, so the capability is two bytes longer.
    """
    offset = align_up(config.capabilities_end, 4)
    end = offset + 2 + len(payload)
    if end > pci.CONFIG_LEN:
        raise InternalError(f"capability {capability_id:#x} would end at {end:#x}, must end by {pci.CONFIG_LEN:#x}")
    *_, last = [pci.CAPABILITIES_POINTER, *(at + pci.CAP_NEXT for _, at in capabilities(config))]
    config.put(last, 1, offset)
    config[offset:end] = bytes((capability_id, 0)) + payload
    config.put(pci.STATUS, 2, register(config, pci.STATUS, 2) | Status.CAP_LIST)
    config.capabilities_end = end
    return offset


def msix_capability(vectors: int, *, table: tuple[int, int], pba: tuple[int, int]) -> bytes:
    """Return the payload of an MSI-X capability, switched off; *table* and *pba* are (BAR index, offset in it)."""
    words = [
        TableOffset.BIR.put(bar) | (offset & TableOffset.OFFSET)
        for bar, offset in (table, pba)
        if not offset & TableOffset.BIR and bar < pci.BARS
    ]
    if len(words) != 2 or not 0 < vectors <= MessageControl.TABLE_SIZE + 1:
        raise InternalError(f"MSI-X of {vectors} vectors with its table at {table} and its PBA at {pba} cannot be told")
    control = MessageControl.TABLE_SIZE.put(vectors - 1)
    return control.to_bytes(2, "little") + b"".join(word.to_bytes(4, "little") for word in words)


def host_bridge() -> PciFunctionState:
    """Return a new host bridge: slot 0, no BARs, no capabilities."""
    config = header(vendor=HOST_BRIDGE_VENDOR, device=HOST_BRIDGE_DEVICE, class_code=pci.CLASS_HOST_BRIDGE)
    return PciFunctionState(slot=0, config=bytes(config), bars=[])
