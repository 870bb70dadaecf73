"""The counter that a guest measures time by: where it goes on at the first resume, and how fast it runs.

KVM has one virtual counter for all vCPUs of a machine (since Linux 6.4 also a physical one, which the guest reads the
same way); setting it through one vCPU sets it for all. It goes on while a machine is paused. After a restore it goes on
from the value saved, or with the policy ``realtime`` further by the wall time since the save; where the host's wall
clock lies before the save, realtime is continue: nothing goes back. No guest can be told that it was away, as kvm-clock
does on x86-64: over a jump of minutes the watchdogs of Linux report CPUs that hang, unless they are off. Its first tick
after the jump, which is due at once, sets its clocks right. Who reads one on another CPU before that may read it short of
the jump: cycles times mult overflow 64 bits from some ten minutes on (max_cycles of struct clocksource).

No ioctl tells its rate. CNTFRQ_EL0 does, which KVM lets a guest read as it is, so that a guest of two instructions is
asked; an executable page of the monitor's own would do as well, but a process may not be allowed one.
"""

from collections.abc import Sequence

from snapkit import host
from snapkit.errors import IncompatibleHost, InternalError
from snapkit.state.spec import aarch64 as spec
from snapkit.units import GIB, PAGE_LEN, Gpa
from snapkit.vmm.arch import ClockPolicy
from snapkit.vmm.arch.aarch64.vcpu import Aarch64Vcpu
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.kvm.vm_arm import ArmVmFd
from snapkit.vmm.memory import GuestMemory

_U64 = (1 << 64) - 1
_NS_PER_S = 1_000_000_000
_CODE_GPA = Gpa(GIB)
_NOWHERE_GPA = 2 * GIB
_CODE = bytes.fromhex("00e03bd5 200000f9")
"""mrs x0, cntfrq_el0; str x0, [x1]"""
_rate_hz = 0
"""What this host's counter runs at, once it was asked for."""


def start(vcpus: Sequence[Aarch64Vcpu], policy: ClockPolicy) -> None:
    """Set the counters of a restored machine going; once, at the first resume, before any vCPU was in KVM_RUN."""
    first = vcpus[0]
    held = first.held
    if held is None:
        return
    since_ns = max(0, host.realtime_ns() - held.realtime_ns) if policy == "realtime" and held.realtime_ns else 0
    cycles = since_ns * held.counter_hz // _NS_PER_S
    first.fd.set_regs({register: value + cycles & _U64 for register, value in held.counters.items()})
    first.forget_held()


def require_rate(kvm: Kvm, wanted_hz: int) -> None:
    """Raise IncompatibleHost unless a guest's counter runs at *wanted_hz* here; 0 is any rate.

    The guest asked for it when it booted, and KVM cannot scale it.
    """
    if wanted_hz and (found_hz := counter_hz(kvm)) != wanted_hz:
        raise IncompatibleHost(f"the machine's counter runs at {wanted_hz} Hz, this host's at {found_hz}")


def counter_hz(kvm: Kvm) -> int:
    """Return CNTFRQ_EL0 as a guest reads it, in Hz; it costs a VM, 1 ms, once: firmware sets it before Linux starts."""
    global _rate_hz
    if not _rate_hz:
        _rate_hz = _ask_guest(kvm)
    return _rate_hz


def _ask_guest(kvm: Kvm) -> int:
    memory = GuestMemory([(_CODE_GPA, PAGE_LEN)])
    try:
        vm = kvm.create_vm(ArmVmFd)
        try:
            (region,) = memory.regions
            memory.write(_CODE_GPA, _CODE)
            vm.set_memory_slot(0, region.gpa, region.hva, region.length)
            vcpu = vm.create_vcpu(0)
            try:
                vcpu.init(vm.preferred_target())
                vcpu.set_regs({spec.PC: _CODE_GPA, spec.X1: _NOWHERE_GPA})
                vcpu.run()
                reason, *_ = abi.RUN_EXIT.unpack_from(vcpu.run_page, abi.RUN_EXIT_AT)
                if reason != abi.KVM_EXIT_MMIO:
                    raise InternalError(f"a guest that stores its counter's rate exits for reason {reason}")
                _, stored, _, _ = abi.RUN_MMIO.unpack_from(vcpu.run_page, abi.RUN_UNION_AT)
                return int.from_bytes(stored, "little")
            finally:
                vcpu.close()
        finally:
            vm.close()
    finally:
        memory.close()
