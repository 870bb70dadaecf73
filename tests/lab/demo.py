"""``make demo``: the demo on this host's KVM, or, where there is none, on that of the lab's outer machine."""

import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


def main() -> int:
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        return subprocess.run([sys.executable, "-m", "snapkit", "demo", *sys.argv[1:]], check=False).returncode
    print("no usable /dev/kvm here: the demo runs in an emulated machine that has one, about thirty times slower")
    installed = subprocess.run(["sh", str(CHECKOUT / "tests/lab/install.sh")], check=False)
    if installed.returncode:
        return installed.returncode
    sys.path.insert(0, str(CHECKOUT))
    from tests.lab.outer import Outer

    with Outer() as outer:
        result = outer.run(outer.snapkit("demo", *sys.argv[1:]), timeout=900)
    print(result.stdout, end="")
    print(result.stderr, end="", file=sys.stderr)
    return result.code


if __name__ == "__main__":
    sys.exit(main())
