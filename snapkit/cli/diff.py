"""``snapkit diff``."""

import json
from typing import TYPE_CHECKING, Any

import click

from snapkit.cli import LINES_MAX, harmless
from snapkit.cli.keys import key_option, read_key
from snapkit.cli.progress import shown_progress
from snapkit.errors import EXIT_DIFFERENT
from snapkit.units import PAGE_LEN, format_len

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snapkit.restore.diff import MemoryDifference, SnapshotDifference, Span


@click.command(short_help="say how two snapshots differ")
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Every difference as JSON; byte strings are base64.")
@click.option("--whole", is_flag=True, help="List every range of memory.")
@key_option
def diff(before: str, after: str, as_json: bool, whole: bool, key_file: str | None) -> int:
    """Compare the machines in A and B: values by path, registers by field, memory by page.

    Files of different releases are compared as the current release says both. What belongs to a file and not to its
    machine (ids of snapshots, times, who wrote it) is left out. --key-file is for both files.

    \b
    Exit code: 0 equal, 1 different, 2 no such file, 3 a file is wrong or memory that was read is damaged.

    \b
    Examples:
      snapkit diff before.snap after.snap
      snapkit diff before.snap after.snap --json | jq -r '.fields[].path'
    """
    from snapkit.restore.diff import compare
    from snapkit.restore.image import Image

    key = read_key(key_file)
    with (
        Image.open(before, key=key) as first,
        Image.open(after, key=key) as second,
        shown_progress("memory") as progress,
    ):
        found = compare(first, second, progress=progress)
    for dropped in found.dropped:
        click.echo(f"snapkit: not compared: {harmless(dropped)}", err=True)
    if as_json:
        click.echo(json.dumps(_as_data(found)))
    else:
        _tell(before, after, found, whole=whole)
    return EXIT_DIFFERENT if found else 0


def _tell(before: str, after: str, found: "SnapshotDifference", *, whole: bool) -> None:
    for difference in found.fields:
        click.echo(harmless(str(difference)))
    memory = found.memory
    shown = memory.changed if whole else memory.changed[:LINES_MAX]
    for span in shown:
        count = span.length // PAGE_LEN
        click.echo(f"memory {span}: {count} page{'' if count == 1 else 's'}")
    if left := len(memory.changed) - len(shown):
        click.echo(f"memory: {left} more ranges, --whole lists them")
    for spans, name in ((memory.only_before, before), (memory.only_after, after)):
        for span in spans:
            click.echo(f"memory {span}: only in {harmless(name)}")
    if not found:
        length = format_len(memory.compared_len)
        click.echo(f"{harmless(before)} and {harmless(after)} are equal: {found.sections} sections, {length} of memory")
        return
    click.echo(f"{_fields_text(found)}; {_memory_text(memory)}")


def _fields_text(found: "SnapshotDifference") -> str:
    touched = {difference.path.partition(".")[0] for difference in found.fields}
    count = len(found.fields)
    return f"{count} value{'' if count == 1 else 's'} in {len(touched)} of {found.sections} sections differ"


def _memory_text(memory: "MemoryDifference") -> str:
    of = memory.compared_len // PAGE_LEN
    ranges = len(memory.changed)
    length = format_len(memory.pages * PAGE_LEN)
    text = f"{memory.pages} of {of} pages of memory differ ({length} in {ranges} range{'' if ranges == 1 else 's'})"
    only = sum(span.length for span in (*memory.only_before, *memory.only_after))
    return f"{text}, {format_len(only)} are only in one" if only else text


def _as_data(found: "SnapshotDifference") -> dict[str, Any]:
    memory = found.memory

    def spans(of: "Sequence[Span]") -> list[dict[str, int]]:
        return [{"gpa": span.gpa, "length": span.length} for span in of]

    return {
        "equal": not found,
        "release": found.release,
        "sections": found.sections,
        "fields": [difference.as_data() for difference in found.fields],
        "memory": {
            "length": memory.compared_len,
            "pages": memory.pages,
            "changed": spans(memory.changed),
            "only_before": spans(memory.only_before),
            "only_after": spans(memory.only_after),
        },
        "not_compared": list(found.dropped),
    }
