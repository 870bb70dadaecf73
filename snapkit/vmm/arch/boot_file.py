"""What the operator names for a boot: the kernel and the initial ramdisk, opened, checked, copied into guest RAM; a line.

Whatever is wrong with them is the operator's to mend, so it becomes a ConfigError that names the file.
"""

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple, Protocol

from snapkit import host
from snapkit.errors import ConfigError, HostError
from snapkit.units import MIB, PAGE_LEN, format_len

# Large enough to make calls rare, small enough that a big kernel is never held twice.
_PIECE_LEN = 4 * MIB


class BootMemory(Protocol):
    """Guest RAM as a loader sees it: freshly mapped, so it reads as zeros."""

    @property
    def ram(self) -> Sequence[tuple[int, int]]:
        """The regions as (gpa, length), in address order."""
        ...

    def read(self, gpa: int, length: int) -> bytes:
        """Copy *length* bytes out at *gpa*."""
        ...

    def write(self, gpa: int, payload: bytes | bytearray | memoryview) -> None:
        """Copy *payload* in at *gpa*."""
        ...


class BootFile:
    """A regular file, open for reading; *what* is what it is to be, for messages: ``kernel``, ``initrd``."""

    def __init__(self, fd: int, path: str, what: str, length: int) -> None:
        self._fd = fd
        self.path, self.what, self.length = path, what, length

    def wrong(self, got: str, wanted: str) -> ConfigError:
        """Build the error that says what this file is and must be."""
        return ConfigError(f"{self.what} {self.path!r} {got}, must be {wanted}")

    def read(self, offset: int, length: int) -> bytes:
        """Read up to *length* bytes at *offset*; fewer only at the end of the file."""
        return host.pread(self._fd, length, offset)

    def copy_to(self, memory: BootMemory, gpa: int, offset: int, length: int) -> None:
        """Copy a range of the file into guest memory, in pieces."""
        done = 0
        while done < length:
            piece = self.read(offset + done, min(_PIECE_LEN, length - done))
            if not piece:
                raise self.wrong(f"ends at byte {offset + done}", f"at least {offset + length} bytes")
            memory.write(gpa + done, piece)
            done += len(piece)


@contextmanager
def open_boot_file(path: str, what: str) -> Iterator[BootFile]:
    """Open *path* for the length of a with block. Raises ConfigError unless it is a regular, non-empty file."""
    wanted = "a readable file"
    try:
        fd = host.open_fd(path, os.O_RDONLY | os.O_NONBLOCK)  # non-blocking: a FIFO must be refused, not waited for
    except HostError as error:
        reason = "does not exist" if error.errno == errno.ENOENT else f"cannot be opened ({os.strerror(error.errno)})"
        raise ConfigError(f"{what} {path!r} {reason}, must be {wanted}") from error
    try:
        status = host.fstat(fd)
        if not host.is_regular(status.st_mode):
            kind = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise ConfigError(f"{what} {path!r} is {kind}, must be {wanted}")
        if not status.st_size:
            raise ConfigError(f"{what} {path!r} is empty, must be {wanted} with something in it")
        yield BootFile(fd, path, what, status.st_size)
    finally:
        host.close(fd)


class GuestFiles(NamedTuple):
    """What is booted, open."""

    kernel: BootFile
    initrd: BootFile | None


@contextmanager
def open_guest(kernel_path: str, initrd_path: str | None) -> Iterator[GuestFiles]:
    """Open what is to be booted for the length of a with block. Raises ConfigError."""
    ramdisk = nullcontext() if initrd_path is None else open_boot_file(initrd_path, "initrd")
    with open_boot_file(kernel_path, "kernel") as kernel, ramdisk as initrd:
        yield GuestFiles(kernel, initrd)


def command_line(cmdline: str, length_max: int) -> bytes:
    """Return the NUL-terminated line; *length_max* does not count the NUL. Raises ConfigError."""
    line = os.fsencode(cmdline)
    if b"\0" in line:
        raise ConfigError(f"kernel command line has a NUL at byte {line.index(0)}, must be text")
    if len(line) > length_max:
        raise ConfigError(f"kernel command line is {len(line)} bytes, must be at most {length_max} for this kernel")
    return line + b"\0"


def load_initrd(memory: BootMemory, initrd: BootFile | None, kernel_end: int, limit: int) -> tuple[int, int] | None:
    """Copy the ramdisk to whole pages as high as *limit* lets it; return (gpa, length). Raises ConfigError."""
    if initrd is None:
        return None
    gpa = limit - initrd.length & -PAGE_LEN
    if gpa < kernel_end:
        room = f"between the kernel's end {kernel_end:#x} and {limit:#x}"
        raise initrd.wrong(f"is {initrd.length} bytes", f"at most {max(0, limit - kernel_end)} to fit {room}")
    initrd.copy_to(memory, gpa, 0, initrd.length)
    return gpa, initrd.length


def require_ram(memory: BootMemory, start: int, end: int, what: str) -> None:
    """Raise ConfigError unless [start, end) lies in one region of RAM."""
    if any(gpa <= start and end <= gpa + length for gpa, length in memory.ram):
        return
    total = format_len(sum(length for _, length in memory.ram))
    raise ConfigError(f"{what} needs guest memory {start:#x}-{end:#x}, which is not RAM in a machine of {total}")
