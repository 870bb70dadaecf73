"""The PCI segment: one bus of 32 slots, reached through ECAM in memory and through the ports 0xCF8 to 0xCFF.

PCI Local Bus Specification 3.0, section 3.2.2.3.2 (configuration mechanism 1), and PCI Express Base Specification 3.0,
section 7.2.2 (enhanced configuration access mechanism). Both reach the same functions. Where there is none, on another
bus, as a second function in a slot, or behind the 256 bytes that a conventional function has, reads give all ones and
writes go nowhere; that is how software enumerates, so it is not counted as a fault.

Surprises:

- Only a dword write at 0xCF8 is the latch; narrower ones are other chips' ports (0xCF9 resets some chipsets), and Linux
  writes a byte to 0xCFB before it tests for mechanism 1 (arch/x86/pci/direct.c, pci_check_type1).
- An access that straddles the two ports' dwords, or two dwords of a configuration space, does nothing.
"""

from typing import ClassVar, NamedTuple, Protocol, Self

from snapkit.errors import ConfigError
from snapkit.state.codec import adopted, checked
from snapkit.state.pci_segment import PciSegmentState
from snapkit.state.spec import pci
from snapkit.state.spec.pci import ConfigAddress
from snapkit.units import Gpa
from snapkit.vmm.bus import Bus


class ConfigSpace(Protocol):
    """A function as the segment sees it: total over every offset, length and value."""

    def read_config(self, offset: int, length: int) -> int: ...

    def write_config(self, offset: int, length: int, value: int) -> None: ...


class PciSegmentArgs(NamedTuple):
    """The buses that a segment is on, and where its ECAM begins."""

    ports: Bus
    mmio: Bus
    ecam: Gpa


class PciSegment:
    """The segment, on both buses from its construction on, with empty slots. Every method needs the machine's lock."""

    kind: ClassVar[str] = "pci-segment"

    def __init__(self, state: PciSegmentState, *, ports: Bus, mmio: Bus, ecam: Gpa) -> None:
        # Configuration
        self._ecam = ecam
        # Runtime glue
        self._ports, self._mmio = ports, mmio
        self._slots: list[ConfigSpace | None] = [None] * pci.SLOTS
        self._closed = False
        self.faults = 0
        # Guest-visible state
        self.state = state
        ports.insert(pci.CONFIG_ADDRESS_PORT, pci.PORTS, _Ports(self))
        try:
            mmio.insert(ecam, pci.ECAM_BUS_LEN, _Ecam(self))
        except ConfigError:
            ports.remove(pci.CONFIG_ADDRESS_PORT)
            raise

    @classmethod
    def restore(cls, state: PciSegmentState, args: PciSegmentArgs) -> Self:
        """Construct the segment that *state* describes; its functions are added as they are constructed.

        Raises ImageError naming the field that is out of bounds.
        """
        return cls(adopted(state), ports=args.ports, mmio=args.mmio, ecam=args.ecam)

    def save(self) -> PciSegmentState:
        """Return a detached copy of what the guest can see."""
        return checked(self.state)

    def close(self) -> None:
        """Leave both buses."""
        if not self._closed:
            self._closed = True
            self._ports.remove(pci.CONFIG_ADDRESS_PORT)
            self._mmio.remove(self._ecam)

    # Slots

    def add(self, slot: int, function: ConfigSpace) -> None:
        """Put *function* into *slot*; ConfigError when there is no such slot or it is taken."""
        if not 0 <= slot < pci.SLOTS or self._slots[slot] is not None:
            raise ConfigError(f"PCI slot {slot} is taken, or none of 0..{pci.SLOTS - 1}")
        self._slots[slot] = function

    def remove(self, slot: int) -> None:
        """Empty *slot*."""
        self._slots[slot] = None

    # The buses

    def read_ports(self, offset: int, length: int) -> int:
        """Read at port 0xCF8 + *offset*."""
        if offset >= 4:
            function, register = self._latched()
            if function is not None:
                return function.read_config(register + offset - 4, length)
        elif offset == 0 and length == 4:
            return self.state.config_address
        return _ones(length)

    def write_ports(self, offset: int, length: int, value: int) -> None:
        """Write at port 0xCF8 + *offset*."""
        if offset >= 4:
            function, register = self._latched()
            if function is not None:
                function.write_config(register + offset - 4, length, value)
        elif offset == 0 and length == 4:
            self.state.config_address = value & ConfigAddress.defined

    def read_ecam(self, offset: int, length: int) -> int:
        """Read at *offset* of bus 0 in the enhanced configuration space."""
        if offset % 4 + length > 4:
            self.faults += 1
            return _ones(length)
        function, register = self._addressed(offset)
        return _ones(length) if function is None else function.read_config(register, length)

    def write_ecam(self, offset: int, length: int, value: int) -> None:
        """Write at *offset* of bus 0 in the enhanced configuration space."""
        if offset % 4 + length > 4:
            self.faults += 1
            return
        function, register = self._addressed(offset)
        if function is not None:
            function.write_config(register, length, value)

    # Helpers

    def _latched(self) -> tuple[ConfigSpace | None, int]:
        """Return what the latch means: the function, None where there is none, and the offset of the dword in it."""
        latch = self.state.config_address
        if not latch & ConfigAddress.ENABLE or latch & (ConfigAddress.BUS | ConfigAddress.FUNCTION):
            return None, 0
        return self._slots[ConfigAddress.DEVICE.get(latch)], latch & ConfigAddress.REGISTER

    def _addressed(self, offset: int) -> tuple[ConfigSpace | None, int]:
        """Return what *offset* of the ECAM means; None behind the 256 bytes of a function too."""
        slot, rest = divmod(offset, 1 << pci.ECAM_DEVICE_SHIFT)
        if rest >= pci.CONFIG_LEN:  # function 1 and on begin behind it as well
            return None, 0
        return self._slots[slot], rest


class _Ports:
    """The segment as the port bus sees it."""

    def __init__(self, segment: PciSegment) -> None:
        self.read, self.write = segment.read_ports, segment.write_ports


class _Ecam:
    """The segment as the memory bus sees it."""

    def __init__(self, segment: PciSegment) -> None:
        self.read, self.write = segment.read_ecam, segment.write_ecam


def _ones(length: int) -> int:
    return (1 << 8 * length) - 1
