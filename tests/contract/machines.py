"""Machines of any release, made from the shapes of what it writes: whole sets of sections for machine converters.

A machine of a release begins as one of the first release, of random values, carried up: so it has what every machine
has. Then sections are put in or written over, of any kind that the release writes.
"""

from random import Random

from hypothesis import strategies as st

from snapkit.state.converters import Sections, convert_sections
from snapkit.state.releases import Release, main_line, releases
from snapkit.state.schema import SectionId, versions_of
from snapkit.state.shape import shape_of
from tests.contract.generate import random_value, smallest

INSTANCES = ("0", "1")


def idle_machine(release: Release, rng: Random | None = None) -> Sections:
    """Return a machine of *release* in which nothing is in use that the first release does not have."""
    first = main_line(releases())[0]
    sections: Sections = {}
    for kind, version in first.kinds.items():
        shape = shape_of(versions_of(kind)[version].type)
        sections[SectionId(kind, "0")] = smallest(shape) if rng is None else random_value(shape, rng)
    return convert_sections(sections, first.release, release.release)


@st.composite
def machines(draw: st.DrawFn, release: Release) -> Sections:
    """A strategy for machines of *release*, most of them with something in use."""
    rng = Random(draw(st.integers(0, (1 << 32) - 1)))
    sections = idle_machine(release, rng)
    ids = [SectionId(kind, instance) for kind in release.kinds for instance in INSTANCES]
    for where in draw(st.lists(st.sampled_from(ids), max_size=4, unique=True)):
        sections[where] = random_value(shape_of(versions_of(where.kind)[release.kinds[where.kind]].type), rng)
    return sections
