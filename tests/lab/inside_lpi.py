"""Run inside the aarch64 outer machine: LPIs that are pending in a snapshot, and what becomes of them in a restore.

``save GUEST FOLDER`` runs the guest `lpi` to a state in which some are pending, none taken, and saves it three times: as
who writes memory before KVM has written its tables there (`mappings.snap`), before KVM has written which LPIs are pending
(`pending.snap`), and as it should be (`lpi.snap`). ``restore FOLDER`` restores that, saves once more before the guest runs
(`again.snap`), and has it take what there is; then has each file's guest take what there is; then saves a restored machine
by each order that has one edge swapped. Both print one line of JSON.
"""

import json
import sys
from collections.abc import Mapping
from functools import partial
from unittest.mock import patch

from snapkit.state.its_tables import places
from snapkit.state.schema import SectionId, State
from snapkit.state.spec.gicv3 import Pendbaser
from snapkit.units import Gpa
from snapkit.vmm import save_order
from snapkit.vmm.run_state import RunState
from tests.kvm.harness import Rig, restored
from tests.lab import lpis
from tests.lab.lpis import LpiGuest
from tests.order_tables import EDGES, is_aarch64, name_of, swapped

TAKEN, HELD, TWICE, DISABLED, LAST = (0, 1), (4, 5), 4, (2, 3), (6, 7)
"""Events by what becomes of them: taken before the save; raised while CPUs are masked, one of them twice; raised while
disabled; and the last ones, by which all the others are through. One of each CPU."""
MASK, UNMASK = ("m0", "m1"), ("u0", "u1")


PENDING_TABLE_LEN = 1 << 16
LATE = ("mappings", "pending")


def save(rig: Rig, folder: str) -> list[str]:
    guest = LpiGuest(rig)
    rig.run()
    rig.tape.wait_for("ready\n")
    guest.raise_event(*TAKEN)
    guest.wait_for(*TAKEN, count=1)
    guest.order(*MASK, *(f"d{event}" for event in DISABLED))
    guest.raise_event(*TAKEN, *HELD, TWICE, *DISABLED)
    rig.machine.pause()
    for late in LATE:
        with patch.object(rig.machine, "save", partial(saved_late, rig, late)):
            rig.save(f"{folder}/{late}.snap")
    rig.save(f"{folder}/lpi.snap")
    return guest.lines()


def saved_late(rig: Rig, late: str) -> Mapping[SectionId, State]:
    """Save the machine, and put back what its memory was before: all, or which LPIs are pending."""
    memory = rig.machine._need_memory()
    start, length = memory.ram[0]
    before = memory.read(start, length)
    sections = type(rig.machine).save(rig.machine)
    where = places(sections)
    assert where is not None
    tables = [base & Pendbaser.PHYSICAL_ADDRESS for base in where.pendbasers]
    for gpa, count in [(start, length)] if late == "mappings" else [(gpa, PENDING_TABLE_LEN) for gpa in tables]:
        memory.write(Gpa(gpa), before[gpa - start : gpa - start + count])
    return sections


def look(rig: Rig) -> list[str]:
    """Have the guest take what is pending, and raise the last events itself."""
    guest = LpiGuest(rig)
    rig.run()
    guest.order(*UNMASK, *(f"i{event}" for event in LAST))
    for _ in range(2):  # the other CPU tells by an interrupt, and the first one looks before each order
        guest.order(*MASK, *UNMASK)
    return guest.lines()


def by_other_orders(rig: Rig) -> dict[str, bool]:
    """Save by each order that has an edge of this architecture swapped; say whether it is the same machine."""

    def saved() -> tuple[Mapping[SectionId, State], bytes]:
        memory = rig.machine._need_memory()
        return rig.machine.save(), memory.read(*memory.ram[0])

    wanted, same = saved(), {}
    for table, edge in EDGES:
        if table != "save" or not is_aarch64(table, edge):
            continue
        order = swapped(save_order.SAVE, edge)
        with patch.object(save_order, "_PLACES", {name: place for place, name in enumerate(order.names)}):
            same[name_of(edge)] = saved() == wanted
    return same


def go_on(rig: Rig, again: str) -> dict[str, list[str]]:
    guest = LpiGuest(rig)
    rig.save(again)
    rig.run()
    guest.order(*UNMASK)
    guest.wait_for(*HELD, count=1)
    guest.raise_event(*LAST)
    guest.wait_for(*LAST, count=1)
    before = guest.lines()
    guest.order(*(f"e{event}" for event in DISABLED))
    guest.wait_for(*DISABLED, count=1)
    guest.raise_event(*range(8))
    guest.wait_for(*LAST, *HELD, *DISABLED, count=2)
    guest.wait_for(*TAKEN, count=3)
    assert rig.machine.run_state is RunState.RUNNING
    return {"before": before, "after": guest.lines()[len(before) :]}


def restore(folder: str) -> dict[str, object]:
    with restored(f"{folder}/lpi.snap") as rig:
        told: dict[str, object] = {"run": go_on(rig, f"{folder}/again.snap")}
    for name in ("lpi", *LATE):
        with restored(f"{folder}/{name}.snap") as rig:
            told[name] = look(rig)
    with restored(f"{folder}/lpi.snap") as rig:
        told["orders"] = by_other_orders(rig)
    return told


def main(order: str, *words: str) -> None:
    if order == "restore":
        print(json.dumps(restore(*words)))
        return
    kernel, folder = words
    with lpis.booted_with(kernel) as rig:
        print(json.dumps(save(rig, folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
