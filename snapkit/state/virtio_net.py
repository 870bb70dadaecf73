"""The kind virtio-net: a network card. VIRTIO 1.3, section 5.1: one receive and one transmit queue.

No packet is state: what the guest has not been given yet waits in the TAP, and receive buffers that were looked at
ahead go back into their ring before a save. Nor is the TAP's offload mask, which follows from the accepted features.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state import rate_limiter, virtio
from snapkit.state.rate_limiter import RateLimiterState
from snapkit.state.schema import State, doc, schema
from snapkit.state.spec import virtio_net as spec
from snapkit.state.virtio import VirtioState

TAP_NAME_MAX = 15
"""IFNAMSIZ less its zero byte."""


class NetHostState(State):
    """What the card is plugged into; a restore may name another."""

    tap: Annotated[str, Meta(min_length=1, max_length=TAP_NAME_MAX), doc("the TAP interface on the host")]


@schema("virtio-net", version=1, max_len=2048)
class VirtioNetState(VirtioState):
    """Features, queues, and what the configuration space shows."""

    mac: Annotated[bytes, Meta(min_length=spec.MAC_LEN, max_length=spec.MAC_LEN), doc("MAC address, as on the wire")]
    mtu: Annotated[
        Annotated[int, Meta(ge=spec.MTU_MIN, le=spec.MTU_MAX)] | None, doc("the MTU that the driver is told, if any")
    ] = None
    rx_limit: Annotated[RateLimiterState, doc("towards the guest")]
    tx_limit: Annotated[RateLimiterState, doc("from the guest")]
    host: NetHostState


RULES = {
    **virtio.RULES,
    **rate_limiter.RULES,
    "net.queues": "A network card has a receive and a transmit queue.",
    "net.mac": "A network card has the address of one station: a switch drops what comes from a group.",
    "net.mtu": "The MTU is there where VIRTIO_NET_F_MTU is offered: a driver reads it then.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: VirtioNetState, component: str) -> list[Finding]:
    """Return what in *state* no network card could hold, for the section *component*."""
    findings = virtio.invariants(state, component)
    if len(state.queues) != 2:
        findings.append(
            Finding(component, "queues", f"{len(state.queues)} queues", "2: receive, transmit", "net.queues")
        )
    if state.mac[0] & spec.MAC_GROUP or not any(state.mac):
        findings.append(Finding(component, "mac", state.mac.hex(":"), "one station's address", "net.mac"))
    if bool(state.offered & spec.VIRTIO_NET_F_MTU) != (state.mtu is not None):
        expected = "a number, as VIRTIO_NET_F_MTU is offered" if state.mtu is None else "none without VIRTIO_NET_F_MTU"
        findings.append(Finding(component, "mtu", str(state.mtu), expected, "net.mtu"))
    findings += rate_limiter.invariants(state.rx_limit, component, "rx_limit")
    findings += rate_limiter.invariants(state.tx_limit, component, "tx_limit")
    return findings
