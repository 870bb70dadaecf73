"""What an aarch64 host tells of itself. Identification registers, vector lengths and the counter's rate cost a VM."""

from collections.abc import Sequence

from snapkit.state.host_facts import HostFacts, RegisterFact
from snapkit.state.spec import aarch64 as spec
from snapkit.state.spec.address_map import GIC_IRQS
from snapkit.vmm.arch.aarch64.clock import counter_hz
from snapkit.vmm.arch.aarch64.gic import create_gic
from snapkit.vmm.arch.aarch64.vcpu import fresh_init, make
from snapkit.vmm.facts import Capability
from snapkit.vmm.kvm import abi_arm
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.kvm.vm_arm import ArmVmFd, ipa_bits

CAPABILITIES: Sequence[Capability] = (
    Capability("KVM_CAP_ONE_REG", abi_arm.KVM_CAP_ONE_REG, True, "registers one by one; a snapshot would have none without"),
    Capability("KVM_CAP_DEVICE_CTRL", abi_arm.KVM_CAP_DEVICE_CTRL, True, "interrupt controllers as devices; no machine without"),
    Capability("KVM_CAP_ARM_PSCI_0_2", abi_arm.KVM_CAP_ARM_PSCI_0_2, True, "power, and other CPUs; no machine without"),
    Capability("KVM_CAP_ARM_VM_IPA_SIZE", abi_arm.KVM_CAP_ARM_VM_IPA_SIZE, False, "width of physical addresses; 40 bits without"),
    Capability("KVM_CAP_ARM_SVE", abi_arm.KVM_CAP_ARM_SVE, False, "scalable vectors; only guests that were told of them need it"),
    Capability("KVM_CAP_ARM_PTRAUTH_ADDRESS", abi_arm.KVM_CAP_ARM_PTRAUTH_ADDRESS, False, "pointer authentication; only guests that were told of it need it"),
    Capability("KVM_CAP_ARM_PTRAUTH_GENERIC", abi_arm.KVM_CAP_ARM_PTRAUTH_GENERIC, False, "the same, of other data"),
    Capability("KVM_CAP_ARM_INJECT_SERROR_ESR", abi_arm.KVM_CAP_ARM_INJECT_SERROR_ESR, False, "syndromes of pending SErrors; where CPUs have them"),
)  # fmt: skip


def ask(kvm: Kvm, facts: HostFacts) -> None:
    """Find out what costs little: how wide addresses may be. Which devices there are, a VM is asked for."""
    facts.ipa_bits = kvm.extension(abi_arm.KVM_CAP_ARM_VM_IPA_SIZE)


def ask_vm(kvm: Kvm, facts: HostFacts) -> None:
    """Find out what costs a VM: what a vCPU with all that is offered is, beside a GIC, and how fast its counter runs."""
    vm = kvm.create_vm(ArmVmFd, ipa_bits(kvm))
    try:
        facts.gic_v3 = vm.has_device(abi_arm.KVM_DEV_TYPE_ARM_VGIC_V3)
        facts.its = vm.has_device(abi_arm.KVM_DEV_TYPE_ARM_VGIC_ITS)
        if not facts.gic_v3:
            facts.kvm.usable, facts.kvm.why = False, "it makes no GICv3, and snapkit no machine with another GIC"
        vcpu = vm.create_vcpu(0)
        try:
            if facts.gic_v3:  # without one, ID_AA64PFR0_EL1 says so
                create_gic(vm, 1, GIC_IRQS).close()
            init = fresh_init(kvm, vm)
            make(vcpu, init)
            identity = [register for register in vcpu.reg_list() if spec.is_identity(register)]
            values = vcpu.get_regs(identity)
            facts.id_registers = [RegisterFact(id=i, value=value) for i, value in zip(identity, values, strict=True)]
            if init.has(abi_arm.KVM_ARM_VCPU_SVE):
                lengths = vcpu.get_vector(spec.SVE_VLS)
                facts.sve_lengths = [int.from_bytes(lengths[at : at + 8], "little") for at in range(0, len(lengths), 8)]
        finally:
            vcpu.close()
    finally:
        vm.close()
    facts.counter_hz = counter_hz(kvm)
