"""The front of a snapshot file: all of it but memory. Preamble, manifest, sections, chunk table.

What a front says is a pure question of its bytes and of the key. So a process keeps the fronts that it read last, and a file
whose front is one of them, byte for byte, is not parsed and digested again: what was found out about the front is known of
the file (`restore` adds to it). Comparing costs a twentieth of digesting. A front that differs in one byte is
read like any other, and refused for what is wrong with it.

Of memory nothing is remembered but the little that `check` looked at, which is compared each time.
"""

import threading
from collections.abc import Callable
from typing import NamedTuple

from snapkit.errors import ImageError
from snapkit.restore.chunks import ChunkTable, check_table_len
from snapkit.restore.container import find_gaps, parts_of, read_manifest
from snapkit.restore.digest import Digester
from snapkit.restore.preamble import PREAMBLE_LEN, unpack_preamble
from snapkit.restore.source import Source
from snapkit.state.host_facts import HostFacts
from snapkit.state.schema import SectionId, State
from snapkit.units import MIB

KEPT_LEN_MAX = MIB
"""Of a front that is kept, which has 24 KiB for each GiB of RAM: that of a machine of 32 GiB, say."""
KEPT_MAX, KEPT_SUM_MAX = 64, 16 * MIB
"""How many are kept, and bytes of all; what is parsed takes up to three times as much beside them."""

_kept: dict[tuple[bytes, bytes], "Front"] = {}  # the one that was used last at the end
_lock = threading.Lock()


class Sound(NamedTuple):
    """What `check` found nothing wrong with."""

    sections: tuple[tuple[SectionId, int, int, Callable[[bytes], State]], ...]
    """Each with where its stored bytes begin and end, and what decodes them."""
    dropped: tuple[str, ...]
    """Sections that this release does not know, each with the reason."""
    looked_at: tuple[tuple[int, bytes], ...]
    """What of guest memory was looked at, as `Pages.take_peeked` gives it."""
    newest: bool
    """The current release wrote them: there is nothing to convert."""


class Front:
    """A front that was read: all is checked but the digests of sections. Use `read_front`.

    Files with the same one share it, so that nothing of it changes but what is found out about it.
    """

    __slots__ = ("content", "file_len", "fitting", "gaps", "manifest", "preamble", "sound", "table")

    def __init__(self, source: Source, digester: Digester) -> None:
        self.file_len = source.length
        self.preamble = preamble = unpack_preamble(source.head, digester)
        length = preamble.chunks_offset + preamble.chunks_len
        if length <= KEPT_LEN_MAX:
            source.read_head(length)  # what is kept and what is parsed are the same bytes, whoever writes to the file
        self.manifest = read_manifest(source, preamble, digester)
        regions = self.manifest.memory.regions
        self.gaps = find_gaps(parts_of(preamble, self.manifest), source.length)
        self.check_gaps(source)
        check_table_len(preamble.chunks_len, regions)
        table = source.read(preamble.chunks_offset, preamble.chunks_len, "the chunk table")
        if not digester.matches(table, preamble.chunks_digest):
            raise ImageError("the chunk table does not match its digest: damaged")
        self.table = ChunkTable(table, regions, memory_offset=preamble.memory_offset, memory_len=preamble.memory_len)
        whole = length <= min(KEPT_LEN_MAX, len(source.head))
        self.content = source.head[:length] if whole else b""
        """Its bytes; none where there are too many to keep, or some were not there when they were read first."""
        self.sound: Sound | None = None
        self.fitting: set[HostFacts] = set()
        """Hosts that can run the machine in it."""

    def check_gaps(self, source: Source) -> None:
        """Check that there is nothing but zeros between the parts of the file."""
        for gap in self.gaps:
            if source.read(gap.offset, gap.length, gap.what) != bytes(gap.length):
                raise ImageError(f"{gap.what}, {gap.length} bytes at {gap.offset}, is not zero")


def read_front(source: Source, digester: Digester) -> Front:
    """Return the front of *source*, the one that is kept if it is the same.

    Raises ImageError, in the order in which bytes can be trusted.
    """
    name = source.head[:PREAMBLE_LEN], digester.name
    front = _kept.get(name)
    if front is not None and front.file_len == source.length:
        source.read_head(len(front.content))
        if digester.same(source.head[: len(front.content)], front.content):
            front.check_gaps(source)
            _keep(name, front)
            return front
    front = Front(source, digester)
    if front.content:
        _keep(name, front)
    return front


def forget() -> None:
    """Keep no front any more."""
    with _lock:
        _kept.clear()


def _keep(name: tuple[bytes, bytes], front: Front) -> None:
    with _lock:
        known = _kept.pop(name, None) is front
        _kept[name] = front
        while not known and (len(_kept) > KEPT_MAX or sum(len(each.content) for each in _kept.values()) > KEPT_SUM_MAX):
            del _kept[next(iter(_kept))]
