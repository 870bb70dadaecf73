"""An x86-64 vCPU as state: the orders in which KVM wants it read and written.

Saving: MP_STATE first (reading it can change the local APIC), events last (reading registers can queue one). What KVM gives
and would not take again is made what it takes, where it means the same to the guest.
Loading: by the table in `vcpu_order`. The time-stamp counter is set when the machine first runs
(`snapkit.vmm.arch.x86_64.clock`), and the timers by `start_timers` after it, or they would run on while it waits paused.
CPUID is saved as it was told, not as KVM_GET_CPUID2 gives it back: some KVMs (measured: PVM) answer with leaves and
features of their own host there, which would make a `baseline` snapshot depend on where it was written.
Source: Documentation/virt/kvm/api.rst, arch/x86/kvm/x86.c.
"""

from collections.abc import Callable, Mapping
from copy import copy
from typing import TYPE_CHECKING, NamedTuple, Self

from snapkit.state.spec import lapic
from snapkit.state.spec.x86 import Efer
from snapkit.state.vcpu_x86_64 import CpuidEntry, Msr, Sregs, VcpuState
from snapkit.vmm.arch.x86_64 import msrs, vcpu_order
from snapkit.vmm.kvm import abi, abi_x86
from snapkit.vmm.kvm.system_x86 import msr_indices
from snapkit.vmm.kvm.vcpu_x86 import X86VcpuFd
from snapkit.vmm.vm import Vm

if TYPE_CHECKING:
    from snapkit.vmm.arch.x86_64.entry import BootEntry

CLOCK_MSRS = (msrs.TSC, msrs.TSC_DEADLINE)
"""Not written before the first resume: the counter, then the deadline, which is compared with it when it is set."""

# MSR_KVM_SYSTEM_TIME and its successor; bit 0: the guest reads the clock there
_KVM_CLOCK_MSRS = frozenset({0x12, 0x4B564D01})
_WORD_LEN = 4
_DELIVERY_EXTINT, _DELIVERY_NMI = 0x700, 0x400
_MISC_ENABLE, _FAST_STRING = 0x1A0, 1
_MTRR_DEF_TYPE, _MTRR_ON_WRITE_BACK = 0x2FF, 1 << 11 | 6


class VcpuArgs(NamedTuple):
    """Host things of a vCPU: its fd, its VM, and whether its CPUID is the `baseline` profile."""

    fd: X86VcpuFd
    vm: Vm
    baseline: bool


class X86Vcpu:
    """One vCPU's state in KVM. Every method runs where `VcpuThread.post` says."""

    kind = "vcpu-x86-64"

    def __init__(self, vcpu_id: int, args: VcpuArgs, pending: VcpuState | None = None) -> None:
        self.id = vcpu_id
        self._args = args
        self._fd = args.fd
        self._pending = pending
        self._told: list[CpuidEntry] = []
        self._held_clock: dict[int, int] = {}
        self._held_counts = b""
        self._adjust = 0
        self.tsc_offset: int | None = None
        """As `X86VcpuFd.get_tsc_offset` said at the last `save`; None for a counter that was not started yet."""
        self._msr_indices: list[int] | None = None

    @property
    def fd(self) -> X86VcpuFd:
        """What KVM holds of it."""
        return self._fd

    @classmethod
    def restore(cls, state: VcpuState, args: VcpuArgs) -> Self:
        """Hold *state*, which must have been checked, until `load`.

        It is not copied, as it is only read: one more trip through the codec costs as much as loading all registers.
        """
        return cls(state.id, args, state)

    def load(self) -> None:
        """Write the held state into KVM, once, all but the counter and what counts by itself."""
        state, self._pending = self._pending, None
        if state is None:
            return
        for write in _WRITERS:
            write(self, state)

    def held_counter(self) -> tuple[int, int] | None:
        """Return the counter to go on from and the guest's own part of it; None when there is none, or it went on."""
        return (self._held_clock[msrs.TSC], self._adjust) if msrs.TSC in self._held_clock else None

    def start_timers(self) -> None:
        """Let the local APIC's timer and the deadline go on from the state, when the counter was set."""
        if self._held_counts:
            # not the page of the state: what the IOAPIC and devices injected since `load` is in KVM's only
            self._fd.set_lapic(_with_counts(self._fd.get_lapic(), self._held_counts))
        self._fd.set_msrs({index: data for index, data in self._held_clock.items() if index != msrs.TSC})

    def forget_held(self) -> None:
        """Its clocks go on for good: what was held of them is over."""
        self._held_clock, self._held_counts = {}, b""

    def save(self) -> VcpuState:
        """Read everything out of KVM; a clock that was not started yet is given back as it was."""
        fd = self._fd
        mp_state = fd.get_mp_state()
        regs, sregs = fd.get_regs(), _loadable(fd.get_sregs())
        xsave, xcrs = fd.get_xsave(self._xsave_len()), fd.get_xcrs()
        debugregs, apic = fd.get_debugregs(), _with_counts(fd.get_lapic(), self._held_counts)
        tsc_khz = self.tsc_khz()
        saved = fd.get_msrs(self._state_msrs(self._told))
        msrs.drop_unkept(saved, self._told)
        self._settle_clock(saved)
        self.tsc_offset = None if self._held_clock else fd.get_tsc_offset()
        events = fd.get_events()
        if mp_state == abi.KVM_MP_STATE_INIT_RECEIVED:
            events.smi_pending = 0  # KVM gives it, and takes none for a CPU that waits for its SIPI
        return VcpuState(
            id=self.id,
            mp_state=mp_state,
            tsc_khz=tsc_khz,
            regs=regs,
            sregs=sregs,
            xsave=xsave,
            xcrs=xcrs,
            debugregs=debugregs,
            lapic=apic,
            cpuid=[copy(entry) for entry in self._told],
            msrs=saved,
            events=events,
        )

    def reset(self, cpuid: list[CpuidEntry], entry: "BootEntry | None") -> None:
        """Make a fresh vCPU what firmware would leave: *entry* for the boot CPU, None for one that waits for SIPI."""
        fd = self._fd
        self._tell(cpuid)
        apic = bytearray(fd.get_lapic())
        for register, delivery in ((lapic.LVT_LINT0, _DELIVERY_EXTINT), (lapic.LVT_LINT1, _DELIVERY_NMI)):
            apic[register : register + _WORD_LEN] = delivery.to_bytes(4, "little")
        fd.set_lapic(bytes(apic))
        fd.set_msrs({_MISC_ENABLE: _FAST_STRING, _MTRR_DEF_TYPE: _MTRR_ON_WRITE_BACK})
        if entry is None:
            fd.set_mp_state(abi.KVM_MP_STATE_UNINITIALIZED)
            return
        sregs = fd.get_sregs()
        entry.apply(sregs)
        fd.set_sregs(sregs)
        fd.set_regs(entry.regs())

    def tsc_khz(self) -> int:
        """Return the rate that the time-stamp counter must have wherever this goes on; 0 when it does not matter."""
        return 0 if self._args.baseline else self._fd.get_tsc_khz()

    def tell_paused(self) -> None:
        """Tell the guest's watchdog that it was stopped."""
        self._fd.tell_paused()

    def _tell(self, cpuid: list[CpuidEntry]) -> None:
        self._fd.set_cpuid(cpuid)
        self._told = cpuid

    def _still(self, page: bytes) -> bytes:
        """Return *page* with its timer stopped, and hold the counts: KVM starts the timer when the page is written."""
        counts = page[lapic.TMICT : lapic.TMCCT + _WORD_LEN]
        if not any(counts):
            return page
        self._held_counts = counts
        return _with_counts(page, bytes(len(counts)))

    def _write_tsc_khz(self, state: VcpuState) -> None:
        if state.tsc_khz and state.tsc_khz != self._fd.get_tsc_khz():
            scales = bool(self._args.vm.kvm.extension(abi.KVM_CAP_TSC_CONTROL))
            self._fd.set_tsc_khz(state.tsc_khz, scales=scales)

    def _write_xcrs(self, state: VcpuState) -> None:
        if state.xcrs:
            self._fd.set_xcrs(state.xcrs)

    def _write_msrs(self, state: VcpuState) -> None:
        values = {msr.index: msr.data for msr in state.msrs}
        self._msr_indices = list(values)
        self._held_clock = {index: values.pop(index) for index in CLOCK_MSRS if index in values}
        self._adjust = values.get(msrs.TSC_ADJUST, 0)
        self._fd.set_msrs(values)

    def _write_pause(self, state: VcpuState) -> None:
        clocks = [msr for msr in state.msrs if msr.index in _KVM_CLOCK_MSRS]  # not a generator: a third of its time
        if any(msr.data & 1 for msr in clocks):
            self._fd.tell_paused()

    def _xsave_len(self) -> int:
        return max(abi_x86.XSAVE_LEN, self._args.vm.fd.extension(abi.KVM_CAP_XSAVE2))

    def _state_msrs(self, cpuid: list[CpuidEntry]) -> list[int]:
        if self._msr_indices is None:
            if self._args.baseline:
                self._msr_indices = msrs.find_baseline(self._fd)
            else:
                self._msr_indices = msrs.find_state(self._fd, msr_indices(self._args.vm.kvm), cpuid)
        return self._msr_indices

    def _settle_clock(self, saved: list[Msr]) -> None:
        """Give back a clock that never started; arm a deadline that had already passed."""
        values = {msr.index: msr for msr in saved if msr.index in CLOCK_MSRS}
        for index, data in self._held_clock.items():
            if index in values:
                values[index].data = data
        deadline, counter = values.get(msrs.TSC_DEADLINE), values.get(msrs.TSC)
        if deadline is not None and counter is not None and deadline.data == 0:
            # 0 means expired, its interrupt perhaps not yet raised: the counter's own value fires it at once
            deadline.data = counter.data


def _loadable(sregs: Sregs) -> Sregs:
    """Make what KVM gave what it takes: CS.L outside of long mode is a bit that a descriptor had, and has no effect there."""
    if not sregs.efer & Efer.LMA:
        sregs.cs.l = 0
    return sregs


def _with_counts(page: bytes, counts: bytes) -> bytes:
    """Return the local APIC's *page* with the timer's counts, initial to current; without any, as it is."""
    return page[: lapic.TMICT] + counts + page[lapic.TMICT + len(counts) :]


_WRITE: Mapping[str, Callable[[X86Vcpu, VcpuState], None]] = {
    "CPUID2": lambda vcpu, state: vcpu._tell(state.cpuid),
    "TSC_KHZ": X86Vcpu._write_tsc_khz,
    "REGS": lambda vcpu, state: vcpu._fd.set_regs(state.regs),
    "SREGS": lambda vcpu, state: vcpu._fd.set_sregs(state.sregs),
    "MP_STATE": lambda vcpu, state: vcpu._fd.set_mp_state(state.mp_state),
    "XSAVE": lambda vcpu, state: vcpu._fd.set_xsave(state.xsave, vcpu._xsave_len()),
    "XCRS": X86Vcpu._write_xcrs,
    "DEBUGREGS": lambda vcpu, state: vcpu._fd.set_debugregs(state.debugregs),
    "LAPIC": lambda vcpu, state: vcpu._fd.set_lapic(vcpu._still(state.lapic)),
    "MSRS": X86Vcpu._write_msrs,
    "VCPU_EVENTS": lambda vcpu, state: vcpu._fd.set_events(state.events),
    "KVMCLOCK_CTRL": X86Vcpu._write_pause,
}
_WRITERS = tuple(_WRITE[name] for name in vcpu_order.LOAD.names if name not in vcpu_order.AT_FIRST_RESUME)
