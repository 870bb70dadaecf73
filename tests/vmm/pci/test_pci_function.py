"""Configuration space and BARs. Numbers re-declared from the PCI Local Bus Specification 3.0, chapter 6."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit.errors import ConfigError, ImageError, InternalError, SnapkitError
from snapkit.state.codec import encode
from snapkit.state.pci_function import BarState, PciFunctionState, capabilities, find_capability, invariants
from snapkit.vmm.pci import layout
from snapkit.vmm.pci.pci_function import PciFunction, PciFunctionArgs
from tests.vmm.pci.rig import (
    BAR0,
    BAR_LEN,
    COMMAND,
    MEMORY,
    MMIO32,
    MMIO32_END,
    MMIO64,
    MMIO64_END,
    PROBE,
    SMALL_LEN,
    STATUS,
    Rig,
    Target,
    decoding,
    fresh,
    point,
)

VENDOR, DEVICE, REVISION, CLASS, CACHE_LINE, HEADER_TYPE = 0x00, 0x02, 0x08, 0x09, 0x0C, 0x0E
SUBSYSTEM_VENDOR, SUBSYSTEM, ROM, CAPABILITIES, INTERRUPT_LINE, INTERRUPT_PIN = 0x2C, 0x2E, 0x30, 0x34, 0x3C, 0x3D
IO, MASTER, PARITY, SERR, INTX_OFF = 0x0001, 0x0004, 0x0040, 0x0100, 0x0400
CAP_LIST = 0x0010
TYPE_64 = 0x4
MSIX = 0x11
ELSEWHERE = {32: MMIO32 + 0x100_0000, 64: MMIO64 + 0x12_0000_0000}  # one half differs: a 64-bit move in one write


class Bench(Rig):
    """One function with one BAR, its target attached."""

    def __init__(self, width: int = 64, state: PciFunctionState | None = None) -> None:
        super().__init__()
        self.width, self.target = width, Target()
        self.start = MMIO64 if width == 64 else MMIO32
        self.new = ELSEWHERE[width]
        self.chip = self.function(state or fresh(width=width), "root", self.target)

    @property
    def address(self) -> int:
        return self.chip.state.bars[0].address

    def register(self) -> int:
        low = self.chip.read_config(BAR0, 4)
        return low | self.chip.read_config(BAR0 + 4, 4) << 32 if self.width == 64 else low

    def point(self, address: int) -> None:
        point(self.chip, address, width=self.width)

    def on(self) -> None:
        decoding(self.chip, on=True)

    def off(self) -> None:
        decoding(self.chip, on=False)

    def taken(self) -> set[int]:
        """Return the addresses that are claimed for BARs."""
        return {start for pool, start, length in self.claims() if pool.startswith("mmio") and length == BAR_LEN}


@pytest.fixture(params=[32, 64], ids=["32-bit", "64-bit"])
def bench(request):
    return Bench(request.param)


# Claims


def test_constructing_claims_the_slot_and_the_bar_and_is_on_no_bus(bench):
    rig = Rig()
    rig.function(fresh(3, width=bench.width))
    assert rig.claims() == {("pci-slot", 3, 1), (f"mmio{bench.width}", bench.start, BAR_LEN)}
    assert rig.ranges() == []


def test_slot_that_is_taken_refuses_the_function_and_leaves_nothing_claimed():
    rig = Rig()
    rig.function(fresh(3))
    with pytest.raises(ConfigError, match="pci-function/root"):
        rig.function(fresh(3, address=MMIO64 + BAR_LEN), "other")
    assert rig.claims("other") == set()


def test_bar_that_is_taken_refuses_the_function_and_leaves_nothing_claimed():
    rig = Rig()
    rig.function(fresh(3))
    with pytest.raises(ConfigError, match="pci-function/root"):
        rig.function(fresh(4), "other")
    assert rig.claims("other") == set()


def test_bar_outside_the_windows_refuses_the_function_by_name():
    rig = Rig()
    with pytest.raises(ConfigError, match=r"pci-function/root BAR 0 is at 0x8000000000\.\..* window"):
        rig.function(fresh(address=MMIO64_END))
    assert rig.claims() == set()


def test_host_bridge_is_in_slot_0_and_claims_nothing():
    rig = Rig()
    bridge = rig.function(layout.host_bridge(), "host-bridge")
    assert rig.claims("host-bridge") == set()
    assert bridge.read_config(VENDOR, 4) == 0x0D57_8086
    assert bridge.read_config(CLASS, 3) == 0x060000
    bridge.close()


def test_close_gives_claims_and_range_back_once(bench):
    bench.on()
    bench.chip.close()
    bench.chip.close()
    assert bench.claims() == set()
    assert bench.ranges() == []


def test_restore_refuses_a_state_out_of_bounds_by_its_field():
    rig = Rig()
    state = msgspec.structs.replace(fresh(), slot=32)
    with pytest.raises(ImageError, match="slot"):
        PciFunction.restore(state, PciFunctionArgs(rig.resources, rig.bus, "pci-function/root"))


def test_target_can_be_attached_once_and_only_where_there_is_a_bar(bench):
    for index in (0, 3):
        with pytest.raises(InternalError):
            bench.chip.attach(index, Target())


# Header


def test_identity_is_read_only():
    bench = Bench()
    before = bench.chip.state.config
    for offset in (VENDOR, DEVICE, STATUS, REVISION, CLASS, HEADER_TYPE, SUBSYSTEM_VENDOR, SUBSYSTEM):
        bench.chip.write_config(offset, 1, ~before[offset] & 0xFF)
    for offset in (ROM, CAPABILITIES, *range(BAR0 + 8, BAR0 + 24, 4)):
        bench.chip.write_config(offset, 4, PROBE)
    bench.chip.write_config(INTERRUPT_PIN, 1, 0xFF)
    assert bench.chip.state.config == before
    assert bench.chip.read_config(ROM, 4) == 0
    assert bench.chip.read_config(STATUS, 2) == CAP_LIST


def test_command_register_takes_memory_master_errors_and_intx_only():
    bench = Bench()
    bench.chip.write_config(COMMAND, 2, 0xFFFF)
    assert bench.chip.read_config(COMMAND, 2) == MEMORY | MASTER | PARITY | SERR | INTX_OFF
    bench.chip.write_config(COMMAND, 2, IO)
    assert bench.chip.read_config(COMMAND, 2) == 0


def test_scratch_registers_read_back():
    bench = Bench()
    bench.chip.write_config(INTERRUPT_LINE, 1, 0x5A)
    bench.chip.write_config(CACHE_LINE, 4, 0xFFFF_FF10)
    assert bench.chip.read_config(INTERRUPT_LINE, 2) == 0x5A
    assert bench.chip.read_config(CACHE_LINE, 4) == 0x10


def test_bytes_and_words_of_a_dword_are_reached_by_themselves():
    bench = Bench()
    assert [bench.chip.read_config(offset, 1) for offset in range(4)] == [0xF4, 0x1A, 0x42, 0x10]
    assert bench.chip.read_config(DEVICE, 2) == 0x1042
    assert bench.chip.read_config(1, 2) == 0x421A
    bench.chip.write_config(COMMAND, 1, MEMORY)
    bench.chip.write_config(COMMAND + 1, 1, INTX_OFF >> 8)
    assert bench.chip.read_config(COMMAND, 2) == MEMORY | INTX_OFF
    bench.chip.write_config(BAR0 + 2, 1, 0x18)
    assert bench.chip.read_config(BAR0, 4) == 0x18_0004


@pytest.mark.parametrize("offset", [-1, 0, 1, 2, 3, 5, 0x3F, 0xFC, 0xFF, 0x100, 0x1000])
@pytest.mark.parametrize("length", [-1, 0, 1, 2, 3, 4, 5, 7, 8, 16])
def test_every_width_at_every_offset_is_total_and_what_leaves_a_dword_is_a_counted_fault(offset, length):
    bench = Bench()
    before = bench.chip.state.config
    inside = 0 <= offset < 0x100 and length > 0 and offset % 4 + length <= 4
    bench.chip.write_config(offset, length, (1 << 8 * max(length, 0)) - 1)
    value = bench.chip.read_config(offset, length)
    if inside:
        assert value == int.from_bytes(bench.chip.state.config[offset : offset + length], "little")
        assert bench.chip.faults == 0
    else:
        assert value == (1 << 8 * max(length, 0)) - 1
        assert bench.chip.state.config == before
        assert bench.chip.faults == 2


# Hooks


def test_write_hook_is_told_the_part_of_a_write_in_its_range_after_it_was_stored():
    bench, told = Bench(), []
    bench.chip.allow_writes(0x80, 4, 0x00F0_FF00)
    bench.chip.on_config_write(
        0x81, 2, lambda offset, length, value: told.append((offset, length, value, bench.chip.state.config[0x81]))
    )
    bench.chip.write_config(0x80, 4, 0x1122_3344)
    bench.chip.write_config(0x82, 1, 0x77)
    bench.chip.write_config(0x84, 4, 0)
    assert told == [(0, 2, 0x2233, 0x33), (1, 1, 0x77, 0x33)]
    assert bench.chip.read_config(0x80, 4) == 0x0070_3300


def test_read_hook_answers_for_its_range_only():
    bench, asked = Bench(), []

    def answer(offset: int, length: int) -> int:
        asked.append((offset, length))
        return 0xAABB_CCDD  # more than was asked for

    bench.chip.on_config_read(0x8E, 4, answer)
    assert bench.chip.read_config(0x8C, 4) == 0xCCDD_0000
    assert bench.chip.read_config(0x90, 1) == 0xDD
    assert bench.chip.read_config(0x92, 2) == 0
    assert asked == [(0, 2), (2, 1)]


def test_header_bits_cannot_be_made_writable():
    with pytest.raises(InternalError):
        Bench().chip.allow_writes(0x3C, 4, 0xFF)


# Decoding


def test_bar_is_on_the_bus_while_decoding_is_on_and_keeps_its_claim_while_it_is_off(bench):
    assert bench.chip.decoded(0) is None
    bench.on()
    assert bench.chip.decoded(0) == bench.start
    assert bench.bus.read(bench.start + 8, 4) == bench.target.name
    bench.off()
    assert bench.chip.decoded(0) is None
    assert bench.ranges() == []
    assert bench.taken() == {bench.start}
    assert bench.target.told == [("mapped", bench.start), ("unmapped", bench.start)]


def test_command_written_again_with_decoding_on_does_nothing(bench):
    bench.on()
    bench.chip.write_config(COMMAND, 2, MEMORY | MASTER)
    assert bench.target.told == [("mapped", bench.start)]


# Size probes


@pytest.mark.parametrize("on", [False, True], ids=["decoding-off", "decoding-on"])
def test_all_ones_read_back_as_the_length_and_move_nothing(bench, on):
    decoding(bench.chip, on)
    told = list(bench.target.told)
    saved = bench.register()
    bench.point(PROBE | PROBE << 32 if bench.width == 64 else PROBE)
    type_bits = TYPE_64 if bench.width == 64 else 0
    assert bench.register() == ((1 << bench.width) - BAR_LEN) | type_bits
    assert (bench.address, bench.taken(), bench.target.told) == (bench.start, {bench.start}, told)
    bench.chip.write_config(BAR0, 4, saved & PROBE)
    if bench.width == 64:
        bench.chip.write_config(BAR0 + 4, 4, saved >> 32)
    assert bench.register() == saved
    assert bench.target.told == told
    assert bench.chip.decoded(0) == (bench.start if on else None)


@pytest.mark.parametrize("on", [False, True], ids=["decoding-off", "decoding-on"])
def test_each_half_of_a_64_bit_bar_is_probed_by_itself(on):
    bench = Bench(64)
    decoding(bench.chip, on)
    told = list(bench.target.told)
    for offset, mask in ((BAR0, 0xFFF8_0004), (BAR0 + 4, 0xFFFF_FFFF)):
        saved = bench.chip.read_config(offset, 4)
        bench.chip.write_config(offset, 4, PROBE)
        assert bench.chip.read_config(offset, 4) == mask
        bench.chip.write_config(offset, 4, saved)
    assert (bench.address, bench.target.told) == (MMIO64, told)


def test_probe_left_with_decoding_on_leaves_the_bar_where_it_was(bench):
    bench.on()
    bench.chip.write_config(BAR0, 4, PROBE)
    assert bench.chip.decoded(0) == bench.start
    assert bench.bus.read(bench.start, 4) == bench.target.name


# Moves


def test_move_with_decoding_on_tells_the_new_place_before_the_old_one_goes(bench):
    bench.on()
    bench.point(bench.new)
    moves = [at for what, at in bench.target.told if what == "mapped"]
    assert moves[-1] == bench.new
    assert bench.target.told[-2] == ("mapped", bench.new)
    assert bench.target.told[-1][0] == "unmapped"
    assert (bench.address, bench.chip.decoded(0), bench.taken()) == (bench.new, bench.new, {bench.new})
    assert bench.ranges() == [(bench.new, BAR_LEN)]
    assert bench.bus.read(bench.start, 4) == 0xFFFF_FFFF
    assert bench.chip.faults == 0


def test_while_a_bar_moves_both_places_answer():
    answers = []

    class Asking(Target):
        def unmapped(self, base: int) -> None:
            answers.append((rig.bus.read(base, 4), rig.bus.read(ELSEWHERE[32], 4)))

    rig = Rig()
    chip = rig.function(fresh(width=32), "root", Asking(0x33))
    decoding(chip, on=True)
    point(chip, ELSEWHERE[32], width=32)
    assert answers == [(0x33, 0x33)]


def test_each_half_written_with_decoding_on_is_a_move_of_its_own():
    bench = Bench(64)
    bench.on()
    bench.chip.write_config(BAR0, 4, 0x3400_0000)
    assert bench.chip.decoded(0) == MMIO64 + 0x3400_0000
    bench.chip.write_config(BAR0 + 4, 4, 0x52)
    assert bench.target.told == [
        ("mapped", MMIO64),
        ("mapped", 0x40_3400_0000),
        ("unmapped", MMIO64),
        ("mapped", 0x52_3400_0000),
        ("unmapped", 0x40_3400_0000),
    ]
    assert bench.taken() == {0x52_3400_0000}


def test_pending_move_takes_effect_when_decoding_is_turned_on(bench):
    bench.point(bench.new)
    assert (bench.address, bench.taken(), bench.ranges()) == (bench.start, {bench.start}, [])
    bench.on()
    assert bench.target.told == [("mapped", bench.new)]
    assert (bench.address, bench.chip.decoded(0), bench.taken()) == (bench.new, bench.new, {bench.new})


def test_pending_move_that_is_taken_back_moves_nothing(bench):
    bench.point(bench.new)
    bench.point(bench.start)
    bench.on()
    assert bench.target.told == [("mapped", bench.start)]
    assert bench.chip.faults == 0


def test_64_bit_bar_may_move_below_4_gib_and_back():
    bench = Bench(64)
    bench.point(MMIO32)
    bench.on()
    assert bench.claims() == {("pci-slot", 1, 1), ("mmio32", MMIO32, BAR_LEN)}
    bench.off()
    bench.point(MMIO64_END - BAR_LEN)
    bench.on()
    assert bench.claims() == {("pci-slot", 1, 1), ("mmio64", MMIO64_END - BAR_LEN, BAR_LEN)}


def test_bar_may_move_to_its_neighbouring_range(bench):
    bench.on()
    bench.point(bench.start + BAR_LEN)
    bench.point(bench.start)
    assert (bench.address, bench.taken(), bench.chip.faults) == (bench.start, {bench.start}, 0)


def test_bit_below_the_length_is_not_in_the_register(bench):
    bench.point(bench.new | BAR_LEN >> 1)
    assert bench.register() & ~0xF == bench.new


# Moves that cannot be done


@pytest.mark.parametrize("pending", [False, True], ids=["decoding-on", "pending"])
@pytest.mark.parametrize(
    "where", [0, 0x1000_0000, MMIO32 - BAR_LEN, MMIO32_END, 0xFEE0_0000 & -BAR_LEN, 0xFFF8_0000], ids=hex
)
def test_move_out_of_the_windows_leaves_the_old_place_working(bench, where, pending):
    if not pending:
        bench.on()
    bench.point(where)
    if pending:
        bench.on()
    assert (bench.address, bench.chip.decoded(0), bench.taken()) == (bench.start, bench.start, {bench.start})
    assert bench.bus.read(bench.start, 4) == bench.target.name
    assert bench.chip.faults >= 1
    assert bench.register() & ~0xF == where


def test_64_bit_move_over_the_end_of_its_window_leaves_the_old_place_working():
    bench = Bench(64)
    bench.on()
    bench.point(MMIO64_END)
    assert (bench.address, bench.taken()) == (MMIO64, {MMIO64})


@pytest.mark.parametrize("end", [MMIO32_END, MMIO32_END - BAR_LEN], ids=["inside", "over its start"])
def test_a_bar_does_not_move_to_what_is_reserved_inside_a_window(end):
    rig, target = Rig(), Target()
    args = PciFunctionArgs(
        rig.resources, rig.bus, "pci-function/root", range(MMIO32_END - BAR_LEN - 0x1000, MMIO32_END)
    )
    function = PciFunction.restore(fresh(), args)
    function.attach(0, target)
    decoding(function, on=True)
    point(function, end - BAR_LEN)
    assert (function.decoded(0), rig.claims()) == (MMIO64, {("pci-slot", 1, 1), ("mmio64", MMIO64, BAR_LEN)})
    assert function.faults >= 1
    point(function, MMIO32_END - 3 * BAR_LEN)
    assert function.decoded(0) == MMIO32_END - 3 * BAR_LEN


@pytest.mark.parametrize("pending", [False, True], ids=["decoding-on", "pending"])
def test_move_onto_another_bar_leaves_both_where_they_are(bench, pending):
    other = bench.function(fresh(2, width=bench.width, address=bench.new), "other", Target(0x77))
    decoding(other, on=True)
    if not pending:
        bench.on()
    bench.point(bench.new)
    if pending:
        bench.on()
    assert bench.bus.read(bench.start, 4) == bench.target.name
    assert bench.bus.read(bench.new, 4) == 0x77
    assert bench.taken() == {bench.start}
    assert bench.chip.faults >= 1


def test_move_that_failed_is_done_once_its_place_is_free_and_decoding_is_turned_on(bench):
    other = bench.function(fresh(2, width=bench.width, address=bench.new), "other", Target())
    bench.point(bench.new)
    bench.on()
    other.close()
    bench.chip.write_config(COMMAND, 2, MEMORY | MASTER)
    assert bench.address == bench.start
    bench.off()
    bench.on()
    assert (bench.address, bench.taken()) == (bench.new, {bench.new})


def test_move_onto_a_range_that_only_the_bus_knows_is_undone(bench):
    bench.bus.insert(bench.new + BAR_LEN - 8, 8, Target())
    bench.on()
    bench.point(bench.new)
    assert (bench.address, bench.chip.decoded(0), bench.taken()) == (bench.start, bench.start, {bench.start})
    assert bench.chip.faults >= 1


@pytest.mark.parametrize("pending", [False, True], ids=["decoding-on", "pending"])
def test_target_that_refuses_its_new_place_keeps_the_old_one(bench, pending):
    bench.target.refusing = {bench.new}
    if not pending:
        bench.on()
    bench.point(bench.new)
    if pending:
        bench.on()
    assert bench.target.told == [("mapped", bench.start)]
    assert (bench.address, bench.chip.decoded(0), bench.taken()) == (bench.start, bench.start, {bench.start})
    assert bench.ranges() == [(bench.start, BAR_LEN)]
    assert bench.chip.faults >= 1
    bench.target.refusing = False
    bench.point(bench.new)
    assert bench.address == bench.new


def test_decoding_that_cannot_be_turned_on_reads_as_off(bench):
    bench.target.refusing = True
    bench.chip.write_config(COMMAND, 2, MEMORY | MASTER)
    assert bench.chip.read_config(COMMAND, 2) == MASTER
    assert (bench.chip.decoded(0), bench.ranges(), bench.taken()) == (None, [], {bench.start})
    bench.target.refusing = False
    bench.on()
    assert bench.chip.decoded(0) == bench.start


def two_bars() -> PciFunctionState:
    config = layout.header(vendor=0x1AF4, device=0x1044, class_code=0)
    bars = [
        layout.add_bar(config, 0, width=64, address=MMIO64, length=BAR_LEN),
        layout.add_bar(config, 2, width=32, address=MMIO32, length=SMALL_LEN),
    ]
    return PciFunctionState(slot=1, config=bytes(config), bars=bars)


def test_either_all_bars_are_decoded_or_none():
    rig, first, second = Rig(), Target(), Target()
    chip = rig.function(two_bars(), "root", first, second)
    second.refusing = True
    decoding(chip, on=True)
    assert rig.ranges() == []
    assert first.told == [("mapped", MMIO64), ("unmapped", MMIO64)]
    assert chip.read_config(COMMAND, 2) == 0
    second.refusing = False
    decoding(chip, on=True)
    assert rig.ranges() == [(MMIO32, SMALL_LEN), (MMIO64, BAR_LEN)]


def test_bars_of_one_function_move_by_themselves():
    rig, first, second = Rig(), Target(), Target()
    chip = rig.function(two_bars(), "root", first, second)
    decoding(chip, on=True)
    point(chip, MMIO32 + SMALL_LEN, index=2, width=32)
    assert (chip.decoded(0), chip.decoded(2)) == (MMIO64, MMIO32 + SMALL_LEN)
    assert first.told == [("mapped", MMIO64)]


# Save and restore


def moves(new: int, width: int) -> list[tuple[int, int, int]]:
    """Return config writes: both halves probed with decoding off, a move pending, decoded, moved again while decoded."""
    high = [(BAR0 + 4, 4, PROBE), (BAR0 + 4, 4, new >> 32)] if width == 64 else []
    again = new + 4 * BAR_LEN
    return [
        (COMMAND, 2, MEMORY),
        (COMMAND, 2, 0),
        (BAR0, 4, PROBE),
        *high[:1],
        (BAR0, 4, new & PROBE),
        *high[1:],
        (COMMAND, 2, MEMORY),
        (BAR0, 4, again & PROBE),
        (BAR0, 4, PROBE),
        (COMMAND, 2, 0),
        (BAR0, 4, again & PROBE),
        (COMMAND, 2, MEMORY | MASTER),
        (BAR0, 4, 0x10),
    ]


@pytest.mark.parametrize("width", [32, 64])
def test_save_restore_save_is_equal_after_every_step_and_the_rest_goes_as_without(width):
    steps = moves(ELSEWHERE[width], width)
    unbroken = Bench(width)
    for step in steps:
        unbroken.chip.write_config(*step)
    for cut in range(len(steps) + 1):
        before = Bench(width)
        for step in steps[:cut]:
            before.chip.write_config(*step)
        saved = before.chip.save()
        after = Bench(width, saved)
        assert encode(after.chip.save()) == encode(saved)
        assert after.target.told == [], "a restore is inert"
        assert (after.claims(), after.ranges()) == (before.claims(), before.ranges())
        assert after.chip.decoded(0) == before.chip.decoded(0)
        assert invariants(saved, "pci-function/root") == []
        for step in steps[cut:]:
            after.chip.write_config(*step)
        assert encode(after.chip.save()) == encode(unbroken.chip.save())
        assert after.ranges() == unbroken.ranges()


def test_pending_move_survives_a_save_and_is_done_after_it(bench):
    bench.point(bench.new)
    after = Bench(bench.width, bench.chip.save())
    assert (after.address, after.register() & ~0xF) == (bench.start, bench.new)
    after.on()
    assert (after.address, after.taken(), after.target.told) == (bench.new, {bench.new}, [("mapped", bench.new)])


def test_half_done_probe_survives_a_save(bench):
    bench.chip.write_config(BAR0, 4, PROBE)
    after = Bench(bench.width, bench.chip.save())
    assert after.chip.read_config(BAR0, 4) == (0xFFF8_0000 | (TYPE_64 if bench.width == 64 else 0))
    after.chip.write_config(BAR0, 4, bench.start & PROBE)
    after.on()
    assert (after.address, after.chip.faults) == (bench.start, 0)


def test_save_is_detached():
    bench = Bench()
    saved = bench.chip.save()
    bench.on()
    bench.point(bench.new)
    assert saved.bars[0].address == MMIO64
    assert saved.config[COMMAND] == 0


def test_restored_function_whose_range_is_taken_on_the_bus_is_refused(bench):
    bench.on()
    rig = Rig()
    rig.bus.insert(bench.start, 8, Target())
    chip = rig.function(bench.chip.save())
    with pytest.raises(SnapkitError, match="overlaps"):
        chip.attach(0, Target())
    chip.close()
    assert rig.claims() == set()


# Invariants: start from a good state, break one thing


def broken(**fields: object) -> PciFunctionState:
    return msgspec.structs.replace(fresh(), **fields)


def poked(*pokes: tuple[int, int]) -> PciFunctionState:
    config = bytearray(fresh().config)
    for offset, value in pokes:
        config[offset] = value
    return broken(config=bytes(config))


def bar(**fields: object) -> PciFunctionState:
    return broken(bars=[msgspec.structs.replace(fresh().bars[0], **fields)])


def rules(state: PciFunctionState) -> set[str]:
    found = invariants(state, "pci-function/root")
    assert all(str(finding).startswith("pci-function/root.") for finding in found)
    return {finding.rule for finding in found}


@pytest.mark.parametrize("state", [fresh(), fresh(width=32), two_bars(), layout.host_bridge()])
def test_fresh_function_is_sound(state):
    assert rules(state) == set()


@pytest.mark.parametrize(
    ("state", "rule"),
    [
        (bar(length=BAR_LEN + 1), "pci.bar-length"),
        (bar(length=0), "pci.bar-length"),
        (bar(length=8), "pci.bar-length"),
        (bar(width=32, length=1 << 32, address=0), "pci.bar-length"),
        (bar(address=MMIO64 + 0x1000), "pci.bar-address"),
        (bar(address=(1 << 64) - (BAR_LEN >> 1)), "pci.bar-address"),
        (bar(width=32), "pci.bar-address"),
        (bar(width=32, address=MMIO32), "pci.bar-type"),
        (bar(index=5), "pci.bar-index"),
        (bar(index=1), "pci.bar-index"),
        (broken(bars=[]), "pci.bar-index"),
        (broken(bars=[fresh().bars[0], BarState(index=1, width=32, length=16, address=MMIO32)]), "pci.bar-index"),
        (poked((BAR0, 0x05)), "pci.bar-type"),
        (poked((BAR0, 0x00)), "pci.bar-type"),
        (poked((BAR0, 0x02)), "pci.bar-type"),
        (poked((BAR0 + 1, 0x80)), "pci.bar-bits"),
        (poked((BAR0 + 8, 0x04)), "pci.bar-index"),
        (poked((COMMAND, IO)), "pci.command"),
        (poked((COMMAND + 1, 0x80)), "pci.command"),
        (poked((HEADER_TYPE, 0x80)), "pci.header"),
        (poked((HEADER_TYPE, 0x01)), "pci.header"),
        (poked((VENDOR, 0xFF), (VENDOR + 1, 0xFF)), "pci.vendor"),
        (poked((CAPABILITIES, 0x00)), "pci.capabilities"),
        (poked((CAPABILITIES, 0x3C)), "pci.capabilities"),
        (poked((CAPABILITIES, 0x42)), "pci.capabilities"),
        (poked((0x41, 0x40)), "pci.capabilities"),
        (poked((0x41, 0x44)), "pci.capabilities"),
        (poked((0x41, 0x20)), "pci.capabilities"),
        (poked((CAPABILITIES, 0xF8), (0xF8, MSIX)), "pci.capabilities"),
        (poked((STATUS, 0x00)), "pci.capabilities"),
    ],
)
def test_state_that_no_function_has_is_named(state, rule):
    assert rule in rules(state)


def test_two_bars_in_one_place_are_named():
    state = two_bars()
    state.bars[1].address = 0
    state.bars[0].address = 0
    assert "pci.bar-overlap" in rules(state)


def test_chain_of_capabilities_is_walked_in_order_and_ends_whatever_it_holds():
    config = bytearray(fresh().config)
    config[0x41], config[0x80], config[0x81] = 0x80, 0x09, 0x40
    assert list(capabilities(config)) == [(MSIX, 0x40), (0x09, 0x80)]
    assert find_capability(config, 0x09) == 0x80
    assert find_capability(config, 0x01) is None
    assert list(capabilities(bytes(256))) == []


# Anything a guest may do

ADDRESSES = st.one_of(
    st.integers(0, 40).map(lambda n: MMIO64 + n * BAR_LEN // 4),
    st.integers(0, 8).map(lambda n: MMIO32 + n * SMALL_LEN),
    st.sampled_from([MMIO32_END - BAR_LEN, MMIO32_END, MMIO64_END - BAR_LEN, MMIO64_END, PROBE, 0]),
    st.integers(0, (1 << 64) - 1),
)
WRITES = st.one_of(
    st.tuples(
        st.just(COMMAND), st.just(2), st.sampled_from([0, MEMORY, MEMORY | MASTER, 0xFFFF]) | st.integers(0, 0xFFFF)
    ),
    st.tuples(st.sampled_from([BAR0, BAR0 + 8]), st.just(4), ADDRESSES.map(lambda address: address & PROBE)),
    st.tuples(st.just(BAR0 + 4), st.just(4), ADDRESSES.map(lambda address: address >> 32)),
    st.tuples(st.integers(-4, 0x110), st.integers(0, 9), st.integers(0, (1 << 72) - 1)),
)
STEPS = st.lists(st.tuples(st.integers(0, 1), WRITES, st.integers(0, 7)), max_size=40)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS)
def test_whatever_a_guest_writes_claims_are_the_bars_addresses_and_every_state_can_be_saved(steps):
    rig, chips, targets = Rig(), [], []
    for number in (0, 1):
        state = two_bars()
        state.slot = 1 + number
        config = bytearray(state.config)
        for each in state.bars:
            each.address += number * each.length
            at = BAR0 + 4 * each.index
            config[at : at + 4] = ((each.address & PROBE) | config[at] & 0xF).to_bytes(4, "little")
        state.config = bytes(config)
        targets.append([Target(0x10 * number), Target(0x10 * number + 1)])
        chips.append(rig.function(state, f"f{number}", *targets[-1]))
    for number, (offset, length, value), refusing in steps:
        for target in targets[number]:
            target.refusing = refusing == 0
        chips[number].write_config(offset, length, value)
        assert chips[number].read_config(offset, length) >= 0
        on_bus = []
        for which, chip in enumerate(chips):
            state = chip.save()
            assert invariants(state, "pci-function/x") == []
            decoded = bool(state.config[COMMAND] & MEMORY)
            wanted = {("pci-slot", state.slot, 1)}
            for position, each in enumerate(state.bars):
                pool = rig.resources.window(each.address, each.length)
                assert pool is not None
                assert each.address % each.length == 0
                wanted.add((pool, each.address, each.length))
                assert chip.decoded(each.index) == (each.address if decoded else None)
                if decoded:
                    on_bus.append((each.address, each.length))
                    assert rig.bus.read(each.address, 4) == targets[which][position].name
            assert rig.claims(f"f{which}") == wanted
        assert rig.ranges() == sorted(on_bus)
    again = Rig()
    for which, chip in enumerate(chips):
        twin = again.function(chip.save(), f"f{which}", Target(), Target())
        assert encode(twin.save()) == encode(chip.save())
    assert (again.ranges(), again.resources.save()) == (rig.ranges(), rig.resources.save())
    for chip in chips:
        chip.close()
    assert rig.resources.save().claims == []
    assert rig.ranges() == []


class Broken(Target):
    def mapped(self, base: int) -> None:
        raise ZeroDivisionError


def test_what_is_no_error_of_the_tree_is_our_bug_and_is_not_hidden():
    rig = Rig()
    with pytest.raises(ZeroDivisionError):
        decoding(rig.function(fresh(), "root", Broken()), on=True)
