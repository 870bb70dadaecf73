"""A Debian guest with a disk, network, vsock, entropy, balloon and VMGenID is saved amid its I/O and comes back.

One guest for each transport tells a whole story (`tell`): everything is at work when it is saved, its host ends are other
ones afterwards, and it judges its own disk and connections. The tests read what the story noted.
`SNAPKIT_LAB_MONITOR=qemu` tells it of QEMU: what fails there as well is the lab's. A guest this busy stalled in every
second story before the outer machine had a beat (`tests.lab.outer`).
"""

import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.lab import guest, losses, monitors, network, work
from tests.lab.architecture import Architecture
from tests.lab.console import Answer, CommandConsole, SilentGuestError
from tests.lab.guest import GuestFiles
from tests.lab.monitors import TRANSPORTS, Devices, Monitor
from tests.lab.network import HOST
from tests.lab.outer import LabError, Outer, OuterDiedError, Result
from tests.lab.stage import Stage

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3000)]

DISK_MIB = 192
BALLOON_MIB, SMALLER_MIB = 64, 16
TCP_PORT, VSOCK_HOST_PORT, VSOCK_GUEST_PORT = 5000, 6000, 7000
PAGE_KIB = 4
TAP, OTHER_TAP = "tap0", "tap1"

MONITORS = {"snapkit": monitors.Snapkit, "qemu": monitors.Qemu}

NEW_GENERATION = "random: crng reseeded due to virtual machine fork"
GENERATIONS = {"x86_64": 1, "aarch64": 3}
"""How often the guest is saved and comes back."""

FAULTS_AT_BOOT = {
    "x86_64": (
        r"virtio.*(fail|error|unable)|MMCONFIG.*(not|fail)|can't (claim|assign)|no space for|ACPI.*(Error|Warning|BUG)|BUG:"
        # The emulated host's own layout of extended state is at odds with itself, and every monitor hands it on.
        r"|WARNING:(?!.*/xstate\.c)"
    ),
    # Any that is not of the emulated host's pace, or of a 64-bit window: Linux says so on each machine that has one.
    "aarch64": r"^(?!<4>.*(hrtimer: interrupt took|Memory resource size exceeds max for 32 bits))",
}


class LostGuestError(LabError):
    """The guest went silent, or ended as those do that the emulated host loses."""


@dataclass
class Story:
    """What one guest and its host noted."""

    architecture: Architecture
    transport: str
    vmgenid: bool
    before: dict[str, Answer] = field(default_factory=dict)
    after: dict[str, Answer] = field(default_factory=dict)
    host: dict[str, str] = field(default_factory=dict)
    rss_kib: dict[str, int] = field(default_factory=dict)
    interrupts: list[tuple[str, str]] = field(default_factory=list)
    """Of each life after a restore: the devices' lines at its begin and at its end."""
    saved: Result | None = None
    end: Result | None = None

    def grew(self, name: str) -> bool:
        """Say whether the number noted as *name* is higher afterwards."""
        return int(self.after[name].text) > int(self.before[name].text)


PROGRESS = {
    "files": "tail -n 1 /run/files",
    "blocks": "tail -n 1 /run/blocks",
    "echoed": "wc -l </run/echoed",
    "pings": "grep -c seq= /run/ping",
}
INTERRUPTS = "cat /proc/interrupts"
DEVICES_INTERRUPTS = "grep -e CPU0 -e virtio /proc/interrupts"
# Compared in the guest: each character on the console costs an exit or two.
LSPCI = "/bin/lspci -vv 2>/dev/null >/run/lspci; grep -c 'Class.* 1af4:10' /run/lspci"
LSPCI_AGAIN = "/bin/lspci -vv 2>/dev/null | diff /run/lspci -"
FILL = "dd if=/dev/zero of=/run/fill bs=1M count=96 2>/dev/null; rm /run/fill"  # memory to give back
BALLOON = "awk '/^balloon_inflate/ {n += $2} /^balloon_deflate/ {n -= $2} END {print n}' /proc/vmstat"
ENTROPY = "cat /sys/class/misc/hw_random/rng_current; dd if=/dev/hwrng bs=32 count=1 2>/dev/null | sha256sum"


def begin(console: CommandConsole, story: Story) -> None:
    """Set everything in the guest to work."""
    before = story.before
    for command in (
        f"ip link set lo up; ip link set eth0 up; ip addr add {network.GUEST}/24 dev eth0",
        "/bin/mke2fs -q -t ext4 /dev/vda && mount -t ext4 /dev/vda /mnt",
    ):
        console.text(command, timeout=300)
    before["boot log"] = console.run("dmesg -r | grep '^<[0-4]>' | grep -v 'CPUID.0d'")
    before["entropy"] = console.run(ENTROPY)
    before["ping"] = console.run(f"ping -c 2 -W 20 {HOST}")
    for job in (
        f"socat VSOCK-LISTEN:{VSOCK_GUEST_PORT},fork EXEC:'busybox cat' >/run/listener 2>&1",
        f"work-idle {VSOCK_HOST_PORT}",
        f"ping {HOST} >/run/ping 2>&1",
        f"work-stream {HOST}:{TCP_PORT}",
        "work-files",
        "work-blocks",
    ):
        console.text(f"{job} </dev/null &")


def until_at_work(console: CommandConsole, past: dict[str, int], key: dict[str, Answer]) -> None:
    """Wait until each kind of work is a few steps beyond *past*, and note the progress.

    TCP may need two minutes: a guest that has sent into its old TAP for one tries again after another.
    """
    for name, command in PROGRESS.items():
        console.wait(f"[ $({command} 2>/dev/null || echo 0) -gt {past.get(name, 0) + 2} ]", seconds=240)
    for name, command in PROGRESS.items():
        key[name] = console.run(command)


def rss_kib(outer: Outer, monitor: Monitor, of: str = "VmRSS") -> int:
    """Give the resident memory of the process that runs the guest, or another size of its status."""
    program = (
        f"for file in $(grep -l {monitor.control} /proc/[0-9]*/cmdline); do grep -s {of} ${{file%cmdline}}status; done"
    )
    sizes = re.findall(rf"{of}:\s+(\d+) kB", outer.run(["sh", "-c", program], timeout=60).stdout)
    return max(map(int, sizes), default=0)


def autopsy(outer: Outer, monitor: Monitor, console: CommandConsole) -> str:
    """Tell where the threads of a silent guest's monitor are, and end it; Python tells its stacks as it dies."""
    threads = (
        "for task in ${file%cmdline}task/*; do cat $task/comm $task/wchan; echo; cut -d' ' -f3,14,15 $task/stat; done"
    )
    program = f"for file in $(grep -l {monitor.control} /proc/[0-9]*/cmdline); do {threads}; done"
    seen = outer.run(["sh", "-c", f"{program}; sleep 2; {program}"], timeout=60).stdout
    if console.job.running:
        console.job.signal(signal.SIGABRT)
    return f"{seen}\n{console.job.wait().stderr}"


def balloon_to(console: CommandConsole, monitor: Monitor, mib: int) -> Answer:
    """Ask for *mib*, wait until the guest has given as much or for some time; give the guest's pages."""
    result = monitor.balloon(mib)
    assert result.code == 0, result
    console.wait(f"[ $({BALLOON}) = {mib * 1024 // PAGE_KIB} ]", seconds=60)
    return console.run(BALLOON)


def vsock_both_ways(console: CommandConsole, net: network.Network, monitor: Monitor, story: Story, when: str) -> None:
    side = story.before if when == "before" else story.after
    side["vsock out"] = console.run(f"echo from-guest-{when} | socat -t 20 - VSOCK-CONNECT:2:{VSOCK_HOST_PORT}")
    story.host[f"vsock in {when}"] = net.ask(monitor.call(VSOCK_GUEST_PORT, f"from-host-{when}"))


def judge(console: CommandConsole, story: Story) -> None:
    """Let the guest end its work and judge what there is."""
    after = story.after
    console.text(work.STOP)
    done = "[ -e /run/files-done ] && [ -e /run/blocks-done ] && [ -e /run/stream-done ]"
    after["done"] = console.wait(done, seconds=200)
    after["stream"] = console.run("cat /run/stream-done /run/sent; wc -l </run/echoed")
    after["stream order"] = console.run("cut -d' ' -f1 /run/echoed >/run/a; seq $(cat /run/sent) | cmp - /run/a")
    after["ping again"] = console.run(f"ping -c 3 -W 20 {HOST}")
    blob = "head -c 4000000 /mnt/blocks"
    after["bulk"] = console.run(
        f"{blob} | sha256sum; {blob} | socat -t 60 - TCP:{HOST}:{TCP_PORT} 2>&1 | sha256sum", timeout=300
    )
    after["log"] = console.run(f"dmesg | sed -n '/{guest.KERNEL_MARK}/,$ p'")
    console.run("sync; echo 3 >/proc/sys/vm/drop_caches")
    after["sums"] = console.run("cat /run/sums/* | sha256sum -c", timeout=300)
    after["faults"] = console.run("cat /run/faults")
    after["fsck"] = console.run("killall ping; umount /mnt && /bin/e2fsck -f -n /dev/vda 2>&1", timeout=300)


def tell(outer: Outer, net: network.Network, monitor: Monitor, transport: str) -> Story:
    """Let a guest live, be saved amid its work, and live again. Raises `LostGuestError`."""
    story = Story(outer.architecture, transport, monitor.vmgenid)
    net.tap(TAP)
    net.ask(monitor.listen(VSOCK_HOST_PORT))
    console = CommandConsole(monitor.boot())
    try:
        live(outer, net, monitor, story, console)
    except OuterDiedError:
        raise
    except (AssertionError, LabError) as error:
        silent = console.job.running and isinstance(error, SilentGuestError)
        print(autopsy(outer, monitor, console))
        if silent or losses.is_lost(console.job.wait()):
            raise LostGuestError(str(error)) from error
        raise
    finally:
        console.kill()
        outer.run(["sh", "-c", f"for tap in {TAP} {OTHER_TAP}; do busybox ip link del $tap; done"], timeout=60)
    return story


def live(outer: Outer, net: network.Network, monitor: Monitor, story: Story, console: CommandConsole) -> None:
    """Tell the story itself, from the guest's first command to its end."""
    console.ready()
    console.text(FILL, timeout=300)
    # Its highest: a guest that reports its free pages may have given them back before anybody looks.
    story.rss_kib["full"] = rss_kib(outer, monitor, of="VmHWM")
    story.before["balloon"] = balloon_to(console, monitor, BALLOON_MIB)
    story.rss_kib["inflated"] = rss_kib(outer, monitor)
    begin(console, story)
    vsock_both_ways(console, net, monitor, story, "before")
    until_at_work(console, {}, story.before)
    console.text(f"echo {guest.KERNEL_MARK} >/dev/kmsg")
    story.before["lspci"] = console.run(LSPCI)
    story.before["interrupts"] = console.run(INTERRUPTS)
    for name, command in PROGRESS.items():
        story.before[name] = console.run(command)

    again(outer, net, monitor, story, console)

    after = story.after
    after["interrupts"] = console.run(INTERRUPTS)
    after["lspci"] = console.run(LSPCI_AGAIN)
    after["balloon kept"] = console.run(BALLOON)
    vsock_both_ways(console, net, monitor, story, "after")
    after["idle ended"] = console.wait("[ -e /run/idle-done ]")
    after["entropy"] = console.run(ENTROPY)
    after["balloon down"] = balloon_to(console, monitor, 0)
    until_at_work(console, progress(story.before), after)
    for _ in range(1, GENERATIONS[story.architecture.name]):
        again(outer, net, monitor, story, console)
        until_at_work(console, progress(after), after)
    story.interrupts[-1] = story.interrupts[-1][0], console.text(DEVICES_INTERRUPTS)
    judge(console, story)
    after["balloon up"] = balloon_to(console, monitor, SMALLER_MIB)
    console.job.write(b"exit\n")
    story.end = console.job.wait()
    if losses.is_lost(story.end):
        raise LabError(str(story.end))


def again(outer: Outer, net: network.Network, monitor: Monitor, story: Story, console: CommandConsole) -> None:
    """Save the guest and have it come back in a new process, on the other TAP."""
    generation = len(story.interrupts)
    if story.interrupts:
        story.interrupts[-1] = story.interrupts[-1][0], console.text(DEVICES_INTERRUPTS)
    file = outer.work / f"devices-{story.transport}-{generation % 2}.snap"  # the other one is in use
    story.saved = monitor.save(file)
    assert story.saved.code == 0, story.saved
    assert console.job.wait().code == 0, console.job.wait()
    old, new = (TAP, OTHER_TAP) if generation % 2 == 0 else (OTHER_TAP, TAP)
    net.tap(new, instead_of=old)
    console.move(monitor.restore(file, new))
    story.interrupts.append((console.text(DEVICES_INTERRUPTS), ""))


def progress(side: dict[str, Answer]) -> dict[str, int]:
    """Give how far each kind of work had come."""
    return {name: int(side[name].text or 0) for name in PROGRESS}


@pytest.fixture(scope="module")
def files(stage: Stage) -> GuestFiles:
    generic = stage.kernels[0]
    initrd = stage.outer.share / "tools.cpio"
    initrd.write_bytes(guest.tools_initramfs(stage.architecture, generic, work.SCRIPTS))
    return GuestFiles(generic.packed, generic.plain, initrd)


@pytest.fixture(scope="module")
def net(stage: Stage) -> Iterator[network.Network]:
    ends = network.Network(stage.outer)
    ends.ask(f"tcp {TCP_PORT}")
    yield ends
    ends.close()


@pytest.fixture(scope="module", params=TRANSPORTS)
def story(request: pytest.FixtureRequest, stage: Stage, files: GuestFiles, net: network.Network) -> Story:
    outer, transport = stage.outer, request.param
    while True:
        folder = outer.work / transport
        disk = folder / "disk"
        made = outer.run(
            ["sh", "-ec", f"rm -rf {folder}; mkdir -p {folder}; truncate -s {DISK_MIB}M {disk}"], timeout=60
        )
        assert made.code == 0, made
        line = f"console={outer.architecture.console} quiet panic=-1 scenario=commands"
        machine = Devices(files, transport, line, disk, TAP, folder)
        monitor = MONITORS[os.environ.get("SNAPKIT_LAB_MONITOR", "snapkit")](outer, machine)
        try:
            told = tell(outer, net, monitor, transport)
        except LostGuestError as error:
            if not outer.architecture.loses_guests:
                raise
            losses.count_lost(f"{error}\n{net}")
        else:
            losses.count_ended()
            return told


def test_files_written_across_the_snapshot_hold_what_was_written(story: Story) -> None:
    assert story.grew("files")
    assert story.after["done"].code == 0
    answer = story.after["sums"]
    assert answer.code == 0, answer
    assert len(answer.text.splitlines()) == min(48, int(story.after["files"].text)) or "OK" in answer.text


def test_deep_queues_of_direct_writes_verify_across_the_snapshot(story: Story) -> None:
    assert story.grew("blocks")
    assert story.after["faults"].text == ""


def test_the_file_system_is_clean_afterwards(story: Story) -> None:
    assert story.after["fsck"].code == 0, story.after["fsck"]


def test_ping_goes_on_over_another_tap(story: Story) -> None:
    assert story.grew("pings")
    assert story.before["ping"].code == story.after["ping again"].code == 0, story.after["ping again"]


def test_a_tcp_stream_goes_on_over_another_tap_and_loses_nothing(story: Story) -> None:
    assert story.grew("echoed")
    code, sent, returned = story.after["stream"].text.split()
    assert (code, sent) == ("0", returned)
    assert story.after["stream order"].code == 0, story.after["stream order"]


def test_bulk_tcp_after_the_restore_returns_what_was_sent(story: Story) -> None:
    there, back = story.after["bulk"].text.splitlines()
    assert there == back


@pytest.mark.parametrize("when", ["before", "after"])
def test_vsock_connects_both_ways(story: Story, when: str) -> None:
    side = story.before if when == "before" else story.after
    assert side["vsock out"].text == f"from-guest-{when}"
    assert story.host[f"vsock in {when}"] == f"OK from-host-{when}"


def test_a_vsock_connection_of_the_old_life_ends_at_once(story: Story) -> None:
    assert story.after["idle ended"].code == 0, story.after["idle ended"]


def test_entropy_comes_from_the_device_and_is_new(story: Story) -> None:
    for side in (story.before, story.after):
        assert side["entropy"].text.startswith("virtio_rng.0\n")
    assert story.before["entropy"].text != story.after["entropy"].text


def test_the_balloon_is_kept_and_moves_both_ways(story: Story) -> None:
    pages = [BALLOON_MIB * 256, BALLOON_MIB * 256, 0, SMALLER_MIB * 256]
    seen = [story.before["balloon"], *(story.after[name] for name in ("balloon kept", "balloon down", "balloon up"))]
    assert [int(answer.text) for answer in seen] == pages


def test_what_the_guest_gives_up_leaves_the_process(story: Story) -> None:
    assert story.rss_kib["full"] - story.rss_kib["inflated"] > BALLOON_MIB * 1024 // 2, story.rss_kib


def test_the_guest_sees_each_new_generation_once(story: Story) -> None:
    seen = [line for line in story.after["log"].text.splitlines() if NEW_GENERATION in line]
    assert len(seen) == (len(story.interrupts) if story.vmgenid else 0)


def test_the_kernel_says_nothing_new_after_the_restore(story: Story) -> None:
    log = f"DMESG-BEGIN\n{story.after['log'].text}\nDMESG-END\n"
    assert [line for line in guest.kernel_log_after_mark(log) if line != NEW_GENERATION] == []


def test_the_kernel_finds_no_fault_in_the_machine_at_boot(story: Story) -> None:
    lines = story.before["boot log"].text.splitlines()
    faults = re.compile(FAULTS_AT_BOOT[story.architecture.name], re.IGNORECASE)
    assert [line for line in lines if faults.search(line)] == []


def test_interrupt_lines_are_the_same_and_their_counts_not_lower(story: Story) -> None:
    before, after = (guest.interrupts(side["interrupts"].text) for side in (story.before, story.after))
    assert set(before) == set(after)
    assert any("virtio" in name for name in before)
    lower = {
        name: (before[name], after[name])
        for name in before
        if any(a < b for a, b in zip(after[name], before[name], strict=True))
    }
    assert lower == {}


def test_the_lines_of_disk_and_network_count_on_in_every_life(story: Story) -> None:
    assert len(story.interrupts) == GENERATIONS[story.architecture.name]
    chip = story.architecture.interrupt_chips[story.transport]
    last: dict[str, int] = {}
    for texts in story.interrupts:
        begin, end = (of_devices(text, chip) for text in texts)
        assert begin.keys() == end.keys()
        assert {name for name in last if begin.get(name, -1) < last[name]} == set()
        grown = " ".join(name for name in end if end[name] > begin[name])
        assert "virtio0" in grown, (begin, end)
        assert "virtio1" in grown, (begin, end)
        last = end


def of_devices(text: str, chip: str) -> dict[str, int]:
    """Give how often each of the devices' lines has fired, all of which have to be of *chip*."""
    found = {name: sum(counts) for name, counts in guest.interrupts(text).items()}
    assert all(chip in name for name in found), text
    return found


def test_lspci_shows_the_same_devices(story: Story) -> None:
    assert int(story.before["lspci"].text) == (5 if story.transport == "pci" else 0)
    assert (story.after["lspci"].code, story.after["lspci"].text) == (0, "")


def test_the_guest_shuts_down_cleanly(story: Story) -> None:
    assert story.end is not None
    assert story.end.code == 0, story.end
