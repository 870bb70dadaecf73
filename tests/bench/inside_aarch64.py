"""Runs inside the outer machine: restores of one snapshot against their floors, as JSON on stdout.

inside_aarch64.py FILE ROUNDS
"""

import json
import sys
from collections.abc import Callable

from snapkit.vmm.arch.aarch64.clock import counter_hz
from snapkit.vmm.kvm.system import Kvm
from tests.bench.figures import values
from tests.bench.floor_arm import ArmFloor
from tests.bench.warm import WarmRestore, split_restore


def main() -> int:
    path, rounds = sys.argv[1], int(sys.argv[2])
    sys.setswitchinterval(1e-4)  # as the command line does
    with Kvm() as kvm:
        counter_hz(kvm)  # by a guest of its own, whose KVM_RUN is not the one that is waited for; once in a process
    actions: dict[str, Callable[[], float]] = {
        "restore": WarmRestore(path).run,
        "of a new file": WarmRestore(path, known=False).run,
        "floor": ArmFloor(path).run,
        "floor with threads": ArmFloor(path, threads=True).run,
    }
    for action in actions.values():
        action()  # imports, and what is made once
    taken = dict(zip(actions, values(rounds, *actions.values()), strict=True))
    splits = [split_restore(path)._asdict() for _ in range(rounds)]
    print(json.dumps({"ms": taken, "splits": splits}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
