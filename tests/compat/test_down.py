"""What a newer release wrote is carried down to an older one: to the section, and to a running guest where it can be."""

from pathlib import Path

import pytest

from snapkit.restore.convert import Conversion
from snapkit.restore.image import Image
from snapkit.state.converters import Refusal
from snapkit.state.releases import release_named
from snapkit.state.resource_allocator import ResourceAllocatorState
from snapkit.state.schema import SectionId, schema_of
from tests.compat.conftest import PROGRAMS, GoldenFile, Written, goldens_where
from tests.compat.tree import CACHE, ROOT
from tools import golden, wheels

FIRST = "0.1.0"
CLAIMS = SectionId("resource-allocator", "0")


def carry_down(path: Path, into: Path) -> Path:
    """Write the file at *path* as the first release would have; returns the new one."""
    with Conversion.open(str(path), FIRST) as conversion:
        conversion.write(str(into))
    return into


def first_release_restores(path: Path, about: golden.Golden, folder: Path, scratch: Path) -> None:
    older = carry_down(path, scratch / "older.snap")
    with Image.open(older) as image:
        states = image.sections().states
        assert {name.kind: schema_of(state).version for name, state in states.items()} == dict(
            release_named(FIRST).kinds
        )
    python = wheels.stored_environment(ROOT / wheels.FOLDER / FIRST, CACHE / "wheels")
    program = [str(python.with_name("snapkit"))]
    golden.run([*program, "verify", older], scratch)
    assert len(golden.restore(program, older, about, folder)) >= 2


@goldens_where(lambda release, transport: release != FIRST and transport == "none")
@pytest.mark.usefixtures("kvm")
def test_a_machine_without_devices_runs_on_under_the_first_release(golden_file: GoldenFile, tmp_path: Path) -> None:
    first_release_restores(golden_file.path, golden_file.about, golden_file.folder, tmp_path)


@goldens_where(lambda release, transport: release in PROGRAMS - {FIRST} and transport != "none")
def test_a_machine_with_devices_is_refused_with_everything_in_the_way(golden_file: GoldenFile, tmp_path: Path) -> None:
    with Image.open(golden_file.path) as image:
        states = image.sections().states
    with pytest.raises(Refusal) as refused:
        carry_down(golden_file.path, tmp_path / "older.snap")
    claims = states[CLAIMS]
    assert isinstance(claims, ResourceAllocatorState)
    named = {f"{finding.component}.{finding.path}".rstrip(".") for finding in refused.value.findings}
    assert {f"{CLAIMS}.claims[{number}]" for number in range(len(claims.claims))} <= named
    unknown = {str(name) for name in states if name.kind not in release_named(FIRST).kinds} - {str(CLAIMS)}
    assert unknown - named <= {"interrupt-table/0"}, "each device is named"


def test_what_todays_tree_writes_runs_on_under_the_first_release(written: Written, tmp_path: Path) -> None:
    for about in written.manifest.goldens:
        if about.transport == "none":
            path = golden.unpack(written.folder, about, tmp_path)
            first_release_restores(path, about, written.folder, tmp_path)
