"""Faults and resident pages as a process sees them of itself, and sums of stages."""

import pytest

from snapkit import host, host_memory
from snapkit.errors import HostError
from snapkit.restore.observe import Observer, resident_pages
from snapkit.restore.pipeline import Span, Timeline
from snapkit.units import PAGE_LEN

PAGES = 64
SMAPS = b"""\
7f0000000000-7f0000004000 rw-p 00000000 00:00 0
Size:                 16 kB
Rss:                   8 kB
Private_Dirty:         4 kB
VmFlags: rd wr mr
7f0000004000-7f0000008000 rw-p 00001000 fe:00 77                         /tmp/a name: with 8 kB.snap
Rss:                  12 kB
Private_Dirty:         0 kB
7f0000008000-7f000000c000 rw-p 00000000 00:00 0
Rss:                  16 kB
Private_Dirty:        16 kB
"""


@pytest.mark.parametrize(
    ("spans", "found"),
    [
        ([(0, 0x7F00_0000_0000, 0x8000)], (5, 1)),
        ([(0, 0x7F00_0000_4000, 0x4000), (1 << 32, 0x7F00_0000_8000, 0x4000)], (7, 4)),
        ([(0, 0x7F00_0000_C000, 0x4000)], (0, 0)),
        ([], (0, 0)),
    ],
)
def test_only_what_is_mapped_as_guest_ram_counts(spans, found):
    assert resident_pages(SMAPS, spans) == found


def test_each_look_counts_faults_since_the_beginning_and_pages_as_they_are_now():
    length = PAGES * PAGE_LEN
    access = host_memory.PROT_READ | host_memory.PROT_WRITE
    address = host_memory.mmap(
        length, access, host_memory.MAP_PRIVATE | host_memory.MAP_ANONYMOUS | host_memory.MAP_NORESERVE
    )
    spans = [(0, address, length)]
    try:
        host_memory.madvise(address, length, host_memory.MADV_DONTDUMP)  # a mapping of its own, whatever lies beside it
        with Observer() as observer:
            first = observer.look("before", spans)
            view = host_memory.view(address, length)
            for at in range(0, length // 2, PAGE_LEN):
                view[at] = 1
            view.release()
            second = observer.look("after", spans)
            assert observer.rows == [first, second]
    finally:
        host_memory.munmap(address, length)
    assert (first.resident_pages, first.own_pages, first.ram_pages) == (0, 0, PAGES)
    assert PAGES // 2 <= second.resident_pages == second.own_pages <= PAGES
    assert second.minor_faults > first.minor_faults >= 0
    assert second.major_faults >= first.major_faults >= 0
    assert second.at_us >= first.at_us


def test_an_observer_opens_its_files_beforehand_and_leaves_none():
    seen: list[tuple[object, ...]] = []

    def hook(call: str, arguments: tuple[object, ...]) -> None:
        seen.append((call, *arguments))

    with Observer() as observer, host.inject(hook):
        observer.look("now", [])
    assert {call for call, *_ in seen} == {"pread"}

    def no_smaps(_call: str, arguments: tuple[object, ...]) -> None:
        if "/proc/self/smaps" in arguments:
            raise OSError(13, "injected")

    with host.inject(no_smaps), pytest.raises(HostError, match="smaps"):
        Observer()


def test_stages_are_summed_up_in_the_order_in_which_they_began(monkeypatch):
    spans = [
        Span("open", "a", 0, 1500, 2),
        Span("load", "b", 2000, 2600, 10),
        Span("load", "c", 5000, 2600, 11),
        Span("run", "d", 9000, 900, 0),
    ]
    monkeypatch.setattr(Timeline, "spans", spans)
    assert Timeline().stages() == [("open", 1, 1, 2), ("load", 2, 5, 21), ("run", 1, 0, 0)]
