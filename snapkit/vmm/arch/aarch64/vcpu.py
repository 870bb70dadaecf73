"""An aarch64 vCPU as state: what KVM lists of it, register by register.

Loading goes by the table in `vcpu_order`. The counter is one for all vCPUs of a machine: it is saved with the first, and
set when the machine first runs (`snapkit.vmm.arch.aarch64.clock`), or it would run on while it waits paused.

A timer's ISTATUS is what KVM makes of control, compare value and counter at each look, so it is saved as 0, and KVM
ignores it when it is written; else two saves of one paused machine would differ by it.

Identification registers are written like all others: KVM takes back what it gave, and refuses what this host is not, by
name. Source: Documentation/virt/kvm/api.rst, arch/arm64/kvm/guest.c and arch_timer.c of Linux.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Self

from snapkit import host
from snapkit.state.spec import aarch64 as spec
from snapkit.state.vcpu_aarch64 import FEATURE_WORDS, LONG_LEN, Aarch64VcpuState, Reg, VectorReg
from snapkit.vmm.arch.aarch64 import vcpu_order
from snapkit.vmm.kvm import abi_arm
from snapkit.vmm.kvm.abi_arm import VcpuInit
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.kvm.vcpu_arm import ArmVcpuFd
from snapkit.vmm.kvm.vm_arm import ArmVmFd

if TYPE_CHECKING:
    from snapkit.vmm.arch.aarch64.boot import BootEntry

_CONTROLS = (spec.TIMER_CTL, spec.sysreg(3, 3, 14, 2, 1))
_ISTATUS = 1 << 2


class VcpuArgs(NamedTuple):
    """Host things of a vCPU."""

    fd: ArmVcpuFd


class Held(NamedTuple):
    """Counters that were not set yet, by id, and the wall time when they were read."""

    counters: Mapping[int, int]
    realtime_ns: int
    counter_hz: int


class Aarch64Vcpu:
    """One vCPU's state in KVM. Every method runs where `VcpuThread.post` says."""

    kind = "vcpu-aarch64"

    def __init__(self, vcpu_id: int, args: VcpuArgs, pending: Aarch64VcpuState | None = None) -> None:
        self.id = vcpu_id
        self.fd = args.fd
        """What KVM holds of it."""
        self._pending = pending
        self._init = VcpuInit(0, (0,) * FEATURE_WORDS)
        self._counter_hz = 0
        self._registers: tuple[list[int], list[int]] | None = None
        self.held: Held | None = None
        """The counters, from `load` to the first resume; of the first vCPU only."""

    @classmethod
    def restore(cls, state: Aarch64VcpuState, args: VcpuArgs) -> Self:
        """Hold *state*, which must have been checked and is only read, until `load`."""
        return cls(state.id, args, state)

    def load(self) -> None:
        """Write the held state into KVM, once, all but the counters."""
        state, self._pending = self._pending, None
        if state is None:
            return
        for write in _WRITERS:
            write(self, state)

    def save(self) -> Aarch64VcpuState:
        """Read everything out of KVM; counters that were not set yet are given back as they were."""
        fd = self.fd
        numbers, vectors = self._listed()
        counters = [register for register in numbers if register in spec.COUNTERS]
        values = dict(zip(numbers, fd.get_regs(numbers), strict=True))
        for control in _CONTROLS:
            if control in values:
                values[control] &= ~_ISTATUS
        realtime_ns = 0
        if self.id:
            for counter in counters:
                del values[counter]
        elif self.held is not None:
            values |= self.held.counters
            realtime_ns = self.held.realtime_ns
        else:  # again, next to the wall time
            values |= zip(counters, fd.get_regs(counters), strict=True)
            realtime_ns = host.realtime_ns()
        return Aarch64VcpuState(
            id=self.id,
            target=self._init.target,
            features=list(self._init.features),
            mp_state=fd.get_mp_state(),
            counter_hz=self._counter_hz,
            realtime_ns=realtime_ns,
            regs=[Reg(id=register, value=value) for register, value in values.items()],
            vectors=[VectorReg(id=register, value=fd.get_vector(register)) for register in vectors],
            events=fd.get_events(),
        )

    def reset(self, init: VcpuInit, counter_hz: int, entry: "BootEntry | None") -> None:
        """Make a fresh vCPU what firmware would leave: *entry* for the boot CPU, None for one that waits for PSCI."""
        make(self.fd, init)
        self._init = init
        self._counter_hz = counter_hz
        if entry is None:
            self.fd.set_mp_state(abi_arm.KVM_MP_STATE_STOPPED)
            return
        self.fd.set_regs({spec.PC: entry.pc, spec.X0: entry.x0, spec.PSTATE: entry.pstate})

    def forget_held(self) -> None:
        """Its counters go on for good."""
        self.held = None

    def tell_paused(self) -> None:
        """Nothing tells a guest of a pause here: stolen time is not offered."""

    def _listed(self) -> tuple[list[int], list[int]]:
        """What KVM lists: registers that are numbers, and wider ones."""
        if self._registers is None:
            listed = self.fd.reg_list()
            numbers = [register for register in listed if spec.width_of(register) <= LONG_LEN]
            self._registers = numbers, [register for register in listed if spec.width_of(register) > LONG_LEN]
        return self._registers

    def _write_init(self, state: Aarch64VcpuState) -> None:
        self._init = VcpuInit(state.target, tuple(state.features))
        self.fd.init(self._init)

    def _write_lengths(self, state: Aarch64VcpuState) -> None:
        if state.features[0] & spec.SVE:
            self._set_vectors([vector for vector in state.vectors if vector.id == spec.SVE_VLS])

    def _finalize(self, state: Aarch64VcpuState) -> None:
        if self._init.has(abi_arm.KVM_ARM_VCPU_SVE):
            self.fd.finalize(abi_arm.KVM_ARM_VCPU_SVE)

    def _write_regs(self, state: Aarch64VcpuState) -> None:
        values = {reg.id: reg.value for reg in state.regs}
        counters = {register: values.pop(register) for register in spec.COUNTERS if register in values}
        self._counter_hz = state.counter_hz
        if not self.id:
            self.held = Held(counters, state.realtime_ns, state.counter_hz)
        self.fd.set_regs(values)

    def _write_vectors(self, state: Aarch64VcpuState) -> None:
        self._set_vectors([vector for vector in state.vectors if vector.id != spec.SVE_VLS])

    def _set_vectors(self, vectors: Sequence[VectorReg]) -> None:
        self.fd.set_vectors([vector.id for vector in vectors], [vector.value for vector in vectors])


def fresh_init(kvm: Kvm, vm: ArmVmFd) -> VcpuInit:
    """Return a vCPU as it is like on this host, with all that is offered: PSCI, and SVE and pointer authentication."""
    init = vm.preferred_target()
    features = [abi_arm.KVM_ARM_VCPU_PSCI_0_2]
    if kvm.extension(abi_arm.KVM_CAP_ARM_SVE):
        features.append(abi_arm.KVM_ARM_VCPU_SVE)
    if kvm.extension(abi_arm.KVM_CAP_ARM_PTRAUTH_ADDRESS) and kvm.extension(abi_arm.KVM_CAP_ARM_PTRAUTH_GENERIC):
        features += [abi_arm.KVM_ARM_VCPU_PTRAUTH_ADDRESS, abi_arm.KVM_ARM_VCPU_PTRAUTH_GENERIC]
    return init.with_features(features)


def make(fd: ArmVcpuFd, init: VcpuInit) -> None:
    """Make a vCPU that model, with vectors as long as this host has them."""
    fd.init(init)
    if init.has(abi_arm.KVM_ARM_VCPU_SVE):
        fd.finalize(abi_arm.KVM_ARM_VCPU_SVE)


_WRITE: Mapping[str, Callable[[Aarch64Vcpu, Aarch64VcpuState], None]] = {
    "VCPU_INIT": Aarch64Vcpu._write_init,
    "SVE_VLS": Aarch64Vcpu._write_lengths,
    "VCPU_FINALIZE": Aarch64Vcpu._finalize,
    "REGS": Aarch64Vcpu._write_regs,
    "VECTORS": Aarch64Vcpu._write_vectors,
    "VCPU_EVENTS": lambda vcpu, state: vcpu.fd.set_events(state.events),
    "MP_STATE": lambda vcpu, state: vcpu.fd.set_mp_state(state.mp_state),
}
_WRITERS = tuple(_WRITE[name] for name in vcpu_order.LOAD.names if name not in vcpu_order.AT_FIRST_RESUME)
