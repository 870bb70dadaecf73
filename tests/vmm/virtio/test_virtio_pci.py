"""virtio over PCI: what a driver finds, what it may write in which order, interrupts, doorbells, moves. VIRTIO 1.3, 4.1."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapkit import host
from snapkit.errors import HostError, InternalError
from snapkit.state.codec import encode
from snapkit.state.virtio_pci import VirtioPciState, agrees, invariants
from snapkit.units import MIB
from snapkit.vmm.virtio.pci_layout import fresh
from tests.vmm.virtio.echo import Echo, echo_state
from tests.vmm.virtio.pci_bench import BAR0, COMMON, CONFIG, ELSEWHERE, GSIS, ISR, NOTIFY, PBA, TABLE, Bench

RAM = [(0, MIB)]
VERSION_1, RING_RESET = 1 << 32, 1 << 40


@pytest.fixture
def bench(memory):
    made = Bench(memory)
    yield made
    made.close()


def encoded(saved):
    device, parts = saved
    return [encode(state) for state in (device, *parts)]


# What there is


def test_function_says_what_it_is(bench):
    read = bench.function.read_config
    assert (read(0, 2), read(2, 2), read(8, 1)) == (0x1AF4, 0x1044, 1)
    assert read(0x10, 4) & 0xF == 4, "memory, 64 bits, not prefetchable"
    assert read(0x10, 4) & ~0xF | read(0x14, 4) << 32 == BAR0


def test_five_capabilities_and_msix_tell_where_everything_is(bench):
    found = {}
    for cfg_type in (1, 2, 3, 4, 5):
        at = bench.capability(9, cfg_type)
        found[cfg_type] = [bench.function.read_config(at + n, 1) for n in (2, 4)] + [
            bench.function.read_config(at + n, 4) for n in (8, 12)
        ]
    assert found == {
        1: [16, 0, 0, 0x1000],
        2: [20, 0, 0x6000, 0x1000],
        3: [16, 0, 0x2000, 0x1000],
        4: [16, 0, 0x4000, 0x1000],
        5: [20, 0, 0, 0],
    }
    assert bench.function.read_config(bench.capability(9, 2) + 16, 4) == 4, "notify_off_multiplier"
    msix = bench.capability(0x11)
    assert bench.function.read_config(msix + 2, 2) == 2, "three vectors: two queues and one"
    assert bench.function.read_config(msix + 4, 4) == 0x8000
    assert bench.function.read_config(msix + 8, 4) == 0x48000


def test_fresh_transport_reads_as_after_reset(bench):
    bench.decode()
    assert bench.status() == 0
    assert bench.read(COMMON + 0x12, 2) == 2, "num_queues"
    assert bench.read(COMMON + 0x10, 2) == 0xFFFF
    for index, size in enumerate(Echo.queue_sizes):
        bench.write(COMMON + 0x16, 2, index)
        assert bench.read(COMMON + 0x18, 2) == size
        assert bench.read(COMMON + 0x1A, 2) == 0xFFFF
        assert bench.read(COMMON + 0x1C, 2) == 0
        assert bench.read(COMMON + 0x1E, 2) == index
        assert [bench.read(COMMON + n, 8) for n in (0x20, 0x28, 0x30)] == [0, 0, 0]
    assert bench.transport.faults == 0


def test_offered_features_are_read_word_by_word(bench):
    bench.decode()
    words = []
    for select in (0, 1, 2, 0xFFFF_FFFF):
        bench.write(COMMON, 4, select)
        assert bench.read(COMMON, 4) == select
        words.append(bench.read(COMMON + 4, 4))
    assert words == [1 << 28 | 1 << 29, 1 | 1 << 8, 0, 0]


def test_gsis_are_one_more_than_queues():
    with pytest.raises(InternalError, match="has 2 GSIs, must have 3"):
        fresh("virtio-rng", echo_state(), slot=1, address=BAR0, gsis=[24, 25])


# Status


def test_driver_brings_the_device_up_and_is_served(bench):
    drivers = bench.start()
    assert bench.status() == 15
    assert bench.device.state.acked == VERSION_1 | RING_RESET
    for index, driver in enumerate(drivers):
        head = driver.add(b"hello", 9)
        bench.write(NOTIFY + 4 * index, 2, index)
        assert bench.serve() == [index]
        assert driver.used() == [(head, 5)]
        assert [bench.kvm.interrupts(gsi) for gsi in GSIS] == [0, *(int(n == index) for n in (0, 1))]


@pytest.mark.parametrize(
    ("written", "status"),
    [
        ([4], 0),
        ([2], 0),
        ([8], 0),
        ([1, 5], 1),
        ([1, 9], 1),
        ([1, 3, 7], 3),
        ([3], 3),
        ([1, 3, 1], 3),
        ([1, 0x11], 1),
        ([0x20], 0),
        ([0x40], 0),
        ([1, 0x81], 0x81),
        ([1, 3, 11], 3),
        ([15], 3),
        ([1, 3, 0], 0),
    ],
)
def test_steps_out_of_order_are_not_taken(bench, written, status):
    bench.decode()
    for value in written:
        bench.status(value)
    assert bench.status() == status, "no features are written here, so FEATURES_OK is never taken"
    assert not bench.device.active


@pytest.mark.parametrize(
    ("features", "taken"),
    [(VERSION_1, True), (VERSION_1 | 1 << 29, True), (1 << 29, False), (VERSION_1 | 1, False), (0, False)],
)
def test_features_ok_is_refused_for_features_not_offered_or_without_version_1(bench, features, taken):
    bench.decode()
    bench.status(3)
    bench.features(features)
    assert bench.status(11) == (11 if taken else 3)
    assert bench.device.state.acked == (features if taken else 0)
    bench.features(VERSION_1)
    assert bench.status(11) == 11, "it may choose again"


def test_features_stay_from_features_ok_on(bench):
    bench.decode()
    bench.status(3)
    bench.features(VERSION_1)
    bench.status(11)
    bench.features(VERSION_1 | 1 << 29)
    bench.write(COMMON + 8, 4, 0)
    assert bench.read(COMMON + 0xC, 4) == 0
    assert bench.device.state.acked == VERSION_1


def test_words_of_features_that_nobody_has_may_be_cleared(bench):
    bench.decode()
    for select in (2, 3):
        bench.write(COMMON + 8, 4, select)
        bench.write(COMMON + 0xC, 4, 0)
        assert bench.read(COMMON + 0xC, 4) == 0
    assert bench.transport.faults == 0
    bench.write(COMMON + 0xC, 4, 1)
    assert bench.transport.faults == 1


def test_driver_says_driver_ok_only_once(bench):
    bench.start()
    bench.status(15)
    assert bench.device.told == ["activated"]
    bench.status(15 | 0x80)
    assert bench.status() == 0x8F


def test_reset_forgets_the_driver_and_it_may_come_again(bench):
    drivers = bench.start()
    drivers[0].add(b"x", 1)
    bench.write(NOTIFY, 2, 0)
    bench.device.interrupt.config()
    assert bench.status(0) == 0
    assert bench.device.save() == echo_state()
    assert bench.kvm.doorbells == {}
    assert bench.transport.state == VirtioPciState(queue_msix_vectors=[0xFFFF] * 2, config_generation=1)
    bench.serve()
    assert drivers[0].used() == []
    for driver in drivers:
        driver.fresh()
    drivers = bench.start()
    head = drivers[1].add(b"again", 5)
    bench.write(NOTIFY + 4, 2, 1)
    bench.serve()
    assert drivers[1].used() == [(head, 5)]


def test_broken_ring_sets_needs_reset_and_sends_the_configuration_interrupt(bench):
    drivers = bench.start()
    drivers[0].put16(drivers[0].avail + 2, 0x8000)
    bench.write(NOTIFY, 2, 0)
    bench.serve()
    assert bench.status() == 0x4F
    assert bench.kvm.interrupts(GSIS[0]) == 1
    assert bench.read(ISR, 1) == 2
    assert bench.status(0x4F) == 0x4F
    assert bench.status(0) == 0
    assert not bench.device.state.broken


def test_driver_ok_with_rings_outside_of_ram_breaks_the_device(bench):
    drivers = bench.drivers()
    drivers[1].desc = 1 << 40
    for step in bench.steps(drivers):
        step()
    assert bench.status() == 0x4F
    assert bench.kvm.interrupts(GSIS[0]) == 1


# Queues


def test_queue_size_takes_powers_of_two_within_the_maximum(bench):
    bench.decode()
    for size in (0, 3, 17, 32, 0xFFFF):
        bench.write(COMMON + 0x18, 2, size)
        assert bench.read(COMMON + 0x18, 2) == 16
    bench.write(COMMON + 0x18, 2, 4)
    assert bench.read(COMMON + 0x18, 2) == 4
    assert bench.transport.faults == 5


def test_size_and_places_stay_while_a_queue_is_ready(bench):
    bench.start()
    bench.write(COMMON + 0x16, 2, 0)
    before = bench.device.save()
    for register, length in ((0x18, 2), (0x20, 4), (0x24, 4), (0x28, 8), (0x34, 4), (0x1C, 2)):
        bench.write(COMMON + register, length, 2)
    assert bench.device.save() == before
    assert bench.transport.faults == 6


def test_addresses_are_written_whole_or_by_halves(bench):
    bench.decode()
    bench.write(COMMON + 0x20, 8, 0x1122_3344_5566_7788)
    assert (bench.read(COMMON + 0x20, 4), bench.read(COMMON + 0x24, 4)) == (0x5566_7788, 0x1122_3344)
    bench.write(COMMON + 0x24, 4, 1)
    assert bench.read(COMMON + 0x20, 8) == 0x1_5566_7788
    assert bench.device.state.queues[0].desc == 0x1_5566_7788


@pytest.mark.parametrize("index", [2, 3, 0x7FFF, 0xFFFF])
def test_queue_that_does_not_exist_reads_as_unavailable_and_takes_nothing(bench, index):
    bench.decode()
    bench.write(COMMON + 0x16, 2, index)
    before = encoded(bench.save())
    assert [bench.read(COMMON + at, 2) for at in (0x18, 0x1A, 0x1C, 0x1E)] == [0, 0xFFFF, 0, 0]
    assert bench.read(COMMON + 0x20, 8) == 0
    for register, length in ((0x18, 2), (0x1A, 2), (0x1C, 2), (0x20, 4), (0x34, 4), (0x3A, 2)):
        bench.write(COMMON + register, length, 1)
    assert encoded(bench.save()) == before
    assert bench.transport.faults == 6


def test_queue_enable_takes_no_zero(bench):
    bench.start()
    bench.write(COMMON + 0x1C, 2, 0)
    assert bench.read(COMMON + 0x1C, 2) == 1


def test_one_queue_is_reset_and_enabled_again_while_the_other_works(bench):
    drivers = bench.start()
    bench.write(COMMON + 0x16, 2, 0)
    bench.write(COMMON + 0x3A, 2, 1)
    assert [bench.read(COMMON + at, 2) for at in (0x3A, 0x1C, 0x18, 0x1A)] == [0, 0, 16, 0xFFFF]
    drivers[0].fresh()
    bench.queue(0, drivers[0])
    heads = [driver.add(b"on", 2) for driver in drivers]
    bench.write(NOTIFY, 2, 0)
    bench.write(NOTIFY + 4, 2, 1)
    assert bench.serve() == [0, 1]
    assert [driver.used() for driver in drivers] == [[(head, 2)] for head in heads]


def test_queue_reset_needs_its_feature(bench):
    bench.decode()
    bench.write(COMMON + 0x20, 4, 0x1000)
    bench.write(COMMON + 0x3A, 2, 1)
    assert bench.device.state.queues[0].desc == 0x1000
    assert bench.transport.faults == 1


# Interrupts


@pytest.mark.parametrize("register", [0x10, 0x1A])
def test_vector_out_of_range_reads_back_no_vector(bench, register):
    bench.decode()
    for written, read in ((2, 2), (3, 0xFFFF), (1, 1), (0xFFFE, 0xFFFF), (0, 0), (0xFFFF, 0xFFFF)):
        bench.write(COMMON + register, 2, written)
        assert bench.read(COMMON + register, 2) == read


def test_interrupts_go_by_queue_index_to_the_vector_that_the_driver_named(bench):
    drivers = bench.start()
    bench.write(COMMON + 0x16, 2, 1)
    bench.write(COMMON + 0x1A, 2, 0)
    for _ in range(3):
        drivers[1].add(b"heads count up", 1)
        bench.device.kick(1)
        assert bench.kvm.interrupts(GSIS[0]) == 1
    assert bench.kvm.interrupts(GSIS[2]) == 0
    bench.write(COMMON + 0x1A, 2, 0xFFFF)
    drivers[1].add(b"x", 1)
    bench.device.kick(1)
    assert [bench.kvm.interrupts(gsi) for gsi in GSIS] == [0, 0, 0]
    assert bench.read(ISR, 1) == 0


def test_masked_vector_pends_and_is_sent_when_unmasked(bench):
    drivers = bench.start()
    bench.write(TABLE + 16 + 12, 4, 1)
    drivers[0].add(b"x", 1)
    bench.device.kick(0)
    assert bench.read(PBA, 8) == 2
    assert GSIS[1] not in bench.kvm.irqfds
    bench.write(TABLE + 16 + 12, 4, 0)
    assert bench.read(PBA, 8) == 0
    assert bench.kvm.interrupts(GSIS[1]) == 1


def test_without_msix_causes_are_in_the_isr_status_which_reading_clears(bench):
    drivers = bench.start()
    bench.function.write_config(bench.capability(0x11) + 2, 2, 0)
    drivers[0].add(b"x", 1)
    bench.device.kick(0)
    bench.device.interrupt.config()
    assert [bench.read(ISR, 1) for _ in range(2)] == [3, 0]
    assert bench.read(PBA, 8) == 0


def test_configuration_change_counts_its_generation_and_interrupts_from_driver_ok_on(bench):
    bench.decode()
    bench.device.interrupt.config()
    assert (bench.read(COMMON + 0x15, 1), bench.read(ISR, 1)) == (1, 0)
    bench.start()
    bench.device.interrupt.config()
    assert (bench.read(COMMON + 0x15, 1), bench.read(ISR, 1)) == (2, 2)
    assert bench.kvm.interrupts(GSIS[0]) == 1
    bench.transport.state.config_generation = 0xFF
    bench.device.interrupt.config()
    assert bench.read(COMMON + 0x15, 1) == 0


def test_device_configuration_is_read_and_written_at_any_width(bench):
    bench.decode()
    assert [bench.read(CONFIG + 1, n) for n in (1, 2, 3, 4)] == [2, 0x302, 0x40302, 0x5040302]
    bench.write(CONFIG, 1, 0x99)
    assert bench.read(CONFIG, 1) == 0x99
    assert bench.read(CONFIG + 8, 4) == 0xFFFF_FFFF
    assert bench.device.faults == 1


# Doorbells and moves


def doorbells(bench, base):
    return {(base + 0x6000 + 4 * index, None, 0): fd for index, fd in enumerate(bench.transport.doorbell_fds())}


def test_doorbells_are_armed_by_driver_ok_and_gone_with_reset(bench):
    drivers = bench.drivers()
    *before, last = bench.steps(drivers)
    for step in before:
        step()
    assert bench.kvm.doorbells == {}
    last()
    assert bench.kvm.doorbells == doorbells(bench, BAR0)
    bench.status(0)
    assert bench.kvm.doorbells == {}


def test_doorbells_that_cannot_be_armed_come_by_way_of_the_bus(bench):
    bench.kvm.refuse["add"] = 1
    drivers = bench.start()
    assert bench.kvm.doorbells == {}, "the first of the two was taken back"
    assert bench.transport.faults == 1
    head = drivers[0].add(b"slowly", 9)
    for length in (1, 2, 4):
        bench.write(NOTIFY, length, 0)
    assert bench.serve() == [0]
    assert drivers[0].used() == [(head, 6)]


def test_stores_beside_the_doorbells_ring_nothing(bench):
    bench.start()
    for offset in (1, 2, 3, 8, 0x100, 0xFFC):
        bench.write(NOTIFY + offset, 2, 0)
    assert bench.serve() == []
    assert bench.transport.faults == 6


def test_moved_bar_takes_its_doorbells_along_new_ones_first(bench):
    drivers = bench.start()
    bench.kvm.history.clear()
    bench.move(ELSEWHERE)
    assert [text.split()[0] for text in bench.kvm.history] == ["add", "add", "remove", "remove"]
    assert bench.kvm.doorbells == doorbells(bench, ELSEWHERE)
    assert bench.status(base=ELSEWHERE) == 15
    assert bench.read(BAR0 + 0x14, 1) == 0xFF
    head = drivers[0].add(b"there", 5)
    bench.write(ELSEWHERE + 0x6000, 2, 0)
    bench.serve()
    assert drivers[0].used() == [(head, 5)]


@pytest.mark.parametrize("second", [0, 1])
def test_move_whose_doorbells_cannot_be_armed_leaves_everything_as_it_was(bench, second):
    drivers = bench.start()
    bench.kvm.refuse["add"] = second
    bench.move(ELSEWHERE)
    assert bench.kvm.doorbells == doorbells(bench, BAR0)
    assert bench.read(ELSEWHERE + 0x14, 1) == 0xFF
    head = drivers[0].add(b"here", 4)
    bench.write(NOTIFY, 2, 0)
    bench.serve()
    assert drivers[0].used() == [(head, 4)]


def test_decoding_turned_off_takes_the_doorbells_and_on_brings_them_back(bench):
    bench.start()
    bench.decode(on=False)
    assert bench.kvm.doorbells == {}
    bench.move(ELSEWHERE)
    bench.decode()
    assert bench.kvm.doorbells == doorbells(bench, ELSEWHERE)


def test_wiring_that_fails_raises_and_leaves_no_doorbell(bench, memory):
    bench.start()
    saved = bench.save()
    bench.close()
    other = Bench(memory, saved)
    other.transport.unwire()
    assert other.kvm.doorbells == {}
    other.kvm.refuse["add"] = 1
    with pytest.raises(HostError):
        other.transport.wire()
    assert other.kvm.doorbells == {}
    other.close()


def test_closing_gives_everything_back(bench, memory):
    bench.start()
    calls = bench.transport.doorbell_fds()
    bench.close()
    assert len(calls) == 2
    assert bench.kvm.doorbells == bench.kvm.irqfds == {}
    assert bench.resources.save().claims == []
    assert bench.bus.read(BAR0 + 0x14, 1) == 0xFF
    Bench(memory).close()


def test_transport_that_cannot_be_made_leaves_no_fd(memory):
    made = []

    def refuse(call, _arguments):
        if call == "eventfd":
            made.append(call)
            if len(made) == 2:
                raise OSError(24, "too many")

    with host.inject(refuse), pytest.raises(HostError, match="eventfd"):
        Bench(memory)
    assert made == ["eventfd", "eventfd"]


# The window in configuration space


def window(bench, offset, length, value=None, *, bar=0, access=4):
    at = bench.capability(9, 5)
    bench.function.write_config(at + 4, 1, bar)
    bench.function.write_config(at + 8, 4, offset)
    bench.function.write_config(at + 12, 4, length)
    if value is not None:
        bench.function.write_config(at + 16, access, value)
        return None
    return bench.function.read_config(at + 16, access)


def test_window_reaches_every_register_with_decoding_off(bench):
    window(bench, 0x14, 1, 1)
    window(bench, 0x14, 1, 3)
    assert window(bench, 0x14, 1) == 3
    window(bench, 0x16, 2, 1)
    assert window(bench, 0x18, 2) == 8
    assert window(bench, 0x4000, 4) == 0x04030201
    window(bench, 0x8000, 4, 0xFEE0_1000)
    assert window(bench, 0x8000, 4) == 0xFEE0_1000
    bench.decode()
    assert bench.status() == 3


@pytest.mark.parametrize(
    ("offset", "length", "bar"),
    [(0x14, 0, 0), (0x14, 3, 0), (0x14, 8, 0), (0x15, 2, 0), (0x80000, 1, 0), (0xFFFF_FFFF, 1, 0), (0x14, 1, 1)],
)
def test_window_that_makes_no_sense_reads_ones_and_writes_nothing(bench, offset, length, bar):
    assert window(bench, offset, length, bar=bar) == 0xFFFF_FFFF
    window(bench, offset, length, 1, bar=bar)
    bench.decode()
    assert bench.status() == 0
    assert bench.transport.faults == 2


def test_window_survives_a_snapshot(bench, memory):
    window(bench, 0x14, 1, 1)
    other = Bench(memory, bench.save())
    assert other.function.read_config(other.capability(9, 5) + 16, 1) == 1
    other.close()


# Snapshots

STEPS = 10
"""How many `Bench.steps` gives."""


def test_driver_takes_the_steps_that_are_counted_here(bench):
    assert len(list(bench.steps(bench.drivers()))) == STEPS


def test_snapshot_at_every_step_of_the_status_machine_goes_on_where_it_was(memory):
    for taken_at in range(STEPS + 1):
        bench = Bench(memory)
        drivers = bench.drivers()
        for step in [*bench.steps(drivers)][:taken_at]:
            step()
        saved = bench.save()
        assert invariants(saved[1].transport, "virtio-pci/a") == []
        assert agrees(saved[1].transport, "virtio-pci/a", saved[0], "virtio-rng/a", RAM) == []
        bench.close()
        other = Bench(memory, saved)
        assert encoded(other.save()) == encoded(saved), f"after step {taken_at}"
        for number, step in enumerate(other.steps(drivers)):
            if number >= taken_at:
                step()
        head = drivers[0].add(b"restored", 8)
        other.write(NOTIFY, 2, 0)
        other.serve()
        assert drivers[0].used() == [(head, 8)]
        assert other.kvm.interrupts(GSIS[1]) == 1
        assert other.kvm.doorbells == doorbells(other, BAR0)
        other.close()


def test_doorbell_rung_but_not_served_is_served_after_a_restore(bench, memory):
    drivers = bench.start()
    head = drivers[0].add(b"rung", 4)
    bench.write(NOTIFY, 2, 0)
    saved = bench.save()
    bench.close()
    other = Bench(memory, saved)
    assert drivers[0].used() == [], "nothing acts before the machine runs"
    other.device.run()
    assert drivers[0].used() == [(head, 4)]
    assert other.kvm.interrupts(GSIS[1]) == 1
    other.close()


def test_broken_device_is_restored_broken_and_repaired_by_reset(bench, memory):
    drivers = bench.start()
    drivers[0].put16(drivers[0].avail + 2, 0x8000)
    bench.device.kick(0)
    saved = bench.save()
    assert agrees(saved[1].transport, "virtio-pci/a", saved[0], "virtio-rng/a", RAM) == []
    bench.close()
    other = Bench(memory, saved)
    assert other.status() == 0x4F
    served = other.device.active
    other.status(0)
    for driver in drivers:
        driver.fresh()
    assert other.start()
    assert (served, other.device.active) == (False, True)
    other.close()


def test_restored_device_whose_rings_lie_outside_of_ram_is_broken_not_served(bench, memory):
    bench.start()
    saved = bench.save()
    saved[0].queues[0].desc = 1 << 40
    found = agrees(saved[1].transport, "virtio-pci/a", saved[0], "virtio-rng/a", RAM)
    assert [str(finding) for finding in found] == [
        "virtio-rng/a.queues[0].desc is 0x10000000000, must be the start of 0x100 bytes in RAM"
    ]
    other = Bench(memory, saved)
    assert other.status() == 0x4F
    other.close()


def test_state_of_another_number_of_queues_is_refused(bench):
    state = bench.transport.save()
    state.queue_msix_vectors.append(0)
    found = agrees(state, "virtio-pci/a", bench.device.state, "virtio-rng/a", RAM)
    assert [finding.path for finding in found] == ["queue_msix_vectors"]
    with pytest.raises(InternalError, match="tells of 3 queues, virtio-rng has 2"):
        type(bench.transport)(state, device=bench.device, function=bench.function, msix=bench.msix, doorbells=bench.kvm)


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("device_status", 4, "device_status"),
        ("device_status", 0x10, "device_status"),
        ("config_msix_vector", 3, "config_msix_vector"),
        ("queue_msix_vectors", [0, 7], "queue_msix_vectors[1]"),
        ("isr_status", 4, "isr_status"),
    ],
)
def test_invariants_name_what_no_transport_could_hold(field, value, path):
    state = VirtioPciState(queue_msix_vectors=[0xFFFF, 0])
    assert not invariants(state, "virtio-pci/a")
    setattr(state, field, value)
    assert {finding.path for finding in invariants(state, "virtio-pci/a")} == {path}


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda device, _: setattr(device, "acked", 0), "acked"),
        (lambda device, _: setattr(device, "broken", True), "device_status"),
        (lambda _, transport: setattr(transport, "driver_features", [0, 0]), "acked"),
        (lambda device, _: setattr(device.queues[1], "device", 2), "queues[1].device"),
    ],
)
def test_disagreement_of_transport_and_device_is_found(bench, change, path):
    bench.start()
    device, parts = bench.save()
    change(device, parts.transport)
    found = agrees(parts.transport, "virtio-pci/a", device, "virtio-rng/a", RAM)
    assert [finding.path for finding in found] == [path]


# Nonsense

OFFSETS = st.one_of(
    st.integers(0, 0x40),
    st.sampled_from([0x2000, 0x4000, 0x6000, 0x6004, 0x8000, 0x800C, 0x48000]),
    st.integers(0, 0x7FFFF),
)
ACCESSES = st.lists(
    st.tuples(
        st.booleans(),
        OFFSETS,
        st.sampled_from([1, 2, 3, 4, 5, 8]),
        st.one_of(st.integers(0, 16), st.sampled_from([0x1000, 0xFFFF, 0xFFFF_FFFF]), st.integers(0, (1 << 64) - 1)),
    ),
    max_size=60,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    accesses=ACCESSES,
    config=st.lists(st.tuples(st.integers(0, 255), st.sampled_from([1, 2, 4]), OFFSETS), max_size=20),
    started=st.booleans(),
)
def test_random_accesses_never_raise_and_the_state_survives_them(memory, accesses, config, started):
    bench = Bench(memory)
    try:
        if started:
            bench.start()
        bench.decode()
        for number, (write, offset, length, value) in enumerate(accesses):
            if write:
                bench.write(BAR0 + offset, length, value & ((1 << 8 * length) - 1))
            else:
                assert 0 <= bench.read(BAR0 + offset, length) < 1 << 8 * length
            if number < len(config):
                at, width, word = config[number]
                bench.function.write_config(at, width, word & ((1 << 8 * width) - 1))
                bench.function.read_config(at, width)
            bench.serve()
        saved = bench.save()
        assert invariants(saved[1].transport, "virtio-pci/a") == []
        assert agrees(saved[1].transport, "virtio-pci/a", saved[0], "virtio-rng/a", RAM) == []
        bench.close()
        other = Bench(memory, saved)
        assert encoded(other.save()) == encoded(saved)
        assert other.kvm.doorbells.keys() == (
            doorbells(other, other.function.decoded(0)).keys() if other.kvm.doorbells else set()
        )
        other.device.run()
        other.close()
    finally:
        bench.close()
