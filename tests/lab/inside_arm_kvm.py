"""Run inside the aarch64 outer machine: what KVM holds of a machine, saved and loaded by our own objects, with no guest.

Two CPUs that never run, a GIC and an ITS, filled with what a working machine has: mapped and pending LPIs, lines that are
high, interrupts that are latched or active, a stopped CPU. Prints one line of JSON for each thing that was tried: the
machine saved, loaded into another VM and saved again; and every edge of the tables of orders that aarch64 has, swapped.
"""

import json
import random
import struct
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from snapkit.errors import SnapkitError
from snapkit.order import Order
from snapkit.restore import orders
from snapkit.state.codec import checked
from snapkit.state.its_tables import decode, interrupts
from snapkit.state.machine import EM_AARCH64, MachineState
from snapkit.state.schema import SectionId, State
from snapkit.state.spec import aarch64 as spec
from snapkit.vmm.arch.aarch64 import clock, gic_order, platform
from snapkit.vmm.arch.aarch64 import vcpu as aarch64_vcpu
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.save_order import read_in_order
from tests.order_tables import TABLES, is_aarch64, swapped
from tests.state.its_writer import BASE, Its, Ram, linux

VCPUS, SEED = 2, 11
GIC_TABLES = {
    "distributor": "DISTRIBUTOR",
    "redistributor": "REDISTRIBUTOR",
    "cpu-interface": "CPU_INTERFACE",
    "its": "ITS",
}
QUEUE = BASE + 0xF_0000
VALID = 1 << 63
MAPD = 0x08
_X = sorted(spec.GENERAL_REGISTERS)
States = dict[SectionId, Any]


class Machine:
    """A VM with its vCPUs and chips, whose RAM is a copy of *content*."""

    def __init__(
        self, kvm: Kvm, content: bytes, states: Mapping[SectionId, State] | None, order: Sequence[str]
    ) -> None:
        with ExitStack() as undo:
            self.vm = platform.open_vm(kvm, cast("Any", None))
            undo.callback(self.vm.close)
            self.memory = GuestMemory([(BASE, len(content))])
            undo.callback(self.memory.close)
            self.memory.write(BASE, content)
            self.vm.set_memory(self.memory)
            self.vcpus: dict[SectionId, Any] = {}
            self.chips: dict[SectionId, Any] = {}
            undo.callback(self._close_parts)
            shape = MachineState(
                architecture=EM_AARCH64, machine_id=bytes(16), vcpu_count=VCPUS, cpu_profile="host", tsc_khz=0
            )
            sections = platform.kernel_parts(VCPUS, "pci")
            for section in sorted(sections, key=lambda section: order.index(section.kind)):
                state = None if states is None else states[section]
                if section.kind == platform.VCPU:
                    self.vcpus[section] = platform.make_vcpu(state, section, self.vm, shape, cast("Any", None))
                else:
                    self.chips[section] = platform.make_chip(state, section, self.vm, shape, self.chips)
            self._undo = undo.pop_all()

    def _close_parts(self) -> None:
        for chip in self.chips.values():
            chip.close()
        for vcpu in self.vcpus.values():
            vcpu.state.fd.close()

    def close(self) -> None:
        self._undo.close()

    def load(self, order: Sequence[str]) -> None:
        everything = {section: vcpu.state for section, vcpu in self.vcpus.items()} | self.chips
        for section in sorted(everything, key=lambda section: order.index(section.kind)):
            everything[section].load()

    def save(self) -> States:
        everything = {section: vcpu.state for section, vcpu in self.vcpus.items()} | self.chips
        return dict(read_in_order({section: part.save for section, part in everything.items()}))

    def ram(self) -> bytes:
        return bytes(self.memory.read(BASE, self.memory.length))


@contextmanager
def machine(
    kvm: Kvm,
    content: bytes,
    states: Mapping[SectionId, State] | None,
    order: Sequence[str] = orders.REBUILD.names,
) -> Iterator[Machine]:
    made = Machine(kvm, content, states, order)
    try:
        yield made
    finally:
        made.close()


def working(kvm: Kvm, its: Its, chance: random.Random) -> States:
    """Return what a machine at work would have, around the tables of *its*."""
    with machine(kvm, bytes(Ram().content), None) as fresh:
        init, rate = aarch64_vcpu.fresh_init(kvm, cast("Any", fresh.vm.fd)), clock.counter_hz(kvm)
        for vcpu in fresh.vcpus.values():
            vcpu.state.reset(init, rate, None)
        states: States = {section: checked(state) for section, state in fresh.save().items()}
    where = its.places
    for number in range(VCPUS):
        vcpu = states[SectionId("vcpu-aarch64", str(number))]
        values = {register: chance.getrandbits(64) for register in (*_X, spec.TIMER_CVAL)} | {spec.TIMER_CTL: 1}
        for reg in vcpu.regs:
            reg.value = values.get(reg.id, reg.value)
        for vector in vcpu.vectors:
            if vector.id in spec.VECTOR_REGISTERS:
                vector.value = chance.randbytes(16)
        vcpu.mp_state = 5 * number
        vcpu.events.serror_pending = 1
        own = states[SectionId("gicv3-redistributor", str(number))]
        own.propbaser, own.pendbaser, own.ctlr = where.propbaser, where.pendbasers[number], own.ctlr | 1
        own.isenabler0, own.ispendr0, own.isactiver0 = 1 << 27 | 0xF, 1 << 3 | 1 << 20, 1 << 5
        own.icfgr[1], own.ipriorityr = 0, [chance.getrandbits(32) & 0xF8F8F8F8 for _ in own.ipriorityr]
        interface = states[SectionId("gicv3-cpu-interface", str(number))]
        interface.icc_pmr_el1, interface.icc_bpr1_el1, interface.icc_igrpen1_el1 = 0xF0, 3, 1
        interface.icc_ap1r_el1[0] = 1 << 4
    shared = states[SectionId("gicv3-distributor", "0")]
    shared.ctlr |= 2
    shared.igroupr, shared.icfgr = [0xFFFF_FFFE] * 3, [0, 0xAAAA_AAAA, 0, 0, 0, 0]
    shared.isenabler, shared.ispendr, shared.isactiver = [0xFF00_00FF, 0, 1], [0x10010, 8, 0], [2, 0, 0]
    shared.line_level, shared.irouter[16], shared.irouter[20] = [0x5, 0, 0], 1, 1
    shared.ipriorityr = [chance.getrandbits(32) & 0xF8F8F8F8 for _ in shared.ipriorityr]
    translator = states[SectionId("gicv3-its", "0")]
    translator.cbaser, translator.cwriter = VALID | QUEUE | 0xF, 0x40
    translator.creadr, translator.ctlr = 0x40, translator.ctlr | 1
    translator.baser[0], translator.baser[1] = where.devices, where.collections
    return states


def difference(before: Mapping[SectionId, State], after: Mapping[SectionId, State]) -> list[str]:
    """Name what differs, counters aside."""
    found = []
    for section, state in before.items():
        for name in state.__struct_fields__:
            old, new = getattr(state, name), getattr(after[section], name)
            if name == "regs":
                pairs = {reg.id: reg.value for reg in old}, {reg.id: reg.value for reg in new}
                changed = [reg for reg in pairs[0] | pairs[1] if pairs[0].get(reg) != pairs[1].get(reg)]
                found += [f"{section}.{spec.register_name(reg)}" for reg in changed if reg not in spec.COUNTERS]
            elif old != new and name != "realtime_ns":
                found.append(f"{section}.{name}")
    return found


@contextmanager
def by(table: str, order: Order) -> Iterator[None]:
    """Have parts loaded by *order* where *table* says how."""
    if table == "vcpu-aarch64":
        kept: Any = aarch64_vcpu._WRITERS
        names = [name for name in order.names if name in aarch64_vcpu._WRITE]
        aarch64_vcpu._WRITERS = tuple(aarch64_vcpu._WRITE[name] for name in names)
        try:
            yield
        finally:
            aarch64_vcpu._WRITERS = kept
    elif table in GIC_TABLES:
        kept = getattr(gic_order, GIC_TABLES[table])
        setattr(gic_order, GIC_TABLES[table], order)
        try:
            yield
        finally:
            setattr(gic_order, GIC_TABLES[table], kept)
    else:
        yield


def loaded(
    kvm: Kvm, content: bytes, states: States, table: str = "", order: Order | None = None
) -> tuple[States, bytes]:
    """Load *states* into a new VM, where *table* is read by *order*; what is saved of it then, and its RAM."""
    built = order.names if order is not None and table == "rebuild" else orders.REBUILD.names
    first = order.names if order is not None and table == "load" else orders.LOAD.names
    with machine(kvm, content, {section: checked(state) for section, state in states.items()}, built) as target:
        if order is None:
            target.load(first)
        else:
            with by(table, order):
                target.load(first)
        saved = target.save()
        return saved, target.ram()


def main() -> None:
    its = linux()
    content = bytes(with_commands(its).content)
    with Kvm() as kvm:
        states = working(kvm, its, random.Random(SEED))
        saved, ram = loaded(kvm, content, states)
        again, ram_again = loaded(kvm, ram, saved)
        wanted = its.interrupts()
        tell(
            "round",
            registers=[len(state.regs) + len(state.vectors) for state in saved.values() if hasattr(state, "regs")],
            taken=difference(states, saved),
            again=difference(saved, again),
            ram_again=ram == ram_again,
            lpis=len(wanted),
            pending=[one.lpi for one in wanted if one.pending],
            kept=kept_lpis(its, ram) == wanted,
        )
        with machine(kvm, ram, saved) as target:
            target.load(orders.LOAD.names)
            before = target.save()
            tell("twice", same=before == target.save())
            platform.start_clocks((), target.vcpus.values(), "continue")
            tell("resumed", differs=difference(before, target.save()), behind=behind(before, target.save()))
        if "edges" in sys.argv:
            edges(kvm, content, states, saved, ram)


def with_commands(its: Its) -> Ram:
    """Return guest memory with the tables of *its*, and a queue of commands that were done once: twice would unmap."""
    ram = its.write(Ram())
    devices = sorted(its.devices)
    for at in (0, 2):
        ram.write(QUEUE + 32 * at, struct.pack("<4Q", MAPD | devices[0] << 32, 0, 0, 0))
    return ram


def kept_lpis(its: Its, content: bytes) -> list[Any]:
    ram = Ram()
    ram.content[:] = content
    return list(interrupts(its.places, decode(its.places, ram), ram))


def behind(before: States, after: States) -> bool:
    """Whether the counter went back."""
    counters = [
        next(reg.value for reg in states[SectionId("vcpu-aarch64", "0")].regs if reg.id == spec.TIMER_CNT)
        for states in (before, after)
    ]
    return bool(counters[1] < counters[0])


def edges(kvm: Kvm, content: bytes, states: States, saved: States, ram: bytes) -> None:
    for table, whole in TABLES.items():
        for edge in whole.edges:
            if table in {"save", "stages", "claim"} or not is_aarch64(table, edge):
                continue
            try:
                other, other_ram = loaded(kvm, content, states, table, swapped(whole, edge))
                lost = difference(saved, other) + ([] if ram == other_ram else ["memory"])
                told = f"lost {' '.join(lost)}" if lost else "same"
            except (SnapkitError, ValueError) as error:
                told = f"refused {error}"
            tell("edge", table=table, before=edge.before, after=edge.after, outcome=told)


def tell(what: str, **more: object) -> None:
    print(json.dumps({"what": what, **more}), flush=True)


if __name__ == "__main__":
    main()
