"""The judge sees what it is there for: each fault, planted in the reading of a good file, is held against it."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

import snapkit.restore.check as checks
import snapkit.restore.restore as restoring
from snapkit.errors import HostError, ImageError, InternalError
from snapkit.restore import front
from tests.mutants.draft import Draft
from tests.mutants.judge import CPU_MOST_S, Judge
from tests.mutants.stock import stock

LEFT: list[int] = []


def raises(error: BaseException) -> Callable[[Path], None]:
    def fault(_path: Path) -> None:
        raise error

    return fault


def leaves_a_descriptor(path: Path) -> None:
    LEFT.append(os.open(path, os.O_RDONLY))


def writes_to_the_file(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"x")


def leaves_a_file(path: Path) -> None:
    path.with_name("left").touch()


def opens_another_file_to_write(_path: Path) -> None:
    os.close(os.open(__file__, os.O_RDWR))


def takes_long(_path: Path) -> None:
    end = time.thread_time() + CPU_MOST_S
    while time.thread_time() < end:
        sum(range(10_000))


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (raises(ZeroDivisionError("division by zero")), "not a typed refusal"),
    (raises(InternalError("a section is not there")), "not a typed refusal"),
    (raises(ImageError("it is wrong")), "names no place"),
    (raises(ImageError("machine/0 is wrong")), "does not begin with the file"),
    (raises(HostError("KVM_CREATE_VM", 12)), "the host failed for what the file says"),
    (leaves_a_descriptor, "file descriptors were left open"),
    (writes_to_the_file, "the file was changed"),
    (leaves_a_file, "came or went"),
    (opens_another_file_to_write, "were opened for writing"),
    (takes_long, "took too long"),
]


@pytest.mark.parametrize(("fault", "said"), FAULTS, ids=[said.replace(" ", "-") for _, said in FAULTS])
def test_a_fault_is_held_against_the_file(tmp_path, monkeypatch, fault, said):
    path, real = Draft(stock()[0], Random(0)).write(tmp_path / "good.snap"), checks.check

    def check(*arguments: Any, **named: Any) -> Any:
        fault(path)
        return real(*arguments, **named)

    monkeypatch.setattr(restoring, "check", check)
    front.forget()  # a file that is known is not checked again
    with Judge(tmp_path, kvm=False).at_work() as judge:
        complaints = judge.judge(path, {}).complaints
    while LEFT:
        os.close(LEFT.pop())
    assert any(said in complaint for complaint in complaints), complaints
