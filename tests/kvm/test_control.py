"""Machines that are driven through their control socket while their guests work: in process, and as commands."""

import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from snapkit import host
from snapkit.cli.client import Answer, Client
from snapkit.guests import expected
from snapkit.restore.save import save_snapshot
from snapkit.units import MIB
from snapkit.vmm.backends.http_server import HttpServer
from snapkit.vmm.control import Control
from snapkit.vmm.run_state import Reason, Stop
from tests.kvm.commands import SNAPKIT, finished, running
from tests.kvm.harness import DEMO, PATIENCE_S, Census, Rig, booted, resident_len, restored

SNAPSHOTS = 100
SMALL = ("--memory", "2M", "--vcpus", "1")
GET_STATUS = b"GET /snapkit/status HTTP/1.1\r\nHost: x\r\n\r\n"


@cache
def uninterrupted(lines: int) -> str:
    return "\n".join([expected.HELLO, *islice(expected.demo_lines(), lines), ""])


def assert_uninterrupted(text: str) -> None:
    assert uninterrupted(text.count("\n")).startswith(text), text[-120:]


def ask(sock: str, method: str, target: str, body: dict[str, Any] | None = None) -> Answer:
    with Client(sock) as client:
        return client.ask(method, target, body)


def snapshot(sock: str, path: object, **more: object) -> Answer:
    return ask(sock, "PUT", "/snapshot/create", {"snapshot_path": str(path), **more})


@contextmanager
def driven(rig: Rig, sock: str) -> Iterator[Rig]:
    """Serve *rig*'s control socket; its loop runs on a thread here, and ends with the block."""
    server = HttpServer(rig.loop, sock)
    server.serve(Control(rig.machine, partial(save_snapshot, rig.machine)).answer)
    thread = threading.Thread(target=rig.machine.run)
    thread.start()
    try:
        yield rig
        rig.healthy()
        assert server.faults == 0
    finally:
        rig.machine.request_stop(Stop(Reason.STOPPED))
        thread.join(PATIENCE_S)
        server.close()
        assert not thread.is_alive()


@pytest.fixture
def sock(tmp_path: Path) -> str:
    return str(tmp_path / "s.sock")


def later(rig: Rig, lines: int = 2) -> None:
    rig.tape.wait_for("\n", rig.tape.text.count("\n") + lines)


# In process


def test_a_paused_guest_is_still_and_a_resumed_one_goes_on(sock):
    with booted() as rig, driven(rig, sock):
        assert ask(sock, "PATCH", "/vm", {"state": "Resumed"}).status == 204
        rig.tape.wait_for("tick 10")
        for _ in range(20):
            assert ask(sock, "PATCH", "/vm", {"state": "Paused"}).status == 204
            assert ask(sock, "GET", "/").content["state"] == "Paused"
            before = rig.tape.text
            again = ask(sock, "PATCH", "/vm", {"state": "Paused"})
            assert (again.status, again.exit_code) == (400, 6)
            assert "must be running" in again.content["fault_message"]
            assert rig.tape.text == before
            assert ask(sock, "PATCH", "/vm", {"state": "Resumed"}).status == 204
        assert ask(sock, "PATCH", "/vm", {"state": "Resumed"}).exit_code == 6
        later(rig)
        assert_uninterrupted(rig.tape.text)


def test_a_snapshot_of_a_running_guest_restores_and_both_go_on(tmp_path, sock):
    path = tmp_path / "a.snap"
    with booted() as rig, driven(rig, sock):
        rig.machine.resume()
        later(rig)
        done = snapshot(sock, path)
        assert done.status == 204
        assert done.snapshot["file"] == str(path)
        assert done.snapshot["paused_ms"] <= done.snapshot["ms"]
        later(rig)
        assert_uninterrupted(rig.tape.text)
        whole = rig.tape.text
    with restored(str(path)) as rig:
        rig.run()
        later(rig)
        text = rig.tape.text
        assert 0 < uninterrupted((whole + text).count("\n") + 1).find(text) <= len(whole)


def test_a_paused_guest_is_saved_as_it_is_and_stays_paused(tmp_path, sock):
    with booted() as rig, driven(rig, sock):
        rig.machine.resume()
        later(rig)
        ask(sock, "PATCH", "/vm", {"state": "Paused"})
        before = rig.tape.text
        assert snapshot(sock, tmp_path / "a.snap").status == 204
        assert ask(sock, "GET", "/").content["state"] == "Paused"
        assert rig.tape.text == before
    with restored(str(tmp_path / "a.snap")) as rig:
        rig.run()
        later(rig)
        assert_uninterrupted(before + rig.tape.text)


def test_memory_goes_where_it_is_told_and_never_over_anything(tmp_path, sock):
    path, memory = tmp_path / "a.snap", tmp_path / "b.mem"
    with booted() as rig, driven(rig, sock):
        rig.machine.resume()
        later(rig)
        assert snapshot(sock, path, mem_file_path=str(memory)).status == 204
        written = memory.read_bytes()
        for taken in (memory, path):
            refused = snapshot(sock, tmp_path / "c.snap", mem_file_path=str(taken))
            assert (refused.status, refused.exit_code) == (400, 2)
            assert str(taken) in refused.content["fault_message"]
        assert snapshot(sock, tmp_path / "d.snap", mem_file_path=str(tmp_path / "d.snap")).exit_code == 2
        later(rig)
    assert memory.read_bytes() == written
    assert sorted(os.listdir(tmp_path)) == ["a.snap", "b.mem"]
    with restored(str(path)) as rig:
        rig.run()
        later(rig)


def test_a_snapshot_over_the_very_file_that_the_machine_came_from(tmp_path, sock):
    path = str(tmp_path / "a.snap")
    with booted() as rig:
        rig.run()
        later(rig, 3)
        rig.save(path)
        text = rig.tape.text
    for _ in range(3):
        with restored(path) as rig, driven(rig, sock):
            rig.machine.resume()
            later(rig)
            ask(sock, "PATCH", "/vm", {"state": "Paused"})
            cut = len(rig.tape.text)
            assert snapshot(sock, path).status == 204
            ask(sock, "PATCH", "/vm", {"state": "Resumed"})
            later(rig)
            assert_uninterrupted(text + rig.tape.text)
            text += rig.tape.text[:cut]
    with restored(path, verify_memory=True) as rig:
        rig.run()
        later(rig)
        assert_uninterrupted(text + rig.tape.text)


def failing(call: str, code: int) -> Callable[[str, tuple[object, ...]], None]:
    def hook(name: str, _arguments: tuple[object, ...]) -> None:
        if name == call:
            raise OSError(code, "injected")

    return hook


@pytest.mark.parametrize("call", ["open_fd", "pwrite", "ftruncate", "fsync", "rename"])
def test_a_failed_snapshot_leaves_the_guest_running_and_the_next_one_works(tmp_path, sock, call):
    path = tmp_path / "a.snap"
    with booted() as rig, driven(rig, sock):
        rig.machine.resume()
        later(rig)
        assert snapshot(sock, path).status == 204
        before = path.read_bytes()
        with host.inject(failing(call, errno.ENOSPC)):
            failed = snapshot(sock, path)
        assert (failed.status, failed.exit_code) == (400, 5)
        assert "ENOSPC" in failed.content["fault_message"]
        assert path.read_bytes() == before
        assert sorted(os.listdir(tmp_path)) == ["a.snap", "s.sock"]
        later(rig)
        assert snapshot(sock, path).status == 204
        later(rig)
        assert path.read_bytes() != before
        assert_uninterrupted(rig.tape.text)
    with restored(str(path)) as rig:
        rig.run()
        later(rig)


def test_a_failed_snapshot_of_a_paused_guest_leaves_it_paused(tmp_path, sock):
    with booted() as rig, driven(rig, sock):
        rig.machine.resume()
        later(rig)
        ask(sock, "PATCH", "/vm", {"state": "Paused"})
        before = rig.tape.text
        assert snapshot(sock, tmp_path / "missing" / "a.snap").exit_code == 2
        assert ask(sock, "GET", "/").content["state"] == "Paused"
        assert rig.tape.text == before
        ask(sock, "PATCH", "/vm", {"state": "Resumed"})
        later(rig)
        assert_uninterrupted(rig.tape.text)


def test_two_clients_at_once_each_get_what_they_asked_for(tmp_path, sock):
    with booted(vcpus=2) as rig, driven(rig, sock):
        rig.machine.resume()
        later(rig)
        told: dict[int, list[tuple[int, str]]] = {0: [], 1: []}

        def work(number: int) -> None:
            path = tmp_path / f"{number}.snap"
            for _ in range(15):
                done = snapshot(sock, path)
                told[number].append((done.status, done.snapshot.get("file", "")))
                told[number].append((ask(sock, "GET", "/snapkit/status").status, str(path)))

        threads = [threading.Thread(target=work, args=[number]) for number in told]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():  # what they ask for is done one by one, and each snapshot waits for the disk
                answered = sum(map(len, told.values()))
                thread.join(PATIENCE_S)
                assert not thread.is_alive() or sum(map(len, told.values())) > answered, told
        for number, answers in told.items():
            assert answers == [(204, str(tmp_path / f"{number}.snap")), (200, str(tmp_path / f"{number}.snap"))] * 15
        assert ask(sock, "GET", "/snapkit/status").content["snapshots"] == 30
        later(rig)
        assert_uninterrupted(rig.tape.text)
    for number in told:
        with restored(str(tmp_path / f"{number}.snap")) as rig:
            rig.run()
            later(rig)


def test_clients_that_are_slow_silent_or_broken_do_not_stop_the_guest(sock):
    with booted() as rig, driven(rig, sock), ExitStack() as stack:
        rig.machine.resume()
        for text in (
            b"",
            b"GET /",
            b"\0" * 100_000,
            GET_STATUS * 10_000,
            b"PUT /snapshot/create HTTP/1.1\r\nHost: x\r\n",
        ):
            for _ in range(4):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(sock)
                client.setblocking(False)
                rest = text
                with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
                    while rest:
                        rest = rest[client.send(rest) :]
        later(rig, 5)
        assert ask(sock, "GET", "/").content["state"] == "Running"
        later(rig, 5)
        assert_uninterrupted(rig.tape.text)


def test_a_driven_machine_leaves_nothing_behind(tmp_path, sock, census: Census):
    for _ in range(5):
        with booted() as rig, driven(rig, sock):
            rig.machine.resume()
            later(rig, 1)
            assert snapshot(sock, tmp_path / "a.snap").status == 204
        census.check()


# As commands


def boot(sock: str, *more: str) -> tuple[str, ...]:
    return ("boot", DEMO, *SMALL, "--control", sock, *more)


def status(sock: str) -> dict[str, Any]:
    return ask(sock, "GET", "/snapkit/status").content


def fds(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def wait_until(done: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        assert time.monotonic() < deadline, f"waited {PATIENCE_S} s for {what}"
        os.sched_yield()


def wait_lines(serial: Path, lines: int) -> None:
    wait_until(lambda: serial.exists() and serial.read_text().count("\n") >= lines, f"{lines} lines")


def test_a_hundred_snapshots_in_a_row_while_the_guest_works(tmp_path, sock):
    serial, path = tmp_path / "serial", tmp_path / "a.snap"
    with running(*boot(sock, "--serial", f"file:{serial}", "--json")) as command:
        wait_lines(serial, 2)
        pid = command.process.pid
        for _ in range(10):  # imports, arenas, pools
            assert snapshot(sock, path).status == 204
        status(sock)  # what the snapshots needed is given back when this is answered, but for this client itself
        start_fds, start_threads = fds(pid), threads(pid)
        start_len = resident_len(pid)
        for number in range(SNAPSHOTS):
            lines = serial.read_text().count("\n")
            assert snapshot(sock, path).status == 204
            if number % 25 == 0:
                os.link(path, tmp_path / f"kept-{number}.snap")
            if number % 10 == 0:  # and it works: in between, not only afterwards
                wait_lines(serial, lines + 1)
        assert resident_len(pid) - start_len < 2 * MIB  # a leak of a page a snapshot would be a fifth of that
        wait_until(lambda: fds(pid) <= start_fds and threads(pid) <= start_threads, "fds and threads to return")
        told = status(sock)
        assert (told["snapshots"], told["failed_snapshots"]) == (SNAPSHOTS + 10, 0)
        assert finished("stop", sock).returncode == 0
        assert command.code() == 0
    text = serial.read_text()
    assert_uninterrupted(text)
    for number in range(0, SNAPSHOTS, 25):
        with restored(str(tmp_path / f"kept-{number}.snap")) as rig:
            rig.run()
            rig.tape.wait_grown(150)
            shown = rig.tape.text
            assert shown in uninterrupted((text + shown).count("\n") + 1)


def test_the_verbs_say_what_they_did_and_exit_as_they_should(tmp_path, sock):
    with running(*boot(sock, "--json")) as command:
        command.read_until("tick 10")
        assert stat.S_IMODE(os.lstat(sock).st_mode) == 0o600
        for words, code, told in (
            (("resume", sock), 6, "resume while running, must be paused"),
            (("pause", sock), 0, "paused"),
            (("pause", sock), 6, "pause while paused, must be running: resume it first"),
            (("snapshot", sock, str(tmp_path / "no" / "a.snap")), 2, "no such file or directory"),
            (("snapshot", sock, str(tmp_path)), 2, "a directory"),
            (("snapshot", sock, ""), 2, "no name for a file"),
            (("snapshot", sock, str(tmp_path / "a.snap")), 0, "of memory in"),
            (("snapshot", sock, str(tmp_path / "b.snap"), "--memory-file", str(tmp_path / "a.snap")), 2, "never over"),
            (("resume", sock), 0, "running"),
            (("status", sock), 0, "snapshots"),
            (("status", str(tmp_path / "other.sock")), 2, "there is no such socket"),
            (("stop", str(tmp_path / "a.snap")), 2, "nobody serves it"),
            (("status", sock + "x" * 200), 2, "no Unix socket can have this path"),
        ):
            done = finished(*words)
            assert done.returncode == code, (words, done)
            assert told in (done.stderr if code else done.stdout), (words, done)
            assert not (done.stdout if code else done.stderr), (words, done)
        for words, key, value in (
            (("pause", sock), "state", "paused"),
            (("snapshot", sock, str(tmp_path / "a.snap")), "file", str(tmp_path / "a.snap")),
            (("status", sock), "state", "paused"),
            (("resume", sock), "state", "running"),
            (("stop", sock), "state", "stopped"),
        ):
            done = finished(*words, "--json")
            assert json.loads(done.stdout)[key] == value, (words, done)
        assert command.code() == 0
        assert not os.path.lexists(sock)
    assert finished("verify", str(tmp_path / "a.snap")).returncode == 0


def test_a_relative_file_is_the_clients_not_the_machines(tmp_path, sock):
    with running(*boot(sock)) as command:
        command.read_until("tick 10")
        for words in (["a.snap"], ["b.snap", "--memory-file", "b.mem"]):
            done = subprocess.run(
                [*SNAPKIT, "snapshot", sock, *words],
                cwd=tmp_path,
                capture_output=True,
                timeout=PATIENCE_S,
                check=True,
            )
            assert done.stderr == b""
        assert finished("stop", sock).returncode == 0
        assert command.code() == 0
    assert sorted(os.listdir(tmp_path)) == ["a.snap", "b.mem", "b.snap"]


def test_curl_as_firecrackers_users_do(tmp_path, sock):
    if shutil.which("curl") is None:
        pytest.skip("curl is missing")
    with running(*boot(sock)) as command:
        command.read_until("tick 10")

        def curl(method: str, target: str, body: str | None = None) -> tuple[str, str]:
            data = [] if body is None else ["-H", "Content-Type: application/json", "-d", body]
            done = subprocess.run(
                [
                    "curl",
                    "-sw",
                    "\n%{http_code}",
                    "--unix-socket",
                    sock,
                    "-X",
                    method,
                    f"http://localhost{target}",
                    *data,
                ],
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=True,
            )
            answer, _, code = done.stdout.rpartition("\n")
            return answer, code

        assert json.loads(curl("GET", "/")[0])["state"] == "Running"
        assert curl("PATCH", "/vm", '{"state": "Paused"}') == ("", "204")
        body = {"snapshot_type": "Full", "snapshot_path": str(tmp_path / "a"), "mem_file_path": str(tmp_path / "b")}
        assert curl("PUT", "/snapshot/create", json.dumps(body)) == ("", "204")
        assert curl("PUT", "/snapshot/create", json.dumps(body))[1] == "400"
        assert curl("PATCH", "/vm", '{"state": "Resumed"}') == ("", "204")
        assert finished("stop", sock).returncode == 0


def test_a_second_machine_on_a_live_socket_never_boots(sock):
    with running(*boot(sock)) as command:
        command.read_until("tick 10")
        second = finished(*boot(sock, "--timeout", "30"))
        assert (second.returncode, second.stdout) == (2, "")
        assert "served by another process" in second.stderr
        assert status(sock)["pid"] == command.process.pid
        command.read_until("\n", command.output.count(b"\n") + 2)
        assert finished("stop", sock).returncode == 0


def test_the_socket_of_a_killed_machine_is_replaced(sock):
    with running(*boot(sock)) as command:
        command.read_until("hello")
        command.signal(signal.SIGKILL)
        command.code()
    assert os.path.lexists(sock)
    assert finished("status", sock).returncode == 2
    with running(*boot(sock)) as command:
        command.read_until("hello")
        assert status(sock)["pid"] == command.process.pid
        assert finished("stop", sock).returncode == 0
        assert command.code() == 0
    assert not os.path.lexists(sock)


def test_a_machine_restored_as_paused_waits_for_its_order(tmp_path, sock):
    path = str(tmp_path / "a.snap")
    with booted() as rig:
        rig.run()
        later(rig, 3)
        rig.save(path)
        before = rig.tape.text
    with running("restore", path, "--paused", "--control", sock) as command:
        wait_until(lambda: os.path.lexists(sock), "the socket")
        told = status(sock)
        assert told["state"] == "paused"
        assert told["parent_snapshot"] == inspect_id(path)
        assert ask(sock, "GET", "/vm/config").content["boot-source"]["kernel_image_path"] == ""
        assert snapshot(sock, tmp_path / "b.snap").status == 204
        assert command.output == b""
        assert finished("resume", sock).returncode == 0
        command.read_until("\n", 3)
        assert_uninterrupted(before + command.output.decode())
        assert finished("stop", sock).returncode == 0
        assert command.code() == 0
    with restored(str(tmp_path / "b.snap")) as rig:
        rig.run()
        later(rig)
        assert_uninterrupted(before + rig.tape.text)


def inspect_id(path: str) -> str:
    with open(path, "rb") as file:
        file.seek(64 + 8 + 16)
        return file.read(16).hex()


def test_a_socket_that_cannot_be_made_is_said_before_the_guest_runs(tmp_path):
    done = finished(*boot(str(tmp_path / "missing" / "s.sock")))
    assert (done.returncode, done.stdout) == (2, "")
    assert "s.sock cannot be made: no such file or directory" in done.stderr


def test_nothing_of_the_control_socket_is_imported_unless_it_is_asked_for():
    code = (
        "import sys; sys.argv[1:] = sys.argv[1:]\n"
        "from snapkit.cli import snapkit\n"
        "assert snapkit.main(standalone_mode=False) == 0\n"
        "print(sorted(name for name in sys.modules if name in {'h11', 'socket', 'snapkit.vmm.control'}))\n"
    )
    words = ["boot", DEMO, *SMALL, "--exit-when", "tick 10", "--serial", "null"]
    done = subprocess.run(
        [SNAPKIT[0], "-c", code, *words], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout == "[]\n"


@contextmanager
def tiny_file_system(folder: Path) -> Iterator[Path]:
    """128 KiB of tmpfs: one snapshot fits, two do not."""
    folder.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)],
            capture_output=True,
            text=True,
            check=False,
        )
        reason = done.stderr.strip()
    except FileNotFoundError:
        reason = "there is no mount command"
    else:
        if not done.returncode:
            try:
                yield folder
            finally:
                subprocess.run(["umount", str(folder)], check=True)
            return
    pytest.skip(f"a tmpfs cannot be mounted: {reason}")


def test_a_file_system_that_fills_up_costs_the_snapshot_only(tmp_path, sock):
    serial = tmp_path / "serial"
    with tiny_file_system(tmp_path / "tiny") as tiny, running(*boot(sock, "--serial", f"file:{serial}")) as command:
        path = tiny / "a.snap"
        wait_lines(serial, 2)
        assert finished("snapshot", sock, str(path)).returncode == 0
        before = path.read_bytes()
        for _ in range(5):
            failed = finished("snapshot", sock, str(path))
            assert failed.returncode == 5
            assert "ENOSPC" in failed.stderr
            assert os.listdir(tiny) == ["a.snap"]
            assert path.read_bytes() == before
        lines = serial.read_text().count("\n")
        wait_lines(serial, lines + 2)
        assert finished("snapshot", sock, str(tmp_path / "b.snap")).returncode == 0
        wait_lines(serial, lines + 4)
        assert finished("stop", sock).returncode == 0
        assert command.code() == 0
        assert finished("verify", str(path)).returncode == 0
    assert_uninterrupted(serial.read_text())
    assert finished("verify", str(tmp_path / "b.snap")).returncode == 0
