"""Snapshots of working guests: a restored machine goes on from the same count, and no line is lost, repeated or split.

The demo guest prints lines of which line n depends on n alone, so its output before a snapshot with that of a restored
machine behind it must be the stream that it prints without any snapshot.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from itertools import islice

import pytest

from snapkit.guests import expected
from snapkit.state.schema import SectionId
from snapkit.state.serial_16550 import SerialState
from tests.guests.build import guest
from tests.kvm.harness import Rig, booted, restored

LINES_MAX = 200
SERIAL = SectionId("serial-16550", "0")


@cache
def uninterrupted() -> str:
    return "\n".join([expected.HELLO, *islice(expected.demo_lines(), LINES_MAX), ""])


def assert_uninterrupted(*parts: str) -> None:
    whole = "".join(parts)
    assert uninterrupted().startswith(whole), [part[-60:] for part in parts]


def digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def later(rig: Rig, lines: int) -> None:
    """Wait until the guest has begun *lines* more lines."""
    rig.tape.wait_for("tick", rig.tape.text.count("tick") + lines)


@pytest.mark.parametrize("cpu", ["host", "baseline"])
def test_a_restored_machine_goes_on_from_the_same_count(tmp_path, cpu):
    with booted(cpu=cpu) as rig:
        rig.run()
        rig.tape.wait_for("tick 30")
        path = rig.save(str(tmp_path / "demo.snap"))
        before = rig.tape.text
    with restored(path) as rig:
        rig.run()
        later(rig, 3)
        assert_uninterrupted(before, rig.tape.text)
        rig.healthy()


def test_the_machine_that_was_saved_goes_on_too(tmp_path):
    with booted() as rig:
        rig.run()
        for number in range(3):
            later(rig, 1)
            rig.save(str(tmp_path / f"{number}.snap"))
            rig.machine.resume()
        later(rig, 2)
        assert_uninterrupted(rig.tape.text)


def test_snapshots_at_random_moments_split_no_line_wrongly(tmp_path):
    rng = random.Random(11)
    path = str(tmp_path / "demo.snap")
    with booted() as rig:
        rig.run()
        parts: list[str] = []
        rig.tape.wait_grown(rng.randrange(1, 120))
        rig.save(path)
        parts.append(rig.tape.text)
    for _ in range(6):
        with restored(path) as rig:
            rig.run()
            rig.tape.wait_grown(rng.randrange(1, 60))
            rig.save(path)
            parts.append(rig.tape.text)
    assert_uninterrupted(*parts)


def test_three_machines_of_one_file_at_once_and_the_file_stays_as_it_is(tmp_path):
    with booted() as rig:
        rig.run()
        rig.tape.wait_for("tick 20")
        path = rig.save(str(tmp_path / "demo.snap"))
        before = rig.tape.text
    written = digest(path)
    with ExitStack() as stack:
        rigs = [stack.enter_context(restored(path)) for _ in range(3)]
        for rig in rigs:
            rig.run()
        for rig in rigs:
            later(rig, 3)
        for rig in rigs:
            assert_uninterrupted(before, rig.tape.text)
            rig.healthy()
    assert digest(path) == written


def test_a_snapshot_of_a_restored_machine_restores_for_three_generations(tmp_path):
    parts = []
    with booted() as rig:
        rig.run()
        later(rig, 2)
        path = rig.save(str(tmp_path / "0.snap"))
        parts.append(rig.tape.text)
    for generation in range(1, 4):
        with restored(path) as rig:
            rig.run()
            later(rig, 2)
            path = rig.save(str(tmp_path / f"{generation}.snap"))
            parts.append(rig.tape.text)
        assert_uninterrupted(*parts)


def smp_lines(text: str) -> Iterator[tuple[int, list[int]]]:
    for line, cpus, counts in re.findall(r"smp (\d+) cpus (\d+) counts ([\d ]+)\n", text):
        numbers = [int(count) for count in counts.split()]
        assert len(numbers) == int(cpus)
        yield int(line), numbers


def newest_counts(sent: bytes) -> list[int]:
    """Give the counts of the last line that is whole."""
    *_, (_, counts) = smp_lines(sent[-512:].decode())  # four lines of the longest
    return counts


def all_beyond(first: list[int], counts: list[int]) -> bool:
    return all(count > start for start, count in zip(first, counts, strict=True))


@pytest.mark.parametrize("vcpus", [1, 2, 4, 8])
def test_every_cpu_goes_on_counting_in_a_restored_machine(tmp_path, vcpus):
    with booted(guest("smp"), vcpus=vcpus) as rig:
        rig.run()
        rig.tape.wait_for(f" cpus {vcpus} ", 2)
        path = rig.save(str(tmp_path / "smp.snap"))
        before = rig.tape.text
    with restored(path) as rig:
        rig.run()
        rig.tape.wait_for(f" cpus {vcpus} ", 3)
        # with more CPUs than the host has, some wait for their turn at first
        first = next(counts for _, counts in smp_lines(rig.tape.text))
        rig.tape.wait(lambda sent: all_beyond(first, newest_counts(sent)), "every CPU to count")
        whole = before + rig.tape.text
        rig.healthy()
    lines = [line for line in smp_lines(whole) if len(line[1]) == vcpus]
    numbers = [number for number, _ in lines]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    for cpu in range(vcpus):
        counts = [line[1][cpu] for line in lines]
        assert counts == sorted(counts)


@pytest.mark.parametrize("cpu", ["host", "baseline"])
def test_the_local_apic_timer_goes_on_ticking(tmp_path, cpu):
    with booted(guest("lapic_timer"), cpu=cpu) as rig:
        rig.run()
        rig.tape.wait_for("lapic", 2)
        path = rig.save(str(tmp_path / "lapic.snap"))
        parts = [rig.tape.text]
    for _ in range(2):
        with restored(path) as rig:
            rig.run()
            later_lines = rig.tape.text.count("lapic") + 2
            rig.tape.wait_for("lapic", later_lines)
            path = rig.save(path)
            parts.append(rig.tape.text)
    lines = "".join(parts).splitlines()[:-1]
    assert lines == [f"lapic {10 * number}" for number in range(1, len(lines) + 1)]


def test_input_works_after_a_restore(tmp_path):
    with booted(guest("halt_input")) as rig:
        rig.run()
        rig.tape.wait_for("ready\n")
        assert rig.tape.type(b"a") == 1
        rig.tape.wait_for("got a\n")
        path = rig.save(str(tmp_path / "input.snap"))
    with restored(path) as rig:
        rig.run()
        for byte in (b"b", b"c"):
            assert rig.tape.type(byte) == 1
            rig.tape.wait_for(f"got {byte.decode()}\n")
        assert rig.tape.text == "got b\ngot c\n"


def test_a_byte_that_waits_in_the_receiver_is_delivered_once_after_the_restore(tmp_path):
    with booted(guest("halt_input")) as rig:
        rig.run()
        rig.tape.wait_for("ready\n")
        rig.machine.pause()
        assert rig.tape.type(b"z") == 1  # the interrupt is raised, the guest is not there to take it
        saved = rig.machine.save()[SERIAL]
        assert isinstance(saved, SerialState)
        assert saved.rx == b"z"
        path = rig.save(str(tmp_path / "waiting.snap"))
        rig.machine.resume()
        rig.tape.wait_for("got z\n")
    for _ in range(2):
        with restored(path) as rig:
            rig.run()
            rig.tape.wait_for("got z\n")
            assert rig.tape.type(b"y") == 1
            rig.tape.wait_for("got y\n")
            assert rig.tape.text == "got z\ngot y\n"


def test_a_byte_that_the_chip_has_no_room_for_is_offered_again_when_it_has():
    with booted(guest("halt_input")) as rig:
        rig.run()
        rig.tape.wait_for("ready\n")
        rig.machine.pause()
        assert rig.tape.type(b"12") == 1  # the FIFO is off: one byte's room
        rig.machine.resume()
        rig.tape.wait_for("got 1\n")
        assert rig.tape.type(b"2") == 1
        rig.tape.wait_for("got 2\n")


def test_the_demo_guest_powers_off_when_it_is_told_to_after_a_restore(tmp_path):
    with booted() as rig:
        rig.run()
        rig.tape.wait_for("tick 10")
        path = rig.save(str(tmp_path / "demo.snap"))
    with restored(path) as rig:
        rig.run()
        assert rig.tape.type(b"q") == 1
        stop = rig.machine.run()
        assert str(stop.reason) == "the guest powered off"
        assert rig.tape.text.endswith("bye\n")
