"""The peer of a cold restore: QEMU with the same guest, memory and serial port, started from a file that it wrote.

`-M microvm` is QEMU's leanest machine and the nearest to ours: PICs, PIT and a 16550, no PCI; what it can do without is
switched off. The demo guest greets there and then sends nothing more (# unverified: no timer interrupt), so its peer is
`-M q35`. The state is stored without QEMU's run state (`store-global-state=off`): QEMU lets the guest run as soon as it
has read the file, and no QMP round trip is in the figure. `-incoming exec:cat` starts a shell and a cat; with `fd:N` QEMU reads the file itself, its very best.
"""

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from tests.bench.children import PATIENCE_S, first_output_ms

PROGRAM = "qemu-system-x86_64"
MACHINES = {
    "microvm": "microvm,acpi=off,pcie=off,usb=off,rtc=off,x-option-roms=off",
    "q35": "q35",
}


def present() -> bool:
    """Whether QEMU is installed here."""
    return shutil.which(PROGRAM) is not None


def command(machine: str, kernel: str, mib: int, *more: str) -> list[str]:
    """Return the command line of the peer."""
    return [
        *(PROGRAM, "-M", MACHINES[machine], "-accel", "kvm", "-cpu", "qemu64", "-m", f"{mib}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-kernel", kernel),
        *more,
    ]


class Peer:
    """A guest that QEMU has stored at work."""

    def __init__(self, machine: str, kernel: str, mib: int, folder: Path, *, after: str) -> None:
        """Boot *kernel*, stop it once it has sent *after*, store it in *folder*."""
        self._start = command(machine, kernel, mib)
        self._file = folder / f"{machine}-{Path(kernel).stem}-{mib}.migration"
        if not self._file.exists():
            self._store(folder / "qmp", after.encode())

    def by_cat(self) -> float:
        """Milliseconds from the start of QEMU to the first output, the file read as people do."""
        return first_output_ms(*self._start, "-incoming", f"exec:cat {self._file}")

    def by_fd(self) -> float:
        """Milliseconds from the start of QEMU to the first output, the file read by QEMU itself."""
        fd = os.open(self._file, os.O_RDONLY)
        try:
            return first_output_ms(*self._start, "-incoming", f"fd:{fd}", pass_fds=[fd])
        finally:
            os.close(fd)

    def _store(self, control: Path, after: bytes) -> None:
        more = ["-qmp", f"unix:{control},server,wait=off", "-global", "migration.store-global-state=off"]
        control.unlink(missing_ok=True)
        with (
            socket.socket(socket.AF_UNIX) as qmp,
            subprocess.Popen([*self._start, *more], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process,
        ):
            try:
                assert process.stdout is not None
                _connect(qmp, control, process)
                sent = b""
                while after not in sent:
                    sent += (part := os.read(process.stdout.fileno(), 4096))
                    assert part, sent
                _ask(qmp, "stop")
                _ask(qmp, "migrate", uri=f"exec:cat>{self._file}")
                while (status := _ask(qmp, "query-migrate").get("status")) != "completed":
                    assert status != "failed"
            finally:
                process.kill()


def _connect(qmp: socket.socket, control: Path, process: "subprocess.Popen[bytes]") -> None:
    qmp.settimeout(PATIENCE_S)
    while True:
        assert process.poll() is None, "QEMU ended"
        try:
            qmp.connect(str(control))
        except (FileNotFoundError, ConnectionRefusedError):
            os.sched_yield()
        else:
            break
    _ask(qmp, "qmp_capabilities")


def _ask(qmp: socket.socket, execute: str, **arguments: str) -> dict[str, Any]:
    """Send one command and return its answer; what comes between is passed over."""
    qmp.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n")
    buffered = b""
    while True:
        line, found, buffered = buffered.partition(b"\n")
        if not found:
            buffered = line + (part := qmp.recv(65536))
            assert part, "QEMU hung up"
            continue
        answer = json.loads(line)
        assert "error" not in answer, answer
        if "return" in answer:
            return dict(answer["return"])
