"""A hundred machines in one process leave nothing behind: fds, threads, mappings and memory return to the start."""

from snapkit.units import MIB
from tests.kvm.harness import Census, booted, restored

ROUNDS = 100
WARM_UP = 10


def resident_len() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def test_a_hundred_boots_return_to_the_start(census: Census):
    for turn in range(WARM_UP + ROUNDS):
        if turn == WARM_UP:
            census.check()
            start = resident_len()
        with booted(vcpus=2) as rig:
            rig.run()
            rig.tape.wait_for("hello")
    census.check()
    assert resident_len() - start < 8 * MIB  # one machine that stayed would keep more a round than this in all


def test_a_hundred_restores_return_to_the_start(tmp_path, census: Census):
    path = str(tmp_path / "demo.snap")
    with booted(vcpus=2) as rig:
        rig.run()
        rig.tape.wait_for("tick 10")
        rig.save(path)
    for turn in range(WARM_UP + ROUNDS):
        if turn == WARM_UP:
            census.check()
            start = resident_len()
        with restored(path) as rig:
            rig.machine.resume()
            rig.machine.pause()
    census.check()
    assert resident_len() - start < 8 * MIB
