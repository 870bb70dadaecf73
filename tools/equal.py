"""Save, restore, save: is the second save equal to the first, by the rule of `snapkit.restore.equality`?

    python -m tools.equal FILE [OVERRIDES]

Restores FILE up to *load* (nothing is activated, nothing runs), saves twice, and compares both saves with the file.
OVERRIDES is JSON, values by device id. Prints ``equal`` or every difference; exit 1 when there is one. Runs by its path as
well.
"""

import json
import sys

from snapkit import host
from snapkit.restore.equality import differences, elapsed
from snapkit.restore.pipeline import Timeline, run_steps
from snapkit.restore.restore import prepare
from snapkit.restore.target import Target
from snapkit.vmm.backends.console import Console
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import Machine
from snapkit.vmm.run_state import RunState


def main(path: str, overrides: str = "{}") -> int:
    """Compare; returns the exit code."""
    start_ns = host.monotonic_ns()
    with (
        prepare(path) as prepared,
        Loop() as loop,
        Machine(loop, Console(None), overrides=json.loads(overrides)) as machine,
    ):
        before = dict(prepared.sections)
        steps = [step for step in prepared.steps if step.stage not in {"activate", "run"}]
        target: Target = machine
        run_steps(steps, target, Timeline())
        machine.run_state = RunState.PAUSED  # nothing was activated; only `save` looks at this
        saves = [machine.save(), machine.save()]
        khz = max(vcpu.thread.call(vcpu.state.tsc_khz) for vcpu in machine._vcpus.values())
    passed = elapsed(host.monotonic_ns() - start_ns, tsc_khz=khz)
    findings = [finding for after in saves for finding in differences(before, after, passed)]
    print("\n".join(map(str, findings)) or "equal")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
