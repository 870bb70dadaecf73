"""Golden snapshots restore on another KVM: real SVM on an emulated processor, another kernel than the one that wrote them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.guests.build import guest
from tests.kvm.harness import need_kvm
from tests.lab.outer import Outer
from tools import golden, stored

pytestmark = pytest.mark.lab

RESTORE_S = 240


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
        folder = stored.ROOT / golden.FOLDER / release
        found.append(Stored(release, about, folder, golden.unpack(folder, about, outer.share / f"golden-{release}")))
    if stored.releases(stored.ROOT)[-1].released is None:
        need_kvm()
        folder = tmp_path_factory.mktemp("golden") / "now"
        guests = {recipe.guest: Path(guest(recipe.guest)) for recipe in golden.RECIPES}
        now = golden.write(outer.snapkit(), folder, guests, release="now", date="now")
        found += [
            Stored("now", about, folder, golden.unpack(folder, about, outer.share / "golden-now"))
            for about in now.goldens
        ]
    return found


def test_goldens_go_on_to_the_byte_under_another_kvm(outer: Outer, goldens: list[Stored]) -> None:
    assert goldens
    for each in goldens:
        ends = golden.host_ends(each.folder, each.about, each.path.parent, sockets=Path("/tmp"))  # of the inside
        command = golden.restore_words(outer.snapkit(), each.path, each.about, ends)
        result = outer.run([*command, "--exit-when", golden.go_on_text(each.about)], timeout=RESTORE_S)
        assert result.code == 0, (each.release, each.about.name, result)
        assert len(each.about.went_on(result.stdout)) >= 2, (each.release, each.about.name)
