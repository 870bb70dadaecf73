"""A gate before a worker's job, which opens while somebody waits for the job to end."""

import os
import threading
import time

from snapkit import host
from snapkit.vmm.backends.worker import Worker

PATIENCE_NS = 30 * 10**9
HELD_S = 0.02


def opened_by_cancel(worker: Worker, gate: threading.Event) -> threading.Thread:
    """Return a thread that opens *gate* a while after *worker* has begun to cancel what it has; never if it does not begin.

    A cancel that does not wait has returned after that while. One that does wait takes as long as it takes.
    """
    epoch, deadline_ns = worker._epoch, host.monotonic_ns() + PATIENCE_NS

    def wait() -> None:
        while worker._epoch == epoch:
            if host.monotonic_ns() > deadline_ns:
                return
            os.sched_yield()
        time.sleep(HELD_S)
        gate.set()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread
