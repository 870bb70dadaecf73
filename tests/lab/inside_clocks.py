"""Runs inside the outer machine: restores the file that it is given under each policy, and prints where clocks went on.

One line of JSON per policy: of kvm-clock (ns) and of every vCPU's counter (cycles) what the file says and what KVM says
right after the first resume, the counters' offsets and rate, and how long that took at most.
"""

import json
import sys
import threading
from typing import Any

from snapkit import host
from snapkit.restore.pipeline import Timeline, run_steps
from snapkit.restore.restore import prepare
from snapkit.restore.target import Target
from snapkit.state.kvm_clock import KvmClockState
from snapkit.state.vcpu_x86_64 import VcpuState
from snapkit.vmm.arch import ClockPolicy
from snapkit.vmm.backends.console import Console
from snapkit.vmm.loop import Loop
from snapkit.vmm.machine import Machine

TSC = 0x10
PAUSED_S = 0.5


def clocks(path: str, policy: ClockPolicy) -> dict[str, object]:
    with prepare(path, paused=True) as prepared, Loop() as loop, Machine(loop, Console(None), clock=policy) as machine:
        states = prepared.sections.values()
        (clock,) = [state for state in states if isinstance(state, KvmClockState)]
        saved_ns, saved_realtime_ns = clock.clock_ns, clock.realtime_ns
        vcpus = [state for state in states if isinstance(state, VcpuState)]
        saved = [msr.data for vcpu in vcpus for msr in vcpu.msrs if msr.index == TSC]
        target: Target = machine
        run_steps(prepared.steps, target, Timeline())
        threading.Event().wait(PAUSED_S)
        start_ns, start_realtime_ns = host.monotonic_ns(), host.realtime_ns()
        machine.resume()
        running: list[Any] = list(machine._vcpus.values())
        inside, threads = [vcpu.state.fd for vcpu in running], [vcpu.thread for vcpu in running]
        now = [thread.call(fd.get_tsc) for thread, fd in zip(threads, inside, strict=True)]
        vm_fd: Any = machine._need_vm().fd
        now_ns = vm_fd.get_clock_ns()
        return {
            "took_ns": host.monotonic_ns() - start_ns,
            "away_ns": start_realtime_ns - saved_realtime_ns,
            "clock_ns": now_ns - saved_ns,
            "counters": [there - before for there, before in zip(now, saved, strict=True)],
            "saved": saved,
            "offsets": [thread.call(fd.get_tsc_offset) for thread, fd in zip(threads, inside, strict=True)],
            "khz": threads[0].call(inside[0].get_tsc_khz),
        }


def main(path: str) -> None:
    policies: tuple[ClockPolicy, ...] = ("continue", "realtime")
    for policy in policies:
        print(json.dumps(clocks(path, policy)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
