"""The API against a machine that is played: paths, bodies, run-states, what a failure leaves, what errors say."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from snapkit.errors import ConfigError, HostError, ImageError, InternalError, SnapkitError, StateViolation
from snapkit.state.machine import EM_X86_64, MachineState
from snapkit.units import MIB
from snapkit.vmm.backends.reply import Reply
from snapkit.vmm.control import Control
from snapkit.vmm.run_state import Reason, RunState, Stop

IDENTITY = bytes(range(16))


@dataclass
class Source:
    kernel: str = "/k"
    initrd: str | None = None
    cmdline: str = "console=ttyS0"


class Shelf:
    """No devices."""

    def device(self, kind: str, instance: str | None = None) -> None:
        return None

    def devices(self, kind: str) -> Iterator[tuple[str, Any]]:
        return iter(())


class Player:
    """A machine whose guest is a list of what happened."""

    def __init__(self) -> None:
        self.run_state = RunState.RUNNING
        self.stop_info: Stop | None = None
        self.boot_source: Source | None = Source()
        self.state = MachineState(
            architecture=EM_X86_64, machine_id=IDENTITY, vcpu_count=2, cpu_profile="baseline", tsc_khz=0
        )
        self.log: list[str] = []
        self.board = Shelf()

    def pause(self) -> None:
        self._turn(RunState.RUNNING, RunState.PAUSED, "pause")

    def resume(self) -> None:
        self._turn(RunState.PAUSED, RunState.RUNNING, "resume")

    def _turn(self, required: RunState, then: RunState, what: str) -> None:
        if self.run_state is not required:
            raise StateViolation(what, actual=str(self.run_state), required=str(required), way_out="do that")
        self.log.append(what)
        self.run_state = then

    @contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        ran = self.run_state is RunState.RUNNING
        if ran:
            self.pause()

        def go_on() -> None:
            if ran and self.run_state is RunState.PAUSED:
                self.resume()

        try:
            yield go_on
        finally:
            go_on()

    def request_stop(self, stop: Stop) -> None:
        self.stop_info = stop

    def memory_spans(self) -> Sequence[tuple[int, int, int]]:
        return [(0, 0x1000, 3 * MIB), (1 << 32, 0x2000, MIB)]

    def counters(self) -> Mapping[str, Mapping[str, int]]:
        return {"unclaimed": {"port": 3, "mmio": 0}, "faults": {"serial-16550/0": 1}}


@dataclass
class Written:
    snapshot_id: bytes = b"\xab" * 16
    written: int = 4096


class Rig:
    """The API with its machine, and what a save does."""

    def __init__(self) -> None:
        self.machine = Player()
        self.saves: list[tuple[str, str | None]] = []
        self.error: BaseException | None = None
        self.control = Control(self.machine, self._save, parent_id=b"\x01" * 16)

    def _save(self, path: str, *, memory_path: str | None, captured: Callable[[], None]) -> Written:
        assert self.machine.run_state is RunState.PAUSED
        self.saves.append((path, memory_path))
        if self.error is not None:
            raise self.error
        captured()
        self.machine.log.append("disk")
        return Written()

    def ask(self, method: str, target: str, body: Any = None) -> Reply:
        text = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return self.control.answer(method, target, text)

    def get(self, target: str) -> dict[str, Any]:
        reply = self.ask("GET", target)
        assert reply.status == 200
        return dict(json.loads(reply.body))

    def fault(self, method: str, target: str, body: Any = None) -> tuple[int, int, str]:
        reply = self.ask(method, target, body)
        content = json.loads(reply.body)
        assert set(content) == {"fault_message", "exit_code"}
        return reply.status, content["exit_code"], content["fault_message"]


@pytest.fixture
def rig():
    return Rig()


def test_the_instance_is_told_as_firecracker_tells_it(rig):
    told = rig.get("/")
    assert set(told) == {"app_name", "id", "state", "vmm_version"}
    assert (told["app_name"], told["id"], told["state"]) == ("snapkit", IDENTITY.hex(), "Running")
    rig.machine.run_state = RunState.PAUSED
    assert rig.get("/")["state"] == "Paused"
    rig.machine.run_state = RunState.BUILDING
    assert rig.get("/")["state"] == "Not started"


def test_the_configuration_is_told_as_firecracker_tells_it(rig):
    machine = {
        "vcpu_count": 2,
        "mem_size_mib": 4,
        "smt": False,
        "track_dirty_pages": False,
        "huge_pages": "None",
    }
    assert rig.get("/machine-config") == machine
    whole = rig.get("/vm/config")
    assert whole["machine-config"] == machine
    assert whole["boot-source"] == {"kernel_image_path": "/k", "initrd_path": None, "boot_args": "console=ttyS0"}
    assert whole["drives"] == whole["network-interfaces"] == []


def test_a_restored_machine_has_an_empty_boot_source(rig):
    rig.machine.boot_source = None
    assert rig.get("/vm/config")["boot-source"] == {"kernel_image_path": "", "initrd_path": None, "boot_args": None}


def test_pause_and_resume(rig):
    assert rig.ask("PATCH", "/vm", {"state": "Paused"}) == Reply(204)
    assert rig.ask("PATCH", "/vm", {"state": "Resumed"}) == Reply(204)
    assert rig.machine.log == ["pause", "resume"]


def test_the_wrong_run_state_is_told_with_the_way_out(rig):
    assert rig.fault("PATCH", "/vm", {"state": "Resumed"}) == (
        400,
        6,
        "resume while running, must be paused: do that",
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"state": "Running"}',
        b'{"state": 1}',
        b"{}",
        b'{"state": "Paused", "more": 1}',
        b"[" * 50_000,
        b'{"state": ' + b"[" * 50_000,
        b'{"x":' * 10_000,
        b'{"state": "\\ud800"}',
        b'{"state": 1e999999999}',
    ],
)
def test_a_body_of_the_wrong_shape_changes_nothing(rig, body):
    status, code, message = rig.fault("PATCH", "/vm", body)
    assert (status, code) == (400, 2)
    assert message.startswith("the body is not what was expected: ")
    assert rig.machine.log == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"snapshot_path": None},
        {"snapshot_path": 1},
        {"snapshot_path": "a", "snapshot_type": "Diff"},
        {"snapshot_path": "a", "version": "1.0"},
        {"mem_file_path": "a"},
    ],
)
def test_a_snapshot_asked_for_wrongly_does_not_even_pause(rig, body):
    assert rig.fault("PUT", "/snapshot/create", body)[:2] == (400, 2)
    assert rig.machine.log == rig.saves == []


def test_a_running_guest_goes_on_as_soon_as_its_memory_was_read(rig):
    reply = rig.ask("PUT", "/snapshot/create", {"snapshot_path": "/a", "mem_file_path": "/b", "snapshot_type": "Full"})
    assert (reply.status, reply.body) == (204, b"")
    assert rig.machine.log == ["pause", "resume", "disk"]
    assert rig.saves == [("/a", "/b")]
    told = json.loads(dict(reply.headers)["snapkit-snapshot"])
    assert (told["file"], told["memory_file"], told["id"], told["memory_written"]) == ("/a", "/b", "ab" * 16, 4096)


def test_a_path_of_any_letters_fits_into_the_header(rig):
    reply = rig.ask("PUT", "/snapshot/create", {"snapshot_path": "/ü\n\r\t/\u2603"})
    told = dict(reply.headers)["snapkit-snapshot"]
    assert told.isascii()
    assert told.isprintable()
    assert json.loads(told)["file"] == "/ü\n\r\t/\u2603"


def test_a_paused_guest_stays_paused(rig):
    rig.machine.pause()
    assert rig.ask("PUT", "/snapshot/create", {"snapshot_path": "/a"}).status == 204
    assert rig.machine.log == ["pause", "disk"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (HostError("pwrite", 28, "3"), 400, 5),
        (ConfigError("no such place"), 400, 2),
        (ImageError("wrong"), 400, 3),
        (InternalError("a bug"), 500, 70),
        (RuntimeError("another"), 500, 70),
    ],
)
@pytest.mark.parametrize("running", [True, False])
def test_after_a_failed_snapshot_the_machine_is_as_before_and_the_next_one_works(rig, error, status, code, running):
    if not running:
        rig.machine.pause()
    before = rig.machine.run_state
    rig.error = error
    got = rig.fault("PUT", "/snapshot/create", {"snapshot_path": "/a"})
    assert got[:2] == (status, code)
    assert str(error) in got[2]
    assert rig.machine.run_state is before
    rig.error = None
    assert rig.ask("PUT", "/snapshot/create", {"snapshot_path": "/a"}).status == 204
    assert rig.machine.run_state is before
    told = rig.get("/snapkit/status")
    assert (told["snapshots"], told["failed_snapshots"]) == (1, 1)


def test_the_notes_of_an_error_are_told_too(rig):
    rig.error = HostError("pwrite", 28, "3")
    rig.error.add_note("in chunk 7")
    assert rig.fault("PUT", "/snapshot/create", {"snapshot_path": "/a"})[2].endswith("\nin chunk 7")


def test_a_machine_that_ends_takes_no_more_orders_but_says_what_it_does(rig):
    assert rig.ask("PUT", "/snapkit/stop").status == 204
    assert rig.machine.stop_info is not None
    assert rig.machine.stop_info.reason is Reason.STOPPED
    for method, target, body in (
        ("PATCH", "/vm", {"state": "Paused"}),
        ("PUT", "/snapshot/create", {"snapshot_path": "/a"}),
    ):
        status, code, message = rig.fault(method, target, body)
        assert (status, code) == (400, 6)
        assert "ending (stopped)" in message
    assert rig.saves == []
    assert rig.get("/snapkit/status")["stop"] == "stopped"


def test_a_guest_that_powers_off_on_its_way_into_the_pause_is_not_saved(rig):
    real = rig.machine.pause

    def pause() -> None:
        real()
        rig.machine.stop_info = Stop(Reason.POWER_OFF)

    rig.machine.pause = pause
    assert rig.fault("PUT", "/snapshot/create", {"snapshot_path": "/a"})[1] == 6
    assert rig.saves == []


def test_status_says_all_there_is(rig):
    told = rig.get("/snapkit/status")
    assert told["state"] == "running"
    assert told["memory"] == 4 * MIB
    assert told["cpu"] == "baseline"
    assert told["unclaimed"] == {"port": 3, "mmio": 0}
    assert told["faults"] == {"serial-16550/0": 1}
    assert told["parent_snapshot"] == "01" * 16
    assert told["last_snapshot"] is None
    assert told["pid"] > 0
    assert told["uptime_ms"] >= 0


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/nothing"),
        ("POST", "/"),
        ("PUT", "/vm"),
        ("DELETE", "/snapkit/stop"),
        ("GET", "//"),
        ("CONNECT", "x:1"),
    ],
)
def test_what_there_is_not_is_refused_by_name(rig, method, target):
    assert rig.fault(method, target) == (400, 2, f"there is no {method} {target}")


def test_a_query_is_not_part_of_the_path(rig):
    assert rig.ask("GET", "/?x=1").status == 200


def test_a_bug_behind_a_request_is_told_and_not_raised(rig):
    def broken() -> Mapping[str, Mapping[str, int]]:
        raise KeyError("broken")

    rig.machine.counters = broken
    status, code, message = rig.fault("GET", "/snapkit/status")
    assert (status, code) == (500, SnapkitError.exit_code)
    assert "KeyError" in message
