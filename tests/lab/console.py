"""A guest that takes commands on its console (`scenario=commands`), through all of its lives.

    console = CommandConsole(job)
    console.ready()
    assert console.run("uname -r").code == 0
    ...
    console.move(restored_job)

A command is one line of shell. Its id is new in each, so what one life left unfinished is never taken for an answer.
"""

import signal
import time
from dataclasses import dataclass

from tests.lab.outer import Job, LabError, OuterDiedError, tail

ANSWER_S = 120.0  # the usual is under a second; an emulated host that also runs other things has its moments


class SilentGuestError(LabError):
    """The guest did not answer in time, or its monitor ended; the text holds what it last said."""


@dataclass(frozen=True)
class Answer:
    """What a command gave: its exit code and what it printed, without carriage returns and the last line's end."""

    command: str
    code: int
    text: str


class CommandConsole:
    """The console of one guest, in the job that runs it now."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._read = 0  # offset in the job's stdout behind what was taken
        self._count = 0

    def ready(self, timeout: float = ANSWER_S) -> None:
        """Wait until the guest takes commands."""
        self._expect("READY", timeout)

    def move(self, job: Job) -> None:
        """Go on in *job*, the guest's next life."""
        self.job, self._read = job, 0

    def run(self, command: str, *, timeout: float = ANSWER_S) -> Answer:
        """Run *command* to its end. Raises `SilentGuestError` when there is none in time."""
        assert "\n" not in command
        self._count += 1
        start, begin = self._read, time.monotonic()
        self.job.write(f"{self._count} {command}\n".encode())
        behind = self._expect(f"EXIT {self._count} ", timeout)
        text, _, _ = self.job.stdout[start:behind].replace("\r", "").rpartition("EXIT ")
        self._read = self.job.expect("\n", start=behind, timeout=ANSWER_S)
        code = int(self.job.stdout[behind : self._read])
        print(f"{time.monotonic() - begin:7.1f} s, exit {code}: {command}")  # shown with a test that fails
        return Answer(command, code, text.removeprefix("\n").removesuffix("\n"))

    def text(self, command: str, *, timeout: float = ANSWER_S) -> str:
        """Run a command that has to succeed; give what it printed."""
        answer = self.run(command, timeout=timeout)
        assert answer.code == 0, (answer, tail(self.job.stderr))
        return answer.text

    def wait(self, condition: str, *, seconds: int = 60) -> Answer:
        """Wait in the guest until the shell's *condition* holds, at most *seconds* by its clock; code 0 if it did."""
        clock = "read -r now rest </proc/uptime; now=${now%.*}"
        loop = f"{clock}; end=$((now + {seconds})); until {condition}; do {clock}; [ $now -gt $end ] && exit 1; sleep 0.2; done"
        return self.run(loop, timeout=ANSWER_S + seconds)

    def kill(self) -> None:
        """End the guest's job, when it has not ended by itself."""
        if self.job.running:
            self.job.signal(signal.SIGKILL)
            self.job.wait()

    def _expect(self, text: str, timeout: float) -> int:
        try:
            return self.job.expect(text, start=self._read, timeout=timeout)
        except OuterDiedError:
            raise
        except LabError as error:
            raise SilentGuestError(str(error)) from error
