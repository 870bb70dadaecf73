"""What fails on KVM of aarch64 leaves nothing behind: a boot, a restore and a save, each with one system call failing.

A slice; `make soak` has every register's call fail as well.
"""

import json
from typing import Any

import pytest

from snapkit.guests.build import AARCH64
from tests.guests.build import guest
from tests.lab.outer import Outer

pytestmark = pytest.mark.lab

SLICE_S, SOAK_S = 600, 3000
MAKING = {"KVM_CREATE_VM", "KVM_CREATE_VCPU", "KVM_CREATE_DEVICE", "KVM_ARM_VCPU_INIT", "KVM_SET_DEVICE_ATTR"}
LOADING = MAKING | {"KVM_SET_ONE_REG", "KVM_SET_VCPU_EVENTS", "KVM_SET_MP_STATE"}
SAVING = {"KVM_GET_ONE_REG", "KVM_GET_DEVICE_ATTR", "KVM_SET_DEVICE_ATTR", "KVM_GET_VCPU_EVENTS", "KVM_GET_MP_STATE"}


def failed(outer: Outer, *words: str, timeout: float) -> dict[str, Any]:
    """Have calls fail inside; what each of the three made of it."""
    folder = outer.work / "failure"
    made = outer.run(["sh", "-ec", f"rm -rf {folder}; mkdir -p {folder}"], timeout=60)
    assert made.code == 0, made
    command = [outer.python, "-m", "tests.lab.inside_failure", guest("lpi", target=AARCH64), str(folder)]
    done = outer.run([*command, *words], timeout=timeout)
    assert done.code == 0, done
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["boot"]["failed"].keys() >= MAKING
    assert found["restore"]["failed"].keys() >= LOADING
    assert found["save"]["failed"].keys() >= SAVING
    return found


def test_a_boot_a_restore_and_a_save_with_a_failing_call_leave_nothing_behind(outer_aarch64: Outer) -> None:
    failed(outer_aarch64, timeout=SLICE_S)


@pytest.mark.soak
@pytest.mark.timeout(4000)
def test_each_call_of_them_may_fail(outer_aarch64: Outer) -> None:
    found = failed(outer_aarch64, "whole", timeout=SOAK_S)
    for one in found.values():
        assert sum(one["failed"].values()) == one["calls"]
