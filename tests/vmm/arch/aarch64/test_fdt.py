"""The device tree: what the machine is, read back by dtc and by the library that wrote it, numbers declared anew."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any, NamedTuple

import fdt as reader
import pytest

from snapkit.errors import InternalError
from snapkit.units import GIB, MIB, Gsi
from snapkit.vmm.arch.aarch64 import fdt, layout
from snapkit.vmm.arch.aarch64.fdt import Board

SEED = bytes(range(fdt.SEED_LEN))
RAM = (0x8000_0000, 512 * MIB)
SPI, PPI, EDGE, LEVEL = 0, 1, 1, 4


class Slot(NamedTuple):
    gpa: int
    gsi: int


PCI = Board(mpidrs=[0, 1], seed=SEED, mmio64=layout.mmio64_window(40), generation_gsi=Gsi(2))
MMIO = Board(mpidrs=[0], seed=SEED, mmio_slots=[Slot(0x6FFF_F000, 3), Slot(0x6FFF_E000, 4)], generation_gsi=Gsi(2))
BARE = Board(mpidrs=[0], seed=SEED)
BOARDS = {"pci": PCI, "mmio": MMIO, "bare": BARE}
every_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


def build(board: Board, ram: tuple[int, int] = RAM, **more: Any) -> bytes:
    return fdt.build(board, ram=ram, **{"cmdline": b"console=ttyAMA0\0", **more})


def nodes(tree: Any) -> Iterator[Any]:
    waiting = [tree.root]
    while waiting:
        node = waiting.pop()
        waiting += node.nodes
        yield node


def value(blob: bytes, path: str, name: str) -> Any:
    """Return the cells, bytes or strings of a property, True for one that is only there."""
    found = reader.parse_dtb(blob).get_node(path).get_property(name)
    assert found is not None, f"{path} has no {name}"
    return getattr(found, "data", True)


def has(blob: bytes, path: str) -> bool:
    return bool(reader.parse_dtb(blob).exist_node(path))


def dtc(blob: bytes, form: str) -> bytes:
    """Have dtc write the tree in *form*; it must have nothing to complain of."""
    if shutil.which("dtc") is None:
        reason = "dtc (package device-tree-compiler) is missing"
        if "lab" in os.environ.get("SNAPKIT_REQUIRE", "").split(","):
            pytest.fail(reason)
        pytest.skip(reason)
    done = subprocess.run(["dtc", "-I", "dtb", "-O", form], input=blob, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@every_board
@pytest.mark.parametrize("vcpus", [1, 2, 8])
@pytest.mark.parametrize("ram_len", [2 * MIB, 512 * MIB, 64 * GIB])
def test_dtc_reads_the_tree_without_a_warning(board, vcpus, ram_len):
    board = board._replace(mpidrs=[layout.mpidr(vcpu) for vcpu in range(vcpus)])
    text = dtc(build(board, (0x8000_0000, ram_len), initrd=(0x8010_0000, 4097)), "dts").decode()
    assert text.count("enable-method") == vcpus


@every_board
def test_tree_is_the_same_after_dtc_wrote_it(board):
    blob = build(board)
    assert reader.parse_dtb(dtc(blob, "dtb")).root == reader.parse_dtb(blob).root


@every_board
def test_every_device_has_its_address_in_its_name(board):
    for node in nodes(reader.parse_dtb(build(board))):
        reg = node.get_property("reg")
        name, at, address = node.name.partition("@")
        assert bool(at) == (reg is not None), name
        if reg is not None:
            assert int(address, 16) == reg.data[0] << 32 | reg.data[1]


@every_board
def test_machine_has_its_cpus_its_timer_and_psci(board):
    blob = build(board)
    assert value(blob, "/psci", "compatible") == ["arm,psci-1.0", "arm,psci-0.2"]
    assert value(blob, "/psci", "method") == ["hvc"]
    assert value(blob, "/timer", "compatible") == ["arm,armv8-timer"]
    assert value(blob, "/timer", "interrupts") == [PPI, 13, LEVEL, PPI, 14, LEVEL, PPI, 11, LEVEL, PPI, 10, LEVEL]
    assert value(blob, "/timer", "always-on") is True
    for mpidr in board.mpidrs:
        assert value(blob, f"/cpus/cpu@{mpidr:x}", "reg") == [0, mpidr]
        assert value(blob, f"/cpus/cpu@{mpidr:x}", "enable-method") == ["psci"]


def test_cpu_of_another_cluster_is_named_by_its_affinity():
    assert value(build(BARE._replace(mpidrs=[0, 0x1_0000_0203])), "/cpus/cpu@100000203", "reg") == [1, 0x203]


@pytest.mark.parametrize(("vcpus", "gicr", "its"), [(1, 0x3FFD_0000, 0x3FFB_0000), (8, 0x3FEF_0000, 0x3FED_0000)])
def test_interrupt_controller_has_a_redistributor_for_each_cpu_and_the_its_below(vcpus, gicr, its):
    blob = build(PCI._replace(mpidrs=list(range(vcpus))))
    gic = "/interrupt-controller@3fff0000"
    assert value(blob, gic, "compatible") == ["arm,gic-v3"]
    assert value(blob, gic, "reg") == [0, 0x3FFF_0000, 0, 0x1_0000, 0, gicr, 0, vcpus * 0x2_0000]
    assert value(blob, gic, "#interrupt-cells") == [3]
    assert value(blob, "/", "interrupt-parent") == value(blob, gic, "phandle")
    its_path = f"{gic}/msi-controller@{its:x}"
    assert value(blob, its_path, "compatible") == ["arm,gic-v3-its"]
    assert value(blob, its_path, "reg") == [0, its, 0, 0x2_0000]
    assert value(blob, its_path, "#msi-cells") == [1]


@pytest.mark.parametrize("board", [MMIO, BARE], ids=["mmio", "bare"])
def test_machine_without_pci_has_neither_host_bridge_nor_its(board):
    text = str([node.name for node in nodes(reader.parse_dtb(build(board)))])
    assert "pci" not in text
    assert "msi" not in text


@every_board
def test_serial_and_clock_have_the_lines_and_the_rate_of_their_chips(board):
    blob = build(board)
    for path, compatible, line in (("/serial@9000000", "arm,pl011", 0), ("/rtc@9010000", "arm,pl031", 1)):
        assert value(blob, path, "compatible") == [compatible, "arm,primecell"]
        assert value(blob, path, "interrupts") == [SPI, line, LEVEL]
        assert set(value(blob, path, "clocks")) == set(value(blob, "/apb-pclk", "phandle"))
    assert value(blob, "/serial@9000000", "clock-names") == ["uartclk", "apb_pclk"]
    assert value(blob, "/apb-pclk", "clock-frequency") == [24_000_000]
    assert value(blob, "/chosen", "stdout-path") == ["serial0"]
    assert value(blob, "/aliases", "serial0") == ["/serial@9000000"]


@pytest.mark.parametrize(("ipa_bits", "upper", "lower"), [(40, 0x40, 0), (48, 0x40, 0), (36, 8, 0), (33, 1, 0)])
def test_pci_host_has_its_windows_where_they_are(ipa_bits, upper, lower):
    blob = build(PCI._replace(mmio64=layout.mmio64_window(ipa_bits)))
    pci = "/pcie@70000000"
    assert value(blob, pci, "compatible") == ["pci-host-ecam-generic"]
    assert value(blob, pci, "reg") == [0, 0x7000_0000, 0, 0x10_0000]
    assert value(blob, pci, "bus-range") == [0, 0]
    above = [0x0300_0000, *(upper, lower) * 3]
    below_4_gib = [0x0200_0000, 0, 0x4000_0000, 0, 0x4000_0000, 0, 0x2FF0_0000]
    assert value(blob, pci, "ranges") == below_4_gib + above
    assert value(blob, pci, "dma-coherent") is True
    assert value(blob, "/chosen", "linux,pci-probe-only") == [1]


def test_device_id_at_the_its_is_the_requester_id():
    blob = build(PCI)
    its = "/interrupt-controller@3fff0000/msi-controller@3ff90000"
    assert value(blob, "/pcie@70000000", "msi-map") == [0, *value(blob, its, "phandle"), 0, 0x100]


def test_every_mmio_slot_has_its_range_and_its_level_triggered_line():
    blob = build(MMIO)
    for gpa, gsi in ((0x6FFF_F000, 3), (0x6FFF_E000, 4)):
        path = f"/virtio@{gpa:x}"
        assert value(blob, path, "compatible") == ["virtio,mmio"]
        assert value(blob, path, "reg") == [0, gpa, 0, 0x1000]
        assert value(blob, path, "interrupts") == [SPI, gsi, LEVEL]
        assert value(blob, path, "dma-coherent") is True


@pytest.mark.parametrize("board", [PCI, MMIO], ids=["pci", "mmio"])
def test_generation_id_lies_in_memory_that_is_kept_from_the_kernel_and_has_an_edge(board):
    blob = build(board)
    page = [0, 0x9FFE_F000, 0, 0x1000]
    assert value(blob, "/rng@9ffef000", "compatible") == ["microsoft,vmgenid"]
    assert value(blob, "/rng@9ffef000", "reg") == page
    assert value(blob, "/rng@9ffef000", "interrupts") == [SPI, 2, EDGE]
    assert value(blob, "/reserved-memory/vmgenid@9ffef000", "reg") == page
    assert value(blob, "/reserved-memory/vmgenid@9ffef000", "no-map") is True


def test_machine_without_a_generation_id_reserves_nothing():
    blob = build(BARE)
    assert not has(blob, "/reserved-memory")
    assert "rng" not in str([node.name for node in nodes(reader.parse_dtb(blob))])


def test_ram_above_4_gib_is_told_whole():
    assert value(build(BARE, (0x8000_0000, 6 * GIB)), "/memory@80000000", "reg") == [0, 0x8000_0000, 1, 0x8000_0000]


def test_kernel_is_told_its_command_line_its_ramdisk_and_its_seeds():
    blob = build(BARE, cmdline=b"a b=\xc3\xa4\0", initrd=(0x9_8000_0000, 4097))
    assert b"a b=\xc3\xa4\0" in blob
    assert value(blob, "/chosen", "linux,initrd-start") == [9, 0x8000_0000]
    assert value(blob, "/chosen", "linux,initrd-end") == [9, 0x8000_1001]
    seeds = [cell for name in ("kaslr-seed", "rng-seed") for cell in value(blob, "/chosen", name)]
    assert b"".join(cell.to_bytes(4, "big") for cell in seeds) == SEED


def test_kernel_without_a_ramdisk_is_told_of_none():
    chosen = reader.parse_dtb(build(BARE)).get_node("/chosen")
    assert not any(entry.name.startswith("linux,initrd") for entry in chosen.props)


def test_tree_with_every_slot_taken_still_fits():
    slots = [Slot(0x7000_0000 - 4096 * (number + 1), 2 + number) for number in range(94)]
    board = MMIO._replace(mmio_slots=slots, mpidrs=range(8))
    assert len(build(board, cmdline=b"x" * 2047 + b"\0")) < layout.FDT_LEN_MAX


def test_tree_that_outgrows_its_place_is_our_bug():
    with pytest.raises(InternalError, match="must be at most 65536"):
        build(BARE, cmdline=bytes(70_000))
