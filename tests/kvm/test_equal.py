"""When two saves are equal: a machine is restored up to *load* and saved again, or saved twice while it is paused."""

import random
import threading

import pytest

from snapkit import host
from snapkit.restore.equality import Elapsed, differences, elapsed
from snapkit.restore.image import Image
from snapkit.state.schema import SectionId, State
from snapkit.vmm.run_state import RunState
from tests.guests.build import guest
from tests.kvm.harness import DEMO, Rig, booted, restored

MACHINES = [("demo", 1), ("demo", 2), ("smp", 1), ("smp", 2), ("lapic_timer", 1), ("lapic_timer", 2)]


def tsc_khz(rig: Rig) -> int:
    first = rig.vcpus[0]
    return first.thread.call(first.state.fd.get_tsc_khz)


def passed(since_ns: int, khz: int) -> Elapsed:
    return elapsed(host.monotonic_ns() - since_ns, tsc_khz=khz)


def states_of(path: str) -> dict[SectionId, State]:
    with Image.open(path) as image:
        return image.sections().states


def linger(rng: random.Random) -> None:
    """Let the clocks go on for a while that differs from turn to turn, up to four timer periods."""
    threading.Event().wait(rng.uniform(0, 0.04))


@pytest.mark.parametrize("cpu", ["host", "baseline"])
@pytest.mark.parametrize(("name", "vcpus"), MACHINES)
def test_restoring_up_to_load_and_saving_again_gives_an_equal_save(tmp_path, name, vcpus, cpu):
    rng = random.Random(f"{name} {vcpus} {cpu}")
    kernel = DEMO if name == "demo" else guest(name)
    path = str(tmp_path / "equal.snap")
    with booted(kernel, vcpus=vcpus, cpu=cpu) as rig:
        khz = tsc_khz(rig)
        rig.machine.resume()
        for _ in range(3):
            rig.tape.wait_grown(rng.randrange(1, 60))
            linger(rng)
            rig.save(path)
            before = states_of(path)
            rig.machine.resume()
            start_ns = host.monotonic_ns()
            with restored(path, before="activate") as copy:
                linger(rng)
                copy.machine.run_state = RunState.PAUSED  # nothing was activated; only `save` looks at this
                after = copy.machine.save()
                assert differences(before, after, passed(start_ns, khz)) == []


@pytest.mark.parametrize("cpu", ["host", "baseline"])
@pytest.mark.parametrize(("name", "vcpus"), MACHINES)
def test_saving_twice_while_paused_gives_equal_saves(name, vcpus, cpu):
    rng = random.Random(f"{name} {vcpus} {cpu} paused")
    with booted(DEMO if name == "demo" else guest(name), vcpus=vcpus, cpu=cpu) as rig:
        khz = tsc_khz(rig)
        for _ in range(4):
            rig.machine.resume()
            rig.tape.wait_grown(rng.randrange(1, 60))
            linger(rng)
            rig.machine.pause()
            start_ns = host.monotonic_ns()
            before = rig.machine.save()
            linger(rng)
            after = rig.machine.save()
            assert differences(before, after, passed(start_ns, khz)) == []


def test_a_machine_that_was_restored_but_never_ran_is_saved_as_it_was(tmp_path):
    path, again = str(tmp_path / "first.snap"), str(tmp_path / "second.snap")
    with booted(guest("lapic_timer"), vcpus=2) as rig:
        khz = tsc_khz(rig)
        rig.run()
        rig.tape.wait_for("lapic")
        rig.save(path)
    start_ns = host.monotonic_ns()
    with restored(path) as rig:
        rig.save(again)
        assert differences(states_of(path), states_of(again), passed(start_ns, khz)) == []
        clock = SectionId("kvm-clock", "0")
        assert states_of(again)[clock] == states_of(path)[clock], "time passed for a guest that did not run"


def test_the_comparison_sees_a_machine_that_went_on():
    with booted() as rig:
        khz = tsc_khz(rig)
        rig.run()
        rig.tape.wait_for("tick 10")
        rig.machine.pause()
        start_ns = host.monotonic_ns()
        before = rig.machine.save()
        rig.machine.resume()
        rig.tape.wait_grown(80)
        rig.machine.pause()
        found = differences(before, rig.machine.save(), passed(start_ns, khz))
        assert any(finding.path.startswith("regs.") for finding in found)
