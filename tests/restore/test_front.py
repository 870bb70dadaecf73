"""A front that was read before is known again, and one that differs from it in a byte is read like any other."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from snapkit import host
from snapkit.errors import ImageError, SnapkitError
from snapkit.restore import container, front
from snapkit.restore.digest import Digester
from snapkit.restore.front import KEPT_LEN_MAX, KEPT_MAX, Front
from snapkit.restore.image import Image
from tests.restore.forge import CHUNK, Forge, Section
from tests.restore.machines import ram, save
from tests.restore.real import made_up

KEY = bytes(range(32))
MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    front.forget()
    yield
    front.forget()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "guest.snap"
    save(path, ram(2 * MIB, {4096: b"page"}), sections=made_up())
    return path


def front_of(path: Path, key: bytes | None = None) -> Front:
    with Image.open(path, key=key) as image:
        return image.front


def told(path: Path) -> str:
    """Return what is found when a file is opened and all of its sections are decoded: what they are, or the error."""
    try:
        with Image.open(path) as image:
            return str(image.sections())
    except SnapkitError as error:
        return f"{type(error).__name__}: {error} {getattr(error, 'findings', '')}"


def test_files_with_the_same_front_share_it_whatever_their_memory_is(path, tmp_path):
    same = tmp_path / "same.snap"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # memory
    same.write_bytes(content)
    assert front_of(path) is front_of(path) is front_of(same)


def test_any_change_of_a_front_that_is_known_is_found_as_it_is_in_a_new_file(path):
    content, random = path.read_bytes(), Random(7)
    with Image.open(path) as image:
        memory = image.preamble.memory_offset
        edges = [0, 8, 4095, 4096, memory - 1, memory]
        edges += [place for entry in image.entries for place in (entry.offset, entry.offset + entry.stored_length - 1)]
        edges += [image.preamble.chunks_offset, image.preamble.chunks_offset + image.preamble.chunks_len]
    good = told(path)
    for place in [*edges, *(random.randrange(memory) for _ in range(200))]:
        changed = bytearray(content)
        changed[place] ^= 1 << random.randrange(8)
        path.write_bytes(content)
        assert told(path) == good
        path.write_bytes(changed)
        known = told(path)
        front.forget()
        assert known == told(path), f"byte {place}"
        assert (known == good) == (place >= memory), f"byte {place}"


@pytest.mark.parametrize("change", [-1, -CHUNK, 1, 4096])
def test_a_file_that_has_another_length_is_not_the_one_that_is_known(path, change):
    told(path)
    os.truncate(path, path.stat().st_size + change)
    known = told(path)
    assert known.startswith("ImageError")
    front.forget()
    assert known == told(path)


def test_a_file_that_is_shorter_than_the_front_that_is_known_is_refused(path):
    front_of(path)
    content = path.read_bytes()
    for length in (*range(70), 100, 4063, 4095, 4096, 5000):
        path.write_bytes(content[:length])
        with pytest.raises(ImageError):
            Image.open(path)


def test_who_has_no_key_or_another_knows_nothing_of_a_keyed_file(path):
    save(path, ram(2 * MIB), key=KEY)
    known = front_of(path, KEY)
    assert front_of(path, KEY) is known
    for key in (None, bytes(32)):
        with pytest.raises(ImageError, match="key"):
            Image.open(path, key=key)
    assert Digester(KEY).name == Digester(KEY).name not in (Digester(bytes(32)).name, Digester().name)
    assert KEY not in b"".join(name for _head, name in front._kept)


def test_the_fronts_used_last_are_kept(path):
    def numbered(number: int) -> Path:
        return Forge(preamble={"snapshot_id": b"%016d" % number}).write(path)

    first = front_of(numbered(0))
    for number in range(1, KEPT_MAX):
        front_of(numbered(number))
    assert front_of(numbered(0)) is first
    second = front_of(numbered(KEPT_MAX))  # and number 1 has to go
    assert len(front._kept) == KEPT_MAX
    assert front_of(numbered(0)) is first
    assert front_of(numbered(KEPT_MAX)) is second
    kept = set(map(id, front._kept.values()))
    assert id(front_of(numbered(1))) not in kept


def test_a_front_of_more_than_a_head_is_kept_as_well_and_a_huge_one_is_not(path):
    for length, kept in ((100 << 10, True), (KEPT_LEN_MAX, False)):
        Forge(sections=[Section("flux-capacitor", "0", bytes(length), required=False)]).write(path)
        assert (front_of(path) is front_of(path)) == kept
        content = bytearray(path.read_bytes())
        content[90 << 10] ^= 1  # in the section, whose digest nobody has asked for yet
        path.write_bytes(content)
        with Image.open(path) as image:
            assert [finding.component for finding in image.verify()] == ["flux-capacitor/0"]


def test_a_front_that_was_cut_while_it_was_read_is_not_kept(path, monkeypatch):
    Forge(sections=[Section("flux-capacitor", "0", bytes(100 << 10), required=False)]).write(path)
    real, cut = host.pread, [True, True]

    def pread(fd: int, length: int, offset: int) -> bytes:
        return real(fd, 4096 if cut and cut.pop() else length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(host, "pread", pread)
        first = front_of(path)  # what comes later is all there
    assert first.content == b"" != front_of(path).content
    assert front_of(path) is front_of(path) is not first


def test_large_fronts_make_room_for_each_other(path, monkeypatch):
    monkeypatch.setattr(front, "KEPT_SUM_MAX", 350 << 10)
    kept = []
    for number in range(5):
        section = Section("flux-capacitor", "0", bytes(100 << 10), required=False)
        kept.append(front_of(Forge(sections=[section], preamble={"snapshot_id": b"%016d" % number}).write(path)))
    assert [*front._kept.values()] == kept[-3:]


def test_what_is_parsed_are_the_bytes_that_are_kept_whoever_writes_to_the_file_meanwhile(path, monkeypatch):
    Forge(sections=[Section("flux-capacitor", "0", bytes(100 << 10), required=False)]).write(path)
    whole = path.read_bytes()
    real = container.read_manifest

    def scribble(*args: object) -> object:
        content = bytearray(whole)
        content[90 << 10] ^= 1
        path.write_bytes(content)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(front, "read_manifest", scribble)
    assert whole.startswith(front_of(path).content)


def test_many_threads_may_open_files_at_once(tmp_path):
    paths = [
        Forge(preamble={"snapshot_id": b"%016d" % number}).write(tmp_path / f"{number}.snap") for number in range(9)
    ]
    wrong: list[object] = []

    def work(seed: int) -> None:
        random = Random(seed)
        for _ in range(200):
            number = random.randrange(len(paths))
            if front_of(paths[number]).preamble.snapshot_id != b"%016d" % number:
                wrong.append(number)
            if not random.randrange(20):
                front.forget()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
