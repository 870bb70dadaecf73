"""Disks on the host: opened, locked, recognised after a save, refused by name, and left without a trace when it fails."""

import errno
import os
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from snapkit import host, host_memory
from snapkit.errors import ConfigError, HostError, IncompatibleHost, SnapkitError
from snapkit.state.virtio_block import LayerState
from snapkit.vmm.backends.disk import DiskOptions, DiskOverrides, open_disk, reopen_disk
from snapkit.vmm.backends.worker import Worker
from tests.vmm.backends.gate import opened_by_cancel

LENGTH = 64 << 10
NO_OVERRIDES = DiskOverrides()


@pytest.fixture
def image(tmp_path, monkeypatch):
    """A disk image, named relatively."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk.img").write_bytes(bytes(range(256)) * (LENGTH // 256))
    (tmp_path / "over").mkdir()
    return "disk.img"


@pytest.fixture
def ram():
    at = host_memory.mmap(
        LENGTH, host_memory.PROT_READ | host_memory.PROT_WRITE, host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS
    )
    yield at
    host_memory.munmap(at, LENGTH)


def fds():
    """Return what this process has open; the fd that lists them is gone when it is looked at."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found.append((int(fd), os.readlink(f"/proc/self/fd/{fd}")))
    return sorted(found)


def write(disk, ram, offset, payload):
    host_memory.copy_in(ram, payload)
    disk.image.write(offset, [(ram, len(payload))], len(payload))


def read(disk, ram, offset, length):
    disk.image.read(offset, [(ram, length)])
    return host_memory.copy_out(ram, length)


def saved(image, **options):
    """Return what a machine that had this disk was saved with."""
    disk = open_disk(DiskOptions(id="root", path=image, **options))
    state = disk.settle()
    disk.close()
    return state


def reopen(state, overrides=NO_OVERRIDES, *, capacity=LENGTH // 512):
    return reopen_disk(state, overrides, ident="root", capacity=capacity)


def said(refused):
    return [str(finding) for finding in refused.value.findings]


# Opening


def test_disk_tells_its_files_as_they_were_given(image):
    state = saved(image)
    found = os.stat(image)
    assert state.layers == [
        LayerState(path="disk.img", format="raw", length=LENGTH, mtime_ns=found.st_mtime_ns, inode=found.st_ino)
    ]
    assert not state.readonly


def test_part_of_a_sector_at_the_end_is_not_part_of_the_disk(image):
    with open(image, "ab") as file:
        file.write(b"x" * 100)
    disk = open_disk(DiskOptions(id="root", path=image))
    assert disk.capacity == LENGTH // 512
    assert disk.describe().layers[0].length == LENGTH + 100
    disk.close()


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("missing.img", "missing.img: no such file or directory"),
        ("over", "over is a directory"),
        ("disk.img/x", "disk.img/x: not a directory"),
        ("pipe", "pipe is a FIFO"),
        ("/dev/null", "/dev/null is a character device"),
        ("empty", "empty has 0 bytes, must have at least 512"),
        ("", "is no path"),
        ("a\0b", "is no path"),
        ("x\udcff", "is no text"),
    ],
)
@pytest.mark.parametrize("readonly", [False, True])
@pytest.mark.usefixtures("image")
def test_path_that_is_no_image_is_refused_by_name(path, why, readonly):
    os.mkfifo("pipe")
    open("empty", "w").close()
    before = fds()
    with pytest.raises(ConfigError, match="disk root: ") as refused:
        open_disk(DiskOptions(id="root", path=path, readonly=readonly))
    assert why in str(refused.value) or (path == "over" and "over: is a directory" in str(refused.value))
    assert fds() == before


def test_overlay_and_readonly_together_are_refused(image):
    with pytest.raises(ConfigError, match="overlay= and readonly"):
        open_disk(DiskOptions(id="root", path=image, readonly=True, overlay="over"))


def test_serial_is_the_id_unless_given_and_never_too_long(image):
    for options, serial in (
        (DiskOptions(id="root", path=image, readonly=True), b"root"),
        (DiskOptions(id="a" * 32, path=image, readonly=True), b"a" * 20),
        (DiskOptions(id="root", path=image, readonly=True, serial="S-1"), b"S-1"),
    ):
        disk = open_disk(options)
        assert disk.serial == serial
        disk.close()
    with pytest.raises(ConfigError, match="at most 20 bytes"):
        open_disk(DiskOptions(id="root", path=image, serial="s" * 21))


def test_overlay_directory_that_is_missing_is_refused_by_name(image):
    before = fds()
    with pytest.raises(ConfigError, match=r"no overlay nowhere/root-[0-9a-f]{16}.overlay: no such file"):
        open_disk(DiskOptions(id="root", path=image, overlay="nowhere"))
    assert fds() == before


# Locks


def test_image_that_is_written_belongs_to_one_machine_and_its_holder_is_named(image):
    disk = open_disk(DiskOptions(id="root", path=image))
    for readonly in (False, True):
        with pytest.raises(ConfigError, match=rf"disk\.img is in use by this process, pid {os.getpid()}"):
            open_disk(DiskOptions(id="other", path=image, readonly=readonly))
    disk.close()
    open_disk(DiskOptions(id="other", path=image)).close()


def test_holder_in_another_process_is_named_with_its_command(image):
    program = "import fcntl,sys; f=open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError) as refused:
            open_disk(DiskOptions(id="root", path=image))
        holder.communicate("")
    assert f"in use by pid {holder.pid} ({sys.executable} -c import fcntl" in str(refused.value)


def test_machines_share_an_image_that_neither_writes(image):
    disks = [
        open_disk(DiskOptions(id="a", path=image, readonly=True)),
        open_disk(DiskOptions(id="b", path=image, overlay="over")),
        open_disk(DiskOptions(id="b", path=image, overlay="over")),
    ]
    with pytest.raises(ConfigError, match="path=, overlay= or readonly"):
        open_disk(DiskOptions(id="c", path=image))
    for disk in disks:
        disk.close()


def test_file_system_without_locks_is_used_without(image):
    def hook(call, _arguments):
        if call == "flock":
            raise OSError(errno.ENOLCK, "injected")

    with host.inject(hook):
        disk = open_disk(DiskOptions(id="root", path=image, overlay="over"))
    disk.close()


def test_holder_is_unnamed_where_proc_cannot_tell(image):
    disk = open_disk(DiskOptions(id="root", path=image))

    def hook(call, arguments):
        if call == "open_fd" and str(arguments[0]).startswith("/proc"):
            raise OSError(errno.EACCES, "injected")

    with host.inject(hook), pytest.raises(ConfigError, match="in use by another process"):
        open_disk(DiskOptions(id="other", path=image))
    disk.close()


# Restoring


def test_saved_disk_opens_again_unchanged(image, ram):
    disk = open_disk(DiskOptions(id="root", path=image))
    write(disk, ram, 512, b"q" * 512)
    state = disk.settle()
    disk.close()
    again = reopen(state)
    assert read(again, ram, 512, 512) == b"q" * 512
    assert again.settle() == state
    again.close()


def test_missing_image_is_refused_by_name(image):
    state = saved(image)
    os.unlink(image)
    with pytest.raises(IncompatibleHost) as refused:
        reopen(state)
    assert said(refused) == [
        "virtio-block/root.host.layers[0].path is disk.img: no such file or directory, must be an image"
    ]


def test_image_of_another_length_is_refused_with_both(image):
    state = saved(image)
    with open(image, "ab") as file:
        file.write(bytes(512))
    with pytest.raises(IncompatibleHost) as refused:
        reopen(state)
    assert said(refused)[0] == (
        f"virtio-block/root.host.layers[0].length is {LENGTH + 512} (disk.img), must be {LENGTH}, as it was saved"
    )


def test_image_that_was_written_since_is_refused_and_may_be_accepted(image):
    state = saved(image)
    os.utime(image, ns=(0, 12345))
    before = fds()
    with pytest.raises(IncompatibleHost) as refused:
        reopen(state)
    wanted = state.layers[0].mtime_ns
    assert said(refused) == [
        f"virtio-block/root.host.layers[0].mtime_ns is 12345 (disk.img), must be {wanted}, as it was saved"
    ]
    assert fds() == before
    reopen(state, DiskOverrides(accept_changed=True)).close()


def test_block_device_is_opened_again_only_when_the_operator_says_so(image, monkeypatch):
    # as one looks from here: its length is known, its times and inode say nothing
    monkeypatch.setattr(host, "is_regular", lambda _mode: False)
    monkeypatch.setattr(host, "file_type", lambda _mode: "a block device")
    state = saved(image)
    with pytest.raises(IncompatibleHost) as refused:
        reopen(state)
    assert [(finding.path, finding.rule) for finding in refused.value.findings] == [
        ("host.layers[0].path", "disk.device")
    ]
    for overrides in (DiskOverrides(path=str(image)), DiskOverrides(accept_changed=True)):
        reopen(state, overrides).close()


def test_copy_under_the_same_name_is_refused_by_its_inode(image):
    state = saved(image)
    with open(image, "rb") as old, open("copy", "wb") as new:
        new.write(old.read())
    os.utime("copy", ns=(0, state.layers[0].mtime_ns))
    os.replace("copy", image)
    with pytest.raises(IncompatibleHost, match=r"layers\[0\]\.inode is \d+ \(disk.img\)"):
        reopen(state)


def test_copy_under_another_name_is_taken_by_path(image, ram):
    state = saved(image)
    with open(image, "rb") as old, open("copy", "wb") as new:
        new.write(old.read())
    original = open_disk(DiskOptions(id="root", path=image))
    clone = reopen(state, DiskOverrides(path="copy"))
    write(clone, ram, 0, b"c" * 512)
    assert read(original, ram, 0, 512) != b"c" * 512
    assert clone.settle().layers[0].path == "copy"
    clone.close()
    original.close()


def test_copy_of_another_capacity_is_refused(image):
    state = saved(image)
    with open("small", "wb") as file:
        file.write(bytes(512))
    before = fds()
    for overlay in (None, "over"):
        with pytest.raises(IncompatibleHost) as refused:
            reopen(state, DiskOverrides(path="small", overlay=overlay))
        assert said(refused) == ["virtio-block/root.capacity is 1 (small), must be 128 sectors, as its guest knows it"]
        assert fds() == before
        assert os.listdir("over") == []


def test_clone_of_a_running_machine_gets_its_own_overlay_or_names_the_holder(image, ram):
    original = open_disk(DiskOptions(id="root", path=image))
    state = original.settle()
    with pytest.raises(ConfigError, match=r"disk\.img is in use by this process"):
        reopen(state)
    original.close()
    clones = [reopen(state, DiskOverrides(overlay="over")) for _ in range(2)]
    for number, clone in enumerate(clones):
        write(clone, ram, 0, bytes([number]) * 512)
    assert [read(clone, ram, 0, 1) for clone in clones] == [b"\0", b"\1"]
    for clone in clones:
        clone.close()
    assert len(os.listdir("over")) == 2


def test_overlay_becomes_a_layer_under_the_next_restore(image, ram):
    first = open_disk(DiskOptions(id="root", path=image, overlay="over"))
    write(first, ram, 4096, b"1" * 4096)
    state = first.settle()
    first.close()
    assert [layer.format for layer in state.layers] == ["raw", "overlay"]
    assert state.layers[1].path.startswith("over/root-")
    second = reopen(state, DiskOverrides(overlay="over"))
    write(second, ram, 8192, b"2" * 4096)
    assert read(second, ram, 4096, 8192) == b"1" * 4096 + b"2" * 4096
    later = second.settle()
    assert later.layers[:2] == state.layers
    second.close()
    third = reopen(later)
    assert read(third, ram, 4096, 8192) == b"1" * 4096 + b"2" * 4096
    third.close()
    os.unlink(state.layers[1].path)
    with pytest.raises(IncompatibleHost, match=r"layers\[1\]\.path is over/"):
        reopen(later)


def test_all_layers_that_are_wrong_are_told_at_once(image):
    state = saved(image, overlay="over")
    os.utime(image, ns=(0, 1))
    os.utime(state.layers[1].path, ns=(0, 2))
    with pytest.raises(IncompatibleHost) as refused:
        reopen(state)
    assert [text.partition(" is ")[0] for text in said(refused)] == [
        "virtio-block/root.host.layers[0].mtime_ns",
        "virtio-block/root.host.layers[1].mtime_ns",
    ]


def test_layer_that_is_no_overlay_is_refused(image):
    state = saved(image, overlay="over")
    with open(state.layers[1].path, "r+b") as file:
        file.write(b"nonsense")
    with pytest.raises(IncompatibleHost, match="is no overlay"):
        reopen(state, DiskOverrides(accept_changed=True))


def test_disk_opened_readonly_locks_nothing_for_writing_and_stays_so(image, ram):
    state = saved(image)
    disks = [reopen(state, DiskOverrides(readonly=True)) for _ in range(2)]
    assert all(disk.readonly for disk in disks)
    with pytest.raises(HostError):
        write(disks[0], ram, 0, bytes(512))
    again = disks[0].settle()
    for disk in disks:
        disk.close()
    assert again.readonly
    assert again.layers == state.layers
    kept = reopen(again)
    assert kept.readonly
    kept.close()
    writable = reopen(again, DiskOverrides(overlay="over"))
    write(writable, ram, 0, bytes(512))
    writable.close()


def test_number_of_layers_ends_somewhere(image):
    state = saved(image, overlay="over")
    for _ in range(6):
        disk = reopen(state, DiskOverrides(overlay="over"))
        state = disk.settle()
        disk.close()
    assert len(state.layers) == 8
    before = fds()
    with pytest.raises(ConfigError, match="8 layers, must have fewer"):
        reopen(state, DiskOverrides(overlay="over"))
    assert fds() == before


def test_withdrawn_disk_takes_its_new_overlay_away(image):
    state = saved(image)
    reopen(state, DiskOverrides(overlay="over")).withdraw()
    assert os.listdir("over") == []
    disk = reopen(saved(image, overlay="over"))
    disk.withdraw()
    assert len(os.listdir("over")) == 1


def test_an_overlay_that_is_looked_at_again_stays_one(image, ram):
    disk = open_disk(DiskOptions(id="root", path=image, overlay="over"))
    write(disk, ram, 512, b"new")
    before = disk.describe()
    assert (disk.is_at(before.layers[-1].path), disk.is_at(image)) == (True, False)
    assert disk.refresh(before.layers[-1].path) == before
    assert read(disk, ram, 512, 3) == b"new"
    disk.withdraw()
    assert os.listdir("over") == []


# Faults


def nth_call(number):
    left = iter(range(number, -1, -1))

    def hook(_call, _arguments):
        if next(left, None) == 0:
            raise OSError(errno.EIO, "injected")

    return hook


@pytest.mark.parametrize("how", ["open", "open overlay", "reopen", "reopen overlay"])
def test_every_failing_call_leaves_no_fd_lock_or_file(image, how):
    state = saved(image, overlay="over")
    overlay = "over" if how.endswith("overlay") else None
    before, files = fds(), os.listdir("over")
    for fail_at in range(60):
        disk = None
        with host.inject(nth_call(fail_at)), suppress(SnapkitError):
            if how.startswith("open"):
                disk = open_disk(DiskOptions(id="root", path=image, overlay=overlay))
            else:
                disk = reopen(state, DiskOverrides(overlay=overlay))
        if disk is not None:
            disk.withdraw()
        assert fds() == before
        assert os.listdir("over") == files
        open_disk(DiskOptions(id="root", path=image)).close()  # nobody holds a lock
        if disk is not None:
            break
    assert fail_at >= 3  # open, lock, look


def test_sync_that_fails_fails_the_save_by_the_disks_name(image, ram):
    disk = open_disk(DiskOptions(id="root", path=image))
    write(disk, ram, 0, bytes(512))
    with host.inject(nth_call(0)), pytest.raises(HostError) as failed:
        disk.settle()
    assert failed.value.__notes__ == ["saving disk root, disk.img"]
    with pytest.raises(HostError, match="an earlier sync"):
        disk.settle()
    disk.close()


# The worker


class Note:
    def __init__(self, log, text, gate=None):
        self.log, self.text, self.gate = log, text, gate

    def run(self):
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.text == "bug":
            raise ValueError(self.text)
        self.log.append(self.text)


@pytest.fixture
def worker():
    made = Worker()
    made.start()
    yield made
    made.stop()


def test_worker_does_jobs_in_order_and_rings_when_they_are_done(worker):
    log: list[str] = []
    jobs = [Note(log, str(number)) for number in range(100)]
    for job in jobs:
        worker.submit(job)
    worker.drain()
    assert log == [str(number) for number in range(100)]
    assert os.eventfd_read(worker.done_fd) >= 1
    assert worker.finished() == jobs
    assert worker.finished() == []


def test_cancelled_jobs_neither_run_nor_are_heard_of(worker):
    log: list[str] = []
    gate = threading.Event()
    worker.submit(Note(log, "begun", gate))
    for number in range(5):
        worker.submit(Note(log, str(number)))
    opened = opened_by_cancel(worker, gate)
    worker.cancel()
    opened.join(30)
    assert log in (["begun"], [])  # it may not even have begun
    assert worker.finished() == []
    worker.submit(Note(log, "after"))
    worker.drain()
    assert log[-1] == "after"
    assert len(worker.finished()) == 1


def test_jobs_without_a_thread_are_done_by_who_waits_for_them():
    log: list[str] = []
    worker = Worker()
    worker.submit(Note(log, "a"))
    assert log == []
    worker.drain()
    assert log == ["a"]
    assert len(worker.finished()) == 1


def test_jobs_from_before_the_thread_are_done_by_it():
    log: list[str] = []
    worker = Worker()
    worker.submit(Note(log, "a"))
    worker.start()
    worker.start()
    worker.stop()
    worker.stop()
    assert log == ["a"]
    assert len(worker.finished()) == 1


def test_bug_in_a_job_comes_out_at_the_loop_and_the_thread_goes_on(worker):
    log: list[str] = []
    worker.submit(Note(log, "bug"))
    worker.submit(Note(log, "next"))
    worker.drain()
    with pytest.raises(ValueError, match="bug"):
        worker.finished()
    assert log == ["next"]


def test_worker_makes_its_thread_for_the_first_job():
    log: list[int] = []

    class Where:
        def run(self):
            log.append(threading.get_ident())

    worker, calls = Worker(), []
    with host.inject(lambda name, _arguments: calls.append(name)):
        worker.start()
        assert calls == ["eventfd"]
        worker.submit(Where())
        worker.submit(Where())
        worker.drain()
        worker.stop()
    assert calls == ["eventfd", "start_thread"]
    assert len(set(log)) == 1
    assert threading.get_ident() not in log


def test_job_is_done_by_who_submits_it_where_no_thread_is_to_be_had():
    log: list[str] = []
    worker = Worker()
    worker.start()
    with host.inject(nth_call(0)):
        worker.submit(Note(log, "a"))
        assert log == ["a"]
        assert os.eventfd_read(worker.done_fd) == 1
        assert len(worker.finished()) == 1
    gate = threading.Event()
    worker.submit(Note(log, "b", gate))
    gate.set()  # it would wait for ever if it were done here
    worker.stop()
    assert log == ["a", "b"]


def test_worker_that_cannot_start_leaves_nothing():
    before = fds()
    worker = Worker()
    with host.inject(nth_call(0)), pytest.raises(HostError):
        worker.start()
    assert fds() == before
    assert worker.done_fd == -1
    worker.drain()
