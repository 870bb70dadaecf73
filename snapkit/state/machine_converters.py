"""The machine converters between neighbouring releases of the main line, in order of release.

Each maps the whole set of sections one release up or down; `snapkit.state.converters` says what they must keep to and
when a kind converter, beside its kind, is enough. What a converter writes is fixed when its release is, so the numbers
here are literal and do not follow the monitor's tables.
"""

from snapkit.state.converters import MachineRefuse, Sections, machine_downgrade, machine_upgrade
from snapkit.state.interrupt_table import InterruptTableState, LineState
from snapkit.state.machine import EM_AARCH64, MachineState
from snapkit.state.resource_allocator import PoolState, ResourceAllocatorState
from snapkit.state.schema import SectionId

_CLAIMS = SectionId("resource-allocator", "0")
_INTERRUPTS = SectionId("interrupt-table", "0")
_SERIAL = SectionId("serial-16550", "0")
_TABLES = frozenset({_CLAIMS.kind, _INTERRUPTS.kind})
_MACHINE = SectionId("machine", "0")
_AARCH64 = (
    "vcpu-aarch64",
    "gicv3-distributor",
    "gicv3-redistributor",
    "gicv3-cpu-interface",
    "gicv3-its",
    "serial-pl011",
    "rtc-pl031",
)


def _pools_of_0_2_0() -> list[PoolState]:
    return [
        PoolState(pool="gsi-legacy", start=5, length=19),
        PoolState(pool="gsi-msi", start=24, length=4072),
        PoolState(pool="mmio32", start=0xC000_0000, length=0x2EC0_0000),
        PoolState(pool="mmio64", start=0x40_0000_0000, length=0x40_0000_0000),
        PoolState(pool="pci-slot", start=1, length=31),
    ]


def _lines_of_0_1_0() -> list[LineState]:
    return [LineState(gsi=4, edge=True, owner=str(_SERIAL))]


@machine_upgrade(
    "0.1.0",
    "0.2.0",
    kinds=_TABLES,
    changes={
        "resource-allocator": "new: a machine of 0.1.0 has nothing that claims, so the pools are empty",
        "interrupt-table": "new: the one interrupt line of such a machine is its serial port's",
    },
)
def _tables_from_0_1_0(sections: Sections) -> Sections:
    sections[_CLAIMS] = ResourceAllocatorState(pools=_pools_of_0_2_0())
    sections[_INTERRUPTS] = InterruptTableState(lines=_lines_of_0_1_0())
    return sections


@machine_downgrade(
    "0.2.0",
    "0.1.0",
    kinds=_TABLES,
    changes={
        "resource-allocator": "dropped; refused where anything is claimed, or could be claimed elsewhere",
        "interrupt-table": "dropped; refused where anything but the serial port interrupts",
    },
)
def _tables_to_0_1_0(sections: Sections, refuse: MachineRefuse) -> Sections:
    claims, interrupts = sections.pop(_CLAIMS, None), sections.pop(_INTERRUPTS, None)
    if isinstance(claims, ResourceAllocatorState):
        if claims.pools != _pools_of_0_2_0():
            refuse(_CLAIMS, "pools", [pool.pool for pool in claims.pools], "those that release 0.2.0 begins with")
        for number, claim in enumerate(claims.claims):
            refuse(_CLAIMS, f"claims[{number}]", claim.owner, "none: release 0.1.0 has no devices that claim anything")
    if isinstance(interrupts, InterruptTableState):
        serial = _lines_of_0_1_0()
        for number, line in enumerate(interrupts.lines):
            if line not in serial or line in interrupts.lines[:number]:
                refuse(_INTERRUPTS, f"lines[{number}]", line.owner, "only the serial port's")
        if not any(line in serial for line in interrupts.lines):
            refuse(_INTERRUPTS, "lines", [line.owner for line in interrupts.lines], "with the serial port's")
        for number, route in enumerate(interrupts.routes):
            refuse(
                _INTERRUPTS, f"routes[{number}]", route.owner, "none: release 0.1.0 has no message-signalled interrupts"
            )
    return sections


@machine_upgrade(
    "0.4.0",
    "0.5.0",
    kinds=frozenset(_AARCH64),
    changes=dict.fromkeys(_AARCH64, "new, with the architecture: every machine of 0.4.0 is an x86-64 one"),
)
def _x86_to_0_5_0(sections: Sections) -> Sections:
    return sections


@machine_downgrade(
    "0.5.0",
    "0.4.0",
    kinds=frozenset(_AARCH64),
    changes=dict.fromkeys(_AARCH64, "refused with the whole machine: release 0.4.0 runs x86-64 machines only"),
)
def _x86_from_0_5_0(sections: Sections, refuse: MachineRefuse) -> Sections:
    machine = sections.get(_MACHINE)
    if not isinstance(machine, MachineState) or machine.architecture != EM_AARCH64:
        return sections
    refuse(_MACHINE, "architecture", EM_AARCH64, "62 (x86-64): releases before 0.5.0 know no aarch64 machines")
    return {}  # nothing of it can be held: to say so section by section would hide why
