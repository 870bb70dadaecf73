"""Every stored golden by the tools: carried to every release and back, or refused; every section to JSON and back."""

import json
from pathlib import Path

import pytest

from snapkit.restore.convert import Conversion
from snapkit.restore.diff import compare
from snapkit.restore.image import Image
from snapkit.restore.restore import prepare
from snapkit.state.codec import encode
from snapkit.state.converters import Refusal, route
from snapkit.state.document import from_document, to_document
from snapkit.state.releases import main_line, release_named, releases
from snapkit.state.schema import SectionId, schema_of
from tests.compat.tree import CACHE, ROOT
from tools import golden, stored

GOLDENS = list(stored.goldens(ROOT))
MAIN = {release.release for release in main_line(releases())}


def payloads(path: Path) -> dict[str, bytes]:
    with Image.open(path) as image:
        return {entry.path: image.payload(entry) for entry in image.entries}


EVERY_GOLDEN = pytest.mark.parametrize(
    ("release", "about"), GOLDENS, ids=[f"{release}-{about.name}" for release, about in GOLDENS]
)


@pytest.mark.parametrize("target", [release.release for release in releases()])
@EVERY_GOLDEN
def test_a_golden_is_carried_to_a_release_and_back_or_refused_by_what_it_uses(release, about, target, tmp_path):
    path = golden.unpack(ROOT / golden.FOLDER / release, about, CACHE / "golden")
    there, back = tmp_path / "there.snap", tmp_path / "back.snap"
    try:
        conversion = Conversion.open(str(path), target)
    except Refusal as refusal:
        refused = refusal.findings
    else:
        refused = ()
    if refused:
        assert goes_down(release, target)
        lacking = about.architecture not in stored.architectures(release_named(target))
        assert lacking or about.transport != "none" or target not in MAIN
        assert all(finding.component and finding.expected for finding in refused)
        return
    assert about.transport == "none" or target != "0.1.0"
    with conversion:
        conversion.write(str(there))
    with Image.open(there) as image, Image.open(path) as before:
        assert image.verify() == []
        assert image.preamble.release == release_named(target).written_as
        versions = {name.kind: schema_of(state).version for name, state in image.sections().states.items()}
        assert versions.items() <= dict(release_named(target).kinds).items()
        (gpa, length), *_ = image.memory.regions
        assert image.memory.regions == before.memory.regions
        assert image.memory.read(gpa, length) == before.memory.read(gpa, length)
    with prepare(str(there)) as prepared:
        assert prepared.steps
    if release not in MAIN:
        return  # its way up flushes and derives: down and up again is the same (tests.contract), up and down is not
    with Conversion.open(str(there), release) as conversion:
        conversion.write(str(back))
    assert payloads(back) == payloads(path)


def goes_down(start: str, end: str) -> bool:
    """Say whether the way from release *start* to *end* has a step from a release to an older one."""
    return any(step == "downgrade" for _, _, step in route(release_named(start), release_named(end)))


@EVERY_GOLDEN
def test_every_section_of_a_golden_goes_to_json_and_back_to_its_bytes(release, about):
    path = golden.unpack(ROOT / golden.FOLDER / release, about, CACHE / "golden")
    with Image.open(path) as image:
        states = image.sections().states
        assert len(states) == len(image.entries)
        for entry in image.entries:
            section = SectionId(entry.kind, entry.instance)
            content = json.dumps(to_document(section, states[section])).encode()
            assert json.loads(content)["version"] == entry.version
            again, state = from_document(content)
            assert (again, encode(state)) == (section, image.payload(entry))


@EVERY_GOLDEN
def test_a_golden_is_equal_to_what_it_is_converted_to(release, about, tmp_path):
    path = golden.unpack(ROOT / golden.FOLDER / release, about, CACHE / "golden")
    holds = "0.1.0" if about.transport == "none" else "0.2.0"
    target = holds if about.architecture == "x86-64" else "0.5.0"
    with Conversion.open(str(path), target) as conversion:
        conversion.write(str(tmp_path / "there.snap"))
    with Image.open(path) as before, Image.open(tmp_path / "there.snap") as after:
        assert not compare(before, after)
