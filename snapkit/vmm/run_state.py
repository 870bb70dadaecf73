"""What a machine is doing, why it stopped, and the exit code that this means."""

from enum import StrEnum
from typing import NamedTuple

from snapkit.errors import (
    EXIT_DONE,
    EXIT_REBOOT,
    EXIT_SIGINT,
    EXIT_TIMEOUT,
    EXIT_TRIPLE_FAULT,
    HostError,
    InternalError,
    SnapkitError,
)


class RunState(StrEnum):
    """What a machine is doing."""

    BUILDING = "being built"
    PAUSED = "paused"
    RUNNING = "running"
    STOPPED = "stopped"
    CLOSED = "closed"


class Reason(StrEnum):
    """Why a machine stopped, in the words that people are told."""

    POWER_OFF = "the guest powered off"
    RESET = "the guest asked for a reset"
    TRIPLE_FAULT = "triple fault"
    STOPPED = "stopped"
    TEXT_SEEN = "the text that was waited for appeared"
    TIMEOUT = "the time allowed is over"
    INTERRUPTED = "interrupted"
    CONSOLE_LOST = "the console was lost"
    FAILED = "failed"


EXIT_CODES = {
    Reason.POWER_OFF: EXIT_DONE,
    Reason.RESET: EXIT_REBOOT,
    Reason.TRIPLE_FAULT: EXIT_TRIPLE_FAULT,
    Reason.STOPPED: EXIT_DONE,
    Reason.TEXT_SEEN: EXIT_DONE,
    Reason.TIMEOUT: EXIT_TIMEOUT,
    Reason.INTERRUPTED: EXIT_SIGINT,
    Reason.CONSOLE_LOST: HostError.exit_code,
    Reason.FAILED: InternalError.exit_code,
}


class Stop(NamedTuple):
    """The end of a run: the reason, a detail for people, the error if there was one."""

    reason: Reason
    detail: str = ""
    error: SnapkitError | None = None

    @property
    def exit_code(self) -> int:
        return self.error.exit_code if self.error is not None else EXIT_CODES[self.reason]
