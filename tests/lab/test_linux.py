"""An unmodified Debian kernel as snapkit's guest: boots, is snapshotted while it works, comes back from one file.

Snapshots lie on the outer machine's own file system, as a host's would: memory is mapped from them. The chain of runs is
shared by the tests: `snapshot` boots by the packed kernel and is saved mid-work, `restored` is that file in a
new process, `control` is the same work by the unpacked kernel and never saved.
"""

import contextlib
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from snapkit.errors import EXIT_SIGINT
from tests.lab import guest
from tests.lab.losses import excused
from tests.lab.outer import LabError, Result
from tests.lab.stage import Stage
from tools import equal

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

RUN_S = 200  # ten times the usual
COUNT, WORK, SNAPSHOT_AT = 60, 100, "W0 5 "
PROBE = Path(equal.__file__)


@dataclass(frozen=True)
class Saved:
    """A run that ended in a snapshot: what it printed, and the file."""

    result: Result
    file: Path
    digest: str


def cmdline(stage: Stage, scenario: str, **options: int | str) -> str:
    words = [f"{name}={value}" for name, value in options.items()]
    return " ".join([f"console={stage.architecture.console} quiet panic=-1 dmesg=mark", f"scenario={scenario}", *words])


def boot(stage: Stage, line: str, *, kernel: Path | None = None, vcpus: int = 2) -> list[str]:
    base = [
        "boot",
        str(kernel or stage.files.packed),
        "--initrd",
        str(stage.files.initrd),
        "--memory",
        "256M",
        "--vcpus",
        str(vcpus),
    ]
    return [*base, "--cmdline", line, "--rng"]


def digest(stage: Stage, file: Path) -> str:
    result = stage.outer.run(["sha256sum", file], timeout=RUN_S)
    assert result.code == 0, result
    return result.stdout.split()[0]


def attempt(stage: Stage, words: list[str], *, code: int = 0, stdin: bytes | None = None) -> Result:
    """Run snapkit to its end, again if the emulated host lost the guest."""

    def run() -> Result:
        return stage.outer.run(stage.outer.snapkit(*words), timeout=RUN_S, stdin=stdin)

    while excused(stage.architecture, result := run(), code=code):
        pass
    return result


def saved(stage: Stage, words: list[str], file: Path, when: str, *, stdin: bytes | None = None) -> Saved:
    asked = [*words, "--snapshot-when", when, "--snapshot-to", str(file)]
    result = attempt(stage, asked, stdin=stdin)
    assert result.code == 0, result
    return Saved(result, file, digest(stage, file))


def faults(console: str, *, vcpus: int = 2, count: int = COUNT, work: int = WORK) -> list[str]:
    found = guest.count_lines(console)
    missing = [f"no line of CPU {cpu}" for cpu in range(vcpus) if cpu not in found]
    return missing + [fault for cpu in found for fault in guest.count_faults(found[cpu], last=count, work=work)]


def numberless(lines: list[str]) -> set[str]:
    return {re.sub(r"\d+", "N", line) for line in lines}


@pytest.fixture(scope="module")
def snapshot(stage: Stage) -> Saved:
    words = boot(stage, cmdline(stage, "count", count=COUNT, work=WORK))
    return saved(stage, words, stage.outer.work / "first.snap", SNAPSHOT_AT)


@pytest.fixture(scope="module")
def restored(stage: Stage, snapshot: Saved) -> Result:
    return attempt(stage, ["restore", str(snapshot.file)])


@pytest.fixture(scope="module")
def control(stage: Stage) -> Result:
    words = boot(stage, cmdline(stage, "count", count=COUNT, work=WORK), kernel=stage.files.plain)
    return attempt(stage, words)


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
def test_the_entropy_devices_line_counts_on(stage: Stage, snapshot: Saved, restored: Result) -> None:
    before = guest.interrupts("\n".join(guest.between(snapshot.result.stdout, "DEVICES-BEGIN", "DEVICES-END")))
    after = guest.interrupts("\n".join(guest.between(restored.stdout, "INTERRUPTS-BEGIN", "INTERRUPTS-END")))
    (line,) = [name for name in before if "virtio0-input" in name]
    assert stage.architecture.interrupt_chips["pci"] in line
    assert 0 < sum(before[line]) < sum(after[line])


@pytest.mark.smoke
def test_the_restored_guest_left_its_file_as_it_was(stage: Stage, snapshot: Saved, restored: Result) -> None:
    assert restored.code == 0, restored
    assert digest(stage, snapshot.file) == snapshot.digest


def test_uptime_goes_on_from_the_snapshot_and_the_clock_stays_the_same(
    stage: Stage, snapshot: Saved, restored: Result
) -> None:
    console = snapshot.result.stdout + restored.stdout
    last = max(line.uptime_s for lines in guest.count_lines(snapshot.result.stdout).values() for line in lines)
    end = float(guest.value(console, "UPTIME"))
    assert last < end < snapshot.result.seconds + restored.seconds + 1
    assert guest.value(console, "CLOCKSOURCE") == stage.architecture.clocksource


def test_linux_saved_and_restored_in_a_sandbox_goes_on_with_no_line_lost(stage: Stage) -> None:
    words = boot(stage, cmdline(stage, "count", count=20, work=WORK))
    with stage.outer.sandbox():
        first = saved(stage, words, stage.outer.work / "sandbox.snap", SNAPSHOT_AT)
        result = attempt(stage, ["restore", str(first.file)])
    assert "--sandbox" in result.argv
    assert result.code == 0, result
    assert faults(first.result.stdout + result.stdout, count=20) == []


def test_the_unpacked_kernel_boots_to_init_and_does_the_same_work(control: Result) -> None:
    assert control.code == 0, control
    assert "INIT " in control.stdout
    assert faults(control.stdout) == []


def test_after_the_mark_the_restored_kernel_says_nothing_that_an_unsaved_one_does_not(
    snapshot: Saved, restored: Result, control: Result
) -> None:
    said = numberless(guest.kernel_log_after_mark(snapshot.result.stdout + restored.stdout))
    usual = numberless(guest.kernel_log_after_mark(control.stdout))
    assert said - usual == set()


def test_three_machines_at_once_come_from_one_file(stage: Stage, snapshot: Saved) -> None:
    lost = True
    while lost:
        jobs = [stage.outer.start(stage.outer.snapkit("restore", snapshot.file), timeout=3 * RUN_S) for _ in range(3)]
        results = [job.wait() for job in jobs]
        lost = sum(excused(stage.architecture, result) for result in results) > 0
    for result in results:
        assert result.code == 0, result
        assert faults(snapshot.result.stdout + result.stdout) == []
    assert digest(stage, snapshot.file) == snapshot.digest


def test_a_snapshot_of_a_restored_machine_restores_for_three_generations(stage: Stage, snapshot: Saved) -> None:
    console, file = snapshot.result.stdout, snapshot.file
    for generation, when in ((2, "W0 20 "), (3, "W0 40 ")):
        child = saved(stage, ["restore", str(file)], stage.outer.work / f"generation{generation}.snap", when)
        console, file = console + child.result.stdout, child.file
    result = attempt(stage, ["restore", str(file)])
    assert result.code == 0, result
    assert faults(console + result.stdout) == []


def test_the_console_takes_input_in_every_life(stage: Stage) -> None:
    words = boot(stage, cmdline(stage, "shell"))
    first = saved(stage, words, stage.outer.work / "ready.snap", "READY")
    second = saved(stage, ["restore", str(first.file)], stage.outer.work / "shell.snap", "ECHO one", stdin=b"one\n")
    result = attempt(stage, ["restore", str(second.file)], stdin=b"two\nexit\n")
    assert result.code == 0, result
    assert "ECHO two" in result.stdout
    assert "ECHO one" not in result.stdout


@pytest.mark.parametrize(("stage", "vcpus"), [("x86_64", 8), ("aarch64", 8), ("aarch64", 1)], indirect=["stage"])
def test_one_cpu_or_eight_are_saved_and_restored(stage: Stage, vcpus: int) -> None:
    words = boot(stage, cmdline(stage, "count", count=10, work=100), vcpus=vcpus)
    first = saved(stage, words, stage.outer.work / f"{vcpus}.snap", f"W{vcpus - 1} 4 ")
    result = attempt(stage, ["restore", str(first.file)])
    assert result.code == 0, result
    assert faults(first.result.stdout + result.stdout, vcpus=vcpus, count=10, work=100) == []


@pytest.mark.parametrize(
    ("stage", "scenario", "code"),
    [
        ("x86_64", "reboot", 8),
        ("x86_64", "reboot reboot=t", 7),
        ("aarch64", "reboot", 8),
        ("aarch64", "panic", 8),
        ("aarch64", "poweroff", 0),
    ],
    indirect=["stage"],
)
def test_how_linux_ends_the_machine_is_told(stage: Stage, scenario: str, code: int) -> None:
    result = attempt(stage, boot(stage, cmdline(stage, scenario), vcpus=1), code=code)
    assert result.code == code, result


def test_sigint_stops_a_linux_guest_cleanly(stage: Stage, snapshot: Saved) -> None:
    lost = True
    while lost:
        job = stage.outer.start(stage.outer.snapkit("restore", snapshot.file), timeout=RUN_S)
        with contextlib.suppress(LabError):
            job.expect("W0 ")
            job.signal(signal.SIGINT)
        result = job.wait()
        lost = excused(stage.architecture, result, code=EXIT_SIGINT)
    assert (result.code, result.timed_out) == (130, False), result


def test_two_saves_of_the_same_machine_are_equal(stage: Stage, snapshot: Saved) -> None:
    result = stage.outer.run([stage.outer.snapkit()[0], PROBE, snapshot.file], timeout=RUN_S)
    assert (result.code, result.stdout) == (0, f"equal {snapshot.file}\n"), result
