"""What fails leaves nothing behind: no fd, no thread, no mapping of guest RAM, of KVM or of the file.

Every step of a restore is made to fail in turn, then every system call of a restore, of a boot and of a save.
"""

import errno
import fcntl
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapkit import host, host_memory
from snapkit.errors import HostError, SnapkitError, StateViolation
from snapkit.restore.pipeline import Step, Timeline, run_steps
from snapkit.restore.plan import Steps
from snapkit.restore.restore import prepare
from snapkit.restore.save import save_snapshot
from snapkit.restore.target import Target
from snapkit.units import MIB
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import BootConfig, Machine
from snapkit.vmm.run_state import RunState
from tests.guests.build import guest
from tests.kvm.harness import (
    DEMO,
    EIO,
    Census,
    Tape,
    boot_once,
    booted,
    fails_at,
    restore_once,
    restored,
    spoiled,
)

CALLS_MAX = 400


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A snapshot of a working machine of two CPUs."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return ""  # the test itself says what is missing
    path = str(tmp_path_factory.mktemp("snapshot") / "smp.snap")
    with booted(guest("smp"), vcpus=2) as rig:
        rig.run()
        rig.tape.wait_for(" cpus 2 ")
        return rig.save(path)


@pytest.fixture
def file(snapshot: str, tmp_path: Path) -> str:
    """The same in a folder that the census watches."""
    path = str(tmp_path / "smp.snap")
    os.link(snapshot, path)
    return path


class Broken(Exception):
    pass


def breaking(_target: Target) -> None:
    raise Broken("made to fail")


def steps_of(path: str) -> int:
    with prepare(path) as prepared:
        return len(prepared.steps)


@contextmanager
def bare_machine() -> Iterator[Machine]:
    """A machine whose steps are what cleans up: nothing here closes it."""
    with Loop() as loop:
        yield Machine(loop, Tape())


def run_on(machine: Target, steps: Steps) -> None:
    run_steps(steps, machine, Timeline())


def test_a_restore_that_fails_at_any_step_leaves_the_process_as_it_was(file, census):
    for place in range(steps_of(file)):
        with bare_machine() as machine, prepare(file) as prepared:
            steps = list(prepared.steps)
            broken = steps[place]
            steps[place] = Step(broken.stage, broken.name, breaking, broken.undo)
            with pytest.raises(Broken) as caught:
                run_on(machine, steps)
            assert caught.value.__notes__ == [f"in step {steps[place].stage}: {steps[place].name}"]
        census.check(steps[place].name)


def test_a_failure_in_the_middle_of_undoing_is_reported_beside_the_first_and_the_rest_is_undone(file, census):
    with bare_machine() as machine, prepare(file) as prepared:
        steps = list(prepared.steps)
        undo = steps[3].undo
        assert undo is not None

        def half(target: Target, undo: Callable[[Target], None] = undo) -> None:
            undo(target)
            raise HostError("close", errno.EIO)

        steps[3] = Step(steps[3].stage, steps[3].name, steps[3].do, half)
        steps[-1] = Step("run", "made to fail", breaking)
        with pytest.raises(Broken) as caught:
            run_on(machine, steps)
        notes = "\n".join(caught.value.__notes__)
        assert "in step run: made to fail" in notes
        assert f"undoing {steps[3].stage}: {steps[3].name} failed too: close() failed: EIO" in notes
    census.check()


def test_what_was_prepared_runs_once_as_the_machine_has_its_sections_then(file, census):
    with Loop() as loop, Machine(loop, Tape()) as machine, prepare(file, paused=True) as prepared:
        prepared.run(machine)
        saved = machine.save()
        with pytest.raises(StateViolation, match="prepare it again"):
            prepared.run(machine)
        assert machine.save().keys() == saved.keys() == prepared.sections.keys()
    census.check()


@pytest.mark.parametrize("verify", [False, True], ids=["mapped", "copied"])
def test_a_restore_that_fails_at_any_system_call_leaves_the_process_as_it_was(file, census, verify):
    restore_once(file, verify_memory=verify).close()  # the host was asked what it can do: no later restore asks
    assert fail_each(lambda: restore_once(file, verify_memory=verify), census) > 50


def fail_each(make: Callable[[], Machine], census: Census) -> int:
    """Fail every system call of *make* in turn; returns how many there are."""
    return next(at for at in range(CALLS_MAX) if not fails_at(at, make, census))


def test_a_restore_whose_undoing_fails_as_well_says_so_and_still_closes_every_fd_and_thread(file, census):
    noted = 0
    for at in range(0, CALLS_MAX, 3):
        hook, seen = spoiled(at, forever=True)
        with host.inject(hook):
            try:
                restore_once(file, verify_memory=False).close()
            except SnapkitError as error:
                noted += any("failed too" in note and "munmap" in note for note in getattr(error, "__notes__", ()))
        if len(seen) <= at:
            break
        census.unmap_rest()  # a munmap that was made to fail cannot have unmapped
        census.check(seen[at])
    assert noted > 5


@pytest.mark.parametrize("cpu", ["host", "baseline"])
def test_a_boot_that_fails_at_any_system_call_leaves_the_process_as_it_was(census, cpu):
    config = BootConfig(kernel=DEMO, memory=2 * MIB, vcpus=2, cpu=cpu)
    assert fail_each(lambda: boot_once(config), census) > 30


@pytest.mark.parametrize("at", [0, 1])
def test_a_loop_that_cannot_be_made_leaves_nothing(census, at):
    hook, seen = spoiled(at)
    with host.inject(hook), pytest.raises(HostError, match="EIO"):
        Loop()
    census.check(seen[at])


TOLERATED = re.compile(r"listdir|unlink|open_fd\('/proc/self/|read|pread|data_ranges|_seek")
"""Calls of a save that tidy up, or look for a shorter way: their failure harms nobody."""


def test_a_save_that_fails_at_any_system_call_leaves_the_machine_unharmed_and_nothing_in_the_folder(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    path = str(folder / "machine.snap")
    with booted(guest("page_cross", STORES_PER_LINE="5u")) as rig:
        for at in range(CALLS_MAX):
            rig.machine.resume()
            rig.tape.wait_grown(1)
            hook, seen = spoiled(at)
            told = ""
            with host.inject(hook):
                try:
                    rig.machine.pause()
                    save_snapshot(rig.machine, path)
                except SnapkitError as error:
                    told = str(error)
            if told:
                assert EIO.search(told), told
            else:
                assert len(seen) <= at or TOLERATED.match(seen[at]), f"{seen[at]} failed and nobody noticed"
            assert rig.machine.run_state is RunState.PAUSED, seen[at]
            left = os.listdir(folder)
            if len(seen) <= at:
                assert left == ["machine.snap"]
                break
            if left == ["machine.snap"]:  # failed after the rename, or tolerated: whole and new
                with restored(path):
                    os.unlink(path)
            else:
                assert left == [], seen[at]
        else:
            raise AssertionError(f"a save makes more than {CALLS_MAX} system calls")
        rig.healthy()
        before = rig.tape.text
    with restored(path) as rig:
        rig.run()
        rig.tape.wait_for("cross", 3)
        numbers = [int(number) for number in re.findall(r"cross (\d+)\n", before + rig.tape.text)]
    assert numbers == list(range(5, 5 * len(numbers) + 1, 5))


def test_a_failed_save_leaves_the_file_that_was_there(tmp_path):
    path = str(tmp_path / "machine.snap")
    with booted() as rig:
        rig.run()
        rig.save(path)
        with open(path, "rb") as file:
            before = file.read()

        def fail_rename(call: str, _arguments: tuple[object, ...]) -> None:
            if call == "rename":
                raise OSError(errno.ENOSPC, "injected")

        with host.inject(fail_rename), pytest.raises(HostError, match="ENOSPC"):
            save_snapshot(rig.machine, path)
        with open(path, "rb") as file:
            assert file.read() == before
        assert os.listdir(tmp_path) == ["machine.snap"]


def test_the_census_sees_what_is_left_behind(census: Census, tmp_path):
    census.check()
    with subprocess.Popen(["sleep", "60"]) as child:
        with pytest.raises(AssertionError):
            census.check()
        child.kill()
    census.check()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "left.sock"))
    listener.close()
    with pytest.raises(AssertionError):
        census.check()
    os.unlink(tmp_path / "left.sock")
    with open(tmp_path / "locked", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert census.take().locks != census.start.locks
    fd = os.open("/dev/kvm", os.O_RDWR)
    with pytest.raises(AssertionError):
        census.check()
    os.close(fd)
    address = host_memory.mmap(MIB, host_memory.PROT_READ, host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS)
    with pytest.raises(AssertionError):
        census.check()
    host_memory.munmap(address, MIB)
    census.check()
