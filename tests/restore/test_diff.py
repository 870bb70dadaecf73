"""Two files compared: memory by what it holds, sections at one release."""

import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit import host
from snapkit.errors import ImageError
from snapkit.restore.convert import Conversion
from snapkit.restore.diff import SnapshotDifference, Span, compare
from snapkit.restore.image import Image
from snapkit.state.memory_layout import MemoryLayoutState, RegionState
from snapkit.state.schema import SectionId
from tests.restore.device_machine import RAM_LEN, fresh_machine
from tests.restore.forge import Forge
from tests.restore.machines import MIB, PAGE, ram, save, sections

CHUNK = 2 * MIB


def compared(first: Path, second: Path) -> SnapshotDifference:
    with Image.open(first) as before, Image.open(second) as after:
        return compare(before, after)


def changed(first: Path, second: Path) -> list[tuple[int, int]]:
    return [(span.gpa, span.length) for span in compared(first, second).memory.changed]


def test_pages_that_differ_are_told_as_ranges(tmp_path):
    save(tmp_path / "a.snap", ram(4 * MIB, {0: b"same", 5 * PAGE: b"a", CHUNK - PAGE: b"edge"}))
    pages = {0: b"same", 5 * PAGE: b"b", 6 * PAGE: b"new", CHUNK: b"edge"}
    save(tmp_path / "b.snap", ram(4 * MIB, pages))
    expected = [(5 * PAGE, 2 * PAGE), (CHUNK - PAGE, 2 * PAGE)]
    assert changed(tmp_path / "a.snap", tmp_path / "b.snap") == expected
    assert changed(tmp_path / "b.snap", tmp_path / "a.snap") == expected
    found = compared(tmp_path / "a.snap", tmp_path / "b.snap")
    assert found
    assert found.fields == ()
    assert (found.memory.pages, found.memory.compared_len) == (4, 4 * MIB)


def test_a_hole_and_a_chunk_of_zeros_are_the_same(tmp_path):
    hole = Forge(chunks=[b"\x55" * CHUNK, None]).write(tmp_path / "hole.snap")
    zeros = Forge(chunks=[b"\x55" * CHUNK, bytes(CHUNK)]).write(tmp_path / "zeros.snap")
    assert not compared(hole, zeros)
    assert not compared(zeros, hole)


def test_chunks_of_equal_digests_are_not_read(tmp_path):
    content = ram(4 * MIB, {0: b"same", CHUNK: b"a"})
    save(tmp_path / "a.snap", content)
    content[CHUNK : CHUNK + 1] = b"b"
    save(tmp_path / "b.snap", content)
    reads: list[int] = []

    def note(call: str, arguments: tuple[object, ...]) -> None:
        if call == "pread" and arguments[1] == CHUNK:
            reads.append(int(str(arguments[2])))

    with host.inject(note):
        assert changed(tmp_path / "a.snap", tmp_path / "b.snap") == [(CHUNK, PAGE)]
    assert len(reads) == 2, "one chunk of each file"


def test_memory_that_only_one_machine_has_is_told(tmp_path):
    def two(first: int, second: int) -> dict[str, Any]:
        layout = MemoryLayoutState(
            page_shift=12, regions=[RegionState(gpa=0, length=first), RegionState(gpa=1 << 32, length=second)]
        )
        return {
            "sections": {**sections(), SectionId("memory-layout", "0"): layout},
            "memory": [(0, ram(first), first), (1 << 32, ram(second, {PAGE: b"x"}), second)],
        }

    save(tmp_path / "a.snap", **two(4 * MIB, 2 * MIB))
    save(tmp_path / "b.snap", **two(3 * MIB, 3 * MIB))
    memory = compared(tmp_path / "a.snap", tmp_path / "b.snap").memory
    assert memory.changed == ()
    assert memory.only_before == (Span(3 * MIB, MIB),)
    assert memory.only_after == (Span((1 << 32) + 2 * MIB, MIB),)
    assert memory


def test_files_of_two_releases_are_compared_as_the_current_one_says_them(tmp_path):
    facts = {"cpu": "host", "vcpus": 1, "memory": RAM_LEN}
    save(tmp_path / "a.snap", ram(RAM_LEN), sections=fresh_machine(None), facts=facts, release="0.3.0")
    with Conversion.open(str(tmp_path / "a.snap"), "0.1.0") as conversion:
        conversion.write(str(tmp_path / "b.snap"))
    assert not compared(tmp_path / "a.snap", tmp_path / "b.snap")


def test_damaged_memory_is_an_error_and_no_difference(tmp_path):
    save(tmp_path / "a.snap", ram(4 * MIB, {0: b"a"}))
    save(tmp_path / "b.snap", ram(4 * MIB, {0: b"b"}))
    with Image.open(tmp_path / "b.snap") as image:
        (chunk,) = image.memory.table.chunks()
    with (tmp_path / "b.snap").open("r+b") as file:
        file.seek(chunk.offset + PAGE)
        file.write(b"damaged")
    with pytest.raises(ImageError, match=r"b\.snap: guest memory is damaged"):
        compared(tmp_path / "a.snap", tmp_path / "b.snap")


@settings(max_examples=30, deadline=None)
@given(marks=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 4 * MIB - 1), st.integers(0, 255)), max_size=12))
def test_the_ranges_are_exactly_the_pages_that_differ(tmp_path_factory, marks):
    folder = tmp_path_factory.mktemp("pages")
    contents = [bytearray(4 * MIB), bytearray(4 * MIB)]
    for which, at, value in marks:
        contents[which][at] = value
    for name, content in zip("ab", contents, strict=True):
        save(folder / name, memoryview(content))
    pages = range(0, 4 * MIB, PAGE)
    differ = {at for at in pages if contents[0][at : at + PAGE] != contents[1][at : at + PAGE]}
    spans = changed(folder / "a", folder / "b")
    assert {at for gpa, length in spans for at in range(gpa, gpa + length, PAGE)} == differ
    assert all(one[0] + one[1] < other[0] for one, other in pairwise(spans)), "ranges were not joined"
    for name in "ab":
        os.unlink(folder / name)
