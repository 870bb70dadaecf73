"""CPUs of aarch64 machines: that they are the same kind of CPU, numbered as KVM numbers them, with one counter.

What one CPU alone must hold is told by `snapkit.state.vcpu_aarch64`. Source: arch/arm64/kvm/sys_regs.c, reset.c, guest.c
and arch_timer.c.
"""

from snapkit.errors import Finding
from snapkit.restore.check.sections import Findings, Index, invariant
from snapkit.restore.pages import Pages
from snapkit.state.spec import aarch64 as spec
from snapkit.state.spec.aarch64 import register_name
from snapkit.state.vcpu_aarch64 import Aarch64VcpuState


def registers(index: Index) -> dict[str, dict[int, int]]:
    """Return the registers of at most 64 bits of each CPU, by its instance."""
    return {
        section.instance: {reg.id: reg.value for reg in state.regs} for section, state in index.each(Aarch64VcpuState)
    }


@invariant("vcpus.mpidr")
def mpidr_as_given(index: Index, _pages: Pages) -> Findings:
    """MPIDR_EL1 is what KVM gives a CPU of that id: device tree and interrupt controller name CPUs by it."""
    known = index.once(registers)
    for section, state in index.each(Aarch64VcpuState):
        mpidr, wanted = known[section.instance].get(spec.MPIDR_EL1, 0), spec.mpidr_of(state.id)
        if mpidr != wanted:
            yield Finding(str(section), place(state, spec.MPIDR_EL1), f"{mpidr:#x}", f"{wanted:#x}")


@invariant("vcpus.alike")
def vcpus_alike(index: Index, _pages: Pages) -> Findings:
    """All CPUs are one model, with the same features and registers: a guest asks one of them and relies on it on all."""
    vcpus, known = index.each(Aarch64VcpuState), index.once(registers)
    if not vcpus:
        return
    (first, model), others = vcpus[0], vcpus[1:]
    numbers = known[first.instance]
    vectors = {vector.id: vector.value for vector in model.vectors}
    lengths = vectors.get(spec.SVE_VLS)
    for section, state in others:
        mine = known[section.instance]
        for name in ("target", "features", "counter_hz"):
            found, wanted = getattr(state, name), getattr(model, name)
            if found != wanted:
                yield Finding(str(section), name, str(found), f"{wanted}, as {first} has it")
        if lacking := (mine.keys() ^ numbers.keys()).difference(spec.COUNTERS):
            what = min(lacking)
            found = f"{'with' if what in mine else 'without'} {register_name(what)}"
            yield Finding(str(section), "regs", found, f"the registers of {first}")
        for reg_id, value in numbers.items():
            if mine.get(reg_id, value) != value and (spec.is_identity(reg_id) or spec.is_shared(reg_id)):
                wanted = f"{value:#x}, as {first} has {register_name(reg_id)}"
                yield Finding(str(section), place(state, reg_id), f"{mine[reg_id]:#x}", wanted)
        if lengths is not None:
            for number, vector in enumerate(state.vectors):
                if vector.id == spec.SVE_VLS and vector.value != lengths:
                    wanted = f"the vector lengths of {first}"
                    yield Finding(str(section), f"vectors[{number}].value", "other vector lengths", wanted)


@invariant("vcpus.counter")
def one_counter(index: Index, _pages: Pages) -> Findings:
    """Counters, and when they were read, are saved with CPU 0 and no other: KVM has one for all, and would set it anew."""
    known = index.once(registers)
    for section, state in index.each(Aarch64VcpuState):
        there = [counter for counter in spec.COUNTERS if counter in known[section.instance]]
        for counter in there if state.id else ():
            path, found = place(state, counter).removesuffix(".value"), f"with {register_name(counter)}"
            yield Finding(str(section), path, found, "without: CPU 0 has it")
        if state.id and state.realtime_ns:
            yield Finding(str(section), "realtime_ns", str(state.realtime_ns), "0: CPU 0 has the counter")
        if not state.id and spec.TIMER_CNT not in there:
            yield Finding(str(section), "regs", f"without {register_name(spec.TIMER_CNT)}", "with it")


def place(state: Aarch64VcpuState, reg_id: int) -> str:
    """Return the path of a register's value within its section; the list, where it is not there."""
    number = next((number for number, reg in enumerate(state.regs) if reg.id == reg_id), None)
    return "regs" if number is None else f"regs[{number}].value"
