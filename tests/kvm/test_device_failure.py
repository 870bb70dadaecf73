"""Devices, too, leave nothing behind when something fails: no fd, thread or mapping, no overlay, socket or lock.

Every system call of a boot, of a restore and of a save of a machine at work is made to fail in turn, over both transports.
The suite takes every few of them, from a place that follows from the seed; `make soak` takes each.
"""

import errno
import fcntl
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from snapkit import host
from snapkit.errors import HostError, SnapkitError
from snapkit.restore.pipeline import Step, Timeline, run_steps
from snapkit.restore.restore import prepare
from snapkit.restore.save import save_snapshot
from snapkit.restore.target import Target
from snapkit.units import MIB
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import BootConfig, Machine
from snapkit.vmm.parts.fresh import Asked, Transport
from snapkit.vmm.run_state import RunState
from tests.guests.build import guest
from tests.guests.device_lines import device_sums
from tests.kvm.harness import EIO, Hook, Rig, Tape, booted, restored, spoiled, spoiled_on_this_thread
from tests.kvm.taps import free_taps, own_taps

CALLS_MAX = 600
MEMORY = 4 * MIB
STEP = 5
SEED = 20
TAP = "tap0"
SLICES = [pytest.param(False, id="slice"), pytest.param(True, id="every-call", marks=pytest.mark.soak)]


def places(every: bool, transport: str) -> Iterable[int]:
    """Which calls fail: each, or one in STEP."""
    return range(CALLS_MAX) if every else range(Random(f"{SEED} {transport}").randrange(STEP), CALLS_MAX, STEP)


@dataclass
class Ends:
    """The host ends of one machine, all in one folder."""

    folder: Path

    @property
    def image(self) -> str:
        return str(self.folder / "base.img")

    @property
    def uds(self) -> str:
        return str(self.folder / "v.sock")

    def prepare(self) -> "Ends":
        self.folder.mkdir(exist_ok=True)
        (self.folder / "base.img").write_bytes(bytes(MIB))
        return self

    def devices(self) -> tuple[Asked, ...]:
        return (
            Asked("virtio-block", "root", {"path": self.image, "overlay": str(self.folder)}),
            Asked("virtio-rng", "rng"),
            Asked("virtio-balloon", "balloon"),
            Asked("virtio-net", "eth0", {"tap": TAP}),
            Asked("virtio-vsock", "v0", {"cid": "3", "uds": self.uds}),
        )

    def overlays(self) -> list[str]:
        return [str(path) for path in self.folder.glob("*.overlay")]

    def check(self, context: object, *, there: Iterable[str] = ("base.img",)) -> None:
        """Assert that nothing is there but what is named, that nobody has a lock on it, nor the TAP."""
        assert sorted(os.listdir(self.folder)) == sorted(there), context
        assert free_taps() == [TAP], context
        for path in (self.image, *self.overlays()):
            fd = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(fd)


@pytest.fixture(scope="module", autouse=True)
def _taps() -> Iterator[None]:
    with own_taps(TAP):
        yield


def sums_of(text: str) -> list[str]:
    return re.findall(r"(io \d+ sum [0-9a-f]+) ", text)


def right(text: str) -> None:
    """Assert that the guest found all as it should be, from its first round on."""
    assert "failed" not in text, text
    found = sums_of(text)
    assert found == list(islice(device_sums(), len(found)))


@pytest.fixture
def ends(tmp_path: Path) -> Ends:
    return Ends(tmp_path / "ends").prepare()


@pytest.fixture(scope="module")
def snapshots() -> dict[Transport, tuple[str, str]]:
    """By transport, a snapshot of a machine at work, and what it had said; filled when it is asked for."""
    return {}


@pytest.fixture
def file(snapshots, transport: Transport, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> str:
    """The snapshot of *transport*, in a folder that the census watches. The disk that it was made with is used by nobody."""
    if transport not in snapshots:
        kept = Ends(tmp_path_factory.mktemp("kept")).prepare()
        with booted(guest("devices"), memory=MEMORY, devices=kept.devices(), transport=transport) as rig:
            rig.run()
            rig.serve_until("io 3 ")
            rig.save(str(kept.folder / "m.snap"))
            snapshots[transport] = str(kept.folder / "m.snap"), rig.tape.text
    os.link(snapshots[transport][0], tmp_path / "m.snap")
    return str(tmp_path / "m.snap")


BOOT_TOLERATED = re.compile(r"unlink\(")
"""The private name of a listening socket: a boot that cannot remove it goes on, and so may the test."""


@pytest.mark.parametrize("every", SLICES)
def test_a_boot_that_fails_at_any_system_call_leaves_nothing(ends, census, transport, every):
    config = BootConfig(kernel=guest("devices"), memory=MEMORY, devices=ends.devices(), transport=transport)
    calls = 0
    for at in places(every, transport):
        hook, seen = spoiled(at)
        machine, told = None, ""
        with Loop() as loop:
            with host.inject(hook):
                try:
                    machine = Machine.boot(config, loop, Tape())
                except SnapkitError as error:
                    told = str(error)
            if machine is not None:
                assert len(seen) <= at or BOOT_TOLERATED.match(seen[at]), f"{seen[at]} failed and nobody noticed"
                machine.close()
                for path in [*ends.overlays(), *ends.folder.glob(".*")]:
                    os.unlink(path)
            else:
                assert EIO.search(told), told
        calls = len(seen)
        census.check(seen[at : at + 1])
        ends.check(seen[at : at + 1])
        if calls <= at:
            break
    assert 70 < calls < CALLS_MAX


@pytest.mark.parametrize("every", SLICES)
def test_a_machine_whose_first_resume_fails_leaves_nothing_once_it_is_closed(ends, census, transport, every):
    config = BootConfig(kernel=guest("devices"), memory=MEMORY, devices=ends.devices(), transport=transport)
    for at in places(every, transport):
        hook, seen = spoiled_on_this_thread(at)
        told = ""
        with Loop() as loop, Machine.boot(config, loop, Tape()) as machine:
            with host.inject(hook):
                try:
                    machine.resume()
                except SnapkitError as error:
                    told = str(error)
            assert (machine.run_state is RunState.RUNNING) == (not told)
        if told:
            assert EIO.search(told), told
        else:
            assert len(seen) <= at or RESTORE_TOLERATED.match(seen[at]), f"{seen[at]} failed and nobody noticed"
            for path in ends.overlays():
                os.unlink(path)  # it ran, so it is kept
        census.check(seen[at : at + 1])
        ends.check(seen[at : at + 1])
        if len(seen) <= at:
            break


RESTORE_TOLERATED = re.compile(r"unlink\(|data_ranges|_seek|epoll_control|readv")
"""As in a boot. A socket device that cannot watch its listener tries again a second later: once, not for others. A card
whose TAP cannot be read takes no more from it, and its guest goes on."""


def restore_once(path: str, ends: Ends, *, verify_memory: bool = False) -> tuple[Machine, Loop]:
    """Restore for good, as the command line does: what cleans up are the steps, and the machine's own end."""
    overrides = {"root": {"overlay": str(ends.folder)}, "v0": {"uds": ends.uds}}
    loop = Loop()
    machine = Machine(loop, Tape(), verify_memory=verify_memory, overrides=overrides)
    try:
        with prepare(path) as prepared:
            prepared.run(machine)
    except BaseException:
        loop.close()
        raise
    return machine, loop


@pytest.mark.parametrize("every", SLICES)
def test_a_restore_that_fails_at_any_system_call_leaves_nothing(file, ends, census, transport, every):
    calls = watches = 0
    for at in places(every, transport):
        hook, seen = spoiled_on_this_thread(at)
        made, told = None, ""
        with host.inject(hook):
            try:
                made = restore_once(file, ends)
            except SnapkitError as error:
                told = str(error)
            calls = len(seen)
        if made is not None:
            machine, loop = made
            assert machine.run_state is RunState.RUNNING
            machine.close()
            loop.close()
            assert calls <= at or RESTORE_TOLERATED.match(seen[at]), f"{seen[at]} failed and nobody noticed"
            watches += calls > at and seen[at] == "epoll_control"
            for path in [*ends.overlays(), *ends.folder.glob(".*")]:
                os.unlink(path)
        else:
            assert EIO.search(told), told
        census.check(seen[at : at + 1])
        ends.check(seen[at : at + 1])
        if calls <= at:
            break
    assert 80 < calls < CALLS_MAX
    assert watches <= 1


def test_a_restore_that_fails_at_any_step_leaves_nothing(file, ends, census):
    overrides = {"root": {"overlay": str(ends.folder)}, "v0": {"uds": ends.uds}}
    with prepare(file) as prepared:
        count = len(prepared.steps)
    for place in range(count):
        with Loop() as loop, prepare(file) as prepared:
            steps = list(prepared.steps)

            def fail(_target: object) -> None:
                raise HostError("step", errno.EIO)

            steps[place] = replace(steps[place], do=fail)
            machine: Target = Machine(loop, Tape(), overrides=overrides)
            with pytest.raises(HostError, match="EIO"):
                run_steps(steps, machine, Timeline())
        census.check(steps[place].name)
        ends.check(steps[place].name)


def test_a_restore_that_fails_at_any_step_and_whose_every_undo_fails_too_reports_all_and_leaves_nothing(
    file, ends, census
):
    overrides = {"root": {"overlay": str(ends.folder)}, "v0": {"uds": ends.uds}}

    def fail(_target: object) -> None:
        raise HostError("step", errno.EIO)

    def undone_badly(step: Step[Target]) -> Step[Target]:
        def undo(target: Target) -> None:
            assert step.undo is not None
            step.undo(target)
            raise HostError("undo", errno.ENOSPC, step.name)

        return replace(step, undo=undo)

    with prepare(file) as prepared:
        count = len(prepared.steps)
    for place in range(count):
        with Loop() as loop, prepare(file) as prepared:
            steps = [undone_badly(step) for step in prepared.steps]
            steps[place] = replace(steps[place], do=fail)
            machine: Target = Machine(loop, Tape(), overrides=overrides)
            with pytest.raises(HostError, match="EIO") as caught:
                run_steps(steps, machine, Timeline())
        first, *others = caught.value.__notes__
        assert first == f"in step {steps[place].stage}: {steps[place].name}"
        assert [note.split(" failed too: ")[0] for note in others] == [
            f"undoing {step.stage}: {step.name}" for step in reversed(steps[:place])
        ]
        assert all("ENOSPC" in note for note in others)
        census.check(steps[place].name)
        ends.check(steps[place].name)


def test_a_restore_that_works_goes_on_with_its_own_overlay_and_leaves_it(file, ends, census, snapshots, transport):
    with restored(file, overrides={"root": {"overlay": str(ends.folder)}, "v0": {"uds": ends.uds}}) as rig:
        rig.run()
        rig.serve_until("io 6 ")
        right(snapshots[transport][1] + rig.tape.text)
        [overlay] = ends.overlays()
    census.check()
    ends.check("after", there=["base.img", os.path.basename(overlay)])


SAVE_TOLERATED = re.compile(r"listdir|unlink|open_fd\('/proc/self/|read|pread|data_ranges|_seek")
"""Calls that tidy up, or look for a shorter way: their failure harms nobody."""


@pytest.mark.parametrize("every", SLICES)
def test_a_save_that_fails_at_any_system_call_leaves_a_machine_that_runs_on_and_can_be_saved(
    ends, tmp_path, transport, every
):
    path, folder = str(tmp_path / "saves" / "m.snap"), tmp_path / "saves"
    folder.mkdir()
    with booted(guest("devices"), memory=MEMORY, devices=ends.devices(), transport=transport) as rig:
        rig.run()
        round_ = 2
        rig.serve_until(f"io {round_} ")
        fds = sorted(os.listdir("/proc/self/fd"))
        calls = 0
        for at in places(every, transport):
            rig.machine.pause()  # what the disk's worker is at ends here, and is not ours to fail
            hook, seen = spoiled_but_syncs(at)
            told = ""
            with host.inject(hook):
                try:
                    save_snapshot(rig.machine, path)
                except SnapkitError as error:
                    told = str(error)
            calls = len(seen)
            if told:
                assert EIO.search(told), told
            else:
                assert calls <= at or SAVE_TOLERATED.match(seen[at]), f"{seen[at]} failed and nobody noticed"
            assert rig.machine.run_state is RunState.PAUSED, seen[at]
            left = os.listdir(folder)
            assert left in ([], ["m.snap"]), (left, seen[at : at + 1])
            assert sorted(os.listdir("/proc/self/fd")) == fds, seen[at : at + 1]
            save_snapshot(rig.machine, path)  # at once, without a word in between
            os.unlink(path)
            go_on(rig)
            if calls <= at:
                break
        assert 40 < calls < CALLS_MAX
        rig.healthy()
        rig.save(path)
        before = rig.tape.text
    with restored(path) as again:
        again.run()
        again.serve_until(f"io {len(sums_of(before)) + 3} ")
        right(before + again.tape.text)


def go_on(rig: Rig) -> None:
    """Let the guest finish the round that it is at, and one more."""
    rig.run()
    rounds = rig.tape.text.count("sum ")
    rig.serve_until(f"io {rounds + 2} ")
    assert "failed" not in rig.tape.text, rig.tape.text


def spoiled_but_syncs(at: int) -> tuple[Hook, list[str]]:
    """As `spoiled`, but for fdatasync: what a disk lost must be told for ever after, which is another test's."""
    hook, seen = spoiled(at)

    def but_syncs(call: str, arguments: tuple[object, ...]) -> None:
        if call != "fdatasync":
            hook(call, arguments)

    return but_syncs, seen


def test_a_disk_whose_sync_failed_lets_its_machine_run_on_but_never_be_saved(ends, tmp_path, transport):
    def no_sync(call: str, _arguments: tuple[object, ...]) -> None:
        if call == "fdatasync":
            raise OSError(errno.EIO, "injected")

    with booted(memory=MEMORY, devices=ends.devices(), transport=transport) as rig:
        rig.run()
        rig.tape.wait_for("tick 3")
        with host.inject(no_sync), pytest.raises(HostError, match="fdatasync") as caught:
            rig.save(str(tmp_path / "m.snap"))
        assert "saving disk root" in "\n".join(caught.value.__notes__)
        rig.run()
        rig.tape.wait_grown(20)
        with pytest.raises(HostError, match="an earlier sync of the overlay failed"):
            rig.save(str(tmp_path / "m.snap"))
        rig.healthy()
    assert not (tmp_path / "m.snap").exists()


@pytest.mark.parametrize("every", SLICES)
def test_a_resume_that_fails_at_any_system_call_leaves_a_paused_machine_that_can_be_resumed(ends, transport, every):
    with booted(guest("devices"), memory=MEMORY, devices=ends.devices(), transport=transport) as rig:
        rig.run()
        rig.serve_until("io 2 ")
        for at in places(every, transport):
            rig.machine.pause()
            hook, seen = spoiled(at)
            told = ""
            with host.inject(hook):
                try:
                    rig.machine.resume()
                except SnapkitError as error:
                    told = str(error)
            if not told:
                break
            assert EIO.search(told), told
            assert rig.machine.run_state is RunState.PAUSED, seen[at]
            assert not rig.machine.board.running
            go_on(rig)
        else:
            raise AssertionError(f"a resume makes more than {CALLS_MAX} system calls")
        rig.healthy()
    right(rig.tape.text)
