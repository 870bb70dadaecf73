"""The device tree of an aarch64 machine. Pure: a description of the machine in, bytes out.

Devicetree Specification 0.4, and the bindings of Linux (Documentation/devicetree/bindings) named at each node. The tree
lies in guest RAM, so it is part of every snapshot. What the choices do to Linux (6.1):

- ``linux,pci-probe-only`` says that what is written into the BARs stays. Linux would otherwise place all of them anew,
  which works and costs a move of each.
- Both windows of the PCI host are not prefetchable: Linux places no ordinary BAR into a prefetchable window. There is
  no I/O window and no interrupt-map: functions interrupt by MSI-X only and have no I/O BARs.
- The 64-bit window is told whole. Linux says at its start that it "exceeds max for 32 bits", and uses it all the same.
- A device id at the ITS is the requester id, bus << 8 | device << 3 | function: the msi-map is the identity.
- Timers are ``always-on``: they go on counting in a CPU that sleeps, so that no broadcast timer is needed.
- The generation id lies in reserved memory with ``no-map``: Linux (drivers/virt/vmgenid.c, from 6.10 on) maps it as a
  device and refuses to do so with what it takes for RAM.
- ``rng-seed`` and ``kaslr-seed`` are random bytes of the host: Linux erases both after it took them.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from snapkit.errors import InternalError
from snapkit.state.spec.address_map import (
    AARCH64,
    GICD_GPA,
    GICD_LEN,
    ITS_LEN,
    PL011_GPA,
    PL031_GPA,
    PRIMECELL_LEN,
    SLOT_LEN,
    its_gpa,
)
from snapkit.units import PAGE_LEN, Gsi
from snapkit.vmm.arch.aarch64 import layout

if TYPE_CHECKING:
    from fdt import Node

SEED_LEN = 40
_KASLR_SEED_LEN = 8

_VERSION, _LAST_COMPATIBLE_VERSION = 17, 16

# Phandles.
_GIC, _ITS, _CLOCK = 1, 2, 3

# Interrupt specifiers of arm,gic-v3.yaml: type, number, trigger.
_SPI, _PPI = 0, 1
_EDGE_RISING, _LEVEL_HIGH = 1, 4
_TIMER_PPIS = (13, 14, 11, 10)  # arch_timer.yaml: secure physical, physical, virtual, hypervisor

# Address types of PCI ranges: IEEE 1275 PCI bus binding, phys.hi.
_PCI_MEMORY32, _PCI_MEMORY64 = 0x0200_0000, 0x0300_0000

_Properties = dict[str, str | list[str] | list[int] | bytes | None]

_CLOCK_HZ = 24_000_000
_REQUESTER_IDS = 0x100  # of one bus


class MmioSlot(Protocol):
    """A virtio device on the memory-mapped transport."""

    @property
    def gpa(self) -> int: ...
    @property
    def gsi(self) -> int: ...


class Board(NamedTuple):
    """What differs between machines. *mpidrs* are the affinities of the vCPUs, *seed* is SEED_LEN random bytes.

    With *mmio64*, the 64-bit window, there is PCI, and an ITS for it; with *generation_gsi* a generation id.
    """

    mpidrs: Sequence[int]
    seed: bytes
    mmio64: layout.Window | None = None
    mmio_slots: Sequence[MmioSlot] = ()
    generation_gsi: Gsi | None = None


def build(board: Board, *, ram: tuple[int, int], cmdline: bytes, initrd: tuple[int, int] | None = None) -> bytes:
    """Describe *board* with its *ram* (gpa, length), for a boot with *cmdline* (NUL-terminated) and *initrd* (gpa, length).

    Raises InternalError when the tree outgrows its place.
    """
    from fdt import FDT, Header

    tree = FDT(Header(), [])
    _fill(
        tree.root,
        {
            "compatible": "linux,dummy-virt",
            "model": "snapkit",
            "#address-cells": [2],
            "#size-cells": [2],
            "interrupt-parent": [_GIC],
        },
    )
    for node in _nodes(board, ram, cmdline, initrd):
        tree.root.append(node)
    blob: bytes = tree.to_dtb(version=_VERSION, last_comp_version=_LAST_COMPATIBLE_VERSION, boot_cpuid_phys=0)
    if len(blob) > layout.FDT_LEN_MAX:
        raise InternalError(f"device tree of {len(blob)} bytes, must be at most {layout.FDT_LEN_MAX}")
    return blob


def _nodes(board: Board, ram: tuple[int, int], cmdline: bytes, initrd: tuple[int, int] | None) -> Iterator["Node"]:
    yield _chosen(board, cmdline, initrd)
    yield _node("aliases", {"serial0": f"/serial@{PL011_GPA:x}"})
    yield _node(f"memory@{ram[0]:x}", {"device_type": "memory", "reg": _cells64(*ram)})
    if board.generation_gsi is not None:
        yield _reserved_memory(ram[1])
    yield _cpus(board.mpidrs)
    yield _node("psci", {"compatible": ["arm,psci-1.0", "arm,psci-0.2"], "method": "hvc"})
    yield _timer()
    yield _interrupt_controller(len(board.mpidrs), its=board.mmio64 is not None)
    yield _clock()
    yield _serial()
    yield _rtc()
    if board.mmio64 is not None:
        yield _pci(board.mmio64)
    for slot in board.mmio_slots:
        yield _virtio_mmio(slot)
    if board.generation_gsi is not None:
        yield _generation(layout.vmgenid_gpa(ram[1]), board.generation_gsi)


def _chosen(board: Board, cmdline: bytes, initrd: tuple[int, int] | None) -> "Node":
    """Devicetree Specification section 3.6; Documentation/arch/arm64/booting.rst and chosen.yaml of dt-schema."""
    properties: _Properties = {
        "bootargs": cmdline,
        "stdout-path": "serial0",
        "kaslr-seed": board.seed[:_KASLR_SEED_LEN],
        "rng-seed": board.seed[_KASLR_SEED_LEN:],
    }
    if initrd is not None:
        gpa, length = initrd
        properties |= {"linux,initrd-start": _cells64(gpa), "linux,initrd-end": _cells64(gpa + length)}
    if board.mmio64 is not None:
        properties["linux,pci-probe-only"] = [1]
    return _node("chosen", properties)


def _reserved_memory(ram_len: int) -> "Node":
    """reserved-memory.yaml of dt-schema."""
    gpa = layout.vmgenid_gpa(ram_len)
    page = _node(f"vmgenid@{gpa:x}", {"reg": _cells64(gpa, PAGE_LEN), "no-map": None})
    return _node("reserved-memory", {"#address-cells": [2], "#size-cells": [2], "ranges": None}, page)


def _cpus(mpidrs: Sequence[int]) -> "Node":
    """arm/cpus.yaml: a CPU's unit address is its affinity, in two cells."""
    cpus = (
        _node(
            f"cpu@{mpidr:x}",
            {"device_type": "cpu", "compatible": "arm,armv8", "reg": _cells64(mpidr), "enable-method": "psci"},
        )
        for mpidr in mpidrs
    )
    return _node("cpus", {"#address-cells": [2], "#size-cells": [0]}, *cpus)


def _timer() -> "Node":
    """timer/arm,arch_timer.yaml."""
    interrupts = [cell for ppi in _TIMER_PPIS for cell in (_PPI, ppi, _LEVEL_HIGH)]
    return _node("timer", {"compatible": "arm,armv8-timer", "interrupts": interrupts, "always-on": None})


def _interrupt_controller(vcpus: int, *, its: bool) -> "Node":
    """interrupt-controller/arm,gic-v3.yaml."""
    frames = layout.redistributors(vcpus)
    gpa = its_gpa(vcpus)
    msi_controller = _node(
        f"msi-controller@{gpa:x}",
        {
            "compatible": "arm,gic-v3-its",
            "msi-controller": None,
            "#msi-cells": [1],
            "reg": _cells64(gpa, ITS_LEN),
            "phandle": [_ITS],
        },
    )
    return _node(
        f"interrupt-controller@{GICD_GPA:x}",
        {
            "compatible": "arm,gic-v3",
            "interrupt-controller": None,
            "#interrupt-cells": [3],
            "#address-cells": [2],
            "#size-cells": [2],
            "ranges": None,
            "reg": _cells64(GICD_GPA, GICD_LEN, *frames),
            "phandle": [_GIC],
        },
        *([msi_controller] if its else []),
    )


def _clock() -> "Node":
    """clock/fixed-clock.yaml: what the PL011 and the PL031 claim to run on."""
    properties: _Properties = {
        "compatible": "fixed-clock",
        "#clock-cells": [0],
        "clock-frequency": [_CLOCK_HZ],
        "clock-output-names": "clk24mhz",
        "phandle": [_CLOCK],
    }
    return _node("apb-pclk", properties)


def _serial() -> "Node":
    """serial/pl011.yaml."""
    return _node(
        f"serial@{PL011_GPA:x}",
        {
            "compatible": ["arm,pl011", "arm,primecell"],
            "reg": _cells64(PL011_GPA, PRIMECELL_LEN),
            "interrupts": _line("serial-pl011"),
            "clocks": [_CLOCK, _CLOCK],
            "clock-names": ["uartclk", "apb_pclk"],
        },
    )


def _rtc() -> "Node":
    """rtc/arm,pl031.yaml."""
    return _node(
        f"rtc@{PL031_GPA:x}",
        {
            "compatible": ["arm,pl031", "arm,primecell"],
            "reg": _cells64(PL031_GPA, PRIMECELL_LEN),
            "interrupts": _line("rtc-pl031"),
            "clocks": [_CLOCK],
            "clock-names": "apb_pclk",
        },
    )


def _pci(mmio64: layout.Window) -> "Node":
    """pci/host-generic-pci.yaml and pci/pci-msi.txt: one bus, identical addresses on both sides."""
    windows = ((_PCI_MEMORY32, layout.PCI_WINDOW32), (_PCI_MEMORY64, mmio64))
    return _node(
        f"pcie@{AARCH64.ecam:x}",
        {
            "compatible": "pci-host-ecam-generic",
            "device_type": "pci",
            "#address-cells": [3],
            "#size-cells": [2],
            "reg": _cells64(AARCH64.ecam, layout.ECAM_LEN),
            "bus-range": [layout.PCI_BUS, layout.PCI_BUS],
            "linux,pci-domain": [layout.PCI_SEGMENT],
            "ranges": [
                cell for kind, window in windows for cell in (kind, *_cells64(window.gpa, window.gpa, window.length))
            ],
            "msi-map": [0, _ITS, 0, _REQUESTER_IDS],
            "dma-coherent": None,
        },
    )


def _virtio_mmio(slot: MmioSlot) -> "Node":
    """virtio/mmio.yaml."""
    return _node(
        f"virtio@{slot.gpa:x}",
        {
            "compatible": "virtio,mmio",
            "reg": _cells64(slot.gpa, SLOT_LEN),
            "interrupts": _interrupt(slot.gsi, edge=False),
            "dma-coherent": None,
        },
    )


def _generation(gpa: int, gsi: Gsi) -> "Node":
    """rng/microsoft,vmgenid.yaml."""
    properties: _Properties = {
        "compatible": "microsoft,vmgenid",
        "reg": _cells64(gpa, PAGE_LEN),
        "interrupts": _interrupt(gsi, edge=True),
    }
    return _node(f"rng@{gpa:x}", properties)


def _line(kind: str) -> list[int]:
    """Specify the interrupt of a device that every machine has."""
    return _interrupt(*AARCH64.pins[kind])


def _interrupt(gsi: int, edge: bool) -> list[int]:
    return [_SPI, gsi, _EDGE_RISING if edge else _LEVEL_HIGH]


def _cells64(*values: int) -> list[int]:
    """Split 64-bit values into cells, the upper half first."""
    return [cell for value in values for cell in struct.unpack(">II", struct.pack(">Q", value))]


def _node(name: str, properties: _Properties, *nodes: "Node") -> "Node":
    """Make a node; a property is one string or several, cells, bytes, or None for one that is only there."""
    from fdt import Node

    node = Node(name)
    _fill(node, properties)
    for inner in nodes:
        node.append(inner)
    return node


def _fill(node: "Node", properties: _Properties) -> None:
    for name, value in properties.items():
        node.set_property(name, value)
