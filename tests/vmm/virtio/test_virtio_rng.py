"""The entropy device: what a driver's buffers hold afterwards, how much a turn serves, what is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit.errors import ImageError
from snapkit.state.codec import encode
from snapkit.state.virtio_rng import VirtioRngState
from snapkit.units import KIB, MIB
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.virtio_rng import FILL_LEN, RngArgs, VirtioRng, fresh_state
from tests.vmm.virtio.driver import drive

RAM_LEN = 4 * MIB
RAM = [(0, RAM_LEN)]


class Source:
    """Bytes that tell who drew them: the count of draws, never zero."""

    def __init__(self) -> None:
        self.draws: list[int] = []

    def __call__(self, length: int) -> bytes:
        self.draws.append(length)
        return bytes([len(self.draws) % 255 + 1]) * length


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def device(memory, source):
    return VirtioRng.restore(fresh_state(), RngArgs(memory, source))


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event-idx"])
def test_buffers_come_back_full_of_random_bytes_with_one_interrupt(device, memory, event_idx, indirect):
    seen, (requests,) = drive(device, memory, event_idx=event_idx, indirect=indirect)
    first, second = requests.add(64), requests.add(100, 28)
    requests.kick()
    assert requests.used() == [(first, 64), (second, 128)]
    assert requests.answer(first) == b"\x02" * 64
    assert requests.answer(second) == b"\x03" * 128
    assert seen.queues == [0]
    third = requests.add(1)
    assert requests.must_kick()
    requests.kick()
    assert requests.used() == [(third, 1)]


def test_turn_draws_no_more_than_its_bound_and_asks_for_another(device, memory, source):
    seen, (requests,) = drive(device, memory)
    big, small = requests.add(FILL_LEN + 4 * KIB), requests.add(16)
    requests.kick()
    assert requests.used() == [(big, FILL_LEN)]
    assert sum(source.draws) == FILL_LEN
    assert requests.answer(big)[FILL_LEN:] == bytes(4 * KIB)
    assert seen.again == [0]
    requests.kick()
    assert requests.used() == [(small, 16)]
    assert seen.again == [0]


def test_driver_that_adds_without_end_is_served_by_turns(device, memory):
    seen, (requests,) = drive(device, memory)
    added = []

    def urandom(length: int) -> bytes:
        requests.used()
        added.append(requests.add(1))
        return b"\1" * length

    device._urandom = urandom
    requests.add(1)
    requests.kick()
    assert seen.again == [0]
    assert len(added) == 256


def test_buffer_without_room_comes_back_empty(device, memory):
    _seen, (requests,) = drive(device, memory)
    head = requests.add(b"no room here")
    requests.kick()
    assert requests.used() == [(head, 0)]


def test_guest_that_breaks_its_ring_is_told_and_served_again_after_a_reset(device, memory):
    seen, (requests,) = drive(device, memory)
    requests.add((RAM_LEN - 4, 8, True))
    requests.kick()
    assert (seen.resets, device.state.broken, device.active) == (1, True, False)
    device.reset()
    seen, (requests,) = drive(device, memory)
    head = requests.add(8)
    requests.kick()
    assert requests.used() == [(head, 8)]


def test_request_made_before_a_snapshot_is_served_after_it(device, memory, source):
    _seen, (requests,) = drive(device, memory)
    first = requests.add(4)
    requests.kick()
    assert requests.used() == [(first, 4)]
    waiting = requests.add(32)  # its doorbell is lost
    state = device.save()
    again = VirtioRng.restore(state, RngArgs(memory, source))
    assert encode(again.save()) == encode(state)
    again.activate()
    assert requests.used() == []
    again.run()
    assert requests.used() == [(waiting, 32)]


def test_saved_state_is_detached_and_holds_no_randomness(device, memory):
    _seen, (requests,) = drive(device, memory)
    saved = device.save()
    requests.add(4)
    requests.kick()
    assert saved.queues[0].next_used == 0
    assert device.save().queues[0].next_used == 1


@pytest.mark.parametrize(
    ("break_it", "complaint"),
    [
        (lambda state: setattr(state, "acked", 1 << 40), "virtio-rng.acked is"),
        (lambda state: setattr(state.queues[0], "size", 3), r"virtio-rng.queues\[0\].size is 3"),
    ],
)
def test_state_that_no_entropy_device_has_is_refused_by_its_field(memory, source, break_it, complaint):
    state = fresh_state()
    break_it(state)
    with pytest.raises(ImageError, match=complaint):
        VirtioRng.restore(state, RngArgs(memory, source))


def test_device_has_no_configuration_and_bears_every_access(device):
    for length in (1, 2, 4, 8):
        for offset in (0, 3, 0x100):
            assert device.read_config(offset, length) == (1 << 8 * length) - 1
            device.write_config(offset, length, 0)
    assert device.faults == 24


@settings(max_examples=150, deadline=None)
@given(rings=st.binary(min_size=0, max_size=600), index=st.integers(0, 0xFFFF), size=st.sampled_from([1, 4, 256]))
def test_random_rings_never_raise_and_never_leave_ram(rings, index, size):
    memory = GuestMemory(RAM)
    try:
        source = Source()
        device = VirtioRng.restore(fresh_state(), RngArgs(memory, source))
        seen, (requests,) = drive(device, memory, sizes={0: size}, indirect=True)
        memory.write(requests.desc, rings)
        requests.put16(requests.avail + 2, index)
        requests.kick()
        assert sum(source.draws) <= FILL_LEN
        assert device.state.broken == bool(seen.resets)
        assert isinstance(device.save(), VirtioRngState)
    finally:
        device.close()
        memory.close()
