"""Good machines with one thing wrong, and every finding that it must give: one module a concern, as in the checks.

A case is a function that changes the sections of a good machine in one place. What it stands under is the whole of what
`check` must say, as ``rule: component.path``; nothing else may be found.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

from snapkit.errors import Finding
from snapkit.restore.check import check
from snapkit.state.machine import EM_AARCH64
from snapkit.state.pci_function import find_capability
from snapkit.state.schema import SectionId
from snapkit.state.spec.pci import CAP_ID_MSIX
from tests.grounds import AARCH64, X86_64
from tests.restore.device_machine import OneRegion, States, Untouched, busy_machine, fresh_machine

On = Literal["none", "pci", "mmio", "arm-none", "arm-pci", "arm-mmio"]
"""What carries the devices of the machine that is broken; none: it has no devices, and two CPUs."""
KINDS_OF_MACHINE: tuple[On, ...] = get_args(On)

CLAIMS, TABLE = SectionId("resource-allocator", "0"), SectionId("interrupt-table", "0")
GENERATION, SEGMENT = SectionId("vmgenid", "0"), SectionId("pci-segment", "0")
MACHINE, LAYOUT = SectionId("machine", "0"), SectionId("memory-layout", "0")
VCPU0, VCPU1 = SectionId("vcpu-x86-64", "0"), SectionId("vcpu-x86-64", "1")
ARM0, ARM1 = SectionId("vcpu-aarch64", "0"), SectionId("vcpu-aarch64", "1")


class Case(NamedTuple):
    """One thing wrong, and all that is to be said of it."""

    change: Callable[[States], None]
    on: On
    expected: frozenset[str]


CASES: list[Case] = []


def broken(on: On, *expected: str) -> Callable[[Callable[[States], None]], Callable[[States], None]]:
    """Make a function a case: what it does to a good machine *on* these gives *expected*, and nothing else."""

    def add(change: Callable[[States], None]) -> Callable[[States], None]:
        CASES.append(Case(change, on, frozenset(expected)))
        return change

    return add


def good(on: On) -> States:
    """Return a machine with nothing wrong."""
    ground = AARCH64 if on.startswith("arm-") else X86_64
    transport: Any = on.removeprefix("arm-")
    return fresh_machine(None, 2, ground) if transport == "none" else busy_machine(transport, ground)


def findings(states: States) -> list[Finding]:
    """Return what `check` finds, over memory as the good machine has it."""
    machine = states.get(MACHINE)
    on_arm = machine is not None and machine.architecture == EM_AARCH64
    pages: Any = Untouched(at=AARCH64.map.ram[0][0]) if on_arm else OneRegion()
    return check(states, pages)


def said(found: list[Finding]) -> set[str]:
    """Return *found* as cases spell it."""
    return {f"{one.rule}: {one.component}.{one.path}".rstrip(".") for one in found}


# What cases are made of


def at(states: States, kind: str, instance: str = "root") -> Any:
    return states[SectionId(kind, instance)]


def patch(states: States, instance: str, offset: int, payload: bytes) -> None:
    """Write into a configuration space."""
    config = bytearray(at(states, "pci-function", instance).config)
    config[offset : offset + len(payload)] = payload
    at(states, "pci-function", instance).config = bytes(config)


def msix_at(states: States, instance: str = "root") -> int:
    return find_capability(at(states, "pci-function", instance).config, CAP_ID_MSIX) or 0


def move_bar(states: States, instance: str, address: int, pool: str = "mmio64") -> None:
    """Move a BAR as a guest does, claim and register and all."""
    function = at(states, "pci-function", instance)
    move_claim(states, f"pci-function/{instance}", function.bars[0].address, address, pool)
    function.bars[0].address = address
    patch(states, instance, 0x10, (address | 4).to_bytes(8, "little"))


def move_claim(states: States, owner: str, old: int, new: int, pool: str) -> None:
    """Have the claim of *owner* on *old* say *new*, and the list stay sorted."""
    allocator = states[CLAIMS]
    for claim in allocator.claims:
        if claim.owner == owner and claim.start == old:
            claim.pool, claim.start = pool, new
    allocator.claims.sort(key=lambda claim: (claim.pool, claim.start))
