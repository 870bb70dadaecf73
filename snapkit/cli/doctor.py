"""``snapkit doctor``."""

import json
from typing import Any

import click

from snapkit.errors import EXIT_DONE, IncompatibleHost
from snapkit.units import format_len


@click.command(short_help="say what this host can do")
@click.option("--json", "as_json", is_flag=True, help="All facts as JSON, CPUID leaves and MSR numbers among them.")
def doctor(as_json: bool) -> int:
    """Say what this host can do for virtual machines, and what each lack means.

    Exit code 0 when it can run snapkit's machines, 4 when it cannot.

    \b
    Examples:
      snapkit doctor
      snapkit doctor --json > facts.json
    """
    from snapkit.cli import sandbox
    from snapkit.vmm.facts import collect

    facts = collect() | {"sandbox": sandbox.describe()}
    if as_json:
        click.echo(json.dumps(facts))
    else:
        _show(facts)
    return EXIT_DONE if facts["kvm"]["usable"] else IncompatibleHost.exit_code


def _show(facts: dict[str, Any]) -> None:
    from snapkit.vmm.facts import CAPABILITIES

    kvm = facts["kvm"]
    click.echo(f"host    {facts['architecture']}, Linux {facts['kernel']}, {facts['cpus']} CPUs, "
               f"{format_len(facts['memory_available'])} of memory free")  # fmt: skip
    if "tsc_khz" in facts:
        click.echo(f"cpu     {facts.get('cpu_vendor', 'unknown')}, time-stamp counter {facts['tsc_khz']} kHz")
    if kvm["usable"]:
        click.echo(f"kvm     usable, up to {kvm['vcpus_max']} vCPUs a machine")
    else:
        click.echo(f"kvm     NOT usable: {kvm['why']}")
    for name, _number, needed, meaning in CAPABILITIES:
        value = kvm["capabilities"].get(name, 0)
        mark = "yes" if value else ("MISSING" if needed else "no")
        click.echo(f"  {name.removeprefix('KVM_CAP_').lower():<14} {mark:<8} {meaning}")
    _show_sandbox(facts["sandbox"])
    if kvm["usable"]:
        click.echo("this host can run snapkit's machines")
    else:
        click.echo("this host cannot run machines; inspect, verify and restore --dry-run work without KVM")


def _show_sandbox(sandbox: dict[str, Any]) -> None:
    """Show what a machine under --sandbox may still do."""
    click.echo(f"sandbox {'usable' if sandbox['usable'] else 'NOT usable: ' + sandbox['why']}")
    landlock = sandbox["landlock"]
    found = f"version {landlock}" if landlock else "MISSING: no snapshots from a sandbox"
    click.echo(f"  landlock       {found}")
    for title, rows in (
        ("allowed", sandbox["allowed"]),
        ("kills", sandbox["killed"]),
        ("ENOSYS", sandbox["not_there"]),
    ):
        for row in rows:
            limits = ", ".join(row[key] for key in ("only", "when") if key in row)
            click.echo(f"  {title:<8} {' '.join(row['calls'])}{f' ({limits})' if limits else ''}: {row['why']}")
    for name, row in sandbox["ioctls"].items():
        click.echo(f"  ioctl    {name} ({row['number']:#x}): {row['why']}")
    click.echo(f"  {sandbox['otherwise']:<8} everything else")
