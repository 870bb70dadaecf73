"""How a run ends, seen from outside: reason, exit code, and the terminal given back."""

import fcntl
import json
import os
import select
import signal
import subprocess

import pytest

from snapkit.restore.orders import STAGES
from tests.guests.build import guest
from tests.kvm.commands import Terminal, finished, running
from tests.kvm.harness import DEMO, PATIENCE_S, booted

SMALL = ("--memory", "2M", "--vcpus", "1")


def test_power_off_exits_with_0_and_says_so():
    done = finished("boot", guest("poweroff"), *SMALL)
    assert (done.returncode, done.stdout) == (0, "poweroff\n")
    assert done.stderr == "snapkit: the guest powered off\n"


def test_reboot_exits_with_8():
    done = finished("boot", guest("reboot"), *SMALL)
    assert (done.returncode, done.stdout) == (8, "reboot\n")
    assert "reset" in done.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_reboot_boots_again_and_again_when_asked_to_until_a_signal(number, code):
    with running("boot", guest("reboot"), *SMALL, "--reboot") as command:
        command.read_until("reboot\n", times=4)
        command.signal(number)
        assert command.code() == code


def test_a_triple_fault_exits_with_7():
    done = finished("boot", guest("triple_fault"), *SMALL)
    assert (done.returncode, done.stdout) == (7, "triple fault\n")
    assert done.stderr == "snapkit: triple fault (vcpu 0)\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 5)])
def test_a_signal_stops_a_working_machine_cleanly(number, code):
    with running("boot", DEMO, *SMALL) as command:
        command.read_until("tick 10")
        command.signal(number)
        assert command.code() == code
        assert command.errors().count("\n") == 1


def test_a_signal_stops_a_halted_machine_of_many_cpus():
    with running("boot", guest("halt_input"), "--memory", "2M", "--vcpus", "8") as command:
        command.read_until("ready")
        command.signal(signal.SIGTERM)
        assert command.code() == 0


def test_a_signal_stops_a_machine_whose_reader_does_not_read():
    with running("boot", DEMO, *SMALL) as command:
        reader = command.process.stdout
        assert reader is not None
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)  # full as soon as anything is in it
        command.read_until("tick 10")
        assert select.select([reader], [], [], PATIENCE_S)[0]
        command.signal(signal.SIGTERM)
        assert command.code() == 0


def test_the_time_limit_exits_with_124():
    done = finished("boot", guest("halt_input"), *SMALL, "--timeout", "6")
    assert (done.returncode, done.stdout) == (124, "ready\n")


def test_exit_when_exits_with_0_as_soon_as_the_text_is_there():
    done = finished("boot", DEMO, *SMALL, "--exit-when", "tick 20")
    assert done.returncode == 0
    assert done.stdout.endswith("\ntick 20")


def test_exit_when_works_for_the_very_first_byte():
    for _ in range(5):
        done = finished("boot", DEMO, *SMALL, "--exit-when", "h")
        assert (done.returncode, done.stdout[:1]) == (0, "h"), done.stderr


def test_json_stands_on_a_line_of_its_own_behind_the_guests_output():
    done = finished("boot", DEMO, *SMALL, "--exit-when", "tick 10", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["stop"] == "text_seen"


def test_a_snapshot_that_never_came_to_be_is_no_success(tmp_path):
    never = tmp_path / "never.snap"
    done = finished("boot", guest("poweroff"), *SMALL, "--snapshot-when", "no such text", "--snapshot-to", str(never))
    assert done.returncode == 6
    assert str(never) in done.stderr
    assert "no such text" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_time_allowed_counts_from_the_first_boot_on():
    done = finished("boot", guest("reboot"), *SMALL, "--reboot", "--timeout", "10")
    assert done.returncode == 124
    assert done.stdout.count("reboot\n") > 1


def test_json_ends_with_one_object_that_says_what_happened():
    done = finished("boot", DEMO, *SMALL, "--exit-when", "tick 10", "--json", "--serial", "null")
    assert json.loads(done.stdout) == {"stop": "text_seen", "detail": "", "exit": 0}


def test_a_snapshot_stops_the_machine_and_a_restore_goes_on(tmp_path):
    path = str(tmp_path / "demo.snap")
    first = finished("boot", DEMO, *SMALL, "--snapshot-when", "tick 20", "--snapshot-to", path)
    assert first.returncode == 0, first.stderr
    # the guest is a little past the text when it is held, on a busy host by lines: what ends the next run is far behind
    second = finished("restore", path, "--exit-when", "tick 290", "--timeline", "--timeout", "60")
    assert second.returncode == 0, second.stderr
    whole = first.stdout + second.stdout
    numbers = [int(line.split()[1]) for line in whole.splitlines()[1:]]
    assert numbers == [*range(10, 291, 10)]
    assert "load vcpu-x86-64/0" in second.stderr


def test_a_timeline_tells_steps_stages_and_memory_as_far_as_the_machine_got(tmp_path):
    path = str(tmp_path / "demo.snap")
    finished("boot", DEMO, *SMALL, "--snapshot-when", "tick 20", "--snapshot-to", path)
    long = finished("restore", path, "--timeline", "--timeout", "10", "--serial", "null")
    assert "snapkit: resume (at " in long.stderr
    assert "snapkit: a second later (at " in long.stderr
    words = ("restore", path, "--timeline", "--json", "--serial", "null")
    done = json.loads(finished(*words, "--timeout", "10").stdout)
    stages = {stage["stage"]: stage for stage in done["stages"]}
    assert [*stages] == ["open", "decode", "upgrade", "check", "plan", *STAGES.names]
    for name in ("steps", "calls"):
        steps = [1 if name == "steps" else step["calls"] for step in done["timeline"]]
        assert sum(stage[name] for stage in stages.values()) == sum(steps)
    first, later = done["observed"]
    assert (first["when"], later["when"]) == ("resume", "a second later")
    assert first["at_us"] <= later["at_us"] > 1_000_000  # both by a clock that runs since before the restore
    # the first look may come before the guest's first write
    assert first["own_pages"] <= first["resident_pages"] <= later["resident_pages"] <= later["ram_pages"] == 512
    assert first["own_pages"] <= later["own_pages"] > 0
    assert 0 < first["minor_faults"] <= later["minor_faults"]
    short = json.loads(finished(*words, "--timeout", "0.3").stdout)
    assert [row["when"] for row in short["observed"]] in ([], ["resume"])  # a slow host does not come so far
    paused = json.loads(finished(*words, "--paused", "--timeout", "0.2").stdout)
    assert (paused["observed"], "run" in [stage["stage"] for stage in paused["stages"]]) == ([], False)


def test_a_machine_restored_paused_is_observed_from_its_first_resume(tmp_path):
    path, control = str(tmp_path / "demo.snap"), str(tmp_path / "c.sock")
    finished("boot", DEMO, *SMALL, "--snapshot-when", "tick 20", "--snapshot-to", path)
    words = (
        "restore",
        path,
        "--paused",
        "--control",
        control,
        "--timeline",
        "--exit-when",
        "tick 90",
        "--timeout",
        "60",
    )
    with running(*words) as command:
        assert command.process.stderr is not None
        while not os.path.exists(control):
            assert command.process.poll() is None
            os.sched_yield()
        assert finished("resume", control).returncode == 0
        assert command.code() == 0
        told = command.errors()
    assert told.index("total ") < told.index("snapkit: resume (at ")


def test_a_snapshot_that_cannot_be_written_lets_the_machine_go_on_when_told_to(tmp_path):
    where = str(tmp_path / "missing" / "demo.snap")
    words = ("boot", DEMO, *SMALL, "--snapshot-when", "tick 10", "--snapshot-to", where)
    done = finished(*words, "--then", "continue", "--exit-when", "tick 290", "--timeout", "60")
    assert done.returncode == 0
    assert where in done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()[1:]] == [*map(str, range(10, 291, 10))]
    done = finished(*words)
    assert done.returncode == 2
    assert where in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_lost_reader_ends_the_process_with_the_reason():
    with running("boot", DEMO, *SMALL) as command:
        command.read_until("tick 10")
        command.close_reader()
        assert command.code() == 5
        assert "console" in command.errors()


@pytest.mark.parametrize("leader", [False, True], ids=["elsewhere", "controlling"])
@pytest.mark.parametrize("name", ["halt_input", "demo"], ids=["silent", "writing"])
def test_a_terminal_that_hangs_up_ends_the_process_with_the_reason(name, leader):
    kernel = DEMO if name == "demo" else guest(name)
    with Terminal() as terminal, running("boot", kernel, *SMALL, terminal=terminal, leader=leader) as command:
        command.read_until("tick 10" if name == "demo" else "ready")
        terminal.close_slave()
        terminal.hang_up()
        assert command.code() == 5
        errors = command.errors()
        assert "console" in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("name", "text", "number", "code"),
    [
        ("demo", "tick 10", signal.SIGINT, 130),
        ("demo", "tick 10", signal.SIGTERM, 0),
        ("poweroff", "poweroff", None, 0),
        ("triple_fault", "triple fault", None, 7),
    ],
    ids=["sigint", "sigterm", "power off", "triple fault"],
)
def test_the_terminal_is_given_back_as_it_was(name, text, number, code):
    kernel = DEMO if name == "demo" else guest(name)
    with Terminal() as terminal, running("boot", kernel, *SMALL, terminal=terminal) as command:
        command.read_until(text)
        if number is not None:
            assert terminal.raw
            command.signal(number)
        assert command.code() == code
        assert terminal.restored


def test_the_terminal_is_given_back_after_an_error(tmp_path):
    where = str(tmp_path / "missing" / "demo.snap")
    words = ("boot", DEMO, *SMALL, "--snapshot-when", "tick 10", "--snapshot-to", where)
    with Terminal() as terminal, running(*words, terminal=terminal) as command:
        command.read_until("tick 10")
        assert command.code() == 2
        assert terminal.restored
    with Terminal() as terminal, running("boot", __file__, terminal=terminal) as command:
        assert command.code() == 2
        assert terminal.restored


def test_what_is_typed_reaches_the_guest_ctrl_c_included_and_ctrl_a_x_quits():
    with Terminal() as terminal, running("boot", guest("halt_input"), *SMALL, terminal=terminal) as command:
        command.read_until("ready")
        for byte, shown in ((b"k", "got k"), (b"\x03", "got 00000003"), (b"\r", "got 0000000d")):
            terminal.type(byte)
            command.read_until(shown)
        terminal.type(b"\x01\x01")  # Ctrl-A twice is one Ctrl-A
        command.read_until("got 00000001")
        assert b"\r\n" in command.output
        terminal.type(b"\x01x")
        assert command.code() == 130
        assert terminal.restored


def test_a_line_pasted_at_once_arrives_whole():
    with Terminal() as terminal, running("boot", guest("halt_input"), *SMALL, terminal=terminal) as command:
        command.read_until("ready")
        terminal.type(b"abcdefghijklmnopqrstuvwxyz" * 2)  # the guest queues 64
        command.read_until("got z", times=2)
        taken = [line.split()[1] for line in command.output.decode().splitlines() if line.startswith("got")]
        assert "".join(taken) == "abcdefghijklmnopqrstuvwxyz" * 2


def test_input_from_a_pipe_and_from_a_file_reaches_the_guest_and_its_end_harms_nobody(tmp_path):
    with running("boot", guest("halt_input"), *SMALL) as command:
        command.read_until("ready")
        writer = command.process.stdin
        assert writer is not None
        writer.write(b"ab")
        writer.close()
        command.read_until("got b")
        command.signal(signal.SIGTERM)
        assert command.code() == 0
    text = tmp_path / "typed"
    text.write_bytes(b"q")
    with text.open("rb") as file:
        done = finished("boot", DEMO, *SMALL, stdin=file.fileno())
    assert done.returncode == 0
    assert done.stdout.endswith("bye\n")


def test_a_restored_machine_takes_input_on_a_terminal(tmp_path):
    with booted(guest("halt_input")) as rig:
        rig.run()
        rig.tape.wait_for("ready\n")
        path = rig.save(str(tmp_path / "input.snap"))
    with Terminal() as terminal, running("restore", path, terminal=terminal) as command:
        terminal.type(b"r")
        command.read_until("got r")
        terminal.type(b"\x01x")
        assert command.code() == 130
        assert terminal.restored


def test_a_paused_restore_waits_and_runs_nothing(tmp_path):
    with booted() as rig:
        rig.run()
        path = rig.save(str(tmp_path / "demo.snap"))
    done = finished("restore", path, "--paused", "--timeout", "0.5")
    assert (done.returncode, done.stdout) == (124, "")


def test_a_serial_file_gets_the_output_and_nothing_else_does(tmp_path):
    where = tmp_path / "serial.log"
    done = finished("boot", guest("poweroff"), *SMALL, "--serial", f"file:{where}")
    assert (done.returncode, done.stdout) == (0, "")
    assert where.read_text() == "poweroff\n"


def test_a_full_disk_under_the_serial_file_is_a_lost_console():
    done = finished("boot", DEMO, *SMALL, "--serial", "file:/dev/full")
    assert done.returncode == 5
    assert "console" in done.stderr


def test_the_process_of_a_machine_leaves_no_child_and_no_lock_behind(tmp_path):
    path = str(tmp_path / "demo.snap")
    assert finished("boot", DEMO, *SMALL, "--snapshot-when", "tick 10", "--snapshot-to", path).returncode == 0
    assert os.listdir(tmp_path) == ["demo.snap"]
    users = subprocess.run(["find", "/proc/self/fd", "-lname", path], capture_output=True, text=True, check=True)
    assert users.stdout == ""
