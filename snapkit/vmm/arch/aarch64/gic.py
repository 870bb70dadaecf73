"""The GICv3 in KVM: one device, which the distributor makes, once all vCPUs are there; each vCPU's parts beside it.

Saving writes guest memory: which LPIs are pending goes into each CPU's pending table, where a restored ITS finds it.

The lines of the two timers of a CPU are levels that KVM makes of the timers' registers each time when it looks at the
vCPU, so they are saved as low: high or low would be an accident of when.

PROPBASER and PENDBASER read 0 until they are first written, and then what KVM has: a 0 written is read back with memory
attributes (vgic_sanitise_propbaser), so a 0 is not written.

SGIs are enabled from reset on, so that a CPU's own interrupts are disabled before those are enabled that were.

A route's upper half is the target's affinity level 3, which KVM's GIC has not.

While ICC_CTLR_EL1.CBPR is set, KVM shows ICC_BPR1_EL1 as the other binary point plus one, to a monitor as to a guest, and
takes no other: what a guest had in it before it set CBPR is not saved.
Source: Documentation/virt/kvm/devices/arm-vgic-v3.rst, arch/arm64/kvm/vgic of Linux.
"""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple, Self

from snapkit.state.gicv3_cpu_interface import CpuInterfaceState, active_priority_registers
from snapkit.state.gicv3_distributor import DistributorState
from snapkit.state.gicv3_redistributor import RedistributorState
from snapkit.state.spec import gicv3 as spec
from snapkit.state.spec.address_map import GICD_GPA, gicr_gpa
from snapkit.vmm.arch.aarch64 import gic_order
from snapkit.vmm.arch.aarch64.registers import Bank, read, words, write, write_tables
from snapkit.vmm.kvm import abi_arm
from snapkit.vmm.kvm.abi_arm import (
    KVM_DEV_ARM_VGIC_GRP_ADDR,
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS,
    KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS,
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
)
from snapkit.vmm.kvm.device import DeviceFd
from snapkit.vmm.kvm.vm_arm import ArmVmFd

_TIMER_LINES = 1 << 27 | 1 << 30
"""PPIs that KVM gives to the virtual and to the physical timer."""
_ALL = 0xFFFF_FFFF
_IRQS_A_WORD = 32


class Inert:
    """What chips without a clock and without a thing of the host's have in common."""

    def start_clock(self) -> None:
        """Nothing here keeps time: timers are the vCPUs'."""

    def stop_clock(self) -> None:
        """Nothing here keeps time."""

    def close(self) -> None:
        """Nothing here is the host's."""


class Distributor(Inert):
    """The controller's device, and its part that all CPUs share."""

    kind = "gicv3-distributor"

    def __init__(self, device: DeviceFd, nr_irqs: int, pending: DistributorState | None = None) -> None:
        self.device = device
        self._nr_irqs, self._pending = nr_irqs, pending
        self._banks = _distributor_banks(nr_irqs)

    @classmethod
    def restore(cls, state: DistributorState, args: DeviceFd) -> Self:
        """Hold *state*, which must have been checked and is only read, until `load`."""
        return cls(args, state.nr_irqs, state)

    def load(self) -> None:
        """Write the held state into KVM, once."""
        state, self._pending = self._pending, None
        if state is not None:
            write(self.kind, self.device, self._banks, gic_order.DISTRIBUTOR.names, state)

    def save(self) -> DistributorState:
        """Have KVM write pending LPIs into guest memory, and read all registers."""
        write_tables(self.device, abi_arm.KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, "GICR_PENDBASER")
        return DistributorState(nr_irqs=self._nr_irqs, **read(self.device, self._banks.values()))

    def close(self) -> None:
        self.device.close()


class CpuArgs(NamedTuple):
    """Which CPU of which controller."""

    device: DeviceFd
    mpidr: int


class Redistributor(Inert):
    """One CPU's own interrupts, and its LPIs' tables."""

    kind = "gicv3-redistributor"

    def __init__(self, args: CpuArgs, pending: RedistributorState | None = None) -> None:
        self._device, self._pending = args.device, pending
        self._banks = _redistributor_banks(abi_arm.affinity(args.mpidr))
        self._fixed = _redistributor_identity(abi_arm.affinity(args.mpidr))

    @classmethod
    def restore(cls, state: RedistributorState, args: CpuArgs) -> Self:
        """Hold *state*, which must have been checked and is only read, until `load`."""
        return cls(args, state)

    def load(self) -> None:
        """Write the held state into KVM, once."""
        state, self._pending = self._pending, None
        if state is not None:
            write(self.kind, self._device, self._banks, gic_order.REDISTRIBUTOR.names, state)

    def save(self) -> RedistributorState:
        """Read all registers."""
        fields = read(self._device, (*self._fixed, *self._banks.values()))
        fields["line_level"] &= ~_TIMER_LINES
        return RedistributorState(**fields)


class CpuInterface(Inert):
    """One CPU's ICC system registers."""

    kind = "gicv3-cpu-interface"

    def __init__(self, args: CpuArgs, pending: CpuInterfaceState | None = None) -> None:
        self._device, self._pending = args.device, pending
        self._affinity = abi_arm.affinity(args.mpidr)

    @classmethod
    def restore(cls, state: CpuInterfaceState, args: CpuArgs) -> Self:
        """Hold *state*, which must have been checked and is only read, until `load`."""
        return cls(args, state)

    def load(self) -> None:
        """Write the held state into KVM, once."""
        state, self._pending = self._pending, None
        if state is not None:
            banks = _interface_banks(self._affinity, active_priority_registers(state.icc_ctlr_el1))
            write(self.kind, self._device, banks, gic_order.CPU_INTERFACE.names, state)

    def save(self) -> CpuInterfaceState:
        """Read all registers: how many there are, the control register says."""
        attr = self._affinity | _icc(*_ICC_CTLR)
        (control,) = self._device.get_all(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, [attr])
        banks = _interface_banks(self._affinity, active_priority_registers(control))
        return CpuInterfaceState(**read(self._device, banks.values()))


def create_gic(vm: ArmVmFd, vcpus: int, nr_irqs: int) -> DeviceFd:
    """Create the controller of a VM that has all its *vcpus*, where the address map puts it."""
    device = vm.create_device(abi_arm.KVM_DEV_TYPE_ARM_VGIC_V3, "GICv3 (it may have a GICv2)")
    try:
        device.set(KVM_DEV_ARM_VGIC_GRP_ADDR, abi_arm.KVM_VGIC_V3_ADDR_TYPE_DIST, GICD_GPA)
        region = abi_arm.redist_region(gicr_gpa(vcpus), vcpus)
        device.set(KVM_DEV_ARM_VGIC_GRP_ADDR, abi_arm.KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION, region)
        device.set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, nr_irqs)
        device.control(KVM_DEV_ARM_VGIC_GRP_CTRL, abi_arm.KVM_DEV_ARM_VGIC_CTRL_INIT)
    except BaseException:
        device.close()
        raise
    return device


@cache
def _distributor_banks(nr_irqs: int) -> Mapping[str, Bank]:
    shared = nr_irqs - spec.SPI_BASE

    def bank(field: str, register: int, bits_each: int, *, clear: bool = True) -> Bank:
        # the registers of the first 32 interrupts are each CPU's redistributor's
        first = register + spec.SPI_BASE * bits_each // 8
        attrs = words(first, shared * bits_each // 32)
        return Bank(field, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, attrs, listed=True, clear=clear)

    def one(field: str, register: int) -> Bank:
        return Bank(field, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, (register,))

    routes = words(spec.GICD_IROUTER + 8 * spec.SPI_BASE, shared, 8)
    lines = words(spec.SPI_BASE, shared // _IRQS_A_WORD, _IRQS_A_WORD)  # as the first vCPU sees them: all see the same
    return {
        "IIDR": one("iidr", spec.GICD_IIDR),
        "CTLR": one("ctlr", spec.GICD_CTLR),
        "STATUSR": one("statusr", spec.GICD_STATUSR),
        "IGROUPR": bank("igroupr", spec.IGROUPR, 1, clear=False),
        "ISENABLER": bank("isenabler", spec.ISENABLER, 1),
        "ISPENDR": bank("ispendr", spec.ISPENDR, 1),
        "ISACTIVER": bank("isactiver", spec.ISACTIVER, 1),
        "IPRIORITYR": bank("ipriorityr", spec.IPRIORITYR, 8),
        "ICFGR": bank("icfgr", spec.ICFGR, 2, clear=False),
        "IROUTER": Bank("irouter", KVM_DEV_ARM_VGIC_GRP_DIST_REGS, routes, listed=True, clear=True),
        "LEVEL_INFO": Bank("line_level", KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, lines, listed=True, clear=True),
    }


def _redistributor_bank(affinity: int, field: str, register: int, count: int = 1, **how: bool) -> Bank:
    return Bank(field, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, words(affinity | register, count), **how)


@cache
def _redistributor_identity(affinity: int) -> tuple[Bank, Bank]:
    """What says which one it is, and cannot be written."""
    return (
        _redistributor_bank(affinity, "typer", spec.GICR_TYPER, 2, halves=True),
        _redistributor_bank(affinity, "iidr", spec.GICR_IIDR),
    )


@cache
def _redistributor_banks(affinity: int) -> Mapping[str, Bank]:
    own = affinity | spec.SGI_BASE
    enabled = _redistributor_bank(own, "", spec.ICENABLER)
    return {
        "GICR_CTLR": _redistributor_bank(affinity, "ctlr", spec.GICR_CTLR),
        "STATUSR": _redistributor_bank(affinity, "statusr", spec.GICR_STATUSR),
        "WAKER": _redistributor_bank(affinity, "waker", spec.GICR_WAKER),
        "PROPBASER": _redistributor_bank(affinity, "propbaser", spec.GICR_PROPBASER, 2, halves=True, clear=True),
        "PENDBASER": _redistributor_bank(affinity, "pendbaser", spec.GICR_PENDBASER, 2, halves=True, clear=True),
        "IGROUPR0": _redistributor_bank(own, "igroupr0", spec.IGROUPR),
        "ICENABLER0": enabled._replace(constant=_ALL),
        "ISENABLER0": _redistributor_bank(own, "isenabler0", spec.ISENABLER, clear=True),
        "ISPENDR0": _redistributor_bank(own, "ispendr0", spec.ISPENDR, clear=True),
        "ISACTIVER0": _redistributor_bank(own, "isactiver0", spec.ISACTIVER, clear=True),
        "IPRIORITYR": _redistributor_bank(own, "ipriorityr", spec.IPRIORITYR, 8, listed=True, clear=True),
        "ICFGR": _redistributor_bank(own, "icfgr", spec.ICFGR, 2, listed=True),
        "LEVEL_INFO": Bank("line_level", KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, (affinity,), clear=True),
    }


_ICC_CTLR = (12, 12, 4)


def _icc(crn: int, crm: int, op2: int) -> int:
    """Return the attribute of S3_0_<Cn>_<Cm>_<op2>."""
    return 3 << 14 | crn << 7 | crm << 3 | op2


@cache
def _interface_banks(affinity: int, priorities: int) -> Mapping[str, Bank]:
    def bank(field: str, crn: int, crm: int, op2: int, count: int = 1, *, listed: bool = False) -> Bank:
        attrs = words(affinity | _icc(crn, crm, op2), count, 1)
        return Bank(field, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, attrs, listed=listed)

    return {
        "ICC_SRE_EL1": bank("icc_sre_el1", 12, 12, 5),
        "ICC_CTLR_EL1": bank("icc_ctlr_el1", *_ICC_CTLR),
        "ICC_PMR_EL1": bank("icc_pmr_el1", 4, 6, 0),
        "ICC_BPR0_EL1": bank("icc_bpr0_el1", 12, 8, 3),
        "ICC_BPR1_EL1": bank("icc_bpr1_el1", 12, 12, 3),
        "ICC_AP0Rn_EL1": bank("icc_ap0r_el1", 12, 8, 4, priorities, listed=True),
        "ICC_AP1Rn_EL1": bank("icc_ap1r_el1", 12, 9, 0, priorities, listed=True),
        "ICC_IGRPEN0_EL1": bank("icc_igrpen0_el1", 12, 12, 6),
        "ICC_IGRPEN1_EL1": bank("icc_igrpen1_el1", 12, 12, 7),
    }
