"""An aarch64 machine whose ITS has its tables where `tests.state.its_writer` writes them."""

from snapkit.state.interrupt_table import RouteState
from snapkit.state.its_tables import Places
from snapkit.state.schema import SectionId
from tests.grounds import AARCH64
from tests.restore.device_machine import States, fresh_machine, with_ram
from tests.state.its_writer import BASE, RAM_LEN

ITS, TABLE = SectionId("gicv3-its", "0"), SectionId("interrupt-table", "0")


def its_machine(where: Places, *routes: RouteState) -> States:
    """Return a machine with all five devices on PCI, its registers for tables as *where* has them, and these *routes*."""
    vcpus = len(where.pendbasers)
    states = with_ram(fresh_machine("pci", vcpus, AARCH64), (BASE, RAM_LEN))
    states[ITS].iidr, states[ITS].baser[:2] = where.iidr, [where.devices, where.collections]
    for number, pendbaser in enumerate(where.pendbasers):
        redistributor = states[SectionId("gicv3-redistributor", str(number))]
        redistributor.propbaser, redistributor.pendbaser = where.propbaser, pendbaser
    states[TABLE].routes = list(routes)
    return states
