"""Token buckets that keep a guest's I/O within a bandwidth and a number of operations per second.

The configuration (`size`, `one_time_burst`, `refill_time` in ms, for `bandwidth` and `ops`) and the rules are those of
Firecracker's rate limiter, docs/api_requests/patch-network-interface.md and block.md there: a bucket begins full; the
one-time burst is used up first and never comes back; an operation larger than a whole bucket is let through, and
then nothing is until it is paid for; `size` or `refill_time` 0 takes the limit away.

Three differences: what was let through on credit is paid to the byte (Firecracker's bucket refills while it waits for
the debt); a refused operation may be tried again as soon as the missing tokens have come in (Firecracker always waits
100 ms), though not after less than a tenth of the refill time or 10 ms, so that a busy queue is served in batches; and
no fraction of a token is lost to rounding.

Time is the injected clock. State holds durations only; `stop` (before a save) brings them up to date and stands still,
`start` goes on. A limiter is touched under the machine's lock.
"""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from snapkit.state.codec import checked
from snapkit.state.rate_limiter import NS_PER_MS, REFILL_MS_MAX, RateLimiterState, TokenBucketState

Clock = Callable[[], int]
Count = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]

_BATCH_NS = 10 * NS_PER_MS
_U64_MAX = (1 << 64) - 1
_LONGEST_WAIT_NS = 3600 * 1000 * NS_PER_MS
"""epoll takes no time-out beyond 24 days; who waits for longer looks again once an hour."""


class BucketConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One limit as the control socket spells it."""

    size: Count
    refill_time: Annotated[int, Meta(ge=0, le=REFILL_MS_MAX)]
    one_time_burst: Count | None = None


class LimitConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Both limits; one that is not given stays as it is, and does not bind in a new limiter."""

    bandwidth: BucketConfig | None = None
    ops: BucketConfig | None = None


def fresh_limiter(config: LimitConfig | None = None) -> RateLimiterState:
    """Return the State of a limiter that nothing went through yet; without *config* it limits nothing."""
    if config is None:
        return RateLimiterState()
    return RateLimiterState(bandwidth=_fresh(config.bandwidth), ops=_fresh(config.ops))


class RateLimiter:
    """Lets operations of some length through, or says when to ask again. *state* is kept, not copied."""

    def __init__(self, state: RateLimiterState, *, clock: Clock) -> None:
        # Runtime glue
        self._clock = clock
        self._settled_ns: int | None = None  # when the State's durations were right; None while stopped
        # Guest-visible state
        self.state = state

    @classmethod
    def restore(cls, state: RateLimiterState, clock: Clock) -> "RateLimiter":
        """Construct the limiter that *state* describes, stopped."""
        return cls(checked(state, where="rate-limiter"), clock=clock)

    def save(self) -> RateLimiterState:
        """Return a detached copy, brought up to date."""
        if self._settled_ns is not None:
            self._settle()
        return checked(self.state, where="rate-limiter")

    def start(self) -> None:
        """Let time pass from now on; `take` does it by itself."""
        if self._settled_ns is None:
            self._settled_ns = self._clock()

    def stop(self) -> None:
        """Bring the State up to date and let no more time pass."""
        if self._settled_ns is not None:
            self._settle()
            self._settled_ns = None

    @property
    def limited(self) -> bool:
        """True when there is a limit at all."""
        return self.state.bandwidth is not None or self.state.ops is not None

    def update(self, config: LimitConfig) -> None:
        """Put full new buckets in the place of those that *config* names; who was refused may ask again."""
        for name in ("bandwidth", "ops"):
            bucket: BucketConfig | None = getattr(config, name)
            if bucket is not None:
                setattr(self.state, name, _fresh(bucket))
        self.state.blocked_ns = 0

    def config(self) -> dict[str, Any]:
        """Return the limits as JSON-able data, spelled as `LimitConfig`."""
        buckets = {"bandwidth": self.state.bandwidth, "ops": self.state.ops}
        return {
            name: {"size": bucket.size, "one_time_burst": bucket.one_time_burst, "refill_time": bucket.refill_ms}
            for name, bucket in buckets.items()
            if bucket is not None
        }

    def take(self, ops: int = 1, length: int = 0) -> bool:
        """Pay for *ops* operations that move *length* bytes; False, and nothing paid, when they must wait."""
        state = self.state
        bandwidth, limit = state.bandwidth, state.ops
        if bandwidth is None and limit is None:
            return True
        self._settle()
        if state.blocked_ns:
            return False
        wanted = [(bucket, tokens) for bucket, tokens in ((limit, ops), (bandwidth, length)) if bucket is not None]
        state.blocked_ns = max(_wait_ns(bucket, tokens) for bucket, tokens in wanted)
        if state.blocked_ns:
            return False
        for bucket, tokens in wanted:
            _spend(bucket, tokens)
        return True

    def charge(self, ops: int = 0, length: int = 0) -> None:
        """Pay for what happened already, on credit where the buckets hold too little: all others wait until it is paid."""
        self._settle()
        for bucket, tokens in ((self.state.ops, ops), (self.state.bandwidth, length)):
            if bucket is not None:
                _spend(bucket, tokens)

    def give_back(self, ops: int = 1, length: int = 0) -> None:
        """Return what `take` paid for an operation that did not happen after all."""
        for bucket, tokens in ((self.state.ops, ops), (self.state.bandwidth, length)):
            if bucket is None:
                continue
            if bucket.burst:
                bucket.burst = min(bucket.one_time_burst, bucket.burst + tokens)
            else:
                _pay_in(bucket, tokens)

    def next_ns(self) -> int | None:
        """Return when, by the clock, to ask again after a refusal; None when nothing is refused."""
        if not self.state.blocked_ns:
            return None
        since = self._clock() if self._settled_ns is None else self._settled_ns
        return since + min(self.state.blocked_ns, _LONGEST_WAIT_NS)

    def _settle(self) -> None:
        """Turn the time that passed into tokens."""
        now, before = self._clock(), self._settled_ns
        self._settled_ns = now
        if before is None or now <= before:
            return
        state, passed = self.state, now - before
        state.blocked_ns = max(0, state.blocked_ns - passed)
        for bucket in (state.bandwidth, state.ops):
            if bucket is None or bucket.budget == bucket.size:
                continue
            tokens, bucket.fraction = divmod(bucket.fraction + passed * bucket.size, bucket.refill_ms * NS_PER_MS)
            _pay_in(bucket, tokens)
            if bucket.budget == bucket.size:
                bucket.fraction = 0


def _fresh(config: BucketConfig | None) -> TokenBucketState | None:
    if config is None or not config.size or not config.refill_time:
        return None
    burst = config.one_time_burst or 0
    return TokenBucketState(
        size=config.size, refill_ms=config.refill_time, one_time_burst=burst, burst=burst, budget=config.size
    )


def _pay_in(bucket: TokenBucketState, tokens: int) -> None:
    paid = min(tokens, bucket.debt)
    bucket.debt -= paid
    bucket.budget = min(bucket.size, bucket.budget + tokens - paid)


def _wait_ns(bucket: TokenBucketState, tokens: int) -> int:
    """Return how long *tokens* must wait; 0 when they may be spent now, if need be on credit."""
    tokens -= min(tokens, bucket.burst)
    if tokens > bucket.size:
        tokens = 0  # waits for the debts of others only
    if tokens <= bucket.budget and not bucket.debt:
        return 0
    refill_ns = bucket.refill_ms * NS_PER_MS
    missing = (tokens + bucket.debt - bucket.budget) * refill_ns - bucket.fraction
    return min(max(-(-missing // bucket.size), min(_BATCH_NS, refill_ns // 10)), _U64_MAX)


def _spend(bucket: TokenBucketState, tokens: int) -> None:
    burst = min(tokens, bucket.burst)
    bucket.burst -= burst
    tokens -= burst
    paid = min(tokens, bucket.budget)
    bucket.budget -= paid
    bucket.debt = min(bucket.debt + tokens - paid, _U64_MAX)
