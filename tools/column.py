"""One program of a matrix's columns: a release's wheel or the working tree, imported once, run once for every file.

`Column.run` is `python -m snapkit WORDS...` of that program, in a process of its own: a server inside the program's
environment has imported everything and forks for each command, which spares each the start-up. There is one server for
all rows of a column, and none before a row needs it. What is asked and answered are lines of JSON. The commands are those
that never change, so a server can drive any release.

The server's side imports nothing but the standard library: it runs in the environment of any release. It finds this
module behind all packages of that environment, so that the checkout's own snapkit cannot come in the way.
"""

import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

from tools import tap

ROOT = Path(__file__).resolve().parents[1]
_SERVE = "import sys; sys.path[:0] = {first}; sys.path.append({last!r}); from tools.column import serve; serve()"


class Place(NamedTuple):
    """Where a program is: an interpreter that has it installed, or one that has what it needs, and the *tree* it is in."""

    python: Path
    tree: Path | None = None


class Done(NamedTuple):
    """How a command ended: its exit code (negative: the signal that ended it), what it wrote."""

    code: int
    out: str
    err: str


class Column:
    """A program that answers by its commands; one at a time. A context manager, which ends it."""

    def __init__(self, name: str, place: Callable[[], Place]) -> None:
        """Name it; *place* is asked once, when it is first needed."""
        self.name = name
        self._place = place
        self._lock = threading.Lock()
        self._server: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            with self._server:
                self._server.kill()

    @property
    def started(self) -> bool:
        """Whether anything needed it."""
        return self._server is not None

    def run(self, words: list[str], folder: Path, *, taps: tuple[str, ...] = (), bound_s: int = 120) -> Done:
        """Run ``snapkit`` with *words* in *folder*, where its output goes, among *taps*; it is killed after *bound_s*."""
        asked = {"words": words, "folder": str(folder), "taps": taps, "bound_s": bound_s}
        with self._lock:
            if self._server is None:
                self._server = _start(self._place())
            assert self._server.stdin is not None
            assert self._server.stdout is not None
            try:
                self._server.stdin.write(json.dumps(asked) + "\n")
                self._server.stdin.flush()
            except BrokenPipeError:
                pass
            answer = self._server.stdout.readline()
        if not answer:
            return Done(70, "", f"the program of column {self.name} does not start")
        out, err = ((folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        return Done(json.loads(answer), out, err)


def _start(place: Place) -> "subprocess.Popen[str]":
    first = [] if place.tree is None else [str(place.tree)]
    words = [str(place.python), "-P", "-c", _SERVE.format(first=first, last=str(ROOT))]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean)


def serve() -> None:
    """Answer for this environment's snapkit until nobody asks any more."""
    package = importlib.import_module("snapkit")
    for module in pkgutil.walk_packages(package.__path__, "snapkit.", onerror=lambda _name: None):
        if not module.name.endswith("__main__"):
            with suppress(ImportError):  # what is optional
                importlib.import_module(module.name)
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            _become(asked)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _become(asked: dict[str, object]) -> None:
    """Run one command and end this process with its code."""
    code: object = 70
    try:
        os.chdir(str(asked["folder"]))
        signal.alarm(int(str(asked["bound_s"])))
        for fd, name, flags in (
            (0, os.devnull, os.O_RDONLY),
            (1, "stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
            (2, "stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        ):
            os.dup2(os.open(name, flags, 0o600), fd)
        taps, words = asked["taps"], asked["words"]
        assert isinstance(taps, list)
        assert isinstance(words, list)
        if taps:
            tap.enter(taps)
        sys.argv = ["snapkit", *words]
        runpy.run_module("snapkit", run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else bool(code))
