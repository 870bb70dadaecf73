"""What a PCI function stands on, for tests: pools, a bus, and targets that note what they are told and can fail."""

from snapkit.errors import HostError
from snapkit.state.pci_function import PciFunctionState
from snapkit.state.resource_allocator import PoolState
from snapkit.state.spec.pci import CAP_ID_MSIX
from snapkit.vmm.bus import Bus
from snapkit.vmm.pci import layout
from snapkit.vmm.pci.pci_function import PciFunction, PciFunctionArgs
from snapkit.vmm.resource_allocator import ResourceAllocator

MMIO32, MMIO32_END = 0xC000_0000, 0xEEC0_0000
MMIO64, MMIO64_END = 0x40_0000_0000, 0x80_0000_0000
BAR_LEN = 0x8_0000
SMALL_LEN = 0x1000

COMMAND, STATUS, BAR0, MEMORY = 0x04, 0x06, 0x10, 0x0002
PROBE = 0xFFFF_FFFF


def pools() -> list[PoolState]:
    return [
        PoolState(pool="gsi-msi", start=24, length=4072),
        PoolState(pool="mmio32", start=MMIO32, length=MMIO32_END - MMIO32),
        PoolState(pool="mmio64", start=MMIO64, length=MMIO64_END - MMIO64),
        PoolState(pool="pci-slot", start=1, length=31),
    ]


class Target:
    """Registers behind a BAR. `told` is what it was told, in order; `refusing` makes `mapped` fail there, or anywhere."""

    def __init__(self, name: int = 0x55) -> None:
        self.name = name
        self.told: list[tuple[str, int]] = []
        self.accesses: list[tuple[int, int, int | None]] = []
        self.refusing: set[int] | bool = False

    def read(self, offset: int, length: int) -> int:
        self.accesses.append((offset, length, None))
        return self.name

    def write(self, offset: int, length: int, value: int) -> None:
        self.accesses.append((offset, length, value))

    def mapped(self, base: int) -> None:
        if self.refusing is True or (self.refusing and base in self.refusing):
            raise HostError("ioctl", 17, "KVM_IOEVENTFD")
        self.told.append(("mapped", base))

    def unmapped(self, base: int) -> None:
        self.told.append(("unmapped", base))


def fresh(slot: int = 1, *, width: int = 64, address: int | None = None, length: int = BAR_LEN) -> PciFunctionState:
    """Make a function with one BAR, and an MSI-X capability that says its table and PBA are there."""
    if address is None:
        address = MMIO64 if width == 64 else MMIO32
    config = layout.header(vendor=0x1AF4, device=0x1042, revision=1, class_code=0x01_8000, subsystem=2)
    bar = layout.add_bar(config, 0, width=width, address=address, length=length)
    capability = layout.msix_capability(3, table=(0, 0x800), pba=(0, 0xC00))
    layout.add_capability(config, CAP_ID_MSIX, capability)
    return PciFunctionState(slot=slot, config=bytes(config), bars=[bar])


class Rig:
    """One machine's worth of what functions share."""

    def __init__(self) -> None:
        self.resources = ResourceAllocator(pools())
        self.bus = Bus("mmio")

    def function(self, state: PciFunctionState, name: str = "root", *targets: Target) -> PciFunction:
        """Restore a function and attach *targets* to its BARs in order."""
        function = PciFunction.restore(state, PciFunctionArgs(self.resources, self.bus, f"pci-function/{name}"))
        for bar, target in zip(function.state.bars, targets, strict=False):
            function.attach(bar.index, target)
        return function

    def claims(self, name: str = "root") -> set[tuple[str, int, int]]:
        """Return what a function has of the allocator."""
        return {
            (claim.pool, claim.start, claim.length)
            for claim in self.resources.save().claims
            if claim.owner == f"pci-function/{name}"
        }

    def ranges(self) -> list[tuple[int, int]]:
        """Return what is on the bus."""
        return [(start, end - start) for start, end, _ in self.bus._ranges]


def point(function: PciFunction, address: int, *, index: int = 0, width: int = 64) -> None:
    """Write the registers of a BAR, high half first: moves to and from the low window pass through no good address."""
    if width == 64:
        function.write_config(BAR0 + 4 * index + 4, 4, address >> 32)
    function.write_config(BAR0 + 4 * index, 4, address & 0xFFFF_FFFF)


def decoding(function: PciFunction, on: bool) -> None:
    command = function.read_config(COMMAND, 2)
    function.write_config(COMMAND, 2, command | MEMORY if on else command & ~MEMORY)
