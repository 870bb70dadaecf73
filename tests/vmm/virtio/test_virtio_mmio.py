"""virtio over memory-mapped registers: identity, status, queues, the level-triggered line, doorbells. VIRTIO 1.3, 4.2."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapkit import host
from snapkit.errors import ConfigError, HostError
from snapkit.state.codec import encode
from snapkit.state.virtio_mmio import VirtioMmioState, agrees, invariants
from snapkit.units import MIB, Gsi
from snapkit.vmm.bus import Bus
from snapkit.vmm.interrupt_table import InterruptTable
from snapkit.vmm.resource_allocator import ResourceAllocator
from snapkit.vmm.virtio.virtio_mmio import VirtioMmio, VirtioMmioArgs
from tests.vmm.virtio.driver import Driver
from tests.vmm.virtio.echo import Echo, echo_state
from tests.vmm.virtio.pci_bench import POOLS, Hypervisor

RAM = [(0, MIB)]
BASE, GSI, OWNER = 0xEEBF_F000, 7, "virtio-mmio/a"
VERSION_1, RING_RESET = 1 << 32, 1 << 40
STEPS = 8
"""How many `Bench.steps` gives."""


class Bench:
    """One machine with one echo device; `Bench(memory, saved)` is another one restored from what `save` gave."""

    def __init__(self, memory, saved=None) -> None:
        device_state, state = saved or (echo_state(), VirtioMmioState(address=BASE, gsi=GSI))
        self.memory = memory
        self.kvm, self.bus, self.resources = Hypervisor(), Bus("mmio"), ResourceAllocator(POOLS)
        self.line = InterruptTable(self.kvm).line(Gsi(GSI), OWNER, edge=False)
        self.device = Echo(device_state, memory=memory)
        self.transport = VirtioMmio.restore(state, self.args())
        if saved is not None:
            self.transport.wire()
            self.transport.resync()
            self.transport.activate()

    def args(self) -> VirtioMmioArgs:
        return VirtioMmioArgs(
            device=self.device,
            line=self.line,
            bus=self.bus,
            resources=self.resources,
            doorbells=self.kvm,
            owner=OWNER,
        )

    def save(self):
        return self.device.save(), self.transport.save()

    def close(self) -> None:
        self.device.close()
        self.transport.close()

    def read(self, offset: int, length: int = 4) -> int:
        return self.bus.read(BASE + offset, length)

    def write(self, offset: int, value: int, length: int = 4) -> None:
        self.bus.write(BASE + offset, length, value)

    def status(self, value: int | None = None) -> int:
        if value is not None:
            self.write(0x70, value)
        return self.read(0x70)

    def features(self, wanted: int) -> None:
        for word in (0, 1):
            self.write(0x24, word)
            self.write(0x20, wanted >> 32 * word & 0xFFFF_FFFF)

    def queue(self, index: int, driver: Driver) -> None:
        self.write(0x30, index)
        self.write(0x38, driver.size)
        for register, gpa in ((0x80, driver.desc), (0x90, driver.avail), (0xA0, driver.ring)):
            self.write(register, gpa & 0xFFFF_FFFF)
            self.write(register + 4, gpa >> 32)
        self.write(0x44, 1)

    def steps(self, drivers):
        yield lambda: self.status(0)
        yield lambda: self.status(1)
        yield lambda: self.status(3)
        yield lambda: self.features(VERSION_1 | RING_RESET)
        yield lambda: self.status(11)
        for index, driver in enumerate(drivers):
            yield lambda index=index, driver=driver: self.queue(index, driver)
        yield lambda: self.status(15)

    def drivers(self) -> list[Driver]:
        sizes = enumerate(Echo.queue_sizes)
        return [Driver(self.memory, 0x1000 + index * 0x8000, size, area_len=0x8000) for index, size in sizes]

    def start(self) -> list[Driver]:
        drivers = self.drivers()
        for step in self.steps(drivers):
            step()
        return drivers

    def serve(self) -> list[int]:
        rang = [index for index, fd in enumerate(self.transport.doorbell_fds()) if host.eventfd_take(fd)]
        for index in rang:
            self.device.kick(index)
        return rang


@pytest.fixture
def bench(memory):
    made = Bench(memory)
    yield made
    made.close()


def encoded(saved):
    return [encode(state) for state in saved]


def doorbells(bench):
    return {(BASE + 0x50, index, 4): fd for index, fd in enumerate(bench.transport.doorbell_fds())}


def test_registers_say_what_the_device_is(bench):
    assert [bench.read(at) for at in (0, 4, 8)] == [0x74726976, 2, 4]
    assert bench.read(0xC) == int.from_bytes(b"SKIT", "little")
    assert [bench.read(at) for at in (0x60, 0x70, 0xFC, 0xC0)] == [0, 0, 0, 0]
    assert [bench.read(at) for at in (0xB0, 0xB4, 0xB8, 0xBC)] == [0xFFFF_FFFF] * 4, "no shared memory"
    words = []
    for select in (0, 1, 2, 0xFFFF_FFFF):
        bench.write(0x14, select)
        words.append(bench.read(0x10))
    assert words == [1 << 28 | 1 << 29, 1 | 1 << 8, 0, 0]
    assert bench.transport.faults == 0


def test_driver_brings_the_device_up_and_is_served(bench):
    drivers = bench.start()
    assert bench.status() == 15
    for index, driver in enumerate(drivers):
        head = driver.add(b"hello", 9)
        bench.write(0x50, index)
        assert bench.serve() == [index]
        assert driver.used() == [(head, 5)]
    assert bench.kvm.history[-1] == f"line {GSI} 1"


@pytest.mark.parametrize(
    ("written", "status"),
    [
        ([4], 0),
        ([2], 0),
        ([1, 5], 1),
        ([1, 3, 7], 3),
        ([1, 3, 11], 3),
        ([1, 3, 1], 3),
        ([15], 3),
        ([0x100], 0),
        ([0x81], 0x81),
    ],
)
def test_steps_out_of_order_are_not_taken(bench, written, status):
    for value in written:
        bench.status(value)
    assert bench.status() == status
    assert not bench.device.active


def test_features_ok_needs_version_1_and_no_more_than_is_offered(bench):
    bench.status(3)
    for features in (0, 1 << 29, VERSION_1 | 1 << 5):
        bench.features(features)
        assert bench.status(11) == 3
    bench.features(VERSION_1 | 1 << 29)
    assert bench.status(11) == 11
    bench.features(VERSION_1)
    assert bench.device.state.acked == VERSION_1 | 1 << 29


def test_queues_begin_at_their_maximum_and_take_powers_of_two_below_it(bench):
    for index, size in enumerate(Echo.queue_sizes):
        bench.write(0x30, index)
        assert (bench.read(0x34), bench.device.state.queues[index].size, bench.read(0x44)) == (size, size, 0)
    for refused in (0, 3, 16, 1 << 20):
        bench.write(0x38, refused)
        assert bench.device.state.queues[1].size == 8
    bench.write(0x38, 2)
    assert bench.device.state.queues[1].size == 2


@pytest.mark.parametrize("index", [2, 0xFFFF_FFFF])
def test_queue_that_does_not_exist_reads_as_unavailable_and_takes_nothing(bench, index):
    bench.write(0x30, index)
    before = encoded(bench.save())
    assert (bench.read(0x34), bench.read(0x44)) == (0, 0)
    for register in (0x38, 0x44, 0x80, 0x94, 0xA0, 0xC0):
        bench.write(register, 1)
    bench.write(0x44, 0)
    bench.write(0x50, index)
    assert encoded(bench.save()) == before
    assert bench.serve() == []
    assert bench.transport.faults == 8


def test_queue_made_not_ready_is_as_fresh_and_may_be_ready_again(bench):
    drivers = bench.start()
    bench.write(0x30, 0)
    bench.write(0x44, 0)
    assert bench.read(0x44) == 0
    assert bench.device.state.queues[0] == echo_state().queues[0]
    drivers[0].fresh()
    bench.queue(0, drivers[0])
    head = drivers[0].add(b"on", 2)
    bench.write(0x50, 0)
    bench.serve()
    assert drivers[0].used() == [(head, 2)]


def test_queue_is_reset_by_its_register_when_that_was_negotiated(bench):
    bench.write(0x80, 0x1000)
    bench.write(0xC0, 1)
    assert bench.device.state.queues[0].desc == 0x1000
    bench.start()
    bench.write(0x30, 0)
    bench.write(0xC0, 1)
    assert (bench.read(0xC0), bench.read(0x44)) == (0, 0)
    assert bench.device.state.queues[0] == echo_state().queues[0]


def test_line_is_high_while_there_are_causes(bench):
    drivers = bench.start()
    bench.kvm.history.clear()
    for _ in range(2):
        drivers[0].add(b"x", 1)
        bench.device.kick(0)
    bench.device.interrupt.config()
    assert bench.read(0x60) == 3
    assert bench.read(0x60) == 3, "reading clears nothing"
    bench.write(0x64, 1)
    assert bench.read(0x60) == 2
    assert bench.kvm.history == [f"line {GSI} 1"]
    bench.write(0x64, 2)
    assert bench.kvm.history == [f"line {GSI} 1", f"line {GSI} 0"]


def test_configuration_space_takes_any_width_and_its_generation_counts_changes(bench):
    assert [bench.read(0x101, n) for n in (1, 2, 4)] == [2, 0x302, 0x5040302]
    bench.write(0x100, 0x77, 1)
    assert bench.read(0x100, 1) == 0x77
    assert bench.read(0xFFC) == 0xFFFF_FFFF
    bench.device.interrupt.config()
    assert (bench.read(0xFC), bench.read(0x60)) == (1, 0), "no interrupt before DRIVER_OK"


@pytest.mark.parametrize("length", [1, 2, 8])
def test_registers_of_another_width_read_as_ones_and_take_nothing(bench, length):
    before = encoded(bench.save())
    for offset in (0, 0x14, 0x70, 0x50, 0x44):
        assert bench.read(offset, length) == (1 << 8 * length) - 1
        bench.write(offset, 1, length)
    assert encoded(bench.save()) == before
    assert bench.transport.faults == 10


def test_holes_and_unaligned_offsets_read_as_ones(bench):
    for offset in (0x018, 0x048, 0x054, 0x002, 0x071, 0x0F8):
        assert bench.read(offset) == 0xFFFF_FFFF
    for offset in (0x014, 0x020, 0x030, 0x050, 0x064):
        assert bench.read(offset) == 0xFFFF_FFFF, "only written"
    assert bench.transport.faults == 11


def test_broken_ring_sets_needs_reset_and_raises_the_line(bench):
    drivers = bench.start()
    drivers[0].put16(drivers[0].avail + 2, 0x8000)
    bench.write(0x50, 0)
    bench.serve()
    assert (bench.status(), bench.read(0x60)) == (0x4F, 2)
    assert bench.kvm.levels[GSI] == 1
    assert bench.status(0) == 0
    assert (bench.read(0x60), bench.kvm.levels[GSI]) == (0, 0), "reset takes the line down"


def test_reset_keeps_the_generation_and_forgets_the_rest(bench):
    bench.start()
    bench.device.interrupt.config()
    bench.status(0)
    assert bench.transport.state == VirtioMmioState(address=BASE, gsi=GSI, config_generation=1)
    assert bench.device.state == echo_state()
    assert bench.kvm.doorbells == {}


def test_doorbells_match_the_queue_number_and_are_armed_by_driver_ok(bench):
    assert bench.kvm.doorbells == {}
    bench.start()
    assert bench.kvm.doorbells == doorbells(bench)


def test_doorbells_that_cannot_be_armed_come_by_way_of_the_bus(bench):
    bench.kvm.refuse["add"] = 0
    drivers = bench.start()
    assert bench.kvm.doorbells == {}
    head = drivers[1].add(b"slowly", 9)
    bench.write(0x50, 1)
    assert bench.serve() == [1]
    assert drivers[1].used() == [(head, 6)]


def test_range_and_line_are_claimed_and_given_back(bench):
    claims = [(claim.pool, claim.start, claim.length, claim.owner) for claim in bench.resources.save().claims]
    assert claims == [("gsi-legacy", GSI, 1, OWNER), ("mmio32", BASE, 0x1000, OWNER)]
    with pytest.raises(ConfigError, match="is taken by virtio-mmio/a"):
        VirtioMmio.restore(VirtioMmioState(address=BASE, gsi=GSI), bench.args())
    bench.close()
    assert bench.resources.save().claims == []
    assert bench.read(0) == 0xFFFF_FFFF
    bench.transport = VirtioMmio.restore(VirtioMmioState(address=BASE, gsi=GSI), bench.args())


def test_transport_whose_line_is_taken_gives_its_range_back(memory):
    bench = Bench(memory)
    bench.close()
    bench.resources.claim("gsi-legacy", GSI, 1, "another")
    with pytest.raises(ConfigError, match="another"):
        VirtioMmio.restore(VirtioMmioState(address=BASE, gsi=GSI), bench.args())
    assert [claim.owner for claim in bench.resources.save().claims] == ["another"]


def test_wiring_that_fails_raises(bench, memory):
    bench.start()
    saved = bench.save()
    other = Bench(memory, saved)
    other.transport.unwire()
    other.kvm.refuse["add"] = 1
    with pytest.raises(HostError):
        other.transport.wire()
    assert other.kvm.doorbells == {}
    other.close()


# Snapshots


def test_snapshot_at_every_step_of_the_status_machine_goes_on_where_it_was(memory):
    for taken_at in range(STEPS + 1):
        bench = Bench(memory)
        drivers = bench.drivers()
        steps = [*bench.steps(drivers)]
        assert len(steps) == STEPS
        for step in steps[:taken_at]:
            step()
        saved = bench.save()
        assert invariants(saved[1], OWNER) == []
        assert agrees(saved[1], OWNER, saved[0], "virtio-rng/a", RAM) == []
        bench.close()
        other = Bench(memory, saved)
        assert encoded(other.save()) == encoded(saved), f"after step {taken_at}"
        for step in [*other.steps(drivers)][taken_at:]:
            step()
        head = drivers[0].add(b"restored", 8)
        other.write(0x50, 0)
        other.serve()
        assert drivers[0].used() == [(head, 8)]
        assert other.kvm.doorbells == doorbells(other)
        other.close()


def test_restore_leaves_the_line_alone_until_resync_drives_it_again(memory):
    bench = Bench(memory)
    drivers = bench.start()
    drivers[0].add(b"x", 1)
    bench.device.kick(0)
    saved = bench.save()
    bench.close()
    other = Bench(memory)
    other.close()
    other.kvm.history.clear()
    other.transport = VirtioMmio.restore(saved[1], other.args())
    assert other.kvm.history == []
    other.transport.resync()
    assert other.kvm.history == [f"line {GSI} 1"]
    other.write(0x64, 1)
    assert other.kvm.history[-1] == f"line {GSI} 0"
    other.close()


def test_doorbell_rung_but_not_served_is_served_after_a_restore(bench, memory):
    drivers = bench.start()
    head = drivers[0].add(b"rung", 4)
    bench.write(0x50, 0)
    other = Bench(memory, bench.save())
    other.device.run()
    assert drivers[0].used() == [(head, 4)]
    assert other.kvm.levels[GSI] == 1
    other.close()


@pytest.mark.parametrize(
    ("field", "value"), [("status", 8), ("status", 0x1_0000), ("address", BASE + 4), ("interrupt_status", 4)]
)
def test_invariants_name_what_no_transport_could_hold(field, value):
    state = VirtioMmioState(address=BASE, gsi=GSI)
    assert not invariants(state, OWNER)
    setattr(state, field, value)
    assert {finding.path for finding in invariants(state, OWNER)} == {field}


def test_disagreement_of_transport_and_device_is_found(bench):
    bench.start()
    device, transport = bench.save()
    device.broken = True
    device.acked |= 1 << 29
    found = agrees(transport, OWNER, device, "virtio-rng/a", RAM)
    assert [f"{finding.component}.{finding.path}" for finding in found] == ["virtio-rng/a.acked", f"{OWNER}.status"]


# Nonsense


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    accesses=st.lists(
        st.tuples(
            st.booleans(),
            st.integers(0, 0x40).map(lambda word: 4 * word) | st.integers(0, 0xFFF),
            st.sampled_from([1, 2, 4, 4, 4, 8]),
            st.integers(0, 16) | st.sampled_from([0x1000, 0xFFFF_FFFF]) | st.integers(0, (1 << 64) - 1),
        ),
        max_size=60,
    ),
    started=st.booleans(),
)
def test_random_accesses_never_raise_and_the_state_survives_them(memory, accesses, started):
    bench = Bench(memory)
    try:
        if started:
            bench.start()
        for write, offset, length, value in accesses:
            if write:
                bench.write(offset, value & ((1 << 8 * length) - 1), length)
            else:
                assert 0 <= bench.read(offset, length) < 1 << 8 * length
            bench.serve()
        saved = bench.save()
        assert invariants(saved[1], OWNER) == []
        assert agrees(saved[1], OWNER, saved[0], "virtio-rng/a", RAM) == []
        assert bench.kvm.levels.get(GSI, 0) == bool(saved[1].interrupt_status)
        other = Bench(memory, saved)
        assert encoded(other.save()) == encoded(saved)
        other.device.run()
        other.close()
    finally:
        bench.close()
