"""How two snapshots differ: sections by path, memory by page.

Two files of different releases are compared as the current release says both. Memory is compared by what it holds: a
hole and a chunk of zeros are the same. Chunks of equal digests are equal and not read; what is read is checked against
its digest, so that damage is never told as a difference. What belongs to a file and not to the machine is left out:
ids of snapshots, times, who wrote it, how its sections and memory are stored.
"""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from snapkit.restore.chunks import Chunk
from snapkit.restore.image import Image
from snapkit.restore.pages import Pages, Progress
from snapkit.restore.source import naming
from snapkit.state.converters import Sections, convert_sections
from snapkit.state.diff import Difference, differences
from snapkit.state.releases import current_release
from snapkit.units import PAGE_LEN


class Span(NamedTuple):
    """A range of guest-physical memory, in bytes."""

    gpa: int
    length: int

    def __str__(self) -> str:
        return f"{self.gpa:#x}-{self.gpa + self.length - 1:#x}"


class MemoryDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Where RAM differs: *changed* pages in both, and RAM that only one of them has."""

    changed: tuple[Span, ...]
    only_before: tuple[Span, ...]
    only_after: tuple[Span, ...]
    compared_len: int

    @property
    def pages(self) -> int:
        """How many pages differ that both have."""
        return sum(span.length for span in self.changed) // PAGE_LEN

    def __bool__(self) -> bool:
        return bool(self.changed or self.only_before or self.only_after)


class SnapshotDifference(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that differs. *release* is the one whose versions the sections were compared at."""

    release: str
    sections: int
    fields: tuple[Difference, ...]
    memory: MemoryDifference
    dropped: tuple[str, ...]
    """Optional sections that this release does not know, which were not compared."""

    def __bool__(self) -> bool:
        return bool(self.fields or self.memory)


def compare(before: Image, after: Image, *, progress: Progress | None = None) -> SnapshotDifference:
    """Compare two open snapshots.

    Raises ImageError when one of them cannot be decoded, or memory that has to be read is damaged.
    """
    found = [image.sections() for image in (before, after)]
    releases = [image.preamble.release for image in (before, after)]
    release = releases[0] if releases[0] == releases[1] else current_release().release
    states: list[Sections] = []
    for image, each in zip((before, after), found, strict=True):
        with naming(image.path):
            states.append(convert_sections(each.states, image.preamble.release, release))
    return SnapshotDifference(
        release=release,
        sections=len({*states[0], *states[1]}),
        fields=tuple(differences(states[0], states[1])),
        memory=compare_memory(before.memory, after.memory, progress=progress),
        dropped=tuple(
            f"{image.path}: {one}" for image, each in zip((before, after), found, strict=True) for one in each.dropped
        ),
    )


def compare_memory(before: Pages, after: Pages, *, progress: Progress | None = None) -> MemoryDifference:
    """Compare the memory of two snapshots, page by page where their chunks differ."""
    first, second = (_joined(pages) for pages in (before, after))
    shared = list(_intersection(first, second))
    total, done = sum(span.length for span in shared), 0
    changed: list[Span] = []
    for span in shared:
        for part, differs in _parts(before, after, span):
            if differs:
                for page in _pages(before.read(*part), after.read(*part), part.gpa):
                    if changed and sum(changed[-1]) == page.gpa:
                        changed[-1] = Span(changed[-1].gpa, changed[-1].length + page.length)
                    else:
                        changed.append(page)
            done += part.length
            if progress is not None:
                progress(done, total)
    return MemoryDifference(
        changed=tuple(changed),
        only_before=tuple(_without(first, shared)),
        only_after=tuple(_without(second, shared)),
        compared_len=total,
    )


def _parts(before: Pages, after: Pages, span: Span) -> Iterator[tuple[Span, bool]]:
    """Cut *span* where a chunk of either begins or ends, and say of each part whether it may differ."""
    at, end = span.gpa, span.gpa + span.length
    while at < end:
        chunks = [pages.table.chunk_at(at) for pages in (before, after)]
        stops = [_stop(pages, chunk, at, end) for pages, chunk in zip((before, after), chunks, strict=True)]
        stop = min(end, *stops)
        yield Span(at, stop - at), _may_differ(before, after, chunks[0], chunks[1])
        at = stop


def _stop(pages: Pages, chunk: Chunk | None, at: int, end: int) -> int:
    if chunk is not None:
        return chunk.gpa + chunk.length
    following = pages.table.next_raw(at)
    return end if following is None else following


def _may_differ(before: Pages, after: Pages, first: Chunk | None, second: Chunk | None) -> bool:
    if first is None and second is None:
        return False
    if first is None or second is None or (first.gpa, first.length) != (second.gpa, second.length):
        return True
    same_digests = before.table.digest(first.number) == after.table.digest(second.number)
    return not (same_digests and before.digests_agree(after))


def _pages(first: bytes, second: bytes, gpa: int) -> Iterator[Span]:
    if first == second:
        return
    for at in range(0, len(first), PAGE_LEN):
        if first[at : at + PAGE_LEN] != second[at : at + PAGE_LEN]:
            yield Span(gpa + at, PAGE_LEN)


def _joined(pages: Pages) -> list[Span]:
    return [Span(gpa, length) for gpa, length in pages.joined()]


def _intersection(first: list[Span], second: list[Span]) -> Iterator[Span]:
    for one in first:
        for other in second:
            start, stop = max(one.gpa, other.gpa), min(sum(one), sum(other))
            if start < stop:
                yield Span(start, stop - start)


def _without(spans: list[Span], taken: list[Span]) -> Iterator[Span]:
    """Give the parts of *spans* that none of *taken*, in order and inside of them, covers."""
    for span in spans:
        at = span.gpa
        for other in taken:
            if span.gpa <= other.gpa < sum(span):
                if at < other.gpa:
                    yield Span(at, other.gpa - at)
                at = sum(other)
        if at < sum(span):
            yield Span(at, sum(span) - at)
