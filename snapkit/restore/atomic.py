"""A file that appears under its name only when it is whole, and leaves nothing behind when it does not.

It is written under a temporary name in the directory of its target, synced, and renamed over the target. A writer that
was killed leaves its temporary file; the next writer of the same target removes it. Whether a writer still lives is told
by a lock (flock(2)) that it holds on its temporary file: the kernel drops it when the process ends, however it ends.
Between creating a file and locking it a cleaner could take it for a dead one's, so a writer that finds its new file
already locked, or without a name, takes another.
"""

import errno
import os
import re
from collections.abc import Callable
from typing import Self

from snapkit import host
from snapkit.errors import ConfigError, HostError
from snapkit.restore.digest import Digester

_ATTEMPTS = 100
_NAME_MAX = 200
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_BAD_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EISDIR}


class TemporaryFile:
    """A file in the making. `commit` puts it under its name; leaving the `with` without that removes it."""

    def __init__(self, target: str, *, stem: str | None = None, bury: Callable[[int, str], None] | None = None) -> None:
        """Create it beside *target*; leftovers are recognised by *stem*, by default the target's name.

        *bury* is called with the fd and the path of a leftover before it is removed.

        Raises ConfigError when there can be no file of that name.
        """
        check_target(target)
        self.target = target
        self._directory = os.path.dirname(target) or "."
        self._stem = _short(stem or os.path.basename(target))
        self.committed = False
        self._remove_leftovers(bury)
        self.fd, self.path = self._create()

    def sync(self) -> None:
        """Have everything written so far on the disk."""
        host.fsync(self.fd)

    def commit(self) -> None:
        """Sync, then take the target's name, replacing what had it, then sync the directory."""
        self.sync()
        host.rename(self.path, self.target)
        self.committed = True
        self._close()
        sync_directory(self._directory)

    def commit_new(self) -> None:
        """Sync, then take the target's name, which must be free, then sync the directory.

        Raises ConfigError when the name is taken.
        """
        self.sync()
        try:
            host.link(self.path, self.target)
        except HostError as error:
            if error.errno == errno.EEXIST:
                raise ConfigError(f"{self.target} exists already, and is never overwritten") from error
            if error.errno not in {errno.EPERM, *_NO_LOCKS} or host.exists(self.target):
                raise
            host.rename(self.path, self.target)  # this file system has no second names
        else:
            _unlink(self.path)
        self.committed = True
        self._close()
        sync_directory(self._directory)

    def withdraw(self) -> None:
        """Take a committed new file's name away again: what it was made for did not come to be."""
        _unlink(self.target)

    def discard(self) -> None:
        """Remove it, unless it was committed."""
        if not self.committed:
            _unlink(self.path)
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def _close(self) -> None:
        if self.fd >= 0:
            host.close(self.fd)
            self.fd = -1

    def _create(self) -> tuple[int, str]:
        for _attempt in range(_ATTEMPTS):
            path = os.path.join(self._directory, f".{self._stem}.{host.urandom(8).hex()}.tmp")
            try:
                fd = host.open_fd(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
            except HostError as error:
                if error.errno == errno.EEXIST:
                    continue
                if error.errno in _BAD_PLACE:
                    raise ConfigError(f"{self.target} cannot be written: {os.strerror(error.errno).lower()}") from error
                raise
            try:
                if _lock(fd) and host.fstat(fd).st_nlink:
                    return fd, path
            except BaseException:
                _unlink(path)
                host.close(fd)
                raise
            host.close(fd)  # a cleaner was faster, and removes it
        raise HostError("open_fd", errno.EEXIST, f"{self._directory!r}: every temporary name is taken")

    def _remove_leftovers(self, bury: Callable[[int, str], None] | None) -> None:
        """Remove temporary files of this target whose writer is gone. What cannot be removed is left: it harms nobody."""
        pattern = re.compile(rf"\.{re.escape(self._stem)}\.[0-9a-f]{{16}}\.tmp")
        try:
            names = [name for name in host.listdir(self._directory) if pattern.fullmatch(name)]
        except HostError:
            return
        for name in names:
            path = os.path.join(self._directory, name)
            try:
                fd = host.open_fd(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
            except HostError:
                continue
            try:
                # Names are never used twice, so this one is still the file that is locked, or nothing any more.
                if host.is_regular(host.fstat(fd).st_mode) and _try_lock(fd):
                    if bury is not None:
                        bury(fd, path)
                    _unlink(path)
            except HostError:
                continue
            finally:
                host.close(fd)


def check_target(path: str) -> None:
    """Refuse, with ConfigError, a path that no file should be written to."""
    if not os.path.basename(path) or "\0" in path:
        raise ConfigError(f"{path!r} is no name for a file")
    try:
        mode = _mode_of(path)
        if mode is None:
            host.stat_path(os.path.dirname(path) or ".")
            return
    except HostError as error:
        if error.errno in _BAD_PLACE:
            raise ConfigError(f"{path} cannot be written: {os.strerror(error.errno).lower()}") from error
        raise
    if not host.is_regular(mode):
        raise ConfigError(f"{path} cannot be written: it is {host.file_type(mode)}")


def _mode_of(path: str) -> int | None:
    """Return what *path* is; None where nothing is, or a symbolic link to nothing, which is replaced."""
    try:
        return host.stat_path(path).st_mode
    except HostError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP}:
            return None
        raise


def sync_directory(path: str) -> None:
    """Have the names in the directory *path* on the disk."""
    fd = host.open_fd(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        host.fsync(fd)
    finally:
        host.close(fd)


def _short(name: str) -> str:
    """Return *name*, or a digest of it when a temporary name made from it would be too long."""
    raw = os.fsencode(name)
    return name if len(raw) <= _NAME_MAX else Digester().of(raw).hex()


def _try_lock(fd: int) -> bool:
    """Lock *fd* if nobody else has. Raises HostError where there are no locks: nothing can be known then."""
    try:
        host.flock(fd, host.LOCK_EX_NB)
    except HostError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        raise
    return True


def _lock(fd: int) -> bool:
    """Lock *fd*; on a file system without locks go on without, where no cleaner can lock either."""
    try:
        return _try_lock(fd)
    except HostError as error:
        if error.errno in _NO_LOCKS:
            return True
        raise


def _unlink(path: str) -> None:
    try:
        host.unlink(path)
    except HostError:
        return
