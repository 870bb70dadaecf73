"""The compatibility matrix: every stored golden under every released program, and what has been decided about each.

    python -m tools.matrix [--json] [--html OUT] [--only PATTERN]    `snapkit matrix`, in the checkout of this file
    python -m tools.matrix --extend                                  decide what nobody has decided yet, by running it

Rows are the goldens of ``tests/golden``. Columns are the wheels of ``tests/compat/releases``, each in a virtual
environment of its own, and the working tree. What a column cannot read by itself, because it is older, the tree converts
for it. Then the column's program verifies the file and plans its restore, on any host; on this machine's ``/dev/kvm`` it
restores it, and the guest's lines go on with the next one. Beyond its cells a row has three more checks (`tools.table.MORE`).

A release that has no machines of a row's architecture refuses it without a run. What is of another architecture than this
machine is planned here by the facts of a recorded host (`tools.table.HOSTS`), and run in the lab's machine (`tools.elsewhere`): there
this same program runs, with --bare.

``tests/compat/matrix.json`` holds what each has to give: ``"runs"``, or the reasons why the file is refused. People review
it. Another outcome is a failure; what is there without being decided, or decided without being there, is missing. `extend`
never decides against the law: a program restores what itself and every older release wrote.

The table of README.md is drawn from the same file.
"""

import argparse
import fnmatch
import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec

from snapkit.errors import EXIT_DIFFERENT, ConfigError, ImageError, IncompatibleHost, SnapkitError
from snapkit.restore.convert import Conversion
from snapkit.restore.image import Image
from snapkit.state.converters import Refusal
from tools import elsewhere, golden, matrix_view, stored
from tools.column import ROOT, Column
from tools.decided import FILE, TREE, Decided, Result, Seen, State
from tools.table import BACK, ONWARD, SAVED_AGAIN, Bench, Row, bench, checks, names, order, rows

_RESTORE_S = 60
_LINES = 2
"""A machine prints as many whole lines between a restore and its next save."""
_WORKERS = 3  # more than there are processors here: guests sleep between lines


class RefusedError(Exception):
    """The file cannot be had there: every reason."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("\n".join(reasons))
        self.reasons = tuple(dict.fromkeys(reasons))


class FailedError(Exception):
    """Something went wrong that is no reason."""


def problems(root: Path) -> Iterator[str]:
    """Say what nobody decided, what was decided about nothing, and whether README.md shows it; each with what to do."""
    try:
        decided, there = Decided.read(root), names(root)
    except ConfigError as error:
        yield str(error)
        return
    for row, check in there:
        if decided.get(row, check) is None:
            yield f"{row}, {check}: nobody has decided it; run `make matrix-extend` and review {FILE}"
    for row, check in decided.names():
        if (row, check) not in there:
            yield f"{row}, {check}: it is decided, but its golden or wheel is gone; {golden.KEPT}"
    if not matrix_view.readme_matches(root, decided):
        yield f"README.md does not show {FILE}; run `make matrix-extend`"


# What a check does


def _check(bench: Bench, row: Row, name: str) -> tuple[State, tuple[str, ...]]:
    try:
        if name in bench.columns and row.about.architecture not in stored.architectures(bench.knows[name][-1]):
            raise RefusedError([f"release {name} has no {row.about.architecture}"])
        if name == SAVED_AGAIN:
            done = _saved_again(bench, row)
        elif name == BACK:
            done = _journey(bench, row, [TREE, row.release, TREE])
        elif name == ONWARD:
            later = [
                each for each in bench.columns if bench.reads(each, row.release) and each not in {row.release, TREE}
            ]
            done = _journey(bench, row, [*(later or [TREE]), TREE])
        else:
            done = _journey(bench, row, [name])
    except RefusedError as error:
        return "refused", error.reasons
    except (FailedError, SnapkitError, OSError, subprocess.TimeoutExpired) as error:
        return "failed", (str(error),)
    return ("runs", ()) if done else ("planned", (row.lacking,))


def _journey(bench: Bench, row: Row, stops: Sequence[str]) -> bool:
    """Restore the row's file at the first stop, save there, restore that at the next, and so on.

    At each it is verified and planned first; where it cannot run, that of the first stop is all. Returns whether it ran.
    """
    folder = bench.folder()
    ends = golden.host_ends(row.folder, row.about, folder)
    options = golden.end_words(row.about, ends)
    taps = (golden.TAP,) if row.about.nets else ()
    judge = ["--host", str(row.host)] if row.host else []
    path, written, output = row.path, row.release, ""
    for number, stop in enumerate(stops):
        column = bench.columns[stop]
        here = bench.folder()
        with bench.reading:
            path = _carried(bench, path, written, stop, here)
        _do(column, ["verify", str(path)], here)
        _do(column, ["restore", str(path), "--dry-run", *judge, *options], here)
        if row.lacking:
            return False
        due = f"{row.about.word} {row.about.count + len(row.about.went_on(output)) + _LINES + 1}"
        serial, last = here / "serial", number == len(stops) - 1
        saved = ["--snapshot-when", due, "--snapshot-to", str(here / "saved.snap"), "--then", "stop"]
        words = ["restore", str(path), *options, "--serial", f"file:{serial}", "--timeout", str(_RESTORE_S)]
        before = len(row.about.went_on(output))
        _do(column, [*words, *(["--exit-when", due] if last else saved)], here, taps)
        output += serial.read_text()
        if len(row.about.went_on(output)) - before < _LINES:
            raise FailedError(f"its guest does not go on under {stop}: {output!r}")
        path = here / "saved.snap"
        if not last:
            with bench.reading, Image.open(path) as image:
                written = image.preamble.release
    return True


def _carried(bench: Bench, path: Path, written: str, column: str, folder: Path) -> Path:
    """Return the file, *written* by that release, as *column* can read it: converted by the tree where it is too old."""
    if column == TREE or bench.reads(column, written):
        return path
    try:
        return convert(path, folder / "converted.snap", column)
    except Refusal as error:
        # values and counts are the machine's; which fields, and why not, is the release's
        shown = (f"{each.component}.{each.path}".rstrip(".") + f" must be {each.expected}" for each in error.findings)
        raise RefusedError([re.sub(r"\[\d+\]", "[]", line) for line in shown]) from error


def convert(path: Path, into: Path, release: str) -> Path:
    """Write the file at *path* as *release* would have; returns the new one. Raises Refusal with every reason."""
    with Conversion.open(str(path), release) as conversion:
        conversion.write(str(into))
    return into


def _do(column: Column, words: list[str], folder: Path, taps: tuple[str, ...] = ()) -> str:
    done = column.run(words, folder, taps=taps, bound_s=2 * _RESTORE_S)
    if done.code in {ImageError.exit_code, IncompatibleHost.exit_code}:
        raise RefusedError([line.strip().replace(words[1], "it") for line in done.err.splitlines()])
    if done.code:
        raise FailedError(f"{column.name}: snapkit {words[0]} ended with {done.code}: {done.err.strip()}")
    return done.out


def _saved_again(bench: Bench, row: Row) -> bool:
    if row.lacking:
        return False
    ends = golden.host_ends(row.folder, row.about, bench.folder())
    words = [sys.executable, "-m", "tools.equal", str(row.path), msgspec.json.encode(ends).decode()]
    command = golden.among_taps(words) if row.about.nets else words
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2 * _RESTORE_S, check=False)
    if done.returncode:
        raise FailedError((done.stdout + done.stderr).strip())
    return True


# All of them


def run(
    bench: Bench,
    found: Sequence[Row],
    decided: Decided,
    wanted: Callable[[str, str], bool] = lambda _row, _check: True,
) -> list[Result]:
    """Run every check that is *wanted*, some at once, and return them with what was *decided* about each."""
    columns = list(bench.columns)
    chosen = [(row, name) for row in found for name in checks(row.release, columns) if wanted(row.name, name)]
    counted = itertools.count(1)

    def one(pair: tuple[Row, str]) -> Result:
        row, name = pair
        start = time.monotonic()
        state, reasons = _check(bench, row, name)
        matrix_view.progress(next(counted), len(chosen))
        return Result(row.name, name, state, reasons, decided.get(row.name, name), time.monotonic() - start)

    with ThreadPoolExecutor(_WORKERS) as workers:
        return list(workers.map(one, chosen))


def unlawful(result: Result, bench: Bench) -> str:
    """Say why this outcome may not be decided; empty when it may."""
    release, check = result.row.partition("/")[0], result.check
    if result.decided is not None and not result.good:
        return "it was decided otherwise"
    if result.state == "refused":
        older = check in bench.columns and check != TREE and order(check) < order(release)
        may = check == BACK or (older and not bench.reads(check, release))
        return "" if may else "a release restores whatever itself and older ones wrote: support never ends"
    if result.state == "planned":
        return "it is decided by running it"
    return "" if result.state == "runs" else "that decides nothing"


def extend(root: Path, bench: Bench, found: Sequence[Row]) -> list[str]:
    """Run what is not decided yet and decide it, unless the law is against one: then nothing; returns why, all of it.

    A row that gets a new column goes onward through it as well. Rows of another architecture run in the lab. Raises
    ConfigError where that is not there.
    """
    decided = Decided.read(root)
    open_rows = {row for row, check in names(root) if decided.get(row, check) is None}
    wanted = [(row, check) for row, check in names(root) if row in open_rows]
    chosen = {(row, check) for row, check in wanted if check == ONWARD or decided.get(row, check) is None}
    results = run(bench, found, decided, lambda row, check: (row, check) in chosen)
    results = _run_elsewhere(found, results, decided)
    against = [
        f"{each.row}, {each.check}: {each.state}, {why}: {'; '.join(each.reasons)}"
        for each in results
        if (why := unlawful(each, bench))
    ]
    if not against:
        for each in results:
            assert each.outcome is not None, "or it was unlawful"
            decided.put(each.row, each.check, each.outcome)
        decided.write(root, names(root))
        matrix_view.write_readme(root, decided)
    return against


def _run_elsewhere(found: Sequence[Row], results: Sequence[Result], decided: Decided) -> list[Result]:
    """Return *results*; those that could only be planned, since they are of another architecture, as they are there."""
    foreign = {row.name: row.about.architecture for row in found if row.host}
    waiting: dict[str, list[str]] = {}
    for each in results:
        if each.state == "planned" and each.row in foreign:
            waiting.setdefault(foreign[each.row], []).append(f"{each.row} {each.check}")
    ran = {}
    for architecture, cells in waiting.items():
        for each in elsewhere.matrix(architecture, cells):
            ran[each.row, each.check] = replace(each, decided=decided.get(each.row, each.check))
    return [ran.get((each.row, each.check), each) for each in results]


def main(words: Sequence[str] | None = None) -> int:
    """Show the matrix, or extend what is decided; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.matrix", description="The compatibility matrix.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--html", metavar="OUT", type=Path, help="write a page of it to OUT as well")
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        action="append",
        help="`ROW CHECK`, with wildcards: '*-pci-* 0.2.0'; may be repeated",
    )
    parser.add_argument("--extend", action="store_true", help="decide what nobody has decided yet, by running it")
    parser.add_argument("--cache", type=Path, default=ROOT / ".cache/wheels", help="where environments are kept")
    parser.add_argument("--newest", type=Path, help="where the environment of the newest release goes, else the cache")
    parser.add_argument("--bare", action="store_true", help="no environments: programs run on what this Python has")
    asked = parser.parse_args(words)
    patterns = asked.only or ["*"]
    try:
        if asked.extend:
            with bench(ROOT, asked.cache, asked.newest) as ready:
                against = extend(ROOT, ready, rows(ROOT, ready.scratch))
            for line in against:
                print(line, file=sys.stderr)
            return EXIT_DIFFERENT if against else 0

        def wanted(row: str, check: str) -> bool:
            return any(fnmatch.fnmatch(f"{row} {check}", pattern) for pattern in patterns)

        seen = look(ROOT, asked.cache, wanted, bare=asked.bare)
    except SnapkitError as error:
        print(f"snapkit: {error}", file=sys.stderr)
        return error.exit_code
    print(matrix_view.as_json(seen) if asked.json else matrix_view.as_text(seen))
    if asked.html:
        asked.html.write_text(matrix_view.as_html(seen))
    if seen.lacking and "kvm" in os.environ.get("SNAPKIT_REQUIRE", "").split(","):
        print(f"snapkit: {seen.lacking[0].reasons[0]}, and SNAPKIT_REQUIRE asks for it", file=sys.stderr)
        return EXIT_DIFFERENT
    return EXIT_DIFFERENT if seen.failed or seen.missing else 0


def look(root: Path, cache: Path, wanted: Callable[[str, str], bool], *, bare: bool = False) -> Seen:
    """Run what is *wanted* of the matrix of the checkout at *root*."""
    start = time.monotonic()
    with bench(root, cache, bare=bare) as ready:
        results = run(ready, rows(root, ready.scratch), Decided.read(root), wanted)
        return Seen(list(ready.columns), results, list(problems(root)), time.monotonic() - start)


if __name__ == "__main__":
    sys.exit(main())
