"""A snapshot that fails costs nothing: the file that was there stays, the machine goes on, the next one works."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapkit.errors import ConfigError, HostError
from snapkit.restore.image import Image
from snapkit.restore.save import save_snapshot
from tests.kvm.commands import SNAPKIT, finished
from tests.kvm.harness import DEMO, booted, restored
from tests.kvm.test_demo import assert_uninterrupted, later, uninterrupted

BOOT = ("boot", DEMO, "--memory", "2M", "--vcpus", "1")


@contextmanager
def small_disk(folder: Path, length: str = "512k") -> Iterator[Path]:
    """A file system of its own in *folder*."""
    folder.mkdir()
    if os.geteuid():
        pytest.skip("no root, who may mount a small tmpfs")
    words = ["mount", "-t", "tmpfs", "-o", f"size={length},mode=700", "snapkit-test", str(folder)]
    mounted = subprocess.run(words, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Leave no free byte on *disk*; returns the file that takes it all."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return ballast
    raise AssertionError("the disk does not fill up")


def sound(path: Path | str) -> bytes:
    """Check every byte of a snapshot; returns its id."""
    with Image.open(path) as image:
        image.sections()
        assert image.verify() == []
        return image.preamble.snapshot_id


@pytest.mark.parametrize("separate", [False, True], ids=["whole", "separate"])
def test_on_a_disk_that_fills_up_the_old_file_stays_the_machine_goes_on_and_the_next_snapshot_works(tmp_path, separate):
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "guest.snap"
        with booted() as rig:
            rig.run()
            rig.tape.wait_for("tick 20")
            rig.machine.pause()
            old = save_snapshot(rig.machine, str(path), memory_file=separate).snapshot_id
            ballast = fill(disk)
            there = sorted(os.listdir(disk))
            for _ in range(3):
                rig.machine.resume()
                later(rig, 1)
                rig.machine.pause()
                with pytest.raises(HostError, match="ENOSPC"):
                    save_snapshot(rig.machine, str(path), memory_file=separate)
                assert sound(path) == old
                assert sorted(os.listdir(disk)) == there, "a stray file"
            rig.machine.resume()
            later(rig, 1)
            ballast.unlink()
            rig.machine.pause()
            new = save_snapshot(rig.machine, str(path), memory_file=separate).snapshot_id
            assert sound(path) == new != old
            before = rig.tape.text
            rig.machine.resume()
            later(rig, 1)
            rig.healthy()
        with restored(str(path)) as rig:
            rig.run()
            later(rig, 2)
            assert_uninterrupted(before, rig.tape.text)


def test_a_disk_that_fills_up_in_the_middle_of_memory_is_the_same(tmp_path):
    """Room for a part of it: the write fails after megabytes, not at the first byte."""
    with small_disk(tmp_path / "disk", "3m") as disk, booted(memory=8 << 20) as rig:
        rig.run()
        rig.tape.wait_for("tick 10")
        old = rig.save(str(disk / "guest.snap"))
        first = sound(old)
        with rig.machine._need_memory().view(4 << 20, 4 << 20) as view:
            view[:] = os.urandom(4 << 20)  # where the guest does not look
        with pytest.raises(HostError, match="ENOSPC"):
            save_snapshot(rig.machine, old)
        assert sound(old) == first
        assert os.listdir(disk) == ["guest.snap"]
        rig.machine.resume()
        later(rig, 1)
        rig.save(str(tmp_path / "elsewhere.snap"))
        sound(tmp_path / "elsewhere.snap")
        rig.healthy()


def test_a_command_whose_snapshot_fails_goes_on_when_told_to_and_else_says_why(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "guest.snap"
        asked = (*BOOT, "--snapshot-when", "tick 20", "--snapshot-to", str(path), "--timeout", "60")
        assert finished(*asked).returncode == 0
        old = sound(path)
        fill(disk)
        done = finished(*asked, "--then", "continue", "--exit-when", "tick 290")
        assert done.returncode == 0, done.stderr
        assert "the snapshot failed, the machine goes on" in done.stderr
        assert "ENOSPC" in done.stderr
        assert_uninterrupted(done.stdout)
        assert "tick 290" in done.stdout
        done = finished(*asked)
        assert done.returncode == 5, done.stderr
        assert "ENOSPC" in done.stderr
        assert "Traceback" not in done.stderr
        assert sound(path) == old
        assert sorted(os.listdir(disk)) == ["ballast", "guest.snap"]


def test_boot_keeps_the_file_that_is_there_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "guest.snap"
    asked = (*BOOT, "--snapshot-when", "tick 20", "--snapshot-to", str(path), "--timeout", "60")
    assert finished(*asked).returncode == 0
    old, content = sound(path), path.read_bytes()
    limited = ["prlimit", f"--fsize={1 << 20}", *SNAPKIT, *asked]
    done = subprocess.run(limited, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5, done.stderr
    assert "EFBIG" in done.stderr
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["guest.snap"]
    with path.open("rb") as still_open:
        assert finished(*asked).returncode == 0
        assert still_open.read() == content, "the old file was written into"
    assert sound(path) != old
    assert os.listdir(tmp_path) == ["guest.snap"]


def joined(sent: str, text: str, restored: str) -> str:
    """Return what the guest said up to its snapshot, with what it said when *restored* behind it.

    The machine that was saved went on and *sent* more; the snapshot came soon after *text*, at a byte that only the
    restored machine can tell.
    """
    stream = uninterrupted()
    assert stream.startswith(sent)
    at = stream.index(restored, stream.index(text) + len(text))
    assert at <= len(sent), "output was lost"
    return stream[:at] + restored


@pytest.mark.parametrize("options", [(), ("--verify-memory",)], ids=["mapped", "copied"])
@pytest.mark.parametrize("separate", [(), ("--memory-file",)], ids=["whole", "separate"])
def test_a_snapshot_over_the_very_file_that_the_machine_was_restored_from(tmp_path, separate, options):
    """The machine goes on with the file that it mapped, which has no name any more, and the new file restores."""
    path = tmp_path / "guest.snap"
    to = ("--snapshot-to", str(path), *separate, "--timeout", "60")
    done = finished(*BOOT, "--snapshot-when", "tick 20", *to)
    assert done.returncode == 0, done.stderr
    ids, sent = [sound(path)], done.stdout
    text = 20
    for number in (140, 260):  # far behind the snapshot before: a guest on a busy host is held some lines past its text
        words = ("--snapshot-when", f"tick {number}", "--then", "continue", "--exit-when", f"tick {number + 120}")
        done = finished("restore", str(path), *options, *words, *to)
        assert done.returncode == 0, done.stderr
        sent = joined(sent, f"tick {text}", done.stdout)
        assert sent.endswith(f"tick {number + 120}")
        ids.append(sound(path))
        with Image.open(path) as image:
            assert image.preamble.parent_id == ids[-2]
        text = number
    assert len(set(ids)) == 3
    done = finished("restore", str(path), "--exit-when", "tick 380", "--timeout", "60")
    assert done.returncode == 0, done.stderr
    assert joined(sent, f"tick {text}", done.stdout).endswith("tick 380")
    memory = [name for name in os.listdir(tmp_path) if name != "guest.snap"]
    assert len(memory) == (3 if separate else 0), memory


def test_a_separate_memory_file_that_exists_is_not_overwritten_and_the_machine_goes_on(tmp_path):
    precious = tmp_path / "precious.mem"
    precious.write_bytes(b"precious")
    with booted() as rig:
        rig.run()
        rig.machine.pause()
        with pytest.raises(ConfigError, match="exists already, and is never overwritten"):
            save_snapshot(rig.machine, str(tmp_path / "guest.snap"), memory_path=str(precious))
        assert os.listdir(tmp_path) == ["precious.mem"]
        assert precious.read_bytes() == b"precious"
        rig.machine.resume()
        later(rig, 1)
        rig.healthy()
