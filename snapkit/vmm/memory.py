"""Guest RAM: one anonymous mapping, its regions in guest-physical order, file chunks laid over it copy-on-write.

RAM is owned here by address. Views are lent inside a call, or to a queue while it is active: unmapping does not wait for
them. RAM is not inherited by fork and not dumped; a mapping laid over it loses those marks, so they are set once all is
laid.

What the guest gives back (`discard`) reads as zeros and costs nothing any more. Where a file is laid, giving back takes
a mapping of its own, so it is remembered where that has been done, and their number is kept well below what a process
may have: beyond it pages stay as they are, which is what their giver must expect anyway.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from snapkit import host_memory
from snapkit.errors import ConfigError, HostError
from snapkit.state.memory_layout import MemoryLayoutState, RegionState
from snapkit.units import PAGE_LEN, PAGE_SHIFT, Gpa, Hva
from snapkit.vmm.ranges import Ranges

MAPPINGS_MAX = 24_000
"""How many mappings RAM may become; Linux gives a process 65530 (vm.max_map_count) for everything."""

_RAM_FLAGS = host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS | host_memory.MAP_NORESERVE
_RW = host_memory.PROT_READ | host_memory.PROT_WRITE


class FileRun(Protocol):
    """Bytes of a file that follow each other in RAM too."""

    @property
    def gpa(self) -> int: ...

    @property
    def length(self) -> int: ...

    @property
    def offset(self) -> int: ...


class FilePages(Protocol):
    """The memory of a snapshot file: to be mapped by its runs, or copied and checked by `load`."""

    @property
    def fd(self) -> int: ...

    def runs(self) -> Sequence[FileRun]: ...

    def load(
        self, targets: Iterable[tuple[int, Hva, int]], progress: Callable[[int, int], None] | None = None
    ) -> None: ...


class Region(NamedTuple):
    """RAM from guest-physical *gpa*, *length* bytes, at the monitor's *hva*."""

    gpa: Gpa
    length: int
    hva: Hva


class GuestMemory:
    """The machine's RAM. Every access by the monitor passes through here and is checked against the regions."""

    def __init__(self, layout: Iterable[tuple[int, int]]) -> None:
        spans = list(layout)
        self.length = sum(length for _, length in spans)
        try:
            self._base = host_memory.mmap(self.length, _RW, _RAM_FLAGS)
        except HostError as error:
            error.add_note(f"mapping {self.length} bytes of guest RAM")
            raise
        regions, at = [], int(self._base)
        for gpa, length in spans:
            regions.append(Region(Gpa(gpa), length, Hva(at)))
            at += length
        self.regions = tuple(regions)
        self.largest_first = tuple(
            (region.gpa, region.gpa + region.length, region.hva - region.gpa)
            for region in sorted(regions, key=lambda region: -region.length)
        )
        """The regions as (gpa, end, what makes an address in them the monitor's), for who looks many of them up."""
        self._views = tuple(
            (start, end, host_memory.view(start + delta, end - start)) for start, end, delta in self.largest_first
        )
        self._laid = Ranges()  # by the monitor's address
        self._mappings = 1  # at most: neighbours that the kernel joined count twice until it is asked
        self._refusals = 0

    @property
    def ram(self) -> list[tuple[int, int]]:
        """The regions as (gpa, length)."""
        return [(region.gpa, region.length) for region in self.regions]

    def close(self) -> None:
        """Unmap RAM; the last thing that goes when a machine closes."""
        if self.length:
            host_memory.munmap(self._base, self.length)
            self.length = 0
            self.regions, self._views = (), ()

    def lay(self, gpa: int, length: int, fd: int, offset: int) -> None:
        """Lay *length* bytes of a file over RAM at *gpa*, copy-on-write: the file is never written."""
        start = self.hva(gpa, length)
        host_memory.mmap(
            length, _RW, host_memory.MAP_PRIVATE | host_memory.MAP_FIXED | host_memory.MAP_NORESERVE, fd, offset, start
        )
        self._laid.add(start, start + length)
        self._mappings += 2

    def seal(self) -> None:
        """Mark RAM as not inherited and not dumped; after the last `lay`."""
        host_memory.mark_as_ram(self._base, self.length)

    def discard(self, gpa: int, length: int) -> bool:
        """Give whole pages back to the host: they read as zeros from now on, for the guest too.

        False when they stay as they are, because RAM would become too many mappings. Raises ConfigError when the range
        is not whole pages of one region, HostError when the host refuses.
        """
        start = self.hva(gpa, length)
        if (gpa | length) % PAGE_LEN:
            raise ConfigError(f"guest memory {gpa:#x}..{gpa + length:#x} is not whole pages")
        if not length:
            return True
        pieces = self._laid.count(start, start + length)
        if not pieces:
            host_memory.drop(start, length)
            return True
        more = 3 - pieces  # they go; left are what lies before and behind, and the new one between
        if more > 0 and self._mappings + more > MAPPINGS_MAX and not self._has_room():
            return False
        host_memory.map_anew(start, length)
        self._laid.remove(start, start + length)
        self._mappings += more
        return True

    def _has_room(self) -> bool:
        """Ask the kernel how many mappings there are, but ever less often: it takes 0.1 s when there are so many."""
        self._refusals += 1
        if not self._refusals & (self._refusals - 1):
            self._mappings = host_memory.count_mappings(self._base, self.length)
        return self._mappings + 2 <= MAPPINGS_MAX

    def hva(self, gpa: int, length: int) -> Hva:
        """Return the monitor's address of [gpa, gpa+length), which must lie in one region; else ConfigError."""
        for region in self.regions:
            offset = gpa - region.gpa
            if offset >= 0 and offset + length <= region.length:
                return Hva(region.hva + offset)
        raise _outside(gpa, length)

    def read(self, gpa: int, length: int) -> bytes:
        """Copy out *length* bytes at *gpa*."""
        return host_memory.copy_out(self.hva(gpa, length), length)

    def write(self, gpa: int, payload: bytes | bytearray | memoryview) -> None:
        """Copy *payload* into RAM at *gpa*."""
        host_memory.copy_in(self.hva(gpa, len(payload)), payload)

    def span(self, gpa: int, length: int) -> memoryview:
        """Return a writable view of RAM, which must lie in one region; else ConfigError.

        It must not outlive the mapping: nothing checks it.
        """
        for start, end, view in self._views:
            if start <= gpa and gpa + length <= end:
                return view[gpa - start : gpa - start + length]
        raise _outside(gpa, length)

    @contextmanager
    def view(self, gpa: int, length: int) -> Iterator[memoryview]:
        """Lend a writable view of RAM for the length of a with block."""
        lent = self.span(gpa, length)
        try:
            yield lent
        finally:
            lent.release()

    def save(self) -> MemoryLayoutState:
        """Return the layout; the contents go into the file's memory."""
        regions = [RegionState(gpa=region.gpa, length=region.length) for region in self.regions]
        return MemoryLayoutState(page_shift=PAGE_SHIFT, regions=regions)


def _outside(gpa: int, length: int) -> ConfigError:
    return ConfigError(f"guest memory {gpa:#x}..{gpa + length:#x} is outside RAM")
