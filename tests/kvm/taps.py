"""TAPs for a test in this process: a network namespace that it enters and leaves, and that ends with it."""

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from snapkit.errors import SnapkitError
from snapkit.vmm.backends.tap import Tap
from tools import tap

_CLONE_NEWNET = 0x4000_0000


@contextmanager
def own_taps(*names: str) -> Iterator[None]:
    """Have the calling thread, and those that it makes, in a network of their own with these TAPs.

    Skips, saying why, where there can be none; fails where SNAPKIT_REQUIRE says that there must be.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            tap.enter(names)
        except OSError as error:
            required = "kvm" in os.environ.get("SNAPKIT_REQUIRE", "").split(",")
            (pytest.fail if required else pytest.skip)(f"no TAP in a namespace of one's own: {error}")
        yield
    finally:
        assert not libc.setns(before, _CLONE_NEWNET)
        os.close(before)


def free_taps() -> list[str]:
    """Return the TAPs here that nobody holds."""
    free = []
    for _index, name in socket.if_nameindex():
        try:
            Tap.open(name, who="a test").close()
        except SnapkitError:
            continue
        free.append(name)
    return free
