"""The aarch64 outer machine: its KVM in each of its modes, its root, and guests under the peer there."""

import json
import re
import subprocess
import sys

import pytest

from snapkit.errors import IncompatibleHost
from tests.lab import guest
from tests.lab.architecture import AARCH64, NO_VHE_CPU, PAUTH_CPU, WITH_GICV2
from tests.lab.console import CommandConsole
from tests.lab.guest import GuestFiles
from tests.lab.kernels import Kernel
from tests.lab.outer import Outer
from tests.lab.packages import CHECKOUT
from tests.lab.test_arm_kvm import hold
from tools import golden, stored

pytestmark = pytest.mark.lab

KVM_GET_API_VERSION = 0xAE00
PEER = (
    f"{AARCH64.emulator} -M {AARCH64.peer['pci']} -accel kvm -cpu host -smp 2 -m 256 "
    "-nodefaults -no-user-config -display none -no-reboot -serial stdio"
)
DEMO = CHECKOUT / "snapkit/guests/aarch64/demo.elf"
CONSOLE = f"console={AARCH64.console} quiet panic=-1"


def peer(files: GuestFiles, scenario: str, *options: str) -> list[str]:
    """Give the command line that boots a guest under QEMU."""
    words = [*PEER.split(), "-kernel", str(files.plain), "-initrd", str(files.initrd)]
    return [*words, "-append", f"{CONSOLE} {scenario}", *options]


@pytest.mark.smoke
def test_kvm_answers_inside_and_python_has_what_the_project_needs(outer_aarch64: Outer) -> None:
    program = (
        "import fcntl, os, platform, blake3, click, fdt, h11, ioctl_opt, msgspec, numpy, elftools, zstandard\n"
        "from snapkit import host_sandbox\n"
        "host_sandbox.require_library()\n"
        f"print(fcntl.ioctl(os.open('/dev/kvm', os.O_RDWR), {KVM_GET_API_VERSION}, 0), platform.machine())"
    )
    result = outer_aarch64.run([outer_aarch64.python, "-c", program], timeout=120)
    assert result.stdout.split() == ["12", "aarch64"], result


def test_the_checkouts_snapkit_runs_inside(outer_aarch64: Outer) -> None:
    from snapkit.version import __version__

    result = outer_aarch64.run(outer_aarch64.snapkit("--version"), timeout=120)
    assert __version__ in result.stdout, result


def test_the_share_is_writable_from_both_sides_and_the_checkout_from_neither(outer_aarch64: Outer) -> None:
    (outer_aarch64.share / "note").write_text("from outside")
    program = 'cat "$0/note"; echo from inside >"$0/answer"; touch "$1/touched"'
    result = outer_aarch64.run(["sh", "-c", program, outer_aarch64.share, CHECKOUT], timeout=60)
    assert result.stdout == "from outside"
    assert (outer_aarch64.share / "answer").read_text() == "from inside\n"
    assert result.code != 0
    assert "ead-only" in result.stderr, result


def test_the_guest_files_boot_under_another_monitor(outer_aarch64: Outer, guest_files_aarch64: GuestFiles) -> None:
    # The peer that tells a fault of the lab from a fault of snapkit.
    words = peer(guest_files_aarch64, "scenario=count count=10 dmesg=mark")
    result = outer_aarch64.run(words, timeout=200)
    found = guest.count_lines(result.stdout)
    assert sorted(found) == [0, 1], result
    assert [guest.count_faults(found[cpu], last=10) for cpu in (0, 1)] == [[], []]
    assert guest.kernel_log_after_mark(result.stdout) == []
    assert result.code == 0, result


def test_debians_programs_run_in_a_guest_whose_disk_interrupts_through_the_its(
    outer_aarch64: Outer, kernels_aarch64: tuple[Kernel, Kernel]
) -> None:
    generic = kernels_aarch64[0]
    initrd = outer_aarch64.share / "tools.cpio"
    initrd.write_bytes(guest.tools_initramfs(AARCH64, generic, {}))
    disk = outer_aarch64.share / "disk"
    with disk.open("wb") as file:
        file.truncate(32 << 20)
    drive = ("-drive", f"file={disk},format=raw,if=none,id=data", "-device", "virtio-blk-pci,drive=data,romfile=")
    words = peer(GuestFiles(generic.packed, generic.plain, initrd), "scenario=commands", *drive)
    console = CommandConsole(outer_aarch64.start(words, timeout=300, keep_stdin=True))
    console.ready()
    for command in (
        "/bin/mke2fs -q -t ext4 /dev/vda && mount /dev/vda /mnt",
        "/bin/fio --name=x --filename=/mnt/x --size=1M --rw=randwrite --bs=16k --ioengine=libaio --direct=1 --verify=crc32c",
        "/bin/lspci -n",
        "/bin/socat -V",
    ):
        answer = console.run(command)
        assert answer.code == 0, answer
    counts = guest.interrupts(console.run("cat /proc/interrupts").text)
    assert sum(count for name, of_cpus in counts.items() for count in of_cpus if is_of_its(name)) > 0, counts
    console.kill()


def is_of_its(name: str) -> bool:
    """Say whether a line of /proc/interrupts is the disk's queue, through the ITS."""
    return "ITS-MSI" in name and "virtio0-req" in name


@pytest.mark.parametrize(
    ("cpu", "mode", "features"),
    [(PAUTH_CPU, "VHE mode", {"sve", "paca"}), (NO_VHE_CPU, "Hyp (nVHE )?mode", set())],
    ids=["pointer authentication and SVE", "no VHE"],
)
@pytest.mark.usefixtures("kernels_aarch64")
def test_other_models_bring_kvms_other_modes(cpu: str, mode: str, features: set[str]) -> None:
    program = "dmesg | grep 'kvm '; grep -m1 Features /proc/cpuinfo; $PYTHON -m tests.lab.inside_arm_kvm edges"
    command = [sys.executable, "-m", "tests.lab.shell", "--cpu", cpu, "aarch64", "sh", "-c", program]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=280, check=False)
    assert re.search(f"{mode} initialized", result.stdout), result
    assert {"sve", "paca"} & set(result.stdout.split()) == features, result
    assert result.returncode == 0, result
    hold(result.stdout, sve="sve" in features)


@pytest.mark.usefixtures("kernels_aarch64")
def test_where_kvm_makes_no_gicv3_everything_that_would_run_a_machine_says_so() -> None:
    release, about = next(
        (release, about)
        for release, about in stored.goldens(stored.ROOT)
        if about.architecture == "aarch64" and not about.disks
    )
    with Outer(WITH_GICV2) as outer:
        file = golden.unpack(stored.ROOT / golden.FOLDER / release, about, outer.share)
        told = outer.run(outer.snapkit("doctor", "--json"), timeout=120)
        ended = [
            outer.run(outer.snapkit(*words), timeout=120)
            for words in (["doctor"], ["doctor", file], ["demo"], ["boot", DEMO], ["restore", file])
        ]
    facts = json.loads(told.stdout)
    assert (told.code, facts["gic_v3"], facts["its"], facts["kvm"]["usable"]) == (4, False, False, False)
    for result in ended:
        assert result.code == IncompatibleHost.exit_code, result
        assert "GICv3" in result.stdout + result.stderr, result
        assert "Traceback" not in result.stderr, result
