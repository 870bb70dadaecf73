"""Runs inside the outer machine: snapkit's command line under cProfile, in every thread; the table goes to stderr."""

import cProfile
import pstats
import sys
import threading
from typing import Any
from unittest import mock

TOP = 45

_profiles: list[cProfile.Profile] = []


def main() -> int:
    run = threading.Thread.run

    def profiled(thread: threading.Thread) -> None:
        _profile(run, thread)

    from snapkit.cli import main as command

    code = 0
    with mock.patch.object(threading.Thread, "run", profiled):
        try:
            _profile(command)
        except SystemExit as end:
            code = int(end.code or 0)
    stats = pstats.Stats(*_profiles, stream=sys.stderr)
    stats.sort_stats("tottime").print_stats(TOP)
    return code


def _profile(function: Any, *arguments: Any) -> None:
    profile = cProfile.Profile()
    _profiles.append(profile)
    profile.runcall(function, *arguments)


if __name__ == "__main__":
    sys.exit(main())
