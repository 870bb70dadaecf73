"""The outer machine's end of a guest's network: TAPs, and the program that answers over TCP and vsock."""

import itertools
from pathlib import Path

from tests.lab.outer import Outer, tail

PROGRAM = Path(__file__).with_name("inside_network.py")
HOST, GUEST = "10.55.0.1", "10.55.0.2"
ANSWER_S = 120.0
LIFE_S = 3600.0


class Network:
    """One guest's network, on whichever TAP has the host's address at the time."""

    def __init__(self, outer: Outer) -> None:
        self._outer = outer
        self._job = outer.start([outer.python, "-I", "-S", str(PROGRAM)], timeout=LIFE_S, keep_stdin=True)
        self._count = itertools.count(1)

    def close(self) -> None:
        """End the program."""
        self._job.write(b"", end=True)
        self._job.wait()

    def tap(self, name: str, *, instead_of: str = "") -> None:
        """Make a TAP and give it the host's address, *instead_of* another, which goes."""
        lines = [f"busybox ip link del {instead_of}"] if instead_of else []
        lines += [
            f"busybox tunctl -t {name}",
            f"busybox ip addr add {HOST}/24 dev {name}",
            f"busybox ip link set {name} up",
        ]
        result = self._outer.run(["sh", "-ec", "\n".join(lines)], timeout=60)
        assert result.code == 0, result

    def ask(self, order: str) -> str:
        """Give an order (`tests.lab.inside_network`) and its answer, `OK ...` or `ERROR ...`."""
        return self.answer(self.begin(order))

    def begin(self, order: str) -> str:
        """Give an order, and the name by which `answer` waits for its end."""
        name = f"o{next(self._count)}"
        self._job.write(f"{name} {order}\n".encode())
        return name

    def answer(self, name: str, timeout: float = ANSWER_S) -> str:
        """Wait for the answer to an order."""
        behind = self._job.expect(f"{name} ", timeout=timeout)
        end = self._job.expect("\n", start=behind, timeout=timeout)
        return self._job.stdout[behind:end].strip()

    def __str__(self) -> str:
        return tail(self._job.stderr)
