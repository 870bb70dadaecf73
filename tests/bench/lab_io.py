"""Disk and network of snapkit against QEMU, both with KVM in the lab's outer machine, same guest, same image.

    python -m tests.bench.lab_io [--transport pci|mmio] [--rounds N] [--seconds S] [--only MONITOR] [--profile] [--cpus N]

Both monitors run alternately in one outer machine. QEMU has its defaults: its disk through the host's page cache with a
pool of threads, its network by TAP without vhost. Everything is emulated here, KVM itself as well, and that costs an exit
far more than it costs an instruction: only the ratios mean something.

With `--profile` snapkit runs under cProfile once more, which shows where the time goes, not how much of it.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.figures import Cell, Figures
from tests.lab import guest, work
from tests.lab.architecture import X86_64
from tests.lab.console import CommandConsole
from tests.lab.guest import GuestFiles
from tests.lab.kernels import kernel
from tests.lab.monitors import Devices, Monitor, Qemu, Snapkit
from tests.lab.network import GUEST, HOST, Network
from tests.lab.outer import Outer

RESULT = Path(__file__).resolve().parents[2] / "build" / "bench-lab.json"
DISK_MIB = 256
TAP = "tap0"
PORT = 5001
WANTED = 0.5
OFFLOADS = {"CSUM": 0, "GUEST_CSUM": 1, "GUEST_TSO4": 7, "HOST_TSO4": 11, "MRG_RXBUF": 15}  # virtio 1.2, 5.1.3

FIO = "fio --name=b --filename=/dev/vda --readonly --ioengine=libaio --direct=1 --time_based --ramp_time=1 --size=256M"
DISK = {
    "128 KiB sequential reads, depth 32": ("--rw=read --bs=128k --iodepth=32", "KiB/s", 7),
    "4 KiB random reads, depth 1": ("--rw=randread --bs=4k --iodepth=1", "IOPS", 8),
    "4 KiB random reads, depth 32": ("--rw=randread --bs=4k --iodepth=32", "IOPS", 8),
}
STREAMS = {
    "TCP from the guest": ("sink", f"socat -u -b 262144 OPEN:/dev/zero TCP:{HOST}:{PORT},retry=100,interval=0.2"),
    "TCP to the guest": ("source", f"socat -u -b 262144 TCP:{HOST}:{PORT},retry=100,interval=0.2 - >/dev/null"),
}
Rates = dict[str, list[float]]


class Profiled(Snapkit):
    """snapkit under cProfile, all of its threads."""

    name = "profiled"

    def _boot_command(self) -> list[str]:
        program, dash, module, *words = super()._boot_command()
        assert (dash, module) == ("-m", "snapkit")
        return [program, str(Path(__file__).with_name("inside_profile.py")), *words]


@contextmanager
def running(monitor: Monitor) -> Iterator[CommandConsole]:
    """A guest with its network up, until it is told to end."""
    console = CommandConsole(monitor.boot())
    try:
        console.ready()
        console.text(f"ip link set lo up; ip link set eth0 up; ip addr add {GUEST}/24 dev eth0")
        yield console
        console.job.write(b"exit\n")
        print(console.job.wait().stderr)
    finally:
        console.kill()


def offloads(console: CommandConsole) -> str:
    """Name the offloads that guest and device agreed on."""
    bits = console.text("cat /sys/class/net/eth0/device/features").strip()
    return " ".join(name for name, bit in OFFLOADS.items() if bits[bit] == "1")


def measure(console: CommandConsole, net: Network, seconds: int, rates: Rates) -> None:
    """Take one value of each figure."""
    for title, (options, _, column) in DISK.items():
        command = f"{FIO} {options} --runtime={seconds} --output-format=terse --terse-version=3 --eta=never"
        text = console.text(f"{command} | cut -d';' -f{column}", timeout=120 + 4 * seconds)
        rates.setdefault(title, []).append(float(text.splitlines()[-1]))
    for title, (order, command) in STREAMS.items():
        name = net.begin(f"{order} {PORT} {seconds}")
        console.run(f"{command} 2>/run/socat", timeout=120 + 4 * seconds)  # ends by the other side's hanging up
        state, rate = net.answer(name).split(maxsplit=1)
        assert state == "OK", rate
        rates.setdefault(title, []).append(float(rate) / 1024)


def rows(rates: dict[str, Rates]) -> list[dict[str, Cell]]:
    """Put the medians of both beside each other."""
    table: list[dict[str, Cell]] = []
    units = {title: unit for title, (_, unit, _) in DISK.items()}
    for title in [*DISK, *STREAMS]:
        values = {name: statistics.median(rates[name][title]) for name in rates}
        row: dict[str, Cell] = {"what": title, "unit": units.get(title, "KiB/s"), **values}
        if len(values) == len(SIDES):
            wanted = "shown" if title.startswith("4 KiB") else f"at least {WANTED}"
            row |= {"ratio": values["snapkit"] / values["qemu"], "wanted": wanted}
        table.append(row)
    return table


SIDES: dict[str, type[Monitor]] = {"snapkit": Snapkit, "qemu": Qemu}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transport", choices=("pci", "mmio"), default="pci")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--only", choices=tuple(SIDES))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--cpus", type=int, default=1, help="of the outer machine; with two it dies now and then")
    options = parser.parse_args()
    chosen = {name: side for name, side in SIDES.items() if options.only in {None, name}}
    rates: dict[str, Rates] = {name: {} for name in chosen}
    generic = kernel(X86_64, X86_64.outer_kernel)
    with Outer(cpus=options.cpus) as outer:
        net = Network(outer)
        net.tap(TAP)
        initrd = outer.share / "tools.cpio"
        initrd.write_bytes(guest.tools_initramfs(X86_64, generic, work.SCRIPTS))
        files = GuestFiles(generic.packed, generic.plain, initrd)
        disk = outer.work / "disk"
        made = outer.run(["sh", "-c", f"head -c {DISK_MIB}M /dev/urandom >{disk}"], timeout=300)
        assert made.code == 0, made
        line = "console=ttyS0 quiet panic=-1 scenario=commands"
        machine = Devices(files, options.transport, line, disk, TAP, outer.work)
        for number in range(options.rounds):
            for name, side in chosen.items():
                with running(side(outer, machine)) as console:
                    print(f"round {number + 1}, {name}: {offloads(console)}")
                    measure(console, net, options.seconds, rates[name])
        figures = Figures()
        figures.show(
            f"lab_io_{options.transport}",
            f"Disk and network over {options.transport}, medians of {options.rounds}",
            rows(rates),
        )
        if options.profile:
            with running(Profiled(outer, machine)) as console:
                measure(console, net, options.seconds, {})
        net.close()
    figures.write(RESULT)
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
