"""``snapkit decode``."""

import json

import click

from snapkit.cli.keys import key_option, read_key


@click.command(short_help="give a section of a snapshot as JSON")
@click.argument("file")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="On one line.")
@key_option
def decode(file: str, path: str, as_json: bool, key_file: str | None) -> int:
    """Give the section PATH (kind/instance) of FILE as JSON, with its kind, instance and version.

    It is at the version that it is stored in, and `snapkit encode` makes the very same bytes of it. Byte strings are
    base64. For a single value see `snapkit inspect FILE PATH --json`.

    \b
    Examples:
      snapkit decode vm.snap serial-16550/0
      snapkit decode vm.snap pit/0 | snapkit encode > pit.msgpack
      snapkit decode vm.snap serial-16550/0 | jq '.state.scr = 0' | snapkit encode --into vm.snap -o new.snap
    """
    from snapkit.errors import ConfigError
    from snapkit.restore.image import Image
    from snapkit.state.document import to_document
    from snapkit.state.inspect import find_section, split_path

    section, rest = split_path(path)
    if rest:
        raise ConfigError(f"path is {path!r}, must be a whole section, {section}: inspect --json shows a part")
    with Image.open(file, key=read_key(key_file)) as image:
        states, _dropped = image.sections()
    find_section(states, section)
    click.echo(json.dumps(to_document(section, states[section]), indent=None if as_json else 1))
    return 0
