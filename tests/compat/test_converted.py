"""Every stored golden is carried to every release: it is there, sound, and the same on its way back; or it is refused."""

from pathlib import Path

import pytest

from snapkit.restore.convert import Conversion
from snapkit.restore.image import Image
from snapkit.restore.restore import prepare
from snapkit.state.converters import Refusal
from snapkit.state.releases import release_named, releases
from snapkit.state.schema import schema_of
from tests.compat.tree import CACHE, ROOT
from tools import golden, stored

GOLDENS = [(release, about) for release, about in stored.goldens(ROOT)]


def payloads(path: Path) -> dict[str, bytes]:
    with Image.open(path) as image:
        return {entry.path: image.payload(entry) for entry in image.entries}


@pytest.mark.parametrize("target", [release.release for release in releases()])
@pytest.mark.parametrize(("release", "about"), GOLDENS, ids=[f"{release}-{about.name}" for release, about in GOLDENS])
def test_a_golden_is_carried_to_a_release_and_back_or_refused_by_what_it_uses(release, about, target, tmp_path):
    path = golden.unpack(ROOT / golden.FOLDER / release, about, CACHE / "golden")
    there, back = tmp_path / "there.snap", tmp_path / "back.snap"
    if about.transport != "none" and target == "0.1.0":
        with pytest.raises(Refusal) as refused:
            Conversion.open(str(path), target)
        kinds = {finding.component.partition("/")[0] for finding in refused.value.findings}
        assert kinds - set(release_named(target).kinds), "its devices are named"
        return
    with Conversion.open(str(path), target) as conversion:
        conversion.write(str(there))
    with Image.open(there) as image, Image.open(path) as before:
        assert image.verify() == []
        assert image.preamble.release == target
        versions = {name.kind: schema_of(state).version for name, state in image.sections().states.items()}
        assert versions.items() <= dict(release_named(target).kinds).items()
        (_gpa, length), *_ = image.memory.regions
        assert image.memory.regions == before.memory.regions
        assert image.memory.read(0, length) == before.memory.read(0, length)
    with prepare(str(there)) as prepared:
        assert prepared.steps
    with Conversion.open(str(there), release) as conversion:
        conversion.write(str(back))
    assert payloads(back) == payloads(path)
