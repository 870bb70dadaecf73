"""The key that makes a snapshot unforgeable: ``--key-file``."""

import os

import click

from snapkit import host
from snapkit.errors import ConfigError, HostError

key_option = click.option("--key-file", metavar="K", help="32 bytes (or 64 hex digits) that key the file's digests.")


def read_key(path: str | None) -> bytes | None:
    """Return the key in the file at *path*; None for no path. Raises ConfigError when it holds none."""
    if path is None:
        return None
    # Imported here: it pulls BLAKE3 in, which a command without a key may not need.
    from snapkit.restore.digest import KEY_LEN, key_from

    return key_from(read_small_file(path, "key", 4 * KEY_LEN), what=f"key file {path}")


def read_small_file(path: str, what: str, length_max: int = 1 << 20) -> bytes:
    """Return the content of a file that the operator named, *length_max* bytes of it. Raises ConfigError naming it."""
    try:
        fd = host.open_fd(path, os.O_RDONLY | os.O_NONBLOCK)
    except HostError as error:
        raise ConfigError(f"{what} file {path} cannot be opened: {error}") from error
    try:
        return host.pread(fd, length_max, 0)
    except HostError as error:
        raise ConfigError(f"{what} file {path} cannot be read: {error}") from error
    finally:
        host.close(fd)
