"""One thread that does what would block the event loop, in the order in which it is asked to.

Jobs go in by `submit`, in batches when they come so; what is done is fetched by `finished` once `done_fd` is readable. The
event is rung once for everything that is done until it is looked at: an event for each would have loop and worker hand
the interpreter lock to and fro.

Without `start` nothing runs until `drain`, which then does the jobs itself: a machine that is saved before it ever ran
needs no thread. Nor does one whose guest asks for nothing that may wait: the thread is made by the first job, since
making it costs 55 us, which a restore would pay for every disk. Where the host has no thread to give then, the job is
done by whoever submits it, and the next one asks again.
"""

import threading
from collections import deque
from queue import SimpleQueue

from snapkit import host, host_process
from snapkit.errors import HostError
from snapkit.vmm.virtio.block_backend import Job


class Worker:
    """The thread and its two queues. Methods are for one caller at a time, whose lock the thread never takes."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[int, Job] | threading.Event] = SimpleQueue()
        self._finished: deque[Job] = deque()
        self._epoch = 0  # jobs of an earlier one are cancelled
        self._rung = False
        self._started = False
        self._over: threading.Event | None = None  # there while there is a thread
        self._stop: threading.Event | None = None
        self._bug: BaseException | None = None
        self.done_fd = -1

    def start(self) -> None:
        """Make the event, and have a thread do what is submitted from now on. Raises HostError: then there is none."""
        if self._started:
            return
        self.done_fd = host.eventfd()
        self._started, self._rung = True, False
        if not self._jobs.empty():
            self._ensure_thread()

    def stop(self) -> None:
        """Let what was submitted end, then the thread; harmless twice. What is finished may still be fetched."""
        if self._over is not None and self._stop is not None:
            self._jobs.put(self._stop)
            self._over.wait()
            self._over = self._stop = None
        if self._started:
            self._started = False
            host.close(self.done_fd)
            self.done_fd = -1

    def submit(self, job: Job) -> None:
        """Have *job* done after those submitted before."""
        self._jobs.put((self._epoch, job))
        if self._started and self._over is None:
            self._ensure_thread()

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

    def _ensure_thread(self) -> None:
        """Make the thread, or do its work here."""
        over, stop = threading.Event(), threading.Event()

        def main() -> None:
            self._serve_until(stop)
            over.set()

        try:
            host_process.start_thread(main)
        except HostError:
            self.drain()
        else:
            self._over, self._stop = over, stop

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
