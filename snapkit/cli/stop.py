"""``snapkit stop``."""

import click

from snapkit.cli.client import order, tell


@click.command(short_help="end a running machine")
@click.argument("sock")
@click.option("--json", "as_json", is_flag=True, help="The new state as JSON.")
def stop(sock: str, as_json: bool) -> int:
    """End the machine on control socket SOCK and wait until it is gone. The guest is not asked; snapshot it before.

    \b
    Exit code: 0 done, 2 no machine is there.

    \b
    Examples:
      snapkit stop vm.sock
      snapkit snapshot vm.sock vm.snap && snapkit stop vm.sock
    """
    answer = order(sock, "PUT", "/snapkit/stop", until_end=True)
    if not answer.exit_code:
        tell("stopped", {"state": "stopped"}, as_json=as_json)
    return answer.exit_code
