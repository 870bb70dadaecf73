"""The kind virtio-balloon: memory that the guest gives back and takes again. VIRTIO 1.3, section 5.5.

Which pages are in the balloon is no state: they are zero in the file's memory, and the driver knows them. Nor is the
statistics buffer that the device keeps: it goes back into its ring before a save and is taken again afterwards.
"""

from itertools import pairwise
from typing import Annotated

from msgspec import Meta, field

from snapkit.errors import Finding
from snapkit.state import virtio
from snapkit.state.schema import U16, U32, U64, State, doc, named, schema
from snapkit.state.spec.virtio_balloon import STATS
from snapkit.state.virtio import VirtioState

QUEUES = 5
"""Inflate, deflate, statistics, free page hints (never offered) and free page reports."""


class StatState(State):
    """One statistic that the driver told."""

    tag: Annotated[U16, named(STATS), doc("VIRTIO_BALLOON_S_*")]
    value: U64


@schema("virtio-balloon", version=1, max_len=2048)
class VirtioBalloonState(VirtioState):
    """Features and queues, the configuration space, and what the driver last said of its memory."""

    num_pages: Annotated[U32, doc("pages of 4 KiB that the balloon should hold")] = 0
    actual: Annotated[U32, doc("pages of 4 KiB that the driver says it holds")] = 0
    stats_interval_s: Annotated[U16, doc("seconds from one statistics request to the next; 0: none")] = 0
    stats: Annotated[list[StatState], Meta(max_length=len(STATS)), doc("the latest statistics, by tag")] = field(
        default_factory=list
    )


RULES = {
    **virtio.RULES,
    "balloon.stats": "Statistics are kept by tag, each once, with tags that there are.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: VirtioBalloonState, component: str) -> list[Finding]:
    """Return what in *state* no balloon could hold, for the section *component*."""
    findings = virtio.invariants(state, component, queues=QUEUES)
    findings += [
        Finding(component, f"stats[{at}].tag", str(stat.tag), f"one of {min(STATS)} to {max(STATS)}", "balloon.stats")
        for at, stat in enumerate(state.stats)
        if stat.tag not in STATS
    ]
    findings += [
        Finding(component, f"stats[{at}].tag", str(after.tag), f"above {before.tag}", "balloon.stats")
        for at, (before, after) in enumerate(pairwise(state.stats), 1)
        if after.tag <= before.tag
    ]
    return findings
