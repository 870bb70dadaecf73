"""A real snapshot, damaged every way: refused with the cause, by ImageError and nothing else, at once."""

import os
import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapkit.errors import ImageError
from snapkit.restore import front
from snapkit.restore.image import Image
from snapkit.restore.restore import prepare
from tests.restore.forge import CHUNK, ENTRY, Forge, Section, snapshot_parts
from tests.restore.machines import MIB, PAGE, ram, save
from tests.restore.real import re_labelled, taken_apart, write_real

MAX = (1 << 64) - 1
KEY = bytes(range(32))


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_real(tmp_path_factory.mktemp("real") / "real.snap")


@pytest.fixture
def path(real: Path, tmp_path: Path) -> Path:
    """Its own copy for a test that damages it in place."""
    copy = tmp_path / "guest.snap"
    copy.write_bytes(real.read_bytes())
    return copy


@contextmanager
def at_once() -> Iterator[None]:
    """Allow the block a second of work; other processes' does not count."""
    before = time.thread_time()
    yield
    assert time.thread_time() - before < 1


def read_all(path: Path, *, key: bytes | None = None, memory: bool = True) -> None:
    """Do all that a restore does with a file before it touches anything, then check memory."""
    with prepare(str(path), key=key) as prepared:
        findings = prepared.image.verify() if memory else []
    if findings:
        raise ImageError(f"{path} is damaged", findings=findings)


def refused(path: Path, *, key: bytes | None = None, memory: bool = True) -> str:
    """Read *path*, which must be refused, at once, and naming it; returns the cause."""
    with at_once(), pytest.raises(ImageError) as caught:
        read_all(path, key=key, memory=memory)
    text = str(caught.value)
    assert text.startswith(str(path)), text
    cause = text.removeprefix(str(path)).lstrip(": ")
    assert re.search(r"[a-z]{3}", cause), text
    return cause


def flip(path: Path, offsets: range, masks: tuple[int, ...] | None, *, seed: int = 0) -> set[str]:
    """Refuse *path* with each of *masks* (or one seeded bit) flipped in each of *offsets*; returns the causes."""
    seeded = random.Random(seed)
    content = path.read_bytes()
    causes = set()
    with path.open("r+b", buffering=0) as file:
        for offset in offsets:
            for mask in masks or (1 << seeded.randrange(8),):
                os.pwrite(file.fileno(), bytes([content[offset] ^ mask]), offset)
                causes.add(refused(path, memory=False))
            os.pwrite(file.fileno(), content[offset : offset + 1], offset)
    read_all(path)
    return causes


EVERY_BIT = (1, 2, 4, 8, 16, 32, 64, 128)


def test_the_undamaged_file_is_taken_and_the_second_writer_makes_the_same(path, tmp_path):
    read_all(path)
    taken_apart(path).write(tmp_path / "again.snap")
    assert (tmp_path / "again.snap").read_bytes() == path.read_bytes()


def test_every_flipped_bit_of_a_real_preamble_is_refused(path):
    causes = flip(path, range(4096), EVERY_BIT)
    assert any("does not match its digest" in cause for cause in causes)
    assert any("begins with" in cause for cause in causes)


def test_every_flipped_bit_of_a_real_manifest_is_refused(path):
    length = snapshot_parts(path.read_bytes())["manifest_len"]
    assert length > 1000
    assert flip(path, range(4096, 4096 + length), EVERY_BIT) == {"the manifest does not match its digest: damaged"}


def test_one_bit_of_every_byte_of_every_section_is_refused_by_the_sections_name(path):
    with Image.open(path) as image:
        entries = image.entries
    assert len(entries) >= 9
    for entry in entries:
        causes = flip(path, range(entry.offset, entry.offset + entry.stored_length), None, seed=entry.offset)
        assert causes == {f"section {entry.path} does not match its digest: damaged"}


def test_one_bit_of_every_byte_of_the_chunk_table_and_its_padding_is_refused(path):
    parts = snapshot_parts(path.read_bytes())
    table = range(parts["chunks_offset"], parts["chunks_offset"] + parts["chunks_len"])
    assert flip(path, table, None) == {"the chunk table does not match its digest: damaged"}
    padding = range(table.stop, parts["memory_offset"], 61)
    (cause,) = flip(path, padding, None)
    assert cause.startswith("the padding before memory")


def test_one_bit_in_every_page_of_memory_is_found_with_its_guest_physical_range(path):
    content = path.read_bytes()
    start = snapshot_parts(content)["memory_offset"]
    seeded = random.Random(3)
    for page in range(start, len(content), 16 * PAGE):
        offset = page + seeded.randrange(PAGE)
        with path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), bytes([content[offset] ^ 1 << seeded.randrange(8)]), offset)
            assert refused(path).endswith("memory.0x0-0x1fffff is damaged, must be what its digest says")
            os.pwrite(file.fileno(), content[offset : offset + 1], offset)
    read_all(path)


@pytest.mark.parametrize("key", [None, KEY], ids=["unkeyed", "keyed"])
def test_truncation_at_every_4_kib_is_refused(path, key):
    if key is not None:
        replace(taken_apart(path), key=key).write(path)
    read_all(path, key=key)
    for cut in range((path.stat().st_size - 1) & -4096, -1, -4096):
        os.truncate(path, cut)
        cause = refused(path, key=key)
        assert re.search("truncated|it is empty", cause), (cut, cause)


def test_truncation_of_a_separate_memory_file_at_every_4_kib_is_refused(tmp_path):
    path, beside = tmp_path / "guest.snap", tmp_path / "guest.mem"
    content = ram(2 * MIB, {number * PAGE: bytes([number % 255 + 1]) for number in range(512)})
    save(path, content, memory_path=beside)
    length = beside.stat().st_size
    for cut in range((length - 1) & -4096, -1, -4096):
        os.truncate(beside, cut)
        with at_once(), pytest.raises(ImageError, match=f"it has {cut} bytes, must have {length}|it is empty"):
            Image.open(path)


PLACES = ("manifest_offset", "manifest_len", "chunks_offset", "chunks_len", "memory_offset", "memory_len")


def test_every_place_and_length_in_the_preamble_at_its_extremes_or_over_another_part_is_refused(path):
    content, forge = path.read_bytes(), taken_apart(path)
    parts = snapshot_parts(content)
    others = {parts[name] for name in PLACES}
    for field in PLACES:
        near = {parts[field] + step for step in (-4096, -48, -1, 1, 48, 4096)}
        for value in sorted({0, 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, MAX - 1, MAX, *others, *near}):
            if not 0 <= value <= MAX or value == parts[field]:
                continue
            path.write_bytes(re_labelled(content, forge, **{field: value}))
            cause = refused(path)
            assert "preamble does not match" not in cause
    path.write_bytes(re_labelled(content, forge))
    read_all(path)


@pytest.mark.parametrize("field", ["offset", "stored_length", "length"])
def test_every_place_and_length_of_every_section_at_its_extremes_or_over_another_is_refused(real, path, field):
    forge = taken_apart(real)
    with Image.open(real) as image:
        entries = image.entries
    others = {entry.offset for entry in entries} | {0, 1, 4096, 1 << 24, (1 << 63) - 1, 1 << 63, MAX, -1}
    for number, entry in enumerate(entries):
        right = getattr(entry, field)
        for value in sorted(others | {right - 1, right + 1}):
            spoiled = [replace(one) for one in forge.sections]
            spoiled[number].says = {field: value}
            replace(forge, sections=spoiled).write(path)
            if path.read_bytes() == real.read_bytes():
                continue
            # a number of another width moves every part behind it: the one here is not what the others are at
            cause = refused(path)
            assert re.search(rf"{re.escape(entry.path)}|sections\[|manifest|sections have", cause), cause


def more_memory(real: Path) -> Forge:
    """Return the real file with three chunks more, one of them a hole."""
    forge = taken_apart(real)
    describe = forge.manifest

    def longer(made: dict[str, Any]) -> None:
        describe(made)
        made["memory"] = {**made["memory"], "regions": [{"gpa": 0, "length": 4 * CHUNK}]}

    return replace(forge, chunks=[*forge.chunks, None, b"\x33" * CHUNK, b"\x44" * CHUNK], manifest=longer)


@pytest.mark.parametrize("number", range(4))
def test_every_place_and_length_of_the_chunk_table_at_its_extremes_or_over_another_is_refused(real, path, number):
    forge = more_memory(real)
    forge.write(path)
    with pytest.raises(ImageError, match="different from the file's memory"):
        read_all(path)  # that, and nothing of the table, is wrong before it is changed
    parts = snapshot_parts(path.read_bytes())
    table = path.read_bytes()[parts["chunks_offset"] : parts["chunks_offset"] + parts["chunks_len"]]
    rows = list(ENTRY.iter_unpack(table))
    offsets = {row[0] for row in rows} | {0, 1, 4096, 65536, parts["memory_offset"] - 65536, 1 << 63, MAX}
    lengths = {row[1] for row in rows} | {0, 1, 4096, CHUNK - 1, CHUNK + 1, 1 << 31, (1 << 32) - 1}
    changes = [(at, rows[number][1], rows[number][2]) for at in offsets]
    changes += [(rows[number][0], length, rows[number][2]) for length in lengths]
    changes += [(rows[number][0], rows[number][1], codec) for codec in range(256)]
    for offset, length, codec in changes:
        row = ENTRY.pack(offset, length, codec, rows[number][3])
        if row == table[number * 48 : number * 48 + 48]:
            continue
        put_table(path, table[: number * 48] + row + table[number * 48 + 48 :])
        cause = refused(path, memory=False)
        assert re.search(r"chunk \d|raw chunks end at", cause), cause
    put_table(path, table)
    with Image.open(path) as image:
        assert image.verify() == []


def put_table(path: Path, table: bytes) -> None:
    """Give *path* another chunk table and make every digest over it right."""
    forge = Forge()
    with path.open("r+b", buffering=0) as file:
        head = os.pread(file.fileno(), 4096, 0)
        os.pwrite(file.fileno(), re_labelled(head, forge, chunks_digest=forge.digest(table)), 0)
        os.pwrite(file.fileno(), table, snapshot_parts(head)["chunks_offset"])


def test_regions_of_more_than_a_tebibyte_are_refused_before_their_table_is_read(real, path):
    forge = taken_apart(real)
    describe = forge.manifest

    def huge(made: dict[str, Any]) -> None:
        describe(made)
        made["memory"] = {**made["memory"], "regions": [{"gpa": 0, "length": 1 << 51}]}

    replace(forge, manifest=huge, preamble={**forge.preamble, "chunks_len": 48 << 30}).write(path)
    os.truncate(path, 1 << 40)
    assert refused(path) == f"memory.regions have {1 << 51} bytes together, must have at most {1 << 40}"


def test_a_small_file_of_many_sections_does_not_become_gigabytes(path):
    """Each is small when stored and 16 MiB when decompressed; optional ones of unknown kinds are nobody's to read."""
    import zstandard

    bomb = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(16 << 20))
    sections = [
        Section("unheard-of", str(number), bomb, required=False, codec="zstd", length=16 << 20) for number in range(200)
    ]
    Forge(sections=sections).write(path)
    assert refused(path).startswith(f"sections have {200 * (16 << 20)} bytes together, must have at most")


def test_a_keyed_file_damaged_anywhere_is_refused_with_its_key(path):
    replace(taken_apart(path), key=KEY).write(path)
    read_all(path, key=KEY)
    content = path.read_bytes()
    seeded = random.Random(5)
    for _ in range(150):
        offset = seeded.randrange(seeded.choice([4096, 8192, 65536, len(content)]))
        with path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), bytes([content[offset] ^ 1 << seeded.randrange(8)]), offset)
            refused(path, key=KEY)
            os.pwrite(file.fileno(), content[offset : offset + 1], offset)
    read_all(path, key=KEY)


def test_who_lacks_the_key_cannot_change_a_keyed_file(real, path):
    """All unkeyed digests right, or all keyed ones but made with another key: neither is taken for the keyed file."""
    for key in (None, bytes(32)):
        replace(taken_apart(real), key=key).write(path)
        assert re.search("no keyed digests|another key", refused(path, key=KEY))


def test_a_keyed_digest_is_compared_in_constant_time(path, monkeypatch):
    import hmac

    replace(taken_apart(path), key=KEY).write(path)
    compared: list[int] = []
    real_compare = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(len(one))
        return real_compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    front.forget()
    read_all(path, key=KEY)
    with Image.open(path, key=KEY) as image:
        sections, chunks = len(image.entries), image.memory.table.raw_count
        content = image.front.content
    # preamble, manifest, table, when it is opened; sections decoded and verified; every chunk; opened again, it is known
    assert compared == [32] * (3 + 2 * sections + chunks) + [len(content)]
