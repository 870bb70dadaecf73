"""``snapkit snapshot``."""

import os

import click

from snapkit.cli.client import order, tell
from snapkit.units import format_len


@click.command(short_help="snapshot a running machine")
@click.argument("sock")
@click.argument("file")
@click.option("--memory-file", metavar="PATH", help="Put memory into PATH, which must not exist, instead of FILE.")
@click.option("--json", "as_json", is_flag=True, help="What was written, as JSON.")
def snapshot(sock: str, file: str, memory_file: str | None, as_json: bool) -> int:
    """Snapshot the machine on control socket SOCK to FILE, replacing what is there once all of it is on the disk.

    A running guest is held while its memory is read, and goes on; a paused one stays paused. When the snapshot
    fails, the machine goes on as before and FILE is as it was.

    \b
    Exit code: 0 done, 2 no machine is there or FILE is impossible, 5 the host failed, 6 the machine is about to end.

    \b
    Examples:
      snapkit snapshot vm.sock vm.snap
      snapkit snapshot vm.sock vm.snap --memory-file vm.mem --json
    """
    body = {"snapshot_type": "Full", "snapshot_path": os.path.abspath(file) if file else file}
    if memory_file is not None:
        body["mem_file_path"] = os.path.abspath(memory_file) if memory_file else memory_file
    answer = order(sock, "PUT", "/snapshot/create", body)
    if not answer.exit_code:
        done = answer.snapshot
        held = "" if done.get("paused_ms") is None else f", the guest held for {done['paused_ms']} ms"
        written = format_len(done.get("memory_written", 0))
        tell(f"{file}: {written} of memory in {done.get('ms')} ms{held}", done, as_json=as_json)
    return answer.exit_code
