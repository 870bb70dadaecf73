"""Where a guest's clocks go on after a restore, read back out of KVM before the guest reads them.

A KVM that cannot move a counter (measured: PVM) gives every guest the host's; what a counter counts is asserted where
KVM lets it be set, which `tests/lab/test_time.py` has for certain, and that counters are in step everywhere.
"""

import errno
import struct
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from snapkit import host
from snapkit.errors import HostError
from snapkit.restore.equality import Elapsed, differences
from snapkit.restore.image import Image
from snapkit.state.schema import SectionId
from snapkit.state.spec import lapic
from snapkit.vmm.arch import ClockPolicy
from snapkit.vmm.arch.x86_64 import layout
from snapkit.vmm.kvm import abi, abi_x86
from snapkit.vmm.kvm.vm_x86 import X86VmFd
from snapkit.vmm.parts.fresh import Asked
from tests.guests.build import guest
from tests.kvm.commands import finished
from tests.kvm.harness import DEMO, Rig, booted, need_kvm, restored

HOUR_NS = 3600 * 10**9
CLOCK, FIRST, CHIPS = SectionId("kvm-clock", "0"), SectionId("vcpu-x86-64", "0"), SectionId("irqchip-x86", "0")
TSC, SYSTEM_TIME_NEW = 0x10, 0x4B564D01
CLOCK_FLAGS, TSC_STABLE = struct.Struct("<8xI"), 2  # struct kvm_clock_data.flags, KVM_CLOCK_TSC_STABLE
POLICIES: tuple[ClockPolicy, ...] = ("continue", "realtime")
VECTOR = 0x61
States = Mapping[SectionId, Any]


def clock_ns(rig: Rig) -> int:
    assert isinstance(rig.vm.fd, X86VmFd)
    return rig.vm.fd.get_clock_ns()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """Snapshots of working machines, by their CPUs."""
    need_kvm()
    folder = tmp_path_factory.mktemp("clocks")
    paths = {}
    for vcpus in (2, 8):
        with booted(guest("lapic_timer"), vcpus=vcpus) as rig:
            rig.run()
            rig.tape.wait_for("lapic")
            paths[vcpus] = rig.save(str(folder / f"{vcpus}.snap"))
    return paths


@pytest.fixture(scope="module")
def counted() -> tuple[bool, bool]:
    """Whether KVM tells the offsets of counters, and whether it says that those of a machine at work are one counter."""
    need_kvm()
    with booted(guest("lapic_timer"), vcpus=2) as rig:
        rig.run()
        rig.tape.wait_for("lapic")
        raw = abi.get(rig.vm.fd.fd, abi_x86.KVM_GET_CLOCK, abi_x86.CLOCK_LEN)
        return None not in offsets(rig), bool(CLOCK_FLAGS.unpack_from(raw)[0] & TSC_STABLE)


@pytest.fixture
def told_offsets(counted: tuple[bool, bool]) -> None:
    """Skip where counters are written and not their offsets: they are as far apart as the writes were."""
    if not counted[0]:
        pytest.skip("KVM does not tell the offset of a counter (KVM_VCPU_TSC_OFFSET, Linux 5.16)")


@pytest.fixture
def one_counter(counted: tuple[bool, bool]) -> None:
    """Skip where the host's counters are not in step: KVM changes a vCPU's offset when it moves to another CPU then."""
    if not counted[1]:
        pytest.skip("KVM_GET_CLOCK does not say KVM_CLOCK_TSC_STABLE: this host's CPUs have no common counter")


def states_of(path: str) -> dict[SectionId, Any]:
    with Image.open(path) as image:
        return dict(image.sections().states)


def restored_later(path: str, clock: ClockPolicy, away_ns: int) -> AbstractContextManager[Rig]:
    """Restore as if *away_ns* of wall time had gone since the save."""

    def change(states: States) -> None:
        states[CLOCK].realtime_ns -= away_ns

    return restored(path, clock=clock, change=change)


def linger() -> None:
    threading.Event().wait(0.05)


def counters(rig: Rig) -> list[int]:
    return [vcpu.thread.call(vcpu.state.fd.get_tsc) for vcpu in rig.vcpus]


def offsets(rig: Rig) -> list[int | None]:
    return [vcpu.thread.call(vcpu.state.fd.get_tsc_offset) for vcpu in rig.vcpus]


def can_move_counters(path: str) -> bool:
    """Try it on a machine that will never run."""
    with restored(path, before="activate") as rig:
        fd = rig.vcpus[0].state.fd
        before = fd.get_tsc()
        fd.set_msrs({TSC: before + (1 << 50)})
        return fd.get_tsc() - before > 1 << 49


@pytest.mark.usefixtures("one_counter")
@pytest.mark.parametrize("away_ns", [HOUR_NS, -HOUR_NS], ids=["an hour ago", "in an hour"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("vcpus", [2, 8])
def test_clocks_go_on_as_the_policy_says_from_the_first_resume(files, vcpus, policy, away_ns):
    path = files[vcpus]
    states, movable = states_of(path), can_move_counters(path)
    saved, tsc = states[CLOCK], next(msr.data for msr in states[FIRST].msrs if msr.index == TSC)
    with restored_later(path, policy, away_ns) as rig:
        linger()
        before_ns, before_wall_ns = host.monotonic_ns(), host.realtime_ns()
        rig.machine.resume()
        khz = rig.vcpus[0].thread.call(rig.vcpus[0].state.fd.get_tsc_khz)
        now_ns, now_tsc = clock_ns(rig), counters(rig)
        passed_ns, wall_ns = host.monotonic_ns() - before_ns, host.realtime_ns()
        together = set(offsets(rig))
        rig.healthy()
    least_ns = most_ns = 0
    if policy == "realtime" and away_ns > 0:
        least_ns, most_ns = before_wall_ns - saved.realtime_ns + away_ns, wall_ns - saved.realtime_ns + away_ns
    assert least_ns <= now_ns - saved.clock_ns <= most_ns + passed_ns
    assert len(together) == 1
    if movable:
        for counter in now_tsc:
            assert least_ns * khz // 1_000_000 <= counter - tsc + khz <= (most_ns + passed_ns + 10**6) * khz // 10**6
    else:
        assert max(now_tsc) - min(now_tsc) < passed_ns * khz // 1_000_000


@pytest.mark.parametrize("policy", POLICIES)
def test_a_machine_restored_paused_loses_no_time_and_is_saved_as_it_was_to_the_last_count(files, policy):
    with restored(files[2], clock=policy) as rig:
        linger()
        again = rig.machine.save()
        assert differences(states_of(files[2]), again, Elapsed(0, 0)) == []
        rig.run()
        rig.tape.wait_for("lapic", times=2)


@pytest.mark.usefixtures("told_offsets", "one_counter")
def test_a_counter_that_the_guest_set_off_stays_off_by_as_much(files):
    ahead = 10**12

    def change(states: States) -> None:
        second = states[SectionId("vcpu-x86-64", "1")]
        by_index = {msr.index: msr for msr in second.msrs}
        by_index[TSC].data += ahead
        by_index[0x3B].data += ahead

    movable = can_move_counters(files[2])
    with restored(files[2], change=change) as rig:
        rig.machine.resume()
        first, second = (offset or 0 for offset in offsets(rig))
    assert (second - first) % 2**64 == (ahead if movable else 0)  # offsets are unsigned, and may wrap between the two
    assert movable or first == 0


@pytest.mark.usefixtures("told_offsets", "one_counter")
def test_two_saves_of_a_paused_machine_have_counters_of_one_moment(files):
    with restored(files[8]) as rig:
        rig.machine.resume()
        rig.machine.pause()
        states = rig.machine.save()
        found = {msr.data for key, state in states.items() if key.kind == FIRST.kind for msr in read(state)}
    assert len(found) == 1


def read(vcpu: Any) -> list[Any]:
    return [msr for msr in vcpu.msrs if msr.index == TSC]


def test_the_timer_of_a_local_apic_starts_at_the_first_resume_and_what_came_meanwhile_is_kept(files):
    with restored(files[2], before="activate") as rig:
        vcpu = rig.vcpus[0].state
        stopped = vcpu.fd.get_lapic()
        assert word(stopped, lapic.TMICT) == word(stopped, lapic.TMCCT) == 0
        assert rig.vm.fd.signal_msi(lapic.BASE, VECTOR)
        vcpu.start_timers()
        page = vcpu.fd.get_lapic()
        assert word(page, lapic.TMICT) == word(states_of(files[2])[FIRST].lapic, lapic.TMICT) > 0
        assert is_requested(page, VECTOR)


def word(page: bytes, at: int) -> int:
    return int.from_bytes(page[at : at + 4], "little")


def is_requested(page: bytes, vector: int) -> bool:
    return bool(word(page, lapic.IRR + 16 * (vector // 32)) >> vector % 32 & 1)


@pytest.mark.usefixtures("told_offsets", "one_counter")
@pytest.mark.parametrize(
    "call", ["KVM_SET_CLOCK", "KVM_GET_CLOCK", "KVM_SET_DEVICE_ATTR", "KVM_SET_LAPIC", "KVM_SET_PIT2"]
)
def test_a_first_resume_that_failed_half_way_may_be_tried_again_and_loses_nothing(files, call):
    failed: list[str] = []

    def hook(name: str, _arguments: tuple[object, ...]) -> None:
        if name == call:
            failed.append(name)
            raise OSError(errno.EIO, "injected")

    saved = states_of(files[2])[CLOCK]
    with restored(files[2]) as rig:
        with host.inject(hook), pytest.raises(HostError, match=call):
            rig.machine.resume()
        assert failed == [call]
        linger()
        before_ns = host.monotonic_ns()
        rig.machine.resume()
        assert clock_ns(rig) - saved.clock_ns >= 0
        if call != "KVM_SET_PIT2":  # the last of them: by then all other clocks went on
            assert clock_ns(rig) - saved.clock_ns <= host.monotonic_ns() - before_ns
        rig.tape.wait_for("lapic", times=2)
        assert len(set(offsets(rig))) == 1


def test_the_command_line_takes_a_policy_and_no_other(files):
    done = finished("restore", files[2], "--clock", "realtime", "--exit-when", "lapic", "--serial", "null")
    assert done.returncode == 0, done.stderr
    done = finished("restore", files[2], "--clock", "yesterday")
    assert done.returncode == 2
    assert "realtime" in done.stderr


def test_the_watchdog_of_every_cpu_is_told_of_the_restore_and_of_each_pause_before_the_guest_goes_on(files):
    def change(states: States) -> None:
        for number in range(2):
            for msr in states[SectionId("vcpu-x86-64", str(number))].msrs:
                if msr.index == SYSTEM_TIME_NEW:
                    msr.data = 0x1_0000 + 0x40 * number | 1  # struct pvclock_vcpu_time_info, enabled

    told: list[object] = []

    def hook(call: str, arguments: tuple[object, ...]) -> None:
        if "KVM_KVMCLOCK_CTRL" in (call, *arguments):
            told.append(arguments)

    with host.inject(hook), restored(files[2], change=change) as rig:
        assert len(told) == 2
        for pauses in range(1, 4):
            rig.machine.resume()
            assert len(told) == 2 * pauses, "told again at a resume that no pause came before, or not at all"
            rig.machine.pause()
        rig.machine.resume()
        assert len(told) == 8
        assert len(set(map(str, told))) == 2


def test_a_new_generation_id_and_its_interrupt_are_there_before_the_first_instruction(tmp_path: Path):
    path = str(tmp_path / "generation.snap")
    with booted(DEMO, devices=(Asked("virtio-rng", "rng"),)) as rig:
        rig.run()
        rig.tape.wait_for("tick 1")
        rig.save(path)
    identity = next(state for key, state in states_of(path).items() if key.kind == "vmgenid")

    def change(states: States) -> None:
        states[CHIPS].ioapic.redirtbl[identity.gsi] = VECTOR  # unmasked, edge triggered, to the APIC of id 0
        page = bytearray(states[FIRST].lapic)
        page[lapic.SVR : lapic.SVR + 4] = (0x1FF).to_bytes(4, "little")
        states[FIRST].lapic = bytes(page)

    with restored(path, change=change) as rig:
        found = rig.machine._need_memory().read(layout.VMGENID_GPA, 16)
        again: States = rig.machine.save()
        assert found == again[SectionId("vmgenid", "0")].generation
        assert found != identity.generation
        assert is_requested(rig.vcpus[0].state.fd.get_lapic(), VECTOR)
