"""The floor of a restore: the system calls that it cannot do without, in the best order known, and nothing else.

`calls` gives them as a readable list, `run` issues them. Buffers are ready-made from a real snapshot, nothing is checked,
no thread is started, no Python object made that can go. What a restore costs above this is what snapkit adds.

Order: slots before the irqchip, because setting a slot after KVM_CREATE_IRQCHIP costs milliseconds; MADV_DONTFORK and
MADV_DONTDUMP after the last mapping, because a mapping laid over another loses them. (Documentation/virt/kvm/api.rst)
"""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from snapkit.restore.image import Image
from snapkit.restore.source import _HEAD_LEN
from snapkit.state.irqchip_x86 import IrqchipState
from snapkit.state.kvm_clock import KvmClockState
from snapkit.state.pit import PitState
from snapkit.state.vcpu_x86_64 import Msr, VcpuState
from snapkit.vmm.arch.x86_64 import layout
from snapkit.vmm.arch.x86_64.vcpu import CLOCK_MSRS
from snapkit.vmm.kvm import abi, abi_x86
from snapkit.vmm.kvm.abi import Ioctl

_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _munmap, _madvise, _ioctl = _libc.mmap, _libc.munmap, _libc.madvise, _libc.ioctl
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64)
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)

RW = 1 | 2
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS, MAP_NORESERVE = 1, 2, 0x10, 0x20, 0x4000
MADV_DONTFORK, MADV_DONTDUMP = 10, 16
EINTR = 4
IMMEDIATE_EXIT_AT = 1

Call = tuple[str, Callable[[], None]]
"""What a call is, in words, and the call."""


@dataclass
class Held:
    """What the calls made, for those that follow and for `release`."""

    file: int = -1
    kvm: int = -1
    vm: int = -1
    ram: int = 0
    run_len: int = 0
    vcpus: list[int] = field(default_factory=list)
    run_pages: list[int] = field(default_factory=list)
    vcpu_run_ns: int = 0
    """When the first KVM_RUN was issued."""


class Floor:
    """The floor of the machine in one snapshot."""

    def __init__(self, path: str) -> None:
        with Image.open(path) as image:
            states = image.sections().states.values()
            self._path = path
            self._regions = list(image.memory.regions)
            self._runs = [(run.gpa, run.length, run.offset) for run in image.memory.runs()]
            self._head_len = min(_HEAD_LEN, os.stat(path).st_size)
            preamble = image.preamble
            self._table = (preamble.chunks_len, preamble.chunks_offset)
        self.ram_len = sum(length for _, length in self._regions)
        self._vcpus = [state for state in states if isinstance(state, VcpuState)]
        (self._irqchip,) = (state for state in states if isinstance(state, IrqchipState))
        (self._pit,) = (state for state in states if isinstance(state, PitState))
        (self._clock,) = (state for state in states if isinstance(state, KvmClockState))
        self._keep: list[ctypes.Array[ctypes.c_char]] = []
        self._held = Held()
        self.calls = self._list()

    def run(self) -> int:
        """Issue the calls; returns the nanoseconds from the first to the first KVM_RUN."""
        begin_ns = time.perf_counter_ns()
        for _, call in self.calls:
            call()
        return self._held.vcpu_run_ns - begin_ns

    def release(self) -> None:
        """Give back what `run` made, in the kernel's order."""
        held = self._held
        for page in held.run_pages:
            _munmap(page, held.run_len)
        for fd in (*held.vcpus, held.vm, held.kvm, held.file):
            os.close(fd)
        _munmap(held.ram, self.ram_len)
        self.calls = self._list()

    def _list(self) -> list[Call]:
        held = self._held = Held()

        def at(gpa: int) -> int:
            """Where *gpa* lies in RAM's one mapping."""
            offset = 0
            for start, length in self._regions:
                if start <= gpa < start + length:
                    return held.ram + offset + gpa - start
                offset += length
            raise AssertionError(hex(gpa))

        def vcpu(number: int) -> Callable[[], int]:
            return lambda: held.vcpus[number]

        def vm() -> int:
            return held.vm

        table_len, table_offset = self._table
        calls: list[Call] = [
            ("open the file", lambda: setattr(held, "file", os.open(self._path, os.O_RDONLY | os.O_CLOEXEC))),
            ("read its head", lambda: self._expect(len(os.pread(held.file, self._head_len, 0)), self._head_len)),
        ]
        if table_offset + table_len > self._head_len:
            calls.append(("read the chunk table", lambda: self._read(table_len, table_offset)))
        calls += [
            ("open /dev/kvm", lambda: setattr(held, "kvm", os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))),
            ("KVM_CREATE_VM", lambda: setattr(held, "vm", _ioctl(held.kvm, abi.KVM_CREATE_VM.number, 0))),
            (
                "KVM_GET_VCPU_MMAP_SIZE",
                lambda: setattr(held, "run_len", _ioctl(held.kvm, abi.KVM_GET_VCPU_MMAP_SIZE.number, 0)),
            ),
            self._number(vm, abi_x86.KVM_SET_TSS_ADDR, layout.KVM_TSS_GPA),
            self._put(vm, abi_x86.KVM_SET_IDENTITY_MAP_ADDR, layout.KVM_IDENTITY_MAP_GPA.to_bytes(8, "little")),
            ("mmap RAM", lambda: setattr(held, "ram", _map(self.ram_len, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE))),
        ]
        for gpa, length, offset in self._runs:
            calls.append((f"mmap {length:#x} of the file", lambda g=gpa, n=length, o=offset: _lay(at(g), n, held.file, o)))
        calls += [
            ("madvise MADV_DONTFORK", lambda: self._expect(_madvise(held.ram, self.ram_len, MADV_DONTFORK), 0)),
            ("madvise MADV_DONTDUMP", lambda: self._expect(_madvise(held.ram, self.ram_len, MADV_DONTDUMP), 0)),
        ]
        for slot, (gpa, length) in enumerate(self._regions):
            calls.append((f"KVM_SET_USER_MEMORY_REGION {slot}", self._slot(held, slot, gpa, length, at)))
        calls += [
            self._number(vm, abi_x86.KVM_CREATE_IRQCHIP, 0),
            self._put(vm, abi_x86.KVM_CREATE_PIT2, abi_x86.KVM_PIT_SPEAKER_DUMMY.to_bytes(64, "little")),
        ]
        for number in range(len(self._vcpus)):
            calls.append(("KVM_CREATE_VCPU", lambda n=number: held.vcpus.append(_ioctl(held.vm, abi.KVM_CREATE_VCPU.number, n))))
            calls.append(("mmap kvm_run", lambda n=number: held.run_pages.append(_map(held.run_len, MAP_SHARED, held.vcpus[n]))))
            mask = abi.signal_mask(~(1 << signal.SIGRTMIN) & 0xFFFF_FFFF_FFFF_FFFF)
            calls.append(self._put(vcpu(number), abi.KVM_SET_SIGNAL_MASK, mask))
        for number, state in enumerate(self._vcpus):
            calls += self._load_vcpu(vcpu(number), state)
        for chip, payload in (
            (abi_x86.KVM_IRQCHIP_PIC_MASTER, abi_x86.PIC.write(self._irqchip.pic_master)),
            (abi_x86.KVM_IRQCHIP_PIC_SLAVE, abi_x86.PIC.write(self._irqchip.pic_slave)),
            (abi_x86.KVM_IRQCHIP_IOAPIC, abi_x86.write_ioapic(self._irqchip.ioapic)),
        ):
            calls.append(self._put(vm, abi_x86.KVM_SET_IRQCHIP, abi_x86.irqchip(chip, payload)))
        calls.append(self._put(vm, abi_x86.KVM_SET_PIT2, abi_x86.write_pit(self._pit, time.monotonic_ns())))
        calls.append(self._put(vm, abi_x86.KVM_SET_CLOCK, abi_x86.write_clock(self._clock.clock_ns)))
        for number, state in enumerate(self._vcpus):
            clock = {msr.index: msr for msr in state.msrs if msr.index in CLOCK_MSRS}
            calls.append(self._msrs(vcpu(number), [clock[index] for index in CLOCK_MSRS if index in clock]))
        calls.append(("KVM_RUN", lambda: _run(held)))
        return calls

    def _load_vcpu(self, fd: Callable[[], int], state: VcpuState) -> Iterator[Call]:
        yield self._put(fd, abi_x86.KVM_SET_CPUID2, abi_x86.write_cpuid(state.cpuid))
        yield self._put(fd, abi.KVM_SET_MP_STATE, state.mp_state.to_bytes(4, "little"))
        yield self._put(fd, abi_x86.KVM_SET_REGS, abi_x86.REGS.write(state.regs))
        yield self._put(fd, abi_x86.KVM_SET_SREGS, abi_x86.write_sregs(state.sregs))
        yield self._put(fd, abi_x86.KVM_SET_XSAVE, state.xsave)
        yield self._put(fd, abi_x86.KVM_SET_XCRS, abi_x86.write_xcrs(state.xcrs))
        yield self._put(fd, abi_x86.KVM_SET_DEBUGREGS, abi_x86.write_debugregs(state.debugregs))
        yield self._put(fd, abi_x86.KVM_SET_LAPIC, state.lapic)
        yield self._msrs(fd, [msr for msr in state.msrs if msr.index not in CLOCK_MSRS])
        yield self._put(fd, abi_x86.KVM_SET_VCPU_EVENTS, abi_x86.EVENTS.write(state.events))

    def _msrs(self, fd: Callable[[], int], msrs: list[Msr]) -> Call:
        return self._put(fd, abi_x86.KVM_SET_MSRS, abi_x86.write_msrs(msrs), result=len(msrs))

    def _put(self, fd: Callable[[], int], ioctl: Ioctl, payload: bytes, result: int = 0) -> Call:
        block = ctypes.create_string_buffer(payload, len(payload))
        self._keep.append(block)
        return self._number(fd, ioctl, ctypes.addressof(block), result)

    def _number(self, fd: Callable[[], int], ioctl: Ioctl, argument: int, result: int = 0) -> Call:
        number = ioctl.number
        return ioctl.name, lambda: self._expect(_ioctl(fd(), number, argument), result)

    def _slot(self, held: Held, slot: int, gpa: int, length: int, at: Callable[[int], int]) -> Callable[[], None]:
        def call() -> None:
            region = ctypes.create_string_buffer(abi.memory_region(slot, 0, gpa, length, at(gpa)))
            self._expect(_ioctl(held.vm, abi.KVM_SET_USER_MEMORY_REGION.number, ctypes.addressof(region)), 0)

        return call

    def _read(self, length: int, offset: int) -> None:
        self._expect(len(os.pread(self._held.file, length, offset)), length)

    @staticmethod
    def _expect(got: int, wanted: int) -> None:
        if got != wanted:
            raise OSError(ctypes.get_errno(), f"a call of the floor returned {got}, must be {wanted}")


def _map(length: int, flags: int, fd: int = -1) -> int:
    address: int | None = _mmap(None, length, RW, flags, fd, 0)
    if address is None or address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")
    return address


def _lay(address: int, length: int, fd: int, offset: int) -> None:
    got = _mmap(address, length, RW, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, offset)
    if got != address:
        raise OSError(ctypes.get_errno(), "mmap")


def _run(held: Held) -> None:
    """KVM_RUN with immediate_exit set: the guest is entered as far as the time is taken, and does nothing."""
    ctypes.c_uint8.from_address(held.run_pages[0] + IMMEDIATE_EXIT_AT).value = 1
    held.vcpu_run_ns = time.perf_counter_ns()
    if _ioctl(held.vcpus[0], abi.KVM_RUN.number, 0) != -1 or ctypes.get_errno() != EINTR:
        raise OSError(ctypes.get_errno(), "KVM_RUN")


@contextmanager
def floor_of(path: str) -> Iterator[Floor]:
    """The floor of the machine in the snapshot at *path*."""
    floor = Floor(path)
    yield floor
