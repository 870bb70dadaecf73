"""Pages that were never touched are not looked at, and nothing else is taken for such a page."""

import errno
import os
from collections.abc import Iterator

import pytest

from snapkit import host, host_memory
from snapkit.restore.image import Image
from snapkit.restore.resident import Residency
from tests.restore.machines import MIB, PAGE, ram, save, sections

LENGTH = 8 * MIB
MADV_NOHUGEPAGE = 15
READ_WRITE = host_memory.PROT_READ | host_memory.PROT_WRITE


@pytest.fixture
def address() -> Iterator[int]:
    mapped = host_memory.mmap(LENGTH, READ_WRITE, host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS)
    try:  # a host that maps huge pages always touches 512 pages at once
        host_memory.madvise(mapped, LENGTH, MADV_NOHUGEPAGE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a kernel without huge pages
            raise
    yield mapped
    host_memory.munmap(mapped, LENGTH)


def _touched(address: int, length: int) -> bytes | None:
    with Residency() as residency:
        return residency.touched(address, length)


def test_only_touched_pages_are_said_to_be_touched(address):
    host_memory.copy_in(address + 3 * PAGE, b"x")
    assert _touched(address, 8 * PAGE) == b"\0\0\0\1\0\0\0\0"


def test_saving_touches_no_page_that_the_guest_did_not(address, tmp_path):
    host_memory.copy_in(address + 3 * PAGE, b"x" * 2 * PAGE)
    host_memory.copy_in(address + 4 * MIB, bytes(PAGE))
    save(tmp_path / "a.snap", memory=[(0, address, LENGTH)])
    touched = _touched(address, LENGTH)
    assert touched is not None
    assert [page for page, there in enumerate(touched) if there] == [3, 4, 1024]
    with Image.open(tmp_path / "a.snap") as image:
        assert image.verify() == []
        assert image.memory.table.raw_count == 1
        assert image.memory.read(0, LENGTH) == host_memory.copy_out(address, LENGTH)


@pytest.mark.parametrize("key", [None, bytes(32)])
def test_the_file_is_the_same_however_its_zeros_were_found(address, tmp_path, key):
    for page in (0, 1, 7, 511, 512, 600, 2047):
        host_memory.copy_in(address + page * PAGE + page, bytes([page % 255 + 1]))
    host_memory.copy_in(address + 100 * PAGE, bytes(PAGE))
    view = memoryview(host_memory.copy_out(address, LENGTH))
    fixed = {"snapshot_id": b"S" * 16, "created_ns": 1, "key": key, "sections": sections(LENGTH)}
    other = host_memory.mmap(LENGTH, READ_WRITE, host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS)
    try:
        for page in (0, 1, 7, 100, 511, 512, 600, 2047):
            host_memory.copy_in(other + page * PAGE, view[page * PAGE : (page + 1) * PAGE])
        save(tmp_path / "unseen.snap", memory=[(0, other, LENGTH)], **fixed)
    finally:
        host_memory.munmap(other, LENGTH)
    save(tmp_path / "looked.snap", memory=[(0, address, LENGTH)], absent_is_zero=False, **fixed)
    save(tmp_path / "view.snap", view, **fixed)
    contents = {file.read_bytes() for file in tmp_path.iterdir()}
    assert len(contents) == 1


def test_pages_of_a_mapped_file_are_never_taken_for_zeros(address, tmp_path):
    """A restored machine: the file's chunks lie over anonymous memory, present only where they were read."""
    save(tmp_path / "a.snap", ram(LENGTH, {2 * MIB: b"from the file", 3 * MIB: b"this too"}))
    with Image.open(tmp_path / "a.snap") as image:
        for run in image.memory.runs():
            flags = host_memory.MAP_PRIVATE | host_memory.MAP_FIXED
            host_memory.mmap(run.length, READ_WRITE, flags, image.memory.fd, run.offset, address + run.gpa)
    assert _touched(address + 2 * MIB, PAGE) is None
    host_memory.copy_in(address + 5 * MIB, b"new")
    save(tmp_path / "b.snap", memory=[(0, address, LENGTH)])
    with Image.open(tmp_path / "b.snap") as image:
        assert image.memory.read(2 * MIB, 13) == b"from the file"
        assert image.memory.read(3 * MIB, 8) == b"this too"
        assert image.memory.read(5 * MIB, 3) == b"new"


def test_shared_memory_and_what_is_not_mapped_are_not_answered_for():
    shared = host_memory.mmap(MIB, READ_WRITE, host_memory.MAP_SHARED | host_memory.MAP_ANONYMOUS)
    try:
        assert _touched(shared, PAGE) is None
    finally:
        host_memory.munmap(shared, MIB)
    assert _touched(0, PAGE) is None
    assert _touched(1 << 60, PAGE) is None


def test_without_proc_every_page_is_looked_at(address, tmp_path):
    host_memory.copy_in(address + 3 * PAGE, b"x")

    def refuse(call: str, arguments: tuple[object, ...]) -> None:
        if call == "open_fd" and str(arguments[0]).startswith("/proc/"):
            raise FileNotFoundError(2, "injected")

    before = len(os.listdir("/proc/self/fd"))
    with host.inject(refuse):
        assert _touched(address, PAGE) is None
        save(tmp_path / "a.snap", memory=[(0, address, LENGTH)])
    assert len(os.listdir("/proc/self/fd")) == before
    with Image.open(tmp_path / "a.snap") as image:
        assert image.memory.read(3 * PAGE, 1) == b"x"
