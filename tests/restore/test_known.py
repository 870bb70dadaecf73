"""A file that was found sound is not judged again, unless something that was looked at is not the same any more."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapkit.errors import Finding, ImageError
from snapkit.restore import front, known, restore
from snapkit.restore.check import check
from snapkit.restore.image import Image
from snapkit.restore.pages import Pages
from snapkit.restore.restore import prepare
from snapkit.state.codec import encode
from snapkit.state.its_tables import decode, places
from snapkit.state.schema import SectionId
from tests.restore.real import states_of, taken_apart, with_states, write_real
from tools import golden

GOLDENS = Path(__file__).resolve().parents[1] / "golden"
RELEASES = sorted(path.name for path in GOLDENS.iterdir() if (path / golden.MANIFEST).exists())


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    front.forget()
    yield
    front.forget()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_real(tmp_path_factory.mktemp("real") / "real.snap")


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets an item each time when `check` is asked: how much it found."""
    asked: list[int] = []

    def spy(sections: Any, pages: Pages) -> list[Finding]:
        found = check(sections, pages)
        asked.append(len(found))
        return found

    monkeypatch.setattr(restore, "check", spy)
    return asked


def machine_with_an_its(folder: Path) -> Path:
    """Return a golden that has an ITS, with tables in its memory: a copy in *folder*."""
    release, about = next(
        (release, about)
        for release in RELEASES
        for about in golden.read_manifest(GOLDENS / release).goldens
        if about.name == "aarch64-pci-all"
    )
    path = folder / "its.snap"
    shutil.copy2(golden.unpack(GOLDENS / release, about, folder), path)
    return path


def test_a_file_that_was_found_sound_is_not_judged_again(real, tmp_path, judged):
    same = tmp_path / "same.snap"
    shutil.copy2(real, same)
    found = []
    for path in (real, real, same):
        with prepare(str(path)) as prepared:
            found.append({name: encode(state) for name, state in prepared.sections.items()})
    assert judged == [0]
    assert found[0] == found[1] == found[2]


def test_what_was_refused_is_judged_each_time(real, tmp_path, judged):
    forge = taken_apart(real)
    states = states_of(forge)
    states[SectionId("vcpu-x86-64", "1")].id = 0
    path = with_states(forge, states).write(tmp_path / "wrong.snap")
    for _ in range(3):
        with pytest.raises(ImageError):
            prepare(str(path))
    assert len(judged) == 3
    assert all(judged)


def test_each_restore_has_states_of_its_own(real):
    with prepare(str(real)) as one, prepare(str(real)) as other:
        assert one.sections.keys() == other.sections.keys()
        assert not {id(state) for state in one.sections.values()} & {id(state) for state in other.sections.values()}


@pytest.mark.parametrize("release", RELEASES)
def test_what_is_known_of_a_file_of_any_release_is_what_was_found(release, tmp_path, judged):
    for about in golden.read_manifest(GOLDENS / release).goldens:
        path = str(golden.unpack(GOLDENS / release, about, tmp_path))
        with prepare(path) as new, prepare(path) as again:
            assert new.sections == again.sections
            assert [(step.stage, step.name, step.reasons) for step in new.steps] == [
                (step.stage, step.name, step.reasons) for step in again.steps
            ]
            assert new.dropped == again.dropped
            assert known.recall(again.image) is not None
    assert judged == [0] * len(golden.read_manifest(GOLDENS / release).goldens)


def test_compressed_and_unknown_sections_are_known_as_well(real, tmp_path):
    import zstandard

    forge = taken_apart(real)
    for section in forge.sections:
        section.length = len(section.payload)
        section.payload = zstandard.compress(section.payload)
        section.codec = "zstd"
    forge.sections.append(type(forge.sections[0])("flux-capacitor", "0", b"\x80", required=False))
    path = str(forge.write(tmp_path / "packed.snap"))
    with prepare(str(real)) as plain, prepare(path) as new, prepare(path) as again:
        assert plain.sections == new.sections == again.sections
        assert new.dropped == again.dropped != []
        assert known.recall(again.image) is not None


def test_memory_that_check_has_looked_at_is_compared_each_time(tmp_path, judged):
    path = machine_with_an_its(tmp_path)
    with Image.open(path) as image:
        where = places(image.sections().states)
        assert where is not None
        device = decode(where, image.memory).devices[0]
        offset = image.memory.runs()[0].offset + device.itt - image.memory.runs()[0].gpa
    for _ in range(2):
        prepare(str(path)).close()
    assert judged == [0]
    content = bytearray(path.read_bytes())
    entry = int.from_bytes(content[offset : offset + 8], "little")
    assert entry
    # bits 15:0 are the collection: one that there is not; then none mapped at all, which is nothing wrong
    for changed, findings in ((entry | 0xFFFF, 1), (0, 0)):
        content[offset : offset + 8] = changed.to_bytes(8, "little")
        path.write_bytes(content)
        del judged[:]
        for _ in range(2):
            if findings:
                with pytest.raises(ImageError) as caught:
                    prepare(str(path))
                assert [finding.component for finding in caught.value.findings] == ["memory"]  # its digest tells
            else:
                prepare(str(path)).close()
        assert judged == ([] if findings else [0])


def test_memory_that_is_cut_off_is_not_what_was_looked_at(tmp_path):
    path = machine_with_an_its(tmp_path)
    prepare(str(path)).close()
    with Image.open(path) as image:
        sound = image.front.sound
        assert sound is not None
        assert image.memory.still(sound.looked_at)
        with open(path, "r+b") as file:
            file.truncate(image.preamble.memory_offset)
        assert not image.memory.still(sound.looked_at)
        assert known.recall(image) is None


def test_tables_that_were_wrong_for_a_moment_are_wrong(tmp_path, monkeypatch):
    path = machine_with_an_its(tmp_path)
    content = path.read_bytes()
    with Image.open(path) as image:
        where = places(image.sections().states)
        assert where is not None
        itt = decode(where, image.memory).devices[0].itt
        offset = image.memory.runs()[0].offset + itt - image.memory.runs()[0].gpa
    wrong = content[:offset] + b"\xff\xff" + content[offset + 2 :]  # a collection that there is not
    real = Pages.read

    def put_right(pages: Pages, gpa: int, length: int) -> bytes:
        path.write_bytes(content)
        return real(pages, gpa, length)

    path.write_bytes(wrong)
    monkeypatch.setattr(Pages, "read", put_right)
    with pytest.raises(ImageError) as caught:
        prepare(str(path))
    assert {finding.rule for finding in caught.value.findings} == {"its.events"}
    assert path.read_bytes() == content
    prepare(str(path)).close()


def test_what_was_looked_at_is_held_by_nobody_but_the_front(tmp_path):
    with prepare(str(machine_with_an_its(tmp_path))) as prepared:
        assert prepared.image.memory.take_peeked() == ()
    assert prepared.image.fd == -1


def test_check_reads_no_memory_but_by_a_look_that_is_remembered(tmp_path, monkeypatch):
    path = machine_with_an_its(tmp_path)

    def read(*_: object) -> bytes:
        raise AssertionError("memory is read in a way that nobody remembers")

    monkeypatch.setattr(Pages, "read", read)
    with prepare(str(path)) as prepared:
        sound = prepared.image.front.sound
        assert sound is not None
        assert sound.looked_at


def test_a_machine_of_which_much_memory_is_looked_at_is_judged_each_time(tmp_path, judged, monkeypatch):
    path = machine_with_an_its(tmp_path)
    monkeypatch.setattr(known, "LOOKED_AT_MAX", 100)
    for _ in range(2):
        prepare(str(path)).close()
    assert judged == [0, 0]
