"""The host end of a disk: image files opened, locked and recognised; and what a request does to them.

A disk is a stack of files: one raw image, and over it any number of overlays, of which only the topmost is written, if the
disk may be written at all. Files that may be written are locked exclusively (flock(2)), all others shared, so that a file
never changes under another machine. The lock lives as long as the fd; file systems without locks are used without.

A restore (`reopen_disk`) wants every layer to be the file that the save left: same length, mtime and inode. A block
device is taken only when the operator names it: nothing tells one from another. It is told otherwise by `DiskOverrides`. A file is locked first and looked at then, once, so that what was found stays true.

Surprises: a directory opens read-only like a file; opening a FIFO waits for its other end unless told not to; the format
of a file is never guessed from its contents, which for a raw image are the guest's to choose.
"""

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

from snapkit import host, host_io
from snapkit.errors import ConfigError, Finding, HostError, ImageError, IncompatibleHost
from snapkit.host_io import Spans
from snapkit.state.spec.virtio_block import ID_LEN, SECTOR_LEN, SECTOR_SHIFT
from snapkit.state.virtio_block import CAPACITY_MAX, LAYERS_MAX, DiskHostState, LayerState
from snapkit.vmm.backends import overlay as overlays
from snapkit.vmm.backends.overlay import Overlay
from snapkit.vmm.backends.worker import Worker
from snapkit.vmm.virtio.block_backend import Image

_PATH_MAX = 4096
_CANNOT_OPEN = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}
    | {errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ETXTBSY}
)


class DiskOptions(NamedTuple):
    """What ``--disk`` asks for. *overlay* is a directory that gets a file of this machine's own over the image."""

    id: str
    path: str
    readonly: bool = False
    overlay: str | None = None
    serial: str | None = None
    """What the guest reads as the disk's identity; by default the id."""


class DiskOverrides(NamedTuple):
    """What a restore does otherwise than the file says: see `reopen_disk`."""

    path: str | None = None
    overlay: str | None = None
    readonly: bool = False
    accept_changed: bool = False


class _Layer(NamedTuple):
    """An open file of a disk, with what was found when it had been locked."""

    path: str
    format: str
    fd: int
    found: LayerState


class RawImage:
    """A file whose bytes are the disk's. Borrows *fd*."""

    def __init__(self, fd: int, file_len: int) -> None:
        self._fd = fd
        self._sync_failed = 0
        self.length = _whole_sectors(file_len)

    def read(self, offset: int, spans: Spans) -> None:
        """Fill *spans* from *offset*."""
        host_io.read_spans(self._fd, spans, offset)

    def read_now(self, offset: int, spans: Spans, length: int) -> bool:
        """Fill *spans* if no disk is needed for it."""
        return host_io.read_spans_now(self._fd, spans, offset, length)

    def write(self, offset: int, spans: Spans, length: int) -> None:
        """Write *spans* at *offset*."""
        host_io.write_spans(self._fd, spans, offset)

    def discard(self, offset: int, length: int) -> None:
        """Give the range's blocks back, where the file system can."""
        host_io.punch(self._fd, offset, length)

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeros."""
        host_io.zero(self._fd, offset, length, unmap=unmap)

    def flush(self) -> None:
        """Have every write so far on the disk; once that failed it is never claimed again (see `overlay`)."""
        if self._sync_failed:
            raise HostError("fdatasync", self._sync_failed, "an earlier sync of the image failed")
        try:
            host_io.fdatasync(self._fd)
        except HostError as error:
            self._sync_failed = error.errno
            raise


class Disk:
    """An open disk: its files, and the `worker` that does to `image` what may wait. Made by `open_disk`, `reopen_disk`."""

    def __init__(self, ident: str, layers: list[_Layer], image: Image, *, readonly: bool, files: ExitStack) -> None:
        # Configuration
        self.id, self.readonly = ident, readonly
        self._layers = layers
        self.created: str | None = None
        """The overlay that was made for this machine, if one was."""
        self.serial = b""
        """What a new guest is to read as the disk's identity; in a restored machine its State says it."""
        # Runtime glue
        self.image = image
        self.worker = Worker()
        self._files = files

    @property
    def capacity(self) -> int:
        """The disk's length in sectors; what a file has beyond its last whole one is not part of it."""
        return self.image.length >> SECTOR_SHIFT

    def describe(self) -> DiskHostState:
        """Return what a restore needs to recognise the files, as they are now. Raises HostError."""
        layers = [_as_it_is(layer) for layer in self._layers]
        return DiskHostState(layers=layers, readonly=self.readonly)

    def settle(self) -> DiskHostState:
        """Sync what was written, then describe the files. The worker has nothing to do. Raises HostError."""
        try:
            if not self.readonly:
                self.image.flush()
            return self.describe()
        except HostError as error:
            error.add_note(f"saving disk {self.id}, {self._layers[-1].path}")
            raise

    def is_at(self, path: str) -> bool:
        """Return whether *path* names the disk's last file, by whatever name. Raises ConfigError for what is no path."""
        _check_path(self.id, path)
        try:
            there = host.stat_path(path)
        except HostError:  # to open it will fail too, and say why
            return False
        last = host.fstat(self._layers[-1].fd)
        return (there.st_dev, there.st_ino) == (last.st_dev, last.st_ino)

    def refresh(self, path: str) -> DiskHostState:
        """Take the files as they are now, the last of them by the name *path*, and describe them; locks stay as they are.

        The worker has nothing to do. Raises ConfigError when an image has become too short, HostError; then nothing has
        changed.
        """
        layers = [*self._layers[:-1], self._layers[-1]._replace(path=path)]
        described = [_as_it_is(layer) for layer in layers]
        if isinstance(self.image, RawImage):  # an overlay's length never changes
            _check_length(self.id, path, described[0].length)
            self.image.length = _whole_sectors(described[0].length)
        self._layers = layers
        return DiskHostState(layers=described, readonly=self.readonly)

    def close(self) -> None:
        """Stop the worker once it is done, and let go of files and locks; harmless twice."""
        self.worker.stop()
        self._files.close()

    def withdraw(self) -> None:
        """Close, and remove the overlay that was made: what it was for did not come to be."""
        self.close()
        if self.created is not None:
            overlays.remove(self.created)
            self.created = None


def open_disk(options: DiskOptions) -> Disk:
    """Open the image that *options* name, for a new machine.

    Raises ConfigError naming the file: it cannot be opened, is no image, or is locked (then by whom); HostError for the rest.
    """
    if options.overlay is not None and options.readonly:
        raise ConfigError(
            f"disk {options.id} has overlay= and readonly, must have one of them: an overlay is for writing"
        )
    serial = (options.id if options.serial is None else options.serial).encode(errors="replace")
    if options.serial is not None and (len(serial) > ID_LEN or b"\0" in serial):
        raise ConfigError(f"disk {options.id} has the serial {options.serial!r}, must have at most {ID_LEN} bytes")
    with ExitStack() as files:
        wanted = [(options.path, "raw")]
        readonly = options.readonly or options.overlay is not None
        layers = _open_layers(options.id, wanted, readonly=readonly, files=files)
        disk = _assemble(options.id, layers, options.overlay, readonly=options.readonly, files=files)
    disk.serial = serial[:ID_LEN]
    return disk


def reopen_disk(saved: DiskHostState, overrides: DiskOverrides, *, ident: str, capacity: int) -> Disk:
    """Open the files of a saved disk again. *capacity* is what its guest knows, in sectors.

    Of *overrides*, *path* puts one raw image, a copy, in the place of all layers: only its capacity is compared.
    *overlay* makes a new overlay in that directory over the layers, which are then only read. *readonly* opens nothing for
    writing; a disk that was saved so stays so without an overlay. *accept_changed* takes the files as they are.

    Raises IncompatibleHost with every layer that is missing, or is not as it was saved; ConfigError naming the holder of a
    file that is locked.
    """
    wanted = (
        [(layer.path, layer.format) for layer in saved.layers] if overrides.path is None else [(overrides.path, "raw")]
    )
    readonly = overrides.readonly or (saved.readonly and overrides.overlay is None)
    if overrides.readonly and overrides.overlay is not None:
        raise ConfigError(f"disk {ident} has overlay= and readonly, must have one of them: an overlay is for writing")
    where = f"virtio-block/{ident}"
    with ExitStack() as files:
        layers: list[_Layer] = []
        findings: list[Finding] = []
        for number, (path, kind) in enumerate(wanted):
            top = number == len(wanted) - 1 and overrides.overlay is None and not readonly
            try:
                layers += _open_layers(ident, [(path, kind)], readonly=not top, files=files)
            except _Unusable as error:
                findings.append(Finding(where, f"host.layers[{number}].path", error.why, "an image", "disk.missing"))
        if not findings and overrides.path is None and not overrides.accept_changed:
            findings = [
                finding for number, layer in enumerate(layers) for finding in _changes(where, number, layer, saved)
            ]
        if findings:
            raise IncompatibleHost(f"disk {ident} is not as it was saved", findings=findings)
        try:
            disk = _assemble(ident, layers, overrides.overlay, readonly=readonly, files=files)
        except ImageError as error:
            finding = Finding(where, "host.layers", str(error), "overlays over their image", "disk.overlay")
            raise IncompatibleHost(f"disk {ident} cannot be put together", findings=[finding]) from error
        if disk.capacity != capacity and not overrides.accept_changed:
            named = f"{disk.capacity} ({wanted[0][0]})"
            finding = Finding(where, "capacity", named, f"{capacity} sectors, as its guest knows it", "disk.capacity")
            disk.withdraw()
            raise IncompatibleHost(f"disk {ident} is not as it was saved", findings=[finding])
        return disk


class _Unusable(ConfigError):
    """A path that is no image; *why* begins with it."""

    def __init__(self, ident: str, why: str) -> None:
        self.why = why
        super().__init__(f"disk {ident}: {why}")


def _open_layers(ident: str, wanted: list[tuple[str, str]], *, readonly: bool, files: ExitStack) -> list[_Layer]:
    """Open and lock files, the last one for writing unless *readonly*; *files* closes them."""
    layers = []
    for number, (path, kind) in enumerate(wanted):
        writable = not readonly and number == len(wanted) - 1
        fd = _open(ident, path, os.O_RDWR if writable else os.O_RDONLY)
        files.callback(host.close, fd)
        try:
            host.flock(fd, host.LOCK_EX_NB if writable else host.LOCK_SH_NB)
        except HostError as error:
            if error.errno == errno.EWOULDBLOCK:
                held = host_io.lock_holder(fd)
                way_out = (
                    "give this machine its own by path=, overlay= or readonly" if writable else "it is being written"
                )
                raise ConfigError(f"disk {ident}: {path} is in use by {held}: {way_out}") from error
            if error.errno not in host_io.NO_LOCKS:
                raise
        status = host.fstat(fd)
        if not host.is_regular(status.st_mode) and host.file_type(status.st_mode) != "a block device":
            raise _Unusable(ident, f"{path} is {host.file_type(status.st_mode)}")
        layers.append(_Layer(path, kind, fd, _identity(path, kind, fd, status)))
    return layers


def _check_path(ident: str, path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"disk {ident}: the path {path!r} is no text, so no snapshot could name it") from error
    if not path or "\0" in path or len(path) > _PATH_MAX:
        raise ConfigError(f"disk {ident}: {path[:80]!r} is no path")


def _open(ident: str, path: str, flags: int) -> int:
    _check_path(ident, path)
    try:
        return host.open_fd(path, flags | os.O_NONBLOCK)
    except HostError as error:
        if error.errno in _CANNOT_OPEN:
            raise _Unusable(ident, f"{path}: {os.strerror(error.errno).lower()}") from error
        raise


def _whole_sectors(length: int) -> int:
    return length >> SECTOR_SHIFT << SECTOR_SHIFT


def _check_length(ident: str, path: str, length: int) -> None:
    if not 0 < length >> SECTOR_SHIFT <= CAPACITY_MAX:
        raise _Unusable(ident, f"{path} has {length} bytes, must have at least {SECTOR_LEN}")


def _assemble(ident: str, layers: list[_Layer], directory: str | None, *, readonly: bool, files: ExitStack) -> Disk:
    """Stack the open *layers*, make a new overlay in *directory* if one is given, and hand *files* over to the disk."""
    image: Image
    image = RawImage(layers[0].fd, layers[0].found.length)
    _check_length(ident, layers[0].path, image.length)
    for layer in layers[1:]:
        image = _lay(layer, image, files)
    created = None
    if directory is not None:
        if len(layers) == LAYERS_MAX:
            raise ConfigError(f"disk {ident} has {len(layers)} layers, must have fewer for another overlay")
        created = os.path.join(directory, f"{ident}-{host.urandom(8).hex()}.overlay")
        fd = _create(ident, created, image.length)
        files.callback(host.close, fd)
        with ExitStack() as undo:
            undo.callback(overlays.remove, created)
            layer = _Layer(created, "overlay", fd, _identity(created, "overlay", fd, host.fstat(fd)))
            image = _lay(layer, image, files)
            undo.pop_all()
        layers = [*layers, layer]
    disk = Disk(ident, layers, image, readonly=readonly, files=files.pop_all())
    disk.created = created
    return disk


def _create(ident: str, path: str, length: int) -> int:
    try:
        return overlays.create_overlay(path, length)
    except HostError as error:
        if error.errno in _CANNOT_OPEN:
            raise ConfigError(f"disk {ident}: no overlay {path}: {os.strerror(error.errno).lower()}") from error
        raise


def _lay(layer: _Layer, below: Image, files: ExitStack) -> Overlay:
    lying = Overlay(layer.fd, overlays.read_geometry(layer.fd, below.length, where=layer.path), below)
    files.callback(lying.close)
    return lying


def _as_it_is(layer: _Layer) -> LayerState:
    """Describe an open file as it is now."""
    return _identity(layer.path, layer.format, layer.fd, host.fstat(layer.fd))


def _identity(path: str, kind: str, fd: int, status: os.stat_result) -> LayerState:
    """Describe an open file of *status*. A block device's times tell nothing of its contents, its inode nothing of it."""
    regular = host.is_regular(status.st_mode)
    return LayerState(
        path=path,
        format="overlay" if kind == "overlay" else "raw",
        length=status.st_size if regular else host_io.seek_end(fd),
        mtime_ns=status.st_mtime_ns if regular else 0,
        inode=status.st_ino if regular else 0,
    )


def _changes(where: str, number: int, layer: _Layer, saved: DiskHostState) -> Iterator[Finding]:
    """Give what tells that a file is not, or not any more, the one that was saved."""
    before, now = saved.layers[number], layer.found
    if not now.inode:
        # What it takes to name one is known of every host: a stranger's file could have any disk of this one written.
        named = f"{layer.path}, a block device"
        wanted_by = "named by the operator: nothing recorded tells one from another"
        yield Finding(where, f"host.layers[{number}].path", named, wanted_by, "disk.device")
    for name in ("length", "mtime_ns", "inode"):
        got, wanted = getattr(now, name), getattr(before, name)
        if got != wanted:
            named = f"{got} ({layer.path})"
            yield Finding(where, f"host.layers[{number}].{name}", named, f"{wanted}, as it was saved", "disk.changed")
