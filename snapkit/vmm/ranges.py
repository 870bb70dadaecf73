"""A set of ranges of addresses that do not overlap. Pure."""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator


class Ranges:
    """Ranges (start, end), in order. What is added may cover what is there; what is removed may split it."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._ranges)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._ranges)

    def add(self, start: int, end: int) -> None:
        """Add a range; neighbours stay apart."""
        if not self._ranges or start >= self._ranges[-1][1]:  # the usual case: in order
            self._ranges.append((start, end))
            return
        self.remove(start, end)
        insort(self._ranges, (start, end))

    def count(self, start: int, end: int) -> int:
        """Return how many ranges have a part in [start, end)."""
        first, last = self._touching(start, end)
        return last - first if start < end else 0

    def remove(self, start: int, end: int) -> None:
        """Take a range out."""
        first, last = self._touching(start, end)
        if first == last or start >= end:
            return
        left, right = self._ranges[first][0], self._ranges[last - 1][1]
        self._ranges[first:last] = [
            (low, high) for low, high in ((left, min(start, right)), (max(end, left), right)) if low < high
        ]

    def _touching(self, start: int, end: int) -> tuple[int, int]:
        """Return which ranges have a part in [start, end), as indices from and to."""
        first = bisect_right(self._ranges, (start, start))
        if first and self._ranges[first - 1][1] > start:
            first -= 1
        return first, max(first, bisect_left(self._ranges, (end, end)))
