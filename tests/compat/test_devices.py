"""Goldens with devices: what is unfinished in them, and what their guest says once it is restored."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from snapkit.errors import ConfigError
from snapkit.restore.image import Image
from snapkit.state.gicv3_distributor import DistributorState
from snapkit.state.irqchip_x86 import IrqchipState
from snapkit.state.pci_function import PciFunctionState, bar_pointed, find_capability
from snapkit.state.pci_msix import PciMsixState
from snapkit.state.releases import release_named
from snapkit.state.schema import SectionId, State
from snapkit.state.virtio_block import VirtioBlockState
from snapkit.state.virtio_mmio import VirtioMmioState
from snapkit.state.virtio_net import VirtioNetState
from snapkit.state.virtio_vsock import VirtioVsockState
from tests.compat.conftest import PROGRAMS, TODAY, GoldenFile, Written, goldens_where
from tests.compat.tree import ROOT
from tests.guests.build import guest
from tests.guests.device_lines import device_sums
from tools import golden, golden_maker, stored

MEMORY_SPACE = 1 << 1  # PCI 3.0, 6.2.2: command register
MSIX_ON, FUNCTION_MASKED, ENTRY_MASKED = 1 << 15, 1 << 14, 1  # PCI 3.0, 6.8.2
BAR0 = slice(0x10, 0x18)
IOAPIC_MASKED = 1 << 16
ARM_ONLY = {"vcpu-aarch64", "gicv3-distributor", "gicv3-redistributor", "gicv3-cpu-interface", "gicv3-its"}
ARM_ONLY |= {"serial-pl011", "rtc-pl031"}
X86_ONLY = {"vcpu-x86-64", "irqchip-x86", "pit", "kvm-clock", "serial-16550", "i8042"}
ELSEWHERE = ARM_ONLY if golden.HERE == "x86-64" else X86_ONLY
"""Kinds that no golden has which is written on this machine."""
OFFERED = 2  # buffers of each queue that waits for something
LINES = 20

with_devices = goldens_where(lambda release, transport: release in PROGRAMS and transport != "none")


def states_of(path: Path) -> dict[SectionId, State]:
    with Image.open(path) as image:
        return dict(image.sections().states)


def check_unfinished(path: Path) -> None:
    """Assert that the machine was saved in the state that its guest wants to be saved in."""
    states = states_of(path)
    if SectionId("virtio-pci", "rng") in states:
        function, rng, vsock = (
            states[SectionId(*name)]
            for name in (("pci-function", "balloon"), ("pci-msix", "rng"), ("pci-function", "v0"))
        )
        assert isinstance(function, PciFunctionState)
        assert isinstance(rng, PciMsixState)
        assert isinstance(vsock, PciFunctionState)
        assert (rng.entries[1].control, rng.pending) == (ENTRY_MASKED, [1 << 1]), "a masked interrupt waits"
        assert not function.config[4] & MEMORY_SPACE
        assert int.from_bytes(function.config[BAR0], "little") & ~0xF != function.bars[0].address, "a move waits"
        control_at = (find_capability(vsock.config, 0x11) or 0) + 2
        control = int.from_bytes(vsock.config[control_at : control_at + 2], "little")
        assert control & (MSIX_ON | FUNCTION_MASKED) == MSIX_ON | FUNCTION_MASKED
    else:
        carrier = states[SectionId("virtio-mmio", "rng")]
        assert isinstance(carrier, VirtioMmioState)
        assert carrier.interrupt_status == 1
        check_held_line(states, carrier.gsi)
    net, vsock, block = (
        states[SectionId(kind, name)]
        for kind, name in (("virtio-net", "eth0"), ("virtio-vsock", "v0"), ("virtio-block", "root"))
    )
    assert isinstance(net, VirtioNetState)
    assert isinstance(vsock, VirtioVsockState)
    assert isinstance(block, VirtioBlockState)
    assert net.queues[0].next_avail == 0, "no packet came"
    assert net.queues[1].next_avail == net.queues[1].next_used > 0
    assert vsock.queues[2].next_used == 0, "no connection was lost before"
    assert block.queues[0].next_avail == block.queues[0].next_used > 0


def check_held_line(states: dict[SectionId, State], gsi: int) -> None:
    """Assert that the interrupt controller holds the line *gsi* back, high, and that no other is."""
    irqchip = states.get(SectionId("irqchip-x86", "0"))
    if isinstance(irqchip, IrqchipState):
        assert irqchip.ioapic.redirtbl[gsi] & IOAPIC_MASKED
        assert irqchip.ioapic.irr == 1 << gsi
        return
    distributor = states[SectionId("gicv3-distributor", "0")]
    assert isinstance(distributor, DistributorState)
    levels, enabled = (
        sum(word << 32 * number for number, word in enumerate(words))
        for words in (distributor.line_level, distributor.isenabler)
    )
    assert levels & ~1 == 1 << gsi, "but for the serial port's, which is empty and not enabled"
    assert not enabled >> gsi & 1


def check_lines(about: golden.Golden, lines: list[str]) -> None:
    """Assert that whole *lines*, what a restored guest went on with, say what they must."""
    sums = list(islice(device_sums(), about.count + len(lines)))[about.count :]
    assert [" ".join(line.split()[:4]) for line in lines] == sums
    assert lines[-1] == f"{sums[-1]} resets 1 generations 1", "it was told of the restore, once"


@with_devices
def test_is_saved_with_interrupts_and_a_move_that_wait(golden_file: GoldenFile) -> None:
    check_unfinished(golden_file.path)


@with_devices
def test_what_does_not_wait_in_a_machine_is_noticed_when_a_golden_is_made(golden_file: GoldenFile) -> None:
    def waits(section: SectionId, change: Callable[[Any], None]) -> bool:
        states = states_of(golden_file.path)
        change(states[section])
        return golden_maker.waits(states)

    assert golden_maker.waits(states_of(golden_file.path))
    if golden_file.about.transport == "pci":
        function = SectionId("pci-function", "balloon")
        assert not waits(SectionId("pci-msix", "rng"), lambda msix: msix.pending.__setitem__(0, 0))
        assert not waits(function, lambda it: setattr(it.bars[0], "address", bar_pointed(it.config, it.bars[0])))
    else:
        assert not waits(SectionId("virtio-mmio", "rng"), lambda carrier: setattr(carrier, "interrupt_status", 0))
        gsi = states_of(golden_file.path)[SectionId("virtio-mmio", "rng")].gsi  # type: ignore[attr-defined]
        if golden_file.about.architecture == "x86-64":
            chip = SectionId("irqchip-x86", "0")
            assert not waits(chip, lambda it: it.ioapic.redirtbl.__setitem__(gsi, 0))
        else:
            chip = SectionId("gicv3-distributor", "0")
            assert not waits(chip, lambda it: it.isenabler.__setitem__(gsi // 32, 1 << gsi % 32))


@pytest.mark.usefixtures("kvm")
def test_a_machine_in_which_nothing_waits_is_made_again_a_round_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([False, False, True, False, False])
    monkeypatch.setattr(golden_maker, "waits", lambda _states: next(looks))
    monkeypatch.setattr(golden_maker, "_ROUNDS", range(5, 8))
    recipe = golden_maker.Recipe(golden.HERE, "base", "counter", 1, "count", "count {}")
    binary = Path(guest("counter"))
    _, lines = golden_maker._save(TODAY, recipe, binary, tmp_path)
    assert int(lines[0].split()[1]) == 1, "what an earlier one printed is gone"
    assert int(lines[-2].split()[1]) >= 6
    monkeypatch.setattr(golden_maker, "_ROUNDS", range(5, 7))
    with pytest.raises(ConfigError, match=r"golden .*-none-base: of 2 guests none"):
        golden_maker._save(TODAY, recipe, binary, tmp_path)


@goldens_where(lambda release, transport: release in PROGRAMS and transport != "none", [golden.HERE])
@pytest.mark.usefixtures("kvm")
def test_its_guest_finds_its_disk_as_it_was_and_hears_of_the_restore(golden_file: GoldenFile) -> None:
    lines = golden.restore(TODAY, golden_file.path, golden_file.about, golden_file.folder)
    check_lines(golden_file.about, lines)


def test_recipes_give_goldens_that_restore(written: Written, tmp_path: Path) -> None:
    assert list(golden.problems(written.folder)) == []
    assert [about.name for about in written.manifest.goldens] == [
        recipe.name for recipe in golden_maker.recipes(golden.HERE)
    ]
    for about in written.manifest.goldens:
        path = golden.unpack(written.folder, about, tmp_path)
        lines = golden.restore(TODAY, path, about, written.folder)
        assert len(lines) >= 2
        if about.disks:
            check_unfinished(path)
            check_lines(about, lines)


def test_goldens_of_each_release_hold_every_kind_that_it_writes(written: Written, tmp_path: Path) -> None:
    folders = [(release, ROOT / golden.FOLDER / release) for release in {name for name, _ in stored.goldens(ROOT)}]
    newest = stored.releases(ROOT)[-1].release
    for release, folder in [*folders, (newest, written.folder)]:
        paths = [golden.unpack(folder, about, tmp_path) for about in golden.read_manifest(folder).goldens]
        kinds = {section.kind for path in paths for section in states_of(path)}
        lacking = ELSEWHERE if folder == written.folder else set()
        assert kinds == set(release_named(release).kinds) - lacking, release
