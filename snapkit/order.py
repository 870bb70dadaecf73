"""What must come before what, and why: orders as tables of edges, sorted once, when the table is imported.

An edge is data: two names, the reason, and, where nothing comes of swapping the two on the KVM that tests run on, what
that rests on. The sort is stable: names stand as they are listed, unless an edge asks for something else. A table that
contradicts itself cannot be made; the error gives the reasons on both sides.

An order is of all the names that there are; who has only some of them leaves the others out. So an edge counts by
way of a name that is absent, too, and nothing is ever sorted twice.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from snapkit.errors import InternalError


class Edge(NamedTuple):
    """*before* comes before *after* because of *why*.

    *either* marks an edge that KVM accepts either way, as far as a test here can show, and says what it rests on then:
    what was measured, or where the kernel's source wants it.
    """

    before: str
    after: str
    why: str
    either: str = ""

    def __str__(self) -> str:
        return f"{self.before} before {self.after}: {self.why}"


class Order:
    """Names, sorted by edges: `names` in order, `reasons` why each stands where it does, by name."""

    def __init__(self, title: str, names: Iterable[str], edges: Iterable[Edge]) -> None:
        """Sort *names*, which stand as they are listed where no edge asks for something else.

        Raises InternalError when edges contradict each other, or name what is not listed.
        """
        self.title, self.edges = title, tuple(edges)
        listed = tuple(names)
        self.reasons: dict[str, list[str]] = {name: [] for name in listed}
        for edge in self.edges:
            if edge.before not in self.reasons or edge.after not in self.reasons:
                raise InternalError(f"{title}: the edge {edge} must be between two of {', '.join(listed)}")
            self.reasons[edge.after].append(f"after {edge.before}: {edge.why}")
        self.names = tuple(self._sorted(listed))

    def _sorted(self, listed: Iterable[str]) -> Iterator[str]:
        left = {name: len(reasons) for name, reasons in self.reasons.items()}  # how many must come before it yet
        followers: dict[str, list[str]] = {name: [] for name in listed}
        for edge in self.edges:
            followers[edge.before].append(edge.after)
        while left:
            name = next((name for name, waits in left.items() if not waits), None)
            if name is None:
                circle = "; but ".join(map(str, _circle(left, self.edges)))
                raise InternalError(f"{self.title} contradicts itself: {circle}")
            del left[name]
            for follower in followers[name]:
                left[follower] -= 1
            yield name


def _circle(names: Iterable[str], edges: Sequence[Edge]) -> list[Edge]:
    """Return the shortest way along *edges* from one of *names* back to it; there must be one."""
    among = set(names)
    ways = [[edge] for edge in edges if edge.before in among]
    while True:
        for way in ways:
            if way[-1].after == way[0].before:
                return way
        ways = [[*way, edge] for way in ways for edge in edges if edge.before == way[-1].after]
