"""What a rule of compatibility is."""

from collections.abc import Callable
from typing import NamedTuple

from snapkit.restore.check.sections import Findings, Index
from snapkit.state.host_facts import HostFacts


class Rule(NamedTuple):
    """One rule: its permanent *name*, what it finds, and what makes a forced machine one that KVM takes."""

    name: str
    judge: Callable[[Index, HostFacts], Findings]
    forcible: bool = False
    apply: Callable[[Index, HostFacts], None] | None = None
