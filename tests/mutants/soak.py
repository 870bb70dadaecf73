"""The report of the last long run of each architecture, ``tests/soak.md``: one part each, which is written anew by itself."""

import re
from pathlib import Path

from tests.mutants.judge import RESTORED
from tests.mutants.run import Tally

_STAGES = (
    *("open", "verify", "decode", "upgrade", "check", "plan"),
    *("claim", "rebuild", "wire", "load", "activate", "run"),
)
_SHOWN = 40

REPORT = Path(__file__).parents[1] / "soak.md"
_TITLE = """# The last long runs of mutants

Written by `make soak` (tests/mutants): files made from good machines, digests made right, each restored, run and
saved again, or refused.
"""


def report(name: str, seed: int, tally: Tally, path: Path = REPORT) -> None:
    """Write what became of a run on architecture *name* into the report, over what was told of it before."""
    _, *parts = re.split(r"^(?=## )", path.read_text() if path.exists() else "", flags=re.MULTILINE)
    kept = [part.rstrip() + "\n" for part in parts if not part.startswith(f"## {name}\n")]
    path.write_text("\n".join([_TITLE, *sorted([*kept, render(name, seed, tally)], reverse=True)]))


def render(name: str, seed: int, tally: Tally) -> str:
    """Write what became of a run as a part of a Markdown document."""
    lines = [
        f"## {name}",
        "",
        f"- seed {seed}, {tally.count} mutants, {tally.took_s:.0f} s, the slowest {tally.slowest_s:.2f} s",
        f"- resident memory at the end: {tally.grown_len / 1024:+.0f} KiB against that after the first hundred",
        f"- held against them: {len(tally.complaints)}; restored, but not equal: {len(tally.unequal)}",
        f"- refused by the kernel alone: {len(tally.late)}",
        "",
        "| refused in | mutants |",
        "|---|---:|",
        *(f"| {stage} | {tally.stages[stage]} |" for stage in _STAGES),
        f"| not refused: {RESTORED} | {tally.stages[RESTORED]} |",
        "",
        "| then the guest | mutants |",
        "|---|---:|",
        *(f"| {ending} | {count} |" for ending, count in tally.endings.most_common()),
        "",
        *(["| altered by KVM when it is loaded | values |", "|---|---:|"] if tally.altered else []),
        *(f"| {reason} | {count} |" for reason, count in sorted(tally.altered.items())),
        *([""] if tally.altered else []),
        "| mutation | times |",
        "|---|---:|",
        *(f"| {name.replace('_', ' ')} | {count} |" for name, count in sorted(tally.mutations.items())),
    ]
    for title, found in (
        ("Held against them", tally.complaints),
        ("Restored, but not equal", tally.unequal),
        ("Refused by the kernel alone", tally.late),
    ):
        if found:
            lines += ["", f"### {title}", "", *(f"- {text[:500]}" for text in found[:_SHOWN])]
            lines += [f"- and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return "\n".join(lines) + "\n"
