"""``snapkit inspect``."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from snapkit.cli import harmless
from snapkit.cli.keys import key_option, read_key
from snapkit.errors import ConfigError, ImageError
from snapkit.units import format_len

if TYPE_CHECKING:
    from snapkit.restore.describe import Description

_ARCHITECTURES = {62: "x86-64", 183: "aarch64"}


@click.command(short_help="show what is in a snapshot")
@click.argument("file")
@click.argument("path", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON; byte strings are base64.")
@click.option("--whole", is_flag=True, help="With PATH: shorten nothing.")
@click.option("--tables", is_flag=True, help="With gicv3-its/0: show its tables, which lie in guest memory.")
@key_option
def inspect(file: str, path: str | None, as_json: bool, whole: bool, tables: bool, key_file: str | None) -> int:
    """Show what is in FILE: who wrote it, when, for what, and its sections. Nothing is decoded.

    With PATH (kind/instance, then .field and [index]) show a value, registers with their fields named.

    \b
    Examples:
      snapkit inspect vm.snap
      snapkit inspect vm.snap vcpu-x86-64/0.sregs.cr3
      snapkit inspect vm.snap serial-16550/0 --json
      snapkit inspect vm.snap gicv3-its/0 --tables
    """
    key = read_key(key_file)
    if tables:
        from snapkit.cli.its_tables import show_tables

        if path is None:
            raise ConfigError("--tables needs the path gicv3-its/0: whose tables to show")
        show_tables(file, path, key, as_json=as_json)
        return 0
    if path is not None:
        _show_value(file, path, key, as_json=as_json, whole=whole)
        return 0
    from snapkit.restore.describe import describe

    description = describe(file, key=key, versions=_newest_versions())
    if as_json:
        click.echo(json.dumps(_as_data(description)))
    else:
        _show(description)
    return 0


def _newest_versions() -> dict[str, int]:
    from snapkit.state.releases import current_release

    return dict(current_release().kinds)


def _show_value(file: str, path: str, key: bytes | None, *, as_json: bool, whole: bool) -> None:
    from snapkit.restore.image import Image
    from snapkit.state.inspect import as_data, look_up, split_path, tree

    with Image.open(file, key=key) as image:
        states, unknown = image.sections(refuse_unknown=False)
        release = image.preamble.release
    where = split_path(path)[0]
    for reason in unknown:
        if reason.startswith(f"section {where} "):
            raise ImageError(f"{reason}: the file was written by release {release}")
    located = look_up(states, path)
    if as_json:
        click.echo(json.dumps({"path": located.path, "value": as_data(located.value)}))
        return
    for line in tree(located, whole=whole):
        click.echo(harmless(line))


def _as_data(description: "Description") -> dict[str, Any]:
    import msgspec

    def plain(value: object) -> Any:
        return msgspec.to_builtins(value, enc_hook=str)

    data = plain(description)
    for part in ("identity", "preamble"):
        if data.get(part):
            fields = getattr(description, part)
            for name in fields.__struct_fields__:
                value = getattr(fields, name)
                if isinstance(value, bytes):
                    data[part][name] = value.hex()
    return dict(data)


def _show(description: "Description") -> None:
    preamble, manifest, identity = description.preamble, description.manifest, description.identity
    architecture = _ARCHITECTURES.get(identity.architecture, f"architecture {identity.architecture}")
    rows = [("file", f"{description.path}, {format_len(description.length)}")]
    rows.append(("release", f"{identity.release}, container {identity.container_version}"))
    rows.append(("machine", f"{architecture}, id {identity.machine_id.hex()}"))
    if preamble is not None:
        created = datetime.fromtimestamp(preamble.created_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        rows.append(("written", f"{created} by {preamble.producer} on Linux {preamble.host_kernel}"))
        parent = f", made from {preamble.parent_id.hex()}" if any(preamble.parent_id) else ""
        rows.append(("snapshot", preamble.snapshot_id.hex() + parent))
    if manifest is not None:
        for name, value in sorted(manifest.machine.items()):
            rows.append((name, format_len(value) if name == "memory" and isinstance(value, int) else str(value)))
        rows += [("ram", f"{region.gpa:#x}-{region.gpa + region.length - 1:#x}") for region in manifest.memory.regions]
    for name, text in rows:
        click.echo(f"{harmless(name):<9} {harmless(text)}")
    if manifest is not None:
        click.echo("sections")
        for entry in manifest.sections:
            needed = "" if entry.required else ", optional"
            click.echo(f"  {entry.path:<24} version {entry.version}, {entry.length} bytes{needed}")
    for remark in description.remarks:
        click.echo(f"note      {harmless(remark)}")
