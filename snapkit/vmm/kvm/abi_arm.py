"""The KVM UAPI of arm64: vCPU registers one by one, devices with attributes, the GICv3 and its ITS.

Source: arch/arm64/include/uapi/asm/kvm.h, include/uapi/linux/kvm.h, Documentation/virt/kvm/api.rst and
devices/arm-vgic-v3.rst, devices/arm-vgic-its.rst beside it.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

from snapkit.state.vcpu_aarch64 import FEATURE_WORDS, SErrorEvents
from snapkit.vmm.kvm.abi import Layout, ior, iow, iowr

# System and VM

KVM_CAP_ONE_REG = 70
KVM_CAP_DEVICE_CTRL = 89
KVM_CAP_ARM_PSCI_0_2 = 102
KVM_CAP_ARM_INJECT_SERROR_ESR = 158
KVM_CAP_ARM_VM_IPA_SIZE = 165
KVM_CAP_ARM_SVE = 170
KVM_CAP_ARM_PTRAUTH_ADDRESS = 171
KVM_CAP_ARM_PTRAUTH_GENERIC = 172

KVM_ARM_IRQ_TYPE_SPI = 1
_IRQ_TYPE_SHIFT = 24


def spi(intid: int) -> int:
    """Return kvm_irq_level.irq of the shared interrupt *intid*."""
    return KVM_ARM_IRQ_TYPE_SPI << _IRQ_TYPE_SHIFT | intid


# A vCPU

_VCPU_INIT = struct.Struct(f"<{1 + FEATURE_WORDS}I")
KVM_ARM_VCPU_INIT = iow("KVM_ARM_VCPU_INIT", 0xAE, _VCPU_INIT.size)
KVM_ARM_PREFERRED_TARGET = ior("KVM_ARM_PREFERRED_TARGET", 0xAF, _VCPU_INIT.size)
KVM_ARM_VCPU_FINALIZE = iow("KVM_ARM_VCPU_FINALIZE", 0xC2, 4)
KVM_ARM_VCPU_PSCI_0_2 = 2
KVM_ARM_VCPU_SVE = 4
KVM_ARM_VCPU_PTRAUTH_ADDRESS = 5
KVM_ARM_VCPU_PTRAUTH_GENERIC = 6
KVM_MP_STATE_STOPPED = 5


class VcpuInit(NamedTuple):
    """struct kvm_vcpu_init: a CPU model, and a bit for each feature, 32 to a word."""

    target: int
    features: tuple[int, ...]

    def write(self) -> bytes:
        """Build the kernel structure."""
        return _VCPU_INIT.pack(self.target, *self.features)

    def has(self, feature: int) -> bool:
        """Whether the vCPU was made with the KVM_ARM_VCPU_* *feature*."""
        return bool(self.features[feature // 32] >> feature % 32 & 1)

    def with_features(self, features: Iterable[int]) -> "VcpuInit":
        """Return the model with these KVM_ARM_VCPU_* features and no others."""
        words = [0] * FEATURE_WORDS
        for feature in features:
            words[feature // 32] |= 1 << feature % 32
        return VcpuInit(self.target, tuple(words))


def read_init(raw: bytes) -> VcpuInit:
    """struct kvm_vcpu_init to its fields."""
    target, *features = _VCPU_INIT.unpack_from(raw)
    return VcpuInit(target, tuple(features))


VCPU_INIT_LEN = _VCPU_INIT.size

ONE_REG = struct.Struct("<QQ")
"""struct kvm_one_reg: id, address of the value."""
KVM_GET_ONE_REG = iow("KVM_GET_ONE_REG", 0xAB, ONE_REG.size)
KVM_SET_ONE_REG = iow("KVM_SET_ONE_REG", 0xAC, ONE_REG.size)
KVM_GET_REG_LIST = iowr("KVM_GET_REG_LIST", 0xB0, 8)
REG_LIST_MAX = 4096


def reg_list_request() -> bytes:
    """struct kvm_reg_list with room for all that there may be."""
    return REG_LIST_MAX.to_bytes(8, "little")


def read_reg_list(raw: bytes) -> list[int]:
    """struct kvm_reg_list to ids."""
    (count,) = struct.unpack_from("<Q", raw)
    return list(struct.unpack_from(f"<{count}Q", raw, 8))


REG_LIST_LEN = 8 + 8 * REG_LIST_MAX

EVENTS = Layout(
    SErrorEvents,
    ("2B6xQ", "serror_pending serror_has_esr serror_esr"),
    ("48x", ""),
)
KVM_GET_VCPU_EVENTS = ior("KVM_GET_VCPU_EVENTS", 0x9F, EVENTS.length)
KVM_SET_VCPU_EVENTS = iow("KVM_SET_VCPU_EVENTS", 0xA0, EVENTS.length)

# Devices

_CREATE_DEVICE = struct.Struct("<IiI")
KVM_CREATE_DEVICE = iowr("KVM_CREATE_DEVICE", 0xE0, _CREATE_DEVICE.size)
KVM_CREATE_DEVICE_TEST = 1
KVM_DEV_TYPE_ARM_VGIC_V3 = 7
KVM_DEV_TYPE_ARM_VGIC_ITS = 8


def create_device(device_type: int, flags: int = 0) -> bytes:
    """struct kvm_create_device."""
    return _CREATE_DEVICE.pack(device_type, 0, flags)


def read_device_fd(raw: bytes) -> int:
    """Return struct kvm_create_device.fd."""
    return int(_CREATE_DEVICE.unpack_from(raw)[1])


KVM_DEV_ARM_VGIC_GRP_ADDR = 0
KVM_DEV_ARM_VGIC_GRP_DIST_REGS = 1
KVM_DEV_ARM_VGIC_GRP_NR_IRQS = 3
KVM_DEV_ARM_VGIC_GRP_CTRL = 4
KVM_DEV_ARM_VGIC_GRP_REDIST_REGS = 5
KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS = 6
KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO = 7
KVM_DEV_ARM_VGIC_GRP_ITS_REGS = 8

KVM_DEV_ARM_VGIC_CTRL_INIT = 0
KVM_DEV_ARM_ITS_SAVE_TABLES = 1
KVM_DEV_ARM_ITS_RESTORE_TABLES = 2
KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES = 3

KVM_VGIC_V3_ADDR_TYPE_DIST = 2
KVM_VGIC_ITS_ADDR_TYPE = 4
KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION = 5
_REDIST_COUNT_SHIFT = 52


def redist_region(gpa: int, count: int) -> int:
    """Return the value of KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION: region 0, *count* redistributors from *gpa* on."""
    return count << _REDIST_COUNT_SHIFT | gpa


def affinity(mpidr: int) -> int:
    """Return the CPU part of a GIC attribute: Aff3 next to Aff2, Aff1 and Aff0, in the upper word."""
    return ((mpidr & 0xFF_0000_0000) >> 8 | mpidr & 0xFF_FFFF) << 32
