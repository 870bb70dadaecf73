"""The balloon as a part. It needs nothing of the host but the memory that it gives back."""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from snapkit import host
from snapkit.state.schema import SectionId, State
from snapkit.state.spec.virtio_balloon import VIRTIO_BALLOON_F_DEFLATE_ON_OOM
from snapkit.state.virtio_balloon import VirtioBalloonState
from snapkit.units import MIB, PAGE_LEN
from snapkit.vmm.parts.device import DevicePart
from snapkit.vmm.parts.part import Site, expect
from snapkit.vmm.virtio.virtio_balloon import BalloonArgs, VirtioBalloon, fresh_state

_PAGES_PER_MIB = MIB // PAGE_LEN


def open_host(_section: SectionId, _values: Mapping[str, Any]) -> None:
    """Open nothing."""


def fresh(_section: SectionId, _values: Mapping[str, Any], _end: None) -> VirtioBalloonState:
    """Return the State of a new, empty balloon, which gives pages back before the guest runs out of memory."""
    return fresh_state(deflate_on_oom=True)


class StatisticsUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``PATCH /balloon/statistics``."""

    stats_polling_interval_s: Annotated[int, Meta(ge=0, le=0xFFFF)]


class BalloonUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``PATCH /balloon``."""

    amount_mib: Annotated[int, Meta(ge=0, le=1 << 32)] | None = None
    statistics: StatisticsUpdate | None = None


class BalloonPart(DevicePart):
    """The balloon, as the control socket shows and changes it."""

    def __init__(self, device: VirtioBalloon, site: Site) -> None:
        super().__init__(device, site)
        self._balloon = device

    def describe(self) -> dict[str, Any]:
        with self._site.vm.lock:
            balloon, state = self._balloon, self._balloon.state
            named = {name.removeprefix("VIRTIO_BALLOON_S_").lower(): value for name, value in balloon.stats.items()}
            return {
                "amount_mib": state.num_pages // _PAGES_PER_MIB,
                "deflate_on_oom": bool(state.offered & VIRTIO_BALLOON_F_DEFLATE_ON_OOM),
                "stats_polling_interval_s": state.stats_interval_s,
                "discarded_pages": balloon.discarded_pages,
                "kept_pages": balloon.kept_pages,
                "statistics": {
                    "target_pages": state.num_pages,
                    "actual_pages": state.actual,
                    "target_mib": state.num_pages // _PAGES_PER_MIB,
                    "actual_mib": state.actual // _PAGES_PER_MIB,
                    **named,
                },
            }

    def update(self, body: bytes) -> None:
        asked = self.decoded(body, BalloonUpdate)
        with self._site.vm.lock:
            if asked.amount_mib is not None:
                self._balloon.set_target(asked.amount_mib * _PAGES_PER_MIB)
            if asked.statistics is not None:
                self._balloon.set_stats_interval(asked.statistics.stats_polling_interval_s)


def build(_section: SectionId, state: State, site: Site) -> BalloonPart:
    """Build the part."""
    args = BalloonArgs(memory=site.memory, clock=host.monotonic_ns)
    return BalloonPart(VirtioBalloon.restore(expect(state, VirtioBalloonState), args), site)
