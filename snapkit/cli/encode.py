"""``snapkit encode``."""

import json
import sys
from base64 import b64encode

import click

from snapkit.cli import harmless
from snapkit.cli.keys import key_option, read_key
from snapkit.cli.progress import shown_progress
from snapkit.cli.written import memory_text, written_data

_JSON_LEN_MAX = 256 << 20


@click.command(short_help="make a section's bytes, or a snapshot with it, of JSON")
@click.option("--into", "file", metavar="FILE", help="Write FILE to OUT with this section instead of its own.")
@click.option("-o", "--output", "out", metavar="OUT", help="With --into: where to write to; never FILE.")
@click.option("--json", "as_json", is_flag=True, help="The bytes as base64, or what was written, as JSON.")
@key_option
def encode(file: str | None, out: str | None, as_json: bool, key_file: str | None) -> int:
    """Read a section as JSON, as decode gives it, from stdin, and write its payload (msgpack) to stdout.

    What decode gives unchanged comes out as the very bytes that the snapshot holds. With --into a snapshot is written
    that has it; the whole machine is checked again, as edit does.

    \b
    Exit code: 0 done, 2 this is no section, or the machine is refused with it, 3 FILE is wrong, 5 the host failed.

    \b
    Examples:
      snapkit decode vm.snap pit/0 | snapkit encode > pit.msgpack
      snapkit encode --into vm.snap -o new.snap < machine.json
    """
    if (file is None) != (out is None):
        raise click.UsageError("--into FILE and -o OUT go together")
    from snapkit.errors import ConfigError
    from snapkit.state import codec
    from snapkit.state.document import from_document

    content = sys.stdin.buffer.read(_JSON_LEN_MAX + 1)
    if len(content) > _JSON_LEN_MAX:
        raise ConfigError(f"the JSON on stdin is longer than {_JSON_LEN_MAX} bytes, no section is")
    section, state = from_document(content)
    if file is not None and out is not None:
        from snapkit.restore.edit import Edit

        with Edit.open(file, key=read_key(key_file)) as opened:
            for dropped in opened.dropped:
                click.echo(f"snapkit: left out: {harmless(dropped)}", err=True)
            opened.put(section, state)
            with shown_progress("memory") as progress:
                done = opened.write(out, progress=progress)
        if as_json:
            click.echo(json.dumps({"file": file, "section": str(section), "written": written_data(done)}))
        else:
            click.echo(f"{harmless(out)}: with another {section}, {memory_text(done)}")
        return 0
    payload = codec.encode(state)
    if as_json:
        told = {"section": str(section), "length": len(payload), "payload": b64encode(payload).decode()}
        click.echo(json.dumps(told))
    else:
        sys.stdout.buffer.write(payload)
    return 0
