"""The PL011 against its manual. Numbers are re-declared from ARM DDI 0183, so that a slip in the tables shows."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit.errors import ImageError
from snapkit.state.codec import checked, encode
from snapkit.state.serial_pl011 import Pl011State, invariants
from snapkit.vmm.devices.serial_pl011 import SerialPl011
from snapkit.vmm.devices.uart import SerialArgs
from tests.vmm.devices.bench import Pin, Wire

# DDI 0183, table 3-1
DR, RSR, FR, ILPR, IBRD, FBRD, LCR_H, CR = 0x00, 0x04, 0x18, 0x20, 0x24, 0x28, 0x2C, 0x30
IFLS, IMSC, RIS, MIS, ICR, DMACR = 0x34, 0x38, 0x3C, 0x40, 0x44, 0x48
OFFSETS = (DR, RSR, FR, ILPR, IBRD, FBRD, LCR_H, CR, IFLS, IMSC, RIS, MIS, ICR, DMACR)
IDS = range(0xFE0, 0x1000, 4)

FR_CTS, FR_DSR, FR_DCD, FR_BUSY, FR_RXFE, FR_TXFF, FR_RXFF, FR_TXFE, FR_RI = (1 << n for n in range(9))
FR_IDLE = FR_CTS | FR_DSR | FR_DCD | FR_RXFE | FR_TXFE
LCR_FEN = 0x10
CR_UARTEN, CR_LBE, CR_TXE, CR_RXE = 1, 0x80, 0x100, 0x200
CR_DTR, CR_RTS, CR_OUT1, CR_OUT2 = 0x400, 0x800, 0x1000, 0x2000
CR_ON = CR_UARTEN | CR_TXE | CR_RXE
INT_RI, INT_CTS, INT_DCD, INT_DSR, INT_RX, INT_TX, INT_RT, INT_FE, INT_PE, INT_BE, INT_OE = (1 << n for n in range(11))
DR_OE, RSR_OE = 0x800, 0x08


class Bench:
    """A UART on a bench: pin, wire, and a count of calls that say there is room."""

    def __init__(self, state=None, *, on=True):
        self.pin, self.wire, self.room_calls = Pin(edge=False), Wire(), 0
        args = SerialArgs(irq=self.pin, out=self.wire, room_ready=self._room_ready)
        self.uart = SerialPl011.restore(state or Pl011State(), args)
        if on and state is None:
            self.write(CR, CR_ON)

    def _room_ready(self):
        self.room_calls += 1

    def read(self, offset, length=4):
        return self.uart.read(offset, length)

    def write(self, offset, value, length=4):
        self.uart.write(offset, length, value)

    def drain(self):
        received = bytearray()
        while not self.read(FR) & FR_RXFE:
            received.append(self.read(DR) & 0xFF)
        return bytes(received)


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def fifo(bench):
    bench.write(LCR_H, LCR_FEN | 0x60)
    return bench


# Registers


def test_registers_after_power_on_read_as_table_3_1_says():
    bench = Bench(on=False)
    expected = {CR: 0x300, IFLS: 0x12, FR: FR_IDLE}
    assert {offset: bench.read(offset) for offset in OFFSETS} == {offset: expected.get(offset, 0) for offset in OFFSETS}
    assert bench.pin.driven == []


def test_identification_is_what_the_driver_of_linux_looks_for(bench):
    words = [bench.read(offset) for offset in IDS]
    periph, cell = (sum(word << 8 * n for n, word in enumerate(part)) for part in (words[:4], words[4:]))
    assert periph == 0x0034_1011  # revision 3: FIFOs of 32 bytes
    assert cell == 0xB105_F00D
    for offset in IDS:
        bench.write(offset, 0)
    assert [bench.read(offset) for offset in IDS] == words
    assert bench.uart.faults == 0


@pytest.mark.parametrize(
    ("offset", "kept"),
    [(ILPR, 0xFF), (IBRD, 0xFFFF), (FBRD, 0x3F), (LCR_H, 0xFF), (CR, 0xFF87), (IFLS, 0x3F), (IMSC, 0x7FF), (DMACR, 7)],
)
def test_a_register_holds_the_bits_that_it_has_and_no_other(bench, offset, kept):
    for value in (0xFFFF_FFFF, 0, 0xAAAA_AAAA):
        bench.write(offset, value)
        assert bench.read(offset) == value & kept
    assert invariants(bench.uart.save(), "serial-pl011/0") == []


@pytest.mark.parametrize("offset", [FR, RIS, MIS])
def test_status_ignores_writes(bench, offset):
    before = bench.read(offset)
    bench.write(offset, ~before & 0xFFFF)
    assert bench.read(offset) == before
    assert bench.uart.faults == 0


# Receiving


def test_received_bytes_come_out_in_order(fifo):
    assert fifo.uart.receive(b"hello") == 5
    assert fifo.drain() == b"hello"
    assert fifo.read(DR) == 0


def test_receive_takes_what_there_is_room_for_and_no_byte_is_lost(fifo):
    text = bytes(range(80))
    rest = text[fifo.uart.receive(text) :]
    assert len(rest) == 48
    assert fifo.uart.room == 0
    assert fifo.read(FR) & FR_RXFF
    assert fifo.uart.receive(rest) == 0
    received = fifo.drain()
    assert fifo.room_calls == 1
    while rest:
        rest = rest[fifo.uart.receive(rest) :]
        received += fifo.drain()
    assert received == text
    assert fifo.room_calls == 2  # the last piece left nothing behind


def test_without_the_fifo_one_byte_waits(bench):
    assert bench.uart.room == 1
    assert bench.uart.receive(b"ab") == 1
    assert bench.read(FR) & (FR_RXFF | FR_RXFE) == FR_RXFF
    assert bench.read(RIS) == INT_RX
    assert bench.drain() == b"a"
    assert bench.read(RIS) == 0
    assert bench.room_calls == 1


@pytest.mark.parametrize("cr", [0x300, CR_UARTEN | CR_TXE])
def test_the_host_keeps_what_comes_until_the_receiver_is_enabled(cr):
    bench = Bench(on=False)
    bench.write(CR, cr)
    assert bench.uart.receive(b"early") == 0
    bench.write(CR, CR_ON)
    assert bench.room_calls == 1
    assert bench.uart.receive(b"e") == 1


def test_switching_the_fifo_empties_the_receiver(fifo):
    fifo.write(IMSC, INT_RX | INT_RT)
    fifo.uart.receive(bytes(40))
    fifo.write(LCR_H, 0x60)
    assert fifo.read(FR) & FR_RXFE
    assert fifo.pin.driven == [True, False]
    assert fifo.room_calls == 1


@pytest.mark.parametrize(("code", "trigger"), [(0, 4), (1, 8), (2, 16), (3, 24), (4, 28), (7, 28)])
def test_the_receive_interrupt_rises_at_its_level_and_the_timeout_below(fifo, code, trigger):
    fifo.write(IFLS, code << 3)
    fifo.uart.receive(bytes(trigger - 1))
    assert fifo.read(RIS) == INT_RT
    fifo.uart.receive(b"x")
    assert fifo.read(RIS) == INT_RT | INT_RX
    fifo.read(DR)
    assert fifo.read(RIS) == INT_RT
    fifo.drain()
    assert fifo.read(RIS) == 0


def test_what_a_level_leaves_behind_is_reported_by_the_timeout(fifo):
    fifo.uart.receive(bytes(16))
    assert fifo.read(RIS) == INT_RX
    fifo.read(DR)
    assert fifo.read(RIS) == INT_RT


def test_the_pin_is_high_while_an_unmasked_interrupt_is(fifo):
    fifo.uart.receive(b"ab")
    assert fifo.pin.driven == []
    fifo.write(IMSC, INT_RT)
    assert fifo.read(MIS) == INT_RT
    fifo.read(DR)
    assert fifo.pin.driven == [True]
    fifo.read(DR)
    assert fifo.pin.driven == [True, False]


def test_clearing_takes_an_interrupt_away_until_the_next_byte(fifo):
    fifo.write(IMSC, INT_RT)
    fifo.uart.receive(b"a")
    fifo.write(ICR, INT_RT)
    assert fifo.pin.driven == [True, False]
    fifo.uart.receive(b"b")
    assert fifo.pin.driven == [True, False, True]
    assert fifo.drain() == b"ab"


# Transmitting


def test_a_byte_written_goes_to_the_wire_at_once(bench):
    for value in b"login: ":
        bench.write(DR, value)
    assert bench.wire.sent == b"login: "
    assert bench.read(FR) == FR_IDLE


@pytest.mark.parametrize("length", [1, 2, 4])
def test_an_early_console_sends_before_anything_is_set_up(length):
    bench = Bench(on=False)
    for value in b"Booting Linux":
        assert bench.read(FR, length) & (FR_TXFF | FR_BUSY) == 0
        bench.write(DR, value, length)
    assert bench.wire.sent == b"Booting Linux"
    assert bench.uart.faults == 0


def test_the_transmit_interrupt_follows_a_write_and_not_its_being_enabled(bench):
    bench.write(IMSC, INT_TX)
    assert bench.pin.driven == []
    bench.write(DR, 0x41)
    assert bench.read(MIS) == INT_TX
    assert bench.pin.driven == [True]
    bench.write(ICR, INT_TX)
    assert bench.pin.driven == [True, False]


def test_only_the_low_byte_of_data_is_sent(bench):
    bench.write(DR, 0xFFFF_FF41)
    assert bench.wire.sent == b"A"


def test_a_full_wire_holds_the_transmitter_until_it_is_ready(bench):
    bench.write(IMSC, INT_TX)
    bench.wire.full = True
    bench.write(DR, 0x41)
    assert bench.read(FR) & (FR_TXFE | FR_TXFF | FR_BUSY) == FR_TXFF | FR_BUSY
    assert bench.pin.level is False
    bench.write(DR, 0x42)
    assert bench.wire.sent == b"AB"  # never lost
    bench.uart.transmit_ready()
    assert bench.read(FR) & FR_TXFF  # it was not, after all
    bench.wire.full = False
    bench.uart.transmit_ready()
    assert bench.read(FR) == FR_IDLE
    assert bench.pin.level is True


def test_a_wire_that_becomes_full_takes_the_transmit_interrupt_back(bench):
    bench.write(IMSC, INT_TX)
    bench.write(DR, 0x41)
    bench.wire.full = True
    bench.write(DR, 0x42)
    assert bench.pin.driven == [True, False]


def test_transmit_ready_says_nothing_new_to_an_empty_transmitter(bench):
    bench.write(DR, 0x41)
    bench.write(ICR, INT_TX)
    bench.uart.transmit_ready()
    assert bench.read(RIS) == 0


# Loopback and modem


def test_loopback_returns_bytes_and_keeps_the_wire_silent(fifo):
    fifo.write(CR, CR_ON | CR_LBE)
    for value in b"echo":
        fifo.write(DR, value)
    assert fifo.wire.sent == b""
    assert fifo.read(RIS) & INT_TX
    assert fifo.drain() == b"echo"


def test_loopback_disconnects_the_wire_until_it_ends(bench):
    bench.write(CR, CR_ON | CR_LBE)
    assert bench.uart.room == 0
    assert bench.uart.receive(b"x") == 0
    bench.write(CR, CR_ON)
    assert bench.room_calls == 1
    assert bench.uart.receive(b"x") == 1


def test_an_overrun_loses_the_new_byte_and_is_told_three_ways(fifo):
    fifo.write(CR, CR_ON | CR_LBE)
    for value in range(33):
        fifo.write(DR, value)
    assert fifo.read(RIS) & INT_OE
    assert fifo.read(RSR) == RSR_OE
    assert fifo.read(DR) == DR_OE | 0
    fifo.write(DR, 0x41)  # there was room again
    assert fifo.read(DR) == 1
    fifo.write(RSR, 0)
    assert fifo.read(RSR) == 0
    assert fifo.drain() == bytes(range(2, 32)) + b"A"
    fifo.write(ICR, INT_OE)
    assert fifo.read(RIS) & INT_OE == 0


def test_loopback_turns_modem_outputs_into_inputs_and_every_change_interrupts(bench):
    far_end = FR_CTS | FR_DSR | FR_DCD
    modem = far_end | FR_RI
    for output, flag in ((CR_RTS, FR_CTS), (CR_DTR, FR_DSR), (CR_OUT1, FR_DCD), (CR_OUT2, FR_RI)):
        bench.write(CR, CR_ON | CR_LBE | output)
        assert bench.read(FR) & modem == flag
    bench.write(ICR, 0x7FF)
    bench.write(IMSC, INT_RI)
    bench.write(CR, CR_ON | CR_LBE)
    assert bench.read(RIS) == INT_RI
    assert bench.pin.level is True
    bench.write(CR, CR_ON)
    assert bench.read(FR) & modem == far_end
    assert bench.read(RIS) == INT_RI | INT_CTS | INT_DCD | INT_DSR


def test_modem_outputs_are_not_seen_by_the_far_end(bench):
    bench.write(CR, CR_ON | CR_DTR | CR_RTS)
    assert bench.read(RIS) == 0
    assert bench.read(FR) == FR_IDLE


# The bus


@pytest.mark.parametrize("length", [0, 3, 5, 8])
def test_odd_and_double_widths_get_the_bus_default_and_are_counted(bench, length):
    assert bench.read(IBRD, length) == (1 << 8 * length) - 1
    bench.write(IBRD, 0x12, length)
    assert bench.read(IBRD) == 0
    assert bench.uart.faults == 2


@pytest.mark.parametrize("offset", [1, 0x08, 0x19, 0x80, 0x500, 0xFDC, 0xFE1, 0x1000])
def test_offsets_without_a_register_get_the_bus_default(bench, offset):
    assert bench.read(offset, 2) == 0xFFFF
    bench.write(offset, 0)
    assert bench.uart.faults == 2


def test_a_narrow_access_meets_the_low_end_of_a_register(bench):
    bench.write(IBRD, 0x1234)
    assert bench.read(IBRD, 1) == 0x34
    bench.write(IBRD, 0xFFFF_FF56, 1)
    assert bench.read(IBRD) == 0x56


# State


def test_restore_adopts_the_irq_level_without_an_edge():
    before = Bench()
    before.write(LCR_H, LCR_FEN)
    before.write(IMSC, INT_RT)
    before.uart.receive(b"ab")
    after = Bench(before.uart.save())
    assert after.pin.driven == []
    assert after.drain() == b"ab"
    assert after.pin.driven == [False]
    after.uart.receive(b"c")
    assert after.pin.driven == [False, True]


@pytest.mark.parametrize("level", [False, True])
def test_resync_drives_the_level_again(level):
    bench = Bench(Pl011State(imsc=INT_TX, ris=INT_TX if level else 0))
    assert bench.pin.driven == []
    bench.uart.resync()
    assert bench.pin.driven == [level]


def test_a_transmitter_saved_while_held_is_released_by_transmit_ready():
    before = Bench()
    before.write(IMSC, INT_TX)
    before.wire.full = True
    before.write(DR, 0x41)
    after = Bench(before.uart.save())
    assert after.read(FR) & FR_BUSY
    after.uart.transmit_ready()
    assert after.pin.driven == [True]


def test_a_saved_state_is_detached(bench):
    saved = bench.uart.save()
    bench.write(IBRD, 0x77)
    assert saved.ibrd == 0


def test_restore_does_not_keep_the_callers_state():
    state = Pl011State()
    Bench(state).write(IBRD, 0x77)
    assert state.ibrd == 0


@pytest.mark.parametrize("field", [f for f in Pl011State.__struct_fields__ if f not in {"rx", "overrun", "tx_held"}])
def test_a_register_out_of_range_is_refused_by_its_name(field):
    with pytest.raises(ImageError, match=field):
        Bench(msgspec.structs.replace(Pl011State(), **{field: 0x1_0000}))


def test_a_receiver_beyond_its_fifo_is_refused():
    with pytest.raises(ImageError, match="rx"):
        Bench(Pl011State(rx=bytes(33)))


def test_reset_returns_to_power_on_and_drops_the_pin(fifo):
    fifo.write(IMSC, INT_RT)
    fifo.uart.receive(b"zz")
    fifo.uart.reset()
    assert fifo.uart.save() == Pl011State()
    assert fifo.pin.driven == [True, False]


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"rsr": 0x10}, "rsr"),
        ({"fbrd": 0x40}, "fbrd"),
        ({"cr": 0x08}, "cr"),
        ({"ifls": 0x40}, "ifls"),
        ({"imsc": 0x800}, "imsc"),
        ({"ris": 0x800}, "ris"),
        ({"dmacr": 0x08}, "dmacr"),
        ({"rx": b"ab"}, "rx"),
        ({"rx": bytes(32), "lcr_h": 0xEF}, "rx"),
        ({"ris": INT_RX}, "ris"),
        ({"ris": INT_RT}, "ris"),
        ({"ris": INT_TX, "tx_held": True}, "ris"),
    ],
)
def test_what_no_chip_could_hold_is_found(change, path):
    assert invariants(Pl011State(), "serial-pl011/0") == []
    found = invariants(Pl011State(**change), "serial-pl011/0")
    assert [finding.path for finding in found] == [path]


# Properties

_lengths = st.sampled_from([1, 2, 4, 4, 4, 4, 8, 3])
_offsets = st.one_of(st.sampled_from(OFFSETS), st.sampled_from(IDS), st.integers(0, 0x1000))
_guest = st.one_of(
    st.tuples(st.just("read"), _offsets, _lengths),
    st.tuples(st.just("write"), _offsets, _lengths, st.integers(0, 2**64 - 1)),
    st.tuples(st.just("write"), st.sampled_from([DR, LCR_H, CR, IMSC, ICR]), st.just(4), st.integers(0, 0xFFFF)),
    st.tuples(st.just("write"), st.just(CR), st.just(4), st.sampled_from([CR_ON, CR_ON | CR_LBE])),
)
_host = st.one_of(
    st.tuples(st.just("receive"), st.binary(max_size=40)),
    st.tuples(st.just("full"), st.booleans()),
    st.tuples(st.just("ready")),
)
_actions = st.lists(st.one_of(_guest, _host), max_size=40)


def act(bench, actions):
    seen = []
    for action in actions:
        match action:
            case "read", offset, length:
                seen.append(bench.read(offset, length))
            case "write", offset, length, value:
                bench.write(offset, value, length)
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
    assert invariants(bench.uart.save(), "serial-pl011/0") == []
    assert bench.pin.level is bool(bench.read(MIS))
    assert all(a != b for a, b in zip([False, *bench.pin.driven], bench.pin.driven, strict=False))


@given(_actions, _actions)
def test_save_restore_save_is_byte_equal_and_the_two_go_on_alike(actions, more):
    before = Bench()
    act(before, actions)
    saved = before.uart.save()
    after = Bench(saved)
    after.wire.full = before.wire.full
    assert after.pin.driven == []
    assert encode(after.uart.save()) == encode(saved)
    driven, sent = len(before.pin.driven), len(before.wire.sent)
    assert act(after, more) == act(before, more)
    assert encode(after.uart.save()) == encode(before.uart.save())
    assert after.pin.driven == before.pin.driven[driven:]
    assert after.wire.sent == before.wire.sent[sent:]


@settings(max_examples=60)
@given(st.binary(max_size=200), st.lists(st.integers(1, 40), min_size=1, max_size=8), st.booleans())
def test_whatever_the_pace_no_received_byte_is_lost_or_repeated(text, paces, with_fifo):
    bench = Bench()
    bench.write(LCR_H, LCR_FEN if with_fifo else 0)
    rest, received, turn = text, b"", 0
    while rest or not bench.read(FR) & FR_RXFE:
        rest = rest[bench.uart.receive(rest) :]
        assert bench.read(RIS) & (INT_RX | INT_RT)  # a driver that waits for its interrupt is told
        for _ in range(paces[turn % len(paces)]):
            if not bench.read(FR) & FR_RXFE:
                received += bytes([bench.read(DR)])
        turn += 1
    assert received == text


_words = {
    name: st.integers(0, 0xFFFF if name in {"ibrd", "cr", "imsc", "ris"} else 0xFF)
    for name in Pl011State.__struct_fields__
    if name not in {"rx", "overrun", "tx_held"}
}
_states = st.builds(Pl011State, **_words, rx=st.binary(max_size=32), overrun=st.booleans(), tx_held=st.booleans())


@given(_states, _actions)
def test_any_valid_state_restores_to_itself_and_is_total(state, actions):
    bench = Bench(state)
    assert encode(bench.uart.save()) == encode(checked(state))
    act(bench, actions)
    checked(bench.uart.save())
