"""Machines for tests: a serial port that keeps everything, boot and restore as context managers, and a census.

Nothing here sleeps: who waits, waits for an event, ten times as long as it usually takes or longer.
"""

import gc
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from snapkit import guests, host, host_memory
from snapkit.errors import SnapkitError
from snapkit.restore.pipeline import Timeline, run_steps
from snapkit.restore.restore import prepare
from snapkit.restore.save import save_snapshot
from snapkit.restore.target import Target
from snapkit.state.schema import SectionId
from snapkit.units import MIB, Hva
from snapkit.vmm.arch import ClockPolicy
from snapkit.vmm.arch.x86_64.vcpu import X86Vcpu
from snapkit.vmm.backends.console import Console
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import BootConfig, Machine
from snapkit.vmm.parts.fresh import Asked, Transport
from snapkit.vmm.run_state import RunState
from snapkit.vmm.vcpu import VcpuThread
from snapkit.vmm.vm import Vm

if TYPE_CHECKING:
    import pytest  # not there inside of the lab's outer machine

PATIENCE_S = 60.0
DEMO = guests.path("demo.elf")
KVM = "/dev/kvm"


def need_kvm() -> None:
    """Skip, naming what is missing, or fail where SNAPKIT_REQUIRE says that it must be there."""
    if os.access(KVM, os.R_OK | os.W_OK):
        return
    import pytest

    reason = f"{KVM} is missing or may not be opened"
    if "kvm" in os.environ.get("SNAPKIT_REQUIRE", "").split(","):
        pytest.fail(f"{reason}, and SNAPKIT_REQUIRE asks for it")
    pytest.skip(reason)


class Tape(Console):
    """A serial port's other end that keeps what was sent, and can be waited for."""

    def __init__(self) -> None:
        super().__init__(None)
        self.sent = bytearray()
        self._grown = threading.Condition()

    def write(self, payload: bytes) -> None:
        with self._grown:
            self.sent += payload
            self._grown.notify_all()
        super().write(payload)

    def wait(self, done: Callable[[bytes], object], what: str) -> None:
        """Wait until *done* of all that was sent so far."""
        with self._grown:
            if not self._grown.wait_for(lambda: done(bytes(self.sent)), PATIENCE_S):
                raise AssertionError(f"waited {PATIENCE_S} s for {what}, got {bytes(self.sent[-200:])!r}")

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait until *text* was sent that often."""
        self.wait(lambda sent: sent.count(text.encode()) >= times, repr(text))

    def wait_grown(self, by: int) -> None:
        """Wait until *by* more bytes were sent."""
        end = len(self.sent) + by
        self.wait(lambda sent: len(sent) >= end, f"{by} more bytes")

    def type(self, payload: bytes) -> int:
        """Send to the guest; returns how many bytes the chip took."""
        return self._input(payload)

    @property
    def text(self) -> str:
        return bytes(self.sent).decode()


class X86(NamedTuple):
    """A vCPU as it is on this architecture."""

    thread: VcpuThread
    state: X86Vcpu


@dataclass
class Rig:
    """A machine with its tape and loop."""

    machine: Machine
    tape: Tape
    loop: Loop

    @property
    def vm(self) -> Vm:
        return self.machine._need_vm()

    @property
    def vcpus(self) -> list[X86]:
        return cast("list[X86]", list(self.machine._vcpus.values()))

    def run(self) -> "Rig":
        self.machine.resume()
        return self

    def serve_until(self, text: str) -> None:
        """Run the loop, which serves devices, until the guest has sent *text* from now on."""
        seen, wanted = len(self.tape.sent), text.encode()
        deadline_ns = host.monotonic_ns() + int(PATIENCE_S * 1e9)
        self.tape.watch_for(text, lambda: self.loop.post(self.loop.stop))
        self.loop.call_at(deadline_ns, self.loop.stop)
        while self.tape.sent.find(wanted, seen) < 0 and host.monotonic_ns() < deadline_ns:
            self.loop.run()  # an earlier call's deadline stops it too
        assert self.tape.sent.find(wanted, seen) >= 0, bytes(self.tape.sent[seen:])

    def save(self, path: str) -> str:
        """Snapshot to *path*; a running machine is paused for it and stays paused."""
        if self.machine.run_state is RunState.RUNNING:
            self.machine.pause()
        save_snapshot(self.machine, path)
        return path

    def healthy(self) -> None:
        """Assert that the machine did not stop."""
        stop = self.machine.stop_info
        assert stop is None, stop


@contextmanager
def booted(
    kernel: str = DEMO,
    *,
    memory: int = 2 * MIB,
    vcpus: int = 1,
    cpu: str = "host",
    devices: tuple[Asked, ...] = (),
    transport: Transport | None = None,
) -> Iterator[Rig]:
    """A machine that has *kernel* loaded and is paused."""
    tape = Tape()
    with Loop() as loop:
        config = BootConfig(kernel=kernel, memory=memory, vcpus=vcpus, cpu=cpu, devices=devices, transport=transport)
        with Machine.boot(config, loop, tape) as machine:
            yield Rig(machine, tape, loop)


@contextmanager
def restored(
    path: str,
    *,
    verify_memory: bool = False,
    before: str | None = None,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    clock: ClockPolicy = "continue",
    change: Callable[[Mapping[SectionId, Any]], None] = lambda _states: None,
) -> Iterator[Rig]:
    """The machine of a snapshot, paused.

    *before* names the stage that is the first not to be run; *change* edits the states as if the file had them so.
    """
    tape = Tape()
    options: dict[str, Any] = {"verify_memory": verify_memory, "overrides": overrides, "clock": clock}
    with Loop() as loop, Machine(loop, tape, **options) as machine:
        with prepare(path, paused=True) as prepared:
            change(prepared.sections)
            steps = prepared.steps
            if before is not None:
                steps = steps[: [step.stage for step in steps].index(before)]
            target: Target = machine
            run_steps(steps, target, Timeline())
        yield Rig(machine, tape, loop)


# What a process holds


def resident_len(process: int | str = "self") -> int:
    """How much memory *process* has in RAM, counted page by page: statm only estimates it, on Linux 6.2 to 6.16."""
    with open(f"/proc/{process}/smaps_rollup", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Rss:"))


@dataclass(frozen=True)
class Holdings:
    """fds by what they are, threads, children, file locks, sockets in the folder, and mappings that belong to machines."""

    fds: tuple[str, ...]
    threads: frozenset[str]
    children: tuple[str, ...]
    locks: tuple[str, ...]
    sockets: tuple[str, ...]
    mappings: tuple[str, ...]
    ram: tuple[tuple[int, int], ...]
    kept_from_forks: int


class Census:
    """Compare what the process holds with what it held.

    Mappings of files and of KVM are counted by name in /proc/self/maps. Guest RAM is anonymous and has none there, so
    what goes through the seam is recorded, and looked for in /proc/self/maps by address; and as nothing else in the
    process is kept from a fork, the mappings that are (VmFlags ``dc`` in /proc/self/smaps) are counted, unrecorded.
    """

    def __init__(self, monkeypatch: "pytest.MonkeyPatch", folder: str) -> None:
        self._folder = folder
        self._mapped: dict[int, int] = {}
        real_mmap, real_munmap = host_memory.mmap, host_memory.munmap

        def mmap(length: int, prot: int, flags: int, fd: int = -1, offset: int = 0, at: int = 0) -> Hva:
            address = real_mmap(length, prot, flags, fd, offset, at)
            if not flags & host_memory.MAP_FIXED:
                self._mapped[address] = length
            return address

        def munmap(address: Hva, length: int) -> None:
            real_munmap(address, length)
            assert self._mapped.pop(address) == length

        self._munmap = real_munmap
        monkeypatch.setattr(host_memory, "mmap", mmap)
        monkeypatch.setattr(host_memory, "munmap", munmap)
        self.start = self.take()

    def take(self) -> Holdings:
        gc.collect()
        fds = []
        for fd in os.listdir("/proc/self/fd"):
            try:
                fds.append(re.sub(r"\d+", "N", os.readlink(f"/proc/self/fd/{fd}")) + f" as {fd}")
            except FileNotFoundError:
                continue  # the one that listed them
        with open("/proc/self/maps", encoding="utf-8") as file:
            lines = file.read().splitlines()
        names = sorted(
            line.split(maxsplit=5)[5]
            for line in lines
            if any(name in line for name in ("anon_inode:kvm", KVM, self._folder))
        )
        return Holdings(
            fds=tuple(sorted(fds)),
            threads=frozenset(os.listdir("/proc/self/task")),
            children=tuple(_children()),
            locks=tuple(_locks()),
            sockets=tuple(sorted(str(path) for path in Path(self._folder).rglob("*") if path.is_socket())),
            mappings=tuple(names),
            ram=self._ram(lines),
            kept_from_forks=_count_kept_from_forks(),
        )

    def _ram(self, lines: list[str]) -> tuple[tuple[int, int], ...]:
        """The recorded mappings; each must be in /proc/self/maps."""
        spans = [tuple(int(end, 16) for end in line.split(" ", 1)[0].split("-")) for line in lines]
        for address in self._mapped:
            assert any(first <= address < last for first, last in spans), hex(address)
        return tuple(sorted(self._mapped.items()))

    def unmap_rest(self) -> None:
        """Unmap what is still mapped since the start."""
        for address in set(self._mapped) - {address for address, _ in self.start.ram}:
            self._munmap(Hva(address), self._mapped.pop(address))

    def check(self, context: object = "") -> None:
        """Assert that all is as it was at the start, but for threads that were there then: those may have ended."""
        now = self.take()
        deadline_ns = host.monotonic_ns() + int(PATIENCE_S * 1e9)
        while now.threads - self.start.threads and host.monotonic_ns() < deadline_ns:
            os.sched_yield()  # a thread that has ended is there until the kernel has buried it
            now = self.take()
        assert now.threads <= self.start.threads, context
        assert replace(now, threads=self.start.threads) == self.start, context


def _children() -> Iterator[str]:
    if not os.path.exists("/proc/thread-self/children"):  # CONFIG_PROC_CHILDREN
        yield from _children_by_parent()
        return
    for task in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError), open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
            yield from file.read().split()


def _children_by_parent() -> Iterator[str]:
    """The same, out of all processes there are: proc_pid_stat(5), the second field behind the name is the parent."""
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{process}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                yield process


def _locks() -> Iterator[str]:
    """The locks on files that this process has: kind, access, device and inode."""
    with open("/proc/locks", encoding="ascii") as file:
        for line in file:
            words = line.replace("->", "").split()
            if words[4] == str(os.getpid()):
                yield " ".join(words[1:4] + words[5:])


def _count_kept_from_forks() -> int:
    with open("/proc/self/smaps", encoding="utf-8") as file:
        return sum(line.startswith("VmFlags") and " dc" in line and " io" not in line for line in file)


Hook = Callable[[str, tuple[object, ...]], None]


def spoiled(at: int, *, forever: bool = False, errno: int = 5) -> tuple[Hook, list[str]]:
    """Return a fault hook that fails call number *at* (and with *forever* all that follow), and the calls it saw."""
    seen: list[str] = []

    def hook(call: str, arguments: tuple[object, ...]) -> None:
        seen.append(f"{call}({', '.join(map(repr, arguments))})" if isinstance(next(iter(arguments), 0), str) else call)
        if len(seen) == at + 1 or (forever and len(seen) > at):
            raise OSError(errno, "injected")

    return hook, seen


def spoiled_on_this_thread(at: int) -> tuple[Hook, list[str]]:
    """As `spoiled`, but the guest, which runs at the end, does what it does unharmed and uncounted."""
    hook, seen = spoiled(at)
    this = threading.get_ident()

    def on_this_thread(call: str, arguments: tuple[object, ...]) -> None:
        if threading.get_ident() == this:
            hook(call, arguments)

    return on_this_thread, seen


EIO = re.compile("EIO|Input/output error")
"""What the error of a call says that `spoiled` has failed."""


def restore_once(path: str, *, verify_memory: bool = False) -> Machine:
    """Restore for good, the way that the command line does: only `Prepared` and the steps clean up."""
    with Loop() as loop:
        machine = Machine(loop, Tape(), verify_memory=verify_memory)
        with prepare(path) as prepared:
            prepared.run(machine)
        return machine


def boot_once(config: BootConfig) -> Machine:
    """Boot for good: nothing here cleans up."""
    with Loop() as loop:
        return Machine.boot(config, loop, Tape())


def fails_at(at: int, make: Callable[[], Machine], census: Census) -> bool:
    """Have *make* make a machine while its system call *at* fails; False where it has not so many.

    Asserts that the failure is told, and that nothing is left behind, of a success neither.
    """
    hook, seen = spoiled_on_this_thread(at)
    machine, told = None, ""
    with host.inject(hook):
        try:
            machine = make()
        except SnapkitError as error:
            told = str(error)
    if machine is not None:
        machine.close()
    failed = seen[at : at + 1]
    if failed:
        assert machine is None, f"{failed} failed and nobody noticed"
        assert EIO.search(told), told
    census.check(failed)
    return bool(failed)
