"""What each edge of a restore's orders is for: swapped on real KVM, something is refused or lost; or nothing is.

Every edge that is not marked has a case with what comes of the swap; every marked one is shown to give an equal machine
either way. So who takes an edge away, adds one or marks one fails a test here until that is shown, too.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from snapkit import host
from snapkit.errors import SnapkitError
from snapkit.order import Edge
from snapkit.restore import orders
from snapkit.restore.equality import differences, elapsed
from snapkit.restore.pipeline import Timeline, run_steps
from snapkit.restore.plan import plan
from snapkit.restore.restore import prepare
from snapkit.restore.target import Target
from snapkit.state.schema import SectionId, State
from snapkit.state.spec.address_map import AARCH64
from snapkit.units import MIB
from snapkit.vmm import save_order
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import Machine
from snapkit.vmm.parts.fresh import Asked, Transport
from snapkit.vmm.run_state import RunState
from tests.guests.build import guest
from tests.kvm.harness import Rig, Tape, booted
from tests.kvm.one_vcpu import ENABLED, LAPIC_SVR, patched, pending
from tests.kvm.taps import own_taps
from tests.kvm.test_equal import tsc_khz
from tests.kvm.test_vcpu_order import VCPU
from tests.order_tables import EDGES, TABLES, Pair, edge_of, is_aarch64, name_of, swapped

VECTOR, PIN = 0x51, 5
IRQCHIP, VCPU_0, VMGENID = SectionId("irqchip-x86", "0"), SectionId("vcpu-x86-64", "0"), SectionId("vmgenid", "0")
TRANSPORTS: list[Transport] = ["pci", "mmio"]
DEVICES = ("virtio-block", "virtio-net", "virtio-vsock", "virtio-rng", "virtio-balloon")

REFUSED: dict[str, dict[Pair, str]] = {
    "stages": {
        ("claim", "rebuild"): "open_hypervisor first",
        ("rebuild", "wire"): "use the VM while not created",
        ("activate", "run"): "resume while being built, must be paused",
    },
    "rebuild": {
        ("machine", "memory-layout"): "use the VM while not created",
        ("machine", "kvm-clock"): "use the VM while not created",
        ("irqchip-x86", "pit"): r"KVM_CREATE_PIT2\(.*\) failed: ENOENT",
        ("irqchip-x86", "vcpu-x86-64"): r"KVM_CREATE_IRQCHIP\(.*\) failed: EINVAL",
        **{
            ("memory-layout", kind): "is built before memory is there"
            for kind in orders.ON_MEMORY
            if kind not in AARCH64.pins
        },
        ("resource-allocator", "vmgenid"): "a claim is made before there is an allocator",
        ("resource-allocator", "pci-function"): "a claim is made before there is an allocator",
        ("resource-allocator", "virtio-mmio"): "a claim is made before there is an allocator",
        ("pci-segment", "pci-function"): "pci-segment/0 is not there yet",
        ("pci-function", "pci-msix"): "pci-function/.* is not there yet",
        ("pci-msix", "virtio-pci"): "pci-msix/.* is not there yet",
        **{(kind, "virtio-pci"): "the device of the transport .* is not there yet" for kind in DEVICES},
        **{(kind, "virtio-mmio"): "the device of the transport .* is not there yet" for kind in DEVICES},
    },
}
"""By table, edges whose swap is refused, and with which words."""

LOST: dict[str, set[Pair]] = {
    "stages": {("load", "activate")},
    "load": {("vcpu-x86-64", "irqchip-x86")},
    "vcpu": set(VCPU),
}
"""Edges whose swap loses something, or is refused, each with a test of its own."""

OWN = [(table, edge) for table, edge in EDGES if not is_aarch64(table, edge)]
MARKED = [(table, edge) for table, edge in OWN if edge.either and table != "vcpu"]


@pytest.fixture(scope="module", autouse=True)
def _taps() -> Iterator[None]:
    with own_taps("tap0"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("orders")


@dataclass
class Kept:
    """Snapshots by transport, each made when it is first asked for."""

    folder: Path
    paths: dict[Transport, str] = field(default_factory=dict)

    def path(self, transport: Transport) -> str:
        if transport not in self.paths:
            image = self.folder / f"{transport}.img"
            image.write_bytes(bytes(MIB))
            devices = (
                Asked("virtio-block", "root", {"path": str(image)}),
                Asked("virtio-net", "eth0", {"tap": "tap0"}),
                Asked("virtio-vsock", "v0", {"cid": "3", "uds": str(self.folder / f"{transport}.sock")}),
                Asked("virtio-rng", "rng"),
                Asked("virtio-balloon", "balloon"),
            )
            with booted(guest("devices"), memory=4 * MIB, devices=devices, transport=transport) as rig:
                rig.run()
                rig.serve_until("io 2 ")
                self.paths[transport] = rig.save(str(self.folder / f"{transport}.snap"))
        return self.paths[transport]


@pytest.fixture(scope="module")
def kept(folder: Path) -> Kept:
    return Kept(folder)


def swap(monkeypatch: pytest.MonkeyPatch, table: str, edge: Edge) -> None:
    """Have restores and saves go by *table* with *edge* swapped."""
    order = swapped(TABLES[table], edge)
    if table == "save":
        monkeypatch.setattr(save_order, "_PLACES", {name: place for place, name in enumerate(order.names)})
    else:
        monkeypatch.setattr(orders, table.upper(), order)


@contextmanager
def restored_by_plan(
    path: str, *, before: str = "", change: Any = None, paused: bool = True, overlay: Path | None = None
) -> Iterator[Rig]:
    """As `restored`, by a plan that is made now, of sections that *change* may change first; its disk in *overlay*."""
    tape = Tape()
    overrides = {"root": {"overlay": str(overlay)}} if overlay else None
    with Loop() as loop, Machine(loop, tape, overrides=overrides) as machine, prepare(path) as prepared:
        sections: dict[SectionId, Any] = dict(prepared.sections)
        if change is not None:
            change(sections)
        steps = plan(sections, prepared.image.memory, paused=paused)
        if before:
            steps = steps[: [step.stage for step in steps].index(before)]
        target: Target = machine
        run_steps(steps, target, Timeline())
        yield Rig(machine, tape, loop)


def test_every_edge_is_shown_to_matter_or_is_marked():
    unmarked = {(table, edge.before, edge.after) for table, edge in OWN if not edge.either}
    shown = {(table, *pair) for shown in (LOST, REFUSED) for table, pairs in shown.items() for pair in pairs}
    assert unmarked == shown


@pytest.mark.parametrize(
    ("table", "pair"), [(table, pair) for table, pairs in REFUSED.items() for pair in pairs], ids=name_of
)
def test_a_restore_in_another_order_is_refused_and_leaves_nothing(kept, census, monkeypatch, table, pair):
    path = kept.path("mmio" if "virtio-mmio" in pair else "pci")
    census.start = census.take()
    with monkeypatch.context() as patch:
        swap(patch, table, edge_of(TABLES[table], *pair))
        with pytest.raises(SnapkitError) as caught, restored_by_plan(path, paused=False):
            pass
    assert re.search(REFUSED[table][pair], str(caught.value))
    census.check()


def take_interrupts(sections: dict[SectionId, Any], pin: int | None, *, held: bool) -> None:
    """Have the IOAPIC deliver *pin* (None: that of the generation id) as VECTOR to the first CPU, whose LAPIC is on."""
    vcpu, chips = sections[VCPU_0], sections[IRQCHIP]
    pin = sections[VMGENID].gsi if pin is None else pin
    vcpu.lapic = patched(vcpu.lapic, LAPIC_SVR, ENABLED)
    chips.ioapic.redirtbl[pin] = VECTOR
    chips.ioapic.irr = 1 << pin if held else 0


def taken(rig: Rig) -> bool:
    return VECTOR in pending(rig.vcpus[0].state.save().lapic)


@pytest.mark.parametrize("other", [False, True], ids=["ours", "swapped"])
def test_an_edge_that_the_ioapic_holds_is_lost_where_local_apics_are_loaded_after_it(kept, monkeypatch, other):
    if other:
        swap(monkeypatch, "load", edge_of(orders.LOAD, "vcpu-x86-64", "irqchip-x86"))
    change = partial(take_interrupts, pin=PIN, held=True)
    with restored_by_plan(kept.path("pci"), before="activate", change=change) as rig:
        assert taken(rig) is not other


@pytest.mark.parametrize("other", [False, True], ids=["ours", "swapped"])
def test_the_news_of_a_restore_is_lost_where_devices_are_activated_before_chips_are_loaded(kept, monkeypatch, other):
    if other:
        swap(monkeypatch, "stages", edge_of(orders.STAGES, "load", "activate"))
    change = partial(take_interrupts, pin=None, held=False)
    with restored_by_plan(kept.path("pci"), change=change) as rig:
        assert taken(rig) is not other


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize(("table", "edge"), MARKED, ids=name_of)
def test_a_machine_restored_against_a_marked_edge_is_equal_and_goes_on(
    kept, tmp_path, monkeypatch, transport, table, edge
):
    path = kept.path(transport)
    with prepare(path) as prepared:
        before: dict[SectionId, State] = dict(prepared.sections)
    start_ns = host.monotonic_ns()
    swap(monkeypatch, table, edge)
    with restored_by_plan(path, before="activate") as rig:
        khz = tsc_khz(rig)
        rig.machine.run_state = RunState.PAUSED  # nothing was activated; only `save` looks at this
        after = rig.machine.save()
        assert differences(before, after, elapsed(host.monotonic_ns() - start_ns, tsc_khz=khz)) == []
    with restored_by_plan(path, paused=False, overlay=tmp_path) as rig:
        rig.serve_until("io 4 ")
        assert "failed" not in rig.tape.text
