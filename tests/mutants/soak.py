"""The report of a long run, ``tests/soak.md``."""

from tests.mutants.judge import RESTORED
from tests.mutants.run import Tally

_STAGES = (
    *("open", "verify", "decode", "upgrade", "check", "plan"),
    *("claim", "rebuild", "wire", "load", "activate", "run"),
)
_SHOWN = 40


def render(seed: int, tally: Tally) -> str:
    """Write what became of a run as Markdown."""
    lines = [
        "# The last long run of mutants",
        "",
        "Written by `make soak` (tests/mutants): files made from good machines, digests made right, each restored, run and",
        "saved again, or refused.",
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
            lines += ["", f"## {title}", "", *(f"- {text[:500]}" for text in found[:_SHOWN])]
            lines += [f"- and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return "\n".join(lines) + "\n"
