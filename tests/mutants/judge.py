"""The judge of a file: restored and equal, or refused by a typed error that names the place; and nothing else came of it.

Without KVM a file is read, checked and planned. With it the machine is rebuilt and loaded, saved for comparison, activated,
run for a few milliseconds with every queue kicked, paused, saved to a file, and that file checked: what came out of a
hostile file is a machine like any other.
"""

import gc
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

import snapkit.restore.restore as restoring
from snapkit import host
from snapkit.errors import HostError, ImageError, InternalError, SnapkitError
from snapkit.restore.equality import differences, elapsed
from snapkit.restore.pipeline import Timeline, run_steps
from snapkit.restore.restore import Prepared, prepare
from snapkit.restore.save import save_snapshot
from snapkit.restore.target import Target
from snapkit.state.codec import checked
from snapkit.state.machine import EM_X86_64
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import Machine
from snapkit.vmm.parts.transport import TransportPart
from snapkit.vmm.run_state import Reason, RunState
from tests.kvm.harness import Rig, Tape
from tests.mutants.specimen import Ends
from tests.vmm.virtio.paper import Fence

RUN_NS = 4_000_000
CPU_MOST_S = 1.0
"""Of this thread's time, until the machine is loaded or the file refused: what others do does not count."""
EMULATED, AGAIN_EVERY = 30, 8
"""How much longer the lab's machines may take; of how many restored there one is saved to a file once more."""
PLACE = re.compile(r"\b[a-z0-9][a-z0-9-]*/[a-z0-9][a-z0-9_-]*|preamble|manifest|memory|section")
RESTORED = "restored"
_CHANGING = {"os.remove", "os.rename", "os.link", "os.truncate", "os.mkdir", "os.chmod"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass
class Verdict:
    """What became of a file. *stage* is where it was refused, *ending* what its guest came to; *complaints* are faults."""

    stage: str = RESTORED
    error: BaseException | None = None
    ending: str = ""
    unequal: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def late(self) -> bool:
        """Whether the kernel refused what the checks let pass."""
        return isinstance(self.error, HostError)

    def text(self) -> str:
        """The error with its notes."""
        if self.error is None:
            return ""
        return "; ".join([f"{type(self.error).__name__}: {self.error}", *getattr(self.error, "__notes__", [])])


class Watched(Timeline):
    """A timeline that can be asked when its owner is gone: *prepare* keeps its own to itself when it fails."""

    latest: "Watched"

    def __init__(self) -> None:
        super().__init__()
        Watched.latest = self


class Judge:
    """Judges files of one architecture in one folder. Use `at_work`."""

    def __init__(self, folder: Path, *, kvm: bool, architecture: int = EM_X86_64) -> None:
        self.folder, self._kvm, self._architecture = folder, kvm, architecture
        self._cpu_most_s = CPU_MOST_S if architecture == EM_X86_64 else EMULATED * CPU_MOST_S
        self._written: list[str] = []
        self._again_every = 1 if architecture == EM_X86_64 else AGAIN_EVERY
        self._restored = 0

    @contextmanager
    def at_work(self) -> Iterator["Judge"]:
        """Watch what is opened for writing, and each restore's timeline, in the with block."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(restoring, "Timeline", Watched)
            patch.setattr(host, "fsync", _not_now)  # nobody needs these files after the next power cut
            patch.setattr(sys, "dont_write_bytecode", True)  # an import would be heard writing what it compiled
            (self.folder / "cwd").mkdir(exist_ok=True)
            patch.chdir(self.folder / "cwd")  # a file may name its host ends relatively
            gc.freeze()  # a collection in the time of a file is then of what files came to, not of all that tests hold
            _hear(self._opened)
            try:
                yield self
            finally:
                _hear(None)
                gc.unfreeze()

    def judge(self, path: Path, ends: Ends, *, verify_memory: bool = False) -> Verdict:
        """Try the file at *path*, with these host ends."""
        verdict = Verdict()
        before, fds = blake3(path.read_bytes()).digest(), len(os.listdir("/proc/self/fd"))
        there = set(os.listdir(self.folder))
        self._written.clear()
        started = time.thread_time()
        try:
            with prepare(str(path), paused=True, architecture=self._architecture) as prepared:
                if time.thread_time() - started > self._cpu_most_s:
                    verdict.complaints.append("reading it took too long")
                if self._kvm:
                    self._restore(prepared, ends, verdict, verify_memory=verify_memory)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._refused(path, error, verdict)
        if blake3(path.read_bytes()).digest() != before:
            verdict.complaints.append("the file was changed")
        if len(os.listdir("/proc/self/fd")) != fds:
            verdict.complaints.append("file descriptors were left open")
        if changed := there ^ set(os.listdir(self.folder)):
            verdict.complaints.append(f"{sorted(changed)} came or went")
        allowed = (str(self.folder) + os.sep, "/dev/kvm", "/dev/net/tun")
        outside = [name for name in self._written if not name.startswith(allowed)]
        if outside:
            verdict.complaints.append(f"{outside} were opened for writing")
        return verdict

    def _refused(self, path: Path, error: BaseException, verdict: Verdict) -> None:
        span = Watched.latest.spans[-1] if Watched.latest.spans else None
        if verdict.stage == RESTORED and span is not None:
            verify = span.name == "map memory" and isinstance(error, ImageError)
            verdict.stage = "verify" if verify else span.stage
        verdict.error = error.with_traceback(None)
        text = verdict.text()
        if not isinstance(error, SnapkitError) or isinstance(error, InternalError):
            verdict.complaints.append(f"not a typed refusal: {text}")
        if str(path) not in text and PLACE.search(text) is None:
            verdict.complaints.append(f"names no place: {text}")
        if isinstance(error, ImageError) and not str(error).startswith(str(path)) and verdict.stage != "verify":
            verdict.complaints.append(f"does not begin with the file: {text}")
        if isinstance(error, HostError) and (verdict.stage != "load" or not error.call.startswith("KVM_SET_")):
            verdict.complaints.append(f"the host failed for what the file says: {text}")
        if "failed too" in text or "cannot be undone" in text:
            verdict.complaints.append(f"was not undone: {text}")

    # With KVM

    def _restore(self, prepared: Prepared, ends: Ends, verdict: Verdict, *, verify_memory: bool) -> None:
        started, kept = time.thread_time(), {name: checked(state) for name, state in prepared.sections.items()}
        steps = prepared.steps
        loaded = [step.stage for step in steps].index("activate")
        prepared.steps = steps[:loaded]
        overrides: Mapping[str, Mapping[str, Any]] = ends
        tape = Tape()
        with Loop() as loop, Machine(loop, tape, verify_memory=verify_memory, overrides=overrides) as machine:
            started_ns = host.monotonic_ns()
            prepared.run(machine)
            if time.thread_time() - started > self._cpu_most_s:
                verdict.complaints.append("rebuilding it took too long")
            machine.run_state = RunState.PAUSED  # nothing was activated; only `save` looks at this
            x86 = self._architecture == EM_X86_64
            tsc_khz = Rig(machine, tape, loop).vcpus[0].state.fd.get_tsc_khz() if x86 else 0
            passed = elapsed(host.monotonic_ns() - started_ns, tsc_khz=tsc_khz)
            found = differences(kept, machine.save(), passed)
            verdict.unequal += [str(one) for one in found if not (ends and one.path.startswith("host."))]
            machine.run_state = RunState.BUILDING
            assert machine._memory is not None
            with Fence(machine._memory).around():
                target: Target = machine
                run_steps(steps[loaded:], target, prepared.timeline)
                self._run(machine, loop, verdict)
            self._restored += 1
            if machine.stop_info is None and self._restored % self._again_every == 0:
                self._save_again(machine, verdict)

    def _run(self, machine: Machine, loop: Loop, verdict: Verdict) -> None:
        with Watched.latest.span("run", "clocks and vCPUs"):
            machine.resume()
            for kick in _kicks(machine):
                loop.post(kick)
            loop.call_at(host.monotonic_ns() + RUN_NS, loop.stop)
            loop.run()
            machine.pause()
        stop = machine.stop_info
        if stop is None:
            verdict.ending = "went on"
        elif stop.reason is not Reason.FAILED:
            verdict.ending = str(stop.reason)
        elif isinstance(stop.error, HostError) and stop.error.call == "KVM_RUN":
            verdict.ending = "KVM gave up"
        else:
            verdict.ending = f"failed: {stop.error}"
            verdict.complaints.append(f"the run failed: {stop.error!r}, {getattr(stop.error, '__cause__', None)!r}")

    def _save_again(self, machine: Machine, verdict: Verdict) -> None:
        path = self.folder / "again.snap"
        try:
            save_snapshot(machine, str(path))
            with prepare(str(path), paused=True, architecture=self._architecture):
                pass
        except Exception as error:
            verdict.complaints.append(f"its own snapshot is no good: {type(error).__name__}: {error}")
        finally:
            path.unlink(missing_ok=True)

    def _opened(self, name: str) -> None:
        self._written.append(os.path.abspath(name))


def _kicks(machine: Machine) -> Iterator[Callable[[], None]]:
    """Give a doorbell for every queue, and a kick past the doorbell."""
    for part in machine.board.parts.values():
        if isinstance(part, TransportPart):
            for index, fd in enumerate(part.transport.doorbell_fds()):
                yield partial(host.eventfd_signal, fd)
                yield partial(_kick, machine, part, index)


def _kick(machine: Machine, part: TransportPart, index: int) -> None:
    with machine._need_vm().lock:
        part.transport.device.kick(index)


def _not_now(_fd: int) -> None:
    return


# What the process opens for writing: an audit hook stays for ever, so there is one, and it may be deaf

_listener: Callable[[str], None] | None = None
_installed = False


def _hear(listener: Callable[[str], None] | None) -> None:
    global _listener, _installed
    _listener = listener
    if not _installed:
        _installed = True
        sys.addaudithook(_heard)


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if _listener is None:
        return
    if event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
        if arguments[2] & _WRITING and (arguments[2] & os.O_CREAT or os.path.exists(arguments[0])):
            _listener(arguments[0])
    elif event in _CHANGING and isinstance(arguments[0], str):  # else a descriptor, which somebody has opened
        _listener(arguments[0])
