"""A vCPU's thread: it runs the guest, dispatches exits, and alone touches the vCPU's fd.

Others leave a job in its mailbox and kick it: a blocked real-time signal that only KVM_RUN lets through, so a kick is
never lost and needs no handler. Mail is looked at only after KVM_RUN said EINTR, and by then KVM has completed the exit
that was in flight (a store over a page end gives a second exit first; a repeated string instruction finishes its
block), so a pause loses nothing.
"""

import errno
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from snapkit import host_process
from snapkit.errors import HostError, InternalError, SnapkitError
from snapkit.vmm.bus import Bus
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.vcpu import VcpuFd

R = TypeVar("R")


class ExitSink(Protocol):
    """Who is told when a vCPU cannot go on."""

    def triple_fault(self, vcpu: int) -> None: ...

    def system_event(self, vcpu: int, event: int) -> None: ...

    def vcpu_failed(self, vcpu: int, error: SnapkitError) -> None: ...


class Job(Generic[R]):
    """Something to do on a vCPU's thread, and its outcome."""

    def __init__(self, work: Callable[[], R]) -> None:
        self._work = work
        self._done = threading.Lock()
        self._done.acquire()
        self._result: R
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # the waiter gets it, whatever it is
            self._error = error
        self._done.release()

    def wait(self) -> R:
        """Wait for the outcome: the result, or the error raised again."""
        self._done.acquire()
        if self._error is not None:
            raise self._error
        return self._result


class VcpuThread:
    """One vCPU's thread. `start` makes it, parked; `resume` lets it run the guest, `pause` parks it, `close` ends it.

    Until the first `resume` nobody can be in KVM_RUN, so no ioctl on the vCPU can wait: work is done at once by whoever
    asks for it. A hop to the thread and back costs 40 to 100 us, and a restore has three jobs for every vCPU.
    """

    def __init__(self, index: int, fd: VcpuFd, *, lock: threading.Lock, ports: Bus, mmio: Bus, sink: ExitSink) -> None:
        # Configuration
        self.index = index
        self._kick_signal = host_process.thread_kick_signal()
        # Runtime glue
        self.fd = fd
        self._lock, self._ports, self._mmio, self._sink = lock, ports, mmio, sink
        self._mail: SimpleQueue[Job[Any]] = SimpleQueue()
        self._ident: int | None = None
        self._gone = threading.Lock()
        self._entered = False
        self._running = False
        self._ended = False
        self.halted = False
        fd.set_signal_mask(self._kick_signal)  # without it no kick would end KVM_RUN

    # Lifecycle, from other threads

    def start(self) -> None:
        """Make the thread, parked."""
        # with every signal blocked: a kick that came before the thread blocked it would end the process
        self._gone.acquire()
        try:
            self._ident = host_process.start_thread(self._main)
        except BaseException:
            self._gone.release()
            raise

    def post(self, work: Callable[[], R]) -> Job[R]:
        """Have *work* done out of the guest: at once before the first `resume`, later on the vCPU's thread."""
        job = Job(work)
        if not self._entered:
            job.run()
            return job
        self._mail.put(job)
        if self._ident is not None:
            host_process.kick_thread(self._ident, self._kick_signal)
        return job

    def call(self, work: Callable[[], R]) -> R:
        """Have *work* done as `post` does and return its result."""
        return self.post(work).wait() if self._entered else work()

    def resume(self) -> Job[None]:
        """Let the guest run."""
        if self._entered:
            return self.post(lambda: self._set_running(True))
        self._entered = True
        job = Job(lambda: self._set_running(True))
        self._mail.put(job)  # and no kick: nobody was in the guest yet
        return job

    def pause(self) -> Job[None]:
        """Park; once the job is done, no exit is in flight."""
        return self.post(lambda: self._set_running(False))

    def halt(self) -> None:
        """Make the thread park by itself after the exit at hand; for the end of a machine, from any thread."""
        self.halted = True

    def close(self) -> None:
        """End the thread and close the vCPU."""
        self.stop()
        self.fd.close()

    def stop(self) -> None:
        """End the thread, if there is one."""
        if self._ident is None:
            return
        self._entered = True  # what follows is for the thread, even if it never was in the guest
        kicked = threading.Lock()
        kicked.acquire()

        def end() -> None:
            kicked.acquire()  # the thread must not be gone before the kick: its id would name nobody, or somebody else
            self._ended = True

        job = self.post(end)
        kicked.release()
        job.wait()
        with self._gone:
            self._ident, self._entered, self._running, self._ended = None, False, False, False

    # The thread itself

    def _set_running(self, running: bool) -> None:
        self._running = running

    def _main(self) -> None:
        try:
            while not self._ended:
                if self._running and self._mail.empty():
                    self._run_guest()
                else:
                    self._mail.get().run()
        finally:
            self._gone.release()

    def _run_guest(self) -> None:
        try:
            self._exits()
        except SnapkitError as error:
            self._stop_with(error)
        except Exception as error:  # a handler raised: our bug, and the guest must not go on over it
            bug = InternalError(f"vcpu {self.index}: {type(error).__name__}: {error}")
            bug.__cause__ = error
            self._stop_with(bug)

    def _stop_with(self, error: SnapkitError) -> None:
        self._running = False
        self._sink.vcpu_failed(self.index, error)

    def _exits(self) -> None:
        """Run the guest until there is mail or the machine stops. The hot path: flat, no allocation that can go."""
        run, page, mail, lock = self.fd.run, self.fd.run_page, self._mail, self._lock
        ports, mmio = self._ports, self._mmio
        decode, decode_mmio = abi.RUN_EXIT.unpack_from, abi.RUN_MMIO.unpack_from
        host_process.drain_signal(self._kick_signal)
        while mail.empty():
            try:
                while True:
                    run()
                    reason, direction, width, port, count, offset = decode(page, abi.RUN_EXIT_AT)
                    if reason == abi.KVM_EXIT_IO:
                        if direction == abi.KVM_EXIT_IO_OUT:
                            for at in range(offset, offset + width * count, width):
                                value = int.from_bytes(page[at : at + width], "little")
                                with lock:
                                    ports.write(port, width, value)
                        else:
                            for at in range(offset, offset + width * count, width):
                                with lock:
                                    value = ports.read(port, width)
                                page[at : at + width] = value.to_bytes(width, "little")
                    elif reason == abi.KVM_EXIT_MMIO:
                        gpa, payload, length, is_write = decode_mmio(page, abi.RUN_UNION_AT)
                        if is_write:
                            with lock:
                                mmio.write(gpa, length, int.from_bytes(payload[:length], "little"))
                        else:
                            with lock:
                                value = mmio.read(gpa, length)
                            at = abi.RUN_MMIO_DATA_AT
                            page[at : at + length] = value.to_bytes(length, "little")
                    else:
                        self._rare_exit(reason, page)
                    if self.halted:
                        self._running = False
                        return
            except InterruptedError:
                host_process.drain_signal(self._kick_signal)
            except BlockingIOError:
                pass  # EAGAIN: a waiting application processor got an event

    def _rare_exit(self, reason: int, page: memoryview) -> None:
        first, second = abi.RUN_WORDS.unpack_from(page, abi.RUN_UNION_AT)
        if reason == abi.KVM_EXIT_SHUTDOWN:
            self._running, self.halted = False, True
            self._sink.triple_fault(self.index)
        elif reason == abi.KVM_EXIT_SYSTEM_EVENT:
            self._running, self.halted = False, True
            self._sink.system_event(self.index, first)
        elif reason == abi.KVM_EXIT_FAIL_ENTRY:
            (detail,) = abi.RUN_U64.unpack_from(page, abi.RUN_UNION_AT)
            raise _given_up(self.index, f"it cannot enter the guest, hardware reason {detail:#x}")
        elif reason == abi.KVM_EXIT_INTERNAL_ERROR:
            raise _given_up(self.index, f"internal error, suberror {first}, ndata {second}")
        elif reason not in (abi.KVM_EXIT_UNKNOWN, abi.KVM_EXIT_INTR, abi.KVM_EXIT_HLT):
            raise InternalError(f"vcpu {self.index}: exit reason {reason} is not one that snapkit knows")


def _given_up(vcpu: int, why: str) -> HostError:
    """KVM cannot go on with a guest, which a guest can bring about: by an instruction that KVM does not emulate."""
    return HostError("KVM_RUN", errno.EIO, f"vcpu {vcpu}: {why}")
