"""The base of every virtio device: activation, reset, failure, configuration space."""

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapkit.errors import InternalError
from snapkit.state.codec import encode
from snapkit.state.spec.virtio import BASE_FEATURES
from snapkit.state.virtio import invariants
from snapkit.vmm.virtio.device import fresh_queues
from snapkit.vmm.virtio.queue import Queue
from tests.vmm.virtio.driver import EVENT_IDX, VERSION_1, drive
from tests.vmm.virtio.echo import EXTRA, Echo, echo_state


@pytest.fixture
def device(memory):
    return Echo(echo_state(), memory=memory)


def test_fresh_queues_begin_at_their_maximum_size():
    assert [(queue.size, queue.max_size, queue.ready) for queue in fresh_queues((256, 16))] == [
        (256, 256, False),
        (16, 16, False),
    ]


def test_every_device_offers_version_1_indirect_descriptors_and_event_index():
    assert BASE_FEATURES == 1 << 32 | 1 << 28 | 1 << 29


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("indirect", [False, True])
def test_kick_serves_a_queue_and_interrupts_by_its_index(memory, device, event_idx, indirect):
    seen, drivers = drive(device, memory, event_idx=event_idx, indirect=indirect)
    head = drivers[1].add(b"echo", 8)
    drivers[1].kick()
    assert drivers[1].used() == [(head, 4)]
    assert drivers[1].answer(head) == b"echo\0\0\0\0"
    assert seen.queues == [1]
    assert drivers[0].used() == []


def test_kick_before_activation_after_reset_and_of_a_queue_that_is_not_ready_does_nothing(memory, device):
    device.kick(0)
    seen, drivers = drive(device, memory)
    drivers[0].add(b"x", 1)
    device.reset()
    drivers[0].kick()
    assert drivers[0].used() == []
    drivers[1].give(device.state.queues[1])
    device.activate()
    drivers[0].kick()
    assert (drivers[0].used(), seen.queues) == ([], [])


def test_run_serves_what_waits_in_every_queue(memory, device):
    seen, drivers = drive(device, memory)
    heads = [driver.add(b"waits", 5) for driver in drivers]
    device.run()
    assert [driver.used() for driver in drivers] == [[(head, 5)] for head in heads]
    assert seen.queues == [0, 1]


def test_features_are_accepted_within_what_is_offered_and_with_version_1(device):
    assert not device.accept(0)
    assert not device.accept(EVENT_IDX)
    assert not device.accept(VERSION_1 | 1 << 50)
    assert device.state.acked == 0
    assert device.accept(VERSION_1 | EXTRA)
    assert device.negotiated(EXTRA)
    assert not device.negotiated(EVENT_IDX)


def test_broken_ring_breaks_this_device_until_reset(memory, device):
    other = Echo(echo_state(), memory=memory)
    others, (mine, _) = drive(other, memory, base=0x20_0000, area_len=0x8_0000)
    seen, drivers = drive(device, memory, area_len=0x8_0000)
    drivers[0].put16(drivers[0].avail + 2, 1000)
    drivers[0].kick()
    assert (device.state.broken, device.active, seen.resets) == (True, False, 1)
    assert "queue 0: available index" in device.failure
    drivers[1].add(b"x", 1)
    drivers[1].kick()
    assert drivers[1].used() == [], "nothing is served any more"
    mine.add(b"x", 1)
    mine.kick()
    assert others.queues == [0], "another device goes on"
    device.activate()
    assert not device.active, "only a reset repairs it"
    device.reset()
    assert (device.state, device.failure) == (echo_state(), "")
    drivers[0].fresh()
    seen, drivers = drive(device, memory)
    drivers[0].add(b"again", 5)
    drivers[0].kick()
    assert seen.queues == [0]


def test_activation_with_a_ring_outside_of_ram_breaks_the_device(device):
    device.state.queues[1].ready = True
    device.state.queues[1].desc = 1 << 40
    device.activate()
    assert (device.state.broken, device.active) == (True, False)
    assert "activated" not in device.told


def test_type_is_told_of_what_ends_before_it_ends(memory, device):
    drive(device, memory)
    device.reset_queue(1)
    assert not device.queues[1].active
    device.reset()
    assert device.told == ["activated", "stopped 1", "stopped 0", "reset"]


def test_queue_that_becomes_ready_later_is_started_then(memory, device):
    _, drivers = drive(device, memory)
    device.reset_queue(1)
    drivers[1].fresh()
    drivers[1].give(device.state.queues[1])
    head = drivers[1].add(b"z", 1)
    drivers[1].kick()
    assert drivers[1].used() == []
    device.enable_queue(1)
    drivers[1].kick()
    assert drivers[1].used() == [(head, 1)]


def test_queue_made_ready_later_with_bad_rings_breaks_the_device(memory, device):
    drive(device, memory)
    device.reset_queue(1)
    device.state.queues[1].desc = 8
    device.enable_queue(1)
    assert device.state.broken


def test_a_driver_that_never_stops_adding_is_served_by_turns(memory, device):
    pushed = []

    class Watched(Queue):
        def push(self, head: int, written: int) -> None:
            super().push(head, written)
            pushed.append(head)
            eager.used()
            eager.add(b"x", 1)

    device.queues[1] = Watched(device.state.queues[1], memory)
    seen, (_, eager) = drive(device, memory)
    eager.add(b"x", 1)
    eager.kick()
    assert len(pushed) == 8, "as many as the queue has entries"
    assert seen.again == [1]


def test_configuration_space_reads_little_endian_and_as_ones_outside(device):
    assert device.read_config(0, 1) == 1
    assert device.read_config(0, 8) == 0x0807_0605_0403_0201
    assert device.read_config(6, 2) == 0x0807
    assert device.read_config(6, 4) == 0xFFFF_FFFF
    assert device.read_config(-1, 1) == 0xFF
    assert device.read_config(4096, 2) == 0xFFFF
    assert device.faults == 3
    device.write_config(0, 1, 0x1FF)
    assert device.read_config(0, 1) == 0xFF
    device.write_config(5, 1, 0)
    assert device.faults == 4


def test_device_of_another_number_of_queues_is_refused(memory):
    state = echo_state()
    del state.queues[1]
    with pytest.raises(InternalError, match="has 1 queues, must have 2"):
        Echo(state, memory=memory)


def test_state_saved_in_the_middle_goes_on_in_another_device(memory, device):
    _, drivers = drive(device, memory)
    done = drivers[0].add(b"done", 4)
    drivers[0].kick()
    rung = drivers[0].add(b"rung but not served", 30)
    saved = device.save()
    assert saved is not device.state
    assert saved.queues[0] is not device.state.queues[0]
    device.close()
    again = Echo(saved, memory=memory)
    again.activate()
    again.run()
    assert drivers[0].used() == [(done, 4), (rung, 19)]
    assert encode(again.save()) == encode(again.state)


def test_invariants_name_what_no_device_could_hold():
    state = echo_state()
    assert invariants(state, "virtio-rng/a", queues=2) == []
    state.acked = 1 << 29 | 1 << 3
    state.queues[1].size = 3
    found = [str(finding) for finding in invariants(state, "virtio-rng/a", queues=1)]
    assert found == [
        "virtio-rng/a.queues is a list of 2, must be 1",
        f"virtio-rng/a.acked is 0x20000008, must be within offered {state.offered:#x}",
        "virtio-rng/a.queues[1].size is 3, must be a power of two <= 8",
    ]
    state = echo_state()
    state.acked = 1 << 29
    assert [finding.path for finding in invariants(state, "virtio-rng/a")] == ["acked"]


def test_device_without_a_transport_fails_in_silence(memory):
    device = Echo(echo_state(), memory=memory)
    device.fail("no reason")
    device.interrupt.queue(0)
    device.interrupt.config()
    device.again(0)
    assert device.state.broken


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rounds=st.lists(
        st.tuples(
            st.integers(0, 1),
            st.lists(
                st.tuples(
                    st.integers(0, 0x3000) | st.integers(0, (1 << 64) - 1),
                    st.integers(0, 64) | st.integers(0, (1 << 32) - 1),
                    st.integers(0, 7),
                    st.integers(0, 17),
                ),
                min_size=1,
                max_size=16,
            ),
            st.integers(0, 3) | st.integers(0, 0xFFFF),
            st.integers(0, 0xFFFF),
        ),
        max_size=8,
    ),
    event_idx=st.booleans(),
    indirect=st.booleans(),
)
def test_random_rings_at_most_break_the_device(memory, rounds, event_idx, indirect):
    device = Echo(echo_state(), memory=memory)
    seen, drivers = drive(device, memory, event_idx=event_idx, indirect=indirect, area_len=0x1000)
    for index, table, ahead, wish in rounds:
        driver = drivers[index]
        memory.write(driver.desc, b"".join(struct.pack("<QIHH", *item) for item in table[: driver.size]))
        driver.put16(driver.avail + 2, device.state.queues[index].next_avail + ahead)
        driver.put16(driver.avail + 4 + 2 * driver.size, wish)
        device.run()
        assert device.active is not device.state.broken
        assert bool(seen.resets) is device.state.broken
        assert not invariants(device.save(), "virtio-rng/a")
