"""How the lab's outer machine starts: QEMU's command line, and the first steps inside it.

Its root is mounted from a share of this host's whole root. Where the architecture is the host's, that is the machine's
root as well; else it is a memory file system, with what `tests.lab.root` made bound into it. Either has the checkout and
the lab's cache under their own paths, a `/tmp` of its own, and the run's writable share.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.lab import packages
from tests.lab.architecture import Architecture
from tests.lab.cpio import Initramfs
from tests.lab.kernels import Kernel
from tests.lab.root import PYTHON, Root, busybox

# Those in the second line are for the guests' devices; vhost_vsock for those of the peer, QEMU.
_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", *("tun", "vhost_vsock"))
_SHARE = "trans=virtio,version=9p2000.L,msize=262144"
# Soft lockups: one nested boot in about a hundred stopped with a CPU in KVM for good; better a machine that ends with its
# story on the console than one that hangs.
_KERNEL_OPTIONS = (
    "loglevel=5 panic=-1 mitigations=off cryptomgr.notests "
    "watchdog_thresh=30 softlockup_panic=1 softlockup_all_cpu_backtrace=1"
)
# KVM keeps the TSC's rate of the moment that it is loaded, where the CPU does not say that the rate is constant. Linux
# measures it again a second after its start; where the load of this host made the first measure wrong by more than 250 ppm,
# KVM then gives vCPUs no TSC multiplier at all ("user requested TSC rate below hardware speed", or nothing), and their timers
# never fire: kvm_set_tsc_khz and set_tsc_khz of arch/x86/kvm/x86.c. Linux has its measure when it leaves this clocksource.
_UNTIL_CLOCK_IS_KNOWN = (
    "for try in $(seq 600); do grep -q tsc-early /sys/devices/system/clocksource/clocksource0/current_clocksource || break; "
    "sleep 0.1; done"
)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_AGENT = Path(__file__).with_name("agent.py")


@dataclass(frozen=True)
class Boot:
    """What one outer machine starts from."""

    architecture: Architecture
    cpu: str
    cpus: int
    memory_mib: int
    kernel: Kernel
    root: Root | None
    """None for the host's own."""

    share: Path
    """Writable from both sides."""

    counted: bool = False
    """Time inside is a count of instructions, 4 ns each, on one CPU: no load of this host disturbs it."""

    @property
    def python(self) -> str:
        """The interpreter inside that has the project's dependencies."""
        return PYTHON if self.root else sys.executable

    def command(self, *, initrd: Path, console: Path, port: int, monitor: int) -> list[str]:
        """Give QEMU's command line. It takes over the fds *port*, the agent's, and *monitor*."""
        folders = {"hostroot": ("/", "readonly=on,"), "share": (str(self.share), "")}
        command = ["setpriv", "--pdeathsig", "KILL", self.architecture.emulator]
        command += ["-M", *self.architecture.machine, "-cpu", self.cpu, "-m", str(self.memory_mib)]
        if self.counted:
            command += ["-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=2"]
        else:
            command += ["-accel", "tcg,thread=multi", "-smp", str(self.cpus)]
        command += ["-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{_escaped(console)}"]
        command += ["-kernel", str(self.kernel.vmlinuz), "-initrd", str(initrd)]
        command += ["-append", f"{self.architecture.kernel_options} {_KERNEL_OPTIONS}"]
        for tag, (path, mode) in folders.items():
            options = f"local,path={_escaped(path)},mount_tag={tag},security_model=none,{mode}multidevs=remap"
            command += ["-virtfs", options]
        command += ["-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=readline"]
        command += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={port}"]
        command += ["-device", "virtserialport,chardev=agent,name=snapkit.agent"]
        return command

    def initramfs(self) -> bytes:
        """Give what the machine's kernel starts."""
        archive = Initramfs()
        archive.file("bin/busybox", busybox(self.architecture).read_bytes(), executable=True)
        archive.link("bin/sh", "busybox")
        loads = []
        for number, (path, parameters) in enumerate(self.kernel.modules(*_MODULES, *self.architecture.modules)):
            name = f"modules/{number:02}-{path.name}"
            archive.file(name, path.read_bytes())
            loads.append(f"insmod /{name} {parameters}")
        archive.file("init", self._init(loads).encode(), executable=True)
        for folder in ("proc", "sys", "dev", "host", "under"):
            archive.folder(folder)
        archive.character_device("dev/console", 5, 1)
        return archive.pack()

    def _init(self, loads: list[str]) -> str:
        share = shlex.quote(str(self.share))
        agent = shlex.join([self.python, "-I", "-S", str(_AGENT)])
        environment = f"PATH={_PATH} HOME=/tmp LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 PYTHONFAULTHANDLER=1"
        lines = [
            "#!/bin/busybox sh",
            "/bin/busybox mount -t proc proc /proc",
            "mount -t sysfs sysfs /sys",
            "mount -t devtmpfs devtmpfs /dev",
            _UNTIL_CLOCK_IS_KNOWN,
            *loads,
            f"mount -t 9p -o {_SHARE},cache=loose,ro hostroot /under",
            *(self._bind_root(self.root) if self.root else self._bind_hosts_root()),
            f"mkdir -p /host{share}",
            f"mount -t 9p -o {_SHARE},cache=none share /host{share}",
            "for name in dev proc sys; do mount -o bind /$name /host/$name; done",
            "mkdir -p /dev/pts /dev/shm",
            "mount -t devpts devpts /host/dev/pts",
            "mount -t tmpfs tmpfs /host/dev/shm",
            "ip link set lo up",
            f"cd /host && chroot /host env -i {environment} {agent}",
            'echo "agent: ended"',
            "poweroff -f",
        ]
        return "\n".join(lines) + "\n"

    def _bind_hosts_root(self) -> list[str]:
        # The inside has its own /tmp; what the jobs need of the host's is bound back into it.
        needed = [packages.CHECKOUT, packages.cache_folder(), Path(sys.prefix), Path(sys.base_prefix)]
        return [
            "mount -o bind /under /host",
            "mount -t tmpfs -o size=75% tmpfs /host/tmp",
            *(_bind(path, path) for path in needed if path.is_relative_to("/tmp")),
        ]

    def _bind_root(self, root: Root) -> list[str]:
        lines = [
            "mount -t tmpfs -o size=75% tmpfs /host",
            "mkdir -p /host/tmp /host/var/tmp /host/run /host/dev /host/proc /host/sys",
        ]
        for path in sorted(root.tree.iterdir()):
            inside = Path("/", path.name)
            if path.is_symlink():
                lines.append(f"ln -s {shlex.quote(os.readlink(path))} /host{inside}")
            elif path.name in {"etc", "usr"}:
                lines.append(_bind(path, inside))
        lines.append(_bind(root.site, Path(root.site_inside)))
        lines += [_bind(path, path) for path in (packages.CHECKOUT, packages.cache_folder())]
        return lines


def _bind(path: Path, inside: Path) -> str:
    place = shlex.quote(f"/host{inside}")
    return f"mkdir -p {place} && mount -o bind {shlex.quote(f'/under{path}')} {place}"


def _escaped(path: str | os.PathLike[str]) -> str:
    """Write a path for QEMU's option syntax, where a comma separates."""
    return os.fspath(path).replace(",", ",,")
