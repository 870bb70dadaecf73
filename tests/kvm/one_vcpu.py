"""One vCPU on real KVM without a machine around it: for tests of what a single call does to it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from snapkit.order import Order
from snapkit.state.vcpu_x86_64 import VcpuState
from snapkit.units import MIB, Gpa
from snapkit.vmm.arch.x86_64 import cpuid, msrs, vcpu_order
from snapkit.vmm.arch.x86_64 import vcpu as x86_vcpu
from snapkit.vmm.arch.x86_64.vcpu import VcpuArgs, X86Vcpu
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.kvm.system_x86 import supported_cpuid
from snapkit.vmm.kvm.vm_x86 import X86VmFd
from snapkit.vmm.memory import GuestMemory
from snapkit.vmm.vm import Vm

LAPIC_SVR, LAPIC_IRR, ENABLED = 0xF0, 0x200, 0x1FF
CODE_AT = Gpa(0x1000)
OUT = bytes.fromhex("e680")
CPUID_OUT = bytes.fromhex("0fa2") + OUT  # an exit that the kernel serves itself, then one to the monitor


class Bench:
    """A VM with chips, a page of code and one vCPU, *number* of two, which was told nothing yet."""

    def __init__(self, kvm: Kvm, number: int = 0) -> None:
        vm_fd = kvm.create_vm(X86VmFd)
        self.vm = Vm(kvm, vm_fd, lines=24)
        self.memory = GuestMemory([(0, MIB)])
        self.memory.write(CODE_AT, CPUID_OUT)
        self.vm.set_memory(self.memory)
        vm_fd.create_irqchip()
        self.number = number
        self.fd = vm_fd.create_vcpu(number)
        self.args = VcpuArgs(fd=self.fd, vm=self.vm, baseline=False)
        self.leaves = cpuid.with_topology(cpuid.host(supported_cpuid(kvm), tsc_deadline=True), number, 2)

    def close(self) -> None:
        self.fd.close()
        self.vm.close()
        self.memory.close()

    def state(self) -> VcpuState:
        """Its state, at code in real mode with a LAPIC that is on; the caller's to change."""
        vcpu = X86Vcpu(self.number, self.args)
        vcpu._tell(self.leaves)
        state = vcpu.save()
        state.sregs.cs.base, state.sregs.cs.selector, state.regs.rip = 0, 0, CODE_AT
        state.lapic = patched(state.lapic, LAPIC_SVR, ENABLED)
        return state

    def load(self, state: VcpuState, order: Order = vcpu_order.LOAD) -> X86Vcpu:
        """Write *state* by *order*, with what a machine leaves for its first resume; returns what can save it again."""
        values = {msr.index: msr.data for msr in state.msrs}
        writers: dict[str, Callable[[X86Vcpu, VcpuState], object]] = {
            **x86_vcpu._WRITE,
            "TSC": lambda _vcpu, _state: self.fd.set_msrs({msrs.TSC: values[msrs.TSC]}),
            "TSC_DEADLINE": lambda _vcpu, _state: self.fd.set_msrs({msrs.TSC_DEADLINE: values[msrs.TSC_DEADLINE]}),
        }
        vcpu = X86Vcpu.restore(state, self.args)
        for name in order.names:
            writers[name](vcpu, state)
        return vcpu

    def run(self) -> None:
        """Run the code up to its exit."""
        self.fd.run()
        assert abi.RUN_EXIT.unpack_from(self.fd.run_page, abi.RUN_EXIT_AT)[0] == abi.KVM_EXIT_IO

    def pending(self) -> list[int]:
        return pending(self.fd.get_lapic())


def patched(page: bytes, at: int, value: int) -> bytes:
    return page[:at] + value.to_bytes(4, "little") + page[at + 4 :]


def pending(page: bytes) -> list[int]:
    return [n for n in range(256) if page[LAPIC_IRR + n // 32 * 16 + n % 32 // 8] >> n % 8 & 1]


@contextmanager
def bench(number: int = 0) -> Iterator[Bench]:
    with Kvm() as kvm:
        made = Bench(kvm, number)
        try:
            yield made
        finally:
            made.close()
