"""The floor of a restore: the system calls that it cannot do without, in the best order known, and nothing else.

`Floor.calls` is them as a readable list, `run` issues them. Buffers are ready-made from a real snapshot, nothing is
checked, no object is made that can go. What a restore costs above this is what snapkit adds.

Order: slots before the interrupt controller, because setting a slot after KVM_CREATE_IRQCHIP costs milliseconds;
MADV_DONTFORK and MADV_DONTDUMP after the last mapping, because a mapping laid over another loses them
(Documentation/virt/kvm/api.rst).

What each architecture's chips and vCPUs need is in `floor_x86` and `floor_arm`, what PCI devices add in `floor_devices`.

No thread is part of it: one thread could issue every call, and KVM_RUN first of all. With *threads* each vCPU has one,
which is there to issue KVM_RUN, as in any monitor that does something else meanwhile; no other call needs it.
"""

import _thread
import ctypes
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial
from typing import Generic, TypeVar

from snapkit.restore.image import Image
from snapkit.restore.source import _HEAD_LEN
from snapkit.state.schema import State
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.abi import Ioctl
from tests.bench.calls import Call, expect, ioctl, madvise, mmap, munmap
from tests.bench.floor_devices import DeviceFloor, Pins

RW = 1 | 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 1, 2, 0x10, 0x20, 0x4000
MADV_DONTFORK, MADV_DONTDUMP = 10, 16
EINTR = 4
KICK_ONLY = ~(1 << signal.SIGRTMIN) & 0xFFFF_FFFF_FFFF_FFFF
V = TypeVar("V", bound=State)


class Floor(ABC, Generic[V]):
    """The floor of the machine in one snapshot; subclasses say what its architecture adds."""

    vcpu: type[V]
    """The State of a vCPU."""
    vm_type = 0
    """The argument of KVM_CREATE_VM."""
    pins: Pins

    def __init__(self, path: str, *, threads: bool = False) -> None:
        with Image.open(path) as image:
            sections = image.sections().states
            self._path, self._regions, preamble = path, image.memory.regions, image.preamble
            self._runs = image.memory.runs()
        self._states = list(sections.values())
        self._vcpu_states = [state for state in self._states if isinstance(state, self.vcpu)]
        self._head_len = min(_HEAD_LEN, os.stat(path).st_size)
        self._ram_len = sum(length for _, length in self._regions)
        self._file = self._kvm = self._vm = -1
        self._ram = self._run_len = 0
        self._vcpus: list[int] = []
        self._run_pages: list[int] = []
        self._starts: list[_thread.LockType] = []
        self._overs: list[_thread.LockType] = []
        self._end_ns = 0

        devices = self._devices = DeviceFloor(sections, self.pins, lambda: self._vm, self._hva)

        self.calls: list[Call] = [
            ("open the file", self._open_file),
            ("read its head", partial(self._read, self._head_len, 0)),
        ]
        if preamble.chunks_offset + preamble.chunks_len > self._head_len:
            self.calls.append(
                ("read the chunk table", partial(self._read, preamble.chunks_len, preamble.chunks_offset))
            )
        self.calls += devices.claim
        self.calls += [
            ("open /dev/kvm", self._open_kvm),
            ("KVM_CREATE_VM", self._create_vm),
            ("KVM_GET_VCPU_MMAP_SIZE", self._get_run_len),
            *self._create_before_memory(),
            ("mmap RAM", self._map_ram),
            *((f"mmap {run.length:#x} of the file", partial(self._lay, *run[:3])) for run in self._runs),
            ("madvise MADV_DONTFORK", partial(self._advise, MADV_DONTFORK)),
            ("madvise MADV_DONTDUMP", partial(self._advise, MADV_DONTDUMP)),
            *((f"KVM_SET_USER_MEMORY_REGION {n}", partial(self._set_slot, n)) for n in range(len(self._regions))),
            *self._create_before_vcpus(),
        ]
        for number in range(len(self._vcpu_states)):
            self.calls += [
                ("KVM_CREATE_VCPU", partial(self._create_vcpu, number)),
                ("mmap kvm_run", partial(self._map_run, number)),
                self._on_vcpu(number, abi.KVM_SET_SIGNAL_MASK, abi.signal_mask(KICK_ONLY)),
            ]
        self.calls += self._create_after_vcpus()
        self.calls += devices.rebuild
        self.calls += devices.wire
        self.calls += self._load()
        self.calls += devices.activate
        if threads:
            self.calls += [("a thread", self._start_thread)] * len(self._vcpu_states)
        self.calls += self._start_clocks()
        self.calls += devices.run
        self.calls.append(("KVM_RUN", self._wake_threads if threads else partial(self._run, 0)))

    def _create_before_memory(self) -> Iterable[Call]:
        return ()

    def _create_before_vcpus(self) -> Iterable[Call]:
        return ()

    def _create_after_vcpus(self) -> Iterable[Call]:
        return ()

    @abstractmethod
    def _load(self) -> Iterable[Call]: ...

    @abstractmethod
    def _start_clocks(self) -> Iterable[Call]: ...

    def run(self) -> float:
        """Issue the calls and take back what they made; returns milliseconds, to the end of the first vCPU's KVM_RUN."""
        begin_ns = time.perf_counter_ns()
        for _, call in self.calls:
            call()
        self._release()
        return (self._end_ns - begin_ns) / 1e6

    # The calls

    def _open_file(self) -> None:
        self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

    def _read(self, length: int, offset: int) -> None:
        expect(len(os.pread(self._file, length, offset)), length)

    def _open_kvm(self) -> None:
        self._kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)

    def _create_vm(self) -> None:
        self._vm = ioctl(self._kvm, abi.KVM_CREATE_VM.number, self.vm_type)

    def _get_run_len(self) -> None:
        self._run_len = ioctl(self._kvm, abi.KVM_GET_VCPU_MMAP_SIZE.number, 0)

    def _map_ram(self) -> None:
        self._ram = _map(self._ram_len, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

    def _lay(self, gpa: int, length: int, offset: int) -> None:
        at = self._hva(gpa)
        expect(mmap(at, length, RW, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, self._file, offset), at)

    def _advise(self, advice: int) -> None:
        expect(madvise(self._ram, self._ram_len, advice), 0)

    def _set_slot(self, slot: int) -> None:
        gpa, length = self._regions[slot]
        region = abi.memory_region(slot, 0, gpa, length, self._hva(gpa))
        expect(ioctl(self._vm, abi.KVM_SET_USER_MEMORY_REGION.number, region), 0)

    def _create_vcpu(self, number: int) -> None:
        self._vcpus.append(ioctl(self._vm, abi.KVM_CREATE_VCPU.number, number))

    def _map_run(self, number: int) -> None:
        self._run_pages.append(_map(self._run_len, MAP_SHARED, self._vcpus[number]))

    def _on_vm(self, what: Ioctl, argument: int | bytes) -> Call:
        return what.name, lambda: expect(ioctl(self._vm, what.number, argument), 0)

    def _on_vcpu(self, number: int, what: Ioctl, argument: int | bytes, result: int = 0) -> Call:
        return what.name, lambda: expect(ioctl(self._vcpus[number], what.number, argument), result)

    def _run(self, number: int) -> None:
        """KVM_RUN with immediate_exit set: KVM gets the vCPU ready and lets the guest do nothing."""
        ctypes.c_uint8.from_address(self._run_pages[number] + abi.RUN_IMMEDIATE_EXIT).value = 1
        expect(ioctl(self._vcpus[number], abi.KVM_RUN.number, 0), -1)
        if number == 0:
            self._end_ns = time.perf_counter_ns()
        expect(ctypes.get_errno(), EINTR)

    def _start_thread(self) -> None:
        start, over, number = _thread.allocate_lock(), _thread.allocate_lock(), len(self._starts)
        start.acquire()
        over.acquire()
        self._starts.append(start)
        self._overs.append(over)

        def main() -> None:
            start.acquire()
            self._run(number)
            over.release()

        _thread.start_new_thread(main, ())

    def _wake_threads(self) -> None:
        """Let every vCPU's thread issue its KVM_RUN."""
        for start in self._starts:
            start.release()
        for over in self._overs:
            over.acquire()

    # And back

    def _release(self) -> None:
        self._devices.release()
        for page in self._run_pages:
            munmap(page, self._run_len)
        for fd in (*self._vcpus, self._vm, self._kvm, self._file):
            os.close(fd)
        munmap(self._ram, self._ram_len)
        self._vcpus, self._run_pages, self._starts, self._overs = [], [], [], []

    def _hva(self, gpa: int) -> int:
        """Where *gpa* lies in the one mapping of all regions."""
        before = 0
        for start, length in self._regions:
            if start <= gpa < start + length:
                return self._ram + before + gpa - start
            before += length
        raise AssertionError(hex(gpa))


def _map(length: int, flags: int, fd: int = -1) -> int:
    address: int | None = mmap(None, length, RW, flags, fd, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return address
