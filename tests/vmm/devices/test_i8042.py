"""The keyboard controller. Numbers re-declared from IBM's PS/2 Hardware Interface Technical Reference."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapkit.errors import ImageError
from snapkit.state.codec import checked, encode
from snapkit.state.i8042 import I8042State, invariants
from snapkit.vmm.devices.i8042 import I8042, I8042Args

DATA, COMMAND = 0, 4  # ports 0x60 and 0x64
OBF, IBF, SYS, CD, ODS, TO = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
KIE, AIE, KDIS, ADIS = 0x01, 0x02, 0x10, 0x20


class Pin:
    def __init__(self, *, edge=True):
        self.edge = edge
        self.driven = []

    def set_level(self, level):
        self.driven.append(level)


class Bench:
    def __init__(self, state=None, *, edge=True):
        self.pin, self.resets = Pin(edge=edge), 0
        self.chip = I8042.restore(state or I8042State(), I8042Args(reset_requested=self._reset, irq=self.pin))

    def _reset(self):
        self.resets += 1

    def command(self, value, *data):
        self.chip.write(COMMAND, 1, value)
        for byte in data:
            self.chip.write(DATA, 1, byte)

    def status(self):
        return self.chip.read(COMMAND, 1)

    def answer(self):
        assert self.status() & OBF
        return self.chip.read(DATA, 1)


@pytest.fixture
def bench():
    return Bench()


def test_an_idle_controller_is_ready_and_has_nothing_to_say(bench):
    assert bench.status() & (OBF | IBF) == 0
    assert bench.status() & SYS


def test_the_reset_pulse_asks_for_a_reset_once(bench):
    bench.command(0xFE)
    assert bench.resets == 1


def test_only_pulses_of_the_reset_line_reset(bench):
    for value in range(0xF0, 0x100):
        bench.command(value)
    assert bench.resets == 8  # the even ones, whose bit 0 is low
    bench.command(0xFF)
    assert bench.resets == 8


def test_driving_the_reset_line_low_through_the_output_port_resets(bench):
    bench.command(0xD1, 0xDF)
    assert bench.resets == 0
    bench.command(0xD1, 0xDE)
    assert bench.resets == 1
    bench.command(0xD0)
    assert bench.answer() & 0x01  # and the line is up again afterwards


def test_the_a20_line_reads_back_as_written(bench):
    bench.command(0xD0)
    assert bench.answer() & 0x02
    bench.command(0xD1, 0xDD)
    bench.command(0xD0)
    assert bench.answer() & 0x02 == 0
    assert bench.resets == 0


def test_the_self_tests_pass(bench):
    bench.command(0xAA)
    assert bench.answer() == 0x55
    bench.command(0xAB)
    assert bench.answer() == 0x00
    assert bench.status() & OBF == 0


def test_the_command_byte_reads_back_as_written(bench):
    bench.command(0x60, 0x47)
    bench.command(0x20)
    assert bench.answer() == 0x47
    bench.command(0x60, 0xC3)  # bit 7 is reserved
    bench.command(0x20)
    assert bench.answer() == 0x43
    assert bench.status() & SYS == 0


def test_the_command_bit_of_the_status_tells_the_two_ports_apart(bench):
    bench.command(0x60)
    assert bench.status() & CD
    bench.chip.write(DATA, 1, 0x44)
    assert bench.status() & CD == 0


def test_there_is_no_auxiliary_port(bench):
    bench.command(0xA8)
    bench.command(0x20)
    assert bench.answer() & ADIS
    bench.command(0xA9)
    assert bench.answer() == 0x01
    bench.command(0xD3, 0x5A)
    assert bench.status() & ODS == 0
    assert bench.answer() == 0x5A
    bench.command(0xD4, 0xF2)
    assert bench.status() & TO
    assert bench.answer() == 0xFE


def test_a_byte_to_the_absent_keyboard_comes_back_as_a_time_out(bench):
    bench.chip.write(DATA, 1, 0xF2)
    assert bench.status() & (OBF | TO) == OBF | TO
    assert bench.answer() == 0xFE
    assert bench.status() & (OBF | TO) == 0


def test_sending_to_the_keyboard_enables_it(bench):
    bench.command(0xAD)
    assert bench.chip.state.command_byte & KDIS
    bench.chip.write(DATA, 1, 0xFF)
    assert bench.chip.state.command_byte & KDIS == 0
    bench.command(0xAD)
    bench.command(0xAE)
    assert bench.chip.state.command_byte & KDIS == 0


def test_a_new_command_forgets_the_data_byte_that_was_awaited(bench):
    bench.command(0xD1)
    bench.command(0xAA)
    bench.chip.write(DATA, 1, 0x00)  # to the keyboard, not to the output port
    assert bench.resets == 0
    assert bench.answer() == 0xFE


def test_writes_to_the_controllers_ram_reach_nothing(bench):
    bench.command(0x77, 0x00)
    assert bench.status() & OBF == 0
    bench.command(0x37)
    assert bench.answer() == 0


def test_the_interrupt_follows_the_output_buffer(bench):
    bench.command(0x60, 0x45)
    bench.command(0xD2, 0x1C)
    assert bench.pin.driven == [True]
    bench.command(0xD2, 0x9C)  # replaces a byte that nobody read: a new edge
    assert bench.pin.driven == [True, False, True]
    assert bench.answer() == 0x9C
    assert bench.pin.driven == [True, False, True, False]


def test_without_its_enable_bit_no_interrupt_is_driven(bench):
    bench.command(0x60, 0x44)
    bench.command(0xD2, 0x1C)
    assert bench.pin.driven == []


def test_a_probe_as_linux_does_it_ends_at_once(bench):
    # drivers/input/serio/i8042.c: flush, read the command byte twice alike, write it, loop test, port test.
    assert bench.status() & OBF == 0
    bench.command(0x20)
    first = bench.answer()
    bench.command(0x20)
    assert bench.answer() == first
    bench.command(0x60, (first | KDIS) & ~KIE)
    bench.command(0xD3, 0x5A)
    assert not (bench.status() & ODS and bench.answer() == 0x5A)
    bench.chip.read(DATA, 1)
    bench.command(0xA9)
    assert bench.answer() not in {0x00, 0xFA, 0xFF}


@pytest.mark.parametrize(("offset", "length"), [(0, 2), (0, 4), (4, 2), (1, 1), (2, 1), (3, 1), (9, 1), (0, 0)])
def test_other_accesses_get_the_bus_default_and_are_counted(bench, offset, length):
    before = bench.chip.save()
    assert bench.chip.read(offset, length) == (1 << 8 * length) - 1
    bench.chip.write(offset, length, 0xFE)
    assert bench.chip.faults == 2
    assert bench.chip.save() == before
    assert bench.resets == 0


def test_it_works_with_its_pin_unconnected():
    chip = I8042.restore(I8042State(command_byte=KIE), I8042Args(reset_requested=lambda: None))
    chip.write(COMMAND, 1, 0xAA)
    chip.resync()
    assert chip.read(DATA, 1) == 0x55


def test_reset_forgets_the_pending_command_and_drops_the_pin(bench):
    bench.command(0x60, KIE)
    bench.command(0xAA)
    bench.command(0xD1)
    bench.chip.reset()
    assert bench.chip.save() == I8042State()
    assert bench.pin.driven == [True, False]


def test_restore_adopts_the_irq_level_without_an_edge():
    before = Bench()
    before.command(0x60, KIE)
    before.command(0xAA)
    after = Bench(before.chip.save())
    after.chip.resync()
    assert after.pin.driven == []
    assert after.answer() == 0x55
    assert after.pin.driven == [False]


def test_resync_drives_a_level_triggered_pin_again():
    bench = Bench(I8042State(command_byte=KIE, status=OBF), edge=False)
    bench.chip.resync()
    assert bench.pin.driven == [True]


@pytest.mark.parametrize("field", I8042State.__struct_fields__)
def test_a_register_out_of_range_is_refused_by_its_name(field):
    with pytest.raises(ImageError, match=field):
        Bench(I8042State(**{field: 0x100}))


@pytest.mark.parametrize(("change", "path"), [({"status": 0x16}, "status"), ({"command_byte": 0x80}, "command_byte")])
def test_what_this_controller_never_holds_is_found(change, path):
    assert invariants(I8042State(), "i8042/0") == []
    assert [finding.path for finding in invariants(I8042State(**change), "i8042/0")] == [path]


_accesses = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 6), st.sampled_from([1, 2, 4])),
        st.tuples(st.integers(0, 6), st.sampled_from([1, 2, 4]), st.integers(0, 2**32 - 1)),
        st.tuples(st.sampled_from([DATA, COMMAND]), st.just(1), st.integers(0, 0xFF)),
        st.tuples(st.just(COMMAND), st.just(1), st.sampled_from([0x20, 0x60, 0xAA, 0xD0, 0xD1, 0xD2, 0xD3, 0xFE])),
    ),
    max_size=40,
)
_states = st.builds(I8042State, **{name: st.integers(0, 0xFF) for name in I8042State.__struct_fields__})


def act(bench, accesses):
    seen = []
    for access in accesses:
        if len(access) == 2:
            seen.append(bench.chip.read(*access))
        else:
            bench.chip.write(*access)
    return seen


@given(_accesses, _accesses)
def test_save_restore_save_is_byte_equal_and_the_two_go_on_alike(accesses, more):
    before = Bench()
    act(before, accesses)
    saved = before.chip.save()
    assert invariants(saved, "i8042/0") == []
    after = Bench(saved)
    after.chip.resync()
    assert after.pin.driven == []
    assert encode(after.chip.save()) == encode(saved)
    driven, resets = len(before.pin.driven), before.resets
    assert act(after, more) == act(before, more)
    assert encode(after.chip.save()) == encode(before.chip.save())
    assert after.pin.driven == before.pin.driven[driven:]
    assert after.resets == before.resets - resets


@given(_states, _accesses)
def test_any_state_within_its_bounds_restores_and_the_guest_cannot_raise(state, accesses):
    bench = Bench(state)
    bench.chip.resync()
    assert bench.pin.driven == []
    assert encode(bench.chip.save()) == encode(state)
    assert all(value >= 0 for value in act(bench, accesses))
    assert checked(bench.chip.state) == bench.chip.state
