"""What invariants are given and what they give."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

from snapkit.errors import Finding
from snapkit.state.schema import SectionId, State

Sections = Mapping[SectionId, State]
Findings = Iterator[Finding]
S = TypeVar("S", bound=State)


def each(sections: Sections, cls: type[S]) -> list[tuple[SectionId, S]]:
    """Return every section whose State is a *cls*."""
    return [(section, state) for section, state in sections.items() if isinstance(state, cls)]


def get(sections: Sections, kind: str, instance: str, cls: type[S]) -> S | None:
    """Return one section's State, None where it is not there."""
    state = sections.get(SectionId(kind, instance))
    return state if isinstance(state, cls) else None
