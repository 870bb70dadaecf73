"""No exit in flight is lost by a pause or a snapshot: what devices see stays gap-free and unrepeated.

Two guests keep an exit in flight nearly always: one stores over the end of a page where no memory is (two MMIO exits a
store), the other moves blocks by `rep outsb` and `rep insb` (exits of up to 4096 bytes). The devices here are numbered
streams: the first value out of order fails the test with its place.
"""

import random
import threading
from collections.abc import Callable

import pytest

from tests.guests.build import guest
from tests.guests.streams import IN_PORT, OUT_PORT, string_bytes
from tests.kvm.harness import PATIENCE_S, Rig, booted, restored

CROSS_START, CROSS_LEN = 0xD000_0000, 0x2000


class Counted:
    """Something that counts accesses and lets others wait for them, or act inside one."""

    def __init__(self) -> None:
        self.count = 0
        self.inside: Callable[[], None] = lambda: None
        self.with_it: Counted | None = None
        self._more = threading.Condition()

    def _tick(self) -> None:
        with self._more:
            self.count += 1
            self._more.notify_all()
        if self.with_it is not None:
            self.with_it._tick()
        self.inside()

    def wait_more(self, by: int) -> None:
        end = self.count + by
        with self._more:
            assert self._more.wait_for(lambda: self.count >= end, PATIENCE_S), f"stands at {self.count}"


class CrossRecorder(Counted):
    """Puts the fragments of stores together again: 1, 2, 3, ... or it says where not."""

    def __init__(self, last: int = 0, low: bytes = b"") -> None:
        super().__init__()
        self.last, self.low = last, low
        self.wrong: list[str] = []

    def read(self, offset: int, length: int) -> int:
        self.wrong.append(f"read at {offset:#x}")
        return 0

    def write(self, offset: int, length: int, value: int) -> None:
        fragment = value.to_bytes(length, "little")
        if offset + length == 0x1000 and not self.low:
            self.low = fragment
        elif offset == 0x1000 and self.low:
            got = int.from_bytes(self.low + fragment, "little")
            if got != self.last + 1:
                self.wrong.append(f"{got} after {self.last}")
            self.last, self.low = got, b""
        else:
            self.wrong.append(f"fragment of {length} at {offset:#x} after {self.last}, {self.low!r} held")
        self._tick()


class OutRecorder(Counted):
    """Takes the numbered stream out of the guest."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.at = at
        self.wrong: list[str] = []

    def read(self, offset: int, length: int) -> int:
        self.wrong.append("read")
        return 0

    def write(self, offset: int, length: int, value: int) -> None:
        if length != 1 or value != string_bytes(self.at, 1)[0]:
            self.wrong.append(f"{length} bytes {value:#x} in the place of byte {self.at}")
        self.at += 1
        self._tick()


class InSupplier(Counted):
    """Gives the numbered stream to the guest, which checks it."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.at = at

    def read(self, offset: int, length: int) -> int:
        value = string_bytes(self.at, 1)[0]
        self.at += 1
        self._tick()
        return value

    def write(self, offset: int, length: int, value: int) -> None:
        pass


def attach_cross(rig: Rig, last: int = 0, low: bytes = b"") -> CrossRecorder:
    recorder = CrossRecorder(last, low)
    rig.vm.mmio.insert(CROSS_START, CROSS_LEN, recorder)
    return recorder


def attach_streams(rig: Rig, out_at: int = 0, in_at: int = 0) -> tuple[OutRecorder, InSupplier]:
    recorder, supplier = OutRecorder(out_at), InSupplier(in_at)
    rig.vm.ports.insert(OUT_PORT, 1, recorder)
    rig.vm.ports.insert(IN_PORT, 1, supplier)
    return recorder, supplier


def pause_inside(rig: Rig, device: Counted) -> None:
    """Ask for a pause in the middle of the next exit, from the vCPU's own thread, and wait until it is paused."""
    asked = threading.Event()

    def ask() -> None:
        device.inside = lambda: None
        rig.vcpus[0].thread.pause()
        asked.set()

    device.inside = ask
    assert asked.wait(PATIENCE_S)
    rig.machine.pause()


@pytest.mark.parametrize("address", ["0xd0000ffdu", "0xd0000ffeu", "0xd0000fffu"], ids=["3+1", "2+2", "1+3"])
def test_stores_over_a_page_end_survive_hundreds_of_pauses(address):
    rng = random.Random(address)
    with booted(guest("page_cross", ADDRESS=address)) as rig:
        recorder = attach_cross(rig)
        for _ in range(100):
            rig.machine.resume()
            recorder.wait_more(rng.randrange(1, 12))
            rig.machine.pause()
            assert recorder.wrong == []
            assert recorder.low == b"", "a pause left half of a store behind"
        rig.healthy()
        assert recorder.last > 100


def test_a_pause_asked_for_between_two_fragments_waits_for_the_second():
    with booted(guest("page_cross")) as rig:
        recorder = attach_cross(rig)
        for _ in range(50):
            rig.machine.resume()
            pause_inside(rig, recorder)
            assert (recorder.wrong, recorder.low) == ([], b"")
        rig.healthy()


def test_string_instructions_survive_hundreds_of_pauses():
    rng = random.Random(1)
    with booted(guest("string_io")) as rig:
        recorder, supplier = attach_streams(rig)
        either = recorder.with_it = supplier.with_it = Counted()
        for _ in range(200):
            rig.machine.resume()
            either.wait_more(rng.randrange(1, 200))
            rig.machine.pause()
            assert recorder.wrong == []
        rig.machine.resume()
        rig.tape.wait_for("OK\n")
        assert "BAD" not in rig.tape.text
        rig.healthy()
        rig.machine.pause()  # the two stand still and belong together
        assert abs(recorder.at - supplier.at) <= 4096


@pytest.mark.parametrize("which", [0, 1], ids=["outs", "ins"])
def test_a_pause_asked_for_inside_a_string_instruction_loses_nothing(which):
    with booted(guest("string_io")) as rig:
        devices = attach_streams(rig)
        for _ in range(20):
            rig.machine.resume()
            pause_inside(rig, devices[which])
            assert devices[0].wrong == []
        rig.machine.resume()
        lines = rig.tape.text.count("OK\n")
        rig.tape.wait_for("OK\n", lines + 2)
        assert "BAD" not in rig.tape.text


def test_stores_over_a_page_end_go_on_without_a_gap_in_restored_machines(tmp_path):
    rng = random.Random(2)
    last = 0
    path = str(tmp_path / "cross.snap")
    with booted(guest("page_cross")) as rig:
        recorder = attach_cross(rig)
        rig.run()
        recorder.wait_more(301)
        pause_inside(rig, recorder)
        rig.save(path)
        last = recorder.last
    for _ in range(6):
        with restored(path) as rig:
            recorder = attach_cross(rig, last)
            rig.run()
            recorder.wait_more(rng.randrange(1, 60))
            if rng.random() < 0.5:
                pause_inside(rig, recorder)
            rig.save(path)
            assert recorder.wrong == []
            assert recorder.low == b""
            assert recorder.last > last
            last = recorder.last


def test_string_instructions_go_on_without_a_gap_in_restored_machines(tmp_path):
    rng = random.Random(3)
    path = str(tmp_path / "string.snap")
    with booted(guest("string_io")) as rig:
        devices = attach_streams(rig)
        rig.run()
        devices[0].wait_more(3000)
        pause_inside(rig, devices[0])
        rig.save(path)
    for turn in range(8):
        places = devices[0].at, devices[1].at
        with restored(path) as rig:
            devices = attach_streams(rig, *places)
            rig.run()
            devices[turn % 2].wait_more(rng.randrange(1, 4000))
            if rng.random() < 0.5:
                pause_inside(rig, devices[turn % 2])
            rig.save(path)
            assert devices[0].wrong == []
            assert "BAD" not in rig.tape.text
    assert devices[1].at > places[1] - 1
    with restored(path) as rig:
        attach_streams(rig, devices[0].at, devices[1].at)
        rig.run()
        rig.tape.wait_for("OK\n", 2)
        assert "BAD" not in rig.tape.text
