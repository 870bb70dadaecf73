"""The guest `lpi` of `tests.guests` from the outside: orders typed, LPIs raised by messages, what came of them.

Runs inside of the aarch64 outer machine, where a test's own process has no KVM.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager

from snapkit.restore.image import Image
from snapkit.state.its_tables import Interrupt, decode, interrupts, places
from snapkit.state.spec.address_map import GITS_TRANSLATER, its_gpa
from snapkit.vmm.parts.fresh import Asked
from tests.kvm.harness import Rig, booted

DEVICE = 8  # 00:01.0
VCPUS = 2
LPI_BASE = 8192


def booted_with(kernel: str) -> AbstractContextManager[Rig]:
    """Boot the guest at *kernel* on two CPUs; there is an ITS where there is PCI."""
    return booted(kernel, vcpus=VCPUS, transport="pci", devices=(Asked("virtio-rng", "rng"),))


class LpiGuest:
    """*rig* has the guest, which runs."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    def order(self, *orders: str) -> None:
        """Type *orders*, and wait after each until it is done."""
        for order in orders:
            done = self.rig.tape.text.count(f"{order}.\n")
            assert self.rig.tape.type(order.encode()) == len(order)
            self.rig.tape.wait_for(f"{order}.\n", done + 1)

    def raise_event(self, *events: int) -> None:
        """Send the device's messages."""
        for event in events:
            self.rig.vm.fd.signal_msi(its_gpa(VCPUS) + GITS_TRANSLATER, event, DEVICE)

    def wait_for(self, *events: int, count: int) -> None:
        """Wait until the LPI of each of *events* was counted so often."""
        for event in events:
            self.rig.tape.wait_for(line(event, count) + "\n")

    def lines(self) -> list[str]:
        """What the guest told of LPIs so far."""
        return [text for text in self.rig.tape.text.splitlines() if text.startswith("L")]


def line(event: int, count: int) -> str:
    """What the guest tells when an LPI was counted by its CPU."""
    return f"L{event % VCPUS} {LPI_BASE + event} {count}"


def of_file(path: str) -> tuple[Interrupt, ...]:
    """Every mapped event of a snapshot, to its end."""
    with Image.open(path) as image:
        sections, _unknown = image.sections()
        where = places(sections)
        assert where is not None, f"{path} has no ITS"
        tables = decode(where, image.memory)
        assert (tables.fault, tables.whole) == (None, True), tables
        return interrupts(where, tables, image.memory)


def pending(found: Iterable[Interrupt]) -> list[int]:
    """The events of those that are pending."""
    return [one.event for one in found if one.pending]
