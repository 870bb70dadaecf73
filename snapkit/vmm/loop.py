"""The event loop of the main thread: fds, work posted by other threads, deadlines.

vCPU threads never do host I/O: they `post` what has to be done and go on. Callbacks run one at a time and must not block.
"""

import heapq
from collections import deque
from collections.abc import Callable
from typing import Self

from snapkit import host
from snapkit.errors import HostError

Callback = Callable[[], None]


class Loop:
    """epoll over fds, an eventfd that wakes it, and a heap of deadlines. Owns its own two fds only."""

    def __init__(self) -> None:
        self._watched: dict[int, tuple[int, Callable[[int], None]]] = {}
        self._posted: deque[Callback] = deque()
        self._timers: list[tuple[int, int, Callback]] = []
        self._timer_count = 0
        self._stopping = False
        self._poll = host.epoll()
        try:
            self._wake_fd = host.eventfd()
        except BaseException:
            self._poll.close()
            raise
        try:
            self.watch(self._wake_fd, host.EPOLLIN, lambda _events: self._drain())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the loop's own fds; watched ones belong to others."""
        self._poll.close()
        host.close(self._wake_fd)

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> bool:
        """Call *callback* with the events that came on *fd*; False when the fd is always ready (a regular file)."""
        try:
            host.epoll_control(self._poll, fd, events, known=fd in self._watched)
        except HostError as error:
            if isinstance(error.__cause__, PermissionError):
                return False
            raise
        self._watched[fd] = (events, callback)
        return True

    def unwatch(self, fd: int) -> None:
        """Stop watching *fd*."""
        if self._watched.pop(fd, None) is not None:
            host.epoll_control(self._poll, fd, 0, known=True)

    def post(self, callback: Callback) -> None:
        """Have *callback* run on the loop; from any thread, and from a signal handler."""
        self._posted.append(callback)
        host.eventfd_signal(self._wake_fd)

    def call_at(self, deadline_ns: int, callback: Callback) -> None:
        """Have *callback* run once the monotonic clock passes *deadline_ns*."""
        self._timer_count += 1
        heapq.heappush(self._timers, (deadline_ns, self._timer_count, callback))

    def stop(self) -> None:
        """Make `run` return after the callback at hand."""
        self._stopping = True

    def run(self) -> None:
        """Serve events until `stop`."""
        self._stopping = False
        while not self._stopping:
            self._step()

    def _step(self) -> None:
        timeout = -1.0
        if self._timers:
            timeout = max(0.0, (self._timers[0][0] - host.monotonic_ns()) / 1e9)
        for fd, events in self._poll.poll(timeout):
            watched = self._watched.get(fd)
            if watched is not None and not self._stopping:
                watched[1](events)
        while self._timers and self._timers[0][0] <= host.monotonic_ns() and not self._stopping:
            heapq.heappop(self._timers)[2]()

    def _drain(self) -> None:
        host.eventfd_take(self._wake_fd)
        for _ in range(len(self._posted)):  # what these post waits for the fds to have had their turn
            if self._stopping:
                break
            self._posted.popleft()()
        if self._posted:
            host.eventfd_signal(self._wake_fd)  # the count was taken; the next step, or the next `run`, goes on
