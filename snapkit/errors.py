"""The one error tree: named by who must act, each with the exit code that the command line gives.

    SnapkitError                 never raised itself
     +- ConfigError              2   the operator asked for something impossible
     +- ImageError               3   the file is wrong: container, schema, state, digest
     +- IncompatibleHost         4   this host cannot run it; carries all findings
     +- HostError                5   a system call failed
     +- StateViolation           6   the API was called in the wrong run-state
     +- InternalError           70   our bug

A message is a lower-case fragment that names the object and shows got and wanted.
"""

import errno as _errno
import os
from collections.abc import Sequence
from typing import NamedTuple

EXIT_DONE = 0
EXIT_DIFFERENT = 1
EXIT_TRIPLE_FAULT = 7
EXIT_REBOOT = 8
EXIT_TIMEOUT = 124
EXIT_SIGINT = 130


class Finding(NamedTuple):
    """One thing that is wrong, said once: *component* is ``kind/instance``, *path* the field below it.

    ``str()`` gives ``virtio-block/root.queues[0].size is 3, must be a power of two <= 256``.
    """

    component: str
    path: str
    value: str
    expected: str
    rule: str = ""

    def __str__(self) -> str:
        where = f"{self.component}.{self.path}" if self.path else self.component
        return f"{where} is {self.value}, must be {self.expected}"


class SnapkitError(Exception):
    """Base of the tree; `exit_code` is what the command line exits with."""

    exit_code = 70

    def __init__(self, message: str, *, findings: Sequence[Finding] = ()) -> None:
        if type(self) is SnapkitError:
            raise TypeError("SnapkitError is never raised itself")
        self.findings = tuple(findings)
        super().__init__(message or type(self).__name__)

    def __str__(self) -> str:
        lines = [str(self.args[0]), *(str(finding) for finding in self.findings)]
        return "\n  ".join(lines)


class ConfigError(SnapkitError):
    """The operator asked for something impossible: a bad argument, a missing path."""

    exit_code = 2


class ImageError(SnapkitError):
    """The file is wrong: container, schema, state or digest."""

    exit_code = 3


class IncompatibleHost(SnapkitError):
    """This host cannot run it; `findings` lists every reason."""

    exit_code = 4


class HostError(SnapkitError):
    """A system call failed: `call` (with `request` for an ioctl), `errno`, `arguments` as a short text.

    `done` says, of a row of calls, how many had succeeded.
    """

    exit_code = 5

    def __init__(self, call: str, errno: int, arguments: str = "") -> None:
        self.call, self.errno, self.arguments = call, errno, arguments
        self.done = 0
        name = _errno.errorcode.get(errno, str(errno))
        super().__init__(f"{call}({arguments}) failed: {name}, {os.strerror(errno)}")


class StateViolation(SnapkitError):
    """An API was called in the wrong run-state: `actual`, `required`, and the `way_out`."""

    exit_code = 6

    def __init__(self, what: str, *, actual: str, required: str, way_out: str) -> None:
        self.actual, self.required, self.way_out = actual, required, way_out
        super().__init__(f"{what} while {actual}, must be {required}: {way_out}")


class InternalError(SnapkitError):
    """A bug of snapkit's own."""

    exit_code = 70
