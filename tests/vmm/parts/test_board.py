"""The board before it stands on anything."""

from types import SimpleNamespace

import pytest

from snapkit.errors import InternalError
from snapkit.restore.orders import ON_MEMORY
from snapkit.state.schema import SectionId
from snapkit.state.serial_16550 import SerialState
from snapkit.vmm.backends.console import Console
from snapkit.vmm.loop import Loop
from snapkit.vmm.parts.board import Board


@pytest.mark.parametrize("kind", ON_MEMORY)
def test_no_part_is_built_before_memory_is_there(kind):
    stopper = SimpleNamespace(power_off=lambda: None, reset=lambda: None, request_stop=lambda _stop: None)
    with Loop() as loop:
        board = Board(loop, Console(None), stopper, {})
        with pytest.raises(InternalError, match=f"{kind}/0 is built before memory is there"):
            board.construct(SectionId(kind, "0"), SerialState())  # whose State it is, is not looked at any more
        assert not board.parts
