"""How two machines differ, by path: what a person is told of every shape of value."""

import copy

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapkit.state.diff import ABSENT, _pairs, _ranges, differences
from snapkit.state.resource_allocator import ResourceAllocatorState
from snapkit.state.schema import SectionId, State
from snapkit.state.serial_16550 import SerialState
from snapkit.state.spec.x86 import MSRS
from snapkit.state.vcpu_x86_64 import Msr, VcpuState
from tests.restore.device_machine import busy_machine, fresh_machine

SERIAL = SectionId("serial-16550", "0")
VCPU = SectionId("vcpu-x86-64", "0")
CLAIMS = SectionId("resource-allocator", "0")


def machine() -> dict[SectionId, State]:
    return dict(busy_machine("pci"))


def vcpu_state() -> VcpuState:
    state = machine()[VCPU]
    assert isinstance(state, VcpuState)
    return state


def told(before: dict[SectionId, State], after: dict[SectionId, State]) -> list[str]:
    return [str(difference) for difference in differences(before, after)]


def changed(section: SectionId, **fields: object) -> tuple[dict[SectionId, State], dict[SectionId, State]]:
    before = machine()
    return before, {**before, section: msgspec.structs.replace(before[section], **fields)}


def test_equal_machines_differ_in_nothing():
    assert told(machine(), copy.deepcopy(machine())) == []


def test_a_register_differs_by_field():
    before = machine()
    serial = before[SERIAL]
    assert isinstance(serial, SerialState)
    assert told(*changed(SERIAL, lcr=serial.lcr ^ 0x83)) == [
        f"{SERIAL}.lcr.WLS: {serial.lcr & 3} -> {serial.lcr & 3 ^ 3}",
        f"{SERIAL}.lcr.DLAB: {serial.lcr >> 7} -> {serial.lcr >> 7 ^ 1}",
    ]


def test_a_bit_of_a_register_that_has_no_name_is_told_with_all_of_it():
    vcpu = vcpu_state()
    sregs = msgspec.structs.replace(vcpu.sregs, cr0=vcpu.sregs.cr0 ^ 1 << 27)
    (only,) = told(*changed(VCPU, sregs=sregs))
    assert only.startswith(f"{VCPU}.sregs.cr0: 0x")


def test_bytes_differ_by_range():
    vcpu = vcpu_state()
    page = bytearray(vcpu.lapic)
    page[0x80] ^= 1
    page[0x82] ^= 1
    page[0x200] ^= 0xFF
    first, second = differences(*changed(VCPU, lapic=bytes(page)))
    assert (first.path, second.path) == (f"{VCPU}.lapic[128:131]", f"{VCPU}.lapic[512:513]")
    assert first.after == bytes(page[128:131])


def test_msrs_are_compared_by_index_wherever_they_stand():
    vcpu = vcpu_state()
    first, *rest = vcpu.msrs
    moved = [*rest, Msr(index=first.index, data=first.data + 1)]
    (only,) = differences(*changed(VCPU, msrs=moved))
    assert (only.path, only.before, only.after) == (f"{VCPU}.msrs[0].data", first.data, first.data + 1)
    (gone,) = differences(*changed(VCPU, msrs=rest))
    assert (gone.path, gone.before, gone.after) == (f"{VCPU}.msrs[0]", first, ABSENT)


def test_an_item_that_has_a_name_is_told_by_it() -> None:
    vcpu = vcpu_state()
    at, msr = next((at, msr) for at, msr in enumerate(vcpu.msrs) if msr.index in MSRS)
    msrs = [*vcpu.msrs]
    msrs[at] = Msr(index=msr.index, data=msr.data ^ 1)
    (only,) = differences(*changed(VCPU, msrs=msrs))
    assert str(only).startswith(f"{VCPU}.msrs[{at}].data {MSRS[msr.index]}: ")
    assert only.as_data()["name"] == MSRS[msr.index]
    (gone,) = differences(*changed(VCPU, msrs=msrs[:at] + msrs[at + 1 :]))
    assert (gone.name, gone.after) == (MSRS[msr.index], ABSENT)
    (other,) = differences(*changed(VCPU, mp_state=vcpu.mp_state + 1))
    assert "name" not in other.as_data()


def test_a_claim_put_in_or_taken_out_is_one_difference():
    held = machine()[CLAIMS]
    assert isinstance(held, ResourceAllocatorState)
    claims = held.claims
    (gone,) = differences(*changed(CLAIMS, claims=claims[:1] + claims[2:]))
    assert (gone.path, gone.before, gone.after) == (f"{CLAIMS}.claims[1]", claims[1], ABSENT)
    assert "absent" in str(gone)
    assert "after" not in gone.as_data()
    before, after = changed(CLAIMS, claims=claims[1:])
    (new,) = differences(after, before)
    assert (new.path, new.before, new.after) == (f"{CLAIMS}.claims[0]", ABSENT, claims[0])


def test_lists_too_long_to_be_searched_are_compared_by_place():
    long, longer = [0] * 3000, [0] * 3001
    assert list(_pairs(None, long, longer)) == [*((at, at) for at in range(3000)), (None, 3000)]


def test_a_section_that_only_one_machine_has_is_one_difference():
    before, after = machine(), machine()
    del after[SERIAL]
    (only,) = differences(before, after)
    assert (only.path, only.after) == (str(SERIAL), ABSENT)
    (only,) = differences(after, before)
    assert (only.path, only.before) == (str(SERIAL), ABSENT)


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_what_a_machine_did_since_it_was_made_is_found_both_ways(transport):
    fresh, busy = dict(fresh_machine(transport)), dict(busy_machine(transport))
    forth, back = list(differences(fresh, busy)), list(differences(busy, fresh))
    assert forth
    assert len(forth) == len(back)
    assert all(msgspec.json.encode(one.as_data()) for one in forth)


@given(old=st.binary(min_size=1, max_size=64), flips=st.sets(st.integers(0, 63)))
def test_the_ranges_of_bytes_put_into_the_first_give_the_second(old, flips):
    new = bytes(value ^ 1 if at in flips else value for at, value in enumerate(old))
    patched = bytearray(old)
    for start, stop in _ranges(old, new):
        patched[start:stop] = new[start:stop]
        assert old[start] != new[start]
        assert old[stop - 1] != new[stop - 1]
    assert patched == new
