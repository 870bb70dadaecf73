"""Golden snapshots restore on another KVM: real SVM on an emulated processor, another kernel than the one that wrote them.

Those of aarch64 are written and run only here, on the processor model that they need: one machine, two jobs for all.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.compat.test_devices import check_unfinished
from tests.guests.build import guest
from tests.kvm.harness import need_kvm
from tests.lab.kernels import Kernel
from tests.lab.losses import excused
from tests.lab.outer import Outer, Result
from tools import elsewhere, golden, golden_maker, stored, table, tap
from tools.decided import TREE, Decided

pytestmark = pytest.mark.lab

RESTORE_S = 240
X86_FILE = "x86-64-pci-all"


@dataclass(frozen=True)
class Stored:
    """A golden on the share."""

    release: str
    about: golden.Golden
    folder: Path
    path: Path


@pytest.fixture(scope="module")
def goldens(outer: Outer, tmp_path_factory: pytest.TempPathFactory) -> list[Stored]:
    """Every golden of every release, and those that this host's KVM writes now while one is being worked on."""
    found = []
    for release, about in stored.goldens(stored.ROOT):
        if about.architecture != "x86-64":
            continue
        folder = stored.ROOT / golden.FOLDER / release
        found.append(Stored(release, about, folder, golden.unpack(folder, about, outer.share / f"golden-{release}")))
    if stored.releases(stored.ROOT)[-1].released is None:
        need_kvm()
        folder = tmp_path_factory.mktemp("golden") / "now"
        guests = {recipe.guest: Path(guest(recipe.guest)) for recipe in golden_maker.recipes("x86-64")}
        now = golden_maker.write(outer.snapkit(), folder, guests, release="now", date="now")
        found += [
            Stored("now", about, folder, golden.unpack(folder, about, outer.share / "golden-now"))
            for about in now.goldens
        ]
    return found


def test_goldens_go_on_to_the_byte_under_another_kvm(outer: Outer, goldens: list[Stored]) -> None:
    def ran(command: list[str]) -> Result:
        while excused(outer.architecture, result := outer.run(command, timeout=RESTORE_S)):
            pass
        return result

    assert goldens
    for each in goldens:
        ends = golden.host_ends(each.folder, each.about, each.path.parent, sockets=Path("/tmp"))  # of the inside
        command = golden.restore_words(outer.snapkit(), each.path, each.about, ends)
        name, result = (
            f"{each.release}/{each.about.name}",
            ran([*command, "--exit-when", golden.go_on_text(each.about)]),
        )
        assert result.code == 0, f"{name}: {result}"
        assert len(each.about.went_on(result.stdout)) >= 2, name


@pytest.fixture(scope="module")
def neoverse(kernels_aarch64: tuple[Kernel, Kernel]) -> Iterator[Outer]:
    """A machine of the processor model that goldens of aarch64 are written on."""
    assert kernels_aarch64
    with elsewhere.machine("aarch64") as machine:
        yield machine


def test_every_row_of_aarch64_in_the_matrix_comes_out_as_it_was_decided(neoverse: Outer) -> None:
    """And one of x86-64 is verified and planned here, by what a host of it said."""
    decided = Decided.read(stored.ROOT)
    rows = {f"{release}/{about.name}" for release, about in stored.goldens(stored.ROOT) if about.host_cpu}
    assert rows or stored.releases(stored.ROOT)[-1].released is None, "a release that has aarch64 has goldens of it"
    cells = {
        f"{row} {check}": "runs" if decided.get(row, check) == "runs" else "refused"
        for row, check in table.names(stored.ROOT)
        if row in rows
    }
    cells[f"0.4.0/x86-64-pci-all {TREE}"] = "planned"
    results = elsewhere.matrix_in(neoverse, list(cells))
    assert {f"{each.row} {each.check}": each.state for each in results} == cells, results
    assert all(each.good for each in results), results


def test_a_file_of_x86_64_is_looked_at_changed_compared_and_carried_back_where_it_cannot_run(neoverse: Outer) -> None:
    """As files of aarch64 are on an x86-64 host (`tests/compat/test_hosts.py`)."""
    release, about = next(
        (release, about) for release, about in reversed(list(stored.goldens(stored.ROOT))) if about.name == X86_FILE
    )
    file = golden.unpack(stored.ROOT / golden.FOLDER / release, about, neoverse.share)
    edited, older = (neoverse.share / name for name in ("edited.snap", "older.snap"))

    def said(*words: str | Path, code: int = 0) -> str:
        result = neoverse.run(neoverse.snapkit(*words), timeout=RESTORE_S)
        assert result.code == code, result
        return result.stdout + result.stderr

    assert "vcpu-x86-64/0.sregs.cr0: 0x" in said("inspect", file, "vcpu-x86-64/0.sregs.cr0")
    said("edit", file, "machine/0.cpu_profile=host", "-o", edited)
    assert "machine/0.cpu_profile: baseline -> host" in said("diff", file, edited, code=1)
    said("convert", file, older, "--to", "0.2.0")
    assert "is sound" in said("verify", older)
    assert "architecture is 62 (x86-64), must be 183 (aarch64)" in said("restore", file, code=4)


def test_goldens_of_aarch64_that_are_written_today_go_on_and_are_equal(neoverse: Outer, tmp_path: Path) -> None:
    if (newest := stored.releases(stored.ROOT)[-1]).released is not None:
        pytest.skip(f"release {newest.release} is made: what it wrote is run instead")
    guests, folder = tmp_path / "guests", tmp_path / "goldens"
    golden_maker.guests(stored.ROOT, "aarch64", guests)
    elsewhere.write_goldens_in(neoverse, stored.ROOT, guests, folder, release="now", date="now")  # and restores them
    words = []
    for about in golden.read_manifest(folder).goldens:
        assert about.host_cpu == elsewhere.CPU_MODELS["aarch64"]
        place = neoverse.share / about.name
        place.mkdir()
        path = golden.unpack(folder, about, place)
        if about.disks:
            check_unfinished(path)
        words += [str(path), json.dumps(golden.host_ends(folder, about, place, sockets=Path("/tmp")))]
    inside = [neoverse.python, tap.__file__, golden.TAP, "--", neoverse.python, "-m", "tools.equal"]
    result = neoverse.run([*inside, *words], timeout=RESTORE_S)
    assert result.code == 0, result
    assert result.stdout.count("equal ") == len(golden_maker.recipes("aarch64"))
