"""``snapkit status``."""

from typing import Any

import click

from snapkit.cli.client import order, tell


@click.command(short_help="say what a running machine is doing")
@click.argument("sock")
@click.option("--json", "as_json", is_flag=True, help="Everything, as JSON.")
def status(sock: str, as_json: bool) -> int:
    """Say what the machine on control socket SOCK is doing.

    \b
    Exit code: 0 done, 2 no machine is there.

    \b
    Examples:
      snapkit status vm.sock
      snapkit status vm.sock --json
    """
    answer = order(sock, "GET", "/snapkit/status")
    if not answer.exit_code:
        tell("\n".join(_lines(answer.content)), answer.content, as_json=as_json)
    return answer.exit_code


def _lines(content: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name, value in content.items():
        if isinstance(value, dict):
            lines += _lines(value, f"{prefix}{name}.")
        elif value is not None:
            lines.append(f"{prefix + name:<28} {value}")
    return lines
