"""MSI-X. Numbers re-declared from the PCI Local Bus Specification 3.0, section 6.8.2."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapkit import host
from snapkit.errors import ConfigError, HostError, ImageError
from snapkit.state.codec import encode
from snapkit.state.pci_function import PciFunctionState
from snapkit.state.pci_msix import PciMsixState, fits, invariants
from snapkit.vmm.interrupt_table import InterruptTable
from snapkit.vmm.pci import layout
from snapkit.vmm.pci.pci_msix import PciMsix, PciMsixArgs, fresh_msix
from tests.vmm.pci.rig import MMIO64, Rig

CONTROL = 0x42  # the capability is the first: 0x40
ENABLE, FUNCTION_MASK = 0x8000, 0x4000
ENTRY_LEN, DATA, VECTOR_CONTROL = 16, 8, 12
MASKED = 1
ADDRESS = 0xFEE0_0000
OWNER = "pci-msix/root"


class Kernel:
    """KVM's routing table and irqfds, as far as MSI-X can tell; `refusing` makes the call of that name fail."""

    def __init__(self) -> None:
        self.routes: dict[int, tuple[int, int]] = {}
        self.irqfds: dict[int, int] = {}
        self.calls: list[str] = []
        self.refusing = ""

    def set_gsi_routing(self, routes):
        self._call("routing")
        self.routes = {route.gsi: (route.address, route.data) for route in routes}

    def irqfd(self, fd, gsi, *, assign):
        if assign:
            self._call("irqfd")
            assert gsi in self.routes, "a route comes before its irqfd"
            self.irqfds[gsi] = fd
        else:
            self.calls.append("-irqfd")
            assert self.irqfds.pop(gsi) == fd

    def set_irq_line(self, gsi, level):
        raise AssertionError

    def _call(self, name):
        self.calls.append(name)
        if name == self.refusing:
            raise HostError("ioctl", 28, name)


def function_of(vectors: int) -> PciFunctionState:
    config = layout.header(vendor=0x1AF4, device=0x1042, class_code=0)
    bar = layout.add_bar(config, 0, width=64, address=MMIO64, length=0x8_0000)
    layout.add_capability(config, 0x11, layout.msix_capability(vectors, table=(0, 0x8000), pba=(0, 0x4_8000)))
    return PciFunctionState(slot=1, config=bytes(config), bars=[bar])


class Bench(Rig):
    """A function with MSI-X. `fired` counts what reached the kernel for each vector."""

    def __init__(self, vectors=3, *, state=None, function=None, wire=True, kernel=None) -> None:
        super().__init__()
        self.kernel = kernel or Kernel()
        self.interrupts = InterruptTable(self.kernel)
        self.chip = self.function(function or function_of(vectors))
        self.first = 24
        state = state or fresh_msix(vectors, range(self.first, self.first + vectors))
        args = PciMsixArgs(self.interrupts, self.resources, self.chip, OWNER, 8)
        self.msix = PciMsix.restore(state, args)
        if wire:
            self.wire()

    def wire(self):
        with self.interrupts.batch():
            self.msix.wire()

    def control(self, value, length=2):
        self.chip.write_config(CONTROL, length, value)

    def program(self, number, data=None, control=0):
        """Write an entry as Linux does: address, data, then the mask."""
        at = number * ENTRY_LEN
        self.msix.write_table(at, 4, ADDRESS)
        self.msix.write_table(at + 4, 4, 0)
        self.msix.write_table(at + DATA, 4, 0x40 + number if data is None else data)
        self.mask(number, control)

    def mask(self, number, control=MASKED):
        self.msix.write_table(number * ENTRY_LEN + VECTOR_CONTROL, 4, control)

    def fired(self, number):
        fd = self.kernel.irqfds.get(self.first + number)
        return 0 if fd is None else host.eventfd_take(fd)

    def pending(self):
        return self.msix.read_pba(0, 8)

    def open(self):
        return {gsi - self.first for gsi in self.kernel.irqfds}

    def routes(self):
        """Return where the vectors that can fire go; a route without an irqfd leads nowhere and may linger in KVM."""
        return {gsi: self.kernel.routes[gsi] for gsi in self.kernel.irqfds}

    def again(self, **options):
        """Save everything and restore it into a machine of its own."""
        return Bench(len(self.msix.state.entries), state=self.msix.save(), function=self.chip.save(), **options)


@pytest.fixture
def bench():
    return Bench()


@pytest.fixture
def live():
    """All vectors programmed and open."""
    bench = Bench()
    bench.control(ENABLE)
    for number in range(3):
        bench.program(number)
    return bench


# Claims


def test_gsis_are_claimed_of_their_pool_and_given_back_once(live):
    assert [(claim.pool, claim.start) for claim in live.resources.save().claims if claim.owner == OWNER] == [
        ("gsi-msi", 24),
        ("gsi-msi", 25),
        ("gsi-msi", 26),
    ]
    live.msix.close()
    live.msix.close()
    assert [claim for claim in live.resources.save().claims if claim.owner == OWNER] == []
    assert (live.kernel.irqfds, live.routes()) == ({}, {})


@pytest.mark.parametrize("gsis", [[24, 25, 4096], [24, 25, 5]], ids=["too high", "a pin"])
def test_gsi_outside_its_pool_is_refused_and_nothing_stays_claimed(gsis):
    bench = Bench()
    bench.msix.close()
    with pytest.raises(ConfigError):
        PciMsix.restore(fresh_msix(3, gsis), PciMsixArgs(bench.interrupts, bench.resources, bench.chip, OWNER))
    assert [claim for claim in bench.resources.save().claims if claim.owner == OWNER] == []


def test_gsi_of_another_device_is_refused():
    bench = Bench()
    args = PciMsixArgs(bench.interrupts, bench.resources, bench.chip, "pci-msix/other")
    with pytest.raises(ConfigError, match=OWNER):
        PciMsix.restore(fresh_msix(3, [30, 31, 26]), args)
    assert [claim for claim in bench.resources.save().claims if claim.owner == "pci-msix/other"] == []


# Control word


def test_guest_writes_enable_and_function_mask_and_nothing_else(bench):
    bench.control(0xFFFF)
    assert bench.chip.read_config(CONTROL, 2) == ENABLE | FUNCTION_MASK | 2
    bench.control(0)
    assert bench.chip.read_config(CONTROL, 2) == 2


def test_control_word_may_be_written_in_any_width(live):
    live.chip.write_config(CONTROL + 1, 1, 0)
    assert live.open() == set()
    live.chip.write_config(CONTROL - 2, 4, ENABLE << 16)
    assert live.open() == {0, 1, 2}
    live.chip.write_config(CONTROL, 1, 0xFF)
    assert live.open() == {0, 1, 2}


# Which vectors are open


def test_fresh_vectors_are_masked_and_hold_nothing(bench):
    bench.control(ENABLE)
    assert [bench.msix.read_table(n * ENTRY_LEN + VECTOR_CONTROL, 4) for n in range(3)] == [1, 1, 1]
    assert (bench.kernel.irqfds, bench.routes()) == ({}, {})


def test_only_unmasked_vectors_hold_a_route_and_an_irqfd(bench):
    bench.control(ENABLE)
    bench.program(1)
    bench.program(2, control=MASKED)
    assert bench.open() == {1}
    assert bench.routes() == {25: (ADDRESS, 0x41)}
    assert (bench.msix.open(1), bench.msix.open(2)) == (True, False)


def test_function_mask_shuts_all_and_leaves_the_entry_masks_alone(live):
    live.mask(1)
    live.control(ENABLE | FUNCTION_MASK)
    assert (live.open(), live.routes()) == (set(), {})
    assert [entry.control for entry in live.msix.state.entries] == [0, 1, 0]
    live.control(ENABLE)
    assert live.open() == {0, 2}


def test_entry_unmasked_under_the_function_mask_opens_only_with_it(bench):
    bench.control(ENABLE | FUNCTION_MASK)
    bench.program(0)
    assert bench.open() == set()
    bench.control(ENABLE)
    assert bench.open() == {0}


def test_nothing_is_open_while_msix_is_off(live):
    live.control(0)
    assert (live.open(), live.routes()) == (set(), {})
    live.control(FUNCTION_MASK)
    assert live.open() == set()


def test_vectors_that_open_together_are_one_routing_call(bench):
    bench.control(ENABLE | FUNCTION_MASK)
    for number in range(3):
        bench.program(number)
    bench.kernel.calls.clear()
    bench.control(ENABLE)
    assert bench.kernel.calls == ["routing", "irqfd", "irqfd", "irqfd"]


def test_open_vector_follows_a_new_address_and_data_without_a_new_irqfd(live):
    live.kernel.calls.clear()
    live.msix.write_table(DATA, 4, 0x77)
    assert live.routes()[24] == (ADDRESS, 0x77)
    assert live.kernel.calls == ["routing"]
    live.msix.write_table(0, 8, 0x1_FEE0_1000)
    assert live.routes()[24] == (0x1_FEE0_1000, 0x77)


def test_write_that_changes_nothing_asks_nothing_of_the_kernel(live):
    live.kernel.calls.clear()
    live.msix.write_table(DATA, 4, 0x40)
    live.mask(0, 0)
    live.control(ENABLE)
    assert live.kernel.calls == []


# Messages


def test_message_of_an_open_vector_fires_once(live):
    live.msix.trigger(1)
    assert [live.fired(n) for n in range(3)] == [0, 1, 0]
    assert live.pending() == 0


def test_message_of_a_masked_entry_pends_and_fires_on_unmask(live):
    live.mask(1)
    live.msix.trigger(1)
    live.msix.trigger(1)
    assert live.pending() == 0b010
    live.mask(1, 0)
    assert (live.fired(1), live.fired(0), live.pending()) == (1, 0, 0)


def test_message_under_the_function_mask_pends_and_fires_when_it_goes(live):
    live.control(ENABLE | FUNCTION_MASK)
    live.msix.trigger(0)
    live.msix.trigger(2)
    assert live.pending() == 0b101
    live.control(ENABLE)
    assert ([live.fired(n) for n in range(3)], live.pending()) == ([1, 0, 1], 0)


def test_message_while_msix_is_off_pends_and_fires_on_enable(live):
    live.control(0)
    live.msix.trigger(2)
    live.control(ENABLE)
    assert (live.fired(2), live.pending()) == (1, 0)


def test_pending_bit_waits_for_the_last_of_the_masks(live):
    live.control(ENABLE | FUNCTION_MASK)
    live.mask(0)
    live.msix.trigger(0)
    live.control(ENABLE)
    assert (live.pending(), live.fired(0)) == (1, 0)
    live.mask(0, 0)
    assert (live.pending(), live.fired(0)) == (0, 1)


@pytest.mark.parametrize("number", [-1, 3, 0xFFFF])
def test_message_that_there_is_not_is_counted(live, number):
    live.msix.trigger(number)
    assert live.msix.faults == 1
    assert live.pending() == 0


# When the kernel refuses


@pytest.mark.parametrize("call", ["routing", "irqfd"])
def test_vector_that_the_kernel_refuses_stays_shut_keeps_messages_and_is_tried_again(bench, call):
    bench.control(ENABLE)
    bench.kernel.refusing = call
    bench.program(0)
    assert bench.msix.faults == 1
    assert bench.open() == set()
    bench.msix.trigger(0)
    assert bench.pending() == 1
    bench.kernel.refusing = ""
    bench.control(ENABLE)
    assert (bench.open(), bench.fired(0), bench.pending()) == ({0}, 1, 0)


# Table and PBA


def test_table_reads_back_in_dwords_and_qwords(bench):
    bench.msix.write_table(ENTRY_LEN, 8, 0x1_FEE0_2004)
    bench.msix.write_table(ENTRY_LEN + DATA, 8, 0x1_0000_4055)
    assert bench.msix.read_table(ENTRY_LEN, 4) == 0xFEE0_2004
    assert bench.msix.read_table(ENTRY_LEN + 4, 4) == 1
    assert bench.msix.read_table(ENTRY_LEN + DATA, 8) == 0x1_0000_4055
    assert bench.msix.read_table(0, 8) == 0


def test_bits_that_are_not_in_the_table_read_as_0(bench):
    bench.msix.write_table(0, 4, 0xFFFF_FFFF)
    bench.msix.write_table(VECTOR_CONTROL, 4, 0xFFFF_FFFF)
    assert bench.msix.read_table(0, 4) == 0xFFFF_FFFC
    assert bench.msix.read_table(VECTOR_CONTROL, 4) == 1


def test_qword_over_data_and_mask_takes_effect_at_once(bench):
    bench.control(ENABLE)
    bench.msix.write_table(0, 8, ADDRESS)
    bench.msix.write_table(DATA, 8, 0x99)
    assert bench.routes() == {24: (ADDRESS, 0x99)}


@pytest.mark.parametrize(("vectors", "length"), [(1, 8), (3, 8), (63, 8), (64, 8)])
def test_pba_is_as_long_as_its_vectors_need(vectors, length):
    bench = Bench(vectors)
    bench.msix.trigger(vectors - 1)
    assert bench.msix.read_pba(0, 8) == 1 << vectors - 1
    assert bench.msix.read_pba(4, 4) == 1 << vectors - 1 >> 32
    assert len(fresh_msix(vectors, range(vectors)).pending) == length // 8
    assert bench.msix.read_pba(length, 8) == (1 << 64) - 1
    assert bench.msix.faults == 1


@pytest.mark.parametrize("offset", [-8, -1, 0, 1, 2, 4, 8, 44, 46, 48, 0x8000])
@pytest.mark.parametrize("length", [-1, 0, 1, 2, 3, 4, 5, 8, 16])
def test_every_width_at_every_offset_is_total(offset, length):
    bench = Bench()
    ones = (1 << 8 * max(length, 0)) - 1
    inside = length in {4, 8} and offset >= 0 and offset % length == 0 and offset + length <= 48
    bench.msix.write_table(offset, length, ones)
    value = bench.msix.read_table(offset, length)
    assert bench.msix.faults == (0 if inside else 2)
    assert inside or value == ones
    if not inside:
        assert bench.msix.state == fresh_msix(3, [24, 25, 26])
    pending = bench.msix.read_pba(offset, length)
    assert pending == (0 if inside and offset + length <= 8 else ones)


# Save and restore


def test_restore_is_inert_until_it_is_wired(live):
    after = live.again(wire=False)
    assert after.kernel.calls == []
    after.wire()
    assert after.kernel.calls == ["routing", "irqfd", "irqfd", "irqfd"]
    assert after.routes() == live.routes()
    assert [after.fired(n) for n in range(3)] == [0, 0, 0]


def test_wiring_opens_no_masked_vector(live):
    live.mask(1)
    after = live.again()
    assert after.open() == {0, 2}
    assert set(after.routes()) == {24, 26}


def test_wiring_that_fails_opens_nothing(live):
    after = live.again(wire=False)
    after.kernel.refusing = "irqfd"
    with pytest.raises(HostError):
        after.wire()
    assert (after.open(), after.routes()) == (set(), {})


def test_pending_bits_survive_a_save_and_fire_on_unmask_after_it(live):
    live.mask(2)
    live.msix.trigger(2)
    after = live.again()
    after.msix.resync()
    assert (after.pending(), after.open()) == (0b100, {0, 1})
    after.mask(2, 0)
    assert (after.fired(2), after.pending()) == (1, 0)


def test_what_an_open_vector_was_still_owed_is_sent_by_resync():
    bench = Bench()
    bench.control(ENABLE)
    bench.kernel.refusing = "irqfd"
    bench.program(0)
    bench.msix.trigger(0)
    after = bench.again()
    assert (after.open(), after.fired(0), after.pending()) == ({0}, 0, 1)
    after.msix.resync()
    assert (after.fired(0), after.pending()) == (1, 0)


STATES = [
    [],
    [("control", ENABLE | FUNCTION_MASK)],
    [("control", ENABLE | FUNCTION_MASK), ("program", 0)],
    [("control", ENABLE), ("program", 0), ("program", 1)],
    [("control", ENABLE), ("program", 0), ("mask", 0), ("trigger", 0)],
    [("control", ENABLE), ("program", 0), ("control", ENABLE | FUNCTION_MASK), ("trigger", 0)],
    [("program", 0), ("trigger", 0), ("trigger", 1)],
    [("control", ENABLE), ("program", 0), ("control", 0), ("trigger", 0)],
]


def do(bench, step):
    name, value = step
    bench.msix.trigger(value) if name == "trigger" else getattr(bench, name)(value)


@pytest.mark.parametrize("steps", STATES, ids=lambda steps: "-".join(name for name, _ in steps) or "fresh")
def test_save_restore_save_is_equal_at_every_mask_state_and_opens_the_same(steps):
    bench = Bench()
    for step in steps:
        do(bench, step)
    after = bench.again()
    after.msix.resync()
    assert encode(after.msix.save()) == encode(bench.msix.save())
    assert (after.open(), after.routes()) == (bench.open(), bench.routes())
    assert after.interrupts.save() == bench.interrupts.save()
    assert after.resources.save() == bench.resources.save()
    for each in (bench, after):
        each.fired(0)
        each.control(ENABLE)
        for number in range(3):
            each.program(number)
    assert [after.fired(n) for n in range(3)] == [bench.fired(n) for n in range(3)]
    assert after.msix.save() == bench.msix.save()


def test_save_is_detached(live):
    saved = live.msix.save()
    live.mask(0)
    live.msix.trigger(0)
    assert (saved.entries[0].control, saved.pending) == (0, [0])


# Invariants and fit: start from a good state, break one thing


def broken(**fields) -> PciMsixState:
    return msgspec.structs.replace(fresh_msix(3, [24, 25, 26]), **fields)


def with_entry(**fields) -> PciMsixState:
    state = fresh_msix(3, [24, 25, 26])
    state.entries[1] = msgspec.structs.replace(state.entries[1], **fields)
    return state


@pytest.mark.parametrize("vectors", [1, 3, 64])
def test_fresh_table_is_sound(vectors):
    assert invariants(fresh_msix(vectors, range(24, 24 + vectors)), OWNER) == []


@pytest.mark.parametrize(
    ("state", "path", "rule"),
    [
        (with_entry(control=2), "entries[1].control", "msix.reserved-bits"),
        (with_entry(address=ADDRESS | 2), "entries[1].address", "msix.reserved-bits"),
        (broken(gsis=[24, 25]), "gsis", "msix.lengths"),
        (broken(gsis=[24, 25, 26, 27]), "gsis", "msix.lengths"),
        (broken(gsis=[24, 25, 24]), "gsis", "msix.gsis"),
        (broken(pending=[0, 0]), "pending", "msix.lengths"),
        (broken(pending=[0b1000]), "pending[0]", "msix.pending"),
        (broken(pending=[1 << 63]), "pending[0]", "msix.pending"),
    ],
)
def test_state_that_no_table_has_is_named_and_refused(state, path, rule):
    (finding,) = invariants(state, OWNER)
    assert (finding.path, finding.rule) == (path, rule)
    if len(state.pending) == 1:  # the schema itself refuses two words
        bench = Bench()
        bench.msix.close()
        with pytest.raises(ImageError) as refused:
            PciMsix.restore(state, PciMsixArgs(bench.interrupts, bench.resources, bench.chip, OWNER))
        assert f"{OWNER}.{path} is " in str(refused.value)


def poked(offset: int, payload: bytes) -> PciFunctionState:
    state = function_of(3)
    config = bytearray(state.config)
    config[offset : offset + len(payload)] = payload
    return msgspec.structs.replace(state, config=bytes(config))


@pytest.mark.parametrize(
    ("function", "component", "rule"),
    [
        (layout.host_bridge(), "pci-function/root", "msix.capability"),
        (function_of(4), OWNER, "msix.size"),
        (poked(0x44, (0x8001).to_bytes(4, "little")), "pci-function/root", "msix.place"),
        (poked(0x44, (0x7_FFE0).to_bytes(4, "little")), "pci-function/root", "msix.place"),
        (poked(0x48, (0x8_0000).to_bytes(4, "little")), "pci-function/root", "msix.place"),
        (poked(0x48, (0x8020).to_bytes(4, "little")), "pci-function/root", "msix.place"),
    ],
    ids=["no capability", "other size", "no such BAR", "table over the end", "PBA over the end", "PBA in the table"],
)
def test_capability_that_does_not_fit_is_named_and_refused(function, component, rule):
    (finding,) = fits(fresh_msix(3, [24, 25, 26]), OWNER, function, "pci-function/root")
    assert (finding.component, finding.rule) == (component, rule)
    with pytest.raises(ImageError, match=r"msix/root is refused"):
        Bench(3, function=function)


def test_fitting_capability_is_said_to_fit():
    assert fits(fresh_msix(3, [24, 25, 26]), OWNER, function_of(3), "pci-function/root") == []


# Anything a guest may do

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("table"), st.integers(-4, 56), st.integers(0, 9), st.integers(0, (1 << 72) - 1)),
        st.tuples(st.just("table"), st.integers(0, 2).map(lambda n: 16 * n + 12), st.just(4), st.integers(0, 1)),
        st.tuples(st.just("config"), st.integers(0x40, 0x48), st.integers(1, 4), st.integers(0, 0xFFFF_FFFF)),
        st.tuples(st.just("config"), st.just(CONTROL), st.just(2), st.sampled_from([0, ENABLE, 0xC000])),
        st.tuples(st.just("trigger"), st.integers(-1, 4), st.just(0), st.just(0)),
        st.tuples(st.just("refuse"), st.integers(0, 4), st.just(0), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=100, deadline=None)
@given(steps=STEPS)
def test_whatever_a_guest_writes_open_vectors_and_no_others_are_routed_and_no_message_is_lost(steps):
    bench = Bench()
    owed = [0, 0, 0]
    for what, first, length, value in steps:
        bench.kernel.refusing = ""
        if what == "table":
            bench.msix.write_table(first, length, value)
            assert bench.msix.read_table(first, length) >= 0
        elif what == "config":
            bench.chip.write_config(first, length, value)
        elif what == "refuse":
            bench.kernel.refusing = ("routing", "irqfd", "", "", "")[first]
            bench.control(ENABLE)
            bench.kernel.refusing = ""
            owed = [0 if bench.fired(n) else owed[n] for n in range(3)]
            bench.control(0)
        else:
            bench.msix.trigger(first)
            if 0 <= first < 3:
                owed[first] = 1
        state = bench.msix.save()
        assert invariants(state, OWNER) == []
        wanted = {n: bench.msix.state.entries[n] for n in range(3) if bench.msix.open(n)}
        assert bench.open() == set(wanted)
        assert bench.routes() == {24 + n: (entry.address, entry.data) for n, entry in wanted.items()}
        for number in range(3):
            fired = bench.fired(number)
            if bench.msix.open(number) or bench.pending() >> number & 1:
                assert fired + (bench.pending() >> number & 1) == owed[number]
            if bench.msix.open(number):
                owed[number] = 0
    bench.msix.close()
    assert (bench.kernel.irqfds, bench.routes()) == ({}, {})
