"""A file that is being read as an image: opened so that it cannot hang, no byte of its head read twice.

What a path names is not known before it is opened, and opening a FIFO would wait for a writer: hence O_NONBLOCK, and a
look at what it is before the first read. The first 64 KiB hold preamble, manifest and, for a small machine, all sections,
so they are read in one call; more of it (`read_head`) in another. What was read so is not read again.
"""

import errno
import os
from typing import Self

from snapkit import host
from snapkit.errors import ConfigError, HostError, ImageError
from snapkit.units import KIB

_HEAD_LEN = 64 * KIB
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}


class Source:
    """An open regular file."""

    def __init__(self, path: str) -> None:
        """Open *path* read-only.

        Raises ConfigError when there is no such file, ImageError when it is none that can hold an image.
        """
        self.path = path
        if "\0" in path:
            raise ConfigError(f"{path!r} is no path: it contains a zero character")
        try:
            self.fd = host.open_fd(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except HostError as error:
            if error.errno in _ABSENT:
                raise ConfigError(f"{path}: {os.strerror(error.errno).lower()}") from error
            if error.errno == errno.ENXIO:
                raise ImageError(f"{path}: this is no snapshot: it is a socket or a device without a driver") from error
            raise
        try:
            self.length = self._regular_len()
            self.head = host.pread(self.fd, _HEAD_LEN, 0)
        except BaseException:
            self.close()
            raise

    def _regular_len(self) -> int:
        status = host.fstat(self.fd)
        if not host.is_regular(status.st_mode):
            raise ImageError(f"{self.path}: this is no snapshot: it is {host.file_type(status.st_mode)}")
        if not status.st_size:
            raise ImageError(f"{self.path}: this is no snapshot: it is empty")
        return status.st_size

    def read_head(self, length: int) -> None:
        """Have at least *length* bytes of the file as its head, or all that it has: they are not read again."""
        if length > len(self.head):
            self.head += host.pread(self.fd, length - len(self.head), len(self.head))

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Return a part of the file.

        Raises ImageError, naming *what*, when the file ends before it does.
        """
        if offset + length > self.length:
            raise ImageError(f"{what} ends at {offset + length}, the file has only {self.length} bytes: truncated")
        if offset + length <= len(self.head):
            return self.head[offset : offset + length]
        payload = host.pread(self.fd, length, offset)
        if len(payload) != length:
            raise ImageError(f"{what} ends at {offset + length}, the file was cut while it was read")
        return payload

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self.fd >= 0:
            host.close(self.fd)
            self.fd, self.head = -1, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Naming:
    """`naming` as a plain context manager: made from a generator it costs three times as much, on every restore."""

    __slots__ = ("_path",)

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> None:
        return

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ImageError):
            message = str(error.args[0])
            if not message.startswith(self._path):
                raise ImageError(f"{self._path}: {message}", findings=error.findings) from error


def naming(path: str) -> _Naming:
    """Put *path* before the message of any ImageError from inside a with block that does not begin with it."""
    return _Naming(path)
