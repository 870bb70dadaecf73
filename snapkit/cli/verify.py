"""``snapkit verify``."""

import json

import click

from snapkit.cli import finding_data
from snapkit.cli.keys import key_option, read_key
from snapkit.cli.progress import shown_progress
from snapkit.cli.rules import show_rules
from snapkit.errors import Finding, ImageError


@click.command(short_help="check every byte and every invariant of a snapshot")
@click.argument("file", required=False)
@click.option("--json", "as_json", is_flag=True, help="Findings, or rules, as JSON.")
@click.option("--explain", "explaining", is_flag=True, help="Show every rule that a file is held to, with its reason.")
@key_option
def verify(file: str | None, as_json: bool, explaining: bool, key_file: str | None) -> int:
    """Check FILE whole: digests of everything, memory included, and all invariants across components.

    Exit code 0 when it is sound, 3 with every finding when it is not. Rings in guest memory that do not fit their
    devices are told of; a guest may have written them so, and the file is sound. Needs no KVM.

    \b
    Examples:
      snapkit verify vm.snap
      snapkit verify vm.snap --json
      snapkit verify --explain
    """
    if explaining:
        if file is not None:
            raise click.UsageError("--explain shows the rules for all files: it takes no FILE")
        show_rules(as_json=as_json)
        return 0
    if file is None:
        raise click.UsageError("FILE is missing: what to check")
    from snapkit.restore.check import remarks
    from snapkit.restore.restore import prepare

    key = read_key(key_file)
    findings: list[Finding] = []
    strange: list[Finding] = []
    try:
        opened = prepare(file, key=key)
    except ImageError as error:
        if not as_json:
            raise
        return _tell_unsound(error)
    with opened as prepared:
        for dropped in prepared.dropped:
            click.echo(f"snapkit: not checked: {dropped}", err=True)
        length = prepared.image.memory.length
        with shown_progress("memory") as progress:
            findings = prepared.image.verify(progress)
        count = len(prepared.sections)
        if not findings:
            strange = remarks(prepared.sections, prepared.image.memory)
    if findings:
        damaged = ImageError(f"{file} is damaged", findings=findings)
        if as_json:
            return _tell_unsound(damaged)
        raise damaged
    if as_json:
        told = [finding_data(remark) for remark in strange]
        click.echo(json.dumps({"sound": True, "findings": [], "remarks": told, "sections": count, "memory": length}))
    else:
        for remark in strange:
            where = f"{remark.component}.{remark.path}"
            click.echo(
                f"snapkit: strange, if not the guest's doing: {where} is {remark.value}, not {remark.expected}",
                err=True,
            )
        click.echo(f"{file} is sound: {count} sections, {length} bytes of memory")
    return 0


def _tell_unsound(error: ImageError) -> int:
    found = [finding_data(finding) for finding in error.findings]
    click.echo(json.dumps({"sound": False, "error": error.args[0], "findings": found}))
    return ImageError.exit_code
