"""A listening Unix socket at a path: only its owner may use it, a dead one is replaced, a live one is left alone.

The socket listens under a private name first and gets its own afterwards, so whoever finds the name finds a server, and
nobody can connect before the mode is 0600 (on Linux that of the fd at the time of bind, unix(7)).
"""

import errno
import os
from contextlib import suppress

from snapkit import host, host_sockets
from snapkit.errors import ConfigError, HostError

BACKLOG = 128
_PRIVATE_LEN = 10
_Identity = tuple[int, int, int]
_GONE = {errno.ENOENT, errno.ENOTDIR}
_BAD_PLACE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG}


class UnixListener:
    """A socket that listens at *path*; `fd` is non-blocking. `close` takes the name away, if it is still ours."""

    def __init__(self, path: str) -> None:
        """Raises ConfigError when *path* cannot be such a name, or somebody serves it."""
        self.path = path
        directory = os.path.dirname(path)
        if not os.path.basename(path) or "\0" in path:
            raise ConfigError(f"{path!r} is no name for a socket")
        too_long = len(os.fsencode(path)) > host_sockets.UNIX_PATH_MAX
        if too_long or len(os.fsencode(directory)) + 1 + _PRIVATE_LEN > host_sockets.UNIX_PATH_MAX:
            raise ConfigError(
                f"socket {path} has a path too long for a Unix socket, {host_sockets.UNIX_PATH_MAX} bytes at most"
            )
        private = os.path.join(directory, f".{host.urandom((_PRIVATE_LEN - 1) // 2).hex()}")
        self.fd = host_sockets.unix_socket()
        self._made: _Identity | None = None
        try:
            host.fchmod(self.fd, 0o600)
            self._bind(private)
            try:
                host_sockets.listen(self.fd, BACKLOG)
                self._made = _identity(private)
                self._publish(private)
            finally:
                with suppress(HostError):
                    host.unlink(private)
        except BaseException:
            host.close(self.fd)
            raise

    def close(self) -> None:
        """Stop listening."""
        with suppress(HostError):
            if self._made is not None and _identity(self.path) == self._made:
                host.unlink(self.path)
        self._made = None
        if self.fd >= 0:
            host.close(self.fd)
            self.fd = -1

    def _bind(self, private: str) -> None:
        try:
            host_sockets.bind_unix(self.fd, private)
        except HostError as error:
            if error.errno in _BAD_PLACE:
                raise ConfigError(f"socket {self.path} cannot be made: {os.strerror(error.errno).lower()}") from error
            raise

    def _publish(self, private: str) -> None:
        _remove_stale(self.path)
        try:
            host.link(private, self.path)  # unlike a rename it never takes the place of one that came meanwhile
        except HostError as error:
            if error.errno == errno.EEXIST:
                raise ConfigError(f"socket {self.path} was taken by another process just now") from error
            raise


def _identity(path: str) -> _Identity:
    return _identity_in(host.lstat_path(path))


def _identity_in(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino, status.st_mtime_ns  # inode numbers are used again at once


def _remove_stale(path: str) -> None:
    """Free *path* of a socket that nobody serves any more; ConfigError when it holds anything else."""
    try:
        status = host.lstat_path(path)
    except HostError as error:
        if error.errno in _GONE:
            return
        raise
    if not host.is_socket(status.st_mode):
        raise ConfigError(f"{path} exists and is no socket")
    if _answers(path):
        raise ConfigError(f"socket {path} is served by another process")
    # Two that find the same stale socket must not remove each other's new one: look again once nobody else can.
    aside = os.path.join(os.path.dirname(path), f".{host.urandom((_PRIVATE_LEN - 1) // 2).hex()}")
    try:
        host.rename(path, aside)
    except HostError as error:
        if error.errno in _GONE:
            return
        raise
    try:
        if _identity(aside) != _identity_in(status):
            raise ConfigError(f"socket {path} was taken by another process just now")
    except BaseException:
        with suppress(HostError):
            host.link(aside, path)
        raise
    finally:
        with suppress(HostError):
            host.unlink(aside)


def _answers(path: str) -> bool:
    fd = host_sockets.unix_socket()
    try:
        host_sockets.connect_unix(fd, path)
    except HostError as error:
        return error.errno not in {errno.ECONNREFUSED, *_GONE}  # a full backlog, or one that is not for us, is alive
    finally:
        host.close(fd)
    return True
