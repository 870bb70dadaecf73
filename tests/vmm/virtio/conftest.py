"""Fixtures of the virtio tests."""

from collections.abc import Iterator

import pytest

from snapkit.units import MIB
from snapkit.vmm.memory import GuestMemory


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[GuestMemory]:
    """Guest memory as the test's module lays it out in RAM, or else 4 MiB at 0."""
    made = GuestMemory(getattr(request.module, "RAM", [(0, 4 * MIB)]))
    yield made
    made.close()
