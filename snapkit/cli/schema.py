"""`snapkit schema`: what kinds of state there are, what is in each, how they changed, and whether the law is kept.

Thin: the answers come from `snapkit.state`. Everything is imported inside its command.
"""

import json
from collections.abc import Iterator
from typing import Any

import click

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(no_args_is_help=True)
def schema() -> None:
    """Describe the kinds of saved state, their versions and their history."""


@schema.command("list", epilog="Example: snapkit schema list")
@JSON
def list_(as_json: bool) -> None:
    """List every kind with its versions and the releases that write them."""
    from snapkit.state.releases import releases
    from snapkit.state.schema import KINDS, versions_of

    rows = []
    for kind in KINDS:
        for version, entry in sorted(versions_of(kind).items()):
            writers = [each.release for each in releases() if each.kinds.get(kind) == version]
            doc = (entry.type.__doc__ or "").partition("\n")[0]
            row = {"kind": kind, "version": version, "releases": writers, "required": entry.required, "about": doc}
            rows.append(row)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(str(row["kind"])) for row in rows)
    for row in rows:
        click.echo(f"{row['kind']:{width}}  {row['version']}  {row['about']}")


@schema.command(
    epilog="Examples: snapkit schema show pit; snapkit schema show pit --history; snapkit schema show pit --json"
)
@click.argument("kind")
@click.option("--version", type=int, help="The version to show; the newest by default.")
@click.option("--history", is_flag=True, help="Show what changed from version to version, and why.")
@JSON
def show(kind: str, version: int | None, history: bool, as_json: bool) -> None:
    """Show the fields of KIND: types, bounds, meanings, bits. With --json, its JSON Schema."""
    from snapkit.errors import ConfigError
    from snapkit.state.describe import committed
    from snapkit.state.schema import KINDS, versions_of

    if kind not in KINDS:
        raise ConfigError(f"kind is {kind!r}, must be one of: {', '.join(KINDS)}")
    versions = versions_of(kind)
    chosen = version or max(versions)
    if chosen not in versions:
        raise ConfigError(f"version of {kind} is {chosen}, must be one of: {', '.join(map(str, sorted(versions)))}")
    if history:
        _show_history(kind, as_json=as_json)
    else:
        node = committed(versions[chosen])
        click.echo(json.dumps(node, indent=2) if as_json else "\n".join(_field_lines(node)))


def _show_history(kind: str, *, as_json: bool) -> None:
    """Show every step that touches *kind*: what each converter goes from and to, what changed there, and why."""
    from snapkit.state.history import history_of

    steps = history_of(kind)
    if as_json:
        plain = [
            {
                "from": step.start,
                "to": step.end,
                "changes": [{"path": each.path, "what": list(each.what), "why": each.why} for each in step.reasons],
            }
            for step in steps
        ]
        click.echo(json.dumps(plain, indent=2))
        return
    for line in _writers(kind):
        click.echo(line)
    if not steps:
        click.echo("nothing has changed so far")
    for step in steps:
        click.echo(f"from {step.start} to {step.end}:")
        for reason in step.reasons:
            what = f" ({'; '.join(reason.what)})" if reason.what else ""
            click.echo(f"  {reason.path}: {reason.why}{what}")


def _writers(kind: str) -> Iterator[str]:
    from snapkit.state.releases import releases

    for each in releases():
        if kind in each.kinds:
            when = f"released {each.released}" if each.released else "not released yet"
            yield f"release {each.release} ({when}) writes {kind} version {each.kinds[kind]}"


def _field_lines(node: dict[str, Any]) -> Iterator[str]:
    from snapkit.state.changes import Row, rows_of

    yield node["title"]
    yield node["description"]
    yield ""
    rows: list[Row] = list(rows_of(node))
    width = max((len(row.path) for row in rows), default=0)
    kinds = max((len(row.type) for row in rows), default=0)
    for row in rows:
        yield f"{row.path:{width}}  {row.type:{kinds}}  {row.doc}".rstrip()
        for bits in row.bits:
            yield f"{'':{width}}    {bits}"


@schema.command(epilog="Example: snapkit schema check")
@JSON
def check(as_json: bool) -> None:
    """Check that every schema keeps the law of schemas/README.md; exit 1 when one does not."""
    from snapkit.errors import EXIT_DIFFERENT
    from snapkit.state.law import committed_files, violations

    files = committed_files()
    findings = violations(files)
    if as_json:
        fields = ("rule", "component", "path", "value", "expected")
        found = [{name: getattr(finding, name) for name in fields} for finding in findings]
        click.echo(json.dumps({"schemas": len(files), "violations": found}, indent=2))
    else:
        for finding in findings:
            click.echo(f"{finding.rule}: {finding}")
        click.echo(
            f"{len(files)} schemas, {len(findings) or 'no'} violation{'' if len(findings) == 1 else 's'}", err=True
        )
    if findings:
        raise SystemExit(EXIT_DIFFERENT)


@schema.command(epilog="Example: snapkit schema diff 0.1.0 0.2.0")
@click.argument("older")
@click.argument("newer")
@JSON
def diff(older: str, newer: str, as_json: bool) -> None:
    """Show what changed between the releases OLDER and NEWER, kind by kind; exit 1 when anything did."""
    from snapkit.errors import EXIT_DIFFERENT
    from snapkit.state.history import compare_releases
    from snapkit.state.releases import release_named

    rows = compare_releases(release_named(older), release_named(newer))
    if as_json:
        plain = [
            {
                "kind": row.kind,
                "how": row.how,
                "from": row.old_version,
                "to": row.new_version,
                "fields": [{"path": at.path, "what": at.what, "from": at.old, "to": at.new} for at in row.fields],
            }
            for row in rows
        ]
        click.echo(json.dumps(plain, indent=2))
    for row in () if as_json else rows:
        if row.how == "changed":
            click.echo(f"{row.kind}: version {row.old_version} to {row.new_version}")
        else:
            click.echo(f"{row.kind}: {row.how}, version {row.new_version or row.old_version}")
        for change in row.fields:
            click.echo(f"  {change}")
    if not rows:
        click.echo(f"releases {older} and {newer} write the same versions of the same kinds", err=True)
    else:
        raise SystemExit(EXIT_DIFFERENT)


@schema.command(hidden=True, epilog="Example: snapkit schema generate")
def generate() -> None:
    """Write the schema files of the release being worked on; for a checkout of snapkit."""
    from pathlib import Path

    from snapkit.errors import ConfigError
    from snapkit.state.describe import stale

    root = Path(__file__).resolve().parents[2] / "schemas"
    if not (root / "releases.json").exists():
        raise ConfigError(f"{root} is no checkout's schema directory: there is no releases.json in it")
    for name, content in stale():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
        click.echo(f"wrote schemas/{name}")
