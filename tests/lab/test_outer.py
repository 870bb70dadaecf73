"""The outer machine itself: its KVM, its job runner, its file systems."""

import os
import signal
import sys
from dataclasses import replace

import pytest

from snapkit.errors import EXIT_TRIPLE_FAULT
from tests.lab import guest
from tests.lab.losses import excused
from tests.lab.outer import LabError, Outer, Result

pytestmark = pytest.mark.lab

KVM_GET_API_VERSION = 0xAE00


@pytest.mark.smoke
def test_kvm_answers_inside_through_the_environment_of_the_checkout(outer: Outer) -> None:
    program = (
        "import fcntl, os, msgspec, sys\n"
        f"print(fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), {KVM_GET_API_VERSION}, 0), sys.prefix)"
    )
    result = outer.run([sys.executable, "-c", program], timeout=120)
    assert result.stdout.split() == ["12", sys.prefix], result


def test_a_job_reports_its_exit_code_and_both_outputs(outer: Outer) -> None:
    result = outer.run(["sh", "-c", "echo out; echo err >&2; exit 7"], timeout=60)
    assert (result.code, result.stdout, result.stderr, result.timed_out) == (7, "out\n", "err\n", False)


def test_jobs_run_at_the_same_time(outer: Outer) -> None:
    # Each waits for the other, so one after the other neither would end.
    meet = "mkfifo $0 2>/dev/null; mkfifo $1 2>/dev/null; {} exit $2"
    first = outer.start(["sh", "-c", meet.format("echo a >$0; read x <$1;"), "there", "back", "3"], timeout=60)
    second = outer.start(["sh", "-c", meet.format("read x <$0; echo b >$1;"), "there", "back", "4"], timeout=60)
    assert (first.wait().code, second.wait().code) == (3, 4)


def test_a_job_beyond_its_time_is_ended_with_all_it_started(outer: Outer) -> None:
    result = outer.run(["sh", "-c", "sleep 7777 & sleep 8888"], timeout=1)
    assert result.timed_out
    assert result.code == -signal.SIGABRT
    left = outer.run(["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"], timeout=60)
    assert "sleep 7777" not in left.stdout, left


def test_a_program_that_is_not_there_is_an_error_that_names_it(outer: Outer) -> None:
    with pytest.raises(LabError, match="/nowhere/program"):
        outer.run(["/nowhere/program"], timeout=60)


def test_input_reaches_a_running_job_and_its_output_is_seen_before_it_ends(outer: Outer) -> None:
    job = outer.start(["sh", "-c", "echo ready; while read -r x; do echo got $x; done"], timeout=60, keep_stdin=True)
    behind = job.expect("ready\n")
    job.write(b"one\n")
    job.expect("got one\n", start=behind)
    assert job.running
    job.write(b"two\n", end=True)
    result = job.wait()
    assert (result.code, result.stdout) == (0, "ready\ngot one\ngot two\n")


def test_waiting_for_text_that_never_comes_shows_what_came_instead(outer: Outer) -> None:
    job = outer.start(["echo", "something else"], timeout=60)
    with pytest.raises(LabError, match="something else"):
        job.expect("text")


def test_a_signal_reaches_the_job(outer: Outer) -> None:
    job = outer.start(["sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done"], timeout=60)
    job.expect("ready")
    job.signal(signal.SIGTERM)
    assert job.wait().code == 9


def test_large_binary_output_arrives_whole(outer: Outer) -> None:
    job = outer.start(["sh", "-c", "head -c 3000000 /dev/urandom | tee copy; sha256sum copy >&2"], timeout=120)
    result = job.wait()
    import hashlib

    assert hashlib.sha256((job.folder / "stdout").read_bytes()).hexdigest() == result.stderr.split()[0]


def test_the_share_is_writable_from_both_sides_and_the_root_from_neither(outer: Outer) -> None:
    (outer.share / "note").write_text("from outside")
    program = 'cat "$0/note"; echo from inside >"$0/answer"; touch "$1/touched"'
    result = outer.run(["sh", "-c", program, outer.share, os.getcwd()], timeout=60)
    assert result.stdout == "from outside"
    assert (outer.share / "answer").read_text() == "from inside\n"
    assert result.code != 0
    assert "ead-only" in result.stderr, result


def test_the_guest_files_boot_under_another_monitor(outer: Outer, guest_files: guest.GuestFiles) -> None:
    # The peer that tells a fault of the lab from a fault of snapkit.
    command = (
        "qemu-system-x86_64 -M microvm,rtc=on -accel kvm -cpu host -smp 2 -m 256 -nodefaults -display none -no-reboot"
    )
    append = "console=ttyS0 quiet panic=-1 scenario=count count=10 dmesg=mark"
    files = ["-serial", "stdio", "-kernel", str(guest_files.packed), "-initrd", str(guest_files.initrd)]

    def run() -> Result:
        result = outer.run([*command.split(), *files, "-append", append], timeout=200)
        # QEMU ends by 0 after a triple fault as after a power-off, before which the guest says END. A panic is no such end.
        faulted = result.code == 0 and not any(text in result.stdout for text in ("\nEND", "Kernel panic"))
        return replace(result, code=EXIT_TRIPLE_FAULT) if faulted else result

    while excused(outer.architecture, result := run()):
        pass
    found = guest.count_lines(result.stdout)
    assert sorted(found) == [0, 1], result
    assert [guest.count_faults(found[cpu], last=10) for cpu in (0, 1)] == [[], []]
    assert guest.kernel_log_after_mark(result.stdout) == []
    assert result.code == 0, result


def test_a_machine_that_cannot_boot_says_what_its_emulator_said() -> None:
    with pytest.raises(LabError, match="no-such-cpu"), Outer(cpu="no-such-cpu"):
        pass
