"""What memory tells of rings is remarked upon, whatever a guest wrote there, and never refuses a file."""

from collections.abc import Callable
from typing import Any

import pytest

from snapkit.errors import Finding
from snapkit.restore.check import REMARKS, check, explained, remarks
from snapkit.state.virtio import VirtioState
from tests.grounds import AARCH64
from tests.restore.broken import GENERATION, LAYOUT, at, said
from tests.restore.device_machine import RAM_LEN, OneRegion, States, busy_machine


class Memory(OneRegion):
    """RAM with the rings of a machine as its devices left them."""

    def __init__(self, states: States) -> None:
        super().__init__(at=states[LAYOUT].regions[0].gpa)
        self.start = self.regions[0][0]
        self.content = bytearray(RAM_LEN)
        self.read_gpas: list[int] = []
        for state in states.values():
            if isinstance(state, VirtioState):
                for queue in state.queues:
                    self.write(queue.driver + 2, queue.next_avail.to_bytes(2, "little"))
                    self.write(queue.device + 2, queue.next_used.to_bytes(2, "little"))
        generation = states[GENERATION]
        self.write(generation.gpa, generation.generation)

    def write(self, gpa: int, payload: bytes) -> None:
        gpa -= self.start
        self.content[gpa : gpa + len(payload)] = payload

    def read(self, gpa: int, length: int) -> bytes:
        assert 0 < length <= 4096  # of rings a field at a time, of tables a page
        self.read_gpas.append(gpa)
        return bytes(self.content[gpa - self.start :][:length])

    peek = read


def root_queue(states: States) -> Any:
    return at(states, "virtio-block").queues[0]


def used_index_written_by_the_guest(states: States, memory: Memory) -> None:
    memory.write(root_queue(states).device + 2, b"\x08\0")


def available_index_far_ahead(states: States, memory: Memory) -> None:
    queue = root_queue(states)
    memory.write(queue.driver + 2, (queue.next_avail + queue.size + 1).to_bytes(2, "little"))


def available_index_behind(states: States, memory: Memory) -> None:
    memory.write(root_queue(states).driver + 2, b"\x06\0")


def used_ring_in_the_descriptor_table(states: States, memory: Memory) -> None:
    queue = root_queue(states)
    queue.device = queue.desc + 16
    memory.write(queue.device + 2, queue.next_used.to_bytes(2, "little"))


def generation_written_by_the_guest(states: States, memory: Memory) -> None:
    memory.write(states[GENERATION].gpa, bytes(16))


STRANGE: list[tuple[Callable[[States, Memory], None], set[str]]] = [
    (used_index_written_by_the_guest, {"rings.used: virtio-block/root.queues[0].device"}),
    (available_index_far_ahead, {"rings.available: virtio-block/root.queues[0].driver"}),
    (available_index_behind, {"rings.available: virtio-block/root.queues[0].driver"}),
    (used_ring_in_the_descriptor_table, {"rings.apart: virtio-block/root.queues[0].device"}),
    (generation_written_by_the_guest, {"generation.kept: vmgenid/0.generation"}),
]


def test_lpi_tables_that_are_nowhere_are_remarked_upon_and_are_no_finding():
    states = busy_machine("pci", AARCH64)
    memory = Memory(states)
    unmapped = said(remarked(states, memory))  # this memory has no tables of an ITS
    assert {one.partition(":")[0] for one in unmapped} == {"its.mapped"}
    redistributor = at(states, "gicv3-redistributor", "0")
    redistributor.propbaser, redistributor.pendbaser = 0x4000_0000, 0x1_0000_0000_0000
    expected = {f"lpis.tables: gicv3-redistributor/0.{name}" for name in ("propbaser", "pendbaser")}
    assert said(remarked(states, memory)) == expected | unmapped
    redistributor.ctlr = 0
    assert said(remarked(states, memory)) == unmapped


def remarked(states: States, memory: Any) -> list[Finding]:
    assert check(states, memory) == []
    return remarks(states, memory)


@pytest.mark.parametrize("transport", ["pci", "mmio"])
@pytest.mark.parametrize(("change", "expected"), STRANGE, ids=lambda item: getattr(item, "__name__", None))
def test_what_a_guest_wrote_is_remarked_upon_and_is_no_finding(change, expected, transport):
    states = busy_machine(transport)
    memory = Memory(states)
    change(states, memory)
    assert said(remarked(states, memory)) == expected


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_rings_as_devices_leave_them_give_no_remark(transport):
    states = busy_machine(transport)
    memory = Memory(states)
    queue = root_queue(states)
    memory.write(queue.driver + 2, (queue.next_avail + queue.size).to_bytes(2, "little"))  # a full ring waits
    assert remarked(states, memory) == []


def test_rings_that_nobody_serves_are_not_looked_at():
    states = busy_machine("mmio")
    memory = Memory(states)
    root_queue(states).ready = False
    at(states, "virtio-rng", "rng").broken = True
    at(states, "virtio-mmio", "rng").status |= 0x40
    at(states, "virtio-mmio", "eth0").status = 0x0B
    memory.read_gpas.clear()
    assert remarked(states, memory) == []
    looked_at = {gpa & ~0xFFF for gpa in memory.read_gpas}
    for kind, instance in (("virtio-block", "root"), ("virtio-rng", "rng"), ("virtio-net", "eth0")):
        for queue in at(states, kind, instance).queues:
            assert looked_at.isdisjoint({queue.driver, queue.device})


def test_each_ring_is_read_in_the_order_of_memory():
    states = busy_machine("pci")
    memory = Memory(states)
    remarked(states, memory)
    count = sum(len(state.queues) for state in states.values() if isinstance(state, VirtioState))
    for start in (0, count):
        gpas = memory.read_gpas[start : start + count]
        assert gpas == sorted(gpas)


def test_no_check_reads_memory():
    pages: Any = OneRegion()  # it cannot be read
    assert check(busy_machine("pci"), pages) == []


def test_every_remark_has_a_case_and_is_explained_as_one():
    rules = {remark.rule for remark in REMARKS}
    cases = {one.partition(":")[0] for _, expected in STRANGE for one in expected} | {
        "lpis.tables",
        "its.mapped",
    }  # the last: test_check_its.py
    assert {rule.name for rule in explained() if rule.about == "remarks"} == rules
    assert cases == rules
