"""PL011 and PL031 where the address map has them: on the bus, on their pins, with console and loop behind them."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest

from snapkit import host
from snapkit.state.interrupt_table import LineState
from snapkit.state.rtc_pl031 import Pl031State
from snapkit.state.schema import SectionId, State
from snapkit.state.serial_pl011 import Pl011State
from snapkit.state.spec.address_map import AARCH64
from snapkit.vmm.backends.console import Console
from snapkit.vmm.loop import Loop
from snapkit.vmm.parts.board import Board
from snapkit.vmm.vm import Vm
from tests.vmm.virtio.paper import PaperKernel

SERIAL, RTC = SectionId("serial-pl011", "0"), SectionId("rtc-pl031", "0")
UART_DR, UART_FR, UART_CR, UART_IMSC = (0x0900_0000 + offset for offset in (0x00, 0x18, 0x30, 0x38))
RTC_DR, RTC_MR, RTC_IMSC, RTC_RIS, RTC_ICR = (0x0901_0000 + offset for offset in (0x00, 0x04, 0x10, 0x14, 0x1C))
NOW_S, START_NS = 1_800_000_000, 5_000_000_000
S = 10**9


class PaperLoop(Loop):
    """Keeps what is posted and what waits for its time; `turn` is what the loop does once."""

    def __init__(self) -> None:
        self.posted: list[Callable[[], None]] = []
        self.timers: list[tuple[int, Callable[[], None]]] = []

    def post(self, callback: Callable[[], None]) -> None:
        self.posted.append(callback)

    def call_at(self, deadline_ns: int, callback: Callable[[], None]) -> None:
        self.timers.append((deadline_ns, callback))

    def turn(self, now_ns: int) -> None:
        posted, self.posted = self.posted, []
        for callback in posted:
            callback()
        due = [timer for timer in self.timers if timer[0] <= now_ns]
        self.timers = [timer for timer in self.timers if timer[0] > now_ns]
        for _, callback in due:
            callback()


class Line:
    """Both parts of one machine, over a kernel of paper, with a clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, states: dict[SectionId, State]) -> None:
        self.now_ns = START_NS
        monkeypatch.setattr(host, "monotonic_ns", lambda: self.now_ns)
        monkeypatch.setattr(host, "realtime_ns", lambda: NOW_S * S + self.now_ns - START_NS)
        self.kernel, self.loop = PaperKernel(), PaperLoop()
        self.vm = Vm(cast("Any", None), cast("Any", self.kernel), lines=AARCH64.lines)
        self.board = Board(self.loop, Console(None), cast("Any", SimpleNamespace(request_stop=lambda _stop: None)))
        self.board.place(self.vm, AARCH64, cast("Any", None), restored=True)
        for section, state in states.items():
            self.board.construct(section, state)
        self.levels: list[tuple[int, int]] = []
        monkeypatch.setattr(self.kernel, "set_irq_line", lambda gsi, level: self.levels.append((int(gsi), level)))

    def read(self, gpa: int) -> int:
        with self.vm.lock:
            return self.vm.mmio.read(gpa, 4)

    def write(self, gpa: int, value: int) -> None:
        with self.vm.lock:
            self.vm.mmio.write(gpa, 4, value)

    def start(self) -> None:
        self.board.activate()
        self.board.run()
        self.loop.turn(self.now_ns)

    def pass_s(self, seconds: int) -> None:
        self.now_ns += seconds * S
        self.loop.turn(self.now_ns)


Make = Callable[[dict[SectionId, State]], Line]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    with ExitStack() as stack:

        def build(states: dict[SectionId, State]) -> Line:
            line = Line(monkeypatch, states)
            stack.callback(line.vm.close)
            stack.callback(line.board.close_parts)
            stack.callback(line.board.deactivate)
            return line

        yield build


@pytest.fixture
def line(make: Make) -> Line:
    return make({SERIAL: Pl011State(), RTC: Pl031State()})


def test_both_are_where_the_address_map_has_them_on_level_triggered_pins(line: Line) -> None:
    assert line.read(UART_FR) & 0x90 == 0x90
    assert line.read(RTC_DR) == NOW_S
    assert line.vm.interrupts.save().lines == [
        LineState(gsi=0, edge=False, owner="serial-pl011/0"),
        LineState(gsi=1, edge=False, owner="rtc-pl031/0"),
    ]
    line.board.close_parts()
    assert line.read(UART_FR) == line.read(RTC_DR) == 0xFFFF_FFFF
    assert line.vm.interrupts.save().lines == []


def test_what_the_guest_writes_reaches_the_console(line: Line) -> None:
    found: list[str] = []
    line.board._console.watch_for("Linux", lambda: found.append("there"))
    for value in b"Booting Linux":
        line.write(UART_DR, value)
    assert found == ["there"]


def test_activation_drives_both_levels_again(make: Make) -> None:
    states = {SERIAL: Pl011State(imsc=0x20, ris=0x20), RTC: Pl031State(imsc=1, ris=1)}
    line = make(dict(states))
    assert line.levels == []
    line.board.activate()
    assert line.levels == [(0, 1), (1, 1)]
    assert {section: part.save() for section, part in line.board.parts.items()} == states


def test_a_match_interrupts_although_the_guest_looks_at_nothing(line: Line) -> None:
    line.start()
    line.write(RTC_MR, NOW_S + 200)
    line.write(RTC_IMSC, 1)
    line.levels.clear()
    for _ in range(199):
        line.pass_s(1)
    assert line.levels == []
    line.pass_s(1)
    assert line.levels == [(1, 1)]
    line.pass_s(600)
    assert line.loop.timers == []  # nothing is waited for


def test_a_match_that_was_put_forward_is_not_missed(line: Line) -> None:
    line.start()
    line.write(RTC_IMSC, 1)
    line.write(RTC_MR, NOW_S + 50)
    line.pass_s(1)
    line.write(RTC_MR, NOW_S + 5)
    line.pass_s(1)
    line.levels.clear()
    line.pass_s(3)
    assert line.levels == [(1, 1)]


def test_a_guest_that_moves_its_match_for_ever_has_few_timers_and_calls_pending(line: Line) -> None:
    line.start()
    line.write(RTC_IMSC, 1)
    most = 0
    for number in range(2000):
        line.write(RTC_MR, NOW_S + 1 + (7 * number) % 300)
        most = max(most, len(line.loop.posted))
        if number % 3 == 0:
            line.loop.turn(line.now_ns)
    assert most <= 1
    assert len(line.loop.timers) <= 61


def test_a_match_waits_while_the_machine_is_paused_and_comes_with_the_resume(line: Line) -> None:
    line.start()
    line.write(RTC_MR, NOW_S + 10)
    line.write(RTC_IMSC, 1)
    line.loop.turn(line.now_ns)
    line.board.pause()
    saved = line.board.parts[RTC].save()
    line.levels.clear()
    line.pass_s(100)
    assert line.levels == []
    assert line.board.parts[RTC].save() == saved
    line.board.run()
    assert line.levels == [(1, 1)]


def test_a_match_that_passed_while_the_machine_was_a_file_comes_with_the_first_resume(make: Make) -> None:
    line = make({RTC: Pl031State(mr=NOW_S - 100, match_s=NOW_S - 100, imsc=1)})
    line.board.activate()
    assert line.levels == [(1, 0)]
    line.board.run()
    assert line.levels == [(1, 0), (1, 1)]
    assert line.read(RTC_RIS) == 1


def test_a_timer_that_comes_after_the_machine_is_gone_touches_nothing(line: Line) -> None:
    line.start()
    line.write(RTC_MR, NOW_S + 10)
    line.write(RTC_IMSC, 1)
    line.loop.turn(line.now_ns)
    line.board.pause()
    line.board.deactivate()
    line.levels.clear()
    line.pass_s(100)
    assert line.levels == []
    assert line.loop.timers == []
