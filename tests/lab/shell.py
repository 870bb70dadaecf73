"""Run commands in a fresh outer machine, for experiments: `python -m tests.lab.shell [options] aarch64 COMMAND...`.

Output is copied as it comes, and the exit code is the command's. A command that begins with a file whose name ends in
`.py` is run by the Python that has the project's dependencies, and the checkout is on its path. Without a command, each
line of standard input is one, run by `sh` in the same machine; `$SHARE` is the folder that both sides can write.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab.architecture import ARCHITECTURES
from tests.lab.outer import POLL_S, Outer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("architecture", choices=sorted(ARCHITECTURES))
    parser.add_argument("command", nargs=argparse.REMAINDER)
    parser.add_argument("--cpu", help="QEMU's -cpu, the lab's own by default")
    parser.add_argument("--cpus", type=int)
    parser.add_argument("--memory", type=int, metavar="MIB")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="for each command")
    options = parser.parse_args()
    architecture = ARCHITECTURES[options.architecture]
    with Outer(architecture, cpu=options.cpu, cpus=options.cpus, memory_mib=options.memory) as outer:
        print(f"booted in {outer.boot_s:.1f} s; share {outer.share}", file=sys.stderr)
        if options.command:
            return _run(outer, options.command, options.timeout)
        code = 0
        for line in sys.stdin:
            code = _run(outer, ["sh", "-c", line], options.timeout)
        return code


def _run(outer: Outer, command: Sequence[str], timeout: float) -> int:
    words = list(command)
    if words[0].endswith(".py"):
        words[:1] = [outer.python, str(Path(words[0]).resolve())]
    environment = {"SHARE": str(outer.share), "PYTHON": outer.python}
    job = outer.start(words, timeout=timeout, cwd=outer.work, env=environment)
    shown = [0, 0]
    while True:
        ended = not job.running
        for index, (name, stream) in enumerate((("stdout", sys.stdout), ("stderr", sys.stderr))):
            with contextlib.suppress(FileNotFoundError):
                said = (job.folder / name).read_bytes()[shown[index] :]
                shown[index] += len(said)
                stream.buffer.write(said)
                stream.flush()
        if ended:
            break
        time.sleep(POLL_S)
    result = job.wait()
    if os.isatty(2) or result.timed_out or result.code:
        end = "timed out" if result.timed_out else f"exit {result.code}"
        print(f"{end} after {result.seconds:.1f} s", file=sys.stderr)
    return result.code


if __name__ == "__main__":
    sys.exit(main())
