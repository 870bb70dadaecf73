"""Token buckets: what comes through, when to ask again, and that a stopped limiter goes on where it stood."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit.errors import ImageError
from snapkit.state.codec import checked
from snapkit.state.rate_limiter import RateLimiterState, TokenBucketState, invariants
from snapkit.vmm.virtio.rate_limiter import BucketConfig, LimitConfig, RateLimiter, fresh_limiter

MS = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 5_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock():
    return Clock()


def bandwidth(size: int, refill_ms: int, burst: int | None = None) -> LimitConfig:
    return LimitConfig(bandwidth=BucketConfig(size=size, refill_time=refill_ms, one_time_burst=burst))


def operations(size: int, refill_ms: int) -> LimitConfig:
    return LimitConfig(ops=BucketConfig(size=size, refill_time=refill_ms))


def limiter(clock: Clock, config: LimitConfig | None) -> RateLimiter:
    return RateLimiter(fresh_limiter(config), clock=clock)


def test_without_a_limit_everything_passes_and_nothing_is_ever_due(clock):
    free = limiter(clock, None)
    assert not free.limited
    assert all(free.take(1, 1 << 40) for _ in range(100))
    assert free.next_ns() is None
    assert free.config() == {}


@pytest.mark.parametrize(("size", "refill_ms"), [(0, 100), (100, 0), (0, 0)])
def test_a_bucket_of_nothing_is_no_limit(clock, size, refill_ms):
    assert not limiter(clock, bandwidth(size, refill_ms)).limited


def test_a_full_bucket_is_spent_and_comes_back_evenly(clock):
    rate = limiter(clock, bandwidth(1000, 100))
    assert rate.take(1, 600)
    assert rate.take(1, 400)
    assert not rate.take(1, 300)
    assert rate.next_ns() == clock.now + 30 * MS
    clock.now += 30 * MS - 1
    assert not rate.take(1, 1), "whoever was refused goes first"
    clock.now += 1
    assert rate.next_ns() is not None
    assert rate.take(1, 300)
    assert rate.next_ns() is None
    assert not rate.take(1, 1)


def test_the_next_try_is_not_sooner_than_a_tenth_of_the_refill_time(clock):
    rate = limiter(clock, bandwidth(1_000_000, 50))
    assert rate.take(1, 1_000_000)
    assert not rate.take(1, 1)
    assert rate.next_ns() == clock.now + 5 * MS
    slow = limiter(clock, bandwidth(1_000_000, 5000))
    assert slow.take(1, 1_000_000)
    assert not slow.take(1, 1)
    assert slow.next_ns() == clock.now + 10 * MS


def test_the_burst_goes_first_and_never_comes_back(clock):
    rate = limiter(clock, bandwidth(100, 100, burst=250))
    assert rate.take(1, 200)
    assert rate.take(1, 100)
    assert rate.state.bandwidth is not None
    assert (rate.state.bandwidth.burst, rate.state.bandwidth.budget) == (0, 50)
    clock.now += 3600 * 1000 * MS
    assert rate.take(1, 100)
    assert not rate.take(1, 1)


def test_what_is_larger_than_the_bucket_passes_and_is_paid_for_afterwards(clock):
    rate = limiter(clock, bandwidth(1000, 100))
    assert rate.take(1, 3500)
    assert rate.next_ns() is None
    assert not rate.take(1, 0), "not even nothing passes before the debt is paid"
    assert rate.next_ns() == clock.now + 250 * MS
    clock.now += 250 * MS
    assert not rate.take(1, 10)
    clock.now += 10 * MS
    assert rate.take(1, 100)
    assert not rate.take(1, 1)


def test_what_happened_already_is_charged_on_credit(clock):
    rate = limiter(clock, bandwidth(1000, 100))
    rate.charge(0, 1500)
    assert not rate.take(1, 500)
    assert rate.next_ns() == clock.now + 100 * MS
    clock.now += 100 * MS
    assert rate.take(1, 500)


def test_both_limits_bind_and_a_refusal_costs_neither(clock):
    config = LimitConfig(bandwidth=BucketConfig(100, 1000), ops=BucketConfig(2, 1000))
    rate = limiter(clock, config)
    assert rate.take(1, 10)
    assert not rate.take(1, 91)
    assert rate.state.ops is not None
    assert rate.state.ops.budget == 1
    clock.now += 10 * MS
    assert rate.take(1, 91)
    assert not rate.take(1, 0)


def test_given_back_tokens_can_be_taken_again_but_never_overfill(clock):
    rate = limiter(clock, bandwidth(1000, 100))
    assert rate.take(1, 1000)
    rate.give_back(1, 1000)
    rate.give_back(1, 1000)
    assert rate.take(1, 1000)
    assert not rate.take(1, 1000)
    debtor = limiter(clock, bandwidth(1000, 100))
    assert debtor.take(1, 9000)
    debtor.give_back(1, 9000)
    assert debtor.take(1, 1000)


def test_an_update_replaces_only_what_it_names_and_frees_who_waits(clock):
    rate = limiter(clock, LimitConfig(bandwidth=BucketConfig(10, 1000), ops=BucketConfig(5, 1000)))
    assert rate.take(1, 10)
    assert not rate.take(1, 10)
    rate.update(bandwidth(20, 1000))
    assert rate.take(1, 20)
    assert rate.config() == {
        "bandwidth": {"size": 20, "one_time_burst": 0, "refill_time": 1000},
        "ops": {"size": 5, "one_time_burst": 0, "refill_time": 1000},
    }
    rate.update(bandwidth(0, 0))
    assert set(rate.config()) == {"ops"}


def test_configuration_is_read_as_the_control_socket_spells_it():
    text = b'{"bandwidth": {"size": 100, "one_time_burst": 5, "refill_time": 20}, "ops": {"size": 1, "refill_time": 2}}'
    config = msgspec.json.decode(text, type=LimitConfig)
    assert config == LimitConfig(bandwidth=BucketConfig(100, 20, 5), ops=BucketConfig(1, 2))
    with pytest.raises(msgspec.ValidationError, match="bandwith"):
        msgspec.json.decode(b'{"bandwith": null}', type=LimitConfig)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"ops": {"size": -1, "refill_time": 2}}', type=LimitConfig)


def test_time_does_not_pass_while_stopped_and_saves_are_equal(clock):
    rate = limiter(clock, bandwidth(1000, 100))
    assert rate.take(1, 1000)
    assert not rate.take(1, 500)
    clock.now += 20 * MS
    rate.stop()
    first = rate.save()
    assert first.blocked_ns == 30 * MS
    clock.now += 10_000 * MS
    assert rate.save() == first
    other = RateLimiter.restore(first, clock)
    clock.now += 10_000 * MS
    other.start()
    assert other.next_ns() == clock.now + 30 * MS
    clock.now += 30 * MS
    assert other.take(1, 500)
    assert not other.take(1, 1)


def test_a_wait_of_years_is_asked_for_an_hour_at_a_time(clock):
    rate = limiter(clock, bandwidth(1, (1 << 32) - 1))
    assert rate.take(1, 1 << 62)
    assert not rate.take()
    assert rate.next_ns() == clock.now + 3_600_000 * MS
    assert checked(rate.state, where="limiter") == rate.state


def test_a_clock_that_went_back_harms_nothing(clock):
    rate = limiter(clock, operations(1, 10))
    assert rate.take()
    clock.now -= 1000 * MS
    assert not rate.take()
    clock.now += 10 * MS
    assert rate.take()


@settings(max_examples=100, deadline=None)
@given(
    size=st.integers(1, 10_000),
    refill_ms=st.integers(1, 2000),
    steps=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 12_000)), max_size=60),
)
def test_no_more_passes_than_the_rate_allows_and_no_less_than_time_earns(size, refill_ms, steps):
    clock = Clock()
    rate = limiter(clock, bandwidth(size, refill_ms))
    start, passed, refill_ns = clock.now, 0, refill_ms * MS
    for wait, tokens in steps:
        clock.now += wait
        earned = size * (refill_ns + clock.now - start)
        if rate.take(1, tokens):
            assert min(passed, passed + tokens - size) * refill_ns <= earned, "only one operation is ever on credit"
            passed += tokens
        else:
            due = rate.next_ns()
            assert due is not None
            assert due > clock.now
        assert invariants(rate.state, "virtio-net/eth0", "rx") == []
    while not rate.take(1, size):
        due = rate.next_ns()
        assert due is not None
        clock.now = due
    assert passed * refill_ns <= size * (clock.now - start)


def test_a_hungry_user_gets_the_whole_rate(clock):
    rate = limiter(clock, operations(7, 13))
    start, passed = clock.now, 0
    while clock.now < start + 13_000 * MS:
        while rate.take():
            passed += 1
        due = rate.next_ns()
        assert due is not None
        assert due > clock.now
        clock.now = due
    assert 7 + 7 * 1000 - 8 <= passed <= 7 + 7 * 1000 + 1


@pytest.mark.parametrize(
    ("field", "value", "path"),
    [
        ("size", 0, "rx.bandwidth.size"),
        ("burst", 6, "rx.bandwidth.burst"),
        ("budget", 101, "rx.bandwidth.budget"),
        ("debt", 1, "rx.bandwidth.budget"),
        ("fraction", 10 * MS, "rx.bandwidth.fraction"),
    ],
)
def test_impossible_buckets_are_found_by_their_path(field, value, path):
    bucket = TokenBucketState(size=100, refill_ms=10, one_time_burst=5, budget=1)
    state = RateLimiterState(bandwidth=bucket)
    assert invariants(state, "virtio-net/eth0", "rx") == []
    setattr(bucket, field, value)
    assert path in [finding.path for finding in invariants(state, "virtio-net/eth0", "rx")]


def test_a_limiter_that_waits_for_no_limit_is_found():
    found = invariants(RateLimiterState(blocked_ns=5), "virtio-net/eth0", "rx")
    assert [finding.path for finding in found] == ["rx.blocked_ns"]


def test_restoring_an_impossible_limiter_names_the_field(clock):
    with pytest.raises(ImageError, match="refill_ms"):
        RateLimiter.restore(RateLimiterState(ops=TokenBucketState(size=1, refill_ms=0)), clock)
