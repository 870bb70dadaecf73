"""``snapkit edit``."""

import json

import click

from snapkit.cli import harmless
from snapkit.cli.keys import key_option, read_key
from snapkit.cli.progress import shown_progress
from snapkit.cli.written import memory_text, written_data


@click.command(short_help="change values in a copy of a snapshot")
@click.argument("file")
@click.argument("changes", metavar="PATH=VALUE...", nargs=-1, required=True)
@click.option("-o", "--output", "out", required=True, metavar="OUT", help="Where to write to; never FILE.")
@click.option("--json", "as_json", is_flag=True, help="What was changed and written, as JSON.")
@key_option
def edit(file: str, changes: tuple[str, ...], out: str, as_json: bool, key_file: str | None) -> int:
    """Write FILE to OUT with the value at each PATH changed, in the order given. FILE is never modified.

    PATH is what inspect understands. VALUE is a number (decimal or 0x) or its name, true or false, a word, text, a
    byte string in hexadecimal, `none` for what may be absent, or JSON (as decode gives it) for a list or all of a
    part. The whole machine is checked again: what could not have been saved is refused with every finding, and nothing
    is written.

    \b
    Exit code: 0 done, 2 refused or no such file or path, 3 FILE is wrong, 5 the host failed.

    \b
    Examples:
      snapkit edit vm.snap machine/0.tsc_khz=0 vcpu-x86-64/0.tsc_khz=0 -o any-tsc.snap
      snapkit edit vm.snap 'vcpu-x86-64/0.cpuid[function=1].ecx=0x80202001' -o fewer.snap
      snapkit edit vm.snap vcpu-x86-64/0.regs.rip=0x100000 serial-16550/0.lcr.DLAB=0 -o moved.snap
    """
    from snapkit.restore.edit import Edit
    from snapkit.state.codec import encode
    from snapkit.state.diff import differences
    from snapkit.state.edit import split_assignment

    assignments = [split_assignment(change) for change in changes]
    with Edit.open(file, key=read_key(key_file)) as opened:
        before = opened.sections
        for dropped in opened.dropped:
            click.echo(f"snapkit: left out: {harmless(dropped)}", err=True)
        for path, text in assignments:
            opened.set(path, text)
        with shown_progress("memory") as progress:
            done = opened.write(out, progress=progress)
        found = list(differences(before, opened.sections))
        changed = sum(encode(before[section]) != encode(state) for section, state in opened.sections.items())
    if as_json:
        told = [difference.as_data() for difference in found]
        click.echo(json.dumps({"file": file, "changes": told, "written": written_data(done)}))
    else:
        for difference in found:
            click.echo(harmless(str(difference)))
        sections = f"{changed} section{'' if changed == 1 else 's'}"
        click.echo(f"{harmless(out)}: {sections} changed, {memory_text(done)}")
    return 0
