"""The generation id: where it is written, when the guest is told, and what is refused."""

from itertools import count

import pytest

from snapkit.errors import ConfigError, ImageError
from snapkit.state.codec import encode
from snapkit.state.vmgenid import VmgenidState
from snapkit.vmm.arch.x86_64.layout import VMGENID_GPA
from snapkit.vmm.devices.vmgenid import Vmgenid, VmgenidArgs, fresh_state

FIRST = bytes(range(16))


class Outside:
    """1 MiB of RAM, one edge pin, random bytes that count; *journal* has what was done, in order."""

    edge = True

    def __init__(self) -> None:
        self.ram = bytearray(1 << 20)
        self.journal: list[object] = []
        self._numbers = count(1)

    def hva(self, gpa: int, length: int) -> int:
        if gpa + length > len(self.ram):
            raise ConfigError("outside RAM")
        return gpa

    def write(self, gpa: int, payload: bytes) -> None:
        self.hva(gpa, len(payload))
        self.ram[gpa : gpa + len(payload)] = payload
        self.journal.append(("write", gpa, payload))

    def set_level(self, level: bool) -> None:
        self.journal.append(level)

    def urandom(self, length: int) -> bytes:
        return bytes([next(self._numbers)]) * length

    @property
    def args(self) -> VmgenidArgs:
        return VmgenidArgs(memory=self, line=self, urandom=self.urandom)


@pytest.fixture
def outside() -> Outside:
    return Outside()


def test_fresh_id_is_placed_without_an_interrupt(outside):
    device = Vmgenid.restore(fresh_state(VMGENID_GPA, 5, FIRST), outside.args)
    assert outside.journal == []
    device.place()
    assert outside.journal == [("write", 0xF_F000, FIRST)]
    assert outside.ram[0xF_F000:0xF_F010] == FIRST
    assert not any(outside.ram[0xF_F010:])  # the reset entry behind it is not touched


def test_announcement_writes_a_new_id_before_one_edge(outside):
    device = Vmgenid.restore(fresh_state(VMGENID_GPA, 5, FIRST), outside.args)
    device.announce()
    assert outside.journal == [("write", 0xF_F000, b"\x01" * 16), True, False]
    device.announce()
    assert outside.journal[3:] == [("write", 0xF_F000, b"\x02" * 16), True, False]
    assert device.save() == VmgenidState(gpa=0xF_F000, gsi=5, generation=b"\x02" * 16)


def test_restore_and_resync_touch_neither_memory_nor_pin(outside):
    state = fresh_state(VMGENID_GPA, 5, FIRST)
    device = Vmgenid.restore(state, outside.args)
    device.resync()
    assert outside.journal == []
    assert encode(device.save()) == encode(state)


def test_saved_state_is_detached_from_the_device(outside):
    state = fresh_state(VMGENID_GPA, 5, FIRST)
    device = Vmgenid.restore(state, outside.args)
    saved = device.save()
    device.announce()
    assert saved.generation == FIRST
    assert state.generation == FIRST


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("gpa", 0xF_F004, "vmgenid.gpa is 0xff004, must be a multiple of 8"),
        ("gpa", (1 << 20) - 8, "vmgenid.gpa is 0xffff8, must be in RAM"),
        ("gpa", (1 << 64) - 8, "vmgenid.gpa is 0xfffffffffffffff8, must be in RAM"),
        ("gsi", 1 << 16, "vmgenid.gsi is 65536"),
        ("generation", bytes(15), "vmgenid.generation is "),
    ],
)
def test_state_that_no_generation_id_has_is_refused_by_its_field(outside, field, value, complaint):
    state = VmgenidState(gpa=VMGENID_GPA, gsi=5, generation=FIRST)
    setattr(state, field, value)
    with pytest.raises(ImageError) as refused:
        Vmgenid.restore(state, outside.args)
    assert complaint in str(refused.value)
    assert outside.journal == []
