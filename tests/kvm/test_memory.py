"""Guest RAM of every shape boots, and KVM is told about it slot by slot, with a hole below 4 GiB."""

import pytest

from snapkit import host
from snapkit.units import GIB, MIB, Gpa, Hva
from snapkit.vmm.kvm.vm import VmFd
from tests.guests.build import guest
from tests.kvm.harness import booted, resident_len, restored

HOLE_START, HOLE_END = 0xC000_0000, 0x1_0000_0000  # the address map: RAM up to 3 GiB, then from 4 GiB
SHAPES = {
    2 * MIB: [(0, 2 * MIB)],
    64 * MIB: [(0, 64 * MIB)],
    3 * GIB: [(0, HOLE_START)],
    6 * GIB: [(0, HOLE_START), (HOLE_END, 3 * GIB)],
}


@pytest.mark.parametrize("length", SHAPES)
def test_the_guest_finds_memory_of_every_shape_and_it_holds_what_was_written(length):
    before = resident_len()
    with booted(guest("memory_probe"), memory=length) as rig:
        assert [(region.gpa, region.length) for region in rig.machine._need_memory().regions] == SHAPES[length]
        rig.run()
        rig.tape.wait_for("verify 2 OK")
        rig.healthy()
        assert "BAD" not in rig.tape.text
        last_low = min(length, HOLE_START) - 4
        assert f"probe {last_low:08x}\n" in rig.tape.text
        assert resident_len() - before < 64 * MIB  # sparse: what nobody touched costs nothing


@pytest.mark.parametrize("length", SHAPES)
def test_each_region_is_one_slot_and_all_slots_come_before_the_irqchip(length, monkeypatch):
    slots: list[tuple[int, int, int, int]] = []
    real = VmFd.set_memory_slot

    def set_memory_slot(self: VmFd, slot: int, gpa: Gpa, hva: Hva, length: int) -> None:
        slots.append((slot, gpa, hva, length))
        real(self, slot, gpa, hva, length)

    monkeypatch.setattr(VmFd, "set_memory_slot", set_memory_slot)
    calls: list[str] = []
    with host.inject(lambda call, _arguments: calls.append(call)), booted(memory=length) as rig:
        regions = rig.machine._need_memory().regions
    assert slots == [(slot, region.gpa, region.hva, region.length) for slot, region in enumerate(regions)]
    last_slot = max(place for place, call in enumerate(calls) if call == "KVM_SET_USER_MEMORY_REGION")
    assert last_slot < calls.index("KVM_CREATE_IRQCHIP") < calls.index("KVM_CREATE_VCPU")


@pytest.mark.parametrize("verify", [False, True], ids=["mapped", "copied"])
def test_memory_on_both_sides_of_the_hole_comes_back(tmp_path, verify):
    words = {gpa: gpa.to_bytes(8, "little") for gpa in (0x30_0000, HOLE_START - 8, HOLE_END, HOLE_END + 3 * GIB - 8)}
    with booted(guest("memory_probe"), memory=6 * GIB) as rig:
        memory = rig.machine._need_memory()
        for gpa, word in words.items():
            memory.write(gpa, word)
        path = rig.save(str(tmp_path / "six.snap"))
    with restored(path, verify_memory=verify) as rig:
        memory = rig.machine._need_memory()
        assert {gpa: memory.read(gpa, 8) for gpa in words} == words
        assert memory.ram == SHAPES[6 * GIB]
        rig.run()
        rig.tape.wait_for("verify 1 OK")
        assert "BAD" not in rig.tape.text
