"""Split virtqueues: what a driver may say, what it may not, and who is told when. VIRTIO 1.3, section 2.7."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit import host
from snapkit.state.virtio import QueueState
from snapkit.units import GIB, KIB, MIB
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.virtio.queue import (
    Queue,
    QueueBroken,
    gather,
    readable_len,
    scatter,
    skip,
    spans_len,
    take,
    writable_len,
)
from tests.vmm.virtio.driver import INDIRECT, NEXT, WRITE, Driver

RAM = [(0, MIB), (4 * GIB, 256 * KIB)]
BASE = 0x1000


def joined(memory, size=8, *, max_size=None, event_idx=False, indirect=False, base=BASE):
    """A started queue and the driver at its other end."""
    queue = Queue(QueueState(max_size=max_size or size, size=max_size or size), memory)
    driver = Driver(memory, base, size, event_idx=event_idx, indirect=indirect, area_len=256 * KIB)
    driver.give(queue.state)
    queue.start(event_idx=event_idx, indirect=indirect)
    return queue, driver


def answer(queue, payload=b""):
    """Serve the next chain with *payload*; returns what it said."""
    chain = queue.pop()
    said = gather(chain.readable, readable_len(chain))
    queue.push(chain.head, scatter(chain.writable, payload))
    return said


# Buffers


@pytest.mark.parametrize("indirect", [False, True])
def test_chain_arrives_in_order_and_goes_back_with_its_length(memory, indirect):
    queue, driver = joined(memory, indirect=indirect)
    head = driver.add(b"one", b"two", 4, 100)
    assert answer(queue, b"answered") == b"onetwo"
    assert driver.used() == [(head, 8)]
    assert driver.answer(head)[:9] == b"answered\0"
    assert queue.pop() is None


def test_indices_wrap_at_two_to_the_sixteenth(memory):
    queue, driver = joined(memory, size=4)
    queue.state.next_avail = queue.state.next_used = 0xFFFE
    driver.next_avail = driver.last_used = 0xFFFE
    driver.put16(driver.avail + 2, 0xFFFE)
    driver.put16(driver.ring + 2, 0xFFFE)
    for number in range(6):
        head = driver.add(b"x", 4)
        assert answer(queue, bytes([number])) == b"x"
        assert driver.used() == [(head, 1)]
    assert queue.state.next_avail == queue.state.next_used == 4


def test_buffers_in_any_region_of_ram_are_found(memory):
    queue, driver = joined(memory)
    high = 4 * GIB + 256 * KIB - 5
    memory.write(high, b"above")
    driver.add((high, 5, False), 1)
    assert answer(queue) == b"above"


def test_rings_may_lie_in_the_upper_region_up_to_its_last_byte(memory):
    size = 8
    queue = Queue(QueueState(max_size=size, size=size), memory)
    queue.state.desc, queue.state.driver = BASE, BASE + 16 * size
    queue.state.device = 4 * GIB + 256 * KIB - (6 + 8 * size) - 2
    queue.start(event_idx=False, indirect=False)
    assert queue.pop() is None


def test_zero_length_buffers_are_left_out_wherever_they_point(memory):
    queue, driver = joined(memory)
    driver.add((1 << 63, 0, False), b"seen", (0, 0, True), 2)
    chain = queue.pop()
    assert gather(chain.readable, 10) == b"seen"
    assert [length for _, length in chain.writable] == [2]


def test_chains_given_back_are_popped_again_in_order(memory):
    queue, driver = joined(memory)
    heads = [driver.add(b"a"), driver.add(b"b"), driver.add(b"c")]
    assert [queue.pop().head for _ in heads] == heads
    queue.undo_pop(2)
    assert [queue.pop().head for _ in heads[1:]] == heads[1:]
    assert queue.pop() is None


def test_direct_descriptors_may_end_in_one_indirect_table(memory):
    queue, driver = joined(memory, indirect=True)
    table, at = driver.place(32), driver.place(16)
    memory.write(at, b"headbody")
    driver.describe(0, at, 4, NEXT, 5)
    driver.describe(5, table, 32, INDIRECT, 0)
    driver.describe(0, at + 4, 4, NEXT, 1, table=table)
    driver.describe(1, at + 8, 8, WRITE, 0, table=table)
    driver.offer(0)
    assert answer(queue, b"!") == b"headbody"
    assert driver.used() == [(0, 1)]


def test_restarted_queue_goes_on_where_its_state_says(memory):
    queue, driver = joined(memory)
    driver.add(b"first")
    answer(queue)
    driver.add(b"second")
    again = Queue(queue.state, memory)
    again.start(event_idx=False, indirect=False)
    assert answer(again) == b"second"
    assert len(driver.used()) == 2


def test_stopped_queue_gives_and_takes_nothing(memory):
    queue, driver = joined(memory)
    driver.add(b"x")
    chain = queue.pop()
    queue.stop()
    before = memory.read(driver.ring, 6 + 8 * 8)
    queue.push(chain.head, 0)
    queue.disarm()
    assert (queue.pop(), queue.arm(), queue.should_notify()) == (None, False, False)
    assert memory.read(driver.ring, 6 + 8 * 8) == before
    assert queue.state.next_used == 0


def test_reset_queue_is_as_a_fresh_one_at_its_maximum(memory):
    queue, driver = joined(memory, size=4, max_size=64)
    driver.add(b"x")
    answer(queue)
    queue.reset()
    assert queue.state == QueueState(max_size=64, size=64)
    assert not queue.active


# What breaks a queue


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("size", 0, "queue size 0"),
        ("size", 3, "queue size 3"),
        ("size", 16, "queue size 16"),
        ("desc", BASE + 8, "descriptor table at 0x1008, must be aligned to 16"),
        ("driver", BASE + 1, "available ring at 0x1001, must be aligned to 2"),
        ("device", BASE + 2, "used ring at 0x1002, must be aligned to 4"),
        ("desc", MIB - 112, "descriptor table: guest memory 0xfff90..0x100010 is outside RAM"),
        ("driver", MIB - 20, "available ring: guest memory 0xfffec..0x100002 is outside RAM"),
        ("device", MIB - 68, "used ring: guest memory 0xfffbc..0x100002 is outside RAM"),
        ("device", (1 << 64) - 4, "outside RAM"),
        ("desc", 2 * GIB, "outside RAM"),
    ],
)
def test_rings_of_a_wrong_size_place_or_alignment_are_refused(memory, field, value, said):
    queue, _ = joined(memory)
    queue.stop()
    setattr(queue.state, field, value)
    with pytest.raises(QueueBroken, match=said):
        queue.start(event_idx=True, indirect=True)
    assert not queue.active


def raw(driver, *descriptors, table=None):
    """Offer a chain from descriptor 0 of (gpa, length, flags, next)."""
    for index, (gpa, length, flags, following) in enumerate(descriptors):
        driver.describe(index, gpa, length, flags, following, table=table)
    if table is None:
        driver.offer(0)


@pytest.mark.parametrize(
    ("descriptors", "said"),
    [
        ([(0x8000, 4, NEXT, 0)], "longer than the queue, 8, or loops"),
        ([(0x8000, 4, NEXT, 1), (0x8000, 4, NEXT, 0)], "longer than the queue, 8, or loops"),
        ([(0x8000, 0, NEXT, 0)], "longer than the queue, 8, or loops"),
        ([(0x8000, 4, NEXT, 8)], "descriptor 8, in a table of 8"),
        ([(0x8000, 4, NEXT, 0xFFFF)], "descriptor 65535, in a table of 8"),
        ([(MIB - 3, 4, 0, 0)], "buffer 0xffffd..0x100001 is outside RAM"),
        ([(2 * GIB, 1, 0, 0)], "outside RAM"),
        ([((1 << 64) - 1, 2, WRITE, 0)], "outside RAM"),
        ([(0, 0xFFFF_FFFF, 0, 0)], "outside RAM"),
        ([(0x8000, 4, NEXT | WRITE, 1), (0x8000, 4, 0, 0)], "readable buffer behind a writable one"),
        ([(0x8000, 16, INDIRECT | NEXT, 1)], "indirect descriptor with a next one"),
        ([(0x8000, 0, INDIRECT, 0)], "indirect table of 0 bytes"),
        ([(0x8000, 24, INDIRECT, 0)], "indirect table of 24 bytes"),
        ([(0x8000, 9 * 16, INDIRECT, 0)], "indirect table of 144 bytes, must be 1 to 8 descriptors"),
        ([(MIB - 15, 16, INDIRECT, 0)], "buffer 0xffff1..0x100001 is outside RAM"),
    ],
)
def test_chain_that_breaks_the_rules_breaks_the_queue(memory, descriptors, said):
    queue, driver = joined(memory, indirect=True)
    raw(driver, *descriptors)
    with pytest.raises(QueueBroken, match=said):
        queue.pop()
    assert queue.state.next_avail == 0


def test_head_outside_of_the_table_breaks_the_queue(memory):
    queue, driver = joined(memory)
    driver.offer(8)
    with pytest.raises(QueueBroken, match="descriptor 8"):
        queue.pop()


@pytest.mark.parametrize("ahead", [9, 0x7FFF, 0xFFFF])
def test_available_index_further_ahead_than_the_queue_is_long_breaks_it(memory, ahead):
    queue, driver = joined(memory)
    driver.put16(driver.avail + 2, ahead)
    with pytest.raises(QueueBroken, match=f"{ahead} ahead in a queue of 8"):
        queue.pop()


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ([(0x8000, 4, NEXT, 0)], "or loops"),
        ([(0x8000, 4, NEXT, 2), (0x8000, 4, 0, 0)], "descriptor 2, in a table of 2"),
        ([(0x9000, 16, INDIRECT, 0)], "indirect descriptor inside an indirect table"),
    ],
)
def test_indirect_table_obeys_the_same_rules(memory, inside, said):
    queue, driver = joined(memory, indirect=True)
    table = driver.place(16 * len(inside))
    raw(driver, *inside, table=table)
    raw(driver, (table, 16 * len(inside), INDIRECT, 0))
    with pytest.raises(QueueBroken, match=said):
        queue.pop()


def test_chain_of_direct_and_indirect_descriptors_is_counted_as_a_whole(memory):
    queue, driver = joined(memory, size=4, indirect=True)
    table = driver.place(64)
    raw(driver, *[(0x8000, 1, NEXT, n + 1) for n in range(3)], (0x8000, 1, 0, 0), table=table)
    raw(driver, (0x8000, 1, NEXT, 1), (table, 64, INDIRECT, 0))
    with pytest.raises(QueueBroken, match="longer than the queue, 4"):
        queue.pop()


def test_indirect_descriptor_without_the_feature_breaks_the_queue(memory):
    queue, driver = joined(memory)
    raw(driver, (0x8000, 16, INDIRECT, 0))
    with pytest.raises(QueueBroken, match="not negotiated"):
        queue.pop()


def test_chain_of_four_gibibytes_breaks_the_queue():
    """Memory is only reserved: nothing of it is touched."""
    memory = GuestMemory([(0, GIB)])
    try:
        queue, driver = joined(memory, size=8)
        raw(driver, *[(0, GIB, NEXT | WRITE, n + 1) for n in range(3)], (0, GIB, WRITE, 0))
        with pytest.raises(QueueBroken, match="has 4294967296 bytes"):
            queue.pop()
    finally:
        memory.close()


# Notifications


def test_without_event_index_flags_say_who_wants_to_be_told(memory):
    queue, driver = joined(memory)
    queue.disarm()
    driver.add(b"a")
    assert not driver.must_kick()
    assert answer(queue) == b"a"
    assert queue.should_notify()
    driver.put16(driver.avail, 1)
    driver.add(b"b")
    answer(queue)
    assert not queue.should_notify()
    assert not queue.arm()
    driver.add(b"c")
    assert driver.must_kick()


def test_nothing_pushed_means_no_interrupt(memory):
    for event_idx in (False, True):
        queue, driver = joined(memory, event_idx=event_idx)
        assert not queue.should_notify()
        driver.add(b"a")
        answer(queue)
        assert queue.should_notify()
        assert not queue.should_notify()


def test_arming_tells_of_what_came_meanwhile(memory):
    for event_idx in (False, True):
        queue, driver = joined(memory, event_idx=event_idx)
        assert not queue.arm()
        driver.add(b"a")
        assert queue.arm()
        answer(queue)
        assert not queue.arm()


def test_with_event_index_the_device_says_after_which_chain_to_kick(memory):
    queue, driver = joined(memory, event_idx=True)
    queue.arm()
    driver.add(b"a")
    assert driver.must_kick()
    driver.add(b"b")
    assert not driver.must_kick(), "the device has not asked again"
    answer(queue)
    answer(queue)
    queue.disarm()
    assert driver.flags == 0, "flags are not used with EVENT_IDX"
    queue.arm()
    assert driver.avail_event == 2
    driver.add(b"c")
    assert driver.must_kick()


def test_with_event_index_the_driver_says_after_which_chain_to_interrupt(memory):
    queue, driver = joined(memory, event_idx=True)
    driver.add(b"a")
    answer(queue)
    assert queue.should_notify()
    driver.used()
    driver.want_interrupt(after=2)
    for number, told in enumerate([False, False, True, False]):
        driver.add(bytes([number]))
        answer(queue)
        assert queue.should_notify() is told


def test_a_batch_that_passes_the_wished_entry_interrupts_once(memory):
    queue, driver = joined(memory, event_idx=True)
    driver.add(b"a")
    answer(queue)
    queue.should_notify()
    driver.used()
    driver.want_interrupt(after=1)
    for _ in range(3):
        driver.add(b"x")
    for _ in range(3):
        answer(queue)
    assert queue.should_notify()
    assert not queue.should_notify()


def test_event_index_works_across_the_wrap(memory):
    queue, driver = joined(memory, size=4, event_idx=True)
    queue.stop()
    queue.state.next_avail = queue.state.next_used = 0xFFFF
    driver.next_avail = driver.last_used = 0xFFFF
    driver.put16(driver.avail + 2, 0xFFFF)
    driver.put16(driver.ring + 2, 0xFFFF)
    queue.start(event_idx=True, indirect=False)
    driver.want_interrupt()
    driver.add(b"a")
    answer(queue)
    assert queue.should_notify()
    driver.used()
    driver.want_interrupt(after=1)
    driver.add(b"b")
    answer(queue)
    assert not queue.should_notify()
    driver.add(b"c")
    answer(queue)
    assert queue.should_notify()


def test_first_batch_after_a_restart_interrupts_even_if_the_driver_asked_for_a_later_one(memory):
    queue, driver = joined(memory, event_idx=True)
    driver.want_interrupt(after=5)
    driver.add(b"a")
    again = Queue(queue.state, memory)
    again.start(event_idx=True, indirect=False)
    answer(again)
    assert again.should_notify(), "what was pushed before the restart is unknown"


# Spans


def test_spans_are_split_gathered_and_scattered(memory):
    first, second = memory.hva(0x100, 4), memory.hva(0x200, 8)
    spans = [(first, 4), (second, 8)]
    assert scatter(spans, b"abcdefgh") == 8
    assert scatter(spans, bytes(20)) == 12
    assert scatter(skip(spans, 2), b"xyz") == 3
    assert gather(spans, 6) == b"\0\0xyz\0"
    assert gather(spans, 100) == b"\0\0xyz" + bytes(7)
    assert spans_len(skip(spans, 5)) == 7
    assert skip(spans, 12) == []
    assert take(spans, 4) == [(first, 4)]
    assert take(spans, 5) == [(first, 4), (second, 1)]
    assert take(spans, 0) == []
    assert take(spans, 99) == spans


# Nonsense

FEW = st.integers(0, 9)
DESCRIPTORS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 0x3000), st.integers(MIB - 64, MIB), st.integers(0, (1 << 64) - 1)),
        st.one_of(st.integers(0, 300), st.integers(0, (1 << 32) - 1)),
        st.integers(0, 7) | st.integers(0, 0xFFFF),
        FEW | st.integers(0, 0xFFFF),
    ),
    min_size=8,
    max_size=8,
)


@settings(max_examples=150, deadline=None)
@given(
    table=DESCRIPTORS,
    heads=st.lists(FEW | st.integers(0, 0xFFFF), min_size=8, max_size=8),
    index=st.integers(0, 9) | st.integers(0, 0xFFFF),
    inside=DESCRIPTORS,
    event_idx=st.booleans(),
    indirect=st.booleans(),
)
def test_random_rings_break_the_queue_or_give_bounded_chains_inside_ram(
    table, heads, index, inside, event_idx, indirect
):
    memory = GuestMemory(RAM)
    try:
        queue, driver = joined(memory, event_idx=event_idx, indirect=indirect)
        memory.write(0x2000, b"".join(struct.pack("<QIHH", *item) for item in inside))
        memory.write(driver.desc, b"".join(struct.pack("<QIHH", *item) for item in table))
        memory.write(driver.avail, struct.pack("<HH8H", 0, index, *heads))
        spans = [(memory.hva(gpa, length), length) for gpa, length in RAM]
        popped = 0
        try:
            while (chain := queue.pop()) is not None:
                popped += 1
                assert popped <= 8
                assert len(chain.readable) + len(chain.writable) <= 8
                for hva, length in [*chain.readable, *chain.writable]:
                    assert length > 0
                    assert any(start <= hva and hva + length <= start + span for start, span in spans)
                queue.push(chain.head, writable_len(chain))
                queue.should_notify()
                queue.arm()
        except QueueBroken:
            pass
        assert queue.state.next_avail == popped == queue.state.next_used
    finally:
        memory.close()


def test_serving_a_ring_makes_no_system_call(memory):
    queue, driver = joined(memory, size=64)
    for _ in range(20):
        driver.add(b"abc", 16)
    before = host.calls_made()
    for _ in range(20):
        answer(queue, b"z")
    queue.should_notify()
    assert host.calls_made() == before
