"""`--key-file` and `--memory-file` on every command that takes them, each as a process."""

import json
import os
from pathlib import Path

import pytest

from tests.kvm.commands import finished
from tests.kvm.harness import DEMO
from tests.kvm.test_demo import assert_uninterrupted

BOOT = ("boot", DEMO, "--memory", "2M", "--vcpus", "1", "--timeout", "60")


def keyed(key: Path) -> tuple[str, str]:
    return ("--key-file", str(key))


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """The right key, as bytes, and another, as digits."""
    (tmp_path / "right").write_bytes(bytes(range(32)))
    (tmp_path / "other").write_text("ab" * 32 + "\n")
    return tmp_path / "right", tmp_path / "other"


def snapshot(path: Path, *options: str) -> str:
    done = finished(*BOOT, "--snapshot-when", "tick 20", "--snapshot-to", str(path), *options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_keyed_snapshot_is_written_verified_inspected_restored_and_written_again_with_its_key_alone(tmp_path, keys):
    right, other = keys
    path, again = tmp_path / "guest.snap", tmp_path / "again.snap"
    before = snapshot(path, *keyed(right))
    assert finished("verify", str(path), *keyed(right)).returncode == 0
    for options, reason in (((), "no key was given"), (keyed(other), "another key")):
        for words in (("verify", str(path)), ("restore", str(path)), ("inspect", str(path), "machine/0")):
            done = finished(*words, *options)
            assert done.returncode == 3, (words, options, done.stderr)
            assert reason in done.stderr
            assert done.stdout == ""
    done = finished("inspect", str(path))
    assert done.returncode == 0
    assert "not authenticated" in done.stdout
    done = finished("inspect", str(path), *keyed(right))
    assert done.returncode == 0
    assert "not authenticated" not in done.stdout
    assert finished("inspect", str(path), "machine/0", *keyed(right)).returncode == 0
    to = ("--snapshot-when", "tick 90", "--snapshot-to", str(again), "--timeout", "60")
    done = finished("restore", str(path), *keyed(right), *to)
    assert done.returncode == 0, done.stderr
    assert_uninterrupted(before + done.stdout)
    assert finished("verify", str(again), *keyed(right)).returncode == 0
    assert finished("verify", str(again)).returncode == 3


@pytest.mark.parametrize("separate", [(), ("--memory-file",)], ids=["whole", "separate"])
def test_a_key_implies_that_memory_is_verified(tmp_path, keys, separate):
    path = tmp_path / "guest.snap"
    snapshot(path, *keyed(keys[0]), *separate)
    memory = next(tmp_path.glob("*.mem")) if separate else path
    with memory.open("r+b", buffering=0) as file:
        at = memory.stat().st_size - (1 << 19)
        os.pwrite(file.fileno(), bytes([os.pread(file.fileno(), 1, at)[0] ^ 1]), at)
    done = finished("restore", str(path), *keyed(keys[0]), "--timeout", "20", "--exit-when", "tick")
    assert done.returncode == 3, done.stderr
    assert "memory.0x0-0x1fffff is damaged" in done.stderr
    assert done.stdout == ""


def test_what_is_no_key_is_the_operators_mistake_on_every_command(tmp_path):
    path = tmp_path / "guest.snap"
    snapshot(path)
    (tmp_path / "short").write_bytes(bytes(31))
    (tmp_path / "long").write_bytes(bytes(33))
    (tmp_path / "no digits").write_bytes(b"g" * 64)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("short", "long", "no digits", "folder", "fifo", "missing"):
        for words in (BOOT, ("restore", str(path)), ("verify", str(path)), ("inspect", str(path))):
            if name not in {"short", "fifo"} and words[0] != "verify":
                continue  # one reader serves them all
            done = finished(*words, *keyed(tmp_path / name))
            assert done.returncode == 2, (name, words, done.stderr)
            assert str(tmp_path / name) in done.stderr
            assert done.stderr.startswith("snapkit: key file ")
            assert len(done.stderr.splitlines()) == 1
            assert done.stdout == ""


def test_a_separate_memory_file_has_the_snapshots_id_in_its_name_and_moves_with_it(tmp_path):
    (tmp_path / "a").mkdir()
    path = tmp_path / "a" / "guest.snap"
    done = finished(
        *BOOT, "--snapshot-when", "tick 20", "--snapshot-to", str(path), "--memory-file", "--json", "--serial", "null"
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)["snapshot"]
    assert told["memory_file"] == str(tmp_path / "a" / f"guest.{told['id']}.mem")
    assert sorted(os.listdir(tmp_path / "a")) == sorted(["guest.snap", os.path.basename(told["memory_file"])])
    (tmp_path / "a").rename(tmp_path / "b")
    path = tmp_path / "b" / "guest.snap"
    assert finished("verify", str(path)).returncode == 0
    done = finished("restore", str(path), "--exit-when", "tick 90", "--timeout", "60")
    assert done.returncode == 0, done.stderr
    assert "tick 90" in done.stdout


def test_a_missing_short_or_swapped_memory_file_is_refused(tmp_path):
    paths = [tmp_path / "one.snap", tmp_path / "two.snap"]
    for path in paths:
        snapshot(path, "--memory-file")
    one, two = next(tmp_path.glob("one.*.mem")), next(tmp_path.glob("two.*.mem"))
    whole, length, aside = one.read_bytes(), one.stat().st_size, tmp_path / "aside"
    for spoil, reason in (
        (one.unlink, "is missing"),
        (lambda: one.write_bytes(whole[:-4096]), f"it has {length - 4096} bytes, must have {length}"),
        (lambda: one.write_bytes(whole + b"\0"), f"it has {length + 1} bytes, must have {length}"),
        (lambda: one.write_bytes(two.read_bytes()), "it is the memory of snapshot"),
        (lambda: one.write_bytes(bytes(length)), "no separate memory file"),
        (lambda: os.mkfifo(one.rename(aside).parent / one.name), "it is a FIFO"),
    ):
        spoil()
        for verb in ("restore", "verify")[: 2 if "missing" in reason else 1]:
            done = finished(verb, str(paths[0]))
            assert done.returncode == 3, (reason, done.stderr)
            assert reason in done.stderr
            assert one.name in done.stderr
            assert "Traceback" not in done.stderr
    assert finished("inspect", str(paths[0])).returncode == 0, "it reads the snapshot's head only"
    assert finished("verify", str(paths[1])).returncode == 0


def test_a_memory_file_without_a_snapshot_is_a_contradiction():
    done = finished(*BOOT, "--memory-file")
    assert done.returncode == 2
    assert "--snapshot-to" in done.stderr
