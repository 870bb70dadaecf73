"""Initramfs archives: the "newc" cpio format, written reproducibly.

Linux Documentation/driver-api/early-userspace/buffer-format.rst. An own writer because an archive here needs device
nodes without being root, and the same bytes for the same contents: entries sorted, all times and owners zero, and a
gzip header without name or time.
"""

import gzip
import stat
from dataclasses import dataclass, field

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class _Entry:
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


@dataclass
class Initramfs:
    """Collect files, links and device nodes, then `pack` them. Folders above an entry appear by themselves."""

    entries: dict[str, _Entry] = field(default_factory=dict)

    def file(self, path: str, content: bytes, *, executable: bool = False) -> None:
        """Add a regular file at *path* (no leading slash)."""
        self._add(path, _Entry(stat.S_IFREG | (0o755 if executable else 0o644), content))

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link."""
        self._add(path, _Entry(stat.S_IFLNK | 0o777, target.encode()))

    def folder(self, path: str) -> None:
        """Add an empty folder, a mount point say."""
        self._add(path, _Entry(stat.S_IFDIR | 0o755))

    def character_device(self, path: str, major: int, minor: int) -> None:
        """Add a character device node."""
        self._add(path, _Entry(stat.S_IFCHR | 0o600, device=(major, minor)))

    def pack(self, *, compress: bool = True) -> bytes:
        """Give the archive, gzip-compressed unless told otherwise: equal contents, equal bytes."""
        # Sorted order puts a folder before what lies in it, which the kernel needs.
        blob = b"".join(
            _record(number, path, entry) for number, (path, entry) in enumerate(sorted(self.entries.items()), 1)
        )
        blob += _record(0, _TRAILER, _Entry(0))
        return gzip.compress(blob, compresslevel=6, mtime=0) if compress else blob

    def _add(self, path: str, entry: _Entry) -> None:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            self.entries.setdefault("/".join(parts[:depth]), _Entry(stat.S_IFDIR | 0o755))
        self.entries[path] = entry


def _record(number: int, path: str, entry: _Entry) -> bytes:
    name = path.encode() + b"\0"
    fields = (
        number,  # inode
        entry.mode,
        0,  # owner
        0,  # group
        1,  # links
        0,  # time
        len(entry.content),
        0,  # device that holds the file
        0,
        *entry.device,
        len(name),
        0,  # checksum, unused by this variant
    )
    header = b"070701" + b"".join(b"%08X" % value for value in fields)
    return _padded(header + name) + _padded(entry.content)


def _padded(blob: bytes) -> bytes:
    return blob + b"\0" * (-len(blob) % 4)
