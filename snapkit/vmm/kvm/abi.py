"""The KVM UAPI that every architecture shares: ioctl numbers beside the layouts of their structures.

A `Layout` is one kernel structure: field names and their struct codes. Its length goes into the ioctl number, its
names are those of the State that it reads into, so that the structure is written down once.
Source: include/uapi/linux/kvm.h, Documentation/virt/kvm/api.rst.
"""

import ctypes
import struct
from operator import attrgetter
from typing import Generic, NamedTuple, TypeVar

from ioctl_opt import IOC, IOC_NONE, IOC_READ, IOC_WRITE

from snapkit import host
from snapkit.state.schema import State

S = TypeVar("S", bound=State)

KVMIO = 0xAE
KVM_API_VERSION = 12


class Ioctl(NamedTuple):
    """An ioctl's UAPI name and number."""

    name: str
    number: int


def io(name: str, nr: int) -> Ioctl:
    return Ioctl(name, IOC(IOC_NONE, KVMIO, nr, 0))


def ior(name: str, nr: int, length: int) -> Ioctl:
    return Ioctl(name, IOC(IOC_READ, KVMIO, nr, length))


def iow(name: str, nr: int, length: int) -> Ioctl:
    return Ioctl(name, IOC(IOC_WRITE, KVMIO, nr, length))


def iowr(name: str, nr: int, length: int) -> Ioctl:
    return Ioctl(name, IOC(IOC_READ | IOC_WRITE, KVMIO, nr, length))


class Layout(Generic[S]):
    """A flat kernel structure that maps field by field to the State class *cls*.

    *fields* are (struct codes, names) pairs in order; padding is written as ``4x`` with no name.
    """

    def __init__(self, cls: type[S], *fields: tuple[str, str]) -> None:
        names = " ".join(name for _, name in fields).split()
        self._struct = struct.Struct("<" + "".join(code for code, _ in fields))
        self._names = tuple(names)
        self._values = attrgetter(*names)
        self._cls = cls
        self.length = self._struct.size

    def read(self, raw: bytes, offset: int = 0) -> S:
        """Build the State from *raw*."""
        return self._cls(**dict(zip(self._names, self._struct.unpack_from(raw, offset), strict=True)))

    def write(self, state: S) -> bytes:
        """Build the kernel structure from *state*."""
        return self._struct.pack(*self._values(state))


def call(fd: int, ioctl: Ioctl, argument: int = 0) -> int:
    """Issue *ioctl* with an integer argument."""
    return host.ioctl(fd, ioctl.name, ioctl.number, argument)


def exchange(fd: int, ioctl: Ioctl, payload: bytes) -> tuple[bytes, int]:
    """Issue an *ioctl* that reads and writes its structure; returns the structure afterwards, and the result."""
    block = bytearray(payload)
    # not create_string_buffer, nor an array type: ctypes makes a new type for every length, 13 us each
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    result = host.ioctl(fd, ioctl.name, ioctl.number, address)
    return bytes(block), result


def get(fd: int, ioctl: Ioctl, length: int, seed: bytes = b"") -> bytes:
    """Issue a reading *ioctl*: the structure of *length* bytes begins as *seed* and zeros, and is returned."""
    return exchange(fd, ioctl, seed.ljust(length, b"\0"))[0]


def put(fd: int, ioctl: Ioctl, payload: bytes) -> int:
    """Issue a writing *ioctl*, one that only reads *payload*, its structure; returns its result."""
    return host.ioctl(fd, ioctl.name, ioctl.number, payload)


# The system fd

KVM_GET_API_VERSION = io("KVM_GET_API_VERSION", 0x00)
KVM_CREATE_VM = io("KVM_CREATE_VM", 0x01)
KVM_CHECK_EXTENSION = io("KVM_CHECK_EXTENSION", 0x03)
KVM_GET_VCPU_MMAP_SIZE = io("KVM_GET_VCPU_MMAP_SIZE", 0x04)

KVM_CAP_IRQCHIP = 0
KVM_CAP_USER_MEMORY = 3
KVM_CAP_NR_VCPUS = 9
KVM_CAP_NR_MEMSLOTS = 10
KVM_CAP_IRQ_ROUTING = 25
KVM_CAP_IRQFD = 32
KVM_CAP_PIT2 = 33
KVM_CAP_IOEVENTFD = 36
KVM_CAP_ADJUST_CLOCK = 39
KVM_CAP_VCPU_EVENTS = 41
KVM_CAP_DEBUGREGS = 50
KVM_CAP_XSAVE = 55
KVM_CAP_XCRS = 56
KVM_CAP_TSC_CONTROL = 60
KVM_CAP_GET_TSC_KHZ = 61
KVM_CAP_MAX_VCPUS = 66
KVM_CAP_TSC_DEADLINE_TIMER = 72
KVM_CAP_SIGNAL_MSI = 77
KVM_CAP_IOEVENTFD_ANY_LENGTH = 122
KVM_CAP_MSI_DEVID = 131
KVM_CAP_IMMEDIATE_EXIT = 136
KVM_CAP_XSAVE2 = 208

# A VM's fd

_MEMORY_REGION = struct.Struct("<IIQQQ")
KVM_SET_USER_MEMORY_REGION = iow("KVM_SET_USER_MEMORY_REGION", 0x46, _MEMORY_REGION.size)
KVM_CREATE_VCPU = io("KVM_CREATE_VCPU", 0x41)
_IRQ_LEVEL = struct.Struct("<II")
KVM_IRQ_LINE = iow("KVM_IRQ_LINE", 0x61, _IRQ_LEVEL.size)


def memory_region(slot: int, flags: int, gpa: int, length: int, hva: int) -> bytes:
    """struct kvm_userspace_memory_region."""
    return _MEMORY_REGION.pack(slot, flags, gpa, length, hva)


def irq_level(gsi: int, level: int) -> bytes:
    """struct kvm_irq_level."""
    return _IRQ_LEVEL.pack(gsi, level)


_DEVICE_ATTR = struct.Struct("<IIQQ")
KVM_SET_DEVICE_ATTR = iow("KVM_SET_DEVICE_ATTR", 0xE1, _DEVICE_ATTR.size)
KVM_GET_DEVICE_ATTR = iow("KVM_GET_DEVICE_ATTR", 0xE2, _DEVICE_ATTR.size)


def attr_struct(group: int, attr: int, address: int) -> bytes:
    """struct kvm_device_attr of a value at the monitor's *address*."""
    return _DEVICE_ATTR.pack(0, group, attr, address)


def device_attr(fd: int, ioctl: Ioctl, group: int, attr: int, value: bytes) -> bytes:
    """Set an attribute to *value*, or get it into as many bytes (struct kvm_device_attr); returns these afterwards."""
    block = bytearray(value)
    address = ctypes.addressof(ctypes.c_char.from_buffer(block))
    put(fd, ioctl, attr_struct(group, attr, address))
    return bytes(block)


_ROUTING = struct.Struct("<II")  # then that many entries
_ROUTE_IRQCHIP = struct.Struct("<IIIIII24x")
_ROUTE_MSI = struct.Struct("<IIIIQII16x")  # address_lo and address_hi read as one
KVM_SET_GSI_ROUTING = iow("KVM_SET_GSI_ROUTING", 0x6A, _ROUTING.size)
KVM_IRQ_ROUTING_IRQCHIP = 1
KVM_IRQ_ROUTING_MSI = 2
KVM_MSI_VALID_DEVID = 1
KVM_MAX_IRQ_ROUTES = 4096


def irqchip_route(gsi: int, chip: int, pin: int) -> bytes:
    """struct kvm_irq_routing_entry of a controller's pin."""
    return _ROUTE_IRQCHIP.pack(gsi, KVM_IRQ_ROUTING_IRQCHIP, 0, 0, chip, pin)


def msi_route(gsi: int, address: int, data: int, device_id: int) -> bytes:
    """struct kvm_irq_routing_entry of a message; *device_id* 0 stands for none."""
    flags = KVM_MSI_VALID_DEVID if device_id else 0
    return _ROUTE_MSI.pack(gsi, KVM_IRQ_ROUTING_MSI, flags, 0, address, data, device_id)


def routing(entries: bytes) -> bytes:
    """struct kvm_irq_routing: the whole table, *entries* one behind the other."""
    return _ROUTING.pack(len(entries) // _ROUTE_MSI.size, 0) + entries


_IRQFD = struct.Struct("<IIII16x")
KVM_IRQFD = iow("KVM_IRQFD", 0x76, _IRQFD.size)
KVM_IRQFD_FLAG_DEASSIGN = 1


def irqfd(fd: int, gsi: int, flags: int) -> bytes:
    """struct kvm_irqfd."""
    return _IRQFD.pack(fd, gsi, flags, 0)


_IOEVENTFD = struct.Struct("<QQIiI36x")
KVM_IOEVENTFD = iow("KVM_IOEVENTFD", 0x79, _IOEVENTFD.size)
KVM_IOEVENTFD_FLAG_DATAMATCH = 1
KVM_IOEVENTFD_FLAG_PIO = 2
KVM_IOEVENTFD_FLAG_DEASSIGN = 4


def ioeventfd(fd: int, address: int, length: int, datamatch: int, flags: int) -> bytes:
    """struct kvm_ioeventfd."""
    return _IOEVENTFD.pack(datamatch, address, length, fd, flags)


_MSI = struct.Struct("<QIII12x")  # address_lo and address_hi read as one
KVM_SIGNAL_MSI = iow("KVM_SIGNAL_MSI", 0xA5, _MSI.size)


def msi(address: int, data: int, device_id: int) -> bytes:
    """struct kvm_msi; *device_id* 0 stands for none."""
    return _MSI.pack(address, data, KVM_MSI_VALID_DEVID if device_id else 0, device_id)


# A vCPU's fd

KVM_RUN = io("KVM_RUN", 0x80)
_SIGNAL_MASK = struct.Struct("<IQ")
KVM_SET_SIGNAL_MASK = iow("KVM_SET_SIGNAL_MASK", 0x8B, 4)
_MP_STATE_LEN = 4
KVM_GET_MP_STATE = ior("KVM_GET_MP_STATE", 0x98, _MP_STATE_LEN)
KVM_SET_MP_STATE = iow("KVM_SET_MP_STATE", 0x99, _MP_STATE_LEN)
KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2


def signal_mask(blocked: int) -> bytes:
    """struct kvm_signal_mask with the kernel's 8-byte set: bit n-1 blocks signal n."""
    return _SIGNAL_MASK.pack(8, blocked)


# struct kvm_run: offsets of what the exits carry

RUN_IMMEDIATE_EXIT = 1
RUN_EXIT = struct.Struct("<I20xBBHIQ")  # at RUN_EXIT_AT: reason, then io's direction, size, port, count, data offset
RUN_EXIT_AT = 8
RUN_MMIO = struct.Struct("<Q8sIB")  # at RUN_UNION_AT: address, data, length, is_write
RUN_UNION_AT = 32
RUN_MMIO_DATA_AT = 40
RUN_WORDS = struct.Struct("<II")  # at RUN_UNION_AT: system event's type and ndata, internal error's suberror
RUN_U64 = struct.Struct("<Q")

KVM_EXIT_UNKNOWN = 0
KVM_EXIT_IO = 2
KVM_EXIT_IO_OUT = 1
KVM_EXIT_HLT = 5
KVM_EXIT_MMIO = 6
KVM_EXIT_SHUTDOWN = 8
KVM_EXIT_FAIL_ENTRY = 9
KVM_EXIT_INTR = 10
KVM_EXIT_INTERNAL_ERROR = 17
KVM_EXIT_SYSTEM_EVENT = 24
KVM_SYSTEM_EVENT_SHUTDOWN = 1
KVM_SYSTEM_EVENT_RESET = 2
