"""One thread that does what would block the event loop, in the order in which it is asked to.

Jobs go in by `submit`, in batches when they come so; what is done is fetched by `finished` once `done_fd` is readable. The
event is rung once for everything that is done until it is looked at: an event for each would have loop and worker hand
the interpreter lock to and fro.

Without `start` nothing runs until `drain`, which then does the jobs itself: a machine that is saved before it ever ran
needs no thread.
"""

import threading
from collections import deque
from queue import SimpleQueue

from snapkit import host, host_process
from snapkit.vmm.virtio.block_backend import Job


class Worker:
    """The thread and its two queues. Methods are for one caller at a time, whose lock the thread never takes."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[int, Job] | threading.Event] = SimpleQueue()
        self._finished: deque[Job] = deque()
        self._epoch = 0  # jobs of an earlier one are cancelled
        self._rung = False
        self._over: threading.Event | None = None
        self._stop = threading.Event()
        self._bug: BaseException | None = None
        self.done_fd = -1

    def start(self) -> None:
        """Make the thread and the event. Raises HostError, and then there is neither."""
        if self._over is not None:
            return
        self.done_fd = host.eventfd()
        self._over, self._stop = threading.Event(), threading.Event()
        self._rung = False
        try:
            host_process.start_thread(self._main)
        except BaseException:
            self._over = None
            self._close_event()
            raise

    def stop(self) -> None:
        """Let what was submitted end, then the thread; harmless twice. What is finished may still be fetched."""
        if self._over is not None:
            self._jobs.put(self._stop)
            self._over.wait()
            self._over = None
            self._close_event()

    def submit(self, job: Job) -> None:
        """Have *job* done after those submitted before."""
        self._jobs.put((self._epoch, job))

    def finished(self) -> list[Job]:
        """Return the jobs that are done since this was last asked, in order."""
        if self.done_fd >= 0:
            host.eventfd_take(self.done_fd)
        self._rung = False  # before the look: what ends from here on rings again
        done: list[Job] = []
        while self._finished:
            done.append(self._finished.popleft())
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug
        return done

    def drain(self) -> None:
        """Wait until everything submitted is done."""
        reached = threading.Event()
        self._jobs.put(reached)
        if self._over is None:
            self._serve_until(reached)
        else:
            reached.wait()

    def cancel(self) -> None:
        """Forget what is not begun, wait for what is, and forget that too: no job runs or is heard of afterwards."""
        self._epoch += 1
        self.drain()
        self._finished.clear()

    def _main(self) -> None:
        over = self._over
        self._serve_until(self._stop)
        if over is not None:
            over.set()

    def _serve_until(self, last: threading.Event) -> None:
        while True:
            entry = self._jobs.get()
            if isinstance(entry, threading.Event):
                entry.set()
                if entry is last:
                    return
                continue
            epoch, job = entry
            if epoch != self._epoch:
                continue
            try:
                job.run()
            except BaseException as error:
                self._bug = error
            self._finished.append(job)
            if not self._rung and self.done_fd >= 0:
                self._rung = True
                host.eventfd_signal(self.done_fd)

    def _close_event(self) -> None:
        host.close(self.done_fd)
        self.done_fd = -1
