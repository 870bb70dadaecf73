"""What KVM is given on arm64, byte by byte. Numbers re-declared from arm64's asm/kvm.h and linux/kvm.h."""

import ctypes
import errno
import fcntl
import struct
from typing import Any

import pytest

from snapkit import host
from snapkit.errors import HostError, IncompatibleHost, InternalError
from snapkit.state.interrupt_table import RouteState
from snapkit.state.vcpu_aarch64 import SErrorEvents
from snapkit.units import Gsi
from snapkit.vmm.kvm import abi_arm
from snapkit.vmm.kvm.device import DeviceFd
from snapkit.vmm.kvm.vcpu_arm import ArmVcpuFd
from snapkit.vmm.kvm.vm_arm import ArmVmFd, ipa_bits

KVM_SET_GSI_ROUTING, KVM_IRQ_LINE = 0x4008_AE6A, 0x4008_AE61
KVM_GET_ONE_REG, KVM_SET_ONE_REG, KVM_GET_REG_LIST = 0x4010_AEAB, 0x4010_AEAC, 0xC008_AEB0
KVM_ARM_VCPU_INIT, KVM_ARM_PREFERRED_TARGET, KVM_ARM_VCPU_FINALIZE = 0x4020_AEAE, 0x8020_AEAF, 0x4004_AEC2
KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS = 0x8040_AE9F, 0x4040_AEA0
KVM_CREATE_DEVICE, KVM_SET_DEVICE_ATTR, KVM_GET_DEVICE_ATTR = 0xC00C_AEE0, 0x4018_AEE1, 0x4018_AEE2
X0, X1, V0 = 0x6030_0000_0010_0000, 0x6030_0000_0010_0002, 0x6040_0000_0010_0054
FPSR = 0x6020_0000_0010_00D4


def at(argument: object, length: int) -> bytes:
    """The structure that *argument* is or is the address of."""
    if isinstance(argument, int):
        return ctypes.string_at(argument, length)
    assert isinstance(argument, bytes)
    return argument


class Kernel:
    """KVM of paper: registers by id, attributes by group and number; what is refused, by id."""

    def __init__(self):
        self.values: dict[object, int] = {}
        self.calls: list[tuple[int, object]] = []
        self.refused: dict[object, int] = {}

    def ioctl(self, _fd: int, name: str, number: int, argument: int | bytes = 0) -> int:
        self.calls.append((number, argument))
        if number in (KVM_GET_ONE_REG, KVM_SET_ONE_REG):
            register, address = struct.unpack("<QQ", at(argument, 16))
            return self.move(name, register, address, 1 << (register >> 52 & 0xF), write=number == KVM_SET_ONE_REG)
        if number in (KVM_GET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR):
            flags, group, attr, address = struct.unpack("<IIQQ", at(argument, 24))
            assert flags == 0
            return self.move(name, (group, attr), address, 8, write=number == KVM_SET_DEVICE_ATTR)
        return 0

    def move(self, name: str, key: object, address: int, length: int, *, write: bool) -> int:
        if key in self.refused:
            raise HostError(name, self.refused[key])
        if not address:
            self.values[key] = -1
        elif write:
            self.values[key] = int.from_bytes(ctypes.string_at(address, length), "little")
        else:
            ctypes.memmove(address, self.values[key].to_bytes(length, "little"), length)
        return 0


@pytest.fixture
def kernel(monkeypatch):
    kernel = Kernel()
    monkeypatch.setattr(host, "ioctl", kernel.ioctl)
    with host.inject(lambda _name, _arguments: None):  # then a row of ioctls goes through it, one by one
        yield kernel


@pytest.fixture
def vcpu():
    fd = object.__new__(ArmVcpuFd)
    fd.fd = 7
    return fd


def test_a_table_of_routes_holds_messages_only_each_with_its_sender(kernel):
    routes = [
        RouteState(gsi=96, address=0x3FF6_0040, data=1, device_id=0x18, owner="pci-msix/root"),
        RouteState(gsi=97, address=0x3FF6_0040, data=2, device_id=0x20, owner="pci-msix/eth0"),
    ]
    ArmVmFd(-1, 0).set_gsi_routing(routes)
    ((number, payload),) = kernel.calls
    assert (number, len(payload)) == (KVM_SET_GSI_ROUTING, 8 + 2 * 48)
    assert struct.unpack_from("<II", payload) == (2, 0)
    entries = [struct.unpack_from("<8I16x", payload, 8 + 48 * index) for index in range(2)]
    assert entries == [(96, 2, 1, 0, 0x3FF6_0040, 0, 1, 0x18), (97, 2, 1, 0, 0x3FF6_0040, 0, 2, 0x20)]


def test_a_pin_is_a_shared_interrupt_by_its_intid(kernel):
    ArmVmFd(-1, 0).set_irq_line(Gsi(0), 1)
    ArmVmFd(-1, 0).set_irq_line(Gsi(95), 0)
    spi = 1 << 24
    assert kernel.calls == [
        (KVM_IRQ_LINE, struct.pack("<II", spi | 32, 1)),
        (KVM_IRQ_LINE, struct.pack("<II", spi | 127, 0)),
    ]


@pytest.mark.parametrize(("limit", "bits"), [(48, 40), (40, 40), (36, 36), (0, 40)])
def test_a_guest_has_addresses_of_40_bits_or_as_many_as_there_are(limit, bits):
    class Kvm:
        def extension(self, cap):
            assert cap == 165
            return limit

    kvm: Any = Kvm()
    assert ipa_bits(kvm) == bits


def test_registers_of_different_widths_go_through_one_block(kernel, vcpu):
    vcpu.set_regs({X0: 1 << 63, FPSR: 0x0800_0000, X1: 5})
    assert kernel.values == {X0: 1 << 63, FPSR: 0x0800_0000, X1: 5}
    assert [number for number, _ in kernel.calls] == [KVM_SET_ONE_REG] * 3
    assert vcpu.get_regs([X1, FPSR, X0]) == [5, 0x0800_0000, 1 << 63]
    assert [number for number, _ in kernel.calls[3:]] == [KVM_GET_ONE_REG] * 3


def test_a_register_that_kvm_refuses_is_named_with_its_value(kernel, vcpu):
    kernel.refused[X1] = errno.EINVAL
    with pytest.raises(IncompatibleHost, match=r"KVM refuses X1 \(0x6030000000100002\) value 0x5"):
        vcpu.set_regs({X0: 1, X1: 5, FPSR: 2})
    assert FPSR not in kernel.values
    kernel.refused[X1] = errno.EFAULT
    with pytest.raises(HostError):
        vcpu.set_regs({X1: 5})


def test_a_vector_is_as_long_as_its_id_says_or_not_written(kernel, vcpu):
    vcpu.set_vectors([V0], [b"\2" * 16])
    assert vcpu.get_vector(V0) == b"\2" * 16
    for length in (8, 64):  # KVM would read on behind it, or leave some of it
        with pytest.raises(InternalError, match=rf"\[16\] bytes are written with \[{length}\]"):
            vcpu.set_vectors([V0], [b"\1" * length])
    assert vcpu.get_vector(V0) == b"\2" * 16
    kernel.refused[V0] = errno.EPERM
    with pytest.raises(IncompatibleHost, match="KVM refuses V0"):
        vcpu.set_vectors([V0], [bytes(16)])


def test_a_model_and_its_features_are_words(kernel, vcpu):
    init = abi_arm.VcpuInit(5, (0,) * 7).with_features([2, 4, 33])
    assert init.features == (1 << 2 | 1 << 4, 2, 0, 0, 0, 0, 0)
    assert init.has(33)
    assert not init.has(3)
    vcpu.init(init)
    vcpu.finalize(4)
    assert kernel.calls == [
        (KVM_ARM_VCPU_INIT, struct.pack("<8I", 5, 1 << 2 | 1 << 4, 2, 0, 0, 0, 0, 0)),
        (KVM_ARM_VCPU_FINALIZE, struct.pack("<I", 4)),
    ]


@pytest.mark.parametrize(
    ("error", "raised"),
    [(errno.EINTR, InterruptedError), (errno.EAGAIN, BlockingIOError), (errno.ENOSYS, HostError)],
)
def test_what_kvm_cannot_go_on_with_is_no_bug_of_ours(monkeypatch, vcpu, error, raised):
    def ioctl(*_arguments: object) -> None:
        raise OSError(error, "KVM_RUN")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with pytest.raises(raised):
        vcpu.run()


def test_events_are_laid_out_as_the_uapi_has_them(kernel, vcpu):
    vcpu.set_events(SErrorEvents(serror_pending=1, serror_has_esr=1, serror_esr=0x123))
    assert kernel.calls == [(KVM_SET_VCPU_EVENTS, struct.pack("<BB6xQ48x", 1, 1, 0x123))]


def test_a_device_is_created_and_asked_for_by_its_type(kernel):
    assert ArmVmFd(-1, 0).create_device(7, "GICv7").fd == 0
    assert ArmVmFd(-1, 0).has_device(8)
    assert kernel.calls[0][0] == KVM_CREATE_DEVICE
    assert kernel.calls[1] == (KVM_CREATE_DEVICE, struct.pack("<IiI", 8, 0, 1))


@pytest.mark.parametrize(("error", "raised"), [(errno.ENODEV, IncompatibleHost), (errno.EBUSY, HostError)])
def test_a_device_that_kvm_does_not_have_is_the_hosts_lack(monkeypatch, error, raised):
    def ioctl(_fd: int, name: str, _number: int, _argument: object) -> int:
        raise HostError(name, error)

    monkeypatch.setattr(host, "ioctl", ioctl)
    with pytest.raises(raised, match=r"makes no GICv7" if raised is IncompatibleHost else "KVM_CREATE_DEVICE"):
        ArmVmFd(-1, 0).create_device(7, "GICv7")


def test_attributes_are_read_and_written_in_order_and_the_refused_one_is_told(kernel):
    device = DeviceFd(9)
    device.set_all([1, 1], [0x100, 0x104], [7, 0xFFFF_FFFF])
    device.set(3, 0, 128)
    device.control(4, 0)
    assert kernel.values == {(1, 0x100): 7, (1, 0x104): 0xFFFF_FFFF, (3, 0): 128, (4, 0): -1}
    assert device.get_all(1, [0x104, 0x100]) == [0xFFFF_FFFF, 7]
    kernel.refused[1, 0x104] = errno.EINVAL
    with pytest.raises(HostError) as caught:
        device.set_all([1, 1, 1], [0x100, 0x104, 0x108], [1, 2, 3])
    assert caught.value.__notes__ == ["device attribute 0x104 of group 1"]
    assert (1, 0x108) not in kernel.values


@pytest.mark.parametrize(
    ("mpidr", "part"),
    [(0x8000_0000, 0), (0x8000_0103, 0x103 << 32), (0x12_8003_0201, 0x1203_0201 << 32)],
)
def test_the_cpu_of_an_attribute_is_the_four_levels_of_its_affinity(mpidr, part):
    # u, one and mt bits are none of them
    assert abi_arm.affinity(mpidr) == part & 0xFFFF_FFFF_0000_0000
