"""One run of a machine from the command line: console, signals, time limit, what is waited for, the snapshot.

`boot` and `restore` differ only in how the machine comes to be.
"""

import gc
import sys
from collections.abc import Callable, Iterable
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from snapkit import host, host_process
from snapkit.errors import ConfigError, SnapkitError, StateViolation
from snapkit.vmm.backends.console import Console
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import Machine
from snapkit.vmm.run_state import Reason, RunState, Stop

if TYPE_CHECKING:
    from snapkit.cli.sandbox import Sandbox
    from snapkit.restore.writer import WriteResult
    from snapkit.vmm.backends.http_server import HttpServer
    from snapkit.vmm.backends.reply import Answer, Reply
    from snapkit.vmm.control import Control

F = TypeVar("F", bound=Callable[..., Any])

SIGNALS = {
    host_process.SIGINT: Stop(Reason.INTERRUPTED),
    host_process.SIGTERM: Stop(Reason.STOPPED, "SIGTERM"),
    host_process.SIGHUP: Stop(Reason.CONSOLE_LOST, "SIGHUP"),
}
"""What each signal ends a run as."""
_TIMEOUT_MAX_S = 10**9


class Session(msgspec.Struct, kw_only=True):
    """What the operator asked for, beside the machine itself."""

    serial: str
    exit_when: str | None
    timeout: float | None
    snapshot_when: str | None
    snapshot_to: str | None
    then: str
    as_json: bool
    memory_file: bool = False
    parent_id: bytes | None = None
    key: bytes | None = None
    control: str | None = None
    sandbox: bool = False
    snapshot_dir: str | None = None
    report: dict[str, Any] = msgspec.field(default_factory=dict)
    deadline_ns: int | None = None
    """When the time allowed is over; from *timeout* at the first run, kept when a guest boots again."""
    ended: Reason | None = None
    _sandbox: "Sandbox | None" = None
    _machine: Machine | None = None
    _tried: bool = False
    _signal: Stop | None = None

    def run(self, build: Callable[[Loop, Console], Machine]) -> int:
        """Build the machine, run it, tell how it ended; returns the exit code."""
        if (self.snapshot_when is None) != (self.snapshot_to is None):
            raise ConfigError("--snapshot-when and --snapshot-to go together: when to snapshot, and to which file")
        if self.memory_file and self.snapshot_to is None:
            raise ConfigError("--memory-file goes with --snapshot-to: it says where that snapshot's memory goes")
        if self.timeout is not None and not 0 <= self.timeout <= _TIMEOUT_MAX_S:
            raise ConfigError(f"timeout is {self.timeout}, must be seconds, at least 0 and at most {_TIMEOUT_MAX_S}")
        if self.timeout is not None and self.deadline_ns is None:
            self.deadline_ns = host.monotonic_ns() + int(self.timeout * 1e9)
        if self.snapshot_dir is not None and not self.sandbox:
            raise ConfigError("--snapshot-dir goes with --sandbox: it says where a machine in a sandbox may write")
        if self.sandbox:
            from snapkit.cli.sandbox import Sandbox

            self._sandbox = Sandbox(self.snapshot_dir)
            self._sandbox.require_inside(self.snapshot_to)
        sys.setswitchinterval(1e-4)
        host_process.raise_fd_limit()
        with ExitStack() as stack:
            loop = stack.enter_context(Loop())
            console = Console.open(self.serial)
            stack.callback(console.close)
            self._watch(loop, console)
            stack.enter_context(
                host_process.on_signals(tuple(SIGNALS), lambda number: self._signalled(loop, SIGNALS[number]))
            )
            server = None if self.control is None else stack.enter_context(_listen(loop, self.control))
            machine = self._machine = stack.enter_context(build(loop, console))
            if server is not None:
                server.serve(self._api(machine))
            gc.enable()  # `snapkit.cli.main` had it off to start faster
            stop = machine.run()
        if stop.reason is Reason.RESET and self._signal is not None:
            stop = self._signal  # it came while the machine was closed: there must be no second boot
        self.ended = stop.reason
        self._tell(stop)
        if self.snapshot_to is not None and not self._tried and not stop.exit_code:
            raise StateViolation(
                f"snapshot to {self.snapshot_to}",
                actual=f"ended ({stop.reason})",
                required=f"running until {self.snapshot_when!r} appears",
                way_out="wait for a text that comes earlier",
            )
        return stop.exit_code

    def seal(self, kinds: Iterable[str], *, boots: bool = False, copies: bool = False) -> None:
        """Enter the sandbox, if one was asked for, for a machine of *kinds*; to be called when all is claimed.

        *boots* and *copies* say that a new machine is built then, and that memory is copied instead of mapped.
        """
        if self._sandbox is None:
            return
        from snapkit.cli import sandbox

        ahead = {
            sandbox.BOOT: boots,
            sandbox.COPY: copies,
            sandbox.KEY: self.key is not None,
            sandbox.CONTROL: self.control is not None,
            sandbox.JSON: self.as_json,
        }
        self._sandbox.enter(kinds, [need for need, there in ahead.items() if there])

    def _watch(self, loop: Loop, console: Console) -> None:
        if self.exit_when is not None:
            console.watch_for(self.exit_when, lambda: self._stop(loop, Stop(Reason.TEXT_SEEN)))
        if self.snapshot_when is not None:
            console.watch_for(self.snapshot_when, lambda: loop.post(self._snapshot))
        if self.deadline_ns is not None:
            loop.call_at(self.deadline_ns, lambda: self._stop(loop, Stop(Reason.TIMEOUT)))

    def _signalled(self, loop: Loop, stop: Stop) -> None:
        self._signal = stop
        loop.post(lambda: self._stop(loop, stop))

    def _stop(self, loop: Loop, stop: Stop) -> None:
        if self._machine is None:  # the guest runs already, the machine has not come back from `build` yet
            loop.post(lambda: self._stop(loop, stop))
        else:
            self._machine.request_stop(stop)

    def _snapshot(self) -> None:
        machine, path = self._machine, self.snapshot_to
        if path is None or machine is None or machine.stop_info is not None:
            return
        self._tried = True
        before_ns = host.monotonic_ns()
        ran = machine.run_state is RunState.RUNNING  # or the control socket was faster
        try:
            if ran:
                machine.pause()
            from snapkit.restore.save import save_snapshot

            result = save_snapshot(machine, path, parent_id=self.parent_id, key=self.key, memory_file=self.memory_file)
        except SnapkitError as error:
            if self.then == "stop":
                machine.request_stop(Stop(Reason.FAILED, "snapshot", error))
                return
            click.echo(f"snapkit: the snapshot failed, the machine goes on: {error}", err=True)
        else:
            self.report["snapshot"] = {
                "file": result.path,
                "id": result.snapshot_id.hex(),
                **({"memory_file": result.memory_path} if result.memory_path else {}),
                "memory_written": result.written,
                "ms": (host.monotonic_ns() - before_ns) // 1_000_000,
            }
            click.echo(f"snapkit: snapshot written to {path}", err=True)
        if self.then == "stop":
            machine.request_stop(Stop(Reason.STOPPED, f"snapshot written to {path}"))
        elif ran:
            machine.resume()

    def _api(self, machine: Machine) -> "Answer":
        """Return what answers requests. All that it needs is imported by the first of them, while the guest runs."""
        began_ns, made = host.monotonic_ns(), list["Control"]()

        def answer(method: str, target: str, body: bytes) -> "Reply":
            if not made:
                from snapkit.restore.save import save_snapshot
                from snapkit.vmm.control import Control

                save = partial(save_snapshot, machine, parent_id=self.parent_id, key=self.key)
                sandbox = self._sandbox

                def save_inside(path: str, *, memory_path: str | None, captured: Callable[[], None]) -> "WriteResult":
                    if sandbox is not None:
                        sandbox.require_inside(path, memory_path)
                    return save(path, memory_path=memory_path, captured=captured)

                explain = None if sandbox is None else sandbox.explain
                made.append(Control(machine, save_inside, parent_id=self.parent_id, began_ns=began_ns, explain=explain))
            return made[0].answer(method, target, body)

        return answer

    def _tell(self, stop: Stop) -> None:
        if stop.error is not None:
            raise stop.error
        if self.as_json:
            self.report |= {"stop": stop.reason.name.lower(), "detail": stop.detail, "exit": stop.exit_code}
            import json

            # on a line of its own, wherever the guest's output ended
            click.echo(("\n" if self.serial == "stdio" else "") + json.dumps(self.report))
        else:
            detail = f" ({stop.detail})" if stop.detail else ""
            click.echo(f"snapkit: {stop.reason}{detail}", err=True)


def _listen(loop: Loop, path: str) -> "closing[HttpServer]":
    """Take the control socket before the machine is there, so that a second one on the same socket never runs."""
    from snapkit.vmm.backends.http_server import HttpServer

    return closing(HttpServer(loop, path))


def session_options(command: F) -> F:
    """Add the options of a `Session` to a command."""
    for option in (
        click.option(
            "--snapshot-dir", metavar="DIR", help="With --sandbox: where snapshots may be written, and nowhere else."
        ),
        click.option(
            "--sandbox",
            is_flag=True,
            help="Give up every system call and file that a running machine does not need; `snapkit doctor` lists them.",
        ),
        click.option("--json", "as_json", is_flag=True, help="End with a line of JSON that says what happened."),
        click.option("--timeout", type=float, metavar="S", help="Stop after S seconds; exit 124."),
        click.option("--control", metavar="SOCK", help="Take orders on this Unix socket: `snapkit pause SOCK`, ..."),
        click.option("--exit-when", metavar="TEXT", help="Stop when TEXT appears on the serial port; exit 0."),
        click.option(
            "--then",
            type=click.Choice(["stop", "continue"]),
            default="stop",
            show_default=True,
            help="After the snapshot.",
        ),
        click.option(
            "--memory-file",
            is_flag=True,
            help="Put the snapshot's memory into a new file beside it, NAME.<snapshot id>.mem; keep the two together.",
        ),
        click.option("--snapshot-to", metavar="FILE", help="Where the snapshot goes."),
        click.option("--snapshot-when", metavar="TEXT", help="Snapshot when TEXT appears on the serial port."),
        click.option(
            "--serial",
            default="stdio",
            show_default=True,
            metavar="stdio|null|file:PATH",
            help="The serial port's other end. On a terminal, Ctrl-A x quits.",
        ),
    ):
        command = option(command)
    return command
