"""Rate limits as the command line says them: so much a second, so much at once before that."""

from collections.abc import Mapping
from typing import Any

from snapkit.errors import ConfigError
from snapkit.units import parse_len
from snapkit.vmm.virtio.rate_limiter import BucketConfig, LimitConfig

_SECOND_MS = 1000
_COUNT_MAX = (1 << 63) - 1
"""What the control socket takes as well."""


def limits(values: Mapping[str, Any], prefix: str = "") -> LimitConfig:
    """Read ``bandwidth``, ``bandwidth-burst``, ``ops``, ``ops-burst``, each with *prefix*. Raises ConfigError."""
    return LimitConfig(
        bandwidth=_bucket(values, f"{prefix}bandwidth"),
        ops=_bucket(values, f"{prefix}ops"),
    )


def _bucket(values: Mapping[str, Any], name: str) -> BucketConfig | None:
    burst_name = f"{name}-burst"
    if name not in values:
        if burst_name in values:
            raise ConfigError(f"{burst_name} goes with {name}, which is not said")
        return None
    size = _count(values, name)
    if not size:
        raise ConfigError(f"{name} is 0, must be what may pass in a second")
    burst = _count(values, burst_name) if burst_name in values else None
    return BucketConfig(size=size, refill_time=_SECOND_MS, one_time_burst=burst)


def _count(values: Mapping[str, Any], name: str) -> int:
    count = parse_len(values[name], what=name)
    if count > _COUNT_MAX:
        raise ConfigError(f"{name} is {count}, must be at most {_COUNT_MAX}")
    return count
