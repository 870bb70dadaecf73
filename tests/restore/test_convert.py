"""A snapshot carried to another release: its memory as it is, the original untouched, all or nothing."""

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapkit import host
from snapkit.errors import ConfigError, HostError, ImageError
from snapkit.restore.carry import Carried
from snapkit.restore.convert import Conversion
from snapkit.restore.image import Image
from snapkit.restore.preamble import MEMORY_ALIGNMENT
from snapkit.restore.rewrite import Rewritten
from snapkit.restore.writer import write_image
from snapkit.state.converters import Refusal
from snapkit.state.schema import SectionId, schema_of
from snapkit.state.virtio import VirtioState
from tests.restore.device_machine import RAM_LEN, busy_machine, fresh_machine
from tests.restore.machines import MIB, ram, save

NEWEST = "0.3.0"
FACTS = {"cpu": "host", "vcpus": 1, "memory": RAM_LEN}
KEY, OTHER_KEY = b"k" * 32, b"o" * 32
MARKS = {0: b"first", 3 * 4096: b"fourth", 2 * MIB + 8192: b"second chunk"}


def snapshot(path: Path, **options: Any) -> Path:
    """Write a machine with memory in two chunks, most of their pages zero."""
    states = fresh_machine(None)
    content = ram(RAM_LEN, {at: mark for at, mark in MARKS.items() if at < RAM_LEN})
    save(path, content, sections=states, facts=FACTS, release=NEWEST, created_ns=7, host_kernel="5.4.3", **options)
    return path


def convert(path: Path, out: Path, release: str = "0.1.0", key: bytes | None = None) -> Rewritten:
    with Conversion.open(str(path), release, key=key) as conversion:
        return conversion.write(str(out))


def holds(path: Path, key: bytes | None = None) -> bytes:
    with Image.open(path, key=key) as image:
        assert image.verify() == []
        return image.memory.read(0, RAM_LEN)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def payloads(image: Image) -> dict[str, bytes]:
    return {entry.path: image.payload(entry) for entry in image.entries}


def blocks(path: Path) -> int:
    return path.stat().st_blocks * 512


def refuse_sharing(*calls: str, error: int = errno.EOPNOTSUPP):
    def refuse(call: str, _arguments: object) -> None:
        if call in calls:
            raise OSError(error, "injected")

    return host.inject(refuse)


def test_the_new_file_is_another_snapshot_of_the_same_machine_at_the_same_moment(tmp_path):
    path = snapshot(tmp_path / "vm.snap")
    done = convert(path, tmp_path / "older.snap")
    with Image.open(path) as before, Image.open(tmp_path / "older.snap") as after:
        assert after.preamble.release == "0.1.0"
        assert after.preamble.parent_id == before.preamble.snapshot_id == done.parent_id
        assert after.preamble.snapshot_id == done.written.snapshot_id != before.preamble.snapshot_id
        for name in ("machine_id", "created_ns", "host_kernel", "architecture"):
            assert getattr(after.preamble, name) == getattr(before.preamble, name)
        assert after.manifest.machine == before.manifest.machine
        assert {name.kind for name in after.sections().states} & {"resource-allocator", "interrupt-table"} == set()


def test_there_and_back_the_sections_are_the_same_bytes(tmp_path):
    path = snapshot(tmp_path / "vm.snap")
    convert(path, tmp_path / "older.snap")
    convert(tmp_path / "older.snap", tmp_path / "back.snap", NEWEST)
    with Image.open(path) as before, Image.open(tmp_path / "back.snap") as after:
        assert payloads(after) == payloads(before)
    assert holds(path) == holds(tmp_path / "back.snap")


@pytest.mark.parametrize("refused", [(), ("FICLONERANGE",), ("FICLONERANGE", "copy_file_range")])
def test_memory_arrives_with_its_holes_and_its_digests_however_it_is_carried(tmp_path, refused):
    path = snapshot(tmp_path / "vm.snap")
    with refuse_sharing(*refused):
        done = convert(path, tmp_path / "older.snap")
    assert holds(tmp_path / "older.snap") == holds(path)
    if refused:
        assert not done.shared
        assert 0 < done.written.written < 64 << 10, "only pages with something in them were copied"
    assert blocks(tmp_path / "older.snap") <= blocks(path) + (64 << 10)


def test_no_digest_of_memory_is_made_anew_and_no_memory_read(tmp_path):
    path = snapshot(tmp_path / "vm.snap")
    with Image.open(path) as image:
        start, raw = image.preamble.memory_offset, list(image.memory.table.chunks())
        digests = [image.memory.table.digest(chunk.number) for chunk in raw]
    reads: list[int] = []

    def note(call: str, arguments: tuple[object, ...]) -> None:
        if call == "pread_into" or (call == "pread" and int(str(arguments[2])) >= start):
            reads.append(int(str(arguments[2])))

    with host.inject(note):
        convert(path, tmp_path / "older.snap")
    assert reads == []
    with Image.open(tmp_path / "older.snap") as image:
        assert [image.memory.table.digest(chunk.number) for chunk in image.memory.table.chunks()] == digests


def test_damage_goes_along_and_is_found_where_it_was(tmp_path):
    path = snapshot(tmp_path / "vm.snap")
    with Image.open(path) as image:
        (chunk, *_) = image.memory.table.chunks()
    with path.open("r+b") as file:
        file.seek(chunk.offset)
        file.write(b"damaged")
    convert(path, tmp_path / "older.snap")
    with Image.open(path) as before, Image.open(tmp_path / "older.snap") as after:
        assert before.verify() == after.verify() != []


def test_separate_memory_gets_a_new_file_that_names_the_new_snapshot(tmp_path):
    path = snapshot(tmp_path / "vm.snap", memory_path=tmp_path / "vm.mem")
    done = convert(path, tmp_path / "older.snap")
    assert done.written.memory_path == str(tmp_path / f"older.{done.written.snapshot_id.hex()}.mem")
    assert holds(tmp_path / "older.snap") == holds(path)
    (tmp_path / "vm.snap").unlink()
    (tmp_path / "vm.mem").unlink()
    assert holds(tmp_path / "older.snap").startswith(b"first")


def test_a_keyed_file_stays_keyed_and_needs_its_key(tmp_path):
    path = snapshot(tmp_path / "vm.snap", key=KEY)
    with pytest.raises(ImageError, match="no key was given"):
        convert(path, tmp_path / "older.snap")
    convert(path, tmp_path / "older.snap", key=KEY)
    assert holds(tmp_path / "older.snap", KEY) == holds(path, KEY)
    with pytest.raises(ImageError, match="another key"):
        holds(tmp_path / "older.snap", OTHER_KEY)


def test_memory_carried_to_another_key_has_new_digests_and_damage_is_not_signed(tmp_path):
    path = snapshot(tmp_path / "vm.snap")
    states = fresh_machine(None)
    with Image.open(path) as image:
        options: dict[str, Any] = {
            "sections": states,
            "machine_id": image.preamble.machine_id,
            "architecture": 62,
            "release": NEWEST,
        }
        write_image(tmp_path / "keyed.snap", memory=Carried(image.memory), key=KEY, **options)
        assert holds(tmp_path / "keyed.snap", KEY) == holds(path)
        (chunk, *_) = image.memory.table.chunks()
        with path.open("r+b") as file:
            file.seek(chunk.offset)
            file.write(b"damaged")
        with pytest.raises(ImageError, match="guest memory is damaged"):
            write_image(tmp_path / "signed.snap", memory=Carried(image.memory), key=KEY, **options)
    assert names(tmp_path) == ["keyed.snap", "vm.snap"]


def test_memory_moves_by_whole_alignments_only(tmp_path):
    """The chunk table says the same of each chunk, but for where it lies; that is what `Image.open` checks."""
    path = snapshot(tmp_path / "vm.snap", memory_path=tmp_path / "vm.mem")
    with Image.open(path) as image, (tmp_path / "flat").open("w+b") as file:
        table, end = Carried(image.memory).write(file.fileno(), 5 * MEMORY_ALIGNMENT, image._digester)
        moved = [chunk.offset + 4 * MEMORY_ALIGNMENT for chunk in image.memory.table.chunks()]
        assert [
            int.from_bytes(table[at : at + 8], "little") for at in range(0, len(table), 48) if table[at + 12]
        ] == moved
        assert end == image.preamble.memory_len + 5 * MEMORY_ALIGNMENT


def test_everything_that_the_older_release_cannot_hold_is_told_at_once_and_nothing_is_written(tmp_path):
    states = busy_machine("pci")
    save(tmp_path / "vm.snap", ram(RAM_LEN), sections=states, facts=FACTS, release=NEWEST)
    with pytest.raises(Refusal) as refused:
        convert(tmp_path / "vm.snap", tmp_path / "older.snap")
    named = {finding.component for finding in refused.value.findings}
    assert {str(name) for name, state in states.items() if isinstance(state, VirtioState)} <= named
    assert names(tmp_path) == ["vm.snap"]


def test_a_machine_that_could_not_be_restored_is_not_converted_either(tmp_path):
    states = fresh_machine(None)
    del states[SectionId("pit", "0")]
    save(tmp_path / "vm.snap", ram(RAM_LEN), sections=states, facts=FACTS, release=NEWEST)
    with pytest.raises(ImageError, match="could have been saved"):
        convert(tmp_path / "vm.snap", tmp_path / "older.snap")


@pytest.mark.parametrize("how", ["itself", "symlink", "hard link", "its memory", "elsewhere spelled"])
def test_the_original_is_never_what_is_written_to(tmp_path, how):
    path = snapshot(tmp_path / "vm.snap", memory_path=tmp_path / "vm.mem")
    out = {
        "itself": path,
        "its memory": tmp_path / "vm.mem",
        "elsewhere spelled": tmp_path / "." / ".." / tmp_path.name,
    }
    target = out.get(how, tmp_path / "link")
    if how == "symlink":
        target.symlink_to("vm.snap")
    elif how == "hard link":
        target.hardlink_to(path)
    elif how == "elsewhere spelled":
        target /= "vm.snap"
    before = path.read_bytes(), (tmp_path / "vm.mem").read_bytes()
    with pytest.raises(ConfigError, match="never modified"):
        convert(path, target)
    assert before == (path.read_bytes(), (tmp_path / "vm.mem").read_bytes())


def test_an_unknown_release_is_refused_with_those_there_are(tmp_path):
    path = snapshot(tmp_path / "vm.snap")
    with pytest.raises(ConfigError, match=r"0\.1\.0, 0\.2\.0"):
        convert(path, tmp_path / "out.snap", "9.9.9")


@pytest.mark.parametrize("shape", ["whole", "separate"])
@pytest.mark.parametrize(
    ("error", "carried"), [(errno.EIO, "kernel"), (errno.ENOSPC, "kernel"), (errno.ENOSPC, "by hand")]
)
def test_whichever_call_fails_the_new_file_is_absent_or_whole_and_the_original_unchanged(
    tmp_path, shape, error, carried
):
    separate = {"memory_path": tmp_path / "vm.mem"} if shape == "separate" else {}
    path = snapshot(tmp_path / "vm.snap", **separate)
    originals = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    out = tmp_path / "older.snap"
    descriptors = len(os.listdir("/proc/self/fd"))
    outcomes = set()
    for failing in range(200):
        seen: list[str] = []

        def fail(call: str, _arguments: object, at: int = failing, seen: list[str] = seen) -> None:
            seen.append(call)
            if carried == "by hand" and call in {"FICLONERANGE", "copy_file_range"}:
                raise OSError(errno.EXDEV, "injected")
            if len(seen) == at + 1 and call != "unlink":
                raise OSError(error, "injected")

        with host.inject(fail):
            try:
                convert(path, out)
                outcome = "written"
            except HostError as caught:
                outcome = "refused" if caught.errno == error else str(caught)
        outcomes.add(outcome)
        for name, content in originals.items():
            assert (tmp_path / name).read_bytes() == content
        left = [name for name in names(tmp_path) if name not in originals]
        if out.exists():
            assert holds(out) == holds(path)
            assert len(left) == (2 if separate else 1), left
            for name in left:
                (tmp_path / name).unlink()
        else:
            assert left == [], (failing, seen)
        if len(seen) <= failing:
            break
    else:
        pytest.fail("a conversion has more than 200 calls")
    assert outcomes == {"written", "refused"}
    assert len(os.listdir("/proc/self/fd")) == descriptors


def kill_before_each_call(folder: Path) -> None:
    """Convert ``vm.snap`` in *folder*, killed before its first, second, ... system call; prints how often it was."""
    path, out = folder / "vm.snap", folder / "older.snap"
    content, memory, kills = path.read_bytes(), holds(path), 0
    while True:
        pid = os.fork()
        if not pid:
            calls = 0

            def die(_call: str, _arguments: object, at: int = kills) -> None:
                nonlocal calls
                if calls == at:
                    os.kill(os.getpid(), signal.SIGKILL)
                calls += 1

            try:
                with host.inject(die):
                    convert(path, out)
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in {0, -signal.SIGKILL}, code
        assert path.read_bytes() == content
        if out.exists():
            assert holds(out) == memory
            with Image.open(out) as image:
                separate = image.manifest.memory.separate
            left = {"older.snap", *([separate.path] if separate else [])}
            assert left <= set(names(folder))
            out.unlink()
            for name in left - {"older.snap"}:
                (folder / name).unlink()
        if not code:
            break
        kills += 1
    assert names(folder) == sorted({"vm.snap", *(["vm.mem"] if (folder / "vm.mem").exists() else [])}), "leftovers"
    print(kills)


@pytest.mark.parametrize("shape", ["whole", "separate"])
def test_killed_before_each_system_call_the_new_file_is_absent_or_whole_and_the_next_one_cleans_up(tmp_path, shape):
    snapshot(tmp_path / "vm.snap", **({"memory_path": tmp_path / "vm.mem"} if shape == "separate" else {}))
    code = "import sys; from pathlib import Path; from tests.restore import test_convert as t\n"
    code += "t.kill_before_each_call(Path(sys.argv[1]))"
    words = [sys.executable, "-c", code, tmp_path]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=200, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path):
    """A file size limit stands in for the full disk: the kernel stops the copy in the middle, without a hook."""
    path = snapshot(tmp_path / "vm.snap")
    (tmp_path / "out.snap").write_bytes(b"was there")
    code = (
        "import resource, signal, sys; from pathlib import Path; from snapkit.errors import HostError\n"
        "from tests.restore.test_convert import convert\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, 1 << 18))\n"
        "try: convert(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except HostError as error: print(error)\n"
    )
    words = [sys.executable, "-c", code, path, tmp_path / "out.snap"]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True, cwd=Path(__file__).parents[2])
    assert "EFBIG" in shown.stdout
    assert (tmp_path / "out.snap").read_bytes() == b"was there"
    assert names(tmp_path) == ["out.snap", "vm.snap"]


def test_a_file_that_is_cut_while_it_is_copied_is_no_snapshot(tmp_path):
    path = snapshot(tmp_path / "vm.snap")

    def cut(call: str, _arguments: object) -> None:
        if call == "_seek":
            os.truncate(path, 90 << 10)
        elif call in {"FICLONERANGE", "copy_file_range"}:
            raise OSError(errno.EXDEV, "injected")

    with host.inject(cut), contextlib.suppress(ImageError):
        convert(path, tmp_path / "older.snap")
    if (tmp_path / "older.snap").exists():
        with Image.open(tmp_path / "older.snap") as image:
            assert image.verify() != []


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """An XFS with reflinks, on a loop device."""
    for program in ("mkfs.xfs", "mount", "umount"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (tests/lab/install.sh)")
    if os.geteuid():
        pytest.skip("only root may mount a file system")
    disk, mounted = tmp_path / "disk.img", tmp_path / "mounted"
    mounted.mkdir()
    with disk.open("wb") as file:
        file.truncate(512 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", disk], check=True, timeout=60)
    done = subprocess.run(
        ["mount", "-o", "loop", disk, mounted], check=False, timeout=60, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"an XFS cannot be mounted on a loop device here: {done.stderr.strip()}")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", mounted], check=True, timeout=60)


def free(directory: Path) -> int:
    subprocess.run(["sync", "-f", directory], check=True, timeout=60)
    found = os.statvfs(directory)
    return found.f_bfree * found.f_frsize


@pytest.mark.parametrize("shape", ["whole", "separate"])
def test_on_xfs_the_two_files_share_their_memory(xfs, shape):
    separate = {"memory_path": xfs / "vm.mem"} if shape == "separate" else {}
    states = fresh_machine(None)
    content = memoryview(bytearray(os.urandom(RAM_LEN)))
    save(xfs / "vm.snap", content, sections=states, facts=FACTS, release=NEWEST, **separate)
    before = free(xfs)
    calls: list[str] = []
    with host.inject(lambda call, _arguments: calls.append(call)):
        done = convert(xfs / "vm.snap", xfs / "older.snap")
    assert done.shared
    assert done.written.written == 0
    assert "FICLONERANGE" in calls
    assert "copy_file_range" not in calls
    assert before - free(xfs) < RAM_LEN // 4, "the new file has memory of its own"
    assert holds(xfs / "older.snap") == content
    with (xfs / ("vm.mem" if separate else "vm.snap")).open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(b"another")
    assert holds(xfs / "older.snap") == content, "what was shared is written to, and parts"


def test_what_is_shared_keeps_its_holes(xfs):
    path = snapshot(xfs / "vm.snap")
    assert convert(path, xfs / "older.snap").shared
    assert blocks(xfs / "older.snap") <= blocks(path) + (64 << 10) < RAM_LEN
    assert holds(xfs / "older.snap") == holds(path)


def test_every_section_says_the_version_that_the_release_writes(tmp_path):
    path = snapshot(tmp_path / "vm.snap")
    convert(path, tmp_path / "older.snap", "0.2.0")
    with Image.open(tmp_path / "older.snap") as image:
        for entry in image.entries:
            state = image.sections().states[SectionId(entry.kind, entry.instance)]
            assert schema_of(state).version == entry.version
