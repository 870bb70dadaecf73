"""``snapkit pause``."""

import click

from snapkit.cli.client import order, tell


@click.command(short_help="hold a running machine still")
@click.argument("sock")
@click.option("--json", "as_json", is_flag=True, help="The new state as JSON.")
def pause(sock: str, as_json: bool) -> int:
    """Hold the machine on control socket SOCK still: no instruction runs until it is resumed.

    \b
    Exit code: 0 done, 2 no machine is there, 6 it is paused already or about to end.

    \b
    Examples:
      snapkit pause vm.sock
      snapkit pause vm.sock --json
    """
    answer = order(sock, "PATCH", "/vm", {"state": "Paused"})
    if not answer.exit_code:
        tell("paused", {"state": "paused"}, as_json=as_json)
    return answer.exit_code
