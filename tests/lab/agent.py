"""The program that runs jobs inside the outer machine, on the orders of `tests.lab.outer`.

Orders come in and events go out as JSON lines on a virtio-serial port. Orders: `run`, `stdin`, `signal`, and `beat`, of
which nothing but its interrupt is wanted. Events: `ready`, `started`, `exit`, `error`. A job's stdout and stderr are
copied into files on the share while it runs.

Only the standard library, and little of it: everything is some thirty times slower here. For the same reason output is
copied in batches through a pipe: each write to the share is a round trip that a job must not wait for.
"""

import base64
import contextlib
import glob
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import IO, Any

PORT_NAME = "snapkit.agent"
BATCH_S = 0.02  # between two copies of a job's output
GRACE_S = 10.0  # for what a timed-out job still has to say (Python's faulthandler on SIGABRT), before SIGKILL


class Agent:
    """Keep the running jobs; one thread for each job and one for each of its outputs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._sending = threading.Lock()
        self._jobs: dict[str, subprocess.Popen[bytes]] = {}

    def serve(self) -> None:
        """Take orders until the port is closed."""
        self._send(event="ready", kvm=os.path.exists("/dev/kvm"))
        pending = b""
        while chunk := os.read(self._port, 65536):
            *orders, pending = (pending + chunk).split(b"\n")
            for order in orders:
                self._obey(json.loads(order))

    def _obey(self, order: dict[str, Any]) -> None:
        try:
            verb = order.pop("op")
            if verb == "run":
                threading.Thread(target=self._run, kwargs=order, daemon=True).start()
            elif verb == "stdin":
                threading.Thread(target=self._feed, kwargs=order, daemon=True).start()
            elif verb == "signal" and (job := self._jobs.get(order["name"])):
                job.send_signal(order["number"])
        except (OSError, TypeError, KeyError) as error:
            self._send(event="error", name=order.get("name"), text=repr(error))

    def _run(
        self,
        *,
        name: str,
        argv: list[str],
        cwd: str,
        env: dict[str, str],
        timeout: float,
        folder: str,
        stdin: bool,
    ) -> None:
        begin = time.monotonic()
        try:
            os.makedirs(cwd, exist_ok=True)
            job = subprocess.Popen(
                argv,
                cwd=cwd,
                env={**os.environ, **env},
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            self._send(event="error", name=name, text=repr(error))
            return
        self._jobs[name] = job
        self._send(event="started", name=name, pid=job.pid)
        copiers = []
        for stream, source in (("stdout", job.stdout), ("stderr", job.stderr)):
            assert source is not None
            copiers.append(threading.Thread(target=_copy, args=(source, os.path.join(folder, stream)), daemon=True))
            copiers[-1].start()
        timed_out = False
        try:
            job.wait(timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            _signal_group(job.pid, signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.wait(GRACE_S)
        # Also what a job left behind: it would keep the output pipes open, and the CPUs busy for the next jobs.
        _signal_group(job.pid, signal.SIGKILL)
        code = job.wait()
        seconds = time.monotonic() - begin
        for copier in copiers:
            copier.join()
        self._jobs.pop(name)
        self._send(event="exit", name=name, code=code, timed_out=timed_out, seconds=seconds)

    def _feed(self, *, name: str, text: str, end: bool) -> None:
        job = self._jobs.get(name)
        if job is None or job.stdin is None:
            return
        with contextlib.suppress(OSError, ValueError):  # the job may have closed its end, or ended
            job.stdin.write(base64.b64decode(text))
            job.stdin.flush()
            if end:
                job.stdin.close()

    def _send(self, **event: object) -> None:
        line = json.dumps(event).encode() + b"\n"
        with self._sending:
            while line:
                line = line[os.write(self._port, line) :]


def _copy(source: IO[bytes], path: str) -> None:
    with open(path, "wb", buffering=0) as file:
        while chunk := os.read(source.fileno(), 1 << 18):
            file.write(chunk)
            time.sleep(BATCH_S)
    source.close()


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _find_port() -> str:
    for name in glob.glob("/sys/class/virtio-ports/*/name"):
        with open(name) as file:
            if file.read().strip() == PORT_NAME:
                return "/dev/" + name.split("/")[-2]
    raise SystemExit("no agent port")


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("agent: start", file=sys.stderr, flush=True)
    Agent(os.open(_find_port(), os.O_RDWR | os.O_CLOEXEC)).serve()
