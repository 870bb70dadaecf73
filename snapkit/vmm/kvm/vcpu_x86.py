"""A vCPU's fd on x86: typed access to what KVM holds of it."""

import errno
from collections.abc import Mapping

from snapkit.errors import HostError, IncompatibleHost
from snapkit.state.host_facts import same_rate
from snapkit.state.spec.x86 import msr_name
from snapkit.state.vcpu_x86_64 import CpuidEntry, Debugregs, Msr, Regs, Sregs, VcpuEvents, Xcr
from snapkit.vmm.kvm import abi, abi_x86
from snapkit.vmm.kvm.vcpu import VcpuFd

IA32_TSC = 0x10
_NO_ATTRIBUTE = (errno.ENXIO, errno.ENOTTY, errno.EINVAL)


class X86VcpuFd(VcpuFd):
    """One x86 vCPU."""

    def get_regs(self) -> Regs:
        return abi_x86.REGS.read(abi.get(self.fd, abi_x86.KVM_GET_REGS, abi_x86.REGS.length))

    def set_regs(self, regs: Regs) -> None:
        abi.put(self.fd, abi_x86.KVM_SET_REGS, abi_x86.REGS.write(regs))

    def get_sregs(self) -> Sregs:
        return abi_x86.read_sregs(abi.get(self.fd, abi_x86.KVM_GET_SREGS, abi_x86.SREGS_LEN))

    def set_sregs(self, sregs: Sregs) -> None:
        abi.put(self.fd, abi_x86.KVM_SET_SREGS, abi_x86.write_sregs(sregs))

    def get_xsave(self, length: int) -> bytes:
        """Return the XSAVE area; *length* above 4096 means that KVM_CAP_XSAVE2 gave it."""
        ioctl = abi_x86.KVM_GET_XSAVE2 if length > abi_x86.XSAVE_LEN else abi_x86.KVM_GET_XSAVE
        return abi.get(self.fd, ioctl, length)

    def set_xsave(self, xsave: bytes, length: int) -> None:
        """Write the XSAVE area; *length* as for `get_xsave`: as much as KVM may read, however short *xsave* is.

        The kernel does not ask what is there. A file of another host may be shorter than this one's area, and what it
        lacks are components that it does not have in XSTATE_BV either.
        """
        abi.put(self.fd, abi_x86.KVM_SET_XSAVE, xsave.ljust(length, b"\0"))

    def get_xcrs(self) -> list[Xcr]:
        return abi_x86.read_xcrs(abi.get(self.fd, abi_x86.KVM_GET_XCRS, abi_x86.XCRS_LEN))

    def set_xcrs(self, xcrs: list[Xcr]) -> None:
        abi.put(self.fd, abi_x86.KVM_SET_XCRS, abi_x86.write_xcrs(xcrs))

    def get_debugregs(self) -> Debugregs:
        return abi_x86.read_debugregs(abi.get(self.fd, abi_x86.KVM_GET_DEBUGREGS, abi_x86.DEBUGREGS_LEN))

    def set_debugregs(self, debugregs: Debugregs) -> None:
        abi.put(self.fd, abi_x86.KVM_SET_DEBUGREGS, abi_x86.write_debugregs(debugregs))

    def get_lapic(self) -> bytes:
        return abi.get(self.fd, abi_x86.KVM_GET_LAPIC, abi_x86.LAPIC_LEN)

    def set_lapic(self, lapic: bytes) -> None:
        abi.put(self.fd, abi_x86.KVM_SET_LAPIC, lapic)

    def get_events(self) -> VcpuEvents:
        events = abi_x86.EVENTS.read(abi.get(self.fd, abi_x86.KVM_GET_VCPU_EVENTS, abi_x86.EVENTS.length))
        if not events.flags & abi_x86.VALID_TRIPLE_FAULT:
            events.triple_fault_pending = 0  # Linux 6.1 leaves here what its stack had
        return events

    def set_events(self, events: VcpuEvents) -> None:
        abi.put(self.fd, abi_x86.KVM_SET_VCPU_EVENTS, abi_x86.EVENTS.write(events))

    def set_cpuid(self, entries: list[CpuidEntry]) -> None:
        abi.put(self.fd, abi_x86.KVM_SET_CPUID2, abi_x86.write_cpuid(entries))

    def get_tsc_khz(self) -> int:
        return abi.call(self.fd, abi_x86.KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, tsc_khz: int, *, scales: bool) -> None:
        """Set the counter's rate; IncompatibleHost when it is not the host's and KVM cannot scale to it (*scales*).

        A KVM that cannot scale is not asked: it takes a higher rate all the same, and moves the counter at each exit.
        """
        rate = self.get_tsc_khz()  # before: KVM-PVM remembers even the rate that it refuses
        refused = f"tsc: the machine's counter runs at {tsc_khz} kHz, this host's at {rate} and it cannot scale"
        if not scales and not same_rate(tsc_khz, rate):
            raise IncompatibleHost(f"{refused}; overridden by --force tsc")
        try:
            abi.call(self.fd, abi_x86.KVM_SET_TSC_KHZ, tsc_khz)
        except HostError as error:
            if error.errno != errno.EINVAL:
                raise
            raise IncompatibleHost(refused) from error

    def get_tsc(self) -> int:
        (counter,) = self.get_msrs([IA32_TSC])
        return counter.data

    def get_tsc_offset(self) -> int | None:
        """Return what KVM adds to the host's (scaled) counter; None where it does not tell (before Linux 5.16)."""
        try:
            value = abi.device_attr(self.fd, abi.KVM_GET_DEVICE_ATTR, *abi_x86.TSC_OFFSET_ATTR, bytes(8))
        except HostError as error:
            if error.errno not in _NO_ATTRIBUTE:
                raise
            return None
        return int.from_bytes(value, "little")

    def set_tsc_offset(self, offset: int) -> None:
        """Set what `get_tsc_offset` returns; one equal to that of the last vCPU so set keeps the two in step."""
        value = offset.to_bytes(8, "little")
        abi.device_attr(self.fd, abi.KVM_SET_DEVICE_ATTR, *abi_x86.TSC_OFFSET_ATTR, value)

    def get_msrs(self, indices: list[int]) -> list[Msr]:
        """Read MSRs; the result is shorter than *indices* when KVM does not know the one after the last."""
        raw, count = abi.exchange(self.fd, abi_x86.KVM_GET_MSRS, abi_x86.msr_request(indices))
        return abi_x86.read_msrs(raw, count)

    def set_msrs(self, msrs: Mapping[int, int]) -> None:
        """Write MSRs (index to value) in order; IncompatibleHost naming the first that KVM refuses.

        One that it refuses and has all the same is as it was saved: the address in MSR_KVM_ASYNC_PF_EN is kept before it is
        looked at, so that a guest which wrote one without RAM has it, and a #GP.
        """
        while (count := self.try_set_msrs(msrs)) != len(msrs):
            (index, data), *others = list(msrs.items())[count:]
            if [msr.data for msr in self.get_msrs([index])] != [data]:
                raise IncompatibleHost(f"KVM refuses MSR {msr_name(index)} ({index:#x}) value {data:#x}")
            msrs = dict(others)

    def try_set_msrs(self, msrs: Mapping[int, int]) -> int:
        """Write MSRs in order, up to the first that KVM refuses; returns how many it took."""
        return abi.put(self.fd, abi_x86.KVM_SET_MSRS, abi_x86.write_msrs(msrs)) if msrs else 0

    def tell_paused(self) -> None:
        """Tell the guest's watchdog through kvm-clock that it was stopped; a guest without kvm-clock needs none."""
        try:
            abi.call(self.fd, abi_x86.KVM_KVMCLOCK_CTRL)
        except HostError as error:
            if error.errno != errno.EINVAL:
                raise
