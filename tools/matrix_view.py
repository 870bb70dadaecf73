"""How the matrix is shown: a table for a terminal, JSON, a page of its own (`PAGE`), and the table in README.md."""

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template

import msgspec

from snapkit.errors import ConfigError
from tools.decided import Decided, Outcome, Result, Seen

PAGE = Path(__file__).with_name("matrix.html")
README = Path("README.md")
BEGIN, END = "<!-- the matrix: written by tools.matrix -->\n", "<!-- end of the matrix -->\n"
_REASONS = 4
"""Of a refusal that a terminal shows; JSON and the page have all."""
_COLOURS = {"runs": "green", "planned": "cyan", "refused": "yellow", "failed": "red"}
_MARKS = {"runs": "runs", "planned": "plans", "refused": "refused", "failed": "FAILED"}


def progress(done: int, of: int) -> None:
    """Tell a person at a terminal how far it is."""
    if sys.stderr.isatty():
        print(f"\r{done} of {of}" if done < of else "\r\033[K", end="", file=sys.stderr, flush=True)


def _mark(result: Result) -> str:
    if result.decided is None:
        return "UNDECIDED"
    return _MARKS[result.state] if result.good else f"{_MARKS[result.state].upper()}!"


def _table(seen: Seen) -> tuple[list[str], dict[str, dict[str, Result]]]:
    """Return the checks in order and the results by row and check."""
    rows: dict[str, dict[str, Result]] = {}
    for each in seen.results:
        rows.setdefault(each.row, {})[each.check] = each
    every = dict.fromkeys([*seen.columns, *(each.check for each in seen.results)])
    return [check for check in every if any(check in row for row in rows.values())], rows


def _notes(seen: Seen) -> Iterator[tuple[tuple[str, ...], list[Result]]]:
    """Give every distinct list of reasons, with who has it."""
    by_reasons: dict[tuple[str, ...], list[Result]] = {}
    for each in seen.results:
        if each.reasons:
            by_reasons.setdefault(each.reasons, []).append(each)
    yield from by_reasons.items()


def _summary(seen: Seen) -> str:
    text = f"{len(seen.results)} cells, {len(seen.missing) or 'none'} missing, {len(seen.failed) or 'none'} failed"
    if seen.planned:
        text += f"; {len(seen.planned)} not run, only decoded, checked and planned"
    return f"{text}; {seen.took_s:.0f} s"


def as_text(seen: Seen) -> str:
    """Return a table at a glance, then the reasons, then what is wrong."""
    import click

    checks, rows = _table(seen)
    width = max(map(len, rows), default=0)
    widths = {
        check: max([len(check), *(len(_mark(row[check])) for row in rows.values() if check in row)]) for check in checks
    }
    lines = [f"{'':{width}}  " + "  ".join(f"{check:{widths[check]}}" for check in checks)]
    for name, row in rows.items():
        marks = []
        for check in checks:
            result = row.get(check)
            colour = None if result is None else _COLOURS[result.state if result.good else "failed"]
            mark = "" if result is None else _mark(result)
            marks.append(
                click.style(f"{mark:{widths[check]}}", fg=colour) if sys.stdout.isatty() else f"{mark:{widths[check]}}"
            )
        lines.append(f"{name:{width}}  {'  '.join(marks)}".rstrip())
    for reasons, results in _notes(seen):
        lines += ["", f"{_MARKS[results[0].state]}: " + "; ".join(f"{each.row}, {each.check}" for each in results)]
        more = len(reasons) - _REASONS
        lines += [f"  {line}" for line in reasons[:_REASONS]] + (
            [f"  and {more} more: --json has all"] if more > 0 else []
        )
    wrong = [f"{each.row}, {each.check}: {each.state}, decided is {_said(each.decided)}" for each in seen.failed]
    for title, problems in (("failed:", wrong), ("missing:", seen.missing)):
        lines += ["", title, *(f"  {line}" for line in problems)] if problems else []
    return "\n".join([*lines, "", _summary(seen)])


def _said(decided: Outcome | None) -> str:
    return f"refused: {'; '.join(decided)}" if isinstance(decided, list) else str(decided)


def as_json(seen: Seen) -> str:
    """Return counts first, then every check."""
    checks = [
        {
            "row": each.row,
            "check": each.check,
            "state": each.state,
            "reasons": each.reasons,
            "decided": each.decided,
            "good": each.good,
            "took_s": round(each.took_s, 3),
        }
        for each in seen.results
    ]
    counts = {"cells": len(seen.results), "missing": len(seen.missing), "failed": len(seen.failed)}
    about = {"not_run": len(seen.planned), "took_s": round(seen.took_s, 1), "columns": seen.columns}
    content = {**counts, **about, "undecided": seen.missing, "checks": checks}
    return msgspec.json.format(msgspec.json.encode(content), indent=2).decode()


def as_html(seen: Seen) -> str:
    """Return one page that needs nothing else."""
    checks, rows = _table(seen)
    notes = {reasons: number for number, (reasons, _) in enumerate(_notes(seen), 1)}
    groups: list[tuple[str, list[str]]] = []
    for name, row in rows.items():
        release, _, golden = name.partition("/")
        architecture = next(iter(row.values())).architecture
        written = f"{release} on {architecture}" if architecture else release
        golden = golden.removeprefix(f"{architecture}-")
        if not groups or groups[-1][0] != written:
            groups.append((written, []))
        cells = [_cell(row.get(check), notes) for check in checks]
        groups[-1][1].append(f"<tr><th scope=row>{escape(golden)}</th>{''.join(cells)}</tr>")
    body = [
        f"<tbody><tr class=release><th scope=rowgroup colspan={len(checks) + 1}>written by {escape(written)}</th></tr>{''.join(lines)}</tbody>"
        for written, lines in groups
    ]
    heads = [
        f"<th scope=col{' class=more' if check not in seen.columns else ''}>{escape(check)}</th>" for check in checks
    ]
    shown = []
    for reasons, results in _notes(seen):
        who = ", ".join(f"{each.row} under {each.check}" for each in results)
        items = "".join(f"<li>{escape(line)}</li>" for line in reasons)
        shown.append(
            f"<li id=n{notes[reasons]}><details><summary>{escape(who)}</summary><ul>{items}</ul></details></li>"
        )
    wrong = [f"{each.row}, {each.check}: {each.state}, decided is {_said(each.decided)}" for each in seen.failed]
    page = Template(PAGE.read_text())
    return page.substitute(
        summary=escape(_summary(seen)),
        state="bad" if wrong or seen.missing else "good",
        heads="".join(heads),
        body="\n".join(body),
        notes="\n".join(shown),
        problems="".join(f"<li>{escape(line)}</li>" for line in [*wrong, *seen.missing]),
    )


def _cell(result: Result | None, notes: dict[tuple[str, ...], int]) -> str:
    if result is None:
        return "<td></td>"
    state = result.state if result.good else "failed"
    note = f" <a href=#n{notes[result.reasons]}>{notes[result.reasons]}</a>" if result.reasons else ""
    return f"<td class={state}>{escape(_mark(result))}{note}</td>"


# README.md


def readme_table(decided: Decided) -> str:
    """Return the matrix as it is decided, in Markdown."""
    checks = list(dict.fromkeys(check for row in decided.rows.values() for check in row))
    lines = ["| golden | " + " | ".join(checks) + " |", "|---" * (len(checks) + 1) + "|"]
    for name, row in decided.rows.items():
        shown = ["" if check not in row else "runs" if row[check] == "runs" else "refused" for check in checks]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def write_readme(root: Path, decided: Decided) -> None:
    """Draw the table of README.md anew, in the checkout at *root*."""
    path = root / README
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{path} has no place for the matrix: lines {BEGIN.strip()} and {END.strip()}")
    path.write_text(f"{before}{BEGIN}{readme_table(decided)}{END}{after}")


def readme_matches(root: Path, decided: Decided) -> bool:
    """Return whether README.md of the checkout at *root* shows what is decided."""
    return f"{BEGIN}{readme_table(decided)}{END}" in (root / README).read_text()
