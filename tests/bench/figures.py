"""Tables for people and JSON for machines, from the same rows."""

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Cell = str | float | int


@dataclass
class Figures:
    """All that was measured in this run."""

    tables: dict[str, list[Mapping[str, Cell]]] = field(default_factory=dict)

    def show(self, name: str, title: str, rows: Sequence[Mapping[str, Cell]]) -> None:
        """Print *rows* under *title* and keep them as *name*."""
        self.tables[name] = list(rows)
        heads = list(rows[0])
        cells = [[_text(row[head]) for head in heads] for row in rows]
        widths = [max(len(head), *(len(row[at]) for row in cells)) for at, head in enumerate(heads)]
        print(f"\n\n{title}")
        print("  " + "  ".join(head.ljust(width) for head, width in zip(heads, widths, strict=True)))
        for row in cells:
            print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))

    def write(self, path: Path) -> None:
        """Write everything to *path*."""
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"cpus": os.cpu_count(), "load": os.getloadavg(), "tables": self.tables}, indent=1))
        print(f"\nwritten to {path}")


def microseconds(action: Callable[[], object]) -> float:
    """Run *action* once and give what it took."""
    begin_ns = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - begin_ns) / 1e3


def medians(rounds: int, *actions: Callable[[], float]) -> list[float]:
    """Take *rounds* values of each of *actions*, alternating, and return the median of each."""
    return [statistics.median(taken) for taken in values(rounds, *actions)]


def values(rounds: int, *actions: Callable[[], float]) -> list[list[float]]:
    """Take *rounds* values of each of *actions*, alternating."""
    taken: list[list[float]] = [[] for _ in actions]
    for _ in range(rounds):
        for mine, action in zip(taken, actions, strict=True):
            mine.append(action())
    return taken


def _text(cell: Cell) -> str:
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)
