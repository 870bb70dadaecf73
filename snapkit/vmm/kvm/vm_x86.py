"""A VM's fd on x86: the chips that KVM has beside the vCPUs, and the guest's clock."""

from collections.abc import Iterable

from snapkit import host
from snapkit.state.interrupt_table import RouteState
from snapkit.state.irqchip_x86 import IrqchipState
from snapkit.state.pit import PitState
from snapkit.units import Gpa, Gsi
from snapkit.vmm.kvm import abi, abi_x86
from snapkit.vmm.kvm.vcpu_x86 import X86VcpuFd
from snapkit.vmm.kvm.vm import VmFd


class X86VmFd(VmFd):
    """A VM with PICs, IOAPIC and PIT in the kernel."""

    def create_vcpu(self, vcpu_id: int) -> X86VcpuFd:
        return X86VcpuFd(abi.call(self.fd, abi.KVM_CREATE_VCPU, vcpu_id), self._vcpu_mmap_length)

    def set_irq_line(self, gsi: Gsi, level: int) -> None:
        abi.put(self.fd, abi.KVM_IRQ_LINE, abi.irq_level(gsi, level))

    def set_gsi_routing(self, routes: Iterable[RouteState]) -> None:
        # the ioctl replaces KVM's whole table, so the pins of PICs and IOAPIC are put in each time
        messages = [abi.msi_route(route.gsi, route.address, route.data, route.device_id) for route in routes]
        entries = abi_x86.IDENTITY_ROUTES + b"".join(messages)
        abi.put(self.fd, abi.KVM_SET_GSI_ROUTING, abi.routing(entries))

    def set_tss_addr(self, gpa: Gpa) -> None:
        abi.call(self.fd, abi_x86.KVM_SET_TSS_ADDR, gpa)

    def set_identity_map_addr(self, gpa: Gpa) -> None:
        abi.put(self.fd, abi_x86.KVM_SET_IDENTITY_MAP_ADDR, gpa.to_bytes(8, "little"))

    def create_irqchip(self) -> None:
        abi.call(self.fd, abi_x86.KVM_CREATE_IRQCHIP)

    def create_pit(self) -> None:
        """Create the PIT with a dummy for the speaker port 0x61, which timer calibration reads."""
        abi.put(self.fd, abi_x86.KVM_CREATE_PIT2, abi_x86.KVM_PIT_SPEAKER_DUMMY.to_bytes(64, "little"))

    def get_irqchip(self) -> IrqchipState:
        pic_master, pic_slave, ioapic = (
            self._get_chip(chip)
            for chip in (abi_x86.KVM_IRQCHIP_PIC_MASTER, abi_x86.KVM_IRQCHIP_PIC_SLAVE, abi_x86.KVM_IRQCHIP_IOAPIC)
        )
        return IrqchipState(
            pic_master=abi_x86.PIC.read(pic_master),
            pic_slave=abi_x86.PIC.read(pic_slave),
            ioapic=abi_x86.read_ioapic(ioapic),
        )

    def set_irqchip(self, state: IrqchipState) -> None:
        """Load PIC master, PIC slave, then the IOAPIC, which injects what it holds into the local APICs."""
        for chip, payload in (
            (abi_x86.KVM_IRQCHIP_PIC_MASTER, abi_x86.PIC.write(state.pic_master)),
            (abi_x86.KVM_IRQCHIP_PIC_SLAVE, abi_x86.PIC.write(state.pic_slave)),
            (abi_x86.KVM_IRQCHIP_IOAPIC, abi_x86.write_ioapic(state.ioapic)),
        ):
            abi.put(self.fd, abi_x86.KVM_SET_IRQCHIP, abi_x86.irqchip(chip, payload))

    def _get_chip(self, chip: int) -> bytes:
        raw = abi.get(self.fd, abi_x86.KVM_GET_IRQCHIP, abi_x86.IRQCHIP_LEN, abi_x86.irqchip(chip))
        return raw[abi_x86.IRQCHIP_STATE_AT :]

    def get_pit(self) -> PitState:
        raw = abi.get(self.fd, abi_x86.KVM_GET_PIT2, abi_x86.PIT2_LEN)
        return abi_x86.read_pit(raw, host.monotonic_ns())

    def set_pit(self, state: PitState) -> None:
        abi.put(self.fd, abi_x86.KVM_SET_PIT2, abi_x86.write_pit(state, host.monotonic_ns()))

    def get_clock_ns(self) -> int:
        return abi_x86.read_clock(abi.get(self.fd, abi_x86.KVM_GET_CLOCK, abi_x86.CLOCK_LEN))

    def set_clock_ns(self, clock_ns: int, realtime_ns: int | None = None) -> None:
        """Set the guest's time; with *realtime_ns* the wall time gone since then is added (`clock_has_realtime`)."""
        abi.put(self.fd, abi_x86.KVM_SET_CLOCK, abi_x86.write_clock(clock_ns, realtime_ns))

    def clock_has_realtime(self) -> bool:
        """Return whether KVM_SET_CLOCK takes a wall time: KVM_CAP_ADJUST_CLOCK gives the flags that it knows."""
        return bool(self.extension(abi.KVM_CAP_ADJUST_CLOCK) & abi_x86.KVM_CLOCK_REALTIME)
