"""Commands as processes of their own: how long until they say something, how long until they are done."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

PYTHON = sys.executable
ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 60.0


@cache
def environment() -> Mapping[str, str]:
    """Return a child's environment, as where snapkit is installed and pip has compiled everything: bytecode is kept."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"PYTHONPYCACHEPREFIX": str(ROOT / "build" / "bytecode")}


def done_ms(*command: str) -> float:
    """Run *command*; milliseconds until it is over."""
    begin_ns = time.perf_counter_ns()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE_S, env=environment())
    return (time.perf_counter_ns() - begin_ns) / 1e6


def first_output_ms(*command: str, pass_fds: Sequence[int] = ()) -> float:
    """Start *command*; milliseconds until the first byte of its output. Then it is killed."""
    begin_ns = time.perf_counter_ns()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pass_fds=pass_fds,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        try:
            assert os.read(process.stdout.fileno(), 1), command
            took_ns = time.perf_counter_ns() - begin_ns
        finally:
            process.kill()
    return took_ns / 1e6


def snapkit(*arguments: str) -> list[str]:
    """Return the command ``python -m snapkit``."""
    return [PYTHON, "-m", "snapkit", *arguments]


def script(*arguments: str) -> list[str]:
    """Return the command ``snapkit``, as pip puts it beside the interpreter."""
    return [str(Path(PYTHON).with_name("snapkit")), *arguments]
