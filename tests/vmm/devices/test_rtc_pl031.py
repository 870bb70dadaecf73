"""The PL031 against its manual. Numbers are re-declared from ARM DDI 0224, so that a slip in the tables shows."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapkit.errors import ImageError
from snapkit.state.codec import checked, encode
from snapkit.state.rtc_pl031 import Pl031State, invariants
from snapkit.vmm.devices.rtc_pl031 import RtcArgs, RtcPl031
from tests.vmm.devices.bench import Pin

# DDI 0224, table 3-1
DR, MR, LR, CR, IMSC, RIS, MIS, ICR = range(0, 0x20, 4)
IDS = range(0xFE0, 0x1000, 4)
NOW = 1_800_000_000
YEAR = 365 * 86400


class Bench:
    """A clock on a bench: pin, the host's wall clock, and a count of calls that say the match moved."""

    def __init__(self, state=None, *, now=NOW):
        self.pin, self.now, self.moves = Pin(edge=False), now, 0
        self.rtc = RtcPl031.restore(state or Pl031State(), RtcArgs(self.pin, lambda: self.now, self._match_moved))

    def _match_moved(self):
        self.moves += 1

    def read(self, offset, length=4):
        return self.rtc.read(offset, length)

    def write(self, offset, value, length=4):
        self.rtc.write(offset, length, value)

    def pass_s(self, seconds):
        self.now += seconds
        self.rtc.elapse()


@pytest.fixture
def bench():
    return Bench()


# Time


def test_the_clock_of_a_new_machine_shows_the_hosts_time_and_runs(bench):
    assert bench.read(DR) == NOW
    assert bench.read(CR) == 1
    bench.now += 5
    assert bench.read(DR) == NOW + 5
    assert bench.pin.driven == []


def test_a_clock_that_the_guest_set_goes_on_from_there(bench):
    bench.write(LR, 1000)
    assert bench.read(LR) == 1000
    assert bench.read(DR) == 1000
    bench.now += 7
    assert bench.read(DR) == 1007


def test_a_clock_that_runs_cannot_be_stopped(bench):
    bench.write(CR, 0)
    bench.now += 1
    assert bench.read(CR) == 1
    assert bench.read(DR) == NOW + 1


def test_the_counter_wraps_after_32_bits(bench):
    bench.write(LR, 0xFFFF_FFFF)
    bench.now += 2
    assert bench.read(DR) == 1


def test_a_restored_clock_shows_the_time_of_the_day_on_which_it_is_restored(bench):
    after = Bench(bench.rtc.save(), now=NOW + 3 * YEAR)
    assert after.read(DR) == NOW + 3 * YEAR


def test_a_restored_clock_is_as_far_off_as_the_guest_had_set_it(bench):
    bench.write(LR, NOW - 3600)
    after = Bench(bench.rtc.save(), now=NOW + YEAR)
    assert after.read(DR) == NOW + YEAR - 3600


# Match


def test_the_match_interrupts_when_it_comes_and_once(bench):
    bench.write(MR, NOW + 10)
    bench.write(IMSC, 1)
    assert bench.rtc.match_s == NOW + 10
    bench.pass_s(9)
    assert bench.pin.driven == []
    bench.pass_s(1)
    assert bench.pin.driven == [True]
    assert (bench.read(RIS), bench.read(MIS)) == (1, 1)
    bench.write(ICR, 1)
    assert bench.pin.driven == [True, False]
    bench.pass_s(YEAR)
    assert bench.read(RIS) == 0
    assert bench.read(MR) == NOW + 10


def test_a_masked_match_is_seen_in_ris_alone(bench):
    bench.write(MR, NOW + 1)
    assert bench.rtc.match_s is None  # nobody needs a timer for it
    bench.now += 2
    assert (bench.read(RIS), bench.read(MIS)) == (1, 0)
    assert bench.pin.driven == []
    bench.write(IMSC, 1)
    assert bench.pin.driven == [True]


def test_a_match_with_the_time_that_it_is_interrupts_at_once(bench):
    bench.write(IMSC, 1)
    bench.write(MR, NOW)
    assert bench.pin.driven == [True]


def test_loading_the_value_that_is_waited_for_interrupts_at_once(bench):
    bench.write(IMSC, 1)
    bench.write(MR, 77)
    bench.write(LR, 77)
    assert bench.pin.driven == [True]


def test_a_match_in_the_past_waits_for_the_counter_to_come_round(bench):
    bench.write(IMSC, 1)
    bench.write(MR, NOW - 1)
    assert bench.rtc.match_s == NOW - 1 + (1 << 32)
    bench.pass_s(YEAR)
    assert bench.pin.driven == []


def test_setting_the_clock_moves_the_match_along(bench):
    bench.write(IMSC, 1)
    bench.write(MR, NOW + 100)
    bench.write(LR, NOW + 90)
    assert bench.rtc.match_s == NOW + 10
    bench.write(LR, NOW + 101)  # past it: the two were never equal
    bench.pass_s(YEAR)
    assert bench.pin.driven == []


def test_a_match_that_passed_while_the_machine_was_a_file_interrupts_when_it_goes_on(bench):
    bench.write(MR, NOW + 10)
    bench.write(IMSC, 1)
    after = Bench(bench.rtc.save(), now=NOW + YEAR)
    after.rtc.resync()
    assert after.pin.driven == [False]  # not before the guest goes on
    after.rtc.elapse()
    assert after.pin.driven == [False, True]


def test_a_host_clock_that_is_set_back_delays_the_match_and_repeats_none(bench):
    bench.write(MR, NOW + 10)
    bench.write(IMSC, 1)
    bench.pass_s(-100)
    assert bench.read(DR) == NOW - 100
    bench.pass_s(110)
    bench.write(ICR, 1)
    bench.pass_s(-5)
    bench.pass_s(5)
    assert bench.pin.driven == [True, False]


@pytest.mark.parametrize(("offset", "value"), [(MR, 5), (LR, 5), (IMSC, 1), (ICR, 1)])
def test_whoever_keeps_a_timer_hears_of_every_move(bench, offset, value):
    bench.write(offset, value)
    assert bench.moves > 0


# The bus


def test_identification_is_what_the_driver_of_linux_looks_for(bench):
    words = [bench.read(offset) for offset in IDS]
    periph, cell = (sum(word << 8 * n for n, word in enumerate(part)) for part in (words[:4], words[4:]))
    assert periph & 0x000F_FFFF == 0x0004_1031
    assert cell == 0xB105_F00D


@pytest.mark.parametrize("length", [0, 3, 8])
def test_odd_and_double_widths_get_the_bus_default_and_are_counted(bench, length):
    assert bench.read(MR, length) == (1 << 8 * length) - 1
    bench.write(MR, 1, length)
    assert bench.read(MR) == 0
    assert bench.rtc.faults == 2


@pytest.mark.parametrize("offset", [1, 0x20, 0xFDC, 0x1000])
def test_offsets_without_a_register_get_the_bus_default(bench, offset):
    assert bench.read(offset) == 0xFFFF_FFFF
    bench.write(offset, 0)
    assert bench.rtc.faults == 2


@pytest.mark.parametrize("offset", [DR, RIS, MIS])
def test_what_is_only_read_ignores_writes(bench, offset):
    before = bench.read(offset)
    bench.write(offset, ~before & 0xFFFF_FFFF)
    assert bench.read(offset) == before
    assert bench.read(ICR) == 0
    assert bench.rtc.faults == 0


# State


def test_restore_adopts_the_irq_level_without_an_edge():
    after = Bench(Pl031State(imsc=1, ris=1))
    assert after.pin.driven == []
    after.write(ICR, 1)
    assert after.pin.driven == [False]


@pytest.mark.parametrize("level", [False, True])
def test_resync_drives_the_level_again(level):
    bench = Bench(Pl031State(imsc=1, ris=int(level)))
    bench.rtc.resync()
    assert bench.pin.driven == [level]


def test_a_saved_state_is_detached(bench):
    saved = bench.rtc.save()
    bench.write(MR, 7)
    assert saved.mr == 0


def test_restore_does_not_keep_the_callers_state():
    state = Pl031State()
    Bench(state).write(MR, 7)
    assert state.mr == 0


@pytest.mark.parametrize("field", Pl031State.__struct_fields__)
def test_a_value_out_of_range_is_refused_by_its_name(field):
    with pytest.raises(ImageError, match=field):
        Bench(msgspec.structs.replace(Pl031State(), **{field: -1}))


def test_reset_returns_to_the_hosts_time_and_drops_the_pin(bench):
    bench.write(IMSC, 1)
    bench.write(MR, NOW)
    bench.write(LR, 1)
    bench.rtc.reset()
    assert bench.rtc.save() == Pl031State()
    assert bench.pin.driven == [True, False]
    assert bench.read(DR) == NOW


@pytest.mark.parametrize("change", [{"mr": 1}, {"offset_s": 1}, {"match_s": NOW}])
def test_a_match_at_a_moment_of_another_value_is_found(change):
    assert invariants(Pl031State(), "rtc-pl031/0") == []
    assert [found.path for found in invariants(Pl031State(**change), "rtc-pl031/0")] == ["match_s"]


# Properties

_near = st.integers(NOW - 50, NOW + 50)
_values = st.one_of(_near, st.sampled_from([0, 1]), st.integers(0, 2**64 - 1))
_offsets = st.one_of(st.sampled_from(range(0, 0x20, 4)), st.integers(0, 0x1000))
_actions = st.lists(
    st.one_of(
        st.tuples(st.just("read"), _offsets, st.sampled_from([1, 2, 3, 4, 4, 4, 8])),
        st.tuples(st.just("write"), _offsets, st.sampled_from([1, 2, 3, 4, 4, 4, 8]), _values),
        st.tuples(st.just("pass"), st.one_of(st.integers(0, 60), st.integers(-60, 2**33))),
    ),
    max_size=40,
)


def act(bench, actions):
    seen = []
    for action in actions:
        match action:
            case "read", offset, length:
                seen.append(bench.read(offset, length))
            case "write", offset, length, value:
                bench.write(offset, value, length)
            case "pass", seconds:
                bench.pass_s(seconds)
    return seen


@given(_actions)
def test_random_accesses_leave_a_state_that_a_chip_could_hold(actions):
    bench = Bench()
    seen = act(bench, actions)
    assert all(isinstance(value, int) and value >= 0 for value in seen)
    assert invariants(bench.rtc.save(), "rtc-pl031/0") == []
    assert bench.pin.level is bool(bench.read(MIS))
    assert all(a != b for a, b in zip([False, *bench.pin.driven], bench.pin.driven, strict=False))


@given(_actions, _actions)
def test_save_restore_save_is_byte_equal_and_the_two_go_on_alike(actions, more):
    before = Bench()
    act(before, actions)
    saved = before.rtc.save()
    after = Bench(saved, now=before.now)
    assert after.pin.driven == []
    assert encode(after.rtc.save()) == encode(saved)
    driven = len(before.pin.driven)
    assert act(after, more) == act(before, more)
    assert encode(after.rtc.save()) == encode(before.rtc.save())
    assert after.pin.driven == before.pin.driven[driven:]


_u32 = st.integers(0, 0xFFFF_FFFF)
_states = st.builds(
    Pl031State,
    offset_s=_u32,
    lr=_u32,
    mr=_u32,
    match_s=st.integers(0, 2**64 - 1),
    imsc=st.integers(0, 1),
    ris=st.integers(0, 1),
)


@given(_states, _actions)
def test_any_valid_state_restores_to_itself_and_is_total(state, actions):
    bench = Bench(state)
    assert encode(bench.rtc.save()) == encode(checked(state))
    act(bench, actions)
    checked(bench.rtc.save())
