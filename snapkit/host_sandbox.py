"""Giving up what a process will not need again: paths by Landlock, system calls by seccomp. There is no way back.

Linux Documentation/userspace-api/landlock.rst and seccomp_filter.rst. The filter is compiled by libseccomp, through the
package pyseccomp, which only a process that enters a sandbox imports. What is allowed is the caller's to say: `Rule`.

Surprises met on the way:

- both bind the thread that asks for them and what it starts from then on, not its siblings: there must be none;
- pyseccomp asks `ctypes.util.find_library` for its two libraries, which runs ldconfig and perhaps a compiler: 95 ms of
  the 100 that its import takes. Told their names, it takes 5;
- Landlock knows of truncating by path only since its third version (Linux 6.2), and O_TRUNC with the access mode 3 opens
  a file for neither reading nor writing: before that version it must be denied by its flag;
- glibc makes threads by clone3(2), whose flags lie in memory, where no filter sees them. Told ENOSYS, it uses clone(2);
- a thread that ends while the interpreter does has glibc load libgcc_s by its path: it is loaded before;
- the kernel looks at 32 bits of an ioctl's number, the filter at 64: an allow-list errs on the right side.
"""

import ctypes
import ctypes.util
import errno
import struct
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from snapkit import host
from snapkit.errors import ConfigError, InternalError
from snapkit.host import enter, failed

# UAPI linux/landlock.h. The numbers of the calls are the same on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
FS_WRITE_FILE, FS_READ_FILE, FS_READ_DIR, FS_REMOVE_FILE, FS_MAKE_REG = 1 << 1, 1 << 2, 1 << 3, 1 << 5, 1 << 8
FS_TRUNCATE = 1 << 14
_FS_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_FS_RIGHTS_5 = (1 << 16) - 1  # of version 5 and later: ioctl(2) on devices as well
_NET_RIGHTS_4 = 0b11  # TCP: bind, connect
_SCOPES_6 = 0b11  # abstract Unix sockets, signals: of those in the same sandbox only
_RULESET, _PATH_BENEATH = struct.Struct("=QQQ"), struct.Struct("=Qi")
_PR_SET_NO_NEW_PRIVS = 38

ALLOW = "allow"
KILL = "kill"
_NAMES = {"c": None, "seccomp": "libseccomp.so.2"}

_libc = ctypes.CDLL(None, use_errno=True)
_c_syscall = _libc.syscall
_c_syscall.restype = ctypes.c_long
_c_prctl = _libc.prctl


class Where(NamedTuple):
    """What an argument must be for a rule to hold: ``argument & mask == equal``; the first is number 0."""

    argument: int
    equal: int
    mask: int = 0xFFFF_FFFF_FFFF_FFFF


class Rule(NamedTuple):
    """What becomes of a system call where every condition holds: ALLOW, KILL (of the process), or an errno."""

    call: str
    action: str | int = ALLOW
    conditions: tuple[Where, ...] = ()


class PathRight(NamedTuple):
    """What may be done below the directory that is open as *fd*: FS_* rights."""

    fd: int
    rights: int


def landlock_version() -> int:
    """Return which Landlock this kernel has; 0 where it has none, or was started without."""
    found: int = _c_syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    return max(found, 0)


def require_library() -> None:
    """Raise ConfigError, saying what to install, where there is no libseccomp."""
    _seccomp()


def own_threads() -> int:
    """Return how many threads this process has. Raises HostError without /proc."""
    return len(host.listdir("/proc/self/task"))


def confine(rules: Iterable[Rule], *, otherwise: int, paths: Sequence[PathRight]) -> None:
    """Do with every system call what *rules* say, and fail it with the errno *otherwise* where they say nothing.

    Where the kernel has Landlock, whatever that knows of is denied with EACCES but for *paths*; what is open stays open.
    A call that this libseccomp or architecture does not have is passed over: nobody can allow it by mistake.

    Raises InternalError when another thread runs, ConfigError as `require_library`, HostError when the kernel refuses.
    """
    seccomp = _seccomp()
    if (count := own_threads()) != 1:
        raise InternalError(f"a sandbox is entered by one of {count} threads: the others would stay outside")
    ctypes.CDLL("libgcc_s.so.1")
    enter("seccomp", ())
    try:
        built = seccomp.SyscallFilter(seccomp.ERRNO(otherwise))
        built.set_attr(seccomp.Attr.ACT_BADARCH, seccomp.KILL_PROCESS)
        for rule in rules:
            number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, rule.call)
            if number >= 0:
                built.add_rule(_action(seccomp, rule.action), number, *_conditions(seccomp, rule.conditions))
        # no program that this process might become gains a privilege: both mechanisms want it so
        _checked("prctl", _c_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), ("PR_SET_NO_NEW_PRIVS",))
        if version := landlock_version():
            _restrict_paths(version, paths)
        built.load()
    except OSError as error:
        raise failed("seccomp", error.errno or errno.EINVAL, ()) from error


def _restrict_paths(version: int, allowed: Sequence[PathRight]) -> None:
    handled = _FS_RIGHTS.get(version, _FS_RIGHTS_5)
    attributes = _RULESET.pack(handled, _NET_RIGHTS_4 * (version >= 4), _SCOPES_6 * (version >= 6))
    fd = _call("landlock_create_ruleset", _CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for one in allowed:
            rule = _PATH_BENEATH.pack(one.rights & handled, one.fd)
            _call("landlock_add_rule", _ADD_RULE, fd, _RULE_PATH_BENEATH, rule, 0)
        _call("landlock_restrict_self", _RESTRICT_SELF, fd, 0)
    finally:
        host.close(fd)


def _action(seccomp: Any, action: str | int) -> int:
    if isinstance(action, int):
        return int(seccomp.ERRNO(action))
    return int(seccomp.ALLOW if action == ALLOW else seccomp.KILL_PROCESS)


def _conditions(seccomp: Any, conditions: tuple[Where, ...]) -> list[Any]:
    return [seccomp.Arg(one.argument, seccomp.MASKED_EQ, one.mask, one.equal) for one in conditions]


def _seccomp() -> Any:
    before = ctypes.util.find_library
    vars(ctypes.util)["find_library"] = _NAMES.get
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"a sandbox needs the package pyseccomp (pip install 'snapkit[sandbox]') and the library libseccomp "
            f"(Debian: apt-get install libseccomp2): {error}"
        ) from error
    finally:
        vars(ctypes.util)["find_library"] = before
    return pyseccomp


def _call(name: str, number: int, *arguments: int | bytes) -> int:
    enter(name, arguments)
    return _checked(name, _c_syscall(number, *arguments), arguments)


def _checked(name: str, result: int, arguments: tuple[object, ...]) -> int:
    if result < 0:
        raise failed(name, ctypes.get_errno(), arguments)
    return result
