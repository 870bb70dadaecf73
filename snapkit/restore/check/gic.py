"""The GICv3 of a machine: that its parts are of one GIC, which serves the CPUs and the pins that there are.

What one part alone must hold is told by the module of its kind. What a guest writes (priorities, enables, targets, where
tables lie) is not judged. Source: arch/arm64/kvm/vgic/vgic-mmio-v3.c, vgic-sys-reg-v3.c and vgic-init.c.
"""

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index, invariant
from snapkit.restore.pages import Pages
from snapkit.state.gicv3_cpu_interface import CpuInterfaceState
from snapkit.state.gicv3_distributor import DistributorState
from snapkit.state.gicv3_redistributor import RedistributorState
from snapkit.state.machine import MachineState
from snapkit.state.spec import aarch64
from snapkit.state.spec.address_map import GIC_IRQS
from snapkit.state.spec.gicv3 import GicrCtlr, GicrTyper, IccCtlr

_BUILT = IccCtlr.PRI_BITS | IccCtlr.ID_BITS | IccCtlr.SEIS | IccCtlr.A3V
"""Of ICC_CTLR_EL1: what the processor is, not what a guest chooses."""
_SAID = GicrTyper.PLPIS | GicrTyper.LAST | GicrTyper.PROCESSOR_NUMBER | GicrTyper.AFFINITY


@invariant("gic.its")
def its_for_messages(index: Index, _pages: Pages) -> Findings:
    """There is an ITS, as instance 0, where there is PCI and nowhere else: its tables are how messages arrive."""
    found = [instance for kind, instance in index.sections if kind == "gicv3-its"]
    wanted = ["0"] if any(kind == "pci-segment" for kind, _ in index.sections) else []
    if found != wanted:
        yield Finding("gicv3-its", "", f"there as {found}", f"there as {wanted}: once where there is PCI")


@invariant("gic.interrupts")
def interrupts_as_mapped(index: Index, _pages: Pages) -> Findings:
    """The distributor has the interrupts of the address map: as many as KVM is told to make, no pin left out."""
    for section, state in index.each(DistributorState):
        if state.nr_irqs != GIC_IRQS:
            yield Finding(str(section), "nr_irqs", str(state.nr_irqs), str(GIC_IRQS))


@invariant("gic.redistributors")
def redistributors_in_place(index: Index, _pages: Pages) -> Findings:
    """A redistributor tells whose it is: its CPU's number and affinity, whether it is the last, whether there are LPIs."""
    machine = index.get("machine", "0", MachineState)
    if machine is None:
        return
    its = GicrTyper.PLPIS if any(kind == "gicv3-its" for kind, _ in index.sections) else 0
    for section, state in index.each(RedistributorState):
        if not (section.instance.isascii() and section.instance.isdecimal()):
            continue  # of no CPU, which is told elsewhere
        number = int(section.instance)
        affinity = aarch64.affinity_of(aarch64.mpidr_of(number))
        wanted = its | GicrTyper.PROCESSOR_NUMBER.put(number) | GicrTyper.AFFINITY.put(affinity)
        if number == machine.vcpu_count - 1:
            wanted |= GicrTyper.LAST & state.typer  # Linux 5.10 to 5.12 tells the guest of it, not the monitor
        if state.typer & _SAID != wanted:
            yield Finding(str(section), "typer", f"{state.typer:#x}", f"{wanted:#x} in the bits {_SAID:#x}")
        if state.ctlr & GicrCtlr.ENABLE_LPIS and not its:
            yield Finding(str(section), "ctlr", f"{state.ctlr:#x}", "without bit 0: there is no ITS")


@invariant("gic.one")
def one_configuration_table(index: Index, _pages: Pages) -> Findings:
    """All redistributors have one implementer and one PROPBASER: KVM has one of each for all, and the last one counts."""
    parts = index.each(RedistributorState)
    for section, state in parts[1:]:
        first, model = parts[0]
        for name in ("iidr", "propbaser"):
            found, wanted = getattr(state, name), getattr(model, name)
            if found != wanted:
                yield Finding(str(section), name, f"{found:#x}", f"{wanted:#x}, as {first} has it")


@invariant("icc.alike")
def interfaces_alike(index: Index, _pages: Pages) -> Findings:
    """All CPU interfaces have the same widths of priorities and interrupt ids: they are one processor's."""
    parts = index.each(CpuInterfaceState)
    for section, state in parts[1:]:
        first, model = parts[0]
        found, wanted = state.icc_ctlr_el1 & _BUILT, model.icc_ctlr_el1 & _BUILT
        if found != wanted:
            text = f"{wanted:#x} in the bits {_BUILT:#x}, as {first} has it"
            yield Finding(str(section), "icc_ctlr_el1", f"{state.icc_ctlr_el1:#x}", text)
