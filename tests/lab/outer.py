"""The lab's outer machine: Linux under QEMU's software emulation, with nested virtualisation and so a real /dev/kvm.

    with Outer() as outer:
        result = outer.run(outer.snapkit("doctor"), timeout=60)

One machine carries many scenarios. It is of any architecture of `tests.lab.architecture`; what its root is and how it
starts say `tests.lab.boot` and `tests.lab.root`. The checkout is there under its own path, `python` has what it needs.
`/tmp` inside is a memory file system of its own; `share` is a writable folder that both sides see under one path. Jobs
are run by `tests.lab.agent` inside.

With SNAPKIT_LAB_SANDBOX=1 in the environment every machine that a scenario starts runs with ``--sandbox``.

Surprises: everything takes some thirty times as long as outside, so bounds are generous. Files of the root are cached
inside, so the checkout must not change while a machine runs. Sockets belong into the inside's `/tmp`, not on the share.
A beat: QEMU's VMRUN sets a bit of the CPU's pending interrupts without the lock that other threads take to set theirs
(helper_vmrun in target/i386/tcg/sysemu/svm_helper.c), so one of theirs can be lost. Linux waits for its timer's only
once; an order a second brings an interrupt that has the lost one looked at again.
QEMU dies with the *thread* that started it (parent-death signal), however that ends: start the machine in the main one.
"""

import base64
import contextlib
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab import packages
from tests.lab.architecture import X86_64, Architecture
from tests.lab.boot import Boot
from tests.lab.kernels import kernel
from tests.lab.root import host_python, root

BOOT_S = 240.0  # 6 to 10 s on an idle machine
ANSWER_S = 120.0  # for the agent to report what it was due to report
POLL_S = 0.05
BEAT_S = 1.0
MONITOR_S = 10.0  # for QEMU's monitor to answer
STALE_S = 24 * 3600.0  # a run's folder untouched for so long has no run any more


class LabError(Exception):
    """The outer machine or a job in it did not do what was asked; the text holds what it last said."""


class OuterDiedError(LabError):
    """The outer machine itself is gone, or does not answer: it could not even end a job that was over its time.

    No program in it can do that: its kernel or its emulator failed.

    Nested SVM under TCG does so at times (seen: an interrupt taken right after VMRUN, with the guest's GS base still
    loaded), whichever monitor runs the guest; far more often when the outer machine has two CPUs.
    """


@dataclass(frozen=True)
class Result:
    """What became of a job: its exit code (negative: the signal that ended it) and what it wrote."""

    argv: tuple[str, ...]
    code: int
    timed_out: bool
    seconds: float
    stdout: str
    stderr: str

    def __str__(self) -> str:
        end = "timed out" if self.timed_out else f"exit {self.code}"
        return (
            f"{shlex.join(self.argv)}: {end} after {self.seconds:.1f} s"
            f"\n--- stdout\n{tail(self.stdout)}\n--- stderr\n{tail(self.stderr)}"
        )


class Job:
    """A command that runs in the outer machine; made by `Outer.start`."""

    def __init__(self, outer: "Outer", name: str, argv: tuple[str, ...], timeout: float, folder: Path) -> None:
        self._outer = outer
        self.name = name
        self.argv = argv
        self.timeout = timeout
        self.folder = folder

    @property
    def stdout(self) -> str:
        """What the job has written so far. Bytes that are no UTF-8 show as replacement characters."""
        return self._text("stdout")

    @property
    def stderr(self) -> str:
        """What the job has written to stderr so far."""
        return self._text("stderr")

    @property
    def running(self) -> bool:
        """Whether no end was reported yet. Raises `LabError` when the job could not be started."""
        return self._outer._end_of(self) is None

    def expect(self, text: str, *, start: int = 0, timeout: float | None = None) -> int:
        """Wait until stdout holds *text* at or after offset *start*; give the offset behind it.

        Raises `LabError` when the job ends without it or *timeout* (default: the job's own) passes.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            ended = not self.running  # before reading: what was written before the end is then in the file
            found = self.stdout.find(text, start)
            if found >= 0:
                return found + len(text)
            if ended:
                raise LabError(f"ended without printing {text!r}: {self.wait()}")
            if time.monotonic() > deadline:
                raise LabError(
                    f"printed no {text!r} in time: {shlex.join(self.argv)}\n{tail(self.stdout)}\n{tail(self.stderr)}"
                )
            time.sleep(POLL_S)

    def write(self, payload: bytes, *, end: bool = False) -> None:
        """Send *payload* to the job's stdin (started with `stdin`), and close it if *end*."""
        self._outer._order(op="stdin", name=self.name, text=base64.b64encode(payload).decode(), end=end)

    def signal(self, number: int) -> None:
        """Send a signal to the job's process."""
        self._outer._order(op="signal", name=self.name, number=number)

    def wait(self) -> Result:
        """Wait for the end, at most the job's own timeout and a margin. A job that timed out is a result as well."""
        deadline = time.monotonic() + self.timeout + ANSWER_S
        while (end := self._outer._end_of(self)) is None:
            if time.monotonic() > deadline:
                story = self._outer.autopsy()
                raise OuterDiedError(f"no end reported: {shlex.join(self.argv)}\n{story}")
            self._outer._await_event()
        return Result(self.argv, end["code"], end["timed_out"], end["seconds"], self.stdout, self.stderr)

    def _text(self, name: str) -> str:
        try:
            return (self.folder / name).read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return ""


class Outer:
    """Boot the outer machine on entering, end it on leaving; run jobs in between."""

    def __init__(
        self,
        architecture: Architecture = X86_64,
        *,
        cpu: str | None = None,
        cpus: int | None = None,
        memory_mib: int | None = None,
        counted: bool = False,
    ) -> None:
        """*counted*: time inside is a count of instructions (`tests.lab.boot`)."""
        self.architecture = architecture
        self._cpu, self._cpus, self._memory_mib, self._counted = cpu, cpus, memory_mib, counted
        runs = packages.cache_folder() / "runs"
        runs.mkdir(exist_ok=True)
        _prune(runs)
        self.folder = Path(tempfile.mkdtemp(prefix="outer-", dir=runs))
        self.share = self.folder / "share"
        self.work = Path("/tmp/work")  # inside only: where jobs start
        self.console = self.folder / "console.log"
        self.sandboxed = bool(os.environ.get("SNAPKIT_LAB_SANDBOX"))
        self.boot_s = 0.0
        self.python = ""  # the interpreter inside that has the project's dependencies
        self._qemu: subprocess.Popen[bytes] | None = None
        self._port: socket.socket | None = None
        self._monitor: socket.socket | None = None
        self._sending = threading.Lock()
        self._events = threading.Condition()
        self._started: set[str] = set()
        self._ends: dict[str, dict[str, Any]] = {}
        self._ready = False
        self._gone = False
        self._count = 0

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:  # also an interrupt: no machine is left behind
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the machine at once and remove its folder, unless `SNAPKIT_LAB_KEEP` is set."""
        if self._qemu is not None:
            self._qemu.kill()
            self._qemu.wait()
        for end in (self._port, self._monitor):
            if end is not None:
                end.close()
        if not os.environ.get("SNAPKIT_LAB_KEEP"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        timeout: float,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes | None = None,
        keep_stdin: bool = False,
    ) -> Job:
        """Start a command and return at once.

        *stdin* is sent and closed, unless *keep_stdin*: then it stays open for `Job.write`. Without either it is empty.
        After *timeout* seconds the job's process group is aborted, then killed; the result says so.
        """
        self._count += 1
        name = f"job{self._count}"
        folder = self.share / name
        folder.mkdir()
        command = tuple(os.fspath(word) for word in argv)
        job = Job(self, name, command, timeout, folder)
        fed = stdin is not None or keep_stdin
        where = os.fspath(cwd or self.work)
        # Not installed in the environment, say: the checkout itself is what is tested.
        environment = {"PYTHONPATH": str(packages.CHECKOUT), "PYTHONFAULTHANDLER": "1", **(env or {})}
        self._order(
            op="run",
            name=name,
            argv=command,
            cwd=where,
            env=environment,
            timeout=timeout,
            folder=str(folder),
            stdin=fed,
        )
        if fed:
            # Input for a job that has not started would be dropped.
            self._await(
                lambda: name in self._ends or name in self._started, ANSWER_S, f"start of {shlex.join(command)}"
            )
            if stdin is not None:
                job.write(stdin, end=not keep_stdin)
        return job

    def run(self, argv: Sequence[str | os.PathLike[str]], **options: Any) -> Result:
        """Run a command to its end; takes what `start` takes."""
        return self.start(argv, **options).wait()

    def snapkit(self, *words: str | os.PathLike[str]) -> list[str]:
        """Give the command line that runs the checkout's snapkit with *words*, in a sandbox where `sandboxed` says so."""
        command = [self.python, "-m", "snapkit", *(os.fspath(word) for word in words)]
        if self.sandboxed and words and words[0] in {"boot", "restore"}:
            command += ["--sandbox", "--snapshot-dir", str(self.work)]
        return command

    @contextlib.contextmanager
    def sandbox(self) -> Iterator[None]:
        """Have the machines that `snapkit` starts in the with block run in a sandbox."""
        before, self.sandboxed = self.sandboxed, True
        try:
            yield
        finally:
            self.sandboxed = before

    def console_tail(self) -> str:
        """Give the end of the machine's own console."""
        with contextlib.suppress(FileNotFoundError):
            return "--- console of the outer machine\n" + tail(self.console.read_bytes().decode(errors="replace"), 150)
        return "the outer machine has printed nothing"

    def autopsy(self) -> str:
        """Say what a machine that does not answer is doing, and end it: where its CPUs are, twice, and its kernel's own word."""
        words = []
        for order in self.architecture.autopsy:
            words.append(f"--- {order}\n{self._ask_monitor(order)}")
            time.sleep(POLL_S)
        time.sleep(MONITOR_S)
        return "\n".join([*words, self.console_tail()])

    # Boot

    def _boot(self) -> None:
        begin = time.monotonic()
        self.share.mkdir()
        boot = self._boot_description()
        initrd = self.folder / "initrd.gz"
        initrd.write_bytes(boot.initramfs())
        self._compile_checkout(boot)
        self.python = boot.python
        ours, theirs = socket.socketpair()
        self._port = ours
        self._monitor, monitor = socket.socketpair()
        with theirs, monitor, (self.folder / "qemu.log").open("wb") as log:
            command = boot.command(initrd=initrd, console=self.console, port=theirs.fileno(), monitor=monitor.fileno())
            self._qemu = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(theirs.fileno(), monitor.fileno()),
                start_new_session=True,
            )
        threading.Thread(target=self._listen, args=(ours,), daemon=True).start()
        self._await(lambda: self._ready, BOOT_S, "boot of the outer machine")
        self.boot_s = time.monotonic() - begin
        threading.Thread(target=self._beat, daemon=True).start()

    def _boot_description(self) -> Boot:
        this = self.architecture
        return Boot(
            this,
            cpu=self._cpu or this.cpu,
            cpus=self._cpus or this.cpus,
            memory_mib=self._memory_mib or this.memory_mib,
            kernel=kernel(this, this.outer_kernel),
            root=None if this.is_host else root(this),
            share=self.share,
            counted=self._counted,
        )

    def _compile_checkout(self, boot: Boot) -> None:
        # Bytecode cannot be stored on the read-only root, and compiling inside takes seconds for each process.
        compiler = host_python(boot.root.python_version) if boot.root else sys.executable
        if compiler is not None:
            command = [compiler, "-m", "compileall", "-qq", str(packages.CHECKOUT / "snapkit")]
            subprocess.run(command, check=False, stdin=subprocess.DEVNULL)

    # The agent's port

    def _order(self, **order: object) -> None:
        assert self._port is not None, "the machine is not booted"
        try:
            with self._sending:
                self._port.sendall(json.dumps(order).encode() + b"\n")
        except OSError as error:
            raise OuterDiedError(f"the outer machine is gone: {error}\n{self.console_tail()}") from error

    def _beat(self) -> None:
        while True:
            with self._events:
                if self._events.wait_for(lambda: self._gone, BEAT_S):
                    return
            with contextlib.suppress(OuterDiedError):
                self._order(op="beat")

    def _ask_monitor(self, order: str) -> str:
        """Give QEMU's monitor an order; its answer, as far as it comes."""
        assert self._monitor is not None, "the machine is not booted"
        self._monitor.settimeout(MONITOR_S)
        said = b""
        with contextlib.suppress(OSError):
            self._monitor.sendall(order.encode() + b"\n")
            while said.count(b"(qemu) ") < 2 and (chunk := self._monitor.recv(65536)):
                said += chunk
                self._monitor.settimeout(1.0)
        return said.partition(b"\n")[2].decode(errors="replace")  # behind the echo

    def _listen(self, port: socket.socket) -> None:
        pending = b""
        with contextlib.suppress(OSError):  # closed under us by `close`
            while chunk := port.recv(65536):
                *lines, pending = (pending + chunk).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
        with self._events:
            self._gone = True
            self._events.notify_all()

    def _take(self, event: dict[str, Any]) -> None:
        with self._events:
            if event["event"] == "ready":
                self._ready = True
            elif event["event"] == "started":
                self._started.add(event["name"])
            elif event["event"] in {"exit", "error"}:
                self._ends.setdefault(event["name"], event)
            self._events.notify_all()

    def _end_of(self, job: Job) -> dict[str, Any] | None:
        with self._events:
            end = self._ends.get(job.name)
            gone = self._gone
        if end is None and gone:
            raise OuterDiedError(f"the outer machine ended under {shlex.join(job.argv)}\n{self.console_tail()}")
        if end is not None and end["event"] == "error":
            raise LabError(f"{shlex.join(job.argv)}: {end['text']}")
        return end

    def _await_event(self) -> None:
        with self._events:
            self._events.wait(POLL_S)

    def _await(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        deadline = time.monotonic() + seconds
        with self._events:
            while not condition():
                if self._gone or time.monotonic() > deadline:
                    why = "the machine ended" if self._gone else f"not within {seconds:.0f} s"
                    words = (self.folder / "qemu.log").read_text(errors="replace")
                    raise OuterDiedError(f"{what}: {why}\n{words}{self.console_tail()}")
                self._events.wait(POLL_S)


def tail(text: str, count: int = 60) -> str:
    """Give the last *count* lines of *text*."""
    return "\n".join(text.splitlines()[-count:])


def _prune(runs: Path) -> None:
    """Remove what a killed run left behind."""
    for folder in runs.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run does the same
            if time.time() - folder.stat().st_mtime > STALE_S:
                shutil.rmtree(folder, ignore_errors=True)
