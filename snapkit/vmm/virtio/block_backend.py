"""What a block device asks of its host end, so that neither knows the other."""

from collections.abc import Sequence
from typing import Protocol

from snapkit.host_io import Spans
from snapkit.state.virtio_block import DiskHostState


class Image(Protocol):
    """A disk's contents, or a layer of them. Offsets and lengths are bytes, whole sectors, inside *length*.

    Failures are HostError. `read` and `read_now` may be called by any thread, the others by one at a time.
    """

    length: int

    def read(self, offset: int, spans: Spans) -> None:
        """Fill *spans* from *offset*."""
        ...

    def read_now(self, offset: int, spans: Spans, length: int) -> bool:
        """Fill *spans*, *length* bytes together, if that needs no waiting; False leaves them half filled."""
        ...

    def write(self, offset: int, spans: Spans, length: int) -> None:
        """Write *spans*, *length* bytes together, at *offset*."""
        ...

    def discard(self, offset: int, length: int) -> None:
        """Take the hint that nobody needs the range any more."""
        ...

    def write_zeroes(self, offset: int, length: int, *, unmap: bool) -> None:
        """Make the range read as zeros; it need take no room any more when *unmap*."""
        ...

    def flush(self) -> None:
        """Have every write so far on stable storage."""
        ...


class Job(Protocol):
    """Work for a worker. *run* keeps its own outcome; what it raises is a bug."""

    def run(self) -> None: ...


class Worker(Protocol):
    """A thread that runs jobs in order. See `snapkit.vmm.backends.worker`."""

    done_fd: int
    """Readable when something is finished, between `start` and `stop`."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def submit(self, job: Job) -> None: ...

    def finished(self) -> Sequence[Job]: ...

    def drain(self) -> None: ...

    def cancel(self) -> None: ...


class Backend(Protocol):
    """An open disk."""

    @property
    def readonly(self) -> bool: ...

    @property
    def capacity(self) -> int:
        """Sectors."""
        ...

    @property
    def image(self) -> Image: ...

    @property
    def worker(self) -> Worker: ...

    def describe(self) -> DiskHostState:
        """Return what a restore needs to recognise the files."""
        ...

    def settle(self) -> DiskHostState:
        """Sync, then describe."""
        ...

    def refresh(self, path: str) -> DiskHostState:
        """Take the files as they are now, the last of them by the name *path*, and describe them."""
        ...

    def close(self) -> None: ...
