"""A bar on stderr for what takes long: on a terminal only."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click


@contextmanager
def shown_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Give what is to be called with bytes done and in all; work that begins again begins its bar again."""
    with click.progressbar(length=1, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def report(done: int, total: int) -> None:
            bar.length = max(total, 1)
            bar.update(done - bar.pos)

        yield report
