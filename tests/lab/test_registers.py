"""What only some CPUs have goes across a snapshot: SVE registers and the keys of pointer authentication; KVM without VHE.

Each CPU of the guest runs `inside_registers.c`, which keeps values in all of SVE's registers and signed pointers in others
while it computes, and knows when one of them has become something else. The kernel is no help to it: it loads a thread's
SVE state and most of its keys only when it switches threads, and there is one thread to a CPU.
"""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from snapkit.state.spec.aarch64 import register_name
from tests.lab import guest
from tests.lab.architecture import AARCH64, NO_VHE_CPU, PAUTH_CPU
from tests.lab.guest import GuestFiles
from tests.lab.kernels import Kernel
from tests.lab.outer import Outer
from tests.lab.packages import run_tool
from tests.lab.stage import Stage
from tests.lab.test_linux import boot, cmdline, faults

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1800)]

RUN_S = 200  # ten times the usual
SOURCE = Path(__file__).with_name("inside_registers.c")
WORKER = "#!/bin/busybox sh\nexec /bin/registers $1 $count\n"
ROUNDS, SNAPSHOTS_AT = 24, range(6, 12)
LINE = re.compile(r"^R(\d) (\d+) (\d+) (\d+)$")
V_LEN = 16
KEYS = tuple(f"AP{key}Key" for key in ("IA", "IB", "DA", "DB", "GA"))


def program(folder: Path) -> bytes:
    binary = folder / "registers"
    options = ["-O1", "-march=armv8.3-a+sve", "-static", "-nostdlib", "-ffreestanding", "-fno-tree-vectorize"]
    run_tool([AARCH64.compiler, *options, "-o", str(binary), str(SOURCE)], timeout=60)
    return binary.read_bytes()


def staged(outer: Outer, kernels: tuple[Kernel, Kernel], initramfs: bytes) -> Stage:
    initrd = outer.share / "guest.cpio.gz"
    initrd.write_bytes(initramfs)
    return Stage(outer, kernels, GuestFiles(kernels[1].packed, kernels[1].plain, initrd))


@pytest.fixture
def with_sve(kernels_aarch64: tuple[Kernel, Kernel], tmp_path: Path) -> Iterator[Stage]:
    root = guest.initramfs(AARCH64, kernels_aarch64[1], {"registers": program(tmp_path), "keeper": WORKER.encode()})
    with Outer(AARCH64, cpu=PAUTH_CPU) as outer:
        yield staged(outer, kernels_aarch64, root)


@pytest.fixture
def without_vhe(kernels_aarch64: tuple[Kernel, Kernel]) -> Iterator[Stage]:
    with Outer(AARCH64, cpu=NO_VHE_CPU) as outer:
        yield staged(outer, kernels_aarch64, guest.initramfs(AARCH64, kernels_aarch64[1]))


def across(stage: Stage, line: str, when: str) -> tuple[str, Path]:
    """Save a guest when it prints *when* and restore it; give what it printed in both lives, and the file."""
    file = stage.outer.work / "registers.snap"
    words = [*boot(stage, line), "--snapshot-when", when, "--snapshot-to", str(file)]
    first = stage.outer.run(stage.outer.snapkit(*words), timeout=RUN_S)
    assert first.code == 0, first
    second = stage.outer.run(stage.outer.snapkit("restore", file), timeout=RUN_S)
    assert second.code == 0, second
    return first.stdout + second.stdout, file


def registers(stage: Stage, file: Path, cpu: int) -> dict[str, Any]:
    """Give the registers that *file* has of a CPU, by name: numbers, or bytes in base64."""
    result = stage.outer.run(stage.outer.snapkit("inspect", file, f"vcpu-aarch64/{cpu}", "--json"), timeout=RUN_S)
    assert result.code == 0, result
    state = json.loads(result.stdout)["value"]
    return {register_name(entry["id"]): entry["value"] for entry in state["regs"] + state["vectors"]}


def vectors(held: dict[str, Any], vl: int) -> bytes:
    """Give Z0 to Z31 as far as the guest sees them."""
    return b"".join(base64.b64decode(held[f"Z{n}"])[:vl] for n in range(32))


def has_keys(held: dict[str, Any]) -> bool:
    """Say whether all keys are a program's: a thread of the kernel has none, and leaves the vectors as they were."""
    return all(held[f"{key}Lo_EL1"] | held[f"{key}Hi_EL1"] for key in KEYS)


def kept(cpu: int, n: int, vl: int) -> bytes:
    """Give what the program has in Z0 to Z31 in round *n*."""
    return bytes((i * 7 + i // 251 + n * 13 + cpu * 101 + 1) & 0xFF for i in range(32 * vl))


def caught(with_sve: Stage, when: str) -> bool:
    """Save a guest when it prints *when* and have it go on; give whether the file shows a CPU amid its computation, with keys."""
    console, file = across(with_sve, cmdline(with_sve, "count", count=ROUNDS, worker="keeper"), when)
    found = [tuple(map(int, match.groups())) for match in map(LINE.match, guest.lines(console)) if match]
    for number in (0, 1):
        rounds = [(n, wrong) for cpu, n, _, wrong in found if cpu == number]
        assert rounds == [(n, 0) for n in range(1, ROUNDS + 1)], console
    (vl,) = {length for _, _, length, _ in found}
    assert vl > V_LEN
    held = [registers(with_sve, file, cpu) for cpu in (0, 1)]
    return any(
        has_keys(of_cpu) and vectors(of_cpu, vl) == kept(cpu, n, vl)
        for cpu, of_cpu in enumerate(held)
        for n in range(1, ROUNDS)
    )


def test_sve_registers_and_signed_pointers_go_on_across_a_snapshot(with_sve: Stage) -> None:
    # What a CPU has that is just printing is nobody's any more, and now and then both are: then a later round is saved.
    assert any(caught(with_sve, f"R0 {n} ") for n in SNAPSHOTS_AT)


def test_a_guest_goes_on_where_the_host_has_no_vhe(without_vhe: Stage) -> None:
    console, _ = across(without_vhe, cmdline(without_vhe, "count", count=20), "W0 5 ")
    assert faults(console, count=20, work=guest.WORK) == []
