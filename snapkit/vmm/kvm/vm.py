"""A VM's fd."""

from collections.abc import Iterable

from snapkit import host
from snapkit.state.interrupt_table import RouteState
from snapkit.state.irqchip_x86 import IrqchipState
from snapkit.state.pit import PitState
from snapkit.units import Gpa, Gsi, Hva
from snapkit.vmm.kvm import abi, abi_x86
from snapkit.vmm.kvm.vcpu import VcpuFd


class VmFd:
    """One VM. Owns its fd; the vCPUs that it makes own theirs."""

    def __init__(self, fd: int, vcpu_mmap_length: int) -> None:
        self.fd = fd
        self._vcpu_mmap_length = vcpu_mmap_length

    def close(self) -> None:
        """Close the fd; the kernel keeps the VM while a vCPU fd or a kvm_run mapping lives."""
        if self.fd >= 0:
            host.close(self.fd)
            self.fd = -1

    def extension(self, cap: int) -> int:
        """Return KVM_CHECK_EXTENSION of *cap* as this VM has it."""
        return abi.call(self.fd, abi.KVM_CHECK_EXTENSION, cap)

    def set_memory_slot(self, slot: int, gpa: Gpa, hva: Hva, length: int) -> None:
        """Back guest-physical *gpa* by the monitor's memory at *hva*; length 0 removes the slot."""
        abi.put(self.fd, abi.KVM_SET_USER_MEMORY_REGION, abi.memory_region(slot, 0, gpa, length, hva))

    def create_vcpu(self, vcpu_id: int) -> VcpuFd:
        """Create a vCPU and map its kvm_run."""
        return VcpuFd(abi.call(self.fd, abi.KVM_CREATE_VCPU, vcpu_id), self._vcpu_mmap_length)

    def set_irq_line(self, gsi: Gsi, level: int) -> None:
        """Drive an interrupt controller's pin."""
        abi.put(self.fd, abi.KVM_IRQ_LINE, abi.irq_level(gsi, level))

    def irqfd(self, fd: int, gsi: int, *, assign: bool) -> None:
        """Have a write to the eventfd *fd* raise *gsi*, or no longer. Its route must be there before, or it is lost."""
        abi.put(self.fd, abi.KVM_IRQFD, abi.irqfd(fd, gsi, 0 if assign else abi.KVM_IRQFD_FLAG_DEASSIGN))

    def ioeventfd(
        self, fd: int, gpa: int, length: int, *, datamatch: int | None = None, assign: bool = True, pio: bool = False
    ) -> None:
        """Have a guest's store to *gpa* (port *gpa* with *pio*) signal the eventfd *fd* without an exit, or no longer.

        *length* 0 takes a store of any length; a *datamatch* takes only that value. Taking back needs the same
        arguments.
        """
        flags = (
            (0 if datamatch is None else abi.KVM_IOEVENTFD_FLAG_DATAMATCH)
            | (abi.KVM_IOEVENTFD_FLAG_PIO if pio else 0)
            | (0 if assign else abi.KVM_IOEVENTFD_FLAG_DEASSIGN)
        )
        abi.put(self.fd, abi.KVM_IOEVENTFD, abi.ioeventfd(fd, gpa, length, datamatch or 0, flags))

    def signal_msi(self, address: int, data: int, device_id: int = 0) -> bool:
        """Deliver one message now; False when the guest has it blocked."""
        return abi.put(self.fd, abi.KVM_SIGNAL_MSI, abi.msi(address, data, device_id)) > 0

    # x86

    def set_gsi_routing(self, routes: Iterable[RouteState]) -> None:
        """Make *routes* the messages that GSIs stand for, beside the pins of the interrupt controllers.

        The ioctl replaces KVM's whole table, so this method puts the pins in each time.
        """
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
