"""A writer that is killed leaves the previous file or the new one, whole, and nothing after the next write."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from snapkit import host
from snapkit.restore.image import Image
from snapkit.restore.preamble import PREAMBLE_LEN
from tests.restore.machines import save

ROOT = Path(__file__).parents[2]


def killed(folder: Path, how: str, where: str, *, seed: int = 0, kills: int = 0) -> dict[str, int]:
    words = [sys.executable, "-m", "tests.restore.killing", str(folder), how, where, str(seed), str(kills)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize(("where", "kills"), [("whole", 120), ("separate", 80)])
def test_killed_at_random_moments_of_writing_the_file_is_the_old_or_the_new_one(tmp_path, where, kills):
    seen = killed(tmp_path, "moments", where, seed=17, kills=kills)
    assert seen["old"] + seen["new"] == kills
    assert seen["temporary files"] > kills // 4, "most kills came between two writings"
    assert seen["finished"] > 0


def test_separate_memory_is_on_the_disk_under_its_name_before_the_snapshot_takes_its_own(tmp_path):
    calls: list[tuple[str, object]] = []
    with host.inject(lambda call, arguments: calls.append((call, arguments[0] if arguments else None))):
        save(tmp_path / "guest.snap", memory_path=tmp_path / "guest.mem")
    names = [call for call, _ in calls]
    written = max(number for number, call in enumerate(names) if call == "pwrite")
    linked, renamed = names.index("link"), names.index("rename")
    synced = [number for number, call in enumerate(names) if call == "fsync"]
    assert written < synced[0] < synced[1] < linked < renamed, "both files, then the memory's name, then the snapshot's"
    assert calls[synced[0]][1] != calls[synced[1]][1]
    assert any(linked < number < renamed for number in synced), "the directory, with the memory's name in it"
    assert synced[-1] > renamed


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("where", ["whole", "separate"])
def test_killed_at_thousands_of_random_moments_the_file_is_the_old_or_the_new_one(tmp_path, where):
    seen = killed(tmp_path, "moments", where, seed=18, kills=4000)
    assert seen["old"] + seen["new"] == 4000


@pytest.mark.parametrize("where", ["whole", "separate"])
def test_killed_before_each_system_call_the_file_is_the_old_or_the_new_one(tmp_path, where):
    seen = killed(tmp_path, "calls", where)
    assert seen["kills"] > 15
    assert seen["old"]
    assert seen["new"] > 1, "never killed between the new file's name and the end"
    # between the memory file's name and the snapshot's: the next writer took each of them away
    assert bool(seen.get("orphans")) == (where == "separate")


def leftover(folder: Path) -> Path:
    """Leave what a writer killed between naming the memory and naming the snapshot leaves."""
    save(folder / "killed.snap", memory_path=folder / "killed.mem")
    left = folder / ".guest.snap.0123456789abcdef.tmp"
    (folder / "killed.snap").rename(left)
    return left


def test_memory_whose_snapshot_was_never_named_goes_with_the_next_write_of_that_snapshot(tmp_path):
    leftover(tmp_path)
    save(tmp_path / "guest.snap")
    assert os.listdir(tmp_path) == ["guest.snap"]


def test_memory_of_another_snapshot_or_owner_or_kind_is_not_taken_for_an_orphan(tmp_path):
    left = leftover(tmp_path)
    content = left.read_bytes()
    for spoil in ("another snapshot's", "no memory file", "another owner's", "a symlink", "a folder"):
        beside = tmp_path / "killed.mem"
        whole = beside.read_bytes()
        left.write_bytes(content)
        if spoil == "another snapshot's":
            beside.write_bytes(whole[:16] + b"S" * 16 + whole[32:])
        elif spoil == "no memory file":
            beside.write_bytes(b"precious" * 1000)
        elif spoil == "another owner's":
            if os.geteuid():
                continue  # only root can give a file away
            os.chown(beside, 12345, 12345)
        elif spoil == "a symlink":
            beside.rename(tmp_path / "elsewhere")
            beside.symlink_to("elsewhere")
        else:
            beside.unlink()
            beside.mkdir()
        save(tmp_path / "guest.snap")
        assert beside.exists(), spoil
        assert not left.exists()
        if beside.is_symlink():
            beside.unlink()
            (tmp_path / "elsewhere").unlink()
        if not beside.is_dir():
            beside.write_bytes(whole)
            os.chown(beside, os.geteuid(), os.getegid())


def test_memory_of_a_snapshot_that_was_renamed_or_copied_stays(tmp_path):
    save(tmp_path / "guest.snap", memory_path=tmp_path / "first.mem")
    (tmp_path / "guest.snap").rename(tmp_path / "kept.snap")
    save(tmp_path / "guest.snap", memory_path=tmp_path / "second.mem")
    save(tmp_path / "guest.snap", memory_path=tmp_path / "third.mem")
    assert sorted(os.listdir(tmp_path)) == ["first.mem", "guest.snap", "kept.snap", "second.mem", "third.mem"]
    for name in ("guest.snap", "kept.snap"):
        with Image.open(tmp_path / name) as image:
            assert image.verify() == []


@pytest.mark.parametrize("cut", [0, 1, 64, PREAMBLE_LEN - 1, PREAMBLE_LEN, PREAMBLE_LEN + 100])
def test_a_leftover_that_was_never_finished_is_removed_whatever_is_in_it(tmp_path, cut):
    left = leftover(tmp_path)
    os.truncate(left, cut)
    save(tmp_path / "guest.snap")
    assert sorted(os.listdir(tmp_path)) == ["guest.snap", "killed.mem"]
