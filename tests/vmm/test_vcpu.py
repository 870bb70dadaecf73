"""A vCPU's thread against a scripted KVM_RUN: mail, kicks, exits, ends. No KVM is needed.

The script stands for the kernel: `run` gives one exit after the other and, when the script is over, waits like a guest
that halts, until the kick signal is pending. Like KVM it leaves the signal pending, for the thread to drain.
"""

import errno
import signal
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest

from snapkit import host_process
from snapkit.errors import HostError, InternalError, SnapkitError
from snapkit.vmm.bus import Bus
from snapkit.vmm.vcpu import VcpuThread

PAGE = 4096
IO_AT = 1024
# struct kvm_run, from the UAPI: exit_reason at 8, the union at 32
IO_OUT, IO_IN = 1, 0
EXIT_IO, EXIT_HLT, EXIT_MMIO, EXIT_SHUTDOWN, EXIT_FAIL_ENTRY, EXIT_INTERNAL, EXIT_EVENT = 2, 5, 6, 8, 9, 17, 24
PATIENCE_S = 30.0

Exit = Callable[[bytearray], None]


def io(direction: int, width: int, port: int, values: bytes) -> Exit:
    def fill(page: bytearray) -> None:
        struct.pack_into("<I", page, 8, EXIT_IO)
        struct.pack_into("<BBHIQ", page, 32, direction, width, port, len(values) // width, IO_AT)
        page[IO_AT : IO_AT + len(values)] = values

    return fill


def mmio(gpa: int, payload: bytes, *, write: bool) -> Exit:
    def fill(page: bytearray) -> None:
        struct.pack_into("<I", page, 8, EXIT_MMIO)
        struct.pack_into("<Q8sIB", page, 32, gpa, payload, len(payload), write)

    return fill


def other(reason: int, payload: bytes = bytes(16)) -> Exit:
    def fill(page: bytearray) -> None:
        struct.pack_into("<I", page, 8, reason)
        page[32 : 32 + len(payload)] = payload

    return fill


class ScriptedFd:
    """A vCPU fd whose guest does what the script says, then halts."""

    def __init__(self, script: list[Exit] | None = None, *, mask_error: HostError | None = None) -> None:
        self.page = bytearray(PAGE)
        self.run_page = memoryview(self.page)
        self.script = script or []
        self.mask_error = mask_error
        self.closed = False
        self.halting = threading.Event()
        self.after_exit: list[bytes] = []

    def set_signal_mask(self, unblocked: int) -> None:
        if self.mask_error is not None:
            raise self.mask_error

    def run(self) -> None:
        self.after_exit.append(bytes(self.page[IO_AT : IO_AT + 8]))
        if self.script:
            self.script.pop(0)(self.page)
            return
        self.halting.set()
        kick = host_process.thread_kick_signal()
        signal.sigwait({kick})
        signal.pthread_kill(threading.get_ident(), kick)  # KVM does not take it
        raise InterruptedError

    def close(self) -> None:
        self.closed = True


class Sink:
    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.event = threading.Event()

    def _tell(self, what: str, detail: object) -> None:
        self.told.append((what, detail))
        self.event.set()

    def triple_fault(self, vcpu: int) -> None:
        self._tell("triple fault", vcpu)

    def system_event(self, vcpu: int, event: int) -> None:
        self._tell("system event", event)

    def vcpu_failed(self, vcpu: int, error: SnapkitError) -> None:
        self._tell("failed", error)


class Register:
    """Notes writes; reads give the number of accesses so far."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def read(self, offset: int, length: int) -> int:
        self.seen.append((offset, length, -1))
        return len(self.seen)

    def write(self, offset: int, length: int, value: int) -> None:
        self.seen.append((offset, length, value))


class Made:
    def __init__(self, fd: Any) -> None:
        self.fd, self.sink, self.lock = fd, Sink(), threading.Lock()
        self.ports, self.mmio = Bus("port"), Bus("mmio")
        self.register = Register()
        self.ports.insert(0x100, 0x10, self.register)
        self.mmio.insert(0xD000_0000, 0x1000, self.register)
        self.thread = VcpuThread(3, fd, lock=self.lock, ports=self.ports, mmio=self.mmio, sink=self.sink)
        self.thread.start()


@pytest.fixture
def make():
    made: list[Made] = []

    def build(*script: Exit) -> Made:
        made.append(Made(ScriptedFd(list(script))))
        return made[-1]

    yield build
    for each in made:
        each.thread.close()
        assert each.fd.closed


def test_jobs_run_on_one_thread_once_the_guest_ran_in_order_and_give_their_results(make):
    thread = make().thread
    assert thread.call(threading.get_ident) == threading.get_ident()  # nobody can be in the guest yet: done at once
    thread.resume().wait()
    idents = {thread.call(threading.get_ident) for _ in range(50)}
    assert len(idents) == 1
    assert idents != {threading.get_ident()}
    seen: list[int] = []
    jobs = [thread.post(lambda number=number: seen.append(number)) for number in range(100)]
    for job in jobs:
        job.wait()
    assert seen == list(range(100))


def test_an_error_in_a_job_reaches_who_waits_and_the_thread_goes_on(make):
    thread = make().thread

    def fail() -> None:
        raise HostError("KVM_GET_REGS", errno.EIO)

    with pytest.raises(HostError, match="KVM_GET_REGS"):
        thread.call(fail)
    thread.resume().wait()
    with pytest.raises(HostError, match="KVM_GET_REGS"):
        thread.call(fail)
    assert thread.call(lambda: 7) == 7


def test_mail_takes_a_halted_guest_out_every_time(make):
    made = make()
    made.thread.resume().wait()
    assert made.fd.halting.wait(PATIENCE_S)
    for number in range(300):
        assert made.thread.call(lambda number=number: number) == number
    made.thread.pause().wait()
    made.fd.halting.clear()
    assert made.thread.call(lambda: "parked") == "parked"
    assert not made.fd.halting.is_set(), "a parked vCPU entered the guest"


def test_a_pause_asked_for_during_an_exit_comes_after_the_exits_that_complete_it(make):
    made = make()
    done: list[str] = []

    def ask(_page: bytearray) -> None:
        first(_page)
        made.thread.post(lambda: done.append(f"after {len(made.register.seen)}"))

    first = mmio(0xD000_0000, b"\1\2", write=True)
    made.fd.script = [ask, mmio(0xD000_0002, b"\3\4", write=True)]
    made.thread.resume().wait()
    assert made.fd.halting.wait(PATIENCE_S)
    made.thread.pause().wait()
    assert made.register.seen == [(0, 2, 0x0201), (2, 2, 0x0403)]
    assert done == ["after 2"]


def test_port_exits_of_every_width_and_count_reach_the_bus(make):
    made = make(
        io(IO_OUT, 1, 0x100, b"\x11\x22\x33"),
        io(IO_OUT, 2, 0x102, b"\x44\x55\x66\x77"),
        io(IO_OUT, 4, 0x104, b"\x01\x02\x03\x04"),
        io(IO_IN, 2, 0x106, bytes(6)),
    )
    made.thread.resume().wait()
    assert made.fd.halting.wait(PATIENCE_S)
    assert made.register.seen == [
        (0, 1, 0x11),
        (0, 1, 0x22),
        (0, 1, 0x33),
        (2, 2, 0x5544),
        (2, 2, 0x7766),
        (4, 4, 0x04030201),
        (6, 2, -1),
        (6, 2, -1),
        (6, 2, -1),
    ]
    assert made.fd.after_exit[4][:6] == b"\x07\0\x08\0\x09\0"


def test_memory_exits_of_every_width_reach_the_bus_and_what_nobody_claims_reads_as_ones(make):
    made = make(
        mmio(0xD000_0010, b"\1\2\3\4\5\6\7\x08", write=True),
        mmio(0xD000_0020, b"\0", write=False),
        mmio(0xE000_0000, bytes(4), write=False),
    )
    made.thread.resume().wait()
    assert made.fd.halting.wait(PATIENCE_S)
    assert made.register.seen == [(0x10, 8, 0x0807060504030201), (0x20, 1, -1)]
    assert bytes(made.fd.page[40:44]) == b"\xff" * 4
    assert made.mmio.unclaimed == 1


def test_handlers_run_under_the_machines_lock(make):
    made = make(io(IO_OUT, 1, 0x100, b"x"))
    with made.lock:
        made.thread.resume().wait()
        assert not made.fd.halting.is_set()
        assert made.register.seen == []
    assert made.fd.halting.wait(PATIENCE_S)
    assert made.register.seen == [(0, 1, ord("x"))]


@pytest.mark.parametrize(
    ("last", "told"),
    [
        (other(EXIT_SHUTDOWN), ("triple fault", 3)),
        (other(EXIT_EVENT, struct.pack("<II", 1, 0)), ("system event", 1)),
        (other(EXIT_EVENT, struct.pack("<II", 2, 0)), ("system event", 2)),
    ],
    ids=["triple fault", "shutdown", "reset"],
)
def test_an_end_is_told_once_and_the_vcpu_parks(make, last, told):
    made = make(other(EXIT_HLT), last)
    made.thread.resume().wait()
    assert made.sink.event.wait(PATIENCE_S)
    assert made.thread.call(lambda: "parked") == "parked"
    assert made.sink.told == [told]
    assert not made.fd.halting.is_set()


@pytest.mark.parametrize(
    ("last", "words", "error_type"),
    [
        (other(EXIT_FAIL_ENTRY, struct.pack("<Q", 0x80000021)), "hardware reason 0x80000021", HostError),
        (other(EXIT_INTERNAL, struct.pack("<II", 1, 2)), "suberror 1, ndata 2", HostError),
        (other(99), "exit reason 99", InternalError),
    ],
)
def test_an_exit_that_cannot_be_served_stops_the_machine_with_its_facts(make, last, words, error_type):
    made = make(last)
    made.thread.resume().wait()
    assert made.sink.event.wait(PATIENCE_S)
    ((what, error),) = made.sink.told
    assert what == "failed"
    assert type(error) is error_type
    assert words in str(error)
    assert "vcpu 3" in str(error)


def test_a_handler_that_raises_stops_the_machine_as_our_bug(make):
    made = make(io(IO_OUT, 1, 0x100, b"x"))

    def fail(*_: int) -> None:
        raise ZeroDivisionError("in the handler")

    made.register.write = fail
    made.thread.resume().wait()
    assert made.sink.event.wait(PATIENCE_S)
    ((_, error),) = made.sink.told
    assert isinstance(error, InternalError)
    assert "ZeroDivisionError: in the handler" in str(error)
    assert made.lock.acquire(timeout=PATIENCE_S), "the lock was kept"
    made.lock.release()


def test_halt_parks_the_vcpu_after_the_exit_at_hand(make):
    made = make()
    reached = threading.Event()

    def last(page: bytearray) -> None:
        io(IO_OUT, 1, 0x100, b"x")(page)
        made.thread.halt()
        reached.set()

    made.fd.script = [last]
    made.thread.resume().wait()
    assert reached.wait(PATIENCE_S)  # mail that is there before the guest is entered is looked at first
    assert made.thread.call(lambda: "parked") == "parked"
    assert made.register.seen == [(0, 1, ord("x"))]
    assert not made.fd.halting.is_set()


def test_a_signal_mask_that_cannot_be_set_fails_the_making():
    with pytest.raises(HostError, match="KVM_SET_SIGNAL_MASK"):
        Made(ScriptedFd(mask_error=HostError("KVM_SET_SIGNAL_MASK", errno.EINVAL)))


def test_a_thread_that_cannot_be_started_is_a_host_error_and_closing_still_works(monkeypatch):
    def refuse(_main: Callable[[], None]) -> int:
        raise HostError("start_thread", errno.EAGAIN)

    made = Made(ScriptedFd())
    made.thread.close()
    monkeypatch.setattr(host_process, "start_thread", refuse)
    again = ScriptedFd()
    with pytest.raises(HostError, match="EAGAIN"):
        Made(again)
    monkeypatch.undo()
    made = Made(ScriptedFd())
    made.thread.close()


def test_making_and_closing_many_threads_never_kicks_one_that_is_gone():
    for _ in range(200):
        made = Made(ScriptedFd())
        made.thread.resume()
        made.thread.close()
        made.thread.close()
