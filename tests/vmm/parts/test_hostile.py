"""What the checks let through can be rebuilt: no section of a file makes a part fail, whatever else it says.

Seeded mutants of a good machine's sections, over both transports: each is refused by the checks, or builds, runs, takes
what a guest does, saves, and has nothing wrong in what it saved.
"""

import copy
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from snapkit.errors import SnapkitError
from snapkit.restore.check import check
from snapkit.state.codec import decode, encode
from snapkit.state.schema import SectionId, State, current
from snapkit.state.shape import shape_of
from snapkit.state.virtio import VirtioState
from snapkit.units import MIB
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.parts.board import CONSTRUCT_ORDER
from snapkit.vmm.parts.fresh import Transport
from tests.mutants.plain import leaves, places
from tests.mutants.values import Pool, change
from tests.restore.device_machine import OneRegion, States, busy_machine, fresh_machine
from tests.vmm.virtio.paper import guarded_memory
from tests.vmm.virtio.whole import Whole, findings

MUTANTS, SOAK_MUTANTS = 400, 20_000
HOST_PATHS = {"host", "uds", "tap"}


@pytest.fixture(scope="module")
def memory() -> Iterator[GuestMemory]:
    with guarded_memory([(0, 4 * MIB)]) as made:
        yield made


def mutate(name: SectionId, state: State, rng: Random) -> State:
    """Return *state* changed in one place. Raises ImageError where decoding refuses it."""
    schema = current(name.kind)
    holder = {"": msgspec.msgpack.decode(encode(state))}
    found = [
        place
        for place in places(holder, "", shape_of(schema.type))
        if not set(place.path.replace("[", ".").split(".")) & HOST_PATHS
    ]
    family = rng.choice(sorted({place.family for place in found}))
    place = rng.choice([place for place in found if place.family == family])
    change(place, Pool([holder[key] for holder, key in leaves(holder[""])]), [], rng)
    return decode(schema, msgspec.msgpack.encode(holder[""]), where=name)


def mutant(transport: Transport, rng: Random) -> States | None:
    """Return sections of a machine with a change or two; None when one of them could not be in a file."""
    states = busy_machine(transport) if rng.random() < 0.7 else fresh_machine(transport)
    parts = [name for name in states if name.kind in CONSTRUCT_ORDER]
    try:
        for _ in range(rng.choice([1, 1, 2, 3])):
            name: SectionId = rng.choice(parts)
            states[name] = mutate(name, states[name], rng)
    except SnapkitError:
        return None  # decoding refuses it
    return states


def use(machine: Whole, states: States, rng: Random) -> None:
    """Let a guest touch what there is, and the loop turn."""
    places = [0xEEC0_0000 + (slot << 15) for slot in range(7)]
    places += [state.address for state in states.values() if hasattr(state, "gsi") and hasattr(state, "address")]
    for name, state in states.items():
        if name.kind == "pci-function":
            places += [bar.address + offset for bar in state.bars for offset in (0, 0x2000, 0x4000, 0x6000, 0x8000)]
    for _ in range(12):
        gpa, length = rng.choice(places) + 4 * rng.randrange(32), rng.choice([1, 2, 4, 8])
        machine.read(gpa, length)
        machine.write(
            gpa, length, rng.choice([0, 1, 0xFFFF_FFFF, rng.getrandbits(8 * length)]) & ((1 << 8 * length) - 1)
        )
    machine.turn()


def build_and_use(states: States, transport: Transport, memory: GuestMemory, folder: str, rng: Random) -> None:
    kept: dict[SectionId, State] = copy.deepcopy(states)
    machine = Whole(memory, transport, folder, kept)
    try:
        machine.turn()
        use(machine, states, rng)
        machine.board.pause()
        machine.board.prepare_save()
        saved = machine.save()
    finally:
        machine.close()
    assert findings(saved) == []


def run(transport: Transport, seeds: range, memory: GuestMemory, folder: Path) -> tuple[int, int]:
    """Return how many mutants were refused, and how many were built."""
    pages: Any = OneRegion()
    refused = built = 0
    for seed in seeds:
        rng = Random(seed)
        states = mutant(transport, rng)
        if states is None or check(states, pages):
            refused += 1
            continue
        try:
            build_and_use(states, transport, memory, str(folder), rng)
        except BaseException as error:
            error.add_note(f"mutant {seed} over {transport}")
            raise
        built += 1
    return refused, built


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_mutant_is_refused_by_the_checks_or_built(transport, memory, tmp_path):
    refused, built = run(transport, range(MUTANTS), memory, tmp_path)
    assert refused > MUTANTS // 5
    assert built > MUTANTS // 20


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_a_mutant_is_refused_by_the_checks_or_built_soak(transport, memory, tmp_path):
    refused, built = run(transport, range(MUTANTS, MUTANTS + SOAK_MUTANTS), memory, tmp_path)
    assert min(refused, built) > SOAK_MUTANTS // 20


def test_every_device_of_the_machine_is_built_from_its_sections_as_they_are(memory, tmp_path):
    transports: list[Transport] = ["pci", "mmio"]
    for transport in transports:
        states = busy_machine(transport)
        build_and_use(states, transport, memory, str(tmp_path), Random(0))
        assert sum(isinstance(state, VirtioState) for state in states.values()) == 5
