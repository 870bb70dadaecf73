"""The host end of a serial port on pipes, files and terminals; the chip is played by a list."""

import errno
import fcntl
import os
import select
import termios
from functools import partial

import pytest

from snapkit import host
from snapkit.errors import ConfigError, HostError
from snapkit.vmm.backends.console import HIGH_WATER, Console
from snapkit.vmm.loop import Loop

PIPE_LEN = 4096


class Chip:
    """Takes what it has room for."""

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.taken = b""
        self.lost: list[str] = []
        self.quits = 0
        self.room_again = 0

    def receive(self, payload: bytes) -> int:
        part = payload[: self.room]
        self.room -= len(part)
        self.taken += part
        return len(part)

    def note_room(self) -> None:
        self.room_again += 1

    def note_quit(self) -> None:
        self.quits += 1


@pytest.fixture
def loop():
    with Loop() as made:
        yield made


@pytest.fixture
def pipe():
    ends = os.pipe()
    fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, PIPE_LEN)
    held = list(ends)
    yield held
    for fd in held:
        if fd >= 0:
            os.close(fd)


@pytest.fixture
def terminal():
    ends = list(os.openpty())
    yield ends
    for fd in ends:
        if fd >= 0:
            os.close(fd)


def attach(console: Console, loop: Loop, chip: Chip) -> None:
    console.attach(
        loop, receive=chip.receive, room_again=chip.note_room, lost=chip.lost.append, quit_asked=chip.note_quit
    )


def is_full(console: Console) -> bool:
    return console.full


def turn(loop: Loop, turns: int = 4) -> None:
    """Serve the loop a few times, as far as there is something to serve."""
    for _ in range(turns):
        loop.post(lambda: loop.post(loop.stop))  # one step serves all that is ready, the next one stops
        loop.run()


def type_on(terminal: list[int], loop: Loop, payload: bytes) -> None:
    """Type, wait until the kernel has brought it across, and serve."""
    os.write(terminal[0], payload)
    assert select.select([terminal[1]], [], [], 30)[0]
    turn(loop)


def test_output_arrives_in_order_and_the_wire_is_full_above_the_mark_until_it_was_read(loop, pipe):
    chip, console = Chip(), Console(pipe[1])
    attach(console, loop, chip)
    sent = b"".join(b"%07d\n" % number for number in range(HIGH_WATER // 4))  # twice the mark
    for at in range(0, len(sent), 1000):
        console.write(sent[at : at + 1000])
    assert is_full(console)
    assert chip.room_again == 0
    got = b""
    while len(got) < len(sent):
        turn(loop)
        got += os.read(pipe[0], PIPE_LEN)
    assert got == sent
    assert not is_full(console)
    assert chip.room_again == 1
    assert chip.lost == []


def test_what_is_written_before_there_is_a_loop_is_written_when_there_is_one(loop, pipe):
    console = Console(pipe[1])
    console.write(b"early ")
    attach(console, loop, Chip())
    console.write(b"late")
    turn(loop)
    assert os.read(pipe[0], 100) == b"early late"


def test_detaching_writes_what_is_left(loop, pipe):
    console = Console(pipe[1])
    attach(console, loop, Chip())
    console.write(b"the last words")
    console.detach()
    assert os.read(pipe[0], 100) == b"the last words"
    console.detach()


def test_detaching_does_not_wait_for_ever_for_a_reader_that_does_not_read(loop, pipe):
    console = Console(pipe[1])
    attach(console, loop, Chip())
    console.write(b"x" * (3 * PIPE_LEN))
    console.detach()
    assert os.read(pipe[0], 4 * PIPE_LEN) == b"x" * PIPE_LEN


def test_a_reader_that_is_gone_is_told_once_and_serving_goes_on_without_it(loop, pipe):
    chip, console = Chip(), Console(pipe[1])
    attach(console, loop, chip)
    os.close(pipe[0])
    pipe[0] = -1
    console.write(b"to nobody")
    turn(loop)
    assert len(chip.lost) == 1
    assert "EPIPE" in chip.lost[0]
    console.write(b"to nobody either")
    turn(loop)
    console.detach()
    assert len(chip.lost) == 1
    assert not select.select([loop._poll], [], [], 0)[0], "the loop is still woken by the lost fd"


def test_a_file_is_appended_to_and_closed(loop, tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    console = Console.open(f"file:{path}")
    fd = console._out_fd
    assert fd is not None
    attach(console, loop, Chip())
    console.write(b"after\n")
    turn(loop)
    console.close()
    assert path.read_bytes() == b"before\nafter\n"
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_an_opened_file_that_is_lost_is_closed_too(loop):
    console = Console.open("file:/dev/full")
    fd = console._out_fd
    assert fd is not None
    chip = Chip()
    attach(console, loop, chip)
    console.write(b"x")
    turn(loop)
    assert "ENOSPC" in chip.lost[0]
    console.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("spec", ["", "tty", "file", "file:", "stdio:", "FILE:/tmp/x"])
def test_an_unknown_wire_is_refused(spec):
    with pytest.raises(ConfigError, match="must be stdio, null or file:PATH"):
        Console.open(spec)


def test_a_null_wire_takes_everything_and_is_never_full():
    console = Console.open("null")
    console.write(b"x" * (2 * HIGH_WATER))
    assert not console.full


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 100])
def test_a_text_is_found_however_it_is_cut_into_writes_and_told_once(cut):
    console = Console(None)
    found: list[str] = []
    for text in ("needle", "edle in", "ay", "needle"):
        console.watch_for(text, partial(found.append, text))
    sent = b"hay needle in hay needle"
    for at in range(0, len(sent), cut):
        console.write(sent[at : at + cut])
    assert sorted(found) == ["ay", "edle in", "needle", "needle"]


def test_a_text_may_be_watched_for_from_inside_a_find():
    console = Console(None)
    found: list[str] = []

    def first() -> None:
        found.append("a")
        console.watch_for("b", partial(found.append, "b"))

    console.watch_for("a", first)
    console.write(b"a")
    console.write(b"b")
    assert found == ["a", "b"]


def test_input_waits_for_room_in_the_chip_and_none_is_lost(loop, pipe):
    chip = Chip(room=3)
    console = Console(None, pipe[0])
    attach(console, loop, chip)
    os.write(pipe[1], b"abcdefgh")
    turn(loop)
    assert chip.taken == b"abc"
    for _ in range(3):
        chip.room = 2
        console.input_again()
        turn(loop)
    assert chip.taken == b"abcdefgh"
    os.write(pipe[1], b"!")
    chip.room = 10
    turn(loop)
    assert chip.taken == b"abcdefgh!"


def test_the_end_of_piped_input_is_no_loss(loop, pipe):
    chip, console = Chip(), Console(None, pipe[0])
    attach(console, loop, chip)
    os.write(pipe[1], b"all\x01x")  # no terminal: Ctrl-A x is the guest's
    os.close(pipe[1])
    pipe[1] = -1
    turn(loop)
    assert chip.taken == b"all\x01x"
    assert (chip.lost, chip.quits) == ([], 0)


def test_input_from_a_regular_file_is_read_to_its_end(loop, tmp_path):
    (tmp_path / "in").write_bytes(b"i" * 1000)
    fd = os.open(tmp_path / "in", os.O_RDONLY)
    chip, console = Chip(), Console(None, fd)
    attach(console, loop, chip)
    turn(loop, 8)
    console.detach()
    os.close(fd)
    assert chip.taken == b"i" * 1000


def test_a_terminal_is_raw_while_attached_but_for_its_newlines_and_given_back(loop, terminal):
    master, slave = terminal
    before = termios.tcgetattr(slave)
    chip, console = Chip(), Console(os.dup(slave), slave, owned=True)
    attach(console, loop, chip)
    now = termios.tcgetattr(slave)
    assert not now[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    assert now[1] & termios.OPOST
    console.write(b"line\n")
    type_on(terminal, loop, b"\x03k")
    assert chip.taken == b"\x03k"
    shown = os.read(master, 100)
    while not shown.endswith(b"\n"):
        shown += os.read(master, 100)
    assert shown == b"line\r\n"
    console.close()
    assert termios.tcgetattr(slave) == before


@pytest.mark.parametrize(
    ("typed", "taken", "quits"),
    [
        ([b"\x01x"], b"", 1),
        ([b"\x01", b"x"], b"", 1),
        ([b"a\x01\x01b"], b"a\x01b", 0),
        ([b"\x01", b"\x01", b"x"], b"\x01x", 0),
        ([b"\x01z"], b"z", 0),
        ([b"x\x01xy"], b"xy", 1),
    ],
)
def test_ctrl_a_x_on_a_terminal_quits_and_ctrl_a_twice_is_one(loop, terminal, typed, taken, quits):
    chip, console = Chip(), Console(None, terminal[1])
    attach(console, loop, chip)
    for part in typed:
        type_on(terminal, loop, part)
    assert (chip.taken, chip.quits) == (taken, quits)
    console.detach()


def test_a_terminal_that_hangs_up_is_lost(loop, terminal):
    chip, console = Chip(), Console(os.dup(terminal[1]), terminal[1], owned=True)
    attach(console, loop, chip)
    os.close(terminal[0])
    terminal[0] = -1
    turn(loop)
    assert chip.lost
    console.close()


def test_a_console_that_cannot_be_attached_gives_the_terminal_back(loop, terminal):
    before = termios.tcgetattr(terminal[1])
    console = Console(None, terminal[1])

    def refuse(call: str, _arguments: tuple[object, ...]) -> None:
        if call == "epoll_control":
            raise OSError(errno.ENOMEM, "injected")

    with host.inject(refuse), pytest.raises(HostError, match="ENOMEM"):
        attach(console, loop, Chip())
    assert termios.tcgetattr(terminal[1]) == before
    attach(console, loop, Chip())
    console.detach()
    assert termios.tcgetattr(terminal[1]) == before


def test_a_terminal_whose_settings_cannot_be_read_is_a_host_error(loop, terminal):
    def refuse(call: str, _arguments: tuple[object, ...]) -> None:
        if call == "tcgetattr":
            raise OSError(errno.EIO, "injected")

    with host.inject(refuse), pytest.raises(HostError, match="tcgetattr"):
        attach(Console(None, terminal[1]), loop, Chip())
