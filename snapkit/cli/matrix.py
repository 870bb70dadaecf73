"""`snapkit matrix`: every stored snapshot under every release, in a checkout of snapkit.

Thin: what is stored, and what runs it, is the checkout's (``tests/golden``, ``tests/compat/releases``, ``tools.matrix``) and
in no wheel. So the checkout's own program is run, in it.
"""

import subprocess
import sys
from pathlib import Path

import click

PROGRAM = Path("tools/matrix.py")


@click.command(short_help="try every stored snapshot under every release")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: counts first, then every cell.")
@click.option("--html", metavar="OUT", type=click.Path(path_type=Path), help="Write a page of it to OUT as well.")
@click.option("--only", metavar="PATTERN", help="Only cells whose `ROW COLUMN` match, as in '0.1.0/* tree'.")
@click.option("--checkout", metavar="DIR", type=click.Path(path_type=Path), help="The checkout. [default: that of .]")
def matrix(as_json: bool, html: Path | None, only: str | None, checkout: Path | None) -> int:
    """Give every golden snapshot of every release to every release, each from its own wheel, and to the working tree.

    A release restores it and its guest goes on, or refuses it with its reasons. Exit code 0 when all of this is as
    decided in tests/compat/matrix.json, 1 when a cell differs or is missing. Needs a checkout of snapkit; without KVM the
    files are decoded, converted, checked and planned only, and each cell says so.

    \b
    Examples:
      snapkit matrix
      snapkit matrix --json
      snapkit matrix --html matrix.html --only '*-pci-* 0.2.0'
    """
    root = _checkout(checkout)
    words = [sys.executable, "-m", "tools.matrix"]
    words += ["--json"] if as_json else []
    words += ["--html", str(html.absolute())] if html else []
    words += ["--only", only] if only else []
    return subprocess.run(words, cwd=root, check=False).returncode


def _checkout(asked: Path | None) -> Path:
    from snapkit.errors import ConfigError

    here = Path.cwd()
    for folder in [asked.absolute()] if asked else [here, *here.parents]:
        if (folder / PROGRAM).is_file():
            return folder
    what = f"{asked} is no checkout" if asked else f"{here} is in no checkout"
    raise ConfigError(
        f"{what} of snapkit: goldens and releases are stored there alone, {PROGRAM} runs them; give --checkout DIR"
    )
