"""Writing is all or nothing, whatever fails, dies, or writes beside it."""

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import pytest

from snapkit import host
from snapkit.errors import ConfigError, HostError, InternalError
from snapkit.restore.image import Image
from snapkit.state.schema import SectionId
from tests.restore.machines import MIB, ram, save, sections

OLD = ram(4 * MIB, {0: b"old"})
NEW = ram(4 * MIB, {0: b"new", 2 * MIB: b"newer"})


def _holds(path: Path) -> bytes:
    with Image.open(path) as image:
        assert image.verify() == []
        assert image.sections().states == sections()
        return image.memory.read(0, 3)


def _names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_whichever_call_fails_the_old_file_stays_whole_or_the_new_one_is(tmp_path, error):
    path = tmp_path / "guest.snap"
    descriptors = len(os.listdir("/proc/self/fd"))
    outcomes = set()
    for failing in range(100):
        save(path, OLD)
        seen: list[str] = []

        def fail(call: str, _arguments: object, at: int = failing, seen: list[str] = seen) -> None:
            seen.append(call)
            if len(seen) == at + 1:
                raise OSError(error, "injected")

        with host.inject(fail):
            try:
                save(path, NEW)
                outcome = "written"
            except HostError as caught:
                outcome = "refused" if caught.errno == error else str(caught)
        content = _holds(path)
        reached_rename = "rename" in seen[:failing] and outcome == "refused"
        assert content == (b"new" if outcome == "written" or reached_rename else b"old"), (failing, seen)
        assert _names(tmp_path) in (
            ["guest.snap"],
            _names(tmp_path) if seen[failing : failing + 1] == ["unlink"] else [],
        )
        outcomes.add(outcome)
        if len(seen) <= failing:
            break
    else:
        pytest.fail("a write has more than 100 calls")
    assert outcomes == {"written", "refused"}
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_whichever_call_fails_no_separate_memory_file_is_left_without_its_snapshot(tmp_path):
    path, beside = tmp_path / "guest.snap", tmp_path / "guest.mem"
    for failing in range(100):
        seen: list[str] = []

        def fail(call: str, _arguments: object, at: int = failing, seen: list[str] = seen) -> None:
            seen.append(call)
            if len(seen) == at + 1 and call != "unlink":
                raise OSError(errno.EIO, "injected")

        with host.inject(fail), contextlib.suppress(HostError):
            save(path, NEW, memory_path=beside)
        assert _names(tmp_path) in ([], ["guest.mem", "guest.snap"]), (failing, seen)
        if path.exists():
            assert _holds(path) == b"new"
            path.unlink()
            beside.unlink()
        if len(seen) <= failing:
            return
    pytest.fail("a write has more than 100 calls")


def test_an_interrupt_leaves_nothing_behind(tmp_path):
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "guest.snap", NEW, progress=interrupt)
    assert _names(tmp_path) == []
    assert threading.active_count() == threads


def test_a_file_system_that_fills_up_leaves_the_old_file(tmp_path):
    """A file size limit stands in for the full disk: the kernel fails the write in the middle, without a hook."""
    path = tmp_path / "guest.snap"
    save(path, OLD)
    code = (
        "import resource, signal, sys; from tests.restore.machines import *; import os\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))\n"
        "from snapkit.errors import HostError\n"
        "try: save(sys.argv[1], memoryview(bytearray(os.urandom(8 << 20))))\n"
        "except HostError as error: print(error)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60, check=True, cwd=Path.cwd()
    )
    assert "pwrite" in shown.stdout
    assert "EFBIG" in shown.stdout
    assert _holds(path) == b"old"
    assert _names(tmp_path) == ["guest.snap"]


def test_a_killed_writer_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path):
    path = tmp_path / "guest.snap"
    save(path, OLD)
    code = (
        "import sys; from tests.restore.machines import *\n"
        "def stop(done, total):\n"
        "    print('half', flush=True); sys.stdin.read()\n"
        "save(sys.argv[1], ram(4 << 20, {0: b'x', 2 << 20: b'y'}), progress=stop)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    assert writer.stdin is not None
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"half\n"
    leftovers = [name for name in _names(tmp_path) if name != "guest.snap"]
    assert len(leftovers) == 1
    save(path, OLD)
    assert _names(tmp_path) == sorted([*leftovers, "guest.snap"]), "a living writer's file was taken away"
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=30)
    writer.stdin.close()
    writer.stdout.close()
    assert _holds(path) == b"old"
    save(path, NEW)
    assert _names(tmp_path) == ["guest.snap"]
    assert _holds(path) == b"new"


def test_leftovers_of_other_targets_and_files_of_people_are_left_alone(tmp_path):
    names = [
        ".other.snap.0123456789abcdef.tmp",
        ".guest.snap.0123456789abcdef.tmp.bak",
        ".guest.snap.0123.tmp",
        "guest.snap.0123456789abcdef.tmp",
    ]
    for name in names:
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / ".guest.snap.0123456789abcdef.tmp").write_bytes(b"left over")
    (tmp_path / ".guest.snap.fedcba9876543210.tmp").mkdir()
    save(tmp_path / "guest.snap")
    assert _names(tmp_path) == sorted([*names, ".guest.snap.fedcba9876543210.tmp", "guest.snap"])


def test_what_a_killed_writer_left_of_separate_memory_is_cleaned_up_too(tmp_path):
    (tmp_path / ".guest.snap.0123456789abcdef.tmp").write_bytes(b"memory, half of it")
    save(tmp_path / "guest.snap", memory_path=tmp_path / "guest.2.mem")
    assert _names(tmp_path) == ["guest.2.mem", "guest.snap"]


def test_a_writer_whose_new_file_a_cleaner_took_makes_another(tmp_path):
    taken: list[str] = []

    def clean(call: str, arguments: tuple[object, ...]) -> None:
        if call == "flock" and len(taken) < 2:
            taken.append(str(arguments[0]))
            (leftover,) = tmp_path.glob(".guest.snap.*.tmp")
            leftover.unlink()

    with host.inject(clean):
        save(tmp_path / "guest.snap", NEW)
    assert len(taken) == 2
    assert _names(tmp_path) == ["guest.snap"]


def test_a_writer_finding_its_new_file_locked_makes_another(tmp_path):
    held: list[BinaryIO] = []

    def lock(call: str, _arguments: tuple[object, ...]) -> None:
        if call == "flock" and not held:
            (leftover,) = tmp_path.glob(".guest.snap.*.tmp")
            held.append(leftover.open("rb"))
            fcntl.flock(held[0], fcntl.LOCK_EX)
            leftover.unlink()

    with host.inject(lock):
        save(tmp_path / "guest.snap", NEW)
    held[0].close()
    assert _names(tmp_path) == ["guest.snap"]


def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path):
    def refuse(call: str, _arguments: object) -> None:
        if call == "flock":
            raise OSError(errno.EOPNOTSUPP, "injected")

    (tmp_path / ".guest.snap.0123456789abcdef.tmp").write_bytes(b"perhaps alive")
    with host.inject(refuse):
        save(tmp_path / "guest.snap", NEW)
    assert _holds(tmp_path / "guest.snap") == b"new"
    assert len(_names(tmp_path)) == 2


def test_two_writers_of_one_target_both_finish_and_one_file_wins_whole(tmp_path):
    path = tmp_path / "guest.snap"
    contents = [ram(16 * MIB, {at: bytes([mark]) * 4096 for at in range(0, 16 * MIB, MIB)}) for mark in (1, 2)]
    errors: list[BaseException] = []
    ready = threading.Barrier(2)

    def write(content: memoryview) -> None:
        try:
            for _ in range(5):
                ready.wait(timeout=60)
                save(path, content)
        except BaseException as error:
            errors.append(error)
            ready.abort()

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert _names(tmp_path) == ["guest.snap"]
    with Image.open(path) as image:
        assert image.verify() == []
        assert image.memory.read(0, 16 * MIB) in contents


def test_guest_memory_is_free_before_the_disk_is_waited_for(tmp_path):
    order: list[str] = []
    with host.inject(lambda call, _arguments: order.append(call)):
        save(tmp_path / "guest.snap", NEW, captured=lambda: order.append("captured"))
    assert order.index("pwrite") < order.index("captured") < order.index("fsync") < order.index("rename")
    assert order.index("rename") < len(order) - 1 - order[::-1].index("fsync")


def test_progress_reaches_the_whole(tmp_path):
    calls: list[tuple[int, int]] = []
    save(tmp_path / "guest.snap", NEW, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(2 * MIB, 4 * MIB), (4 * MIB, 4 * MIB)]


def test_without_a_second_thread_the_file_is_the_same(tmp_path, monkeypatch):
    fixed = {"snapshot_id": b"S" * 16, "created_ns": 1}
    save(tmp_path / "a.snap", NEW, **fixed)

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    save(tmp_path / "b.snap", NEW, **fixed)
    assert (tmp_path / "a.snap").read_bytes() == (tmp_path / "b.snap").read_bytes()


def test_a_snapshot_is_for_its_owner_only(tmp_path):
    save(tmp_path / "guest.snap", memory_path=tmp_path / "guest.mem")
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in _names(tmp_path)] == [0o600, 0o600]


def test_the_file_that_was_replaced_can_still_be_read_by_who_has_it_open(tmp_path):
    save(tmp_path / "guest.snap", OLD)
    with Image.open(tmp_path / "guest.snap") as image:
        save(tmp_path / "guest.snap", NEW)
        assert image.memory.read(0, 3) == b"old"
        assert image.verify() == []
    assert _holds(tmp_path / "guest.snap") == b"new"


def test_an_existing_separate_memory_file_is_never_overwritten(tmp_path):
    (tmp_path / "guest.mem").write_bytes(b"precious")
    with pytest.raises(ConfigError, match="exists already"):
        save(tmp_path / "guest.snap", memory_path=tmp_path / "guest.mem")
    assert _names(tmp_path) == ["guest.mem"]

    def appear(call: str, _arguments: object) -> None:
        if call == "link":
            (tmp_path / "late.mem").write_bytes(b"precious")

    with host.inject(appear), pytest.raises(ConfigError, match="exists already"):
        save(tmp_path / "guest.snap", memory_path=tmp_path / "late.mem")
    assert (tmp_path / "late.mem").read_bytes() == b"precious"
    assert _names(tmp_path) == ["guest.mem", "late.mem"]


def test_separate_memory_works_without_second_names(tmp_path):
    def refuse(call: str, _arguments: object) -> None:
        if call == "link":
            raise OSError(errno.EPERM, "injected")

    with host.inject(refuse):
        save(tmp_path / "guest.snap", NEW, memory_path=tmp_path / "guest.mem")
    assert _holds(tmp_path / "guest.snap") == b"new"
    assert _names(tmp_path) == ["guest.mem", "guest.snap"]


def test_a_long_name_is_no_obstacle(tmp_path):
    path = tmp_path / ("x" * 250 + ".snap")
    save(path, OLD)
    save(path, NEW)
    assert _holds(path) == b"new"
    assert len(_names(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "no name for a file"),
        ("missing/guest.snap", "no such file or directory"),
        ("file/guest.snap", "not a directory"),
        ("directory", "it is a directory"),
        ("directory/", "no name for a file"),
        ("fifo", "it is a FIFO"),
        ("null", "it is a character device"),
        ("y" * 300, "file name too long"),
        ("a\0b", "no name for a file"),
    ],
)
def test_a_target_that_cannot_be_is_refused_in_a_sentence(tmp_path, name, reason):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "null").symlink_to("/dev/null")
    before = _names(tmp_path)
    with pytest.raises(ConfigError, match=reason):
        save(f"{tmp_path}/{name}" if name else "")
    assert _names(tmp_path) == before


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"release": "0.1.0-with-a-long-suffix"}, "release is"),
        ({"release": "0.1.0\n"}, "release is"),
        ({"producer": "snäpkit"}, "producer is"),
        ({"machine_id": b"short"}, "machine id has 5 bytes"),
        ({"architecture": 3}, "architecture is ELF machine 3"),
        ({"facts": {"long": "x" * 300}}, "cannot be written"),
        ({"facts": {"name": "\udc80"}}, "cannot be written"),
        ({"key": b"short"}, "key has 5 bytes"),
        ({"memory": [(0, ram(4096), 4096), (0, ram(4096), 4096)]}, "at or above 0x1000"),
        ({"memory": [(5, ram(4096), 4096)]}, "whole pages"),
        ({"memory": [(0, ram(4097), 4097)]}, "whole pages"),
        ({"memory": [(1 << 52, ram(4096), 4096)]}, "up to 0x10000000001000"),
    ],
)
def test_what_a_file_cannot_hold_is_refused_before_anything_is_written(tmp_path, options, reason):
    with pytest.raises(ConfigError, match=reason):
        save(tmp_path / "guest.snap", **options)
    assert _names(tmp_path) == []


def test_a_view_of_another_length_than_said_is_our_bug(tmp_path):
    with pytest.raises(InternalError):
        save(tmp_path / "guest.snap", memory=[(0, ram(4096), 8192)])


def test_a_section_under_the_name_of_another_kind_is_refused(tmp_path):
    wrong = {SectionId("pit", "0"): sections()[SectionId("machine", "0")]}
    with pytest.raises(ConfigError, match="pit/0 holds a machine"):
        save(tmp_path / "x", sections=wrong)
