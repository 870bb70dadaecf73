"""MSI-X as a guest sees it: every way to mask, messages that pend, and a snapshot in each of these states.

PCI Local Bus Specification 3.0, section 6.8.2. The guest `poke.c` programs the table, halts, and counts what arrives;
the messages are those that a device sends: `device_sends` does what a device model does.
"""

import itertools

import pytest

from snapkit.vmm.parts.fresh import Asked
from tests.kvm.entropy import Entropy
from tests.kvm.poker import MSI_ADDRESS, WINDOW_32, Poker

RNG, BALLOON = Asked("virtio-rng", "rng"), Asked("virtio-balloon", "balloon")
SLOTS = {"rng": 1, "balloon": 2}
BARS = {"rng": WINDOW_32, "balloon": WINDOW_32 + 0x8_0000}
TABLE, PBA, ENTRY_LEN = 0x8000, 0x4_8000, 16
DATA, CONTROL, MASK = 8, 12, 1
MESSAGE_CONTROL, ENABLE, FUNCTION_MASK, TABLE_SIZE = 2, 1 << 15, 1 << 14, 0x7FF
FENCE_ENTRY, FENCE = 0, 0x40
"""An entry of the other device that is always open, and its vector: the lowest, so what came before it goes before it."""


class Msix:
    """The vectors of a device, by the guest's own accesses."""

    def __init__(self, guest, device, fence=None):
        self.guest, self.device, self.slot, self.fence = guest, device, SLOTS[device], fence
        self.bar = guest.move_bar(self.slot, 0, BARS[device])
        self.capability = guest.msix_capability(self.slot)

    def entry(self, number):
        return self.bar + TABLE + ENTRY_LEN * number

    def program(self, number, vector, *, masked=False):
        self.guest.write64(self.entry(number), MSI_ADDRESS)
        self.guest.write32(self.entry(number) + DATA, vector)
        self.mask(number, masked)

    def mask(self, number, masked):
        self.guest.write32(self.entry(number) + CONTROL, MASK if masked else 0)

    def control(self, *, enable, function_mask=False):
        value = (ENABLE if enable else 0) | (FUNCTION_MASK if function_mask else 0)
        self.guest.config_write(self.slot, self.capability + MESSAGE_CONTROL, value, 2)

    @property
    def control_word(self):
        return self.guest.config_read(self.slot, self.capability + MESSAGE_CONTROL, 2)

    @property
    def pending(self):
        """The pending bits, read at both widths."""
        narrow, wide = self.guest.read32(self.bar + PBA), self.guest.read64(self.bar + PBA)
        assert narrow == wide
        return narrow

    def device_sends(self, number):
        with self.guest.rig.vm.lock:
            self.guest.part("pci-msix", self.device).msix.trigger(number)


@pytest.fixture
def guest(tmp_path):
    with Poker(tmp_path, RNG, BALLOON) as guest:
        yield guest
        guest.rig.healthy()
        faults = guest.rig.machine.counters()["faults"]
        assert not any(faults.values()), faults


@pytest.fixture
def msix(guest):
    """The vectors of the entropy device; beside it the fence is open."""
    other = Msix(guest, "balloon")
    other.program(FENCE_ENTRY, FENCE)
    other.control(enable=True)
    return Msix(guest, "rng", fence=other)


def settled(msix):
    """Wait until whatever was on its way when this was called has arrived."""
    count = msix.guest.count(FENCE)
    msix.fence.device_sends(FENCE_ENTRY)
    msix.guest.wait_vector(FENCE, count + 1)


# Masks

STATES = {
    f"{'enabled' if enable else 'disabled'}, function {'masked' if function_mask else 'open'}, "
    f"entry {'masked' if entry_mask else 'open'}": (enable, function_mask, entry_mask)
    for enable, function_mask, entry_mask in itertools.product((False, True), repeat=3)
}
OPEN = "enabled, function open, entry open"
SHUT = [name for name in STATES if name != OPEN]


def put_into(msix, state, vector=0x50, number=1):
    enable, function_mask, entry_mask = STATES[state]
    msix.program(number, vector, masked=entry_mask)
    msix.control(enable=enable, function_mask=function_mask)


def ways_to_open(state):
    """Every order in which a guest can let go of what keeps the vector shut."""
    enable, function_mask, entry_mask = STATES[state]
    holds = [name for name, there in (("off", not enable), ("function", function_mask), ("entry", entry_mask)) if there]
    return list(itertools.permutations(holds))


def let_go(msix, state, what, done):
    """Take away *what*; the control word stays as far as *done* says."""
    enable, function_mask, _ = STATES[state]
    if what == "entry":
        msix.mask(1, False)
    else:
        enable = enable or "off" in (*done, what)
        function_mask = function_mask and "function" not in (*done, what)
        msix.control(enable=enable, function_mask=function_mask)


@pytest.mark.parametrize("sent", ["before", "after"])
@pytest.mark.parametrize("state", SHUT)
def test_a_message_to_a_shut_vector_pends_over_a_snapshot_and_comes_once(guest, msix, state, sent):
    for number, order in enumerate(ways_to_open(state), 1):
        put_into(msix, state)
        for moment in ("before", "after"):
            if moment == sent:
                assert msix.pending == 0
                msix.device_sends(1)
                msix.device_sends(1)  # a second one is the same: a bit pends, not a count
            if moment == "before":
                guest.snapshot_and_restore()
        for step, what in enumerate(order):
            settled(msix)
            assert guest.count(0x50) == number - 1, f"came while shut, {order[step:]} to go"
            assert msix.pending == 1 << 1
            let_go(msix, state, what, order[:step])
        guest.wait_vector(0x50, number)
        assert msix.pending == 0
        guest.snapshot_and_restore()
        settled(msix)
        assert guest.count(0x50) == number, "delivered twice"


@pytest.mark.parametrize("state", STATES)
def test_table_and_control_word_read_the_same_after_a_snapshot(guest, msix, state):
    put_into(msix, state)
    enable, function_mask, entry_mask = STATES[state]
    word = (ENABLE if enable else 0) | (FUNCTION_MASK if function_mask else 0) | 1
    for _ in range(2):
        assert msix.control_word == word, "two vectors: a table size of 1"
        assert guest.read64(msix.entry(1)) == MSI_ADDRESS
        assert guest.read64(msix.entry(1) + DATA) == 0x50 | (MASK if entry_mask else 0) << 32
        assert guest.read64(msix.entry(0) + DATA) == MASK << 32
        guest.snapshot_and_restore()


@pytest.mark.parametrize("state", SHUT)
def test_a_vector_that_is_shut_after_it_worked_lets_nothing_through(guest, msix, state):
    put_into(msix, OPEN)
    msix.device_sends(1)
    guest.wait_vector(0x50)
    enable, function_mask, entry_mask = STATES[state]
    msix.mask(1, entry_mask)
    msix.control(enable=enable, function_mask=function_mask)
    msix.device_sends(1)
    settled(msix)
    guest.snapshot_and_restore()
    settled(msix)
    assert (guest.count(0x50), msix.pending) == (1, 1 << 1)
    msix.mask(1, False)
    msix.control(enable=True)
    guest.wait_vector(0x50, 2)


def test_the_function_mask_leaves_the_entry_masks_as_they_are(guest, msix):
    msix.program(0, 0x50, masked=True)
    msix.program(1, 0x51, masked=False)
    msix.control(enable=True, function_mask=True)
    for number in (0, 1):
        msix.device_sends(number)
    guest.snapshot_and_restore()
    assert [guest.read32(msix.entry(number) + CONTROL) for number in (0, 1)] == [MASK, 0]
    msix.control(enable=True)
    guest.wait_vector(0x51)
    settled(msix)
    assert (guest.count(0x50), msix.pending) == (0, 1)
    guest.snapshot_and_restore()
    msix.mask(0, False)
    guest.wait_vector(0x50)
    assert (guest.count(0x51), msix.pending) == (1, 0)


def test_a_bit_that_pends_names_its_vector_and_no_other(guest):
    msix = Msix(guest, "balloon")
    vectors = (msix.control_word & TABLE_SIZE) + 1
    assert vectors > 2
    for number in range(vectors):
        msix.program(number, 0x50 + number)
    msix.control(enable=True, function_mask=True)
    sent = [number for number in range(vectors) if number != 1]
    for number in sent:
        msix.device_sends(number)
    assert msix.pending == sum(1 << number for number in sent)
    guest.snapshot_and_restore()
    assert msix.pending == sum(1 << number for number in sent)
    msix.control(enable=True)
    for number in sent:
        assert guest.wait_vector(0x50 + number) == 1
    assert (guest.count(0x51), msix.pending) == (0, 0)


def test_pending_bits_are_read_only(guest, msix):
    put_into(msix, SHUT[-1])
    msix.device_sends(1)
    before = guest.rig.machine.counters()["faults"]["virtio-pci/rng"]
    guest.write32(msix.bar + PBA, 0)
    assert msix.pending == 1 << 1
    transport = guest.part("virtio-pci", "rng").transport
    assert transport.faults == before + 1
    transport.faults = before


# Open vectors


def test_open_vectors_fire_after_every_restore(guest, msix):
    msix.program(0, 0x50)
    msix.program(1, 0x51)
    msix.control(enable=True)
    for count in range(1, 4):
        for number in (0, 1):
            msix.device_sends(number)
            assert guest.wait_vector(0x50 + number, count) == count
        guest.snapshot_and_restore()
    settled(msix)
    assert [guest.count(0x50), guest.count(0x51)] == [3, 3]


def test_a_message_wakes_a_guest_that_was_restored_halted(guest, msix):
    put_into(msix, OPEN)
    guest.send("h 50 1")
    guest.snapshot_and_restore()
    msix.device_sends(1)
    assert int(guest.answer(), 16) == 1


@pytest.mark.parametrize("hold", ["task priority", "interrupt flag"])
def test_a_message_that_the_processor_holds_back_comes_once_after_a_restore(guest, msix, hold):
    put_into(msix, OPEN)
    guest.hold_interrupts() if hold == "task priority" else guest.cli()
    msix.device_sends(1)
    guest.snapshot_and_restore()
    assert (guest.count(0x50), msix.pending) == (0, 0)
    guest.let_interrupts() if hold == "task priority" else guest.sti()
    assert guest.wait_vector(0x50) == 1
    settled(msix)
    guest.snapshot_and_restore()
    settled(msix)
    assert guest.count(0x50) == 1


def test_a_changed_message_is_the_one_that_is_sent_before_and_after_a_restore(guest, msix):
    put_into(msix, OPEN)
    guest.write32(msix.entry(1) + DATA, 0x60)
    msix.device_sends(1)
    guest.wait_vector(0x60)
    msix.mask(1, True)
    guest.write32(msix.entry(1) + DATA, 0x70)
    msix.mask(1, False)
    guest.snapshot_and_restore()
    msix.device_sends(1)
    guest.wait_vector(0x70)
    settled(msix)
    assert [guest.count(vector) for vector in (0x50, 0x60, 0x70)] == [0, 1, 1]


def test_a_message_changed_while_it_pends_is_sent_as_it_is_when_unmasked(guest, msix):
    put_into(msix, "enabled, function open, entry masked")
    msix.device_sends(1)
    guest.snapshot_and_restore()
    guest.write32(msix.entry(1) + DATA, 0x60)
    msix.mask(1, False)
    guest.wait_vector(0x60)
    settled(msix)
    assert guest.count(0x50) == 0


# The enabling sequence

ENABLING = {
    "enabled with the function masked": lambda msix: msix.control(enable=True, function_mask=True),
    "address, low half": lambda msix: msix.guest.write32(msix.entry(1), MSI_ADDRESS),
    "address, high half": lambda msix: msix.guest.write32(msix.entry(1) + 4, 0),
    "data": lambda msix: msix.guest.write32(msix.entry(1) + DATA, 0x50),
    "entry unmasked": lambda msix: msix.mask(1, False),
    "function unmasked": lambda msix: msix.control(enable=True),
}
"""As Linux does it (drivers/pci/msi, msix_capability_init)."""


@pytest.mark.parametrize("owed", [False, True], ids=["nothing sent", "a message sent"])
@pytest.mark.parametrize("last", [None, *ENABLING], ids=lambda last: last or "nothing done")
def test_enabling_goes_on_after_a_snapshot(guest, msix, last, owed):
    steps = list(ENABLING)
    done = steps.index(last) + 1 if last else 0
    for name in steps[:done]:
        ENABLING[name](msix)
    if owed:
        msix.device_sends(1)
    guest.snapshot_and_restore()
    for name in steps[done:]:
        ENABLING[name](msix)
    if owed:
        guest.wait_vector(0x50)
    settled(msix)
    assert guest.count(0x50) == owed
    msix.device_sends(1)
    assert guest.wait_vector(0x50, 1 + owed) == 1 + owed
    assert msix.pending == 0


@pytest.mark.parametrize("last", ["moved", "decoding off"])
def test_vectors_stay_open_while_their_table_moves(guest, msix, last):
    put_into(msix, OPEN)
    guest.set_decoding(msix.slot, False)
    if last == "moved":
        msix.bar = guest.move_bar(msix.slot, 0, WINDOW_32 + 0x80_0000)
    guest.snapshot_and_restore()
    msix.device_sends(1)
    guest.wait_vector(0x50)
    guest.set_decoding(msix.slot, True)
    msix.mask(1, True)
    msix.device_sends(1)
    assert msix.pending == 1 << 1


# Two devices


def test_vectors_of_two_devices_do_not_touch_each_other(guest):
    devices = [Msix(guest, "rng"), Msix(guest, "balloon")]
    for device, first in zip(devices, (0x50, 0x60), strict=True):
        for number in (0, 1):
            device.program(number, first + number)
        device.control(enable=True)
    counts = dict.fromkeys((0x50, 0x51, 0x60, 0x61), 0)
    for shut in (None, 0, 1):
        if shut is not None:
            devices[shut].control(enable=True, function_mask=True)
        guest.snapshot_and_restore()
        for index, (device, first) in enumerate(zip(devices, (0x50, 0x60), strict=True)):
            for number in (0, 1):
                device.device_sends(number)
                if index != shut:
                    counts[first + number] += 1
                    guest.wait_vector(first + number, counts[first + number])
        assert {vector: guest.count(vector) for vector in counts} == counts
        if shut is not None:
            assert [device.pending for device in devices] == [0b11 * (index == shut) for index in (0, 1)]
            devices[shut].control(enable=True)
            for number in (0, 1):
                vector = (0x50, 0x60)[shut] + number
                counts[vector] += 1
                guest.wait_vector(vector, counts[vector])
    assert {vector: guest.count(vector) for vector in counts} == counts


def test_two_devices_may_send_the_same_vector(guest, msix):
    msix.program(1, FENCE)
    msix.control(enable=True)
    guest.snapshot_and_restore()
    for count, device in enumerate((msix, msix.fence, msix), 1):
        device.device_sends(1 if device is msix else FENCE_ENTRY)
        assert guest.wait_vector(FENCE, count) == count


# From a queue to the guest


def test_a_used_buffer_interrupts_by_the_vector_of_its_queue_across_snapshots(guest, msix):
    msix.program(0, 0x50)
    msix.program(1, 0x51)
    msix.control(enable=True)
    device = Entropy(guest, msix.bar, msix_vector=1)
    for count in range(1, 4):
        device.offer()
        device.ring()
        guest.wait_vector(0x51, count)
        assert device.wait() != bytes(16)
        guest.snapshot_and_restore()
    assert (guest.count(0x50), guest.count(0x51)) == (0, 3)


@pytest.mark.parametrize("state", SHUT)
def test_a_used_buffer_whose_vector_is_shut_interrupts_after_the_restore(guest, msix, state):
    device = Entropy(guest, msix.bar, msix_vector=1)
    put_into(msix, state)
    assert device.draw() != bytes(16)
    guest.snapshot_and_restore()
    settled(msix)
    assert guest.count(0x50) == 0
    shut_by_mask = STATES[state][0]
    assert msix.pending == shut_by_mask << 1, "without MSI-X there is no message, and so none that pends"
    msix.mask(1, False)
    msix.control(enable=True)
    if not shut_by_mask:
        device.draw()
    assert guest.wait_vector(0x50) == 1
    settled(msix)
    assert guest.count(0x50) == 1
