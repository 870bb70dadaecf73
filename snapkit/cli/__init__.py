"""The command line: thin commands over the library, each imported only when it is called.

Every verb has ``--json``; results go to stdout, talk goes to stderr. Errors are one paragraph and the exit code of
`snapkit.errors`; a traceback appears only with ``--debug``.
"""

import gc
import io
import os
import sys
from importlib import import_module
from typing import NoReturn

import click

from snapkit.errors import EXIT_SIGINT, Finding, InternalError, SnapkitError
from snapkit.version import __version__

COMMANDS = {
    "boot": "boot a kernel",
    "convert": "carry a snapshot to another release, up or down",
    "decode": "give a section of a snapshot as JSON",
    "demo": "boot a tiny guest, snapshot it mid-work, restore it three times at once",
    "diff": "say how two snapshots differ",
    "doctor": "say what this host can do, or whether it can run a snapshot",
    "edit": "change values in a copy of a snapshot",
    "encode": "make a section's bytes, or a snapshot with it, of JSON",
    "inspect": "show what is in a snapshot",
    "matrix": "try every stored snapshot under every release",
    "pause": "hold a running machine still",
    "restore": "run a snapshot",
    "resume": "let a paused machine run",
    "schema": "list, show and check the schemas of saved state",
    "snapshot": "snapshot a running machine",
    "status": "say what a running machine is doing",
    "stop": "end a running machine",
    "verify": "check every byte and every invariant of a snapshot",
}
"""Each command with its one-line help; the module of the same name holds the function of the same name."""
LINES_MAX = 40
"""Of findings that a person is told; ``verify --json`` gives all."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"snapkit.cli.{cmd_name}"), cmd_name)
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="snapkit")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def snapkit(debug: bool) -> None:
    """Save, read and restore virtual machines.

    \b
    Examples:
      snapkit demo
      snapkit boot vmlinuz --initrd initrd.img --snapshot-when ready --snapshot-to vm.snap
      snapkit restore vm.snap
      snapkit inspect vm.snap vcpu-x86-64/0.sregs
      snapkit restore vm.snap --control vm.sock
      snapkit snapshot vm.sock later.snap
    """


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    gc.disable()  # start-up makes nothing that could go; a run turns it on again (`session`)
    debug = "--debug" in sys.argv[1:2]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may be no text at all
    try:
        code = snapkit.main(prog_name="snapkit", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("snapkit: interrupted", err=True)
        code = EXIT_SIGINT
    except SnapkitError as error:
        if debug:
            raise
        explain(error)
        code = error.exit_code
    except BrokenPipeError:
        # the reader of our results has gone, as in `snapkit inspect | head`: the interpreter's own flush must not tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 0
    except Exception as error:  # a bug, told as one
        if debug:
            raise
        explain(InternalError(f"{type(error).__name__}: {error}; run with --debug to see where"))
        code = InternalError.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def explain(error: SnapkitError) -> None:
    """Tell an error to a person: what happened, then how it came about."""
    lines = harmless(str(error)).split("\n")
    if len(lines) > LINES_MAX:
        lines[LINES_MAX:] = [f"  and {len(lines) - LINES_MAX} more"]
    click.echo("snapkit: " + "\n".join(lines), err=True)
    for note in getattr(error, "__notes__", ()):
        click.echo(f"  {harmless(note)}", err=True)


def finding_data(finding: Finding) -> dict[str, str]:
    """Return *finding* as every ``--json`` gives it."""
    return {
        "component": finding.component,
        "path": finding.path,
        "value": finding.value,
        "expected": finding.expected,
        "rule": finding.rule,
    }


def harmless(text: str) -> str:
    """Return *text*, perhaps from a hostile file, with what could command a terminal escaped; line ends stay."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() or one == "\n" else one.encode("unicode_escape").decode() for one in text)
