"""The socket device as a part, with its Unix socket."""

import re
from collections.abc import Mapping
from typing import Any

from snapkit.errors import ConfigError
from snapkit.state.schema import SectionId, State
from snapkit.state.virtio_vsock import VirtioVsockState
from snapkit.vmm.backends.vsock import VsockHost
from snapkit.vmm.parts.device import DevicePart
from snapkit.vmm.parts.part import Site, expect
from snapkit.vmm.virtio.virtio_vsock import VirtioVsock, VsockArgs, fresh_state

_CID = re.compile(r"[0-9]{1,10}")


def open_host(_section: SectionId, values: Mapping[str, Any]) -> VsockHost:
    """Listen where the operator says."""
    return VsockHost(values["uds"])


def fresh(section: SectionId, values: Mapping[str, Any], _end: VsockHost) -> VirtioVsockState:
    """Return the State of a new device."""
    cid = values["cid"]
    if not _CID.fullmatch(cid):
        raise ConfigError(f"--vsock id={section.instance}: cid is {cid[:20]!r}, must be a number of 32 bits")
    return fresh_state(int(cid), values["uds"])


def reopen(_section: SectionId, state: State, overrides: Mapping[str, Any]) -> VsockHost:
    """Listen where the device did, or where the operator says now."""
    saved = expect(state, VirtioVsockState)
    return VsockHost(overrides.get("uds", saved.host.uds))


class VsockPart(DevicePart):
    """The device, as the control socket shows it."""

    device: VirtioVsock

    def describe(self) -> dict[str, Any]:
        state = self.device.state
        return {"guest_cid": state.cid, "uds_path": state.host.uds}


def build(section: SectionId, state: State, site: Site) -> VsockPart:
    """Build the part."""
    end: VsockHost = site.host(section)
    args = VsockArgs(memory=site.memory, host=end)
    saved = expect(state, VirtioVsockState)
    saved.host.uds = end.uds  # the operator may have named another
    return VsockPart(VirtioVsock.restore(saved, args) if site.restored else VirtioVsock(saved, args=args), site)
