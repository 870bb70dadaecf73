"""How much of what a restore takes is spent inside system calls: a clock around each of them, at the seam."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any
from unittest import mock

from snapkit import host, host_io, host_memory, host_net, host_process, host_sockets

_SEAM = (host, host_io, host_memory, host_net, host_process, host_sockets)
_DECORATED = host.fstat.__code__  # what every function that `host.seam` made runs


class Clock:
    """Nanoseconds spent inside system calls since it was made, and how many there were."""

    def __init__(self) -> None:
        self.ns = self.calls = 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return *function*, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            begin_ns = time.perf_counter_ns()
            try:
                return function(*arguments, **named)
            finally:
                self.ns += time.perf_counter_ns() - begin_ns
                self.calls += 1

        timed.__name__ = function.__name__
        return timed


@contextmanager
def timed_calls() -> Iterator[Clock]:
    """Time every system call that goes through the seam in the with block, inside of what the seam itself adds."""
    clock = Clock()
    with ExitStack() as patches:

        def patch(module: ModuleType, name: str, function: Callable[..., Any]) -> None:
            patches.enter_context(mock.patch.object(module, name, function))

        for module in _SEAM:
            for name, function in vars(module).items():
                if getattr(function, "__code__", None) is _DECORATED and function.__module__ == module.__name__:
                    patch(module, name, host.seam(clock.around(function.__wrapped__)))
        patch(host, "_c_ioctl", clock.around(host._c_ioctl))
        yield clock
