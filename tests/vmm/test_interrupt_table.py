"""The interrupt table against a KVM that keeps the kernel's rules: what is called, in which order, and what is left."""

import errno
import sys
import threading
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapkit import host
from snapkit.errors import ConfigError, HostError, ImageError, InternalError
from snapkit.state.codec import decode, encode
from snapkit.state.interrupt_table import InterruptTableState, LineState, RouteState, invariants
from snapkit.state.schema import current
from snapkit.vmm.interrupt_table import InterruptTable

ROOT, NET = "pci-msix/root", "pci-msix/net0"
MSI = 0xFEE0_0000


class FakeKvm:
    """Routes, irqfds and pins as the kernel has them; *spoiled* are the numbers of calls that fail."""

    def __init__(self):
        self.routes: dict[int, tuple[int, int]] = {}
        self.irqfds: dict[int, int] = {}
        self.calls: list[str] = []
        self.levels: list[tuple[int, int]] = []
        self.spoiled: set[int] = set()

    def _call(self, name):
        self.calls.append(name)
        if len(self.calls) in self.spoiled:
            raise HostError(name, errno.ENOMEM)

    def set_gsi_routing(self, routes):
        self._call("routes")
        self.routes = {route.gsi: (route.address, route.data) for route in routes}
        assert self.routes.keys() >= set(self.irqfds.values()), "a route is taken away under an irqfd"

    def irqfd(self, fd, gsi, *, assign):
        host.fstat(fd)
        if not assign:
            # also where the call fails: the eventfd must be closed then, and the kernel lets go of it
            assert self.irqfds.pop(fd) == gsi
            self._call(f"irqfd {gsi} off")
            return
        self._call(f"irqfd {gsi}")
        assert gsi in self.routes, "an irqfd comes before its route"
        assert fd not in self.irqfds, "an irqfd is registered twice"
        self.irqfds[fd] = gsi

    def set_irq_line(self, gsi, level):
        self.levels.append((gsi, level))

    @contextmanager
    def failing(self, *calls):
        """Fail the next calls with these numbers, counted from 1."""
        self.spoiled = {len(self.calls) + call for call in calls}
        yield
        self.spoiled = set()

    @property
    def new_calls(self):
        calls, self.calls = self.calls, []
        return calls


@pytest.fixture
def kvm():
    return FakeKvm()


@pytest.fixture
def table(kvm):
    table = InterruptTable(kvm)
    yield table
    table.close()


@pytest.fixture
def eager_threads():
    """Have threads take turns within a call, not every 5 ms."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# One vector


def test_the_route_comes_before_the_irqfd(kvm, table):
    table.vector(24, ROOT).enable(MSI, 0x51)
    assert kvm.calls == ["routes", "irqfd 24"]
    assert kvm.routes == {24: (MSI, 0x51)}


def test_a_vector_that_was_never_enabled_holds_nothing(kvm, table):
    before = host.calls_made()
    vector = table.vector(24, ROOT)
    assert not vector.enabled
    assert (kvm.calls, host.calls_made()) == ([], before)


def test_trigger_writes_the_eventfd_that_was_registered(kvm, table):
    vector = table.vector(24, ROOT)
    vector.enable(MSI, 0x51)
    (fd,) = kvm.irqfds
    vector.trigger()
    vector.trigger()
    assert host.eventfd_take(fd) == 2


def test_trigger_while_disabled_is_lost_even_for_a_later_enable(kvm, table):
    vector = table.vector(24, ROOT)
    vector.trigger()
    vector.enable(MSI, 0x51)
    vector.disable()
    vector.trigger()
    vector.enable(MSI, 0x51)
    (fd,) = kvm.irqfds
    assert host.eventfd_take(fd) == 0


def test_a_trigger_that_came_too_late_for_the_disable_does_not_fire_at_the_next_enable(kvm, table):
    vector = table.vector(24, ROOT)
    vector.enable(MSI, 0x51)
    (fd,) = kvm.irqfds
    vector.disable()
    host.eventfd_signal(fd)  # the other thread had seen it enabled
    vector.enable(MSI, 0x51)
    assert host.eventfd_take(fd) == 0


def test_disable_takes_the_irqfd_away_and_the_route_out_of_what_is_saved(kvm, table):
    vector = table.vector(24, ROOT)
    vector.enable(MSI, 0x51)
    vector.disable()
    vector.disable()
    assert not vector.enabled
    assert kvm.irqfds == {}
    assert table.save().routes == []
    assert kvm.calls.count("irqfd 24 off") == 1


def test_a_route_that_is_gone_leaves_the_kernel_with_the_next_change(kvm, table):
    first, second = table.vector(24, ROOT), table.vector(25, ROOT)
    first.enable(MSI, 0x51)
    first.disable()
    second.enable(MSI, 0x52)
    assert kvm.routes == {25: (MSI, 0x52)}


def test_masking_and_unmasking_costs_no_routing_call(kvm, table):
    vector = table.vector(24, ROOT)
    vector.enable(MSI, 0x51)
    assert kvm.new_calls == ["routes", "irqfd 24"]
    vector.disable()
    vector.enable(MSI, 0x51)
    assert kvm.new_calls == ["irqfd 24 off", "irqfd 24"]


def test_the_eventfd_is_kept_until_close_and_made_once(table, monkeypatch):
    made: list[int] = []
    closed: list[int] = []
    real_eventfd, real_close = host.eventfd, host.close

    def eventfd():
        made.append(real_eventfd())
        return made[-1]

    def close(fd):
        closed.append(fd)
        real_close(fd)

    monkeypatch.setattr(host, "eventfd", eventfd)
    monkeypatch.setattr(host, "close", close)
    vector = table.vector(24, ROOT)
    for _ in range(3):
        vector.enable(MSI, 0x51)
        vector.disable()
    assert (len(made), closed) == (1, [])
    vector.close()
    vector.close()
    assert closed == made


def test_changing_address_and_data_keeps_the_irqfd(kvm, table):
    vector = table.vector(24, ROOT)
    vector.enable(MSI, 0x51)
    vector.enable(MSI, 0x51)
    assert kvm.new_calls == ["routes", "irqfd 24"]
    vector.enable(MSI | 1 << 12, 0x61)
    assert kvm.new_calls == ["routes"]
    assert kvm.routes == {24: (MSI | 1 << 12, 0x61)}


@pytest.mark.usefixtures("eager_threads")
def test_many_threads_that_enable_at_once_register_once(kvm, table):
    for gsi in range(24, 64):
        vector = table.vector(gsi, ROOT)
        start = threading.Barrier(8)

        def enable(vector=vector, start=start):
            start.wait(60)
            vector.enable(MSI, 0x51)

        threads = [threading.Thread(target=enable) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert kvm.new_calls == ["routes", f"irqfd {gsi}"]


@pytest.mark.usefixtures("eager_threads")
def test_threads_that_enable_and_disable_leave_what_the_last_one_wanted(kvm, table):
    vectors = [table.vector(24 + n, ROOT) for n in range(4)]
    start = threading.Barrier(4)
    errors: list[BaseException] = []

    def work(vector):
        try:
            start.wait(60)
            for turn in range(50):
                with table.batch():
                    vector.enable(MSI, turn)
                vector.trigger()
                vector.disable()
            vector.enable(MSI, 99)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(vector,)) for vector in vectors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert kvm.routes == {24 + n: (MSI, 99) for n in range(4)}
    assert sorted(kvm.irqfds.values()) == [24, 25, 26, 27]


# GSIs


def test_the_gsi_comes_back_when_the_vector_is_closed(kvm, table):
    first = table.vector(24, ROOT)
    first.enable(MSI, 0x51)
    with pytest.raises(ConfigError, match=r"pci-msix/net0 wants GSI 24, which pci-msix/root has"):
        table.vector(24, NET)
    first.close()
    again = table.vector(24, NET)
    again.enable(MSI, 0x52)
    assert kvm.routes == {24: (MSI, 0x52)}
    first.close()
    assert again.enabled, "closing twice took the GSI's next owner along"


def test_a_closed_vector_cannot_be_enabled(table):
    vector = table.vector(24, ROOT)
    vector.close()
    with pytest.raises(InternalError, match="after it was closed"):
        vector.enable(MSI, 0x51)
    vector.trigger()


@pytest.mark.parametrize("gsi", [-1, 0, 23, 4096])
def test_a_gsi_that_is_a_pin_or_beyond_the_table_is_no_vectors(table, gsi):
    with pytest.raises(ConfigError, match=r"there are 24\.\.4095"):
        table.vector(gsi, ROOT)


# Batches


def test_a_batch_is_one_routing_call_and_then_its_irqfds(kvm, table):
    vectors = [table.vector(24 + n, ROOT) for n in range(12)]
    with table.batch():
        for vector in vectors:
            vector.enable(MSI, 0x30 + vector.gsi)
        assert kvm.calls == []
    assert kvm.calls == ["routes", *(f"irqfd {24 + n}" for n in range(12))]
    assert kvm.routes == {24 + n: (MSI, 0x48 + n) for n in range(12)}


def test_inner_batches_are_part_of_the_outer_one(kvm, table):
    first, second = table.vector(24, ROOT), table.vector(25, NET)
    with table.batch():
        with table.batch():
            first.enable(MSI, 1)
        with table.batch():
            second.enable(MSI, 2)
        assert kvm.calls == []
    assert kvm.calls == ["routes", "irqfd 24", "irqfd 25"]


def test_a_batch_that_changes_nothing_makes_no_call(kvm, table):
    vector = table.vector(24, ROOT)
    vector.enable(MSI, 1)
    del kvm.calls[:]
    with table.batch():
        vector.enable(MSI, 2)
        vector.enable(MSI, 1)
    assert kvm.calls == []


def test_in_a_batch_a_vector_is_unregistered_before_routes_change(kvm, table):
    first, second = table.vector(24, ROOT), table.vector(25, ROOT)
    first.enable(MSI, 1)
    del kvm.calls[:]
    with table.batch():
        second.enable(MSI, 2)
        first.disable()
    assert kvm.calls == ["irqfd 24 off", "routes", "irqfd 25"]
    assert kvm.routes == {25: (MSI, 2)}


def test_enabled_and_disabled_in_one_batch_is_never_registered(kvm, table):
    vector = table.vector(24, ROOT)
    with table.batch():
        vector.enable(MSI, 1)
        vector.disable()
    assert kvm.calls == []
    assert not vector.enabled


def test_a_trigger_before_the_end_of_the_batch_waits_in_the_eventfd_for_the_irqfd(kvm, table):
    vector = table.vector(24, ROOT)
    with table.batch():
        vector.enable(MSI, 1)
        vector.trigger()
    (fd,) = kvm.irqfds
    assert host.eventfd_take(fd) == 1


# What fails is undone


def test_when_the_irqfd_fails_the_route_is_rolled_back_and_the_error_raised(kvm, table):
    vector = table.vector(24, ROOT)
    with kvm.failing(2), pytest.raises(HostError, match=r"irqfd 24.*ENOMEM"):
        vector.enable(MSI, 0x51)
    assert not vector.enabled
    assert (kvm.routes, kvm.irqfds) == ({}, {})
    assert table.save() == InterruptTableState()
    vector.enable(MSI, 0x51)
    assert kvm.routes == {24: (MSI, 0x51)}


def test_when_the_routes_fail_no_irqfd_is_tried(kvm, table):
    vector = table.vector(24, ROOT)
    with kvm.failing(1), pytest.raises(HostError, match="routes"):
        vector.enable(MSI, 0x51)
    assert kvm.calls == ["routes"]
    assert not vector.enabled


def test_a_change_that_fails_leaves_the_earlier_route_working(kvm, table):
    vector = table.vector(24, ROOT)
    vector.enable(MSI, 0x51)
    with kvm.failing(1), pytest.raises(HostError):
        vector.enable(MSI, 0x61)
    assert vector.enabled
    assert kvm.routes == {24: (MSI, 0x51)}
    assert [route.data for route in table.save().routes] == [0x51]
    vector.enable(MSI, 0x61)
    assert kvm.routes == {24: (MSI, 0x61)}


def test_a_batch_whose_last_irqfd_fails_leaves_nothing_of_itself(kvm, table):
    kept, changed, gone = (table.vector(24 + n, ROOT) for n in range(3))
    new = [table.vector(30 + n, NET) for n in range(3)]
    for vector in (kept, changed, gone):
        vector.enable(MSI, 0x40)

    def change_all():
        with table.batch():
            gone.disable()
            changed.enable(MSI, 0x41)
            for vector in new:
                vector.enable(MSI, 0x50)

    with kvm.failing(5), pytest.raises(HostError, match="irqfd 32"):
        change_all()
    assert [vector.enabled for vector in (kept, changed, gone, *new)] == [True, True, False, False, False, False]
    assert kvm.routes == {24: (MSI, 0x40), 25: (MSI, 0x40)}
    assert sorted(kvm.irqfds.values()) == [24, 25]


def test_an_error_inside_a_batch_takes_back_what_was_enabled_in_it(kvm, table):
    first, second = table.vector(24, ROOT), table.vector(25, ROOT)
    first.enable(MSI, 1)

    def change_and_fail():
        with table.batch():
            first.enable(MSI, 2)
            second.enable(MSI, 3)
            raise KeyError

    with pytest.raises(KeyError):
        change_and_fail()
    assert (first.enabled, second.enabled) == (True, False)
    assert kvm.routes == {24: (MSI, 1)}
    assert [route.data for route in table.save().routes] == [1]


def test_an_eventfd_that_cannot_be_made_changes_nothing(kvm, table, monkeypatch):
    def no_more():
        raise HostError("eventfd", errno.EMFILE)

    vector = table.vector(24, ROOT)
    monkeypatch.setattr(host, "eventfd", no_more)
    with pytest.raises(HostError, match="EMFILE"):
        vector.enable(MSI, 1)
    assert (vector.enabled, kvm.calls, table.save().routes) == (False, [], [])


def test_disable_succeeds_where_kvm_refuses_by_closing_the_eventfd(kvm, table):
    vector = table.vector(24, ROOT)
    vector.enable(MSI, 1)
    (fd,) = kvm.irqfds
    with kvm.failing(1):
        vector.disable()
    assert not vector.enabled
    with pytest.raises(HostError, match="EBADF"):
        host.fstat(fd)
    vector.enable(MSI, 1)
    assert list(kvm.irqfds.values()) == [24]


@st.composite
def programs(draw):
    """Batches of (vector, data, or None to disable), each with the number of a call that fails, or none."""
    step = st.tuples(st.integers(0, 3), st.one_of(st.none(), st.integers(1, 3)))
    batch = st.tuples(st.lists(step, min_size=1, max_size=6), st.integers(0, 8))
    return draw(st.lists(batch, max_size=8))


@given(programs())
def test_any_sequence_of_batches_with_failures_leaves_what_a_model_says(batches):
    kvm = FakeKvm()
    table = InterruptTable(kvm)
    vectors = [table.vector(24 + n, ROOT) for n in range(4)]
    wanted: dict[int, int] = {}
    for steps, spoiled in batches:
        before, disabled = dict(wanted), set()
        try:
            with kvm.failing(*({spoiled} - {0})), table.batch():
                for index, data in steps:
                    if data is None:
                        vectors[index].disable()
                        wanted.pop(index, None)
                        disabled.add(index)
                    else:
                        vectors[index].enable(MSI, data)
                        wanted[index] = data
        except HostError:
            kvm.spoiled = set()
            wanted = {index: data for index, data in before.items() if index not in disabled}
        assert {index for index, vector in enumerate(vectors) if vector.enabled} == wanted.keys()
        assert {gsi - 24 for gsi in kvm.irqfds.values()} == wanted.keys()
        assert {gsi: kvm.routes[gsi] for gsi in kvm.irqfds.values()} == {24 + n: (MSI, d) for n, d in wanted.items()}
        assert {route.gsi - 24: route.data for route in table.save().routes} == wanted
    table.close()


# Pins


def test_a_line_drives_its_pin(kvm, table):
    line = table.line(4, "serial-16550/0", edge=True)
    line.set_level(True)
    line.set_level(False)
    assert line.edge
    assert kvm.levels == [(4, 1), (4, 0)]


def test_a_pin_has_one_owner_until_it_is_dropped(table):
    table.line(5, "virtio-mmio/root", edge=False)
    with pytest.raises(ConfigError, match=r"vmgenid/0 wants interrupt line 5, which virtio-mmio/root has"):
        table.line(5, "vmgenid/0", edge=True)
    table.drop_line(5)
    table.drop_line(5)
    assert table.line(5, "vmgenid/0", edge=True).edge


@pytest.mark.parametrize("gsi", [-1, 24])
def test_a_pin_that_no_controller_has_is_refused(table, gsi):
    with pytest.raises(ConfigError, match=r"there are 0\.\.23"):
        table.line(gsi, "serial-16550/0", edge=True)


# As state


@pytest.fixture
def used(table):
    table.line(9, "virtio-mmio/root", edge=False)
    table.line(4, "serial-16550/0", edge=True)
    for gsi, owner in ((26, NET), (24, ROOT), (25, ROOT)):
        table.vector(gsi, owner, 0x18).enable(MSI, gsi)
    return table


def test_what_is_saved_is_sorted_sound_and_decodes(used):
    state = used.save()
    assert state == InterruptTableState(
        lines=[
            LineState(gsi=4, edge=True, owner="serial-16550/0"),
            LineState(gsi=9, edge=False, owner="virtio-mmio/root"),
        ],
        routes=[
            RouteState(gsi=24, address=MSI, data=24, device_id=0x18, owner=ROOT),
            RouteState(gsi=25, address=MSI, data=25, device_id=0x18, owner=ROOT),
            RouteState(gsi=26, address=MSI, data=26, device_id=0x18, owner=NET),
        ],
    )
    assert invariants(state, "interrupt-table/0") == []
    assert decode(current("interrupt-table"), encode(state), where="interrupt-table/0") == state


def test_a_saved_state_is_detached(used):
    state = used.save()
    state.routes[0].data = 0
    state.lines[0].edge = False
    assert used.save() != state
    assert used.save().routes[0].data == 24


def test_a_restored_table_is_empty_and_agrees_once_devices_have_wired_the_same(used):
    state, kvm = used.save(), FakeKvm()
    again = InterruptTable.restore(state, kvm)
    assert again.save() == InterruptTableState()
    for line in state.lines:
        again.line(line.gsi, line.owner, edge=line.edge)
    with again.batch():
        for route in reversed(state.routes):
            again.vector(route.gsi, route.owner, route.device_id).enable(route.address, route.data)
    assert again.agree(state) == []
    assert again.save() == state
    assert kvm.calls.count("routes") == 1
    again.close()


def test_restore_refuses_a_state_out_of_its_bounds(kvm):
    with pytest.raises(ImageError, match=r"lines\[0\]\.gsi"):
        InterruptTable.restore(InterruptTableState(lines=[LineState(gsi=1 << 16, edge=True, owner=ROOT)]), kvm)


def test_every_disagreement_is_found_by_its_path(used):
    state = used.save()
    state.lines[1].edge = True
    state.routes[0].data = 99
    state.routes[1].owner = NET
    del state.routes[2]
    state.routes.append(RouteState(gsi=77, address=MSI, data=0, owner=NET))
    findings = used.agree(state)
    assert [finding.path for finding in findings] == ["lines[1]", "routes[0]", "routes[1]", "routes[2]", "routes"]
    assert str(findings[1]) == (
        "interrupt-table/0.routes[0] is GSI 24 to 0xfee00000 data 0x63 device 0x18 of pci-msix/root, "
        "must be GSI 24 to 0xfee00000 data 0x18 device 0x18 of pci-msix/root"
    )


@pytest.mark.parametrize(
    ("break_it", "path", "rule"),
    [
        (lambda s: setattr(s.lines[1], "gsi", 4), "lines[1].gsi", "lines.sorted"),
        (lambda s: s.lines.reverse(), "lines[1].gsi", "lines.sorted"),
        (lambda s: setattr(s.lines[0], "owner", "somebody"), "lines[0].owner", "lines.owner"),
        (lambda s: setattr(s.routes[2], "gsi", 25), "routes[2].gsi", "routes.sorted"),
        (lambda s: s.routes.reverse(), "routes[1].gsi", "routes.sorted"),
        (lambda s: setattr(s.routes[1], "owner", "pci-msix/"), "routes[1].owner", "routes.owner"),
    ],
)
def test_a_state_that_no_table_saves_is_found_by_its_path(used, break_it, path, rule):
    state = used.save()
    break_it(state)
    assert (path, rule) in [(finding.path, finding.rule) for finding in invariants(state, "interrupt-table/0")]


def test_closing_the_table_closes_every_eventfd(kvm):
    table = InterruptTable(kvm)
    for gsi in range(24, 40):
        table.vector(gsi, ROOT).enable(MSI, 1)
    fds = list(kvm.irqfds)
    table.close()
    table.close()
    for fd in fds:
        with pytest.raises(HostError, match="EBADF"):
            host.fstat(fd)
