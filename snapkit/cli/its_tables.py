"""What ``inspect --tables`` tells of an ITS: each mapped event, its LPI, and the CPU that it goes to."""

import json
from collections.abc import Mapping
from typing import Any

import click

from snapkit.cli import finding_data, harmless
from snapkit.errors import ConfigError, ImageError
from snapkit.state.its_tables import WHERE, Interrupt, Places, Tables, decode, interrupts, places
from snapkit.state.pci_function import PciFunctionState
from snapkit.state.schema import SectionId, State
from snapkit.state.spec.gicv3 import GitsBaser

_HEAD = ("device", "", "event", "lpi", "collection", "vcpu", "pending", "enabled", "priority")


def show_tables(file: str, path: str, key: bytes | None, *, as_json: bool) -> None:
    """Print the tables of the ITS of *file*; raises ConfigError when *path* is no ITS, or not there."""
    from snapkit.restore.image import Image
    from snapkit.state.inspect import find_section, split_path

    section, rest = split_path(path)
    if section.kind != WHERE.kind or rest:
        raise ConfigError(f"--tables shows those of {WHERE}, {path} has none")
    with Image.open(file, key=key) as image:
        states, _unknown = image.sections(refuse_unknown=False)
        find_section(states, section)
        where = places(states)
        if where is None:
            raise ImageError(f"{file} has no gicv3-redistributor/0: where the tables of LPIs are is not known")
        tables = decode(where, image.memory)
        rows = interrupts(where, tables, image.memory)
    if as_json:
        click.echo(json.dumps({"path": path, "tables": _as_data(states, tables, rows)}))
    else:
        _show(states, where, tables, rows)


def _show(states: Mapping[SectionId, State], where: Places, tables: Tables, rows: tuple[Interrupt, ...]) -> None:
    missing = [
        f"GITS_BASER{number}"
        for number, register in enumerate((where.devices, where.collections))
        if not register & GitsBaser.VALID
    ]
    if missing:
        click.echo(f"the ITS is not set up: the guest has given it no memory for tables ({' and '.join(missing)})")
        return
    collections = ", ".join(f"{number} to vCPU {_or_none(vcpu)}" for number, vcpu in tables.collections)
    click.echo(f"collections  {collections or 'none'}")
    lines = [_HEAD, *_lines(_owners(states), tables, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines if tables.devices else ():
        text = [one.ljust(width) for one, width in zip(line[:2], widths[:2], strict=True)]
        text += [one.rjust(width) for one, width in zip(line[2:], widths[2:], strict=True)]
        click.echo(harmless("  ".join(text).rstrip()))
    if not tables.devices and tables.fault is None:
        click.echo("no device is mapped")
    if not tables.whole:
        click.echo("note: there are more tables than are looked at; what is shown is the first part")
    if tables.fault is not None:
        click.echo(f"note: KVM refuses these tables: {tables.fault}")


def _lines(owners: Mapping[int, str], tables: Tables, rows: tuple[Interrupt, ...]) -> list[tuple[str, ...]]:
    told: dict[int, list[tuple[str, ...]]] = {device.number: [] for device in tables.devices}
    for row in rows:
        bits = ("-" if row.pending is None else _yes(row.pending), _yes(row.enabled), f"{row.priority:#04x}")
        numbers = (str(row.event), str(row.lpi), str(row.collection), _or_none(row.vcpu))
        told[row.device].append((*numbers, *bits))
    unmapped = ("-",) * (len(_HEAD) - 2)
    return [
        (_pci_address(number), owners.get(number, ""), *line)
        for number, lines in told.items()
        for line in lines or [unmapped]
    ]


def _as_data(states: Mapping[SectionId, State], tables: Tables, rows: tuple[Interrupt, ...]) -> dict[str, Any]:
    owners = _owners(states)
    return {
        "collections": [one._asdict() for one in tables.collections],
        "devices": [
            {
                "device": device.number,
                "address": _pci_address(device.number),
                "owner": owners.get(device.number),
                "event_bits": device.bits,
                "table": device.itt,
            }
            for device in tables.devices
        ],
        "interrupts": [row._asdict() for row in rows],
        "fault": None if tables.fault is None else finding_data(tables.fault),
        "whole": tables.whole,
    }


def _owners(states: Mapping[SectionId, State]) -> dict[int, str]:
    """Return whose device a number is: all functions are the first of their slot, on bus 0."""
    return {state.requester_id: name.instance for name, state in states.items() if isinstance(state, PciFunctionState)}


def _pci_address(device: int) -> str:
    return f"{device >> 8:02x}:{device >> 3 & 31:02x}.{device & 7}"


def _or_none(vcpu: int | None) -> str:
    return "-" if vcpu is None else str(vcpu)


def _yes(value: bool) -> str:
    return "yes" if value else "no"
