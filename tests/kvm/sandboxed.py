"""The command line with witnesses: what is imported once the sandbox is entered, and what a running machine may still do.

    python -m tests.kvm.sandboxed '["open", "socket"]' restore vm.snap --sandbox

Just before its loop begins to serve the machine, each probe named is done, in turn; what came of them is a line of JSON
on stderr, ``probes {...}``: an errno's name, or "done". Some end the process. At the end comes ``late [...]``.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from snapkit import host_sandbox
from snapkit.cli import main
from snapkit.vmm.machine import Machine

LIBC = ctypes.CDLL(None, use_errno=True)
TIOCSTI = 0x5412
KVM_GET_API_VERSION = 0xAE00
PTRACE_TRACEME = 0
PR_SET_DUMPABLE = 4
CLONE3 = 435
OPENAT2 = 437
O_NEITHER = 3
FOLDER = os.environ.get("SANDBOX_FOLDER", "/nonexistent")
"""The snapshot directory; the test has put things into it and beside it."""


def checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "failed")


def opened(path: str, flags: int = os.O_RDONLY) -> Callable[[], None]:
    return lambda: os.close(os.open(path, flags, 0o600))


def mapped(prot: int) -> Callable[[], None]:
    return lambda: mmap.mmap(-1, 4096, prot=prot).close()


def made_executable() -> None:
    block = mmap.mmap(-1, 4096)
    checked(LIBC.mprotect(ctypes.byref(ctypes.c_char.from_buffer(block)), ctypes.c_size_t(4096), 5))


def unix_connected() -> None:
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as end:
        end.connect(f"{FOLDER}/../listener")


def unix_datagram() -> None:
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close()


def inet() -> None:
    socket.socket(socket.AF_INET).close()


def ioctl_on_terminal() -> None:
    fcntl.ioctl(0, TIOCSTI, b"x")


def ioctl_of_kvm() -> None:
    fcntl.ioctl(0, KVM_GET_API_VERSION, 0)


def opened_by_openat2() -> None:
    how = struct.pack("=QQQ", os.O_RDONLY, 0, 0)
    checked(LIBC.syscall(OPENAT2, -100, f"{FOLDER}/inside".encode(), how, len(how)))


def read_of_own_maps() -> None:
    with open("/proc/self/maps", "rb") as file:
        file.read()


def thread() -> None:
    one = threading.Thread(target=int)
    one.start()
    one.join()


PROBES: dict[str, Callable[[], Any]] = {
    # files
    "open outside": opened("/etc/passwd"),
    "open inside": opened(f"{FOLDER}/inside"),
    "create inside": opened(f"{FOLDER}/made", os.O_CREAT | os.O_RDWR),
    "create outside": opened(f"{FOLDER}/../made", os.O_CREAT | os.O_RDWR),
    "open by a link": opened(f"{FOLDER}/link"),
    "open by dots": opened(f"{FOLDER}/../outside"),
    "open to truncate": opened(f"{FOLDER}/inside", os.O_WRONLY | os.O_TRUNC),
    "open outside to truncate": opened(f"{FOLDER}/../outside", O_NEITHER | os.O_TRUNC),
    "openat2": opened_by_openat2,
    "truncate": lambda: os.truncate(f"{FOLDER}/inside", 0),
    "rename outwards": lambda: os.rename(f"{FOLDER}/inside", f"{FOLDER}/../gone"),
    "link inwards": lambda: os.link(f"{FOLDER}/../outside", f"{FOLDER}/linked"),
    "unlink outside": lambda: os.unlink(f"{FOLDER}/../outside"),
    "symlink": lambda: os.symlink("/etc/passwd", f"{FOLDER}/symlink"),
    "mkdir": lambda: os.mkdir(f"{FOLDER}/folder"),
    "chmod": lambda: os.chmod(f"{FOLDER}/inside", 0o777),
    "own maps": read_of_own_maps,
    "own memory": opened("/proc/self/mem", os.O_RDWR),
    "another's environment": opened(f"/proc/{os.getppid()}/environ"),
    # sockets
    "inet socket": inet,
    "unix socket": unix_connected,
    "unix datagrams": unix_datagram,
    # memory
    "executable memory": mapped(mmap.PROT_READ | mmap.PROT_EXEC),
    "memory": mapped(mmap.PROT_READ | mmap.PROT_WRITE),
    "memory made executable": made_executable,
    # others
    "ioctl of a terminal": ioctl_on_terminal,
    "ioctl of kvm": ioctl_of_kvm,
    "signal to the parent": lambda: os.kill(os.getppid(), 0),
    "signal to itself": lambda: signal.raise_signal(signal.SIGCONT),
    "prctl": lambda: checked(LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)),
    "thread": thread,
    "clone3": lambda: checked(LIBC.syscall(CLONE3, None, 0)),
    # what ends the process
    "execve": lambda: os.execv("/bin/true", ["true"]),
    "fork": os.fork,
    "ptrace": lambda: checked(LIBC.ptrace(PTRACE_TRACEME, 0, None, None)),
    "unshare": lambda: checked(LIBC.unshare(0)),
    "setuid": lambda: os.setuid(os.getuid()),
}


def attempt(name: str) -> str:
    try:
        PROBES[name]()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "done"


def run(probes: list[str]) -> None:
    late: list[str] = []
    inside = False
    confine, serve = host_sandbox.confine, Machine.run

    def entered(*args: Any, **kwargs: Any) -> None:
        nonlocal inside
        confine(*args, **kwargs)
        inside = True

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if inside and event == "import":
            late.append(args[0])

    def served(machine: Machine) -> Any:
        found = {name: attempt(name) for name in probes}
        print("probes", json.dumps(found), file=sys.stderr, flush=True)
        return serve(machine)

    sys.addaudithook(watch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_sandbox, "confine", entered)
        patch.setattr(Machine, "run", served)
        try:
            main()
        finally:
            print("late", json.dumps(late), file=sys.stderr, flush=True)


if __name__ == "__main__":
    asked = json.loads(sys.argv.pop(1))
    run(asked)
