"""The goldens of the line virtio-pci-preview-1 to -5: what each step makes of them, in literals; and that they run on.

The files were written by `tests.compat.preview_writer`, which calls no converter. That each restores and its guest goes on
to the byte is tested with all goldens.
"""

from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from snapkit.restore.image import Image
from snapkit.state.codec import encode
from snapkit.state.converters import Refusal, Sections, convert_sections, upgrade_sections
from snapkit.state.interrupt_table import LineState, RouteState
from snapkit.state.pci_function import BarState
from snapkit.state.pci_msix import MsixEntryState, PciMsixState
from snapkit.state.preview_net import ParsedChainState
from snapkit.state.resource_allocator import ClaimState
from snapkit.state.schema import SectionId
from tests.compat import preview_writer
from tests.compat.conftest import TODAY, GoldenFile, goldens_where, need_tap
from tests.compat.tree import CACHE, ROOT
from tests.guests.device_lines import device_sums
from tests.kvm.taps import own_taps
from tools import golden

LINE = [f"virtio-pci-preview-{number}" for number in range(1, 6)]
JOINED = "0.2.0"
DEVICES = (("block", "root"), ("net", "eth0"), ("rng", "rng"))
MESSAGES = 0xFEE0_0000
KIB_512 = 0x8_0000


@pytest.fixture
def stored(request: pytest.FixtureRequest) -> Sections:
    """The sections of the golden of a release of the line."""
    folder = ROOT / golden.FOLDER / LINE[request.param - 1]
    (about,) = golden.read_manifest(folder).goldens
    with Image.open(golden.unpack(folder, about, CACHE / "golden")) as image:
        return dict(image.sections().states)


def of(number: int) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("stored", [number], indirect=True)


def up(sections: Sections, number: int) -> dict[SectionId, Any]:
    """One step from release *number* of the line."""
    return convert_sections(sections, LINE[number - 1], [*LINE, JOINED][number])


def rest(sections: Sections, *kinds: str) -> dict[SectionId, bytes]:
    return {section: encode(state) for section, state in sections.items() if section.kind not in kinds}


@of(1)
def test_parsed_receive_chains_are_flushed_and_next_avail_is_rolled_back(stored: dict[SectionId, Any]) -> None:
    card, after = SectionId("preview-net", "eth0"), up(stored, 1)
    before = stored[card]
    assert before.parsed == [ParsedChainState(head=0, length=1528)]
    assert (before.device.queues[0].next_avail, before.device.queues[0].next_used) == (1, 0)
    assert (after[card].device.queues[0].next_avail, after[card].device.queues[0].next_used) == (0, 0)
    assert (after[card].device.queues[1].next_avail, after[card].device.queues[1].next_used) == (4, 4)
    assert after[card].activated
    assert after[card].device.mac == bytes.fromhex("c6cfd3c70b7e")
    assert rest(after, "preview-net") == rest(stored, "preview-net"), "nothing else changed"


@of(2)
def test_devices_that_were_active_are_left_to_their_transports(stored: dict[SectionId, Any]) -> None:
    after = up(stored, 2)
    for kind, instance in DEVICES:
        before = stored[SectionId(f"preview-{kind}", instance)]
        assert before.activated
        assert after[SectionId(f"virtio-{kind}", instance)] == before.device
        assert after[SectionId("virtio-pci", instance)].device_status == 0x0F, "with DRIVER_OK, VIRTIO 1.3, 2.1"
    block, net, rng = (after[SectionId(f"virtio-{kind}", instance)] for kind, instance in DEVICES)
    assert [(queue.next_avail, queue.next_used) for queue in block.queues] == [(15, 15)]
    assert [(queue.next_avail, queue.next_used) for queue in net.queues] == [(0, 0), (4, 4)]
    assert [(queue.next_avail, queue.next_used) for queue in rng.queues] == [(9, 9)]
    assert (block.capacity, net.mac.hex(), rng.acked) == (128, "ce2353973a8a", 0x1_2000_0000)
    devices = [f"{prefix}-{kind}" for prefix in ("preview", "virtio") for kind, _ in DEVICES]
    assert rest(after, *devices) == rest(stored, *devices)


@of(3)
def test_ranges_of_nobody_become_claims_of_their_devices(stored: dict[SectionId, Any]) -> None:
    after = up(stored, 3)
    allocator = after[SectionId("resource-allocator", "0")]
    assert [(pool.pool, pool.start, pool.length) for pool in allocator.pools] == [
        ("gsi-legacy", 5, 19),
        ("gsi-msi", 24, 4072),
        ("mmio32", 0xC000_0000, 0x2EC0_0000),
        ("mmio64", 0x40_0000_0000, 0x40_0000_0000),
        ("pci-slot", 1, 31),
    ]
    assert allocator.claims == [
        ClaimState(pool="gsi-legacy", start=5, length=1, owner="vmgenid/0"),
        ClaimState(pool="gsi-msi", start=24, length=1, owner="preview-msi/root"),
        ClaimState(pool="gsi-msi", start=25, length=1, owner="preview-msi/root"),
        ClaimState(pool="gsi-msi", start=26, length=1, owner="preview-msi/eth0"),
        ClaimState(pool="gsi-msi", start=27, length=1, owner="preview-msi/eth0"),
        ClaimState(pool="gsi-msi", start=28, length=1, owner="preview-msi/eth0"),
        ClaimState(pool="gsi-msi", start=29, length=1, owner="preview-msi/rng"),
        ClaimState(pool="gsi-msi", start=30, length=1, owner="preview-msi/rng"),
        ClaimState(pool="mmio32", start=0xC008_0000, length=KIB_512, owner="preview-function/root"),
        ClaimState(pool="mmio32", start=0xC010_0000, length=KIB_512, owner="preview-function/eth0"),
        ClaimState(pool="mmio32", start=0xC018_0000, length=KIB_512, owner="preview-function/rng"),
        ClaimState(pool="pci-slot", start=1, length=1, owner="preview-function/root"),
        ClaimState(pool="pci-slot", start=2, length=1, owner="preview-function/eth0"),
        ClaimState(pool="pci-slot", start=3, length=1, owner="preview-function/rng"),
    ]
    kinds = ("preview-device-manager", "resource-allocator")
    assert rest(after, *kinds) == rest(stored, *kinds)


@of(4)
def test_vectors_of_a_map_become_a_list_in_their_order(stored: dict[SectionId, Any]) -> None:
    after = up(stored, 4)
    assert [vector.vector for vector in stored[SectionId("preview-msi", "eth0")].vectors] == [2, 1, 0]
    assert after[SectionId("pci-msix", "eth0")] == PciMsixState(
        entries=[MsixEntryState(address=MESSAGES, data=data, control=0) for data in (72, 73, 74)],
        pending=[0],
        gsis=[26, 27, 28],
    )
    assert after[SectionId("pci-msix", "rng")] == PciMsixState(
        entries=[
            MsixEntryState(address=MESSAGES, data=80, control=0),
            MsixEntryState(address=MESSAGES, data=81, control=1),
        ],
        pending=[0b10],
        gsis=[29, 30],
    )


@of(4)
def test_bar_registers_are_state_and_claims_follow_their_sections(stored: dict[SectionId, Any]) -> None:
    after = up(stored, 4)
    registers = {
        "host-bridge": bytes(24),
        "root": bytes.fromhex("040008c0") + bytes(20),
        "eth0": bytes.fromhex("040010c0") + bytes(20),
        "rng": bytes.fromhex("040018c0") + bytes(20),
    }
    for instance, wanted in registers.items():
        before, function = stored[SectionId("preview-function", instance)], after[SectionId("pci-function", instance)]
        assert function.config[0x10:0x28] == wanted
        assert (function.config[:0x10], function.config[0x28:]) == (before.config[:0x10], before.config[0x28:])
        assert (function.slot, function.bars) == (before.slot, before.bars)
    owners = [claim.owner for claim in after[SectionId("resource-allocator", "0")].claims]
    assert owners == [
        "vmgenid/0",
        *["pci-msix/root"] * 2,
        *["pci-msix/eth0"] * 3,
        *["pci-msix/rng"] * 2,
        *["pci-function/root", "pci-function/eth0", "pci-function/rng"] * 2,
    ]


@of(5)
def test_interrupt_table_is_made_of_the_vectors_that_can_fire(stored: dict[SectionId, Any]) -> None:
    after = up(stored, 5)
    table = after.pop(SectionId("interrupt-table", "0"))
    assert table.lines == [
        LineState(gsi=4, edge=True, owner="serial-16550/0"),
        LineState(gsi=5, edge=True, owner="vmgenid/0"),
    ]
    expected = [
        (24, 64, "root"),
        (25, 65, "root"),
        (26, 72, "eth0"),
        (27, 73, "eth0"),
        (28, 74, "eth0"),
        (29, 80, "rng"),  # the other, 30, is masked
        *((31 + number, 88 + number, "balloon") for number in range(6)),
    ]
    assert table.routes == [
        RouteState(gsi=gsi, address=MESSAGES, data=data, owner=f"pci-msix/{instance}")
        for gsi, data, instance in expected
    ]
    assert after == stored


@of(5)
def test_a_move_that_waits_comes_with_its_golden_and_cannot_go_back(stored: dict[SectionId, Any]) -> None:
    function = stored[SectionId("pci-function", "balloon")]
    assert function.bars == [BarState(index=0, width=64, length=KIB_512, address=0xD020_0000)]
    assert function.config[0x10:0x18] == bytes.fromhex("040020c000000000")
    with pytest.raises(Refusal, match="release virtio-pci-preview-4 cannot hold this machine") as refused:
        convert_sections(stored, LINE[4], LINE[3])
    assert [(finding.component, finding.path) for finding in refused.value.findings] == [
        ("pci-function/balloon", "config[16]"),
        ("virtio-balloon/balloon", ""),
    ]


@pytest.mark.parametrize("stored", range(1, 6), indirect=True, ids=LINE)
def test_all_the_way_up_is_one_step_after_the_other(
    stored: dict[SectionId, Any], request: pytest.FixtureRequest
) -> None:
    number = request.node.callspec.params["stored"]
    step = stored
    for start, end in pairwise([*LINE[number - 1 :], JOINED]):
        step = convert_sections(step, start, end)
    assert convert_sections(stored, LINE[number - 1], JOINED) == step
    assert upgrade_sections(stored, f"vpci-preview-{number}") == upgrade_sections(step, JOINED)


@pytest.mark.parametrize("stored", range(1, 5), indirect=True, ids=LINE[:4])
def test_what_came_up_goes_down_to_every_release_before_the_move_and_comes_up_again(
    stored: dict[SectionId, Any], request: pytest.FixtureRequest
) -> None:
    number = request.node.callspec.params["stored"]
    joined = convert_sections(stored, LINE[number - 1], JOINED)
    for release in LINE:
        down = convert_sections(joined, JOINED, release)
        assert convert_sections(down, release, JOINED) == joined, release


@goldens_where(lambda release, _transport: release in LINE)
@pytest.mark.usefixtures("kvm")
def test_its_guest_finds_its_disk_as_it_was(golden_file: GoldenFile) -> None:
    about = golden_file.about
    lines = golden.restore(TODAY, golden_file.path, about, golden_file.folder)
    sums = list(islice(device_sums(), about.count + len(lines)))[about.count :]
    assert lines == [f"{line} resets 0 generations 1" for line in sums]


@pytest.mark.usefixtures("kvm", "_exits_beside_busy_threads")
def test_writers_of_the_line_still_give_goldens_that_restore(tmp_path: Path) -> None:
    need_tap()
    with own_taps(preview_writer.TAP):
        preview_writer.write(tmp_path, "today")
    for release in LINE:
        folder = tmp_path / release
        assert list(golden.problems(folder)) == []
        (about,) = golden.read_manifest(folder).goldens
        path = golden.unpack(folder, about, tmp_path / "unpacked")
        assert len(golden.restore(TODAY, path, about, folder)) >= 2
