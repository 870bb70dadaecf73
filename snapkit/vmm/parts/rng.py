"""The entropy device as a part. It needs nothing of the host but its random numbers."""

from typing import Any

from snapkit import host
from snapkit.state.schema import SectionId, State
from snapkit.state.virtio_rng import VirtioRngState
from snapkit.vmm.parts.device import DevicePart
from snapkit.vmm.parts.part import Site, expect
from snapkit.vmm.virtio.virtio_rng import RngArgs, VirtioRng, fresh_state


def open_host(_section: SectionId, _values: dict[str, Any]) -> None:
    """Open nothing."""


def fresh(_section: SectionId, _values: dict[str, Any], _end: None) -> VirtioRngState:
    """Return the State of a new device."""
    return fresh_state()


def build(_section: SectionId, state: State, site: Site) -> DevicePart:
    """Build the part."""
    args = RngArgs(memory=site.memory, urandom=host.urandom)
    return DevicePart(VirtioRng.restore(expect(state, VirtioRngState), args), site)
