"""The network card as a part, with its TAP."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from snapkit import host
from snapkit.errors import ConfigError
from snapkit.state.schema import SectionId, State
from snapkit.state.spec.virtio_net import MAC_GROUP, MAC_LEN, MTU_MAX, MTU_MIN
from snapkit.state.virtio_net import VirtioNetState
from snapkit.vmm.backends.tap import Tap
from snapkit.vmm.parts.device import DevicePart
from snapkit.vmm.parts.limits import limits
from snapkit.vmm.parts.part import Site, expect
from snapkit.vmm.virtio.rate_limiter import LimitConfig
from snapkit.vmm.virtio.virtio_net import NetArgs, NetOptions, VirtioNet, fresh_state, local_mac

_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_MTU = re.compile(r"[0-9]{1,5}")


def open_host(section: SectionId, values: Mapping[str, Any]) -> Tap:
    """Open the TAP that the operator names."""
    return Tap.open(values["tap"], who=str(section))


def fresh(section: SectionId, values: Mapping[str, Any], end: Tap) -> VirtioNetState:
    """Return the State of a new card."""
    who = f"--net id={section.instance}"
    options = NetOptions(
        id=section.instance,
        tap=values["tap"],
        mtu=_mtu(who, values["mtu"]) if "mtu" in values else None,
        rx_limit=limits(values, "rx-"),
        tx_limit=limits(values, "tx-"),
    )
    mac = _mac(who, values["mac"]) if "mac" in values else local_mac(host.urandom(MAC_LEN))
    return fresh_state(options, mac=mac, offloads=end.offloads)


def reopen(section: SectionId, state: State, overrides: Mapping[str, Any]) -> Tap:
    """Open the TAP that the card had, or that the operator names now."""
    return Tap.claim(expect(state, VirtioNetState), str(section), tap=overrides.get("tap"))


class NetUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``PATCH /network-interfaces/ID``."""

    iface_id: str | None = None
    rx_rate_limiter: LimitConfig | None = None
    tx_rate_limiter: LimitConfig | None = None


class NetPart(DevicePart):
    """The card, as the control socket shows and changes it."""

    def __init__(self, section: SectionId, device: VirtioNet, site: Site) -> None:
        super().__init__(device, site)
        self._id, self._net = section.instance, device

    def describe(self) -> dict[str, Any]:
        with self._site.vm.lock:
            state = self._net.state
            return {
                "iface_id": self._id,
                "host_dev_name": state.host.tap,
                "guest_mac": state.mac.hex(":"),
                "mtu": state.mtu,
                "rx_rate_limiter": self._net.rx_limit.config(),
                "tx_rate_limiter": self._net.tx_limit.config(),
            }

    def update(self, body: bytes) -> None:
        asked = self.decoded(body, NetUpdate)
        self.require_id(asked.iface_id, self._id)
        with self._site.vm.lock:
            self._net.update_limits(rx=asked.rx_rate_limiter, tx=asked.tx_rate_limiter)


def build(section: SectionId, state: State, site: Site) -> NetPart:
    """Build the part."""
    args = NetArgs(memory=site.memory, tap=site.host(section))
    return NetPart(section, VirtioNet.restore(expect(state, VirtioNetState), args), site)


def _mac(who: str, text: str) -> bytes:
    mac = bytes.fromhex(text.replace(":", "")) if _MAC.fullmatch(text) else bytes(MAC_LEN)
    if mac[0] & MAC_GROUP or not any(mac):
        raise ConfigError(f"{who}: mac is {text!r}, must be one station's address such as 02:00:00:00:00:01")
    return mac


def _mtu(who: str, text: str) -> int:
    mtu = int(text) if _MTU.fullmatch(text) else 0
    if not MTU_MIN <= mtu <= MTU_MAX:
        raise ConfigError(f"{who}: mtu is {text[:20]!r}, must be {MTU_MIN} to {MTU_MAX}")
    return mtu
