"""Machines in a sandbox: they do all that others do, and what they have no need of is denied."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from snapkit import host
from snapkit.restore.equality import differences, elapsed
from snapkit.restore.image import Image
from snapkit.vmm.run_state import RunState
from tests.compat.conftest import need_tap
from tests.guests.build import guest
from tests.guests.device_lines import device_sums
from tests.kvm import commands
from tests.kvm.commands import ROOT, finished, running
from tests.kvm.harness import DEMO, PATIENCE_S, restored
from tests.kvm.sandboxed import PROBES
from tests.kvm.test_control import ask, assert_uninterrupted

MIB = 1 << 20
KILLED = ("execve", "fork", "ptrace", "unshare", "setuid")
ANYWHERE = {
    "executable memory": "EPERM",
    "memory": "done",
    "memory made executable": "EPERM",
    "inet socket": "EPERM",
    "unix datagrams": "EPERM",
    "ioctl of a terminal": "EPERM",
    "ioctl of kvm": "EPERM",
    "signal to the parent": "EPERM",
    "signal to itself": "done",
    "prctl": "EPERM",
    "thread": "done",
    "clone3": "ENOSYS",
    "openat2": "EPERM",
    "truncate": "EPERM",
    "symlink": "EPERM",
    "mkdir": "EPERM",
    "chmod": "EPERM",
    "open outside": "EPERM",
    "open by dots": "EPERM",
    "create outside": "EPERM",
    "open outside to truncate": "EPERM",
    "open to truncate": "EPERM",
    "own memory": "EPERM",
    "another's environment": "EPERM",
    "unlink outside": "EPERM",
    "link inwards": "EPERM",
    "rename outwards": "EPERM",
    "open inside": "EPERM",
    "create inside": "EPERM",
    "open by a link": "EPERM",
    "own maps": "EPERM",
    "unix socket": "EPERM",
}
"""What a machine may do that has neither a directory for snapshots nor a vsock device."""
WITH_DIRECTORY = {
    "open outside": "EACCES",
    "open by dots": "EACCES",
    "create outside": "EACCES",
    "open by a link": "EACCES",
    "own memory": "EACCES",
    "another's environment": "EACCES",
    "unlink outside": "EACCES",
    "link inwards": ("EACCES", "EXDEV"),
    "rename outwards": ("EACCES", "EXDEV"),
    "open inside": "done",
    "create inside": "done",
    "own maps": "done",
}
"""What is otherwise with one."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its probes, what it imported inside, and the rest of what it said."""

    code: int
    out: str
    err: str

    def told(self, word: str) -> Any:
        [line] = re.findall(rf"^{word} (.*)$", self.err, re.MULTILINE)
        return json.loads(line)

    @property
    def done(self) -> "Ended":
        """Itself, having ended well and imported nothing late."""
        assert self.code == 0, self
        assert self.told("late") == [], self
        return self


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory for snapshots, with what probes want in it and beside it."""
    inside = tmp_path / "snapshots"
    inside.mkdir()
    (inside / "inside").write_bytes(b"inside")
    (tmp_path / "outside").write_bytes(b"outside")
    (inside / "link").symlink_to("../outside")
    return inside


def witnessed(*words: str, probes: tuple[str, ...] = (), folder: Path | None = None) -> Ended:
    """Run a command with its witnesses to the end."""
    command = [sys.executable, "-m", "tests.kvm.sandboxed", json.dumps(probes), *words]
    environment = {**os.environ, "SANDBOX_FOLDER": str(folder)}
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def demo(*words: str) -> tuple[str, ...]:
    return ("boot", DEMO, "--memory", "2M", "--vcpus", "1", "--sandbox", *words)


def expected(*changes: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = dict(ANYWHERE)
    for change in changes:
        found |= change
    return found


def compare(found: dict[str, str], wanted: dict[str, Any]) -> None:
    wrong = {
        name: (found[name], wanted[name])
        for name in wanted
        if found[name] not in (wanted[name] if isinstance(wanted[name], tuple) else (wanted[name],))
    }
    assert wrong == {}


# What is denied


def test_every_probe_is_judged():
    assert {*ANYWHERE, *KILLED} == set(PROBES)


def test_a_machine_in_a_sandbox_opens_makes_and_reaches_nothing(folder):
    ended = witnessed(*demo("--exit-when", "tick 5"), probes=tuple(ANYWHERE), folder=folder).done
    compare(ended.told("probes"), expected())
    assert (folder / "inside").read_bytes() == b"inside"


def test_with_a_directory_for_snapshots_files_are_opened_below_it_and_nowhere_else(folder):
    words = demo("--exit-when", "tick 5", "--snapshot-dir", str(folder))
    ended = witnessed(*words, probes=tuple(ANYWHERE), folder=folder).done
    compare(ended.told("probes"), expected(WITH_DIRECTORY))
    assert (folder.parent / "outside").read_bytes() == b"outside"
    assert sorted(os.listdir(folder)) == ["inside", "link", "made"]


@pytest.mark.parametrize("probe", KILLED)
def test_what_only_an_intruder_asks_for_ends_the_process(folder, probe):
    ended = witnessed(*demo("--timeout", "60"), probes=(probe,), folder=folder)
    assert ended.code == -signal.SIGSYS, ended


def test_a_vsock_device_brings_unix_streams_and_no_other_sockets(folder):
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(folder.parent / "listener"))
        listener.listen()
        words = demo("--exit-when", "tick 5", "--vsock", f"id=v0,cid=3,uds={folder}/v.sock")
        ended = witnessed(*words, probes=tuple(ANYWHERE), folder=folder).done
    compare(ended.told("probes"), expected({"unix socket": "done"}))


# What goes on


def right(text: str) -> None:
    assert "failed" not in text, text
    found = re.findall(r"(io \d+ sum [0-9a-f]+) ", text)
    assert found == list(islice(device_sums(), len(found)))


@pytest.fixture(params=["pci", "mmio"])
def transport(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def devices(folder: Path) -> tuple[str, ...]:
    """Every device but a network card; sockets and images lie beside the directory for snapshots."""
    beside = folder.parent
    with open(beside / "disk.img", "wb") as file:
        file.truncate(MIB)
    disk, vsock = f"id=root,path={beside}/disk.img", f"id=v0,cid=3,uds={beside}/v.sock"
    return ("--disk", disk, "--vsock", vsock, "--rng", "--balloon")


def booted(folder: Path, transport: str, *more: str) -> tuple[str, ...]:
    words = ("boot", guest("devices"), "--memory", "4M", "--vcpus", "1", "--transport", transport)
    return (*words, *devices(folder), "--sandbox", "--snapshot-dir", str(folder), *more)


def test_a_machine_with_every_device_is_saved_and_goes_on_in_a_sandbox_as_outside_of_one(
    folder, transport, monkeypatch
):
    monkeypatch.setattr(commands, "SNAPKIT", (sys.executable, "-m", "tests.kvm.sandboxed", "[]"))
    first, second, sock = folder / "a.snap", folder / "b.snap", str(folder.parent / "c.sock")
    words = booted(folder, transport, "--snapshot-when", "io 3 ", "--snapshot-to", str(first))
    before = witnessed(*words).done.out
    with running("restore", str(first), "--sandbox", "--snapshot-dir", str(folder), "--control", sock) as machine:
        machine.read_until("io 5 ")
        assert finished("pause", sock).returncode == 0
        assert finished("resume", sock).returncode == 0
        done = finished("snapshot", sock, str(second))
        assert done.returncode == 0, done
        machine.read_until("sum ", times=machine.output.count(b"sum ") + 2)
        limit = {"rate_limiter": {"ops": {"size": 1000, "refill_time": 10}}}
        assert ask(sock, "PATCH", "/drives/root", limit).status == 204
        assert ask(sock, "PATCH", "/balloon", {"amount_mib": 1}).status == 204
        machine.read_until("sum ", times=machine.output.count(b"sum ") + 2)
        assert finished("stop", sock).returncode == 0
        assert machine.code() == 0
        machine.output += machine._stdout().read()
        assert "late []" in machine.errors()
    right(before + machine.output.decode())
    with Image.open(str(second)) as image:
        parent = image.preamble.parent_id
    with Image.open(str(first)) as image:
        assert parent == image.preamble.snapshot_id


def test_a_machine_saved_in_a_sandbox_is_restored_equal(folder, transport):
    path = str(folder / "a.snap")
    assert "io 3 " in witnessed(*booted(folder, transport, "--snapshot-when", "io 3 ", "--snapshot-to", path)).done.out
    with Image.open(path) as image:
        before = image.sections().states
    start_ns = host.monotonic_ns()
    with restored(path, before="activate") as rig:
        khz = rig.vcpus[0].thread.call(rig.vcpus[0].state.fd.get_tsc_khz)
        rig.machine.run_state = RunState.PAUSED  # nothing was activated; only `save` looks at this
        after = rig.machine.save()
        assert differences(before, after, elapsed(host.monotonic_ns() - start_ns, tsc_khz=khz)) == []


def test_a_restore_imports_nothing_inside(folder, transport):
    path = str(folder / "a.snap")
    assert "io 3 " in witnessed(*booted(folder, transport, "--snapshot-when", "io 3 ", "--snapshot-to", path)).done.out
    again = ("--snapshot-dir", str(folder), "--snapshot-when", "io 5 ", "--snapshot-to", str(folder / "b.snap"))
    for words in (("--exit-when", "io 5 "), ("--exit-when", "io 5 ", "--verify-memory", "--json"), again):
        restore = ("restore", path, "--disk", f"id=root,overlay={folder.parent}", "--sandbox")
        ended = witnessed(*restore, *words, probes=("thread",)).done
        assert ended.told("probes") == {"thread": "done"}


def test_keyed_snapshots_with_memory_of_their_own_are_made_and_restored_in_a_sandbox(folder):
    path, key = str(folder / "a.snap"), folder.parent / "key"
    key.write_bytes(bytes(range(32)))
    keyed = ("--key-file", str(key), "--snapshot-dir", str(folder))
    made = witnessed(*demo("--snapshot-when", "tick 3", "--snapshot-to", path, "--memory-file", *keyed)).done
    assert len(list(folder.glob("a.*.mem"))) == 1
    again = witnessed("restore", path, "--sandbox", "--exit-when", "tick 9", *keyed).done
    assert_uninterrupted(made.out + again.out)


def test_a_network_card_works_in_a_sandbox(folder, transport):
    need_tap()
    path, script = str(folder / "a.snap"), os.path.join(ROOT, "tools", "tap.py")
    texts = []
    for words in (
        (*booted(folder, transport, "--snapshot-when", "io 3 ", "--snapshot-to", path), "--net", "id=eth0,tap=tap0"),
        ("restore", path, "--sandbox", "--exit-when", "io 6 "),
    ):
        command = [sys.executable, script, "tap0", "--", sys.executable, "-m", "snapkit", *words]
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE_S, check=False
        )
        assert done.returncode == 0, done
        texts.append(done.stdout)
    right("".join(texts))


# What is refused, and how it is told


def test_orders_that_a_sandbox_does_not_allow_are_refused_and_the_machine_goes_on(folder, transport):
    sock, other = str(folder.parent / "c.sock"), str(folder.parent / "other.img")
    Path(other).write_bytes(bytes(MIB))
    with running(*booted(folder, transport, "--control", sock)) as machine:
        machine.read_until("io 2 ")
        for target in (folder.parent / "a.snap", folder / ".." / "a.snap", Path("/etc/a.snap")):
            refused = finished("snapshot", sock, str(target))
            assert refused.returncode == 2
            assert f"its --snapshot-dir is {folder}" in refused.stderr
        body = {"snapshot_path": str(folder / "a.snap"), "mem_file_path": str(folder.parent / "a.mem")}
        answer = ask(sock, "PUT", "/snapshot/create", body)
        assert (answer.status, answer.exit_code) == (400, 2)
        assert "a.mem cannot be written" in answer.content["fault_message"]
        answer = ask(sock, "PATCH", "/drives/root", {"path_on_host": other})
        assert (answer.status, answer.exit_code) == (400, 2)
        assert f"the machine is in a sandbox: it opens files only below {folder}" in answer.content["fault_message"]
        machine.read_until("sum ", times=machine.output.count(b"sum ") + 2)
        machine.signal(signal.SIGINT)
        assert machine.code() == 130
        right(machine.output.decode())
    assert sorted(os.listdir(folder)) == ["inside", "link"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--snapshot-when", "x", "--snapshot-to", "/tmp/a.snap"), "in a sandbox without --snapshot-dir"),
        (("--snapshot-dir", "/nonexistent"), "/nonexistent cannot be the directory for snapshots: no such file"),
        (("--snapshot-dir", "/etc/passwd"), "/etc/passwd cannot be the directory for snapshots: not a directory"),
        (("--reboot",), "--reboot opens everything anew"),
        (("--snapshot-dir", "/usr", "--snapshot-when", "x", "--snapshot-to", "/tmp/a.snap"), "--snapshot-dir is /usr"),
    ],
)
def test_what_does_not_go_with_a_sandbox_is_refused_before_anything_happens(words, said):
    done = finished(*demo(*words))
    assert done.returncode == 2, done
    assert said in done.stderr


def test_a_directory_for_snapshots_is_nothing_without_a_sandbox(tmp_path):
    done = finished("boot", DEMO, "--snapshot-dir", str(tmp_path))
    assert done.returncode == 2, done
    assert "--snapshot-dir goes with --sandbox" in done.stderr


def test_a_restore_that_fails_inside_is_told_as_outside(folder):
    path = str(folder / "a.snap")
    done = finished(*demo("--snapshot-when", "tick 3", "--snapshot-to", path, "--snapshot-dir", str(folder)))
    assert done.returncode == 0, done
    with open(path, "r+b") as file:  # the last page of memory: only a restore that reads all of it sees this
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    done = finished("restore", path, "--sandbox", "--verify-memory")
    assert done.returncode == 3, done
    assert "in step rebuild: map memory" in done.stderr
    assert "Traceback" not in done.stderr


def test_output_without_a_reader_ends_a_machine_in_a_sandbox_as_outside():
    codes = []
    for words in (demo(), [word for word in demo() if word != "--sandbox"]):
        with running(*words, "--json", "--serial", "null", "--timeout", "4") as machine:
            machine.close_reader()
            codes.append(machine.code())
            assert machine.errors() == ""
    assert codes[0] == codes[1]
