"""What an exit costs that Python handles, alone and beside other threads of the process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from blake3 import blake3

from tests.bench.figures import Cell, Figures, medians
from tests.bench.machines import Snapshots, steady
from tests.kvm.harness import Rig, booted

WINDOW_S = 0.5
ROUNDS = 7


def _nothing() -> None:
    time.sleep(0.01)


_BLOCK = bytes(64 << 20)


def _hash() -> None:
    blake3(_BLOCK).digest()


def _count() -> None:
    for _ in range(10_000):
        pass


@contextmanager
def _beside(work: Callable[[], None]) -> Iterator[None]:
    """A thread that does *work* over and over."""
    over = threading.Event()

    def again() -> None:
        while not over.is_set():
            work()

    thread = threading.Thread(target=again)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _exit_us(rig: Rig, work: Callable[[], None]) -> float:
    """Microseconds from one exit to the next; the port's bus counts them, as nobody has the port."""
    with _beside(work):
        begin, begin_ns = rig.vm.ports.unclaimed, time.perf_counter_ns()
        time.sleep(WINDOW_S)
        exits, took_ns = rig.vm.ports.unclaimed - begin, time.perf_counter_ns() - begin_ns
    assert exits
    return took_ns / 1e3 / exits


def test_port_exit_alone_and_beside_busy_threads(snapshots: Snapshots, figures: Figures):
    works = {"alone": _nothing, "beside a thread that hashes": _hash, "beside a thread of pure Python": _count}
    with booted(steady(snapshots.folder)) as rig:
        rig.run().tape.wait_for("steady")
        taken = medians(ROUNDS, *(lambda work=work: _exit_us(rig, work) for work in works.values()))
        rig.healthy()
    rows: list[dict[str, Cell]] = [
        {"port I/O exit": name, "us": us, "ratio": us / taken[0]} for name, us in zip(works, taken, strict=True)
    ]
    figures.show("exits", f"An exit handled in Python, guest's own time included; medians of {ROUNDS}", rows)
