"""Hundreds of machines in one process, one after the other or at once, leave nothing behind: fds, threads, memory return.

Mappings, locks, children and sockets as well: all that the census knows.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from snapkit.units import MIB
from snapkit.vmm.parts.fresh import Asked
from tests.guests.build import guest
from tests.kvm.harness import PATIENCE_S, Census, booted, resident_len, restored

ROUNDS = 100
RESTORES = 200
AT_ONCE = 50
WARM_UP = 10
DEVICE_ROUNDS, DEVICE_WARM_UP = 12, 3


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


def test_two_hundred_restores_return_to_the_start(tmp_path, census: Census):
    path = str(tmp_path / "demo.snap")
    with booted(vcpus=2) as rig:
        rig.run()
        rig.tape.wait_for("tick 10")
        rig.save(path)
    for turn in range(WARM_UP + RESTORES):
        if turn == WARM_UP:
            census.check()
            start = resident_len()
        with restored(path) as rig:
            rig.machine.resume()
            rig.machine.pause()
    census.check()
    assert resident_len() - start < 8 * MIB


def test_fifty_machines_of_one_file_at_once_return_to_the_start(tmp_path, census: Census):
    """Each is restored, runs and ends on a thread of its own; none runs before all are there."""
    path = str(tmp_path / "demo.snap")
    with booted() as rig:
        rig.run()
        rig.tape.wait_for("tick 10")
        rig.save(path)
    all_there = threading.Barrier(AT_ONCE, timeout=PATIENCE_S)

    def live(_number: int) -> None:
        with restored(path) as rig:
            all_there.wait()
            rig.run()
            rig.tape.wait_grown(1)
            rig.healthy()

    def all_at_once() -> None:
        with ThreadPoolExecutor(AT_ONCE) as threads:
            assert len(list(threads.map(live, range(AT_ONCE)))) == AT_ONCE

    all_at_once()  # the allocator keeps what so many threads once needed
    census.check()
    start = resident_len()
    for _ in range(2):
        all_at_once()
        census.check()
    assert resident_len() - start < 8 * MIB


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_machines_with_devices_at_work_return_to_the_start(tmp_path, census: Census, transport):
    image, uds = str(tmp_path / "base.img"), str(tmp_path / "v.sock")
    with open(image, "wb") as file:
        file.truncate(MIB)
    devices = (
        Asked("virtio-block", "root", {"path": image, "overlay": str(tmp_path)}),
        Asked("virtio-rng", "rng"),
        Asked("virtio-balloon", "balloon"),
        Asked("virtio-vsock", "v0", {"cid": "3", "uds": uds}),
    )
    path = str(tmp_path / "devices.snap")
    for turn in range(DEVICE_WARM_UP + DEVICE_ROUNDS):
        if turn == DEVICE_WARM_UP:
            census.check()
            start = resident_len()
        with booted(guest("devices"), memory=4 * MIB, devices=devices, transport=transport) as rig:
            rig.run()
            rig.serve_until("io 1 ")
            rig.save(path)
        with restored(path) as rig:
            rig.run()
            rig.serve_until("io 2 ")
        for name in os.listdir(tmp_path):
            if name.endswith(".overlay"):
                os.unlink(tmp_path / name)
        os.unlink(path)
    census.check()
    assert os.listdir(tmp_path) == ["base.img"]
    assert resident_len() - start < 8 * MIB
