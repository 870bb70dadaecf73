"""Overlays: what was written is read back, the rest comes from below, and a flushed write outlives what a power cut may do."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit import host, host_io, host_memory
from snapkit.errors import ConfigError, HostError, ImageError
from snapkit.vmm.backends import overlay
from snapkit.vmm.backends.disk import RawImage
from snapkit.vmm.backends.overlay import BITMAP_LEN_MAX, Geometry, Overlay, create_overlay, read_geometry

RAM_LEN = 1 << 20
PATIENCE_NS = 30 * 10**9


@pytest.fixture(scope="module")
def ram():
    at = host_memory.mmap(
        RAM_LEN, host_memory.PROT_READ | host_memory.PROT_WRITE, host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS
    )
    yield at
    host_memory.munmap(at, RAM_LEN)


class Stack:
    """A raw image and overlays over it, and what the disk must hold."""

    def __init__(self, directory, ram, length, layers=1, seed=1):
        self.ram, self.directory = ram, directory
        content = random.Random(seed).randbytes(length)
        self.base = os.path.join(directory, "base")
        with open(self.base, "wb") as file:
            file.write(content + b"tail"[: length % 7])
        fd = os.open(self.base, os.O_RDONLY)
        self.fds = [fd]
        self.images: list[Any] = [RawImage(fd, length)]  # the others are overlays
        self.model = bytearray(content)
        for _ in range(layers):
            self.lay()

    @property
    def top(self) -> Any:
        return self.images[-1]

    def lay(self):
        path = os.path.join(self.directory, f"overlay{len(self.fds)}")
        self.fds.append(create_overlay(path, self.top.length))
        self.open_top(path)

    def open_top(self, path):
        fd, below = self.fds[-1], self.images[len(self.fds) - 2]
        self.images[len(self.fds) - 1 :] = [Overlay(fd, read_geometry(fd, below.length, where=path), below)]

    def reopen(self):
        """Forget what was not written to the file, as a process that is killed does."""
        self.top.close()
        self.open_top("reopened")

    def spans(self, length, pieces=3):
        """Spread *length* bytes over RAM."""
        cuts = sorted(random.Random(length).randrange(length + 1) for _ in range(pieces))
        lengths = [end - start for start, end in zip([0, *cuts], [*cuts, length], strict=True)]
        at, found = self.ram, []
        for each in lengths:
            if each:
                found.append((at, each))
                at += each + 64
        return found

    def write(self, offset, payload):
        spans, done = self.spans(len(payload)), 0
        for address, length in spans:
            host_memory.copy_in(address, payload[done : done + length])
            done += length
        self.top.write(offset, spans, len(payload))
        self.model[offset : offset + len(payload)] = payload

    def read(self, offset, length):
        spans = self.spans(length)
        for address, each in spans:
            host_memory.copy_in(address, b"\xee" * each)
        self.top.read(offset, spans)
        return b"".join(host_memory.copy_out(address, each) for address, each in spans)

    def content(self):
        return b"".join(self.read(at, min(8192, len(self.model) - at)) for at in range(0, len(self.model), 8192))

    def close(self):
        for image in self.images[1:]:
            image.close()
        for fd in self.fds:
            os.close(fd)


@contextmanager
def stack(directory, ram, length=64 << 10, layers=1) -> Iterator[Stack]:
    made = Stack(str(directory), ram, length, layers)
    try:
        yield made
    finally:
        made.close()


def room_len(fd: int, right: Callable[[int], bool]) -> int:
    """Return what a file takes of its file system, once that is *right*: some tell it a while after it was settled."""
    os.fdatasync(fd)
    deadline_ns = host.monotonic_ns() + PATIENCE_NS
    while not right(taken := os.fstat(fd).st_blocks * 512):
        assert host.monotonic_ns() < deadline_ns, f"it takes {taken} bytes"
        os.sched_yield()
    return taken


def test_new_overlay_shows_what_lies_below_and_takes_no_room(tmp_path, ram):
    with stack(tmp_path, ram) as disk:
        assert disk.content() == disk.model
        found = os.fstat(disk.fds[-1])
        assert found.st_size > 64 << 10
        room_len(disk.fds[-1], lambda taken: taken <= 16 << 10)


def test_unaligned_first_write_keeps_what_is_around_it(tmp_path, ram):
    with stack(tmp_path, ram) as disk:
        disk.write(4096 + 512, b"x" * 512)
        disk.write(3 * 4096 - 512, b"y" * 1024)
        assert disk.content() == disk.model


def test_image_below_is_never_written(tmp_path, ram):
    with stack(tmp_path, ram) as disk:
        before = Path(disk.base).read_bytes()
        disk.write(0, b"z" * 65536)
        disk.top.write_zeroes(4096, 8192, unmap=True)
        disk.top.flush()
        assert Path(disk.base).read_bytes() == before


def test_last_granule_of_a_disk_that_ends_inside_it_is_whole(tmp_path, ram):
    with stack(tmp_path, ram, length=10 * 512) as disk:
        disk.write(8 * 512, b"e" * 512)
        assert disk.content() == disk.model
        disk.write(9 * 512, b"f" * 512)
        assert disk.content() == disk.model


def test_overlay_reopens_as_a_layer_under_another(tmp_path, ram):
    with stack(tmp_path, ram) as disk:
        disk.write(8192, b"first" * 1024)
        disk.top.flush()
        disk.reopen()
        disk.lay()
        disk.write(8192 + 512, b"2" * 512)
        assert disk.content() == disk.model
        disk.top.flush()
        disk.reopen()
        assert disk.content() == disk.model


operations = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "read", "discard", "zero", "unmap", "flush", "reopen", "lay"]),
        st.integers(0, 127),
        st.integers(1, 40),
        st.integers(0, 255),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps=operations, sectors=st.sampled_from([8, 100, 127, 128]))
def test_any_sequence_of_requests_leaves_what_a_plain_array_would_hold(tmp_path_factory, ram, steps, sectors):
    directory = tmp_path_factory.mktemp("disk")
    with stack(directory, ram, length=sectors * 512) as disk:
        for what, first, count, fill in steps:
            offset = first % sectors * 512
            length = min(count, sectors - first % sectors) * 512
            match what:
                case "write":
                    disk.write(offset, bytes([fill]) * length)
                case "read":
                    assert disk.read(offset, length) == disk.model[offset : offset + length]
                    assert read_now(disk, offset, length) in {None, bytes(disk.model[offset : offset + length])}
                case "discard":
                    disk.top.discard(offset, length)
                    now = disk.content()
                    for at in range(0, len(now), 512):  # each sector is as it was, or zeros inside the range
                        inside = offset <= at < offset + length
                        kept = now[at : at + 512] == disk.model[at : at + 512]
                        assert kept or (inside and not any(now[at : at + 512]))
                    disk.model[:] = now
                case "zero" | "unmap":
                    disk.top.write_zeroes(offset, length, unmap=what == "unmap")
                    disk.model[offset : offset + length] = bytes(length)
                case "flush":
                    disk.top.flush()
                case "reopen":
                    disk.top.flush()
                    disk.reopen()
                case "lay" if len(disk.fds) < 5:
                    disk.top.flush()
                    disk.lay()
        assert disk.content() == disk.model


def read_now(disk, offset, length):
    spans = disk.spans(length)
    if not disk.top.read_now(offset, spans, length):
        return None
    return b"".join(host_memory.copy_out(address, each) for address, each in spans)


def test_what_was_flushed_survives_the_process(tmp_path, ram):
    with stack(tmp_path, ram) as disk:
        disk.write(0, b"a" * 5000 * 2)
        disk.top.flush()
        flushed = bytes(disk.model)
        disk.write(40960, b"b" * 512)
        disk.reopen()
        assert disk.content() in {flushed, bytes(disk.model)}


def test_bits_reach_the_file_only_after_the_data_was_synced(tmp_path, ram):
    """Nothing is written between the data's sync and the bitmap but the bitmap; nothing of the bitmap before."""
    calls = []
    with stack(tmp_path, ram) as disk:
        disk.write(0, b"a" * 4096)
        with host.inject(lambda call, arguments: calls.append((call, arguments[-1] if call == "pwrite" else None))):
            disk.top.flush()
            disk.top.flush()
        assert calls == [("fdatasync", None), ("pwrite", 4096), ("fdatasync", None), ("fdatasync", None)]


def test_failed_sync_never_lets_a_later_flush_succeed_and_writes_no_bit(tmp_path, ram):
    with stack(tmp_path, ram) as disk:
        disk.write(0, b"a" * 4096)
        bitmap = os.pread(disk.fds[-1], 4096, 4096)
        with host.inject(failing("fdatasync")), pytest.raises(HostError):
            disk.top.flush()
        with pytest.raises(HostError, match="an earlier sync"):
            disk.top.flush()
        assert os.pread(disk.fds[-1], 4096, 4096) == bitmap


def failing(name, number=errno.EIO):
    def hook(call, _arguments):
        if call == name:
            raise OSError(number, "injected")

    return hook


def test_write_that_fails_leaves_new_granules_to_the_layer_below(tmp_path, ram):
    with stack(tmp_path, ram) as disk:
        before = bytes(disk.model)
        for call in ("pwritev", "preadv"):
            with host.inject(failing(call, errno.ENOSPC)), pytest.raises(HostError):
                disk.write(512, b"x" * 512)
        disk.model[:] = before
        assert disk.content() == before
        disk.write(4096 + 512, b"x" * 512)
        assert disk.content() == disk.model


def test_zeroes_are_written_where_the_file_system_has_no_holes(tmp_path, ram):
    with stack(tmp_path, ram) as disk, host.inject(failing("fallocate", errno.EOPNOTSUPP)):
        disk.write(0, b"x" * 65536)
        disk.top.write_zeroes(512, 40000 // 512 * 512, unmap=True)
        disk.model[512 : 512 + 40000 // 512 * 512] = bytes(40000 // 512 * 512)
        disk.top.discard(0, 65536)
        assert disk.content() == disk.model


def test_discarded_granules_give_their_room_back(tmp_path, ram):
    with stack(tmp_path, ram, length=1 << 20) as disk:
        disk.write(0, written := os.urandom(1_000_000 // 512 * 512))  # as random as no file system compresses
        disk.top.flush()
        full = room_len(disk.fds[-1], lambda taken: taken >= len(written))
        disk.top.discard(0, 900_096)
        disk.top.flush()
        room_len(disk.fds[-1], lambda taken: taken < full // 4)


def test_read_takes_as_few_calls_as_there_are_runs(tmp_path, ram):
    with stack(tmp_path, ram) as disk:
        disk.write(8192, b"x" * 8192)
        calls = []
        with host.inject(lambda call, _arguments: calls.append(call)):
            disk.read(0, 65536)
        assert calls == ["preadv"] * 3


@pytest.mark.parametrize(
    ("at", "payload", "said"),
    [
        (0, b"QFI\xfb", "is no overlay"),
        (20, b"\x01", "digest"),
        (5000 - 1000, b"\x01", "digest"),
    ],
)
def test_damaged_header_is_refused_by_name(tmp_path, at, payload, said):
    path = str(tmp_path / "over")
    fd = create_overlay(path, 65536)
    os.pwrite(fd, payload, at)
    with pytest.raises(ImageError, match=said) as refused:
        read_geometry(fd, 65536, where=path)
    assert path in str(refused.value)
    os.close(fd)


def forged(**changes):
    """Make a header with a right digest and wrong contents."""
    geometry = Geometry(changes.pop("length", 65536), changes.pop("shift", 12))
    vars(geometry).update(changes)
    return geometry.header(bytes(16))


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (forged(length=1 << 40), "lies over a disk of 1099511627776 bytes, must be 65536"),
        (forged(shift=11), "granule shift is 11"),
        (forged(shift=40), "granule shift is 40"),
        (forged(bitmap_len=1 << 40), "do not lie"),
        (forged(data_offset=0), "do not lie"),
    ],
)
def test_forged_header_is_refused(tmp_path, header, said):
    path = str(tmp_path / "over")
    fd = create_overlay(path, 65536)
    os.pwrite(fd, header, 0)
    with pytest.raises(ImageError, match=said):
        read_geometry(fd, 65536, where=path)
    os.close(fd)


def test_overlay_that_was_cut_short_is_refused(tmp_path):
    path = str(tmp_path / "over")
    fd = create_overlay(path, 65536)
    os.ftruncate(fd, 70000)
    with pytest.raises(ImageError, match="has 70000 bytes, must have"):
        read_geometry(fd, 65536, where=path)
    os.close(fd)


def test_bitmap_of_a_huge_disk_stays_small():
    for length in (512, 1 << 30, 1 << 39, 1 << 44, 1 << 51):
        geometry = Geometry.fresh(length)
        assert geometry.bitmap_len <= BITMAP_LEN_MAX
        assert geometry.granules << geometry.shift >= length
        assert geometry.data_offset % (1 << geometry.shift) == 0
    with pytest.raises(ConfigError, match="too large"):
        Geometry.fresh(1 << 62)


def test_overlay_with_larger_granules_fills_them_from_below(tmp_path, ram, monkeypatch):
    monkeypatch.setattr(overlay, "BITMAP_LEN_MAX", 1)
    with stack(tmp_path, ram, length=(256 << 10) + 512) as disk:
        disk.write(70 << 10, b"x" * 512)
        disk.write((256 << 10), b"y" * 512)
        assert disk.content() == disk.model
        disk.top.flush()
        disk.reopen()
        assert disk.content() == disk.model


def nth_call(number):
    """Fail call *number* from now on, and none before or after."""
    left = iter(range(number, -1, -1))

    def hook(_call, _arguments):
        if next(left, None) == 0:
            raise OSError(errno.EIO, "injected")

    return hook


def test_every_failing_call_while_creating_leaves_neither_file_nor_fd(tmp_path):
    path = str(tmp_path / "over")
    fds = set(os.listdir("/proc/self/fd"))
    for fail_at in range(40):
        hook = nth_call(fail_at)
        made = None
        with host.inject(hook), suppress(HostError):
            made = create_overlay(path, 65536)
        if made is not None:
            os.close(made)
            break
        assert os.listdir(tmp_path) == []
        assert set(os.listdir("/proc/self/fd")) == fds
    assert fail_at > 5


def test_existing_file_is_never_overwritten(tmp_path):
    path = tmp_path / "over"
    path.write_text("mine")
    with pytest.raises(HostError) as refused:
        create_overlay(str(path), 65536)
    assert refused.value.errno == errno.EEXIST
    assert path.read_text() == "mine"


def test_more_spans_than_a_call_takes_are_read_and_written(tmp_path, ram):
    path = tmp_path / "many"
    spans = [(ram + 32 * index, 7) for index in range(3000)]
    payload = random.Random(5).randbytes(7 * 3000)
    for index, (address, length) in enumerate(spans):
        host_memory.copy_in(address, payload[7 * index : 7 * index + length])
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    host_io.write_spans(fd, spans, 100)
    assert path.read_bytes()[100:] == payload
    for address, length in spans:
        host_memory.copy_in(address, bytes(length))
    host_io.read_spans(fd, spans, 100)
    assert b"".join(host_memory.copy_out(address, length) for address, length in spans) == payload
    with pytest.raises(HostError, match="EIO"):
        host_io.read_spans(fd, spans, 101)
    os.close(fd)
