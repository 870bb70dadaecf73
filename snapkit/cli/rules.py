"""What ``snapkit verify --explain`` shows: every rule that a snapshot is held to, with its reason."""

import json
import textwrap

import click

_WIDTH = 100
_INDENT = "    "


def show_rules(*, as_json: bool) -> None:
    """Write all rules to stdout, by what they are about; as JSON a list of objects."""
    from snapkit.restore.check import explained

    rules = explained()
    if as_json:
        click.echo(json.dumps([rule._asdict() for rule in rules]))
        return
    about = None
    for rule in rules:
        if rule.about != about:
            about = rule.about
            click.echo(f"{about}:")
        click.echo(f"  {rule.name}")
        click.echo(textwrap.fill(rule.reason, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT))
