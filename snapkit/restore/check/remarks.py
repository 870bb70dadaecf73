"""What the saved memory tells of rings and ITS tables in it: for people to look at, never a reason to refuse a file.

All of RAM is the guest's, what its devices wrote there included, so no content of a ring proves that a monitor did not
save it. But a guest that behaves leaves rings that fit its devices' indices; where they do not, sections and memory may
be of two machines, or one was edited without the other. Whatever they hold, a device that is served nonsense asks for a
reset and does nothing else.

Only `verify` asks for these: each looks at a few bytes, but a byte is not believed before its 2 MiB chunk was digested.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index, Sections, invariant
from snapkit.restore.pages import Pages
from snapkit.state.interrupt_table import InterruptTableState
from snapkit.state.machine import MachineState
from snapkit.state.schema import SectionId
from snapkit.state.spec import virtio as spec
from snapkit.state.spec.address_map import GITS_TRANSLATER, its_gpa
from snapkit.state.virtio import QueueState
from snapkit.state.virtio_mmio import VirtioMmioState
from snapkit.state.virtio_pci import VirtioPciState
from snapkit.state.vmgenid import GENERATION_LEN, VmgenidState

_INDEX_AT, _INDEX_LEN = 2, 2
"""The index is behind the flags in both rings (VIRTIO 1.3, 2.7.6 and 2.7.8)."""


@invariant("rings.used")
def used_index_kept(index: Index, pages: Pages) -> Findings:
    """The used ring's index is what the device wrote there last: a driver counts what came back by it."""
    for section, number, queue in _served(index, lambda queue: queue.device):
        found = _index(pages, queue.device)
        if found != queue.next_used:
            yield Finding(
                str(section), f"queues[{number}].device", f"a ring with index {found}", f"at {queue.next_used}"
            )


@invariant("rings.available")
def available_index_near(index: Index, pages: Pages) -> Findings:
    """The available ring is no more than its size ahead of the device: else the device will ask for a reset."""
    for section, number, queue in _served(index, lambda queue: queue.driver):
        ahead = (_index(pages, queue.driver) - queue.next_avail) & 0xFFFF
        if ahead > queue.size:
            expected = f"at most {queue.size} ahead"
            yield Finding(str(section), f"queues[{number}].driver", f"a ring {ahead} ahead of the device", expected)


@invariant("rings.apart")
def rings_apart(index: Index, _pages: Pages) -> Findings:
    """Descriptor tables and rings lie apart from each other: what one holds would be read as another."""
    areas = sorted(
        (gpa, gpa + length, section, f"queues[{number}].{name}")
        for section, number, queue in _served(index, lambda queue: queue.desc)
        for name, gpa, length in (
            ("desc", queue.desc, spec.desc_table_len(queue.size)),
            ("driver", queue.driver, spec.avail_len(queue.size)),
            ("device", queue.device, spec.used_len(queue.size)),
        )
    )
    for (_, end, holder, held), (gpa, _, section, path) in pairwise(areas):
        if gpa < end:
            yield Finding(str(section), path, f"at {gpa:#x}", f"at or above {end:#x}, where {holder}.{held} ends")


@invariant("generation.kept")
def generation_kept(index: Index, pages: Pages) -> Findings:
    """The generation id in memory is the one that was announced: a guest compares it with the one it knows."""
    for section, state in index.each(VmgenidState):
        found = pages.read(state.gpa, GENERATION_LEN)
        if found != state.generation:
            yield Finding(str(section), "generation", f"{found.hex()} in memory", state.generation.hex())


@invariant("its.mapped")
def messages_mapped(index: Index, pages: Pages) -> Findings:
    """The messages that devices may send are mapped to LPIs by the ITS: others come to nothing."""
    if not index.map.sender_ids:
        return
    from snapkit.restore.check.its import its_tables  # what x86-64 machines do without

    tables = index.once(its_tables, pages)
    table = index.get("interrupt-table", "0", InterruptTableState)
    machine = index.get("machine", "0", MachineState)
    if tables is None or not tables.whole or table is None or machine is None:
        return
    mapped = {(device.number, event.number) for device in tables.devices for event in device.events}
    translater = its_gpa(machine.vcpu_count) + GITS_TRANSLATER
    for number, route in enumerate(table.routes):
        if route.address == translater and (route.device_id, route.data) not in mapped:
            found = f"to event {route.data} of device {route.device_id:#x}, which is not mapped"
            yield Finding("interrupt-table/0", f"routes[{number}]", found, "to one that is")


@invariant("lpis.tables")
def lpi_tables_in_memory(index: Index, _pages: Pages) -> Findings:
    """Tables of LPIs that are enabled begin in RAM: elsewhere KVM finds none of a CPU's LPIs enabled or pending."""
    from snapkit.state.gicv3_redistributor import RedistributorState  # what x86-64 machines do without
    from snapkit.state.spec.gicv3 import GicrCtlr, Pendbaser, Propbaser

    for section, state in index.each(RedistributorState):
        for name, gpa in (
            ("propbaser", state.propbaser & Propbaser.PHYSICAL_ADDRESS),
            ("pendbaser", state.pendbaser & Pendbaser.PHYSICAL_ADDRESS),
        ):
            if state.ctlr & GicrCtlr.ENABLE_LPIS and not any(low <= gpa < low + length for low, length in index.ram):
                yield Finding(str(section), name, f"a table at {gpa:#x}", "in RAM")


REMARKS = (used_index_kept, available_index_near, rings_apart, generation_kept, lpi_tables_in_memory, messages_mapped)


def remarks(sections: Sections, pages: Pages) -> list[Finding]:
    """Return what is strange about the memory of a machine in which `check` found nothing.

    Raises ImageError when a chunk that it reads is damaged.
    """
    index = Index(sections)
    return [finding._replace(rule=remark.rule) for remark in REMARKS for finding in remark(index, pages)]


def _served(index: Index, place: Callable[[QueueState], int]) -> Iterator[tuple[SectionId, int, QueueState]]:
    """Give every queue in use, in the order of *place*: chunks are digested one after the other, each once."""
    served = [
        (section, number, queue)
        for section, device in index.devices
        if not device.broken and _status(index, section.instance) & spec.STATUS_DRIVER_OK
        for number, queue in enumerate(device.queues)
        if queue.ready
    ]
    yield from sorted(served, key=lambda item: place(item[2]))


def _status(index: Index, instance: str) -> int:
    pci_side = index.get("virtio-pci", instance, VirtioPciState)
    if pci_side is not None:
        return pci_side.device_status
    mmio_side = index.get("virtio-mmio", instance, VirtioMmioState)
    return mmio_side.status if mmio_side is not None else 0


def _index(pages: Pages, ring: int) -> int:
    return int.from_bytes(pages.read(ring + _INDEX_AT, _INDEX_LEN), "little")
