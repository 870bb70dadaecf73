"""The orders that a running machine takes over its control socket: HTTP requests with JSON bodies.

Where Firecracker's API has a counterpart, method, path and bodies are that one's (its swagger document,
src/firecracker/swagger/firecracker.yaml), for its clients speak it; the rest lies under ``/snapkit/``. What differs:

- a snapshot may be asked for while the guest runs: it is paused, saved, and goes on by itself
- ``mem_file_path`` is optional; without it memory is in the snapshot file
- an error has ``exit_code`` beside ``fault_message``: what the command line exits with
- the answer to a snapshot has a header ``snapkit-snapshot``, JSON that says what was written

Everything here runs on the loop's thread, so a request sees the machine between two events. A snapshot holds the loop
until the disk has it; the guest is held only while its memory is read, and after that waits for nobody but a full
console buffer.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from snapkit import host
from snapkit.errors import ConfigError, InternalError, SnapkitError, StateViolation
from snapkit.state.machine import MachineState
from snapkit.units import MIB
from snapkit.version import __version__
from snapkit.vmm import control_devices
from snapkit.vmm.backends.reply import Reply
from snapkit.vmm.control_devices import Devices
from snapkit.vmm.run_state import Reason, RunState, Stop

T = TypeVar("T")


class BootSource(Protocol):
    """What a machine was booted from."""

    @property
    def kernel(self) -> str: ...

    @property
    def initrd(self) -> str | None: ...

    @property
    def cmdline(self) -> str: ...


class Driven(Protocol):
    """What takes the orders; `snapkit.vmm.machine.Machine` is one."""

    @property
    def run_state(self) -> RunState: ...

    @property
    def stop_info(self) -> Stop | None: ...

    @property
    def state(self) -> MachineState: ...

    @property
    def boot_source(self) -> BootSource | None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def held(self) -> AbstractContextManager[Callable[[], None]]: ...

    def request_stop(self, stop: Stop) -> None: ...

    def memory_spans(self) -> Sequence[tuple[int, int, int]]: ...

    @property
    def board(self) -> Devices: ...

    def counters(self) -> Mapping[str, Mapping[str, int]]: ...


class Saved(Protocol):
    """What a snapshot came to."""

    @property
    def snapshot_id(self) -> bytes: ...

    @property
    def written(self) -> int: ...


class Save(Protocol):
    """Write a snapshot of the machine, which is paused; call *captured* once its memory is no longer looked at."""

    def __call__(self, path: str, *, memory_path: str | None, captured: Callable[[], None]) -> Saved: ...


class VmUpdate(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``PATCH /vm``."""

    state: Literal["Paused", "Resumed"]


class SnapshotCreate(msgspec.Struct, forbid_unknown_fields=True):
    """Body of ``PUT /snapshot/create``."""

    snapshot_path: str
    mem_file_path: str | None = None
    snapshot_type: Literal["Full"] = "Full"


class Control:
    """The API of one machine. `answer` never raises."""

    def __init__(
        self,
        machine: Driven,
        save: Save,
        *,
        parent_id: bytes | None = None,
        began_ns: int | None = None,
        explain: Callable[[SnapkitError], None] | None = None,
    ) -> None:
        """*parent_id* is the snapshot that the machine came from; *began_ns* when it came to be, if not just now.

        *explain* may add a note to an error before it is told.
        """
        # Configuration
        self._machine, self._save, self._parent_id, self._explain = machine, save, parent_id, explain
        # Runtime glue
        self._began_ns = host.monotonic_ns() if began_ns is None else began_ns
        self._last_snapshot: dict[str, Any] | None = None
        self._snapshots = self._failed_snapshots = 0
        self._routes: dict[tuple[str, str], Callable[[bytes], Reply]] = {
            ("GET", "/"): self._instance,
            ("GET", "/machine-config"): lambda _body: _json(self._machine_config()),
            ("GET", "/vm/config"): lambda _body: _json(self._vm_config()),
            ("PATCH", "/vm"): self._update_vm,
            ("PUT", "/snapshot/create"): self._create_snapshot,
            ("GET", "/snapkit/status"): self._status,
            ("PUT", "/snapkit/stop"): self._stop,
        }

    def answer(self, method: str, target: str, body: bytes) -> Reply:
        """Carry out one request."""
        try:
            path = target.partition("?")[0]
            handler = self._routes.get((method, path))
            if handler is None:
                reply = self._device(method, path, body)
                if reply is not None:
                    return reply
                raise ConfigError(f"there is no {method} {target}")
            return handler(body)
        except SnapkitError as error:
            if self._explain is not None:
                self._explain(error)
            return _fault(error)
        except Exception as error:  # a bug of ours must not end the guest
            return _fault(InternalError(f"{method} {target}: {type(error).__name__}: {error}"))

    # Firecracker's

    def _instance(self, _body: bytes) -> Reply:
        state = {RunState.RUNNING: "Running", RunState.PAUSED: "Paused"}.get(self._machine.run_state, "Not started")
        identity = self._machine.state.machine_id.hex()
        return _json({"app_name": "snapkit", "id": identity, "state": state, "vmm_version": __version__})

    def _machine_config(self) -> dict[str, Any]:
        return {
            "vcpu_count": self._machine.state.vcpu_count,
            "mem_size_mib": self._memory_len() // MIB,
            "smt": False,
            "track_dirty_pages": False,
            "huge_pages": "None",
        }

    def _vm_config(self) -> dict[str, Any]:
        source = self._machine.boot_source  # empty in a restored machine, as there
        return {
            "boot-source": {
                "kernel_image_path": source.kernel if source else "",
                "initrd_path": source.initrd if source else None,
                "boot_args": source.cmdline if source else None,
            },
            "machine-config": self._machine_config(),
            **control_devices.listed(self._machine.board),
        }

    def _update_vm(self, body: bytes) -> Reply:
        update = _decode(body, VmUpdate)
        self._check_alive()
        if update.state == "Paused":
            self._machine.pause()
        else:
            self._machine.resume()
        return Reply(204)

    def _create_snapshot(self, body: bytes) -> Reply:
        asked = _decode(body, SnapshotCreate)
        self._check_alive()
        began_ns = host.monotonic_ns()
        held_ns: list[int] = []
        try:
            with self._machine.held() as go_on:
                self._check_alive()  # the guest may have powered off on its way into the pause

                def captured() -> None:
                    held_ns.append(host.monotonic_ns() - began_ns)
                    go_on()

                saved = self._save(asked.snapshot_path, memory_path=asked.mem_file_path, captured=captured)
        except BaseException:
            self._failed_snapshots += 1
            raise
        self._snapshots += 1
        self._last_snapshot = {
            "file": asked.snapshot_path,
            "memory_file": asked.mem_file_path,
            "id": saved.snapshot_id.hex(),
            "memory_written": saved.written,
            "ms": (host.monotonic_ns() - began_ns) // 1_000_000,
            "paused_ms": held_ns[0] // 1_000_000 if held_ns else None,
        }
        return Reply(204, headers=(("snapkit-snapshot", json.dumps(self._last_snapshot)),))

    # Ours

    def _status(self, _body: bytes) -> Reply:
        machine = self._machine
        stop = machine.stop_info
        return _json(
            {
                "state": machine.run_state.name.lower(),
                "stop": None if stop is None else stop.reason.name.lower(),
                "pid": host.process_id(),
                "uptime_ms": (host.monotonic_ns() - self._began_ns) // 1_000_000,
                "snapkit": __version__,
                "machine_id": machine.state.machine_id.hex(),
                "vcpus": machine.state.vcpu_count,
                "memory": self._memory_len(),
                "cpu": machine.state.cpu_profile,
                **machine.counters(),
                "parent_snapshot": None if self._parent_id is None else self._parent_id.hex(),
                "snapshots": self._snapshots,
                "failed_snapshots": self._failed_snapshots,
                "last_snapshot": self._last_snapshot,
            }
        )

    def _stop(self, _body: bytes) -> Reply:
        self._machine.request_stop(Stop(Reason.STOPPED, "asked to on its control socket"))
        return Reply(204)

    # Devices

    def _device(self, method: str, path: str, body: bytes) -> Reply | None:
        if method != "GET":
            self._check_alive()
        return control_devices.answer(self._machine.board, method, path, body)

    # Private

    def _memory_len(self) -> int:
        return sum(length for _gpa, _hva, length in self._machine.memory_spans())

    def _check_alive(self) -> None:
        stop = self._machine.stop_info
        if stop is not None:
            raise StateViolation(
                "take an order", actual=f"ending ({stop.reason})", required="running or paused", way_out="boot it again"
            )


def _decode(body: bytes, shape: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"the body is not what was expected: {error}") from error


def _json(content: Mapping[str, Any]) -> Reply:
    return Reply(200, json.dumps(content).encode())


def _fault(error: SnapkitError) -> Reply:
    message = "\n".join([str(error), *getattr(error, "__notes__", ())])
    body = json.dumps({"fault_message": message, "exit_code": error.exit_code})
    return Reply(500 if isinstance(error, InternalError) else 400, body.encode())
