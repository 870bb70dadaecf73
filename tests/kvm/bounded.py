"""A bound for KVM_RUN on the thread that tests run on: a guest in a loop, or one that waits, would not come back."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def not_for_ever(seconds: float) -> Iterator[None]:
    """Have SIGALRM end a KVM_RUN that takes too long (InterruptedError): the guest is saved where it is then.

    Again and again: one signal may come just before the guest is entered.
    """
    before = signal.signal(signal.SIGALRM, lambda _signal, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
