"""Save, restore, save: is the second save equal to the first, by the rule of `snapkit.restore.equality`?

    python -m tools.equal FILE [OVERRIDES [FILE OVERRIDES...]]

Restores FILE up to *load* (nothing is activated, nothing runs), saves twice, and compares both saves with the file.
OVERRIDES is JSON, values by device id. Prints a line for each file that begins with ``equal``, or every difference; exit 1
when there is one. Runs by its path as well.
"""

import json
import sys
from collections.abc import Mapping
from itertools import zip_longest

from snapkit import host
from snapkit.errors import Finding
from snapkit.restore.equality import differences, elapsed
from snapkit.restore.pipeline import Timeline, run_steps
from snapkit.restore.restore import prepare
from snapkit.restore.target import Target
from snapkit.state.machine import MachineState
from snapkit.vmm.backends.console import Console
from snapkit.vmm.facts import live
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import Machine
from snapkit.vmm.run_state import RunState


def unequal(path: str, overrides: Mapping[str, Mapping[str, str]]) -> list[Finding]:
    """Return every way in which the machine in the file at *path* is not what it was, restored with *overrides*."""
    start_ns = host.monotonic_ns()
    with prepare(path) as prepared, Loop() as loop, Machine(loop, Console(None), overrides=overrides) as machine:
        before = dict(prepared.sections)
        rates = [state.tsc_khz for state in before.values() if isinstance(state, MachineState)]
        steps = [step for step in prepared.steps if step.stage not in {"activate", "run"}]
        target: Target = machine
        run_steps(steps, target, Timeline())
        machine.run_state = RunState.PAUSED  # nothing was activated; only `save` looks at this
        saves = [machine.save(), machine.save()]
    passed = elapsed(host.monotonic_ns() - start_ns, tsc_khz=max(live(rate=True).tsc_khz, *rates))
    return [finding for after in saves for finding in differences(before, after, passed)]


def main(*words: str) -> int:
    """Compare each; returns the exit code."""
    found = 0
    for path, overrides in zip_longest(words[::2], words[1::2], fillvalue="{}"):
        findings = unequal(path, json.loads(overrides))
        print("\n".join(map(str, findings)) or f"equal {path}", flush=True)
        found += len(findings)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
