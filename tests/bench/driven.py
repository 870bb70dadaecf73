"""A machine whose devices are all in use, without a guest that has drivers: the bench is their driver, over the bus.

What a driver does before its first request is done here for every function: memory decoding and bus mastering on, the
steps of the status register, a vector a queue, rings in free RAM, MSI-X on. So the snapshot of it has every doorbell, every
route and every irqfd that a Linux guest's would have.
"""

from pathlib import Path

from snapkit.state.interrupt_table import InterruptTableState
from snapkit.state.pci_function import find_capability
from snapkit.state.schema import SectionId
from snapkit.state.spec import msix, pci
from snapkit.state.spec import virtio as spec
from snapkit.state.spec.pci import Command
from snapkit.units import KIB, MIB
from snapkit.vmm.machine import Machine
from snapkit.vmm.parts.fresh import Asked
from snapkit.vmm.parts.pci import FunctionPart
from snapkit.vmm.virtio.pci_layout import BAR, COMMON, MSIX_TABLE

DISK_LEN = MIB
_RINGS_AT = 64 * MIB
_RING_ROOM = 16 * KIB
_MESSAGE_AT = 0xFEE0_0000
_ORDER = ("disk", "disk", "disk", "rng", "balloon", "vsock", "disk", "disk", "disk", "disk")
"""The device kinds of a machine, as many of them from the first on as it has."""


def devices(count: int, folder: Path) -> tuple[Asked, ...]:
    """Return *count* devices to boot with, their files made in *folder*."""
    asked = []
    for number, kind in enumerate(_ORDER[:count]):
        ident, values = f"{kind}{number}", dict[str, str]()
        if kind == "disk":
            path = folder / f"{count}-{ident}.img"
            path.write_bytes(b"\1" * DISK_LEN)
            values = {"path": str(path)}
        elif kind == "vsock":
            values = {"cid": "3", "uds": str(folder / f"{count}.vsock")}
        asked.append(Asked("virtio-block" if kind == "disk" else f"virtio-{kind}", ident, values))
    return tuple(asked)


def drive(machine: Machine) -> None:
    """Do for every PCI device of the paused *machine* what its driver does before the first request."""
    vm = machine._need_vm()
    ring = _RINGS_AT
    with vm.lock:
        for section, part in machine.board.parts.items():
            if isinstance(part, FunctionPart) and part.function.state.bars:
                ring = _Driver(machine, section, part).start(ring)
        routes: InterruptTableState = vm.interrupts.save()
    assert routes.routes


class _Driver:
    """The driver of one device."""

    def __init__(self, machine: Machine, section: SectionId, part: FunctionPart) -> None:
        self._function, self._bus = part.function, machine._need_vm().mmio
        self._base = next(bar.address for bar in part.function.state.bars if bar.index == BAR)
        self._slot = part.function.state.slot

    def start(self, ring: int) -> int:
        """Take the device as far as DRIVER_OK, rings from *ring* on; returns where those end."""
        self._function.write_config(pci.COMMAND, 2, Command.MEMORY | Command.MASTER)
        status = 0
        for step in (spec.STATUS_ACKNOWLEDGE, spec.STATUS_DRIVER):
            status = self._step(status, step)
        for word in (0, 1):
            self._put(spec.COMMON_DEVICE_FEATURE_SELECT, 4, word)
            self._put(spec.COMMON_DRIVER_FEATURE_SELECT, 4, word)
            self._put(spec.COMMON_DRIVER_FEATURE, 4, self._get(spec.COMMON_DEVICE_FEATURE, 4))
        status = self._step(status, spec.STATUS_FEATURES_OK)
        queues = self._get(spec.COMMON_NUM_QUEUES, 2)
        self._open_vectors(queues + 1)
        for number in range(queues):
            self._put(spec.COMMON_QUEUE_SELECT, 2, number)
            size = self._get(spec.COMMON_QUEUE_SIZE, 2)
            available = ring + spec.desc_table_len(size)
            used = (available + spec.avail_len(size) + 3) & ~3
            for at, gpa in (
                (spec.COMMON_QUEUE_DESC, ring),
                (spec.COMMON_QUEUE_DRIVER, available),
                (spec.COMMON_QUEUE_DEVICE, used),
            ):
                self._put(at, 8, gpa)
            self._put(spec.COMMON_QUEUE_MSIX_VECTOR, 2, number + 1)
            self._put(spec.COMMON_QUEUE_ENABLE, 2, 1)
            ring += _RING_ROOM
        self._step(status, spec.STATUS_DRIVER_OK)
        return ring

    def _open_vectors(self, count: int) -> None:
        self._put(spec.COMMON_CONFIG_MSIX_VECTOR, 2, 0)
        for number in range(count):
            entry = self._base + MSIX_TABLE + number * msix.ENTRY_LEN
            self._bus.write(entry, 8, _MESSAGE_AT)
            self._bus.write(entry + msix.ENTRY_DATA, 4, 0x30 + self._slot * 4 + number)
            self._bus.write(entry + msix.ENTRY_CONTROL, 4, 0)
        at = find_capability(self._function.state.config, pci.CAP_ID_MSIX)
        assert at is not None
        self._function.write_config(at + msix.MESSAGE_CONTROL, 2, msix.MessageControl.ENABLE)

    def _step(self, status: int, step: int) -> int:
        status |= step
        self._put(spec.COMMON_DEVICE_STATUS, 1, status)
        assert self._get(spec.COMMON_DEVICE_STATUS, 1) == status, hex(status)
        return status

    def _get(self, register: int, length: int) -> int:
        return self._bus.read(self._base + COMMON + register, length)

    def _put(self, register: int, length: int, value: int) -> None:
        self._bus.write(self._base + COMMON + register, length, value)
