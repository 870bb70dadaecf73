"""An unmodified Debian kernel as snapkit's guest: boots, is snapshotted while it works, comes back from one file.

Snapshots lie on the outer machine's own file system, as a host's would: memory is mapped from them. The chain of runs is
shared by the tests: `snapshot` boots by bzImage and is saved mid-work, `restored` is that file in a
new process, `control` is the same work by the ELF kernel and never saved.
"""

import contextlib
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapkit.errors import EXIT_SIGINT
from tests.lab import guest
from tests.lab.guest import GuestFiles
from tests.lab.losses import excused
from tests.lab.outer import LabError, Outer, Result
from tools import equal

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

RUN_S = 200  # ten times the usual
COUNT, WORK, SNAPSHOT_AT = 60, 100, "W0 5 "
PROBE = Path(equal.__file__)

ALLOWED_KERNEL_LINES = (
    # An emulated host is slow enough that a timer interrupt may be, in any run.
    r"hrtimer: interrupt took N ns",
)


@dataclass(frozen=True)
class Saved:
    """A run that ended in a snapshot: what it printed, and the file."""

    result: Result
    file: Path
    digest: str


def cmdline(scenario: str, **options: int | str) -> str:
    words = [f"{name}={value}" for name, value in options.items()]
    return " ".join(["console=ttyS0 quiet panic=-1 dmesg=mark", f"scenario={scenario}", *words])


def boot(kernel: Path, files: GuestFiles, line: str, *options: str, vcpus: int = 2) -> list[str]:
    base = ["boot", str(kernel), "--initrd", str(files.initrd), "--memory", "256M", "--vcpus", str(vcpus)]
    return [*base, "--cmdline", line, *options]


def digest(outer: Outer, file: Path) -> str:
    result = outer.run(["sha256sum", file], timeout=RUN_S)
    assert result.code == 0, result
    return result.stdout.split()[0]


def attempt(outer: Outer, words: list[str], *, code: int = 0, stdin: bytes | None = None) -> Result:
    """Run snapkit to its end, again if the emulated host lost the guest."""
    while excused(result := outer.run(outer.snapkit(*words), timeout=RUN_S, stdin=stdin), code=code):
        pass
    return result


def saved(outer: Outer, words: list[str], file: Path, when: str, *, stdin: bytes | None = None) -> Saved:
    asked = [*words, "--snapshot-when", when, "--snapshot-to", str(file)]
    result = attempt(outer, asked, stdin=stdin)
    assert result.code == 0, result
    return Saved(result, file, digest(outer, file))


def faults(console: str, *, vcpus: int = 2, count: int = COUNT, work: int = WORK) -> list[str]:
    found = guest.count_lines(console)
    missing = [f"no line of CPU {cpu}" for cpu in range(vcpus) if cpu not in found]
    return missing + [fault for cpu in found for fault in guest.count_faults(found[cpu], last=count, work=work)]


def numberless(lines: list[str]) -> set[str]:
    return {re.sub(r"\d+", "N", line) for line in lines}


@pytest.fixture(scope="module")
def snapshot(outer: Outer, guest_files: GuestFiles) -> Saved:
    words = boot(guest_files.bzimage, guest_files, cmdline("count", count=COUNT, work=WORK))
    return saved(outer, words, outer.work / "first.snap", SNAPSHOT_AT)


@pytest.fixture(scope="module")
def restored(outer: Outer, snapshot: Saved) -> Result:
    return attempt(outer, ["restore", str(snapshot.file)])


@pytest.fixture(scope="module")
def control(outer: Outer, guest_files: GuestFiles) -> Result:
    words = boot(guest_files.vmlinux, guest_files, cmdline("count", count=COUNT, work=WORK))
    return attempt(outer, words)


@pytest.mark.smoke
def test_linux_saved_while_both_cpus_work_goes_on_in_a_new_process_with_no_line_lost(
    snapshot: Saved, restored: Result
) -> None:
    before = guest.count_lines(snapshot.result.stdout)
    assert set(before) == {0, 1}, snapshot.result
    assert restored.code == 0, restored
    assert faults(snapshot.result.stdout + restored.stdout) == []
    assert restored.stdout.count("\nEND") == 1


@pytest.mark.smoke
def test_the_restored_guest_left_its_file_as_it_was(outer: Outer, snapshot: Saved, restored: Result) -> None:
    assert restored.code == 0, restored
    assert digest(outer, snapshot.file) == snapshot.digest


def test_uptime_goes_on_from_the_snapshot_and_the_clock_stays_kvms(snapshot: Saved, restored: Result) -> None:
    console = snapshot.result.stdout + restored.stdout
    last = max(line.uptime_s for lines in guest.count_lines(snapshot.result.stdout).values() for line in lines)
    end = float(guest.value(console, "UPTIME"))
    assert last < end < last + restored.seconds + 1
    assert guest.value(console, "CLOCKSOURCE") == "kvm-clock"


def test_linux_saved_and_restored_in_a_sandbox_goes_on_with_no_line_lost(outer: Outer, guest_files: GuestFiles) -> None:
    words = boot(guest_files.bzimage, guest_files, cmdline("count", count=20, work=WORK))
    with outer.sandbox():
        first = saved(outer, words, outer.work / "sandbox.snap", SNAPSHOT_AT)
        result = attempt(outer, ["restore", str(first.file)])
    assert "--sandbox" in result.argv
    assert result.code == 0, result
    assert faults(first.result.stdout + result.stdout, count=20) == []


def test_the_elf_kernel_boots_to_init_and_does_the_same_work(control: Result) -> None:
    assert control.code == 0, control
    assert "INIT " in control.stdout
    assert faults(control.stdout) == []


def test_after_the_mark_the_restored_kernel_says_nothing_that_an_unsaved_one_does_not(
    snapshot: Saved, restored: Result, control: Result
) -> None:
    said = numberless(guest.kernel_log_after_mark(snapshot.result.stdout + restored.stdout))
    usual = numberless(guest.kernel_log_after_mark(control.stdout))
    assert said - usual - set(ALLOWED_KERNEL_LINES) == set()


def test_three_machines_at_once_come_from_one_file(outer: Outer, snapshot: Saved) -> None:
    lost = True
    while lost:
        jobs = [outer.start(outer.snapkit("restore", snapshot.file), timeout=RUN_S) for _ in range(3)]
        results = [job.wait() for job in jobs]
        lost = sum(excused(result) for result in results) > 0
    for result in results:
        assert result.code == 0, result
        assert faults(snapshot.result.stdout + result.stdout) == []
    assert digest(outer, snapshot.file) == snapshot.digest


def test_a_snapshot_of_a_restored_machine_restores_for_three_generations(outer: Outer, snapshot: Saved) -> None:
    console, file = snapshot.result.stdout, snapshot.file
    for generation, when in ((2, "W0 20 "), (3, "W0 40 ")):
        child = saved(outer, ["restore", str(file)], outer.work / f"generation{generation}.snap", when)
        console, file = console + child.result.stdout, child.file
    result = attempt(outer, ["restore", str(file)])
    assert result.code == 0, result
    assert faults(console + result.stdout) == []


def test_the_console_takes_input_in_every_life(outer: Outer, guest_files: GuestFiles) -> None:
    words = boot(guest_files.bzimage, guest_files, cmdline("shell"))
    first = saved(outer, words, outer.work / "ready.snap", "READY")
    second = saved(outer, ["restore", str(first.file)], outer.work / "shell.snap", "ECHO one", stdin=b"one\n")
    result = attempt(outer, ["restore", str(second.file)], stdin=b"two\nexit\n")
    assert result.code == 0, result
    assert "ECHO two" in result.stdout
    assert "ECHO one" not in result.stdout


def test_eight_cpus_are_saved_and_restored(outer: Outer, guest_files: GuestFiles) -> None:
    words = boot(guest_files.bzimage, guest_files, cmdline("count", count=10, work=100), vcpus=8)
    first = saved(outer, words, outer.work / "eight.snap", "W7 4 ")
    result = attempt(outer, ["restore", str(first.file)])
    assert result.code == 0, result
    assert faults(first.result.stdout + result.stdout, vcpus=8, count=10, work=100) == []


@pytest.mark.parametrize(("options", "code"), [("", 8), ("reboot=t", 7)], ids=["reboot", "triple fault"])
def test_how_linux_resets_the_machine_is_told(outer: Outer, guest_files: GuestFiles, options: str, code: int) -> None:
    line = f"{cmdline('reboot')} {options}"
    result = attempt(outer, boot(guest_files.bzimage, guest_files, line, vcpus=1), code=code)
    assert result.code == code, result


def test_sigint_stops_a_linux_guest_cleanly(outer: Outer, snapshot: Saved) -> None:
    lost = True
    while lost:
        job = outer.start(outer.snapkit("restore", snapshot.file), timeout=RUN_S)
        with contextlib.suppress(LabError):
            job.expect("W0 ")
            job.signal(signal.SIGINT)
        result = job.wait()
        lost = excused(result, code=EXIT_SIGINT)
    assert (result.code, result.timed_out) == (130, False), result


def test_two_saves_of_the_same_machine_are_equal(outer: Outer, snapshot: Saved) -> None:
    result = outer.run([outer.snapkit()[0], PROBE, snapshot.file], timeout=RUN_S)
    assert (result.code, result.stdout) == (0, "equal\n"), result
