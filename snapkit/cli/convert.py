"""``snapkit convert``."""

import json
from typing import TYPE_CHECKING, Any

import click

from snapkit.cli import finding_data
from snapkit.cli.keys import key_option, read_key
from snapkit.cli.progress import shown_progress
from snapkit.cli.written import memory_text, written_data

if TYPE_CHECKING:
    from snapkit.restore.convert import Change, Conversion
    from snapkit.restore.rewrite import Rewritten
    from snapkit.state.converters import Refusal


@click.command(short_help="carry a snapshot to another release, up or down")
@click.argument("file")
@click.argument("out", required=False)
@click.option("--to", "release", required=True, metavar="RELEASE", help="What is to be able to restore OUT: 0.1.0, ...")
@click.option(
    "--check", "checking", is_flag=True, help="Say what would happen, and write nothing; OUT may be left out."
)
@click.option("--json", "as_json", is_flag=True, help="What was done, or is in the way, as JSON.")
@key_option
@click.option(
    "--new-key-file", metavar="K", help="Key OUT with this instead; all of memory is read and checked for it."
)
def convert(
    file: str,
    out: str | None,
    release: str,
    checking: bool,
    as_json: bool,
    key_file: str | None,
    new_key_file: str | None,
) -> int:
    """Write the machine in FILE to OUT as RELEASE would have written it. FILE is never modified.

    Memory is not touched: OUT shares it with FILE where the file system can (XFS, Btrfs), else it is copied with its
    holes. Memory in a file of its own gets a new one beside OUT. OUT is a snapshot with a new id, whose parent is FILE;
    it is there when it is whole, and replaces what was there. A release that cannot hold something in use is refused
    with every reason at once.

    \b
    Exit code: 0 done, 2 refused or no such file or release, 3 FILE is wrong, 5 the host failed.

    \b
    Examples:
      snapkit convert vm.snap --to 0.1.0 --check
      snapkit convert vm.snap older.snap --to 0.2.0
    """
    from snapkit.restore.convert import Conversion
    from snapkit.state.converters import Refusal

    if out is None and not checking:
        raise click.UsageError("OUT is missing: where to write to (or --check)")
    key, new_key = read_key(key_file), read_key(new_key_file)
    try:
        conversion = Conversion.open(file, release, key=key)
    except Refusal as refusal:
        if not (as_json or checking):
            raise
        _tell_refused(file, release, refusal, as_json=as_json)
        return refusal.exit_code
    with conversion:
        for dropped in conversion.dropped:
            click.echo(f"snapkit: left out: {dropped}", err=True)
        if out is not None:
            conversion.check_place(out)
        done = None
        if not checking and out is not None:
            with shown_progress("memory") as progress:
                done = conversion.write(out, new_key=new_key, progress=progress)
        if as_json:
            click.echo(json.dumps(_as_data(conversion, done)))
        else:
            _tell(conversion, out, done)
    return 0


def _tell(conversion: "Conversion", out: str | None, done: "Rewritten | None") -> None:
    image = conversion.image
    if done is None:
        for change in conversion.changes:
            click.echo(f"{change.section}: {_change_text(change)}")
    count = len(conversion.changes)
    what = f"{count} section{'' if count == 1 else 's'} of {len(conversion.sections)}"
    steps = f"from release {image.preamble.release} to {conversion.release}"
    if done is None:
        click.echo(f"{image.path} can be carried {steps}: {what} would change, nothing was written")
        return
    click.echo(f"{out}: {steps}, {what} changed, {memory_text(done)}")


def _change_text(change: "Change") -> str:
    if change.before is None:
        return f"added at version {change.after}"
    if change.after is None:
        return f"version {change.before} goes"
    return f"version {change.before} to {change.after}"


def _as_data(conversion: "Conversion", done: "Rewritten | None") -> dict[str, Any]:
    image = conversion.image
    told: dict[str, Any] = {
        "possible": True,
        "file": image.path,
        "from": image.preamble.release,
        "to": conversion.release,
        "sections": len(conversion.sections),
        "changes": [{"section": str(one.section), "from": one.before, "to": one.after} for one in conversion.changes],
        "left_out": conversion.dropped,
        "written": None,
    }
    if done is not None:
        told["written"] = written_data(done)
    return told


def _tell_refused(file: str, release: str, refusal: "Refusal", *, as_json: bool) -> None:
    if as_json:
        reasons = [finding_data(finding) for finding in refusal.findings]
        click.echo(json.dumps({"possible": False, "file": file, "to": release, "reasons": reasons}))
        return
    count = len(refusal.findings)
    click.echo(f"{file}: {refusal.args[0]}, for {count} reason{'' if count == 1 else 's'}")
    for finding in refusal.findings:
        click.echo(f"  {finding}")
