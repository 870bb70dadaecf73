"""snapkit commands with little memory to have: alone, or hundreds of them forked from one process that has everything
imported, which saves the start of the interpreter and changes nothing else.

That process is small and starts both: what a process began with counts as its peak, and a test run's is large.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from snapkit.state.schema import KINDS, versions_of

ROOT = str(Path(__file__).parents[2])
ADDRESS_SPACE = 1 << 30
"""Much more than any command here needs, much less than any hostile file here asks for."""
PATIENCE_S = 60
IMPORTED = ("zstandard", "snapkit.vmm.machine", *(f"snapkit.cli.{name}" for name in ("inspect", "restore", "verify")))
MIB = 1 << 20


@dataclass(frozen=True)
class Done:
    """How a command ended. *seconds* are of processor time, *peak* bytes of memory, in a batch without what all share."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float
    peak: int

    def explained(self) -> str:
        """Assert that it ended with one paragraph on stderr and nothing else; returns the paragraph."""
        assert "Traceback" not in self.err, self
        assert self.err.startswith("snapkit: "), self
        assert self.err.endswith("\n"), self
        lines = self.err.splitlines()
        assert all(line.startswith("  ") for line in lines[1:]), self
        assert len(lines) < 50, self
        assert len(self.err) < 8192, self
        return self.err

    def frugal(self, peak: int) -> None:
        """Assert that it took less than a second of work, and little memory."""
        assert self.seconds < 1, self
        assert self.peak < peak, self


class Batch:
    """A process that runs one command after another, each in a fork of its own."""

    def __init__(self, folder: Path) -> None:
        """Its commands' output passes through files in *folder*."""
        self._folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.confined", str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> Done:
        """Run a command in a fork that has everything imported."""
        return self._run(words, alone=False)

    def alone(self, *words: str) -> Done:
        """Run ``python -m snapkit`` as a process of its own."""
        return self._run(words, alone=True)

    def _run(self, words: tuple[str, ...], *, alone: bool) -> Done:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"words": words, "alone": alone}) + "\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        out, err = ((self._folder / name).read_bytes().decode(errors="replace") for name in ("out", "err"))
        return Done(words, told["code"], out, err, told["seconds"], told["peak"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(PATIENCE_S)


def _serve(folder: str) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    for kind in KINDS:
        versions_of(kind)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if not pid:
            _command(asked["words"], folder, alone=asked["alone"])
        _, status, usage = os.wait4(pid, 0)
        shared = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
        told = {
            "code": os.waitstatus_to_exitcode(status),
            "seconds": usage.ru_utime + usage.ru_stime,
            "peak": max(0, usage.ru_maxrss * 1024 - (0 if asked["alone"] else shared)),
        }
        print(json.dumps(told), flush=True)


def _command(words: list[str], folder: str, *, alone: bool) -> None:
    code = 99
    try:
        for fd, name, flags in (
            (0, "/dev/null", os.O_RDONLY),
            (1, f"{folder}/out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, f"{folder}/err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        ):
            os.dup2(os.open(name, flags), fd)
        signal.alarm(PATIENCE_S)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        if alone:
            os.execv(sys.executable, [sys.executable, "-m", "snapkit", *words])
        sys.argv = ["snapkit", *words]
        from snapkit.cli import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 98
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
