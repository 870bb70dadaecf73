"""A machine that an older release cannot hold is refused with everything in the way. What runs on is `test_matrix`."""

import pytest

from snapkit.restore.image import Image
from snapkit.state.converters import Refusal, convert_sections
from snapkit.state.releases import release_named, releases
from snapkit.state.resource_allocator import ResourceAllocatorState
from snapkit.state.schema import SectionId
from tests.compat.conftest import PROGRAMS, GoldenFile, goldens_where

FIRST = "0.1.0"
CLAIMS = SectionId("resource-allocator", "0")


@goldens_where(lambda release, transport: release in PROGRAMS - {FIRST} and transport != "none", ["x86-64"])
def test_a_machine_with_devices_is_refused_with_everything_in_the_way(golden_file: GoldenFile) -> None:
    with Image.open(golden_file.path) as image:
        states = image.sections().states
    with pytest.raises(Refusal) as refused:
        convert_sections(states, golden_file.release, FIRST)
    claims = states[CLAIMS]
    assert isinstance(claims, ResourceAllocatorState)
    named = {f"{finding.component}.{finding.path}".rstrip(".") for finding in refused.value.findings}
    assert {f"{CLAIMS}.claims[{number}]" for number in range(len(claims.claims))} <= named
    unknown = {str(name) for name in states if name.kind not in release_named(FIRST).kinds} - {str(CLAIMS)}
    assert unknown - named <= {"interrupt-table/0"}, "each device is named"


@goldens_where(architectures=["aarch64"])
def test_a_machine_of_an_architecture_that_a_release_has_not_is_refused_for_that_alone(golden_file: GoldenFile) -> None:
    with Image.open(golden_file.path) as image:
        states = image.sections().states
    for release in releases():
        if "vcpu-aarch64" in release.kinds:
            continue
        with pytest.raises(Refusal) as refused:
            convert_sections(states, golden_file.release, release.release)
        (finding,) = refused.value.findings
        assert (finding.component, finding.path) == ("machine/0", "architecture")
