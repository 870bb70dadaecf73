"""Routes, irqfds, messages and doorbells on real KVM: what arrives at a local APIC, and what reaches an eventfd."""

import errno
import threading

import pytest

from snapkit import host
from snapkit.errors import HostError
from snapkit.state.interrupt_table import RouteState
from snapkit.vmm.interrupt_table import InterruptTable
from snapkit.vmm.kvm import abi
from snapkit.vmm.kvm.system import Kvm
from snapkit.vmm.kvm.vm_x86 import X86VmFd
from tests.guests.build import guest
from tests.kvm.harness import PATIENCE_S, booted

OWNER = "pci-msix/root"
MSI = 0xFEE0_0000  # fixed delivery to the APIC with id 0
APIC_SVR, APIC_IRR, APIC_ENABLE = 0xF0, 0x200, 0x100
DOORBELL = 0xD000_0000


class Apic:
    """A VM with interrupt controllers and one vCPU that never runs: what is delivered stays in its APIC's IRR."""

    def __init__(self, kvm):
        self.vm = kvm.create_vm(X86VmFd)
        self.vm.create_irqchip()
        self.vcpu = self.vm.create_vcpu(0)
        self._clear()

    def close(self):
        self.vcpu.close()
        self.vm.close()

    def _clear(self):
        page = bytearray(self.vcpu.get_lapic())
        page[APIC_SVR : APIC_SVR + 4] = (APIC_ENABLE | 0xFF).to_bytes(4, "little")
        for at in range(APIC_IRR, APIC_IRR + 0x80, 0x10):
            page[at : at + 4] = bytes(4)
        self.vcpu.set_lapic(bytes(page))

    def pending(self):
        page = self.vcpu.get_lapic()
        return [n for n in range(256) if page[APIC_IRR + n // 32 * 16 + n % 32 // 8] >> n % 8 & 1]

    def arrived(self, *vectors):
        """Take what arrived, waiting until *vectors* have."""
        deadline_ns = host.monotonic_ns() + int(PATIENCE_S * 1e9)
        while not set(vectors) <= set(pending := self.pending()):
            assert host.monotonic_ns() < deadline_ns, f"{vectors} never came, {pending} did"
        self._clear()
        return pending


@pytest.fixture
def apic():
    with Kvm() as kvm:
        apic = Apic(kvm)
        yield apic
        apic.close()


@pytest.fixture
def table(apic):
    table = InterruptTable(apic.vm)
    yield table
    table.close()


def failing(name):
    """A fault hook that fails the next call *name*, and only that."""
    left = [name]

    def hook(call, _arguments):
        if call in left:
            left.remove(call)
            raise OSError(errno.ENOMEM, "injected")

    return host.inject(hook)


def test_a_trigger_arrives_as_the_routed_message(apic, table):
    vectors = [table.vector(24 + n, OWNER) for n in range(3)]
    with table.batch():
        for vector in vectors:
            vector.enable(MSI, 0x50 + vector.gsi)
    vectors[1].trigger()
    assert apic.arrived(0x69) == [0x69]
    vectors[0].trigger()
    vectors[2].trigger()
    assert apic.arrived(0x68, 0x6A) == [0x68, 0x6A]


def test_a_trigger_inside_a_batch_arrives_when_the_irqfd_is_there(apic, table):
    vector = table.vector(24, OWNER)
    with table.batch():
        vector.enable(MSI, 0x51)
        vector.trigger()
        assert apic.pending() == []
    assert apic.arrived(0x51) == [0x51]


def test_a_changed_message_replaces_the_old_one(apic, table):
    vector = table.vector(24, OWNER)
    vector.enable(MSI, 0x51)
    vector.enable(MSI, 0x61)
    vector.trigger()
    assert apic.arrived(0x61) == [0x61]


def test_a_disabled_vector_reaches_nobody_and_works_again_once_enabled(apic, table):
    vector, other = table.vector(24, OWNER), table.vector(25, OWNER)
    other.enable(MSI, 0x52)
    for _ in range(20):
        vector.enable(MSI, 0x51)
        vector.disable()
        host.eventfd_signal(vector._eventfd)
        other.trigger()
        assert apic.arrived(0x52) == [0x52]
        vector.enable(MSI, 0x51)
        vector.trigger()
        assert apic.arrived(0x51) == [0x51], "or an interrupt of the time when it was disabled came late"
        vector.disable()


def test_pins_keep_working_whatever_messages_are_routed(apic, table):
    state = apic.vm.get_irqchip()
    state.ioapic.redirtbl = [0x30 + pin for pin in range(24)]  # fixed delivery, edge, unmasked, to APIC id 0
    apic.vm.set_irqchip(state)
    apic._clear()
    vector = table.vector(24, OWNER)
    vector.enable(MSI, 0x51)
    for pin in (4, 5, 23):
        line = table.line(pin, "serial-16550/0", edge=True)
        line.set_level(True)
        assert apic.arrived(0x30 + pin) == [0x30 + pin]
        line.set_level(False)
    vector.disable()
    table.line(9, "vmgenid/0", edge=True).set_level(True)
    assert apic.arrived(0x39) == [0x39]


def test_an_irqfd_that_fails_leaves_the_others_working(apic, table):
    kept, new = table.vector(24, OWNER), table.vector(25, OWNER)
    kept.enable(MSI, 0x51)
    with failing("KVM_IRQFD"), pytest.raises(HostError, match="ENOMEM"):
        new.enable(MSI, 0x52)
    assert not new.enabled
    kept.trigger()
    assert apic.arrived(0x51) == [0x51]
    new.enable(MSI, 0x52)
    new.trigger()
    assert apic.arrived(0x52) == [0x52]


def test_kvm_lets_go_of_an_irqfd_whose_eventfd_is_closed(apic, table):
    vector = table.vector(24, OWNER)
    vector.enable(MSI, 0x51)
    with failing("KVM_IRQFD"):
        vector.disable()
    assert vector._eventfd == -1
    vector.enable(MSI, 0x61)
    vector.trigger()
    assert apic.arrived(0x61) == [0x61]


def test_a_table_holds_the_pins_and_4056_messages(apic):
    routes = [RouteState(gsi=gsi, address=MSI, data=0x51, owner=OWNER) for gsi in range(24, 4081)]
    assert len(routes) + 40 == abi.KVM_MAX_IRQ_ROUTES + 1
    with pytest.raises(HostError, match=r"KVM_SET_GSI_ROUTING.*EINVAL"):
        apic.vm.set_gsi_routing(routes)
    apic.vm.set_gsi_routing(routes[:-1])


def test_a_message_can_be_sent_without_a_route_and_with_a_device_id(apic):
    assert apic.vm.signal_msi(MSI, 0x51)
    assert apic.vm.signal_msi(MSI, 0x52, 0x18)
    assert apic.arrived(0x51, 0x52) == [0x51, 0x52]
    assert not apic.vm.signal_msi(MSI | 7 << 12, 0x51), "there is no APIC with id 7"


def test_routes_may_carry_a_device_id(apic, table):
    vector = table.vector(24, OWNER, 0x18)
    vector.enable(MSI, 0x51)
    vector.trigger()
    assert apic.arrived(0x51) == [0x51]


def test_two_vms_have_tables_of_their_own(apic, table):
    with Kvm() as kvm:
        other = Apic(kvm)
        others = InterruptTable(other.vm)
        here, there = table.vector(24, OWNER), others.vector(24, OWNER)
        here.enable(MSI, 0x51)
        there.enable(MSI, 0x61)
        here.trigger()
        assert apic.arrived(0x51) == [0x51]
        assert other.pending() == []
        there.trigger()
        assert other.arrived(0x61) == [0x61]
        others.close()
        other.close()


def test_messages_wake_a_halted_guest_each_once():
    with booted(guest("msi")) as rig:
        vectors = [rig.vm.interrupts.vector(24 + n, OWNER) for n in range(2)]
        with rig.vm.interrupts.batch():
            vectors[0].enable(MSI, 0x51)
            vectors[1].enable(MSI, 0x61)
        rig.run()
        rig.tape.wait_for("ready\n")
        for number in range(1, 21):
            vectors[0].trigger()
            rig.tape.wait_for(f"msi 00000051 {number}\n")
            vectors[1].trigger()
            rig.tape.wait_for(f"msi 00000061 {number}\n")
        vectors[0].enable(MSI, 0x61)
        vectors[0].trigger()
        rig.tape.wait_for("msi 00000061 21\n")
        rig.healthy()
        assert rig.tape.text.count("msi") == 41
        for vector in vectors:
            vector.close()


class Stores:
    """What reached the monitor: (offset, length, value)."""

    def __init__(self):
        self.seen = set()
        self.count = 0
        self._more = threading.Condition()

    def read(self, offset, length):
        return 0

    def write(self, offset, length, value):
        with self._more:
            self.seen.add((offset, length, value))
            self.count += 1
            self._more.notify_all()

    def wait_more(self, by):
        with self._more:
            end = self.count + by
            assert self._more.wait_for(lambda: self.count >= end, PATIENCE_S), f"stands at {self.count}"


WORDS = {(0, 4, value) for value in range(3)}
HALVES = {(4, 2, value) for value in range(2)}


@pytest.mark.parametrize(
    ("offset", "length", "datamatch", "taken"),
    [
        (0, 4, 1, {(0, 4, 1)}),
        (0, 4, None, WORDS),
        (0, 0, None, WORDS),
        (4, 2, 0, {(4, 2, 0)}),
        (4, 4, None, set()),
        (0, 4, 3, set()),
    ],
    ids=["one word", "every word", "any length", "one half-word", "another length", "another value"],
)
def test_a_doorbell_takes_the_stores_that_match_and_only_those_reach_no_monitor(offset, length, datamatch, taken):
    stores, doorbell = Stores(), host.eventfd()
    with booted(guest("doorbell")) as rig:
        rig.vm.mmio.insert(DOORBELL, 0x1000, stores)
        rig.vm.fd.ioeventfd(doorbell, DOORBELL + offset, length, datamatch=datamatch)
        rig.run()
        rig.tape.wait_for("rang 20\n")
        rig.machine.pause()
        assert stores.seen == (WORDS | HALVES) - taken
        rung = host.eventfd_take(doorbell)
        a_round, other = len(taken), 5 - len(taken)
        assert rung >= 20 * a_round
        assert abs(rung * other - stores.count * a_round) <= a_round * other, "beyond the round that was under way"
        rig.vm.fd.ioeventfd(doorbell, DOORBELL + offset, length, datamatch=datamatch, assign=False)
        rig.machine.resume()
        stores.wait_more(20)
        rig.machine.pause()
        assert stores.seen == WORDS | HALVES
        assert host.eventfd_take(doorbell) == 0
        rig.healthy()
    host.close(doorbell)


def test_a_doorbell_twice_at_one_place_is_refused(apic):
    fd = host.eventfd()
    apic.vm.ioeventfd(fd, DOORBELL, 4, datamatch=1)
    with pytest.raises(HostError, match=r"KVM_IOEVENTFD.*EEXIST"):
        apic.vm.ioeventfd(fd, DOORBELL, 4, datamatch=1)
    apic.vm.ioeventfd(fd, DOORBELL, 4, datamatch=2)
    with pytest.raises(HostError, match=r"KVM_IOEVENTFD.*ENOENT"):
        apic.vm.ioeventfd(fd, DOORBELL, 4, datamatch=3, assign=False)
    host.close(fd)
