"""``--sandbox``: once everything of the host is open, a machine's process gives up what it does not need to run it.

It happens between the stages *claim* and *rebuild*, before any thread, in the command and never in the library: whose
process it is decides. Everything that is read of the file has been checked by then; the guest has not run yet.

What holds afterwards, for the process and every thread of it, whoever has taken it over:

- Only the calls and ioctls of `sandbox_calls` are made. No program is run, no process is made, no memory becomes
  executable, no socket is made but for a vsock device. What is refused and what ends the process is said there.
- Files are opened, made, renamed and removed only below ``--snapshot-dir``, and without that nowhere: seccomp denies
  openat(2). With it seccomp cannot help, since it sees no paths, and a directory's fd does not hold against ``..``; so
  Landlock does, and a kernel without it cannot have ``--snapshot-dir``. (It also allows reading of /proc/self, which
  tells which of RAM was never touched.) A link in the directory that leads out of it leads nowhere.
- No signal reaches another process, and no abstract Unix socket is connected to (Landlock version 6, Linux 6.12).

What does not hold:

- What is open stays open: images may be written, TAPs sent to, and all that is below the snapshot directory be read,
  replaced and removed, snapshots of other machines among it.
- With a vsock device any Unix socket with a path may be connected to that this user may use: the guest chooses the
  port, so the path is not known before. Give such a machine a user, or a mount namespace, of its own.
- With ``--snapshot-dir`` anybody's file names, lengths and times can be asked for (Landlock does not cover stat(2)).
- Faults of the kernel in what is allowed, KVM above all.

What a machine in a sandbox does without: another image for a disk (``PATCH /drives``) from outside the snapshot
directory; ``--reboot``, which would open all anew; the names of its sockets, and an overlay made for a restore that
fails later, stay behind unless they lie in the snapshot directory. Whoever listens there next replaces a dead socket.

Modules imported late must be imported before: `LATE` names them, and a test holds it against every import there is.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from typing import Any

from snapkit import host, host_sandbox
from snapkit.cli import sandbox_calls as calls
from snapkit.cli.sandbox_calls import Calls
from snapkit.errors import ConfigError, HostError, IncompatibleHost
from snapkit.host_sandbox import ALLOW, KILL, PathRight, Rule, Where

OTHERWISE = errno.EPERM
SNAPSHOT_RIGHTS = (
    host_sandbox.FS_READ_FILE
    | host_sandbox.FS_WRITE_FILE
    | host_sandbox.FS_TRUNCATE
    | host_sandbox.FS_READ_DIR
    | host_sandbox.FS_REMOVE_FILE
    | host_sandbox.FS_MAKE_REG
)
"""No directories, links, devices or sockets are made, and nothing is run."""

ALWAYS, BOOT, COPY, KEY, CONTROL, JSON, SNAPSHOTS, DEVICES, VSOCK = (
    "",
    "a new machine is built",
    "memory is copied and checked",
    "digests have a key",
    "there is a control socket",
    "the end is told as JSON",
    "snapshots may be made",
    "there are devices",
    "there is a vsock device",
)
"""What a machine may have ahead of it: `Sandbox.enter` is told."""
BOOT_X86, BOOT_ARM = (f"{BOOT} on {machine}" for machine in ("x86_64", "aarch64"))
"""`BOOT`, by this host's architecture."""

LATE: Mapping[str, tuple[str, ...]] = {
    "concurrent.futures.thread": (COPY,),
    "elftools.common.exceptions": (BOOT,),
    "elftools.common.utils": (BOOT,),
    "elftools.elf.elffile": (BOOT,),
    "encodings.unicode_escape": (ALWAYS,),  # an error that quotes what is no text
    "fdt": (BOOT_ARM,),
    "hmac": (KEY,),
    "json": (CONTROL, JSON),
    "snapkit.restore.save": (CONTROL, SNAPSHOTS),
    "snapkit.vmm.arch.aarch64.boot": (BOOT_ARM,),
    "snapkit.vmm.arch.x86_64.acpi": (BOOT_X86,),
    "snapkit.vmm.arch.x86_64.acpi_devices": (BOOT_X86,),
    "snapkit.vmm.arch.x86_64.boot": (BOOT_X86,),
    "snapkit.vmm.arch.x86_64.cpuid": (BOOT_X86,),
    "snapkit.vmm.arch.x86_64.firmware": (BOOT_X86,),
    "snapkit.vmm.backends.http": (CONTROL,),
    "snapkit.vmm.control": (CONTROL,),
    "snapkit.vmm.parts.device": (CONTROL, DEVICES),
    "socket": (CONTROL, VSOCK),
}
"""What is imported after *claim*, by whom it is needed: each costs a start-up what it costs."""


class Sandbox:
    """The sandbox that a command was asked for. `enter` it once."""

    def __init__(self, snapshot_dir: str | None) -> None:
        """Look whether there can be one, and open *snapshot_dir*.

        Raises ConfigError for what is not installed or no directory, IncompatibleHost for what the kernel lacks.
        """
        host_sandbox.require_library()
        self._snapshot_dir = None if snapshot_dir is None else os.path.realpath(snapshot_dir)
        self._allowed: list[PathRight] = []
        if self._snapshot_dir is not None:
            if not host_sandbox.landlock_version():
                raise IncompatibleHost(
                    "--snapshot-dir needs Landlock, which this kernel lacks, or was started without (lsm=): "
                    "without --snapshot-dir a machine can run in a sandbox, and make no snapshots"
                )
            self._allowed = [
                PathRight(_open_directory(self._snapshot_dir), SNAPSHOT_RIGHTS),
                # held open for good: while it is, the kernel keeps the very inode that Landlock knows
                PathRight(_open_directory("/proc/self"), host_sandbox.FS_READ_FILE),
            ]

    def enter(self, kinds: Iterable[str], ahead: Iterable[str]) -> None:
        """Give up what a machine of *kinds* does not need to run; *ahead* tells what `LATE` asks for of the rest.

        Raises HostError, and InternalError when another thread runs.
        """
        kinds = set(kinds)
        asked, needs = {""}, {ALWAYS, *ahead}
        if self._snapshot_dir is not None:
            asked.add(calls.SNAPSHOTS)
            needs.add(SNAPSHOTS)
        if "virtio-vsock" in kinds:
            asked.add(calls.VSOCK)
            needs.add(VSOCK)
        if any(kind.startswith("virtio-") for kind in kinds):
            needs.add(DEVICES)
        if BOOT in needs:
            needs.add(f"{BOOT} on {host.machine_name()}")
        _import_late(kinds, needs)
        host_sandbox.confine(rules(asked), otherwise=OTHERWISE, paths=self._allowed)

    def require_inside(self, *paths: str | None) -> None:
        """Raise ConfigError for a path that no snapshot can be written to."""
        for path in paths:
            if path is None:
                continue
            if self._snapshot_dir is None:
                raise ConfigError(f"{path} cannot be written: the machine is in a sandbox without --snapshot-dir")
            directory = os.path.realpath(os.path.dirname(path) or ".")
            if os.path.commonpath([directory, self._snapshot_dir]) != self._snapshot_dir:
                raise ConfigError(
                    f"{path} cannot be written: the machine is in a sandbox, and its --snapshot-dir is "
                    f"{self._snapshot_dir}"
                )

    def explain(self, error: BaseException) -> None:
        """Note on *error* that the sandbox is its cause, where it is."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, HostError) and cause.errno in {errno.EPERM, errno.EACCES}:
                where = f"only below {self._snapshot_dir}" if self._snapshot_dir else "nowhere"
                error.add_note(f"the machine is in a sandbox: it opens files {where}")
                return
            cause = cause.__cause__


def rules(asked: set[str]) -> Iterator[Rule]:
    """Give the filter's rules where *asked* holds: "" and what of SNAPSHOTS and VSOCK was asked for."""
    for one in calls.ALLOWED:
        if one.when in asked and one.names != "ioctl":
            yield from _each(one, ALLOW)
    for number in ioctl_numbers().values():
        yield Rule("ioctl", ALLOW, (Where(1, number),))
    yield from _each(calls.NOT_THERE, errno.ENOSYS)
    for one in calls.KILLED:
        yield from _each(one, KILL)


def ioctl_numbers() -> dict[str, int]:
    """Return the numbers of those ioctls of the list that this host's architecture has, by name."""
    from snapkit.vmm.kvm import abi

    own = import_module(f"snapkit.vmm.kvm.{'abi_arm' if host.machine_name() == 'aarch64' else 'abi_x86'}")
    known = {one.name: one.number for one in (*vars(abi).values(), *vars(own).values()) if isinstance(one, abi.Ioctl)}
    known |= calls.OTHER_IOCTLS
    return {name: known[name] for name in calls.IOCTLS if name in known}


def describe() -> dict[str, Any]:
    """Return what a sandbox is on this host, as JSON-able data, for ``doctor``."""
    missing = ""
    try:
        host_sandbox.require_library()
    except ConfigError as error:
        missing = str(error)
    return {
        "usable": not missing,
        "why": missing,
        "landlock": host_sandbox.landlock_version(),
        "allowed": [_row(one) for one in calls.ALLOWED],
        "ioctls": {name: {"number": number, "why": calls.IOCTLS[name]} for name, number in ioctl_numbers().items()},
        "killed": [_row(one) for one in calls.KILLED],
        "not_there": [_row(calls.NOT_THERE)],
        "otherwise": errno.errorcode[OTHERWISE],
    }


def _row(one: Calls) -> dict[str, Any]:
    row: dict[str, Any] = {"calls": one.names.split(), "why": one.why, "only": one.only, "when": one.when}
    return {name: value for name, value in row.items() if value}


def _each(one: Calls, action: str | int) -> Iterator[Rule]:
    conditions = tuple(
        where._replace(equal=host.process_id()) if where.equal == calls.OWN_PID else where for where in one.conditions
    )
    for name in one.names.split():
        yield Rule(name, action, conditions)


def _import_late(kinds: set[str], needs: set[str]) -> None:
    from snapkit.vmm.parts.board import MODULES, module_of

    for kind in MODULES:
        if BOOT in needs or kind in kinds:
            module_of(kind)
    for module, needed in LATE.items():
        if not needs.isdisjoint(needed):
            import_module(module)
    if SNAPSHOTS in needs:
        from snapkit.state.releases import current_release

        current_release()  # it reads a file, once


def _open_directory(path: str) -> int:
    try:
        return host.open_fd(path, os.O_RDONLY | os.O_DIRECTORY)
    except HostError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.EACCES}:
            why = os.strerror(error.errno).lower()
            raise ConfigError(f"{path} cannot be the directory for snapshots: {why}") from error
        raise
