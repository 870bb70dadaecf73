"""``snapkit resume``."""

import click

from snapkit.cli.client import order, tell


@click.command(short_help="let a paused machine run")
@click.argument("sock")
@click.option("--json", "as_json", is_flag=True, help="The new state as JSON.")
def resume(sock: str, as_json: bool) -> int:
    """Let the paused machine on control socket SOCK run.

    \b
    Exit code: 0 done, 2 no machine is there, 6 it is running already or about to end.

    \b
    Examples:
      snapkit resume vm.sock
      snapkit resume vm.sock --json
    """
    answer = order(sock, "PATCH", "/vm", {"state": "Resumed"})
    if not answer.exit_code:
        tell("running", {"state": "running"}, as_json=as_json)
    return answer.exit_code
