"""The same guest with the same devices under snapkit and under QEMU, its peer, in the outer machine.

A monitor boots a `Devices` machine as a job that carries the console, saves it to a file and ends, and restores it from
there with another TAP. QEMU tells a fault of the lab from a fault of snapkit, and is the other side of the figures.
"""

import json
import shlex
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path

from tests.lab.guest import GuestFiles
from tests.lab.outer import Job, Outer, Result

TRANSPORTS = ("pci", "mmio")
CONTROL = Path(__file__).with_name("inside_control.py")
MAC = "52:54:00:12:34:56"
CID = 3
LIFE_S = 900.0
ORDER_S = 200.0


@dataclass(frozen=True)
class Devices:
    """A machine with one device of each kind. Paths are those inside the outer machine."""

    files: GuestFiles
    transport: str
    cmdline: str
    disk: Path
    tap: str
    folder: Path
    """For sockets."""

    memory_mib: int = 256
    vcpus: int = 2


class Monitor(ABC):
    """A program that runs machines; one machine at a time."""

    name: str

    @property
    def vmgenid(self) -> bool:
        """Whether a guest finds one."""
        return self.outer.architecture.vmgenid

    def __init__(self, outer: Outer, devices: Devices) -> None:
        self.outer, self.devices = outer, devices
        self.control = devices.folder / f"{self.name}.sock"

    def boot(self) -> Job:
        """Start the machine."""
        return self._start(self._boot_command())

    def restore(self, file: Path, tap: str) -> Job:
        """Start the machine from *file*, with another TAP."""
        self.devices = replace(self.devices, tap=tap)
        job = self._start(self._restore_command(file))
        self.await_running(job)
        return job

    def await_running(self, job: Job) -> None:
        """Wait until a restored machine runs, where input before that would be lost; here it would not."""
        assert job.argv

    @abstractmethod
    def save(self, file: Path) -> Result:
        """Save the machine to *file* and end it."""

    @abstractmethod
    def balloon(self, mib: int) -> Result:
        """Ask the guest to give up *mib*."""

    @abstractmethod
    def listen(self, port: int) -> str:
        """Give the order of `tests.lab.inside_network` that echoes on the guest's vsock connections to *port*."""

    @abstractmethod
    def call(self, port: int, text: str) -> str:
        """Give the order that calls the guest's vsock *port*."""

    @abstractmethod
    def _boot_command(self) -> list[str]: ...

    @abstractmethod
    def _restore_command(self, file: Path) -> list[str]: ...

    def _start(self, command: list[str]) -> Job:
        return self.outer.start(command, timeout=LIFE_S, keep_stdin=True)

    def _request(self, *words: str) -> list[str]:
        return [self.outer.python, "-I", "-S", str(CONTROL), words[0], str(self.control), *words[1:]]


class Snapkit(Monitor):
    """The checkout's snapkit."""

    name = "snapkit"

    def save(self, file: Path) -> Result:
        verbs = ("pause", str(self.control)), ("snapshot", str(self.control), str(file)), ("stop", str(self.control))
        lines = [shlex.join(self.outer.snapkit(*verb)) for verb in verbs]
        return self.outer.run(["sh", "-c", " && ".join(lines)], timeout=ORDER_S)

    def balloon(self, mib: int) -> Result:
        body = json.dumps({"amount_mib": mib})
        return self.outer.run(self._request("http", "PATCH", "/balloon", body), timeout=ORDER_S)

    def listen(self, port: int) -> str:
        return f"unix {self._uds}_{port}"

    def call(self, port: int, text: str) -> str:
        return f"call-unix {self._uds} {port} {text}"

    @property
    def _uds(self) -> Path:
        return self.devices.folder / "vsock"

    def _boot_command(self) -> list[str]:
        devices = self.devices
        return self.outer.snapkit(
            *("boot", devices.files.packed, "--initrd", devices.files.initrd, "--cmdline", devices.cmdline),
            *("--memory", f"{devices.memory_mib}M", "--vcpus", str(devices.vcpus), "--transport", devices.transport),
            *("--disk", f"id=data,path={devices.disk}", "--net", f"id=eth0,tap={devices.tap},mac={MAC}"),
            *("--vsock", f"id=v0,cid={CID},uds={self._uds}", "--rng", "--balloon", "--control", self.control),
        )

    def _restore_command(self, file: Path) -> list[str]:
        return self.outer.snapkit(
            "restore", file, "--net", f"id=eth0,tap={self.devices.tap}", "--control", self.control
        )


class Qemu(Monitor):
    """QEMU, on x86-64 q35 for PCI and microvm for MMIO, without what the guest does not need."""

    name = "qemu"

    @property
    def vmgenid(self) -> bool:
        return self.devices.transport in self.outer.architecture.peer_vmgenid

    def await_running(self, job: Job) -> None:
        # What arrives while it still reads the file is overwritten by the serial port's state from there.
        while job.running:
            if self.outer.run(self._request("qmp", "running"), timeout=ORDER_S).code == 0:
                return

    def save(self, file: Path) -> Result:
        migrate = {"execute": "migrate", "arguments": {"uri": f"exec:cat>{shlex.quote(str(file))}"}}
        commands = [{"execute": "stop"}, migrate, "saved", {"execute": "quit"}]
        words = [command if isinstance(command, str) else json.dumps(command) for command in commands]
        return self.outer.run(self._request("qmp", *words), timeout=ORDER_S)

    def balloon(self, mib: int) -> Result:
        target = (self.devices.memory_mib - mib) << 20
        order = json.dumps({"execute": "balloon", "arguments": {"value": target}})
        return self.outer.run(self._request("qmp", order), timeout=ORDER_S)

    def listen(self, port: int) -> str:
        return f"vsock {port}"

    def call(self, port: int, text: str) -> str:
        return f"call-vsock {CID} {port} {text}"

    def _boot_command(self) -> list[str]:
        return self._command("11111111-2222-3333-4444-555555555555")

    def _restore_command(self, file: Path) -> list[str]:
        incoming = f"exec:cat {shlex.quote(str(file))}"
        return [*self._command("66666666-7777-8888-9999-aaaaaaaaaaaa"), "-incoming", incoming]

    def _command(self, generation: str) -> list[str]:
        devices = self.devices
        pci = devices.transport == "pci"
        kind = "pci" if pci else "device"
        architecture = self.outer.architecture
        command = [architecture.emulator, "-M", architecture.peer[devices.transport]]
        command += ["-accel", "kvm", "-cpu", "host", "-nodefaults", "-no-user-config"]
        # Without QEMU's run state in it, or a machine saved while stopped stays stopped when it is restored.
        command += ["-global", "migration.store-global-state=off"]
        command += ["-display", "none", "-no-reboot", "-serial", "stdio", "-smp", str(devices.vcpus)]
        command += ["-m", f"{devices.memory_mib}M", "-qmp", f"unix:{self.control},server,wait=off"]
        command += ["-kernel", str(devices.files.packed), "-initrd", str(devices.files.initrd)]
        command += ["-append", devices.cmdline]
        command += ["-drive", f"file={devices.disk},format=raw,if=none,id=data,file.locking=off"]
        command += ["-netdev", f"tap,id=eth0,ifname={devices.tap},script=no,downscript=no"]
        modern = ",disable-legacy=on" if pci else ""
        for device in (
            f"virtio-blk-{kind},drive=data",
            f"virtio-net-{kind},netdev=eth0,mac={MAC}" + (",romfile=" if pci else ""),
            f"vhost-vsock-{kind},guest-cid={CID}",
            f"virtio-rng-{kind}",
            f"virtio-balloon-{kind},deflate-on-oom=on",
        ):
            command += ["-device", device + modern]
        if not pci:
            command += ["-global", "virtio-mmio.force-legacy=off"]
        if self.vmgenid:
            command += ["-device", f"vmgenid,guid={generation}"]
        return command
