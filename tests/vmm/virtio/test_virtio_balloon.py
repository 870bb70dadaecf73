"""The balloon: what leaves the process, what the driver is told and tells, and what a hostile one achieves: nothing."""

import errno
import struct
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit import host, host_memory
from snapkit.errors import ConfigError, ImageError
from snapkit.state.codec import encode
from snapkit.state.virtio_balloon import StatState
from snapkit.units import GIB, MIB, PAGE_LEN
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.virtio_balloon import BalloonArgs, VirtioBalloon, fresh_state, joined
from tests.vmm.virtio.driver import Driver, Interrupts, drive

RAM_LEN = 16 * MIB
RAM = [(0, RAM_LEN), (4 * GIB, 2 * MIB)]
AREA_LEN = 0x4_0000
DATA = 8 * MIB  # above the rings of all queues
STATS_VQ, DEFLATE_ON_OOM, PAGE_REPORTING = 1 << 1, 1 << 2, 1 << 5
S = 10**9


@pytest.fixture
def memory(memory):
    memory.seal()
    return memory


@pytest.fixture
def device(memory):
    return VirtioBalloon.restore(fresh_state(), BalloonArgs(memory, lambda: 0))


def driven(
    device: VirtioBalloon, memory: GuestMemory, features: int = STATS_VQ | PAGE_REPORTING, **more: Any
) -> tuple[Interrupts, list[Driver]]:
    return drive(device, memory, features=features, area_len=AREA_LEN, **more)


def pfns(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def stats(**values: int) -> bytes:
    tags = {"MEMFREE": 4, "MEMTOT": 5, "AVAIL": 6, "OTHER": 99}
    return b"".join(struct.pack("<HQ", tags[name], value) for name, value in values.items())


def fill(memory: GuestMemory, gpa: int, pages: int) -> None:
    memory.write(gpa, b"\xaa" * (pages * PAGE_LEN))


def own_pages(memory: GuestMemory, gpa: int, pages: int) -> int:
    return host_memory.count_pages(memory.hva(gpa, 1), pages * PAGE_LEN)[0]


# Inflate and deflate


@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event-idx"])
def test_inflated_pages_leave_the_process_and_read_as_zeros(device, memory, event_idx, indirect):
    seen, (inflate, deflate, *_rest) = driven(device, memory, event_idx=event_idx, indirect=indirect)
    fill(memory, DATA, 64)
    fill(memory, 4 * GIB, 4)
    first = DATA // PAGE_LEN
    given = [first + page for page in range(10, 30)]
    head = inflate.add(pfns(*reversed(given), given[3], 4 * GIB // PAGE_LEN + 1))
    inflate.kick()
    assert inflate.used() == [(head, 0)]
    assert seen.queues == [0]
    assert own_pages(memory, DATA, 64) == 44
    assert memory.read(DATA + 10 * PAGE_LEN, 20 * PAGE_LEN) == bytes(20 * PAGE_LEN)
    assert memory.read(DATA + 9 * PAGE_LEN, 1) + memory.read(DATA + 30 * PAGE_LEN, 1) == b"\xaa\xaa"
    assert [memory.read(4 * GIB + page * PAGE_LEN, 1) for page in range(3)] == [b"\xaa", b"\0", b"\xaa"]
    assert (device.discarded_pages, device.faults) == (21, 0)
    back = deflate.add(pfns(*given))
    deflate.kick()
    assert deflate.used() == [(back, 0)]
    fill(memory, DATA + 10 * PAGE_LEN, 1)
    assert memory.read(DATA + 10 * PAGE_LEN, 1) == b"\xaa"


def test_pages_are_joined_into_ranges_before_they_are_discarded(device, memory, monkeypatch):
    ranges: list[tuple[int, int]] = []

    def discard(gpa: int, length: int) -> bool:
        ranges.append((gpa, length))
        return True

    monkeypatch.setattr(memory, "discard", discard)
    _seen, (inflate, *_rest) = driven(device, memory)
    inflate.add(pfns(2052, 2049, 2048, 2050, 2060))
    inflate.kick()
    assert ranges == [(2048 << 12, 3 << 12), (2052 << 12, 1 << 12), (2060 << 12, 1 << 12)]


@pytest.mark.parametrize(
    ("numbers", "ranges"),
    [
        ([], []),
        ([0], [(0, 1)]),
        ([1, 0, 1], [(0, 2)]),
        ([5, 7, 6, 9], [(5, 3), (9, 1)]),
        ([0xFFFF_FFFF, 0xFFFF_FFFE], [(0xFFFF_FFFE, 2)]),
    ],
)
def test_page_numbers_are_joined(numbers, ranges):
    assert joined(numbers) == ranges


def test_pages_outside_ram_are_ignored_and_counted(device, memory):
    _seen, (inflate, *_rest) = driven(device, memory)
    fill(memory, RAM_LEN - PAGE_LEN, 1)
    head = inflate.add(pfns(RAM_LEN // PAGE_LEN - 1, RAM_LEN // PAGE_LEN, 0xFFFF_FFFF))
    inflate.kick()
    assert inflate.used() == [(head, 0)]
    assert memory.read(RAM_LEN - PAGE_LEN, PAGE_LEN) == bytes(PAGE_LEN)
    assert (device.discarded_pages, device.faults, device.state.broken) == (1, 2, False)


def test_list_that_ends_within_a_number_or_is_too_long_is_counted(device, memory):
    _seen, (inflate, *_rest) = driven(device, memory)
    fill(memory, DATA, 2)
    inflate.add(pfns(DATA // PAGE_LEN) + b"\1\2")
    inflate.kick()
    assert (device.discarded_pages, device.faults) == (1, 1)
    inflate.add((DATA + MIB, 4 * MIB, False))
    inflate.kick()
    assert (device.faults, device.state.broken) == (2, False)


def test_long_lists_are_served_by_turns(device, memory):
    seen, (inflate, *_rest) = driven(device, memory)
    together = [inflate.add(pfns(*[DATA // PAGE_LEN] * 1024)) for _ in range(5)]
    apart = [inflate.add(pfns(*range(DATA // PAGE_LEN, DATA // PAGE_LEN + 200, 2))) for _ in range(2)]
    inflate.kick()
    assert [head for head, _ in inflate.used()] == together[:4]
    assert seen.again == [0]
    inflate.kick()
    assert [head for head, _ in inflate.used()] == [together[4], apart[0]]
    inflate.kick()
    assert [head for head, _ in inflate.used()] == apart[1:]
    assert seen.again == [0, 0, 0]


def test_page_that_the_host_does_not_take_stays_and_the_guest_goes_on(device, memory):
    def refuse(call: str, _arguments: tuple[object, ...]) -> None:
        if call == "madvise":
            raise OSError(errno.ENOMEM, "injected")

    _seen, (inflate, *_rest) = driven(device, memory)
    fill(memory, DATA, 1)
    head = inflate.add(pfns(DATA // PAGE_LEN))
    with host.inject(refuse):
        inflate.kick()
    assert inflate.used() == [(head, 0)]
    assert memory.read(DATA, 1) == b"\xaa"
    assert (device.discarded_pages, device.kept_pages, device.faults) == (0, 1, 1)


# Free page reporting


def test_reported_ranges_leave_the_process_whole_pages_only(device, memory):
    seen, (_inflate, _deflate, _stats, reporting, _more) = driven(device, memory)
    fill(memory, DATA, 8)
    head = reporting.add((DATA + PAGE_LEN, 2 * PAGE_LEN, True), (DATA + 4 * PAGE_LEN + 1, 3 * PAGE_LEN, True))
    reporting.kick()
    assert reporting.used() == [(head, 0)]
    assert seen.queues == [3]
    assert [memory.read(DATA + page * PAGE_LEN, 1)[0] != 0 for page in range(8)] == [1, 0, 0, 1, 1, 0, 0, 1]
    assert memory.read(DATA + 7 * PAGE_LEN, 1) == b"\xaa"


@pytest.mark.parametrize(
    ("features", "index"),
    [(STATS_VQ | PAGE_REPORTING, 3), (PAGE_REPORTING, 2), (STATS_VQ | PAGE_REPORTING, 4), (PAGE_REPORTING, 4)],
    ids=["linux", "linux-no-stats", "specification", "specification-no-stats"],
)
def test_reporting_queue_is_found_however_the_driver_numbers_it(device, memory, features, index):
    _seen, queues = driven(device, memory, features)
    fill(memory, DATA, 1)
    head = queues[index].add((DATA, PAGE_LEN, True))
    queues[index].kick()
    assert queues[index].used() == [(head, 0)]
    assert own_pages(memory, DATA, 1) == 0


def test_queue_of_a_feature_that_was_not_accepted_does_nothing(device, memory):
    _seen, queues = driven(device, memory, 0)
    fill(memory, DATA, 1)
    for index in (2, 3, 4):
        queues[index].add((DATA, PAGE_LEN, True))
        queues[index].kick()
        assert queues[index].used() == []
    assert own_pages(memory, DATA, 1) == 1


# Statistics


def test_statistics_are_kept_until_newer_ones_are_wanted(device, memory):
    seen, queues = driven(device, memory)
    head = queues[2].add(stats(MEMTOT=100, MEMFREE=50, OTHER=7))
    queues[2].kick()
    assert queues[2].used() == []
    assert device.stats == {"MEMFREE": 50, "MEMTOT": 100}
    assert device.request_stats()
    assert queues[2].used() == [(head, 0)]
    assert seen.queues == [2]
    assert not device.request_stats()
    queues[2].add(stats(MEMFREE=40))
    queues[2].kick()
    assert device.stats == {"MEMFREE": 40, "MEMTOT": 100}


def test_second_statistics_buffer_returns_the_first(device, memory):
    _seen, queues = driven(device, memory)
    first, second = queues[2].add(stats(MEMFREE=1)), queues[2].add(stats(MEMFREE=2))
    queues[2].kick()
    assert queues[2].used() == [(first, 0)]
    assert device.stats == {"MEMFREE": 2}
    device.request_stats()
    assert queues[2].used() == [(second, 0)]


def test_statistics_buffer_comes_back_after_a_snapshot(device, memory):
    _seen, queues = driven(device, memory)
    head = queues[2].add(stats(MEMFREE=5))
    queues[2].kick()
    device.prepare_save()
    device.prepare_save()
    state = device.save()
    assert (state.queues[2].next_avail, state.queues[2].next_used) == (0, 0)
    assert state.stats == [StatState(tag=4, value=5)]
    again = VirtioBalloon.restore(state, BalloonArgs(memory, lambda: 0))
    assert encode(again.save()) == encode(state)
    for resumed in (device, again):
        resumed.activate()
        resumed.run()
        assert resumed.stats == {"MEMFREE": 5}
    again.request_stats()
    assert queues[2].used() == [(head, 0)]


class Timers:
    """A loop that has nothing but timers, and a clock that stands still."""

    def __init__(self) -> None:
        self.now = 100 * S
        self.waiting: list[tuple[int, Any]] = []

    def call_at(self, deadline_ns: int, callback: Any) -> None:
        self.waiting.append((deadline_ns, callback))

    def advance(self, seconds: int) -> None:
        self.now += seconds * S
        due = [callback for deadline, callback in self.waiting if deadline <= self.now]
        self.waiting = [(deadline, callback) for deadline, callback in self.waiting if deadline > self.now]
        for callback in due:
            callback()


@pytest.fixture
def timed(memory):
    timers: Any = Timers()
    device = VirtioBalloon.restore(fresh_state(stats_interval_s=5), BalloonArgs(memory, lambda: timers.now))
    lock = threading.Lock()
    device.connect(timers, lock)
    return device, timers, lock


def test_statistics_are_asked_for_in_the_interval_and_not_while_paused(timed, memory):
    device, timers, lock = timed
    _seen, queues = driven(device, memory)
    with lock:
        device.run()
    queues[2].add(stats(MEMFREE=5))
    queues[2].kick()
    timers.advance(4)
    assert queues[2].used() == []
    timers.advance(1)
    assert len(queues[2].used()) == 1
    queues[2].add(stats(MEMFREE=6))
    queues[2].kick()
    device.pause()
    timers.advance(100)
    assert queues[2].used() == []
    with lock:
        device.run()
    timers.advance(5)
    assert len(queues[2].used()) == 1
    timers.advance(5)  # the driver has lent nothing: harmless, and the timer goes on
    assert len(timers.waiting) == 1
    device.disconnect()
    device.disconnect()
    timers.advance(5)
    assert timers.waiting == []


def test_interval_can_be_changed_and_ended(timed, memory):
    device, timers, lock = timed
    _seen, queues = driven(device, memory)
    queues[2].add(stats(MEMFREE=5))
    queues[2].kick()
    device.set_stats_interval(2)
    timers.advance(10)
    assert queues[2].used() == []  # it does not run yet
    with lock:
        device.run()
    timers.advance(2)
    assert len(queues[2].used()) == 1
    device.set_stats_interval(0)
    timers.advance(10)
    assert timers.waiting == []
    assert device.save().stats_interval_s == 0
    with pytest.raises(ConfigError, match="statistics interval is 65536 s"):
        device.set_stats_interval(65536)


# Configuration space


def test_target_is_told_by_a_configuration_interrupt_and_actual_is_what_the_driver_writes(device, memory):
    seen, _queues = driven(device, memory)
    device.set_target(300)
    assert seen.configs == 1
    device.set_target(300)
    assert seen.configs == 1
    assert device.read_config(0, 4) == 300
    device.write_config(4, 4, 0x1234_5678)
    device.write_config(5, 2, 0xABCD)
    assert device.state.actual == 0x12AB_CD78
    assert device.read_config(0, 8) == 0x12AB_CD78 << 32 | 300
    device.write_config(0, 4, 7)
    device.write_config(6, 4, 7)
    device.write_config(100, 1, 7)
    assert (device.read_config(0, 4), device.faults) == (300, 3)
    assert device.save().actual == 0x12AB_CD78


@pytest.mark.parametrize("pages", [-1, 18 * MIB // PAGE_LEN + 1])
def test_target_that_ram_has_no_room_for_is_refused(device, pages):
    with pytest.raises(ConfigError, match="must be 0 to 4608"):
        device.set_target(pages)
    device.set_target(4608)
    assert device.state.num_pages == 4608


def test_reset_keeps_the_target_and_forgets_the_driver(device, memory):
    _seen, queues = driven(device, memory)
    device.set_target(10)
    device.write_config(4, 4, 10)
    queues[2].add(stats(MEMFREE=5))
    queues[2].kick()
    device.reset()
    assert not device.request_stats()
    assert encode(device.save()) == encode(fresh_state(target_pages=10))


def test_deflate_on_oom_is_offered_if_asked_for():
    assert not fresh_state().offered & DEFLATE_ON_OOM
    assert fresh_state(deflate_on_oom=True).offered & DEFLATE_ON_OOM


@pytest.mark.parametrize(
    ("tags", "complaint"),
    [
        ([16], r"virtio-balloon.stats\[0\].tag is 16, must be one of 0 to 15"),
        ([4, 4], r"virtio-balloon.stats\[1\].tag is 4, must be above 4"),
        ([5, 4], r"virtio-balloon.stats\[1\].tag is 4, must be above 5"),
    ],
)
def test_state_that_no_balloon_has_is_refused_by_its_field(memory, tags, complaint):
    state = fresh_state()
    state.stats = [StatState(tag=tag, value=0) for tag in tags]
    with pytest.raises(ImageError, match=complaint):
        VirtioBalloon.restore(state, BalloonArgs(memory, lambda: 0))


# Nonsense


@settings(max_examples=150, deadline=None)
@given(
    rings=st.binary(min_size=0, max_size=400),
    index=st.integers(0, 0xFFFF),
    number=st.integers(0, 4),
    features=st.sampled_from([0, STATS_VQ, PAGE_REPORTING, STATS_VQ | PAGE_REPORTING]),
)
def test_random_rings_never_raise_and_never_leave_ram(rings, index, number, features):
    memory = GuestMemory([(0, 4 * MIB)])
    try:
        device = VirtioBalloon.restore(fresh_state(), BalloonArgs(memory, lambda: 0))
        seen, queues = driven(device, memory, features, indirect=True)
        memory.write(queues[number].desc, rings)
        queues[number].put16(queues[number].avail + 2, index)
        queues[number].kick()
        device.request_stats()
        device.prepare_save()
        assert device.state.broken == bool(seen.resets)
        device.save()
    finally:
        device.close()
        memory.close()


@settings(max_examples=100, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(st.booleans(), st.integers(0, 300), st.sampled_from([1, 2, 4, 8]), st.integers(0, 1 << 64))
    )
)
def test_random_configuration_accesses_change_actual_only(accesses):
    memory = GuestMemory([(0, MIB)])
    try:
        device = VirtioBalloon.restore(fresh_state(target_pages=9), BalloonArgs(memory, lambda: 0))
        for writes, offset, length, value in accesses:
            if writes:
                device.write_config(offset, length, value & (1 << 8 * length) - 1)
            else:
                assert 0 <= device.read_config(offset, length) < 1 << 8 * length
        device.state.actual = 0
        assert encode(device.save()) == encode(fresh_state(target_pages=9))
    finally:
        memory.close()
