"""The guest that runs under snapkit in the lab: a root of busybox and a few scripts, and readers of what it prints.

The kernel's command line chooses what it does, `scenario=NAME`:

| name       | behaviour after the line `INIT <uptime>` |
|------------|------------------------------------------|
| `count`    | `DEVICES-BEGIN`, the devices' lines of /proc/interrupts, `DEVICES-END`; `MARK`; one worker bound to each CPU prints `W<cpu> <n> <sum> <uptime>`, n from 1 to `count=`; then the report |
| `shell`    | `READY`; answers each line from the console by `ECHO <line>`; `exit` powers off |
| `commands` | `READY`; runs each line `ID COMMAND` from the console in a shell of its own, then prints `EXIT ID CODE` |
| `poweroff` | powers off |
| `reboot`   | reboots; with `reboot=t` on the command line that is a triple fault |
| `panic`    | crashes the kernel by SysRq |

With `worker=sampler`, `count` prints `S<cpu> <n> <uptime> <wall clock, seconds>` instead; any other worker is a script that
the root was made with.

`<sum>` runs over all the work between lines (`work=` steps a line, `advance`), so that lost or repeated work shows as
well as lost or repeated lines. The report is `DMESG-BEGIN` .. `DMESG-END`, `INTERRUPTS-BEGIN` .. `INTERRUPTS-END`,
`CLOCKSOURCE <name>`, `UPTIME <seconds>`, `END`. `MARK` is in the kernel's log as `KERNEL_MARK` too; `dmesg=mark` shortens
the report to what follows it (each character costs an exit or two, and the whole log is 20000).

Entropy is asked for, where there is a device, before the first lines of /proc/interrupts and before the last.

`initramfs` gives the root with what an entropy device needs; `tools_initramfs` adds Debian's own programs
(`tests.lab.tools`), a kernel's virtio modules, loaded before `INIT`, and scripts.

Surprises: power-off does not wait for the console, so the scripts drain it with `stty`, which sets attributes only
once the output has left. The kernel's own console messages stop after `INIT`, or they would land amid a line.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.lab import root, tools
from tests.lab.architecture import Architecture
from tests.lab.cpio import Initramfs
from tests.lab.kernels import Kernel

COUNT = 40
WORK = 50
KERNEL_MARK = "snapkit-mark"
SLOW_HOST = re.compile(r"hrtimer: interrupt took \d+ ns")
"""What a kernel may say at any time where the host is emulated, or has other things to do."""

ENTROPY_MODULES = ("virtio_pci", "virtio-rng")
MODULES = (
    *("virtio_pci", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_balloon", "virtio-rng"),
    *("vmw_vsock_virtio_transport", "crc32c_generic", "ext4"),
)

_INIT = f"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1
dmesg -n 1
stty -echo
[ -e /modules/load ] && . /modules/load

scenario=none count={COUNT} work={WORK} worker=worker dmesg=all
for word in $(cat /proc/cmdline); do
    case $word in
        scenario=*) scenario=${{word#*=}} ;;
        count=*) count=${{word#*=}} ;;
        work=*) work=${{word#*=}} ;;
        worker=*) worker=${{word#*=}} ;;
        dmesg=*) dmesg=${{word#*=}} ;;
    esac
done
export count work

leave() {{
    stty sane  # returns when everything printed has left
    "$1" -f
}}

# What comes of an entropy device interrupts. More than the driver and the device hold ready, so that some has to come.
entropy() {{
    dd if=/dev/hwrng of=/dev/null bs=256 count=1 2>/dev/null
}}

read -r up idle </proc/uptime
echo "INIT $up"
case $scenario in
    count)
        entropy
        echo DEVICES-BEGIN; grep -e CPU0 -e virtio /proc/interrupts; echo DEVICES-END
        echo {KERNEL_MARK} >/dev/kmsg
        echo MARK
        cpus=0 cpu=0
        while [ -e /sys/devices/system/cpu/cpu$cpus ]; do cpus=$((cpus + 1)); done
        export cpus
        while [ $cpu -lt $cpus ]; do
            taskset -c $cpu /bin/busybox sh /bin/begin $cpu $worker &
            cpu=$((cpu + 1))
        done
        while [ $cpu -gt 0 ]; do
            cpu=$((cpu - 1))
            until [ -e /ready$cpu ]; do sleep 0.01; done
        done
        echo >/go
        wait
        entropy
        from=1
        [ $dmesg = mark ] && from=/{KERNEL_MARK}/
        echo DMESG-BEGIN; dmesg | sed -n "$from,$ p"; echo DMESG-END
        echo INTERRUPTS-BEGIN; cat /proc/interrupts; echo INTERRUPTS-END
        echo "CLOCKSOURCE $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
        read -r up idle </proc/uptime
        echo "UPTIME $up"
        echo END
        leave poweroff ;;
    shell)
        echo READY
        while read -r line; do
            [ "$line" = exit ] && break
            echo "ECHO $line"
        done
        leave poweroff ;;
    commands)
        mount -t tmpfs tmpfs /run
        echo READY
        while read -r id command; do
            [ "$id" = exit ] && break
            ( eval "$command" )
            echo "EXIT $id $?"
        done
        leave poweroff ;;
    poweroff) leave poweroff ;;
    reboot) leave reboot ;;
    panic)
        stty sane
        echo c >/proc/sysrq-trigger ;;
esac
echo "UNKNOWN $scenario"
leave poweroff
"""

# All at once: on one CPU of the host, the first would be far on before the last was there.
_BEGIN = """#!/bin/busybox sh
echo >/ready$1
until [ -e /go ]; do sleep 0.01; done
exec /bin/busybox sh /bin/$2 $1
"""

_WORKER = """#!/bin/busybox sh
n=0 s=0
while [ $n -lt $count ]; do
    n=$((n + 1)) i=0
    while [ $i -lt $work ]; do
        i=$((i + 1)) s=$(((s * 31 + n + i) & 0x7fffffff))
    done
    read -r up idle </proc/uptime
    echo "W$1 $n $s $up"
    if [ $n -eq 1 ]; then  # none goes on before all have printed; nor sleeps, as on the emulated host a timer may be lost
        echo >/printed$1
        while set -- $1 /printed*; [ $# -le $cpus ]; do :; done
    fi
done
"""

_SAMPLER = """#!/bin/busybox sh
n=0
while [ $n -lt $count ]; do
    n=$((n + 1))
    read -r up idle </proc/uptime
    echo "S$1 $n $up $(date +%s)"
    stty -echo <&1  # or all would be read before the first was printed
done
"""

_COUNT_LINE = re.compile(r"^W(\d+) (\d+) (\d+) (\d+\.\d+)$")
_KERNEL_TIME = re.compile(r"^\[ *\d+\.\d+\] ")


@dataclass(frozen=True)
class CountLine:
    """One line of a worker."""

    cpu: int
    n: int
    total: int
    uptime_s: float


@dataclass(frozen=True)
class GuestFiles:
    """What a guest is booted from, its kernel in two forms; the paths are the same inside the outer machine."""

    packed: Path
    plain: Path
    initrd: Path


def initramfs(architecture: Architecture, kernel: Kernel, programs: Mapping[str, bytes] | None = None) -> bytes:
    """Build the guest's root, with *programs* by their names in `/bin`: the same bytes wherever busybox is the same."""
    archive = _root(architecture)
    _add_modules(archive, kernel, ENTROPY_MODULES)
    for name, content in (programs or {}).items():
        archive.file(f"bin/{name}", content, executable=True)
    return archive.pack()


def tools_initramfs(architecture: Architecture, kernel: Kernel, scripts: Mapping[str, str]) -> bytes:
    """Build the root with Debian's programs, the modules of *kernel* and *scripts*, by their names in `/bin`.

    Not compressed: unpacking costs a nested guest more than reading.
    """
    archive = _root(architecture)
    tools.add(archive, architecture)
    _add_modules(archive, kernel, MODULES)
    for name, text in scripts.items():
        archive.file(f"bin/{name}", text.encode(), executable=True)
    for folder in ("run", "mnt", "tmp"):
        archive.folder(folder)
    return archive.pack(compress=False)


def _add_modules(archive: Initramfs, kernel: Kernel, names: Iterable[str]) -> None:
    loads = []
    for number, (path, parameters) in enumerate(kernel.modules(*names)):
        archive.file(f"modules/{number:02}-{path.name}", path.read_bytes())
        loads.append(f"insmod /modules/{number:02}-{path.name} {parameters}\n")
    archive.file("modules/load", "".join(loads).encode())


def _root(architecture: Architecture) -> Initramfs:
    archive = Initramfs()
    archive.file("bin/busybox", root.busybox(architecture).read_bytes(), executable=True)
    archive.link("bin/sh", "busybox")
    archive.file("bin/begin", _BEGIN.encode(), executable=True)
    archive.file("bin/worker", _WORKER.encode(), executable=True)
    archive.file("bin/sampler", _SAMPLER.encode(), executable=True)
    archive.file("init", _INIT.encode(), executable=True)
    for folder in ("proc", "sys"):
        archive.folder(folder)
    # The kernel opens the console for init before init has mounted devtmpfs.
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3)
    return archive


def lines(console: str) -> list[str]:
    """Split console output into lines without the carriage returns that a terminal adds."""
    return console.replace("\r", "").split("\n")


def count_lines(console: str) -> dict[int, list[CountLine]]:
    """Read the workers' lines, by CPU, in the order printed. A line cut off at the end is not one."""
    found: dict[int, list[CountLine]] = {}
    for line in lines(console)[:-1]:
        if match := _COUNT_LINE.match(line):
            entry = CountLine(int(match[1]), int(match[2]), int(match[3]), float(match[4]))
            found.setdefault(entry.cpu, []).append(entry)
    return found


def advance(total: int, n: int, work: int = WORK) -> int:
    """Give the sum that line *n* carries when the line before carried *total* (0 before the first)."""
    for step in range(1, work + 1):
        total = (total * 31 + n + step) & 0x7FFFFFFF
    return total


def count_faults(found: Iterable[CountLine], *, first: int = 1, last: int = COUNT, work: int = WORK) -> list[str]:
    """Say what is wrong with one CPU's lines: lost, repeated, wrong in sum, or running backwards. Empty when nothing."""
    faults: list[str] = []
    total, expected, uptime_s = 0, first, 0.0
    for n in range(1, first):
        total = advance(total, n, work)
    for entry in found:
        if entry.n != expected:
            faults.append(f"W{entry.cpu}: line {entry.n} where {expected} was due")
            return faults
        total = advance(total, entry.n, work)
        if entry.total != total:
            faults.append(f"W{entry.cpu}: line {entry.n} carries {entry.total}, wanted {total}")
        if entry.uptime_s < uptime_s:
            faults.append(f"W{entry.cpu}: uptime went back from {uptime_s} to {entry.uptime_s} at line {entry.n}")
        uptime_s, expected = entry.uptime_s, expected + 1
    if expected != last + 1:
        faults.append(f"ended after line {expected - 1}, wanted {last}")
    return faults


def between(console: str, begin: str, end: str) -> list[str]:
    """Give the lines between the line *begin* and the line *end*. Raises `ValueError` when either is absent."""
    every = lines(console)
    start = every.index(begin) + 1
    return every[start : every.index(end, start)]


def kernel_log(console: str) -> list[str]:
    """Give the report's kernel messages without their times."""
    return [_KERNEL_TIME.sub("", line) for line in between(console, "DMESG-BEGIN", "DMESG-END")]


def kernel_log_after_mark(console: str) -> list[str]:
    """Give what the kernel logged after `MARK`, without times, of which an undisturbed run has nothing."""
    log = kernel_log(console)
    return [line for line in log[log.index(KERNEL_MARK) + 1 :] if not SLOW_HOST.fullmatch(line)]


def value(console: str, name: str) -> str:
    """Give the rest of the first line that begins with *name* and a space. Raises `ValueError` when there is none."""
    for line in lines(console):
        head, _, rest = line.partition(" ")
        if head == name:
            return rest
    raise ValueError(f"no line {name!r} in the console's output")


def interrupts(text: str) -> dict[str, list[int]]:
    """Read `/proc/interrupts`: the counts of each CPU by the line's number and names."""
    head, *rows = lines(text)
    cpus = len(head.split())
    found = {}
    for row in filter(None, rows):
        number, _, rest = row.strip().partition(":")
        words = rest.split()
        counts = [int(word) for word in words[:cpus] if word.isdigit()]
        found[" ".join([number, *words[len(counts) :]])] = counts
    return found
