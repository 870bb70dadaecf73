"""What a rate limiter holds: up to two token buckets, and how long it still refuses. No kind of its own.

Part of the States of devices that move data for a guest (block, net). It holds durations only, never a point in time:
a limiter is stopped before its device is saved, and goes on from here when the machine runs again.
"""

from typing import Annotated

from msgspec import Meta

from snapkit.errors import Finding
from snapkit.state.schema import U64, State, doc

REFILL_MS_MAX = (1 << 32) - 1
NS_PER_MS = 1_000_000


class TokenBucketState(State):
    """A budget that refills at an even rate, after a burst that does not."""

    size: Annotated[U64, doc("tokens that the bucket holds when full: bytes, or operations")]
    refill_ms: Annotated[
        int, Meta(ge=1, le=REFILL_MS_MAX), doc("milliseconds in which an empty bucket becomes full again")
    ]
    one_time_burst: Annotated[U64, doc("tokens given once, on top of the bucket and before it")] = 0
    burst: Annotated[U64, doc("what is left of one_time_burst")] = 0
    budget: Annotated[U64, doc("tokens in the bucket")] = 0
    debt: Annotated[U64, doc("tokens spent on credit, to be paid before the bucket fills again")] = 0
    fraction: Annotated[U64, doc("part of the next token that has come in, in units of 1/(refill_ms x 10^6)")] = 0


class RateLimiterState(State):
    """Both limits of one direction; a limit that is absent does not bind."""

    bandwidth: Annotated[TokenBucketState | None, doc("tokens are bytes")] = None
    ops: Annotated[TokenBucketState | None, doc("tokens are operations")] = None
    blocked_ns: Annotated[U64, doc("how long nothing is let through yet, since something was refused")] = 0


RULES = {
    "rate-limiter.bucket": "A token bucket holds no more than it has room for, and no budget while it owes.",
    "rate-limiter.blocked": "Only a limit refuses: nothing is held back without one.",
}
"""What a finding of this module may be named for, and why it must hold."""


def invariants(state: RateLimiterState, component: str, path: str) -> list[Finding]:
    """Return what in *state*, the field *path* of the section *component*, no limiter could hold."""
    findings = []
    for name, bucket in (("bandwidth", state.bandwidth), ("ops", state.ops)):
        if bucket is None:
            continue
        for field, value, least, most in (
            ("size", bucket.size, 1, (1 << 64) - 1),
            ("burst", bucket.burst, 0, bucket.one_time_burst),
            ("budget", bucket.budget, 0, 0 if bucket.debt else bucket.size),
            ("fraction", bucket.fraction, 0, bucket.refill_ms * NS_PER_MS - 1),
        ):
            if not least <= value <= most:
                where = f"{path}.{name}.{field}"
                findings.append(Finding(component, where, str(value), f"in {least}..{most}", "rate-limiter.bucket"))
    if state.blocked_ns and state.bandwidth is None and state.ops is None:
        where = f"{path}.blocked_ns"
        findings.append(Finding(component, where, str(state.blocked_ns), "0 without a limit", "rate-limiter.blocked"))
    return findings
