"""The 16550A against its data sheet. Numbers are re-declared from PC16550D, so that a slip in the tables shows."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit.errors import ImageError
from snapkit.state.codec import checked, encode
from snapkit.state.serial_16550 import SerialState, invariants
from snapkit.vmm.devices.serial_16550 import Serial16550
from snapkit.vmm.devices.uart import SerialArgs
from tests.vmm.devices.bench import Pin, Wire

# PC16550D, table II
RBR = THR = DLL = 0
IER = DLM = 1
IIR = FCR = 2
LCR, MCR, LSR, MSR, SCR = 3, 4, 5, 6, 7

IER_RX, IER_THRE, IER_LINE, IER_MODEM = 1, 2, 4, 8
IIR_NONE, IIR_MODEM, IIR_THRE, IIR_RX, IIR_LINE, IIR_TIMEOUT = 0x01, 0x00, 0x02, 0x04, 0x06, 0x0C
FCR_ON, FCR_CLEAR_RX, FCR_CLEAR_TX = 0x01, 0x02, 0x04
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 1, 2, 4, 8, 0x10
LSR_DR, LSR_OE, LSR_THRE, LSR_TEMT = 0x01, 0x02, 0x20, 0x40


class Bench:
    """A UART on a bench: pin, wire, and a count of calls that say there is room."""

    def __init__(self, state=None, *, edge=True):
        self.pin, self.wire, self.room_calls = Pin(edge=edge), Wire(), 0
        args = SerialArgs(irq=self.pin, out=self.wire, room_ready=self._room_ready)
        self.uart = Serial16550.restore(state or SerialState(), args)

    def _room_ready(self):
        self.room_calls += 1

    def read(self, offset):
        return self.uart.read(offset, 1)

    def write(self, offset, value):
        self.uart.write(offset, 1, value)

    def drain(self):
        received = bytearray()
        while self.read(LSR) & LSR_DR:
            received.append(self.read(RBR))
        return bytes(received)


@pytest.fixture
def bench():
    return Bench()


# Registers


def test_registers_after_power_on_read_as_table_iii_says(bench):
    assert [bench.read(offset) for offset in (IER, IIR, LCR, MCR, LSR)] == [0, IIR_NONE, 0, 0, LSR_THRE | LSR_TEMT]
    assert bench.read(MSR) == 0xB0  # the far end is there: CTS, DSR, DCD, no deltas
    assert bench.pin.driven == []


def test_scratch_and_line_control_hold_every_bit(bench):
    for value in (0x00, 0xA5, 0x5A, 0xFF):
        bench.write(SCR, value)
        assert bench.read(SCR) == value
        bench.write(LCR, value)
        assert bench.read(LCR) == value


def test_reserved_bits_of_ier_and_mcr_read_zero(bench):
    bench.write(IER, 0xFF)
    assert bench.read(IER) == 0x0F
    bench.write(MCR, 0xFF)
    assert bench.read(MCR) == 0x1F


def test_the_divisor_latch_hides_data_and_interrupt_enable(bench):
    bench.write(IER, IER_RX)
    bench.write(LCR, LCR_DLAB | 0x03)
    bench.write(DLL, 0x01)
    bench.write(DLM, 0xC2)
    assert (bench.read(DLL), bench.read(DLM)) == (0x01, 0xC2)
    bench.write(LCR, 0x03)
    assert bench.read(IER) == IER_RX
    assert bench.wire.sent == b""


def test_line_and_modem_status_ignore_writes(bench):
    bench.write(LSR, 0xFF)
    bench.write(MSR, 0xFF)
    assert bench.read(LSR) == LSR_THRE | LSR_TEMT
    assert bench.read(MSR) == 0xB0


def test_iir_shows_the_fifos_by_its_top_bits(bench):
    bench.write(FCR, FCR_ON)
    assert bench.read(IIR) == 0xC0 | IIR_NONE
    bench.write(FCR, 0)
    assert bench.read(IIR) == IIR_NONE


def test_fcr_bits_count_only_together_with_enable(bench):
    bench.write(FCR, 0xC0)
    assert bench.uart.state.fcr == 0
    bench.write(FCR, 0xC0 | FCR_ON | FCR_CLEAR_RX | FCR_CLEAR_TX)
    assert bench.uart.state.fcr == 0xC1


# Receiving


def test_received_bytes_come_out_in_order(bench):
    bench.write(FCR, FCR_ON)
    assert bench.uart.receive(b"hello") == 5
    assert bench.drain() == b"hello"
    assert bench.read(RBR) == 0


def test_receive_takes_what_there_is_room_for_and_no_byte_is_lost(bench):
    bench.write(FCR, FCR_ON)
    text = bytes(range(40))
    rest = text[bench.uart.receive(text) :]
    assert len(rest) == 24
    assert bench.uart.room == 0
    assert bench.uart.receive(rest) == 0
    received = bench.drain()
    assert bench.room_calls == 1
    while rest:
        rest = rest[bench.uart.receive(rest) :]
        received += bench.drain()
    assert received == text
    assert bench.room_calls == 2  # the last piece left nothing behind


def test_room_is_announced_once_and_only_to_a_host_that_was_refused(bench):
    bench.uart.receive(b"a")
    bench.read(RBR)
    assert bench.room_calls == 0
    bench.uart.receive(b"ab")
    bench.read(RBR)
    bench.read(RBR)
    assert bench.room_calls == 1


def test_without_the_fifo_one_byte_waits(bench):
    assert bench.uart.room == 1
    assert bench.uart.receive(b"ab") == 1
    assert bench.drain() == b"a"


@pytest.mark.parametrize("value", [FCR_ON | FCR_CLEAR_RX, 0x00])
def test_clearing_or_switching_the_fifo_empties_the_receiver(bench, value):
    bench.write(FCR, FCR_ON)
    bench.write(IER, IER_RX)
    bench.uart.receive(bytes(20))
    bench.write(FCR, value)
    assert bench.read(LSR) & LSR_DR == 0
    assert bench.pin.level is False
    assert bench.room_calls == 1


def test_clearing_the_transmitter_keeps_received_bytes(bench):
    bench.write(FCR, FCR_ON)
    bench.uart.receive(b"xy")
    bench.write(FCR, FCR_ON | FCR_CLEAR_TX)
    assert bench.drain() == b"xy"


@pytest.mark.parametrize(("code", "trigger"), [(0, 1), (1, 4), (2, 8), (3, 14)])
def test_the_receiver_interrupt_names_time_out_below_the_trigger_level(bench, code, trigger):
    bench.write(FCR, FCR_ON | code << 6)
    bench.write(IER, IER_RX)
    bench.uart.receive(bytes(trigger))
    assert bench.read(IIR) == 0xC0 | IIR_RX
    bench.read(RBR)
    assert bench.read(IIR) == 0xC0 | (IIR_TIMEOUT if trigger > 1 else IIR_NONE)
    assert bench.pin.level is (trigger > 1)


def test_the_receiver_interrupt_lasts_until_the_receiver_is_empty(bench):
    bench.write(FCR, FCR_ON)
    bench.write(IER, IER_RX)
    bench.uart.receive(b"ab")
    bench.read(IIR)
    bench.read(RBR)
    assert bench.pin.driven == [True]
    bench.read(RBR)
    assert bench.pin.driven == [True, False]


# Transmitting


def test_a_byte_written_goes_to_the_wire_at_once(bench):
    for value in b"login: ":
        bench.write(THR, value)
    assert bench.wire.sent == b"login: "
    assert bench.read(LSR) == LSR_THRE | LSR_TEMT


def test_enabling_the_transmitter_interrupt_raises_it_while_empty(bench):
    bench.write(IER, IER_THRE)
    assert bench.pin.driven == [True]
    assert bench.read(IIR) == IIR_THRE


def test_reading_iir_clears_the_transmitter_interrupt_it_names(bench):
    bench.write(IER, IER_THRE)
    assert bench.read(IIR) == IIR_THRE
    assert bench.pin.level is False
    assert bench.read(IIR) == IIR_NONE


def test_enabling_it_again_raises_it_again(bench):
    # Linux's 8250 driver tests for this at start-up and falls back to polling without it.
    bench.write(IER, IER_THRE)
    bench.read(IIR)
    bench.write(IER, 0)
    bench.write(IER, IER_THRE)
    assert bench.read(IIR) == IIR_THRE


def test_reading_iir_keeps_a_transmitter_interrupt_it_does_not_name(bench):
    bench.uart.receive(b"a")
    bench.write(IER, IER_RX | IER_THRE)
    assert bench.read(IIR) == IIR_RX
    bench.read(RBR)
    assert bench.read(IIR) == IIR_THRE


def test_writing_a_byte_while_the_interrupt_is_pending_makes_a_new_edge(bench):
    bench.write(IER, IER_THRE)
    bench.write(THR, 0x41)
    assert bench.pin.driven == [True, False, True]


def test_a_full_wire_holds_the_transmitter_until_it_is_ready(bench):
    bench.write(IER, IER_THRE)
    bench.read(IIR)
    bench.wire.full = True
    bench.write(THR, 0x41)
    assert bench.read(LSR) & (LSR_THRE | LSR_TEMT) == 0
    assert bench.read(IIR) == IIR_NONE
    bench.write(THR, 0x42)
    assert bench.wire.sent == b"AB"  # never lost
    bench.uart.transmit_ready()
    assert bench.read(LSR) & LSR_THRE == 0  # it was not, after all
    bench.wire.full = False
    bench.uart.transmit_ready()
    assert bench.read(LSR) == LSR_THRE | LSR_TEMT
    assert bench.pin.level is True
    assert bench.read(IIR) == IIR_THRE


def test_transmit_ready_says_nothing_new_to_an_empty_transmitter(bench):
    bench.write(IER, IER_THRE)
    bench.read(IIR)
    bench.uart.transmit_ready()
    assert bench.read(IIR) == IIR_NONE


# Loopback and modem


def test_loopback_returns_bytes_and_keeps_the_wire_silent(bench):
    bench.write(FCR, FCR_ON)
    bench.write(MCR, MCR_LOOP)
    for value in b"echo":
        bench.write(THR, value)
    assert bench.wire.sent == b""
    assert bench.drain() == b"echo"


def test_loopback_disconnects_the_wire_until_it_ends(bench):
    bench.write(MCR, MCR_LOOP)
    assert bench.uart.room == 0
    assert bench.uart.receive(b"x") == 0
    bench.write(MCR, 0)
    assert bench.room_calls == 1
    assert bench.uart.receive(b"x") == 1


def test_loopback_overruns_lose_the_new_byte_with_the_fifo_and_the_old_one_without(bench):
    bench.write(MCR, MCR_LOOP)
    bench.write(THR, 0x41)
    bench.write(THR, 0x42)
    assert bench.read(LSR) & LSR_OE
    assert bench.read(LSR) & LSR_OE == 0
    assert bench.drain() == b"B"
    bench.write(FCR, FCR_ON)
    for value in range(17):
        bench.write(THR, value)
    assert bench.read(LSR) & LSR_OE
    assert bench.drain() == bytes(range(16))


def test_loopback_turns_modem_outputs_into_inputs(bench):
    # Linux's 8250 driver finds a UART by exactly this: OUT2 and RTS give DCD and CTS.
    bench.write(MCR, MCR_LOOP | MCR_OUT2 | MCR_RTS)
    assert bench.read(MSR) & 0xF0 == 0x90
    bench.write(MCR, MCR_LOOP | MCR_DTR)
    assert bench.read(MSR) == 0x20 | 0x0B
    bench.write(MCR, 0)
    assert bench.read(MSR) & 0xF0 == 0xB0


def test_ring_is_noted_on_its_trailing_edge_only(bench):
    bench.write(MCR, MCR_LOOP | MCR_OUT1)
    assert bench.read(MSR) & 0x4F == 0x4B
    bench.write(MCR, MCR_LOOP)
    assert bench.read(MSR) == 0x04


def test_modem_interrupt_lasts_until_modem_status_is_read(bench):
    bench.write(IER, IER_MODEM)
    bench.write(MCR, MCR_LOOP)
    assert bench.read(IIR) == IIR_MODEM
    assert bench.pin.driven == [True]
    bench.read(MSR)
    assert bench.pin.driven == [True, False]
    assert bench.read(IIR) == IIR_NONE


def test_interrupts_are_named_in_order_of_priority(bench):
    bench.write(FCR, FCR_ON)
    bench.write(MCR, MCR_LOOP)
    for value in range(17):
        bench.write(THR, value)
    bench.write(IER, 0x0F)
    named = []
    for serve in (lambda: bench.read(LSR), bench.drain, lambda: None, lambda: bench.read(MSR)):
        named.append(bench.read(IIR) & 0x0F)
        serve()
    assert named == [IIR_LINE, IIR_RX, IIR_THRE, IIR_MODEM]
    assert bench.read(IIR) & 0x0F == IIR_NONE
    assert bench.pin.level is False


# The bus


@pytest.mark.parametrize("length", [0, 2, 3, 4, 8])
def test_wide_accesses_get_the_bus_default_and_are_counted(bench, length):
    assert bench.uart.read(SCR, length) == (1 << 8 * length) - 1
    bench.uart.write(SCR, length, 0x12)
    assert bench.read(SCR) == 0
    assert bench.uart.faults == 2


def test_offsets_beyond_the_chip_get_the_bus_default(bench):
    assert bench.uart.read(8, 1) == 0xFF
    bench.uart.write(8, 1, 0)
    assert bench.uart.faults == 2


# State


def test_restore_adopts_the_irq_level_without_an_edge():
    before = Bench()
    before.write(FCR, FCR_ON)
    before.write(IER, IER_RX)
    before.uart.receive(b"ab")
    after = Bench(before.uart.save())
    after.uart.resync()
    assert after.pin.driven == []
    assert after.drain() == b"ab"
    assert after.pin.driven == [False]
    after.uart.receive(b"c")
    assert after.pin.driven == [False, True]


@pytest.mark.parametrize("level", [False, True])
def test_resync_drives_a_level_triggered_pin_again(level):
    state = SerialState(ier=IER_THRE, thre_pending=level)
    bench = Bench(state, edge=False)
    assert bench.pin.driven == []
    bench.uart.resync()
    assert bench.pin.driven == [level]


def test_a_transmitter_saved_while_held_is_released_by_transmit_ready():
    before = Bench()
    before.write(IER, IER_THRE)
    before.wire.full = True
    before.write(THR, 0x41)
    after = Bench(before.uart.save())
    after.uart.resync()
    assert after.read(LSR) & LSR_THRE == 0
    assert after.pin.driven == []
    after.uart.transmit_ready()
    assert after.pin.driven == [True]


def test_a_saved_state_is_detached(bench):
    saved = bench.uart.save()
    bench.write(SCR, 0x77)
    assert saved.scr == 0


def test_restore_does_not_keep_the_callers_state():
    state = SerialState()
    bench = Bench(state)
    bench.write(SCR, 0x77)
    assert state.scr == 0


@pytest.mark.parametrize("field", [f for f in SerialState.__struct_fields__ if f not in {"rx", "thre_pending"}])
def test_a_register_out_of_range_is_refused_by_its_name(field):
    with pytest.raises(ImageError, match=field):
        Bench(msgspec.structs.replace(SerialState(), **{field: 0x100}))


def test_a_receiver_beyond_its_fifo_is_refused():
    with pytest.raises(ImageError, match="rx"):
        Bench(SerialState(rx=bytes(17)))


def test_reset_returns_to_power_on_and_drops_the_pin(bench):
    bench.write(FCR, FCR_ON)
    bench.write(IER, IER_RX)
    bench.write(LCR, LCR_DLAB)
    bench.uart.receive(b"zz")
    bench.uart.reset()
    assert bench.uart.save() == SerialState()
    assert bench.pin.driven == [True, False]
    bench.write(THR, 0x41)  # offset 0 is data again
    assert bench.wire.sent == b"A"


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"ier": 0x10}, "ier"),
        ({"mcr": 0x20}, "mcr"),
        ({"fcr": 0x03}, "fcr"),
        ({"rx": b"ab", "lsr": 0x61}, "rx"),
        ({"rx": b"a"}, "lsr"),
        ({"lsr": 0x61}, "lsr"),
        ({"lsr": 0x00, "thre_pending": True}, "thre_pending"),
    ],
)
def test_what_no_chip_could_hold_is_found(change, path):
    assert invariants(SerialState(), "serial-16550/0") == []
    found = invariants(SerialState(**change), "serial-16550/0")
    assert [finding.path for finding in found] == [path]


# Properties

_bytes = st.integers(0, 0xFF)
_guest = st.one_of(
    st.tuples(st.just("read"), st.integers(0, 9), st.sampled_from([1, 1, 1, 1, 2, 4, 8])),
    st.tuples(st.just("write"), st.integers(0, 9), st.sampled_from([1, 1, 1, 1, 2, 4, 8]), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("write"), st.sampled_from([THR, IER, FCR, MCR]), st.just(1), _bytes),
)
_host = st.one_of(
    st.tuples(st.just("receive"), st.binary(max_size=20)),
    st.tuples(st.just("full"), st.booleans()),
    st.tuples(st.just("ready")),
)
_actions = st.lists(st.one_of(_guest, _host), max_size=40)


def act(bench, actions):
    seen = []
    for action in actions:
        match action:
            case "read", offset, length:
                seen.append(bench.uart.read(offset, length))
            case "write", offset, length, value:
                bench.uart.write(offset, length, value)
            case "receive", payload:
                seen.append(bench.uart.receive(payload))
            case "full", full:
                bench.wire.full = full
            case ("ready",):
                bench.uart.transmit_ready()
    return seen


@given(_actions)
def test_random_accesses_leave_a_state_that_a_chip_could_hold(actions):
    bench = Bench()
    seen = act(bench, actions)
    assert all(isinstance(value, int) and value >= 0 for value in seen)
    assert invariants(bench.uart.save(), "serial-16550/0") == []
    assert bench.pin.level is bench.uart._level
    assert all(a != b for a, b in zip([False, *bench.pin.driven], bench.pin.driven, strict=False))


@given(_actions, _actions)
def test_save_restore_save_is_byte_equal_and_the_two_go_on_alike(actions, more):
    before = Bench()
    act(before, actions)
    saved = before.uart.save()
    after = Bench(saved)
    after.wire.full = before.wire.full
    after.uart.resync()
    assert after.pin.driven == []
    assert encode(after.uart.save()) == encode(saved)
    driven, sent = len(before.pin.driven), len(before.wire.sent)
    assert act(after, more) == act(before, more)
    assert encode(after.uart.save()) == encode(before.uart.save())
    assert after.pin.driven == before.pin.driven[driven:]
    assert after.wire.sent == before.wire.sent[sent:]


@settings(max_examples=60)
@given(st.binary(max_size=200), st.lists(st.integers(1, 20), min_size=1, max_size=8), st.booleans())
def test_whatever_the_pace_no_received_byte_is_lost_or_repeated(text, paces, fifo):
    bench = Bench()
    bench.write(FCR, FCR_ON if fifo else 0)
    rest, received, turn = text, b"", 0
    while rest or bench.read(LSR) & LSR_DR:
        rest = rest[bench.uart.receive(rest) :]
        for _ in range(paces[turn % len(paces)]):
            if bench.read(LSR) & LSR_DR:
                received += bytes([bench.read(RBR)])
        turn += 1
    assert received == text


_states = st.builds(
    SerialState,
    **{name: _bytes for name in SerialState.__struct_fields__ if name not in {"rx", "thre_pending"}},
    rx=st.binary(max_size=16),
    thre_pending=st.booleans(),
)


@given(_states, _actions)
def test_any_state_within_its_bounds_restores_and_the_guest_cannot_raise(state, actions):
    bench = Bench(state)
    bench.uart.resync()
    assert bench.pin.driven == []
    assert encode(bench.uart.save()) == encode(state)
    act(bench, actions)
    assert checked(bench.uart.save()) == bench.uart.state


@given(_states)
def test_the_state_is_one_msgpack_map_of_its_fields(state):
    assert list(msgspec.msgpack.decode(encode(state))) == list(SerialState.__struct_fields__)
