"""What KVM is given for interrupts and doorbells, byte by byte. Numbers re-declared from include/uapi/linux/kvm.h."""

import struct

import pytest

from snapkit import host
from snapkit.vmm.interrupt_table import InterruptTable
from snapkit.vmm.kvm.vm_x86 import X86VmFd

ROOT = "pci-msix/root"
MSI = 0xFEE0_0000


@pytest.fixture
def payloads(monkeypatch):
    """Every ioctl's payload, by the number in include/uapi/linux/kvm.h."""
    seen: list[tuple[int, bytes]] = []

    def ioctl(_fd, _name, number, argument):
        seen.append((number, argument))
        return 1

    monkeypatch.setattr(host, "ioctl", ioctl)
    return seen


KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD, KVM_SIGNAL_MSI = 0x4008AE6A, 0x4020AE76, 0x4040AE79, 0x4020AEA5


def routes_in(payload):
    """struct kvm_irq_routing: nr, flags, then nr entries of 48 bytes: gsi, type, flags, pad, eight words."""
    count, flags = struct.unpack_from("<II", payload)
    assert (flags, len(payload)) == (0, 8 + 48 * count)
    return [struct.unpack_from("<12I", payload, 8 + 48 * index) for index in range(count)]


def test_the_pins_of_the_controllers_are_in_every_table_that_is_set(payloads):
    table = InterruptTable(X86VmFd(-1, 0))
    vectors = [table.vector(24 + n, ROOT) for n in range(3)]
    with table.batch():
        for vector in vectors:
            vector.enable(MSI, 0x51)
    vectors[0].enable(MSI, 0x52)
    vectors[1].disable()
    vectors[0].enable(MSI, 0x53)
    table.close()
    tables = [routes_in(payload) for number, payload in payloads if number == KVM_SET_GSI_ROUTING]
    assert len(tables) == 3
    zeros = (0,) * 6
    pic = [(gsi, 1, 0, 0, gsi // 8, gsi % 8, *zeros) for gsi in range(16)]  # chips 0 and 1: the two 8259A
    ioapic = [(gsi, 1, 0, 0, 2, gsi, *zeros) for gsi in range(24)]
    for routes in tables:
        assert routes[:40] == pic + ioapic
        assert all(route[1] == 2 for route in routes[40:])
    assert [route[0] for route in tables[-1][40:]] == [24, 26]


def test_a_message_route_has_address_data_and_the_device_id_where_there_is_one(payloads):
    table = InterruptTable(X86VmFd(-1, 0))
    table.vector(24, ROOT, 0x18).enable(0x1234_5678_9ABC_DEF0, 0xCAFE)
    table.vector(25, ROOT).enable(MSI, 0x51)
    table.close()
    routes = routes_in(payloads[-2][1])[40:]
    assert routes[0] == (24, 2, 1, 0, 0x9ABC_DEF0, 0x1234_5678, 0xCAFE, 0x18, 0, 0, 0, 0)
    assert routes[1] == (25, 2, 0, 0, MSI, 0, 0x51, 0, 0, 0, 0, 0)


def test_the_structures_of_the_other_calls_are_those_of_the_uapi(payloads):
    vm = X86VmFd(-1, 0)
    vm.irqfd(7, 24, assign=True)
    vm.irqfd(7, 24, assign=False)
    vm.ioeventfd(8, 0x40_0000_6004, 4, datamatch=None)
    vm.ioeventfd(8, 0xD000_0050, 4, datamatch=3, assign=False)
    vm.ioeventfd(9, 0x600, 2, datamatch=0, pio=True)
    assert vm.signal_msi(0xFEE0_1000, 0x51)
    assert vm.signal_msi(0x1_FEE0_1000, 0x51, 0x18)
    assert [(number, len(payload)) for number, payload in payloads] == [
        (KVM_IRQFD, 32),
        (KVM_IRQFD, 32),
        (KVM_IOEVENTFD, 64),
        (KVM_IOEVENTFD, 64),
        (KVM_IOEVENTFD, 64),
        (KVM_SIGNAL_MSI, 32),
        (KVM_SIGNAL_MSI, 32),
    ]
    irqfds = [struct.unpack("<8I", payload) for number, payload in payloads if number == KVM_IRQFD]
    assert irqfds == [(7, 24, 0, 0, 0, 0, 0, 0), (7, 24, 1, 0, 0, 0, 0, 0)]
    doorbells = [struct.unpack("<QQIiI36s", payload) for number, payload in payloads if number == KVM_IOEVENTFD]
    assert doorbells == [
        (0, 0x40_0000_6004, 4, 8, 0, bytes(36)),
        (3, 0xD000_0050, 4, 8, 1 | 4, bytes(36)),
        (0, 0x600, 2, 9, 1 | 2, bytes(36)),
    ]
    messages = [struct.unpack("<8I", payload) for number, payload in payloads if number == KVM_SIGNAL_MSI]
    assert messages == [(0xFEE0_1000, 0, 0x51, 0, 0, 0, 0, 0), (0xFEE0_1000, 1, 0x51, 1, 0x18, 0, 0, 0)]
