"""Write goldens of the line virtio-pci-preview-1 to -5, each from a live machine at work, as its programs are imagined to.

What a machine is comes from its own States; what a release of the line would have written of it is said here once more, by
functions that construct the line's structs. No converter is called: converters are what these files try.

    python -m tests.compat.preview_writer FOLDER DATE

writes ``FOLDER/<release>``, one golden with its manifest for each release. What the repository has was written so, once; a
test writes them anew beside it.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from msgspec.structs import replace

from snapkit import host
from snapkit.restore.capture import Capture
from snapkit.restore.writer import write_image
from snapkit.state.pci_function import PciFunctionState, bar_pointed
from snapkit.state.pci_msix import PciMsixState
from snapkit.state.preview_block import PreviewBlockState
from snapkit.state.preview_device_manager import ManagedPoolState, PreviewDeviceManagerState, TakenState
from snapkit.state.preview_function import PreviewFunctionState
from snapkit.state.preview_msi import MsiVectorState, PreviewMsiState
from snapkit.state.preview_net import ParsedChainState, PreviewNetState, PreviewNetState1
from snapkit.state.preview_rng import PreviewRngState
from snapkit.state.resource_allocator import ClaimState, ResourceAllocatorState
from snapkit.state.schema import SectionId, State
from snapkit.state.virtio_block import VirtioBlockState
from snapkit.state.virtio_net import VirtioNetState
from snapkit.state.virtio_rng import VirtioRngState
from snapkit.units import MIB
from snapkit.vmm.parts.fresh import Asked
from snapkit.vmm.parts.net import NetPart
from tests.guests.build import guest
from tests.kvm.harness import Rig, booted
from tests.kvm.taps import own_taps
from tools import golden, golden_maker
from tools.golden import Golden, Manifest

RELEASES = tuple(f"virtio-pci-preview-{number}" for number in range(1, 6))
MEMORY = 2 * MIB
DISK_LEN = 64 << 10
TAP = "tap0"
FIRST_ROUND, ROUNDS_MAX = 4, 60
BARS = slice(0x10, 0x28)  # PCI 3.0, figure 6-1
OLD_KINDS = {"pci-function": "preview-function", "pci-msix": "preview-msi"}


@dataclass(frozen=True)
class Live:
    """What a paused machine was: its States, and what its network card had taken from its receive ring."""

    states: Mapping[SectionId, Any]
    parsed: list[ParsedChainState]
    next_avail: int
    """Of the receive queue, beyond what was parsed."""
    active: Mapping[str, bool]
    """By the instance, whether its transport had activated the device."""


@contextmanager
def at_work(folder: Path, *, balloon: bool) -> Iterator[Rig]:
    """A machine with a disk, a network card and a source of random bytes on PCI, paused amid their work.

    The rng's interrupt is held back by its mask, and with a *balloon* the guest has written that one's BAR with decoding
    off, so that its move waits; all rings are in use.
    """
    image = folder / "root.img"
    image.write_bytes(bytes(DISK_LEN))
    asked = (
        Asked("virtio-block", "root", {"path": str(image)}),
        Asked("virtio-net", "eth0", {"tap": TAP}),
        Asked("virtio-rng", "rng"),
        *([Asked("virtio-balloon", "balloon")] if balloon else []),
    )
    with booted(guest("devices"), memory=MEMORY, cpu="baseline", devices=asked, transport="pci") as rig:
        for number in range(FIRST_ROUND, ROUNDS_MAX):
            rig.run().serve_until(f"io {number} sum")
            rig.machine.pause()
            if golden_maker.waits({section: part.save() for section, part in rig.machine.board.parts.items()}):
                yield rig
                return
        raise AssertionError(f"in {ROUNDS_MAX} rounds the guest was never paused with an interrupt that waits")


def save_live(rig: Rig) -> Live:
    """Read the machine; its card's look at the ring comes before it is flushed."""
    part = rig.machine.board.parts[SectionId("virtio-net", "eth0")]
    assert isinstance(part, NetPart)
    card = part._net
    parsed = [ParsedChainState(head=head, length=length) for head, length, _pieces in card._ahead._chains]
    next_avail = card.save().queues[0].next_avail
    active = {
        section.instance: part.device.active
        for section, part in rig.machine.board.parts.items()
        if section.kind in {"virtio-block", "virtio-net", "virtio-rng"} and hasattr(part, "device")
    }
    rig.machine.prepare_save()
    return Live(rig.machine.save(), parsed, next_avail, active)


# What each release would have written


def sections_of(live: Live, number: int) -> dict[SectionId, State]:
    """Return the sections that release *number* of the line writes of a machine."""
    sections: dict[SectionId, State] = {}
    for section, state in live.states.items():
        kind, written = _written(live, section, state, number)
        if written is not None:
            sections[SectionId(kind, section.instance)] = written
    return sections


def _written(live: Live, section: SectionId, state: Any, number: int) -> tuple[str, State | None]:
    kind = section.kind
    if kind == "interrupt-table":
        return kind, None
    if number < 5 and isinstance(state, PciFunctionState):
        return "preview-function", _function(state)
    if number < 5 and isinstance(state, PciMsixState):
        return "preview-msi", _map_of(state, Random(number))
    if number == 4 and isinstance(state, ResourceAllocatorState):
        return kind, replace(state, claims=[_owned_before(claim) for claim in state.claims])
    if number < 4 and isinstance(state, ResourceAllocatorState):
        return "preview-device-manager", _pools(state)
    if number < 3 and isinstance(state, VirtioBlockState):
        return "preview-block", PreviewBlockState(activated=live.active[section.instance], device=state)
    if number < 3 and isinstance(state, VirtioRngState):
        return "preview-rng", PreviewRngState(activated=live.active[section.instance], device=state)
    if number < 3 and isinstance(state, VirtioNetState):
        active = live.active[section.instance]
        if number == 2:
            return "preview-net", PreviewNetState(activated=active, device=state)
        rx, tx = state.queues
        ahead = replace(state, queues=[replace(rx, next_avail=live.next_avail), tx])
        return "preview-net", PreviewNetState1(activated=active, device=ahead, parsed=live.parsed)
    return kind, state


def _function(state: PciFunctionState) -> PreviewFunctionState:
    config = bytearray(state.config)
    for bar in state.bars:
        assert bar_pointed(state.config, bar) == bar.address, "no move waits"
    config[BARS] = bytes(BARS.stop - BARS.start)
    return PreviewFunctionState(slot=state.slot, config=bytes(config), bars=state.bars)


def _map_of(state: PciMsixState, rng: Random) -> PreviewMsiState:
    vectors = [
        MsiVectorState(
            vector=number,
            gsi=gsi,
            address=entry.address,
            data=entry.data,
            masked=entry.control == 1,
            pending=bool(state.pending[0] & 1 << number),
        )
        for number, (entry, gsi) in enumerate(zip(state.entries, state.gsis, strict=True))
    ]
    rng.shuffle(vectors)
    return PreviewMsiState(vectors=vectors)


def _owned_before(claim: ClaimState) -> ClaimState:
    kind, instance = claim.owner.split("/")
    return replace(claim, owner=f"{OLD_KINDS.get(kind, kind)}/{instance}")


def _pools(state: ResourceAllocatorState) -> PreviewDeviceManagerState:
    return PreviewDeviceManagerState(
        pools=[
            ManagedPoolState(
                pool=pool.pool,
                start=pool.start,
                length=pool.length,
                taken=[
                    TakenState(start=claim.start, length=claim.length)
                    for claim in state.claims
                    if claim.pool == pool.pool
                ],
            )
            for pool in state.pools
        ]
    )


# Files


def write(into: Path, date: str) -> None:
    """Write the goldens of every release of the line below *into*, each into its own new folder, and their manifests."""
    for number, release in enumerate(RELEASES, 1):
        folder = into / release
        folder.mkdir(parents=True)
        with TemporaryDirectory() as scratch, at_work(Path(scratch), balloon=number == 5) as rig:
            about = _write(rig, number, folder, Path(scratch))
        manifest = Manifest(
            format=1,
            release=release,
            written=date,
            producer=_producer(release),
            host_kernel=host.kernel_release(),
            goldens=[about],
        )
        (folder / golden.MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")


def _producer(release: str) -> str:
    return f"{release}, a model"


def _write(rig: Rig, number: int, folder: Path, scratch: Path) -> Golden:
    live = save_live(rig)
    devices = "disk-net-rng-balloon" if number == 5 else "disk-net-rng"
    name, path = f"x86-64-pci-{devices}", scratch / "golden.snap"
    write_image(
        path,
        sections=sections_of(live, number),
        memory=Capture(rig.machine.memory_spans()),
        architecture=rig.machine.state.architecture,
        release=f"vpci-preview-{number}",
        machine_id=rig.machine.state.machine_id,
        facts={"vcpus": 1, "memory": MEMORY, "cpu": "baseline"},
        producer=_producer(RELEASES[number - 1]),
    )
    *lines, partial_line = rig.tape.text.split("\n")
    content, disk = path.read_bytes(), (scratch / "root.img").read_bytes()
    disk_file = f"{name}.root.img.zst"
    return Golden(
        file=f"{name}{golden.SUFFIX}",
        architecture="x86-64",
        transport="pci",
        devices=devices,
        vcpus=1,
        memory=MEMORY,
        cpu="baseline",
        guest="devices",
        guest_sha256=golden.digest(Path(guest("devices")).read_bytes()),
        word="io",
        count=int(lines[-1].split()[1]),
        partial_line=partial_line,
        length=len(content),
        sha256=golden.digest(content),
        packed_sha256=golden_maker.store(folder / f"{name}{golden.SUFFIX}", content),
        disks=[
            golden.Disk(
                id="root",
                file=disk_file,
                length=len(disk),
                sha256=golden.digest(disk),
                packed_sha256=golden_maker.store(folder / disk_file, disk),
            )
        ],
        nets=["eth0"],
    )


if __name__ == "__main__":
    sys.setswitchinterval(1e-4)
    with own_taps(TAP):
        write(Path(sys.argv[1]), sys.argv[2])
