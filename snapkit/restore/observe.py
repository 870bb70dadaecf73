"""What a restored machine costs in memory: page faults of the process, pages of guest RAM that are resident.

Read twice: when the guest begins to run, and a second later, when it has touched what it works with. Both files of /proc
are opened beforehand and only read then, so a process that may open nothing any more can still be observed. Nothing is
opened or read for who did not ask.

Faults are those of the whole process since the observer was made (/proc/self/stat, minflt and majflt), those that KVM
takes for the guest among them. Resident pages are those in this process's page tables (Rss in /proc/self/smaps): pages
of the file that somebody else has in the page cache are not among them. Huge pages count as the pages that they hold.
Source: Linux Documentation/filesystems/proc.rst.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple, Self

from snapkit import host
from snapkit.units import KIB, PAGE_LEN

_MINFLT, _MAJFLT = 7, 9  # fields of stat behind the name, which ends with the last parenthesis
_PAGE_KIB = PAGE_LEN // KIB

Spans = Sequence[tuple[int, int, int]]
"""Guest RAM as (gpa, this process's address, length)."""


class Observation(NamedTuple):
    """One look. *own_pages* are those resident pages that are not the file's any more, or never were."""

    when: str
    at_us: int
    minor_faults: int
    major_faults: int
    resident_pages: int
    own_pages: int
    ram_pages: int


class Observer:
    """Reads what the process and its guest RAM cost. A context manager."""

    def __init__(self) -> None:
        """Raises HostError without /proc."""
        self.rows: list[Observation] = []
        self._stat = host.open_fd("/proc/self/stat", os.O_RDONLY)
        try:
            self._smaps = host.open_fd("/proc/self/smaps", os.O_RDONLY)
        except BaseException:
            host.close(self._stat)
            raise
        self._origin_ns, self._before = host.monotonic_ns(), self._faults()

    def look(self, when: str, spans: Spans) -> Observation:
        """Take and keep a row, named *when*."""
        at_us = (host.monotonic_ns() - self._origin_ns) // 1000
        minor, major = (now - before for now, before in zip(self._faults(), self._before, strict=True))
        resident, own = resident_pages(host.read_whole(self._smaps), spans)
        row = Observation(when, at_us, minor, major, resident, own, sum(span[2] for span in spans) // PAGE_LEN)
        self.rows.append(row)
        return row

    def close(self) -> None:
        """Close what was opened."""
        host.close(self._stat)
        host.close(self._smaps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _faults(self) -> tuple[int, int]:
        fields = host.read_whole(self._stat).rpartition(b")")[2].split()
        return int(fields[_MINFLT]), int(fields[_MAJFLT])


def resident_pages(smaps: bytes, spans: Spans) -> tuple[int, int]:
    """Return how many pages of *spans* are resident, and how many of these are dirty and nobody else's."""
    edges = [(address, address + length) for _gpa, address, length in spans]
    inside, resident, own = False, 0, 0
    for line in smaps.splitlines():
        name, _, rest = line.partition(b" ")
        if not name.endswith(b":"):
            start, end = (int(edge, 16) for edge in name.split(b"-"))
            inside = any(start < last and first < end for first, last in edges)
        elif inside and name == b"Rss:":
            resident += int(rest.split()[0])
        elif inside and name == b"Private_Dirty:":
            own += int(rest.split()[0])
    return resident // _PAGE_KIB, own // _PAGE_KIB
