"""PCI as a guest sees it: enumeration, sizing, BARs that move, and snapshots in the middle of each.

PCI Local Bus Specification 3.0, chapters 3.2.2.3.2 and 6; every access is made by instructions of the guest `poke.c`.
"""

import errno
from contextlib import contextmanager

import pytest

from snapkit import host
from snapkit.restore.equality import differences, elapsed
from snapkit.restore.image import Image
from snapkit.units import GIB, KIB, MIB
from snapkit.vmm.parts.fresh import Asked
from snapkit.vmm.run_state import RunState
from tests.kvm.entropy import CONFIG_MSIX_VECTOR, DEVICE_STATUS, QUEUE_SIZE, Entropy
from tests.kvm.harness import restored
from tests.kvm.poker import (
    CONFIG_ADDRESS,
    CONFIG_DATA,
    ECAM,
    FREE_RAM,
    IOAPIC,
    MSI_ADDRESS,
    WINDOW_32,
    Poker,
    config_address,
)

RNG, BALLOON = Asked("virtio-rng", "rng"), Asked("virtio-balloon", "balloon")
RNG_SLOT, BALLOON_SLOT, EMPTY_SLOT = 1, 2, 3  # in the order in which they were asked for
VENDOR_ID, COMMAND, REVISION_ID, BAR0, BAR0_HIGH, BAR2 = 0x00, 0x04, 0x08, 0x10, 0x14, 0x18
COMMAND_MEMORY = 0x2
BAR_LEN = 512 * KIB
NUM_QUEUES = 0x12
MSIX_TABLE, MSIX_PBA, MSIX_ENABLE = 0x8000, 0x4_8000, 1 << 15
HIGH_WINDOW, HIGH_WINDOW_END = 256 * GIB, 512 * GIB
TYPE_64 = 0x4
ONES = 0xFFFF_FFFF
SIZE_LOW, SIZE_HIGH = ONES - BAR_LEN + 1 | TYPE_64, ONES


@pytest.fixture
def guest(tmp_path):
    with Poker(tmp_path, RNG, BALLOON) as guest:
        yield guest
        guest.rig.healthy()


def there(guest, bar):
    """Whether registers answer at *bar*: write one, read it back."""
    guest.write16(bar + CONFIG_MSIX_VECTOR, 1)
    first = guest.read16(bar + CONFIG_MSIX_VECTOR)
    guest.write16(bar + CONFIG_MSIX_VECTOR, 0)
    return (first, guest.read16(bar + CONFIG_MSIX_VECTOR)) == (1, 0)


def gone(guest, bar):
    """Whether every width at *bar* reads as all ones."""
    return guest.read8(bar + DEVICE_STATUS) == 0xFF and guest.read16(bar + QUEUE_SIZE) == 0xFFFF and absent(guest, bar)


def absent(guest, bar):
    return guest.read32(bar) == ONES and guest.read64(bar + 0x20) == (1 << 64) - 1


def faults(guest, section="pci-function/rng"):
    return guest.rig.machine.counters()["faults"][section]


@contextmanager
def stores(guest, device="rng"):
    """Offsets of the stores to the device's BAR that reach the monitor, instead of becoming a signal in the kernel."""
    transport, seen = guest.part("virtio-pci", device).transport, []

    def write(offset, length, value):
        seen.append(offset)
        type(transport).write(transport, offset, length, value)

    transport.write = write
    yield seen
    del transport.write


def failing(name, number):
    """Fail the next call *name* with *number*, and only that."""
    left = [name]

    def hook(call, _arguments):
        if call in left:
            left.remove(call)
            raise OSError(number, "injected")

    return host.inject(hook)


# Enumeration


def test_both_mechanisms_show_the_same_functions_in_the_same_slots(guest):
    ids = {ecam: [guest.config_read(slot, VENDOR_ID, ecam=ecam) for slot in range(32)] for ecam in (False, True)}
    assert ids[False] == ids[True]
    assert ids[True][:3] == [0x0D57_8086, 0x1044_1AF4, 0x1045_1AF4]
    assert ids[True][3:] == [ONES] * 29


@pytest.mark.parametrize("slot", [0, RNG_SLOT], ids=["host bridge", "device"])
def test_both_mechanisms_read_the_same_bytes(guest, slot):
    dwords = [guest.config_read(slot, at) for at in range(0, 256, 4)]
    assert guest.read_bytes(ECAM + (slot << 15), 256) == b"".join(value.to_bytes(4, "little") for value in dwords)
    for at in (VENDOR_ID + 2, COMMAND, REVISION_ID + 2, BAR0 + 2):
        half = dwords[at // 4] >> 8 * (at % 4) & 0xFFFF
        assert guest.config_read(slot, at, 2) == guest.config_read(slot, at, 2, ecam=True) == half
        assert guest.config_read(slot, at + 1, 1) == guest.config_read(slot, at + 1, 1, ecam=True) == half >> 8


def test_what_one_mechanism_writes_the_other_reads(guest):
    for ecam in (False, True):
        for value in (COMMAND_MEMORY, 0):
            guest.config_write(RNG_SLOT, COMMAND, value, 2, ecam=ecam)
            assert guest.config_read(RNG_SLOT, COMMAND, 2, ecam=not ecam) == value
            assert guest.config_read(BALLOON_SLOT, COMMAND, 2) == 0


def test_what_is_not_there_reads_as_ones_and_swallows_writes(guest):
    last_of_bus, behind_the_function = ECAM + MIB - 4, ECAM + (RNG_SLOT << 15) + 0x100
    second_function = ECAM + (RNG_SLOT << 15) + (1 << 12)
    for address in (last_of_bus, behind_the_function, second_function):
        guest.write32(address, 0)
        assert guest.read32(address) == ONES
    for latch in (config_address(RNG_SLOT, 0) | 1 << 8, config_address(RNG_SLOT, 0) | 1 << 16, RNG_SLOT << 11):
        guest.out_port(4, CONFIG_ADDRESS, latch)
        guest.out_port(4, CONFIG_DATA, 0)
        assert guest.in_port(4, CONFIG_DATA) == ONES
    assert guest.config_read(EMPTY_SLOT, COMMAND, 2) == 0xFFFF
    assert guest.config_read(RNG_SLOT, BAR2) == 0


def test_enumeration_is_the_same_after_a_restore(guest):
    before = [guest.config_read(slot, at, ecam=True) for slot in (0, 1, 2, 3) for at in range(0, 0xA8, 4)]
    guest.snapshot_and_restore()
    assert [guest.config_read(slot, at, ecam=True) for slot in (0, 1, 2, 3) for at in range(0, 0xA8, 4)] == before


def test_the_latch_survives_a_snapshot_between_address_and_data(guest):
    latch = config_address(BALLOON_SLOT, VENDOR_ID)
    guest.out_port(4, CONFIG_ADDRESS, latch)
    guest.snapshot_and_restore()
    assert guest.in_port(4, CONFIG_DATA) == 0x1045_1AF4
    assert guest.in_port(4, CONFIG_ADDRESS) == latch
    guest.out_port(4, CONFIG_ADDRESS, config_address(RNG_SLOT, COMMAND))
    guest.snapshot_and_restore()
    guest.out_port(2, CONFIG_DATA, COMMAND_MEMORY)
    assert guest.config_read(RNG_SLOT, COMMAND, 2, ecam=True) == COMMAND_MEMORY
    assert guest.config_read(BALLOON_SLOT, COMMAND, 2, ecam=True) == 0


# Sizing


@pytest.mark.parametrize("ecam", [False, True], ids=["ports", "ecam"])
def test_a_size_probe_gives_the_length_and_the_type_and_moves_nothing(guest, ecam):
    bar = guest.read_bar(RNG_SLOT, 0)
    guest.set_decoding(RNG_SLOT, True)
    before = [guest.config_read(RNG_SLOT, at, ecam=ecam) for at in (BAR0, BAR0_HIGH)]
    guest.config_write(RNG_SLOT, BAR0, ONES, ecam=ecam)
    assert guest.config_read(RNG_SLOT, BAR0, ecam=ecam) == SIZE_LOW
    assert there(guest, bar), "half a probe"
    guest.config_write(RNG_SLOT, BAR0_HIGH, ONES, ecam=ecam)
    assert guest.config_read(RNG_SLOT, BAR0_HIGH, ecam=ecam) == SIZE_HIGH
    assert there(guest, bar), "a whole probe"
    for at, value in zip((BAR0, BAR0_HIGH), before, strict=True):
        guest.config_write(RNG_SLOT, at, value, ecam=ecam)
    assert guest.read_bar(RNG_SLOT, 0) == bar
    assert there(guest, bar)


def test_registers_without_a_bar_are_sized_as_none(guest):
    for at in (*range(BAR2, 0x28, 4), 0x30):
        guest.config_write(RNG_SLOT, at, ONES)
        assert guest.config_read(RNG_SLOT, at) == 0


PROBE = (
    (BAR0, ONES, SIZE_LOW),
    (BAR0, TYPE_64, TYPE_64),
    (BAR0_HIGH, ONES, SIZE_HIGH),
    (BAR0_HIGH, HIGH_WINDOW >> 32, HIGH_WINDOW >> 32),
)
"""How Linux sizes a 64-bit BAR at 256 GiB: a half is set to ones, read, put back; then the other (register, value, read back)."""


@pytest.mark.parametrize("decoding", [False, True], ids=["not decoded", "decoded"])
@pytest.mark.parametrize("at", range(len(PROBE)), ids=["low ones", "low put back", "high ones", "high put back"])
def test_a_size_probe_goes_on_after_a_snapshot(guest, at, decoding):
    assert guest.read_bar(RNG_SLOT, 0) == HIGH_WINDOW
    guest.set_decoding(RNG_SLOT, decoding)
    for number, (register, value, expected) in enumerate(PROBE):
        guest.config_write(RNG_SLOT, register, value)
        if number == at:
            guest.snapshot_and_restore()
            assert there(guest, HIGH_WINDOW) is decoding
        assert guest.config_read(RNG_SLOT, register) == expected
    guest.set_decoding(RNG_SLOT, True)
    assert there(guest, HIGH_WINDOW)
    assert faults(guest) == 0


def test_a_probe_of_both_halves_at_once_goes_on_after_a_snapshot(guest):
    guest.write_bar(RNG_SLOT, 0, (1 << 64) - 1)
    guest.snapshot_and_restore()
    assert [guest.config_read(RNG_SLOT, at) for at in (BAR0, BAR0_HIGH)] == [SIZE_LOW, SIZE_HIGH]
    guest.write_bar(RNG_SLOT, 0, HIGH_WINDOW)
    guest.set_decoding(RNG_SLOT, True)
    assert there(guest, HIGH_WINDOW)


# Above 4 GiB


def test_a_bar_above_4_gib_is_read_and_written_at_every_width(guest):
    bar = guest.read_bar(RNG_SLOT, 0)
    assert HIGH_WINDOW <= bar < HIGH_WINDOW_END
    assert gone(guest, bar), "decoding is off"
    guest.set_decoding(RNG_SLOT, True)
    entry, ring = bar + 0x8000, bar + 0x20
    guest.write64(entry, 0x0000_0012_FEE0_1000)
    assert guest.read64(entry) == 0x0000_0012_FEE0_1000
    assert (guest.read32(entry), guest.read32(entry + 4)) == (0xFEE0_1000, 0x12)
    guest.write32(entry, 0xFEE0_2000)
    assert guest.read64(entry) == 0x0000_0012_FEE0_2000
    guest.write64(ring, FREE_RAM)
    assert guest.read64(ring) == FREE_RAM
    guest.write8(bar + DEVICE_STATUS, 1)
    assert guest.read8(bar + DEVICE_STATUS) == 1
    assert there(guest, bar)
    guest.snapshot_and_restore()
    assert guest.read64(entry) == 0x0000_0012_FEE0_2000
    assert guest.read64(ring) == FREE_RAM
    assert guest.read8(bar + DEVICE_STATUS) == 1
    assert there(guest, bar)


def test_a_device_above_4_gib_works_before_and_after_a_snapshot(guest):
    guest.set_decoding(RNG_SLOT, True)
    device = Entropy(guest, guest.read_bar(RNG_SLOT, 0))
    first = device.draw()
    guest.snapshot_and_restore()
    with stores(guest) as seen:
        assert device.draw() not in {first, bytes(16)}
        assert seen == [], "the doorbell reached the monitor as a store"


def test_a_bar_moves_inside_the_high_window_and_into_the_low_one_and_back(guest):
    guest.set_decoding(RNG_SLOT, True)
    old, places = guest.read_bar(RNG_SLOT, 0), (HIGH_WINDOW_END - BAR_LEN, WINDOW_32, HIGH_WINDOW + GIB)
    for bar in places:
        guest.move_bar(RNG_SLOT, 0, bar)
        assert there(guest, bar)
        assert gone(guest, old)
        guest.snapshot_and_restore()
        assert there(guest, bar)
        assert gone(guest, old)
        old = bar
    assert faults(guest) == 0


# Moving


def test_a_moved_bar_works_before_after_and_across_a_snapshot(guest):
    first, second, third = WINDOW_32, WINDOW_32 + 4 * BAR_LEN, WINDOW_32 + BAR_LEN
    device = Entropy(guest, guest.move_bar(RNG_SLOT, 0, first))
    drawn = [device.draw()]
    device.bar = guest.move_bar(RNG_SLOT, 0, second)
    assert guest.read_bar(RNG_SLOT, 0) == second
    assert gone(guest, first)
    drawn.append(device.draw())
    guest.snapshot_and_restore()
    assert guest.read_bar(RNG_SLOT, 0) == second
    assert gone(guest, first)
    drawn.append(device.draw())
    device.bar = guest.move_bar(RNG_SLOT, 0, third)
    assert gone(guest, second)
    drawn.append(device.draw())
    assert len({*drawn, bytes(16)}) == 5, "not every draw brought new bytes"


def test_doorbells_follow_a_moved_bar_and_stay_in_the_kernel(guest):
    old = WINDOW_32
    device = Entropy(guest, guest.move_bar(RNG_SLOT, 0, old))
    for number in (1, 2):
        device.bar = guest.move_bar(RNG_SLOT, 0, old + 2 * BAR_LEN)
        for snapshot in (False, True):
            if snapshot:
                guest.snapshot_and_restore()
            with stores(guest) as seen, guest.unserved():
                device.offer()
                unclaimed = guest.rig.vm.mmio.unclaimed
                device.ring(old)
                assert guest.rig.vm.mmio.unclaimed == unclaimed + 1, "the doorbell at the old address still rings"
                (doorbell,) = guest.part("virtio-pci", "rng").transport.doorbell_fds()
                assert host.eventfd_take(doorbell) == 0
                device.ring()
                assert host.eventfd_take(doorbell) == 1
                assert seen == [], f"move {number}: the doorbell reached the monitor as a store"
                device.ring()
            assert device.wait() != bytes(16)
        old = device.bar


def test_no_doorbell_rings_while_decoding_is_off(guest):
    device = Entropy(guest, guest.move_bar(RNG_SLOT, 0, WINDOW_32))
    device.offer()
    guest.set_decoding(RNG_SLOT, False)
    for _ in range(2):
        assert gone(guest, device.bar)
        with guest.unserved():
            device.ring()
            (doorbell,) = guest.part("virtio-pci", "rng").transport.doorbell_fds()
            assert host.eventfd_take(doorbell) == 0
        guest.snapshot_and_restore()
    guest.set_decoding(RNG_SLOT, True)
    with stores(guest) as seen:
        device.ring()
        assert device.wait() != bytes(16)
        assert seen == []


def test_a_doorbell_rung_and_not_served_before_a_snapshot_is_served_after_it(guest):
    device = Entropy(guest, guest.move_bar(RNG_SLOT, 0, WINDOW_32))
    with guest.unserved():
        device.offer()
        device.ring()
        assert device.done() == 0
        path = guest.save()
    guest.close()
    guest.restore(path)
    assert device.wait() != bytes(16)


@pytest.mark.parametrize("halves", [1, 2], ids=["low half written", "both halves written"])
def test_a_pending_move_survives_a_snapshot_and_completes_when_decoding_goes_on(guest, halves):
    device = Entropy(guest, guest.move_bar(RNG_SLOT, 0, WINDOW_32))
    new = WINDOW_32 + 8 * BAR_LEN
    guest.set_decoding(RNG_SLOT, False)
    guest.config_write(RNG_SLOT, BAR0, new & ONES)
    if halves == 2:
        new += HIGH_WINDOW - WINDOW_32
        guest.write_bar(RNG_SLOT, 0, new)
    for _ in range(2):
        guest.snapshot_and_restore()
        assert guest.read_bar(RNG_SLOT, 0) == new
        assert gone(guest, WINDOW_32)
        assert gone(guest, new)
    guest.set_decoding(RNG_SLOT, True)
    assert gone(guest, WINDOW_32)
    device.bar = new
    with stores(guest) as seen:
        assert device.draw() != bytes(16)
        assert seen == []
    assert faults(guest) == 0


def test_a_place_that_was_left_can_be_taken_by_another_after_a_snapshot(guest):
    guest.move_bar(RNG_SLOT, 0, WINDOW_32)
    guest.move_bar(BALLOON_SLOT, 0, WINDOW_32 + BAR_LEN)
    guest.snapshot_and_restore()
    guest.move_bar(RNG_SLOT, 0, WINDOW_32 + 2 * BAR_LEN)
    guest.move_bar(BALLOON_SLOT, 0, WINDOW_32)
    guest.snapshot_and_restore()
    assert guest.read16(WINDOW_32 + NUM_QUEUES) > 1, "the balloon"
    assert guest.read16(WINDOW_32 + 2 * BAR_LEN + NUM_QUEUES) == 1, "the entropy device"
    assert gone(guest, WINDOW_32 + BAR_LEN)
    assert faults(guest) == faults(guest, "pci-function/balloon") == 0


IMPOSSIBLE = {
    "another BAR": WINDOW_32 + 16 * BAR_LEN,
    "RAM": 0,
    "the ECAM": ECAM,
    "the IOAPIC": IOAPIC & -BAR_LEN,
    "between the windows": 4 * GIB,
    "behind the high window": HIGH_WINDOW_END,
    "the last place": (1 << 64) - BAR_LEN,
}


@pytest.mark.parametrize("where", IMPOSSIBLE)
def test_a_move_that_cannot_be_done_leaves_the_old_place_working(guest, where):
    guest.move_bar(BALLOON_SLOT, 0, IMPOSSIBLE["another BAR"])
    device = Entropy(guest, guest.move_bar(RNG_SLOT, 0, WINDOW_32))
    assert faults(guest) == 0
    guest.move_bar(RNG_SLOT, 0, IMPOSSIBLE[where])
    assert faults(guest) == 1
    for _ in range(2):
        assert guest.read_bar(RNG_SLOT, 0) == IMPOSSIBLE[where], "what was written is what is read"
        assert guest.config_read(RNG_SLOT, COMMAND, 2) & COMMAND_MEMORY
        assert device.draw() != bytes(16)
        assert there(guest, IMPOSSIBLE["another BAR"])
        guest.snapshot_and_restore()
    assert there(guest, guest.move_bar(RNG_SLOT, 0, WINDOW_32 + BAR_LEN))
    assert gone(guest, WINDOW_32)


def test_a_move_whose_doorbells_the_kernel_refuses_leaves_the_old_place_working(guest):
    device, new = Entropy(guest, guest.move_bar(RNG_SLOT, 0, WINDOW_32)), WINDOW_32 + BAR_LEN
    with failing("KVM_IOEVENTFD", errno.ENOSPC):
        guest.config_write(RNG_SLOT, BAR0, new)
    assert faults(guest) == 1
    assert gone(guest, new)
    guest.snapshot_and_restore()
    with stores(guest) as seen:
        assert device.draw() != bytes(16)
        assert seen == []
    device.bar = guest.move_bar(RNG_SLOT, 0, new)
    assert gone(guest, WINDOW_32)
    assert device.draw() != bytes(16)


def test_a_move_with_decoding_on_is_done_at_once(guest):
    guest.move_bar(RNG_SLOT, 0, WINDOW_32)
    guest.config_write(RNG_SLOT, BAR0, WINDOW_32 + BAR_LEN, ecam=True)
    assert gone(guest, WINDOW_32)
    assert there(guest, WINDOW_32 + BAR_LEN)
    guest.snapshot_and_restore()
    assert gone(guest, WINDOW_32)
    assert there(guest, WINDOW_32 + BAR_LEN)


# Equal saves


def prepare_fresh(_guest):
    """As it was switched on."""


def prepare_moved_and_driven(guest):
    Entropy(guest, guest.move_bar(RNG_SLOT, 0, WINDOW_32)).draw()


def prepare_half_done(guest):
    guest.write_bar(RNG_SLOT, 0, WINDOW_32)
    guest.config_write(BALLOON_SLOT, BAR0, ONES)
    guest.out_port(4, CONFIG_ADDRESS, config_address(BALLOON_SLOT, BAR0_HIGH))


def prepare_messages(guest):
    """One vector open, one masked, one message pending."""
    bar = guest.move_bar(RNG_SLOT, 0, WINDOW_32)
    guest.write64(bar + MSIX_TABLE, MSI_ADDRESS)
    guest.write64(bar + MSIX_TABLE + 8, 0x50)
    guest.config_write(RNG_SLOT, guest.msix_capability(RNG_SLOT) + 2, MSIX_ENABLE, 2)
    with guest.rig.vm.lock:
        guest.part("pci-msix", "rng").msix.trigger(1)
    assert guest.read32(bar + MSIX_PBA) == 1 << 1


@pytest.mark.parametrize("prepare", [prepare_fresh, prepare_moved_and_driven, prepare_half_done, prepare_messages])
def test_a_machine_with_pci_devices_is_saved_as_it_was_restored(guest, prepare):
    prepare(guest)
    path = guest.save()
    first = guest.rig.vcpus[0]
    khz = first.thread.call(first.state._fd.get_tsc_khz)
    with Image.open(path) as image:
        before = image.sections().states
    start_ns = host.monotonic_ns()
    with restored(path, before="activate") as copy:
        copy.machine.run_state = RunState.PAUSED  # nothing was activated; only `save` looks at this
        after = copy.machine.save()
        passed = elapsed(host.monotonic_ns() - start_ns, tsc_khz=khz)
        assert {section.kind for section in before} >= {"pci-segment", "pci-function", "pci-msix", "virtio-pci"}
        assert differences(before, after, passed) == []
