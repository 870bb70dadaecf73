"""Good aarch64 machines that KVM never had, for hosts of any kind: they are read, not restored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from snapkit.state.machine import EM_AARCH64
from snapkit.state.releases import current_release
from snapkit.state.schema import SectionId
from snapkit.vmm.parts.fresh import Transport
from tests.grounds import AARCH64
from tests.mutants.specimen import Specimen, specimen
from tests.restore.device_machine import States, busy_machine, fresh_machine, with_ram
from tests.restore.its_machine import its_machine
from tests.restore.machines import ram, save
from tests.state.its_writer import BASE, RAM_LEN, Its, Ram, linux

_WITH_TABLES = {"gicv3-redistributor", "gicv3-its"}


def made_up(folder: Path) -> Iterator[Specimen]:
    """Give machines of a usual GIC, with an ITS whose tables are as Linux has them, and without."""
    its = linux(1)
    busy = with_ram(busy_machine("pci", AARCH64), (BASE, RAM_LEN))
    busy |= {name: state for name, state in its_machine(its.places).items() if name.kind in _WITH_TABLES}
    yield _written(folder, "made up pci busy", busy, its)
    yield _written(folder, "made up pci", its_machine(linux().places), linux())
    others: tuple[tuple[Transport | None, str], ...] = (("mmio", "mmio"), (None, "none"))
    for transport, name in others:
        machine = with_ram(fresh_machine(transport, 2, AARCH64), (BASE, RAM_LEN))
        yield _written(folder, f"made up {name}", machine, None)


def _written(folder: Path, name: str, states: States, its: Its | None) -> Specimen:
    memory = Ram() if its is None else its.write(Ram())
    generation = states.get(SectionId("vmgenid", "0"))
    if generation is not None:
        memory.write(generation.gpa, generation.generation)
    facts = {"cpu": "host", "vcpus": states[SectionId("machine", "0")].vcpu_count, "memory": RAM_LEN}
    content = ram(RAM_LEN, {0: bytes(memory.content)})
    options: dict[str, Any] = {"architecture": EM_AARCH64, "release": current_release().release}
    path = folder / "made-up.snap"
    save(path, content, sections=states, memory=[(BASE, content, RAM_LEN)], facts=facts, **options)
    found = specimen(name, path)
    path.unlink()
    return found
