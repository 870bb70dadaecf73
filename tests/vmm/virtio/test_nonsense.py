"""What a guest can do to its devices without sense or end: nothing of it reaches the host, the snapshot or the next driver.

Each example is one machine (`tests.vmm.virtio.whole`) and a list of things that a hostile guest, and the world outside,
do to it. Throughout: no exception, no access outside RAM, bounded work a turn of the loop. Afterwards: what is saved has
nothing that `check` finds, is saved byte for byte again by a machine restored from it, and a proper driver that resets the
device gets the right answer, as does the one of a neighbour that nobody had spoken to.

The run of `make soak` has other examples every time, SNAPKIT_NONSENSE rounds of ten for each device and transport.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings

from snapkit.vmm.parts.fresh import Transport
from tests.vmm.virtio.deeds import deeds
from tests.vmm.virtio.ordeal import example
from tests.vmm.virtio.whole import KINDS

TRANSPORTS: tuple[Transport, ...] = ("pci", "mmio")
EVERY = pytest.mark.parametrize(("kind", "transport"), [(kind, way) for kind in KINDS for way in TRANSPORTS])
ROUNDS = 8
ROUNDS_SOAK = int(os.environ.get("SNAPKIT_NONSENSE", "500"))
ROUND = settings(max_examples=11, deadline=None, database=None, suppress_health_check=list(HealthCheck))
"""Hypothesis makes most of what follows its first ten examples from parts of others; a round ends before that."""


def prove(kind: str, transport: Transport, seeds: Iterable[int]) -> None:
    for number in seeds:

        @seed(number)
        @ROUND
        @given(todo=deeds(kind, transport))
        def holds(todo: list[Any]) -> None:
            with example(kind, transport) as ordeal:
                for deed in todo:
                    deed.run(ordeal)
                    ordeal.serve()
                ordeal.conclude()

        call: Callable[[], None] = holds
        call()


@EVERY
def test_no_guest_harms_the_host_the_snapshot_or_the_next_driver(kind: str, transport: Transport) -> None:
    prove(kind, transport, range(ROUNDS))


@pytest.mark.soak
@pytest.mark.timeout(3600)
@EVERY
def test_no_guest_harms_anything_however_long_it_tries(kind: str, transport: Transport) -> None:
    first = int.from_bytes(os.urandom(4))
    prove(kind, transport, range(first, first + ROUNDS_SOAK))
