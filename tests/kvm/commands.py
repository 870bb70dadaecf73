"""`python -m snapkit ...` as a process of its own, on pipes or on a terminal."""

import fcntl
import os
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

from tests.kvm.harness import PATIENCE_S

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SNAPKIT = (sys.executable, "-m", "snapkit")


def finished(*words: str, stdin: int = subprocess.DEVNULL) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        [*SNAPKIT, *words], cwd=ROOT, stdin=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


class Running:
    """A process that runs, and what came out of it so far. On a terminal its stdin and stdout are that terminal."""

    def __init__(self, words: Sequence[str], *, terminal: "Terminal | None" = None, leader: bool = False) -> None:
        self.output = b""
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        if terminal is not None:
            options = {"stdin": terminal.slave, "stdout": terminal.slave}
        if leader:
            # a login shell's situation: the terminal is the controlling one, and its end raises SIGHUP
            options |= {"start_new_session": True, "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)}
        self.process = subprocess.Popen([*SNAPKIT, *words], cwd=ROOT, stderr=subprocess.PIPE, **options)
        self._fd = terminal.master if terminal is not None else self._stdout().fileno()

    def _stdout(self) -> Any:
        assert self.process.stdout is not None
        return self.process.stdout

    def read_until(self, text: str, times: int = 1) -> None:
        """Take output until *text* was in it that often."""
        deadline = time.monotonic() + PATIENCE_S
        while self.output.count(text.encode()) < times:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"waited {PATIENCE_S} s for {text!r}, got {self.output!r}"
            more = os.read(self._fd, 4096)
            assert more, f"ended before {text!r}: {self.output!r}, {self.errors()}"
            self.output += more

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close_reader(self) -> None:
        self._stdout().close()

    def errors(self) -> str:
        """What it said on stderr, when it has ended."""
        assert self.process.stderr is not None
        return bytes(self.process.stderr.read()).decode()

    def code(self) -> int:
        """Wait for the end; returns the exit code."""
        return self.process.wait(PATIENCE_S)


@contextmanager
def running(*words: str, terminal: "Terminal | None" = None, leader: bool = False) -> Iterator[Running]:
    """A `Running` that is gone at the end of the block, whatever happens."""
    command = Running(words, terminal=terminal, leader=leader)
    try:
        yield command
    finally:
        if command.process.poll() is None:
            command.process.kill()
        command.process.wait()
        for pipe in (command.process.stdin, command.process.stdout, command.process.stderr):
            if pipe is not None and not pipe.closed:
                pipe.close()


class Terminal:
    """A pseudo-terminal; the slave stays open here, so that its settings outlive whoever runs on it."""

    def __init__(self) -> None:
        self.master, self.slave = os.openpty()
        self.before = termios.tcgetattr(self.slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        if self.slave >= 0:
            os.close(self.slave)

    def hang_up(self) -> None:
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def close_slave(self) -> None:
        os.close(self.slave)
        self.slave = -1

    def type(self, payload: bytes) -> None:
        os.write(self.master, payload)

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)

    @property
    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before
