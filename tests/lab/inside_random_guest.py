"""Run inside the aarch64 outer machine: whatever a guest does to its CPUs, GIC and ITS can be saved, checked and loaded.

Words: the first seed, and how many. Each guest starts from a machine at work (`inside_arm_kvm.working`), is saved, judged by
`check`, and loaded into another VM, which is saved once more. Prints one line of JSON for each that is not as it should be,
and at last a tally.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from snapkit.errors import HostError, SnapkitError
from snapkit.restore import orders
from snapkit.restore.check import check
from snapkit.state.codec import checked
from snapkit.state.its_tables import decode, places
from snapkit.state.schema import SectionId, State
from snapkit.vmm.kvm.system import Kvm
from tests.grounds import AARCH64
from tests.lab.inside_arm_kvm import VCPUS, difference, loaded, machine, with_commands, working
from tests.lab.random_guest import TIMER_VALUE, is_timers, live
from tests.restore.device_machine import fresh_machine
from tests.state.its_writer import BASE, Its, Ram, linux

SEED = 11
MEMORY = "KVM writes into memory that the guest gave it"
"""It is said with what fails when there is none, as a guest may have it: its machine runs on."""


class Life(NamedTuple):
    """How a guest came out (taken, refused, unsaved), what is wrong with that, what it did, and the kinds that it changed."""

    came: str
    wrong: list[str]
    done: list[str]
    changed: set[str]


def whole(states: Mapping[SectionId, State], ram: bytes) -> dict[SectionId, Any]:
    """Return the sections of a machine, with *states* among them and *ram* as its memory."""
    sections = fresh_machine("pci", VCPUS, AARCH64)
    sections[SectionId("memory-layout", "0")].regions[0].length = len(ram)
    return {**sections, **states}


def judged(kvm: Kvm, states: Mapping[SectionId, State], ram: bytes) -> tuple[str, list[str]]:
    """Say how a restore of what a guest left comes out, and all that is wrong with that.

    A guest may give the ITS memory that is none, and then no KVM takes its tables; `check` says so beforehand.
    """
    found = check(whole(states, ram), _as_pages(ram))
    try:
        again, ram_again = loaded(kvm, ram, deepcopy(dict(states)))
    except SnapkitError as error:
        foreseen = bool(found) and all(finding.rule.startswith("its.") for finding in found)
        return "refused", [] if foreseen else [*map(str, found), str(error)]
    return "taken", [*map(str, found), *difference(states, again), *_changed(states, ram, ram_again)]


def _changed(states: Mapping[SectionId, State], before: bytes, after: bytes) -> list[str]:
    """Name the words of memory that are others, the first few.

    How far it is to the next event may be: KVM counts one whose collection the guest has unmapped, and does not write it.
    """
    if before == after:
        return []
    where = places(states)
    assert where is not None
    tables = decode(where, _as_pages(before))
    wrong = [] if tables == decode(where, _as_pages(after)) else ["other mappings"]
    events = {each.itt + 8 * number for each in tables.devices for number in range(1 << each.bits)}
    for at in range(0, len(before), 8):
        words = (int.from_bytes(content[at : at + 8], "little") for content in (before, after))
        old, new = (word & (1 << 48) - 1 if BASE + at in events else word for word in words)
        if old != new:
            wrong.append(f"memory {BASE + at:#x} was {old:#x}, is {new:#x}")
    return wrong[:8]


def _as_pages(ram: bytes) -> Any:
    memory = Ram()
    memory.content[:] = ram
    return memory


def one(kvm: Kvm, content: bytes, states: Mapping[SectionId, State], seed: int) -> Life:
    """Have the guest of *seed* live, save what it left, and judge it."""
    with machine(kvm, content, {section: checked(state) for section, state in states.items()}) as target:
        target.load(orders.LOAD.names)
        before = target.save()
        done = live(target, seed)
        try:
            saved = target.save()
        except HostError as error:
            foreseen = MEMORY in "".join(getattr(error, "__notes__", ()))
            return Life("unsaved", [] if foreseen else [str(error)], done, set())
        ram = target.ram()
    came, wrong = judged(kvm, saved, ram)
    return Life(came, wrong, done, {found.partition("/")[0] for found in difference(before, saved)})


def main(first: int, count: int) -> None:
    its: Its = linux()
    content = bytes(with_commands(its).content)
    tally: Counter[str] = Counter()
    with Kvm() as kvm:
        states = working(kvm, its, random.Random(SEED))
        for number in range(VCPUS):
            for reg in states[SectionId("vcpu-aarch64", str(number))].regs:
                reg.value &= TIMER_VALUE if is_timers(reg.id) else -1
        for seed in range(first, first + count):
            life = one(kvm, content, states, seed)
            tally.update([life.came, *life.changed])
            tally["stuck"] += any(line.endswith("stuck") for line in life.done)
            if life.wrong:
                print(json.dumps({"seed": seed, "wrong": life.wrong, "came": life.came, "done": life.done}), flush=True)
    print(json.dumps(tally), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
