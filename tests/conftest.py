"""What holds for every test.

A property test is judged by what it finds, never by the clock: on a machine that stalls for a moment an example takes
longer than Hypothesis' 200 ms, and making examples longer than it calls healthy.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")
