"""``snapkit doctor``."""

from typing import TYPE_CHECKING, Any

import click

from snapkit.cli.keys import key_option, read_key, read_small_file
from snapkit.errors import EXIT_DONE, ConfigError, IncompatibleHost
from snapkit.units import format_len

if TYPE_CHECKING:
    from snapkit.state.host_facts import HostFacts


@click.command(short_help="say what this host can do, or whether it can run a snapshot")
@click.argument("file", required=False)
@click.option("--host", metavar="FACTS.json", help="Judge FILE by another host's `doctor --json`.")
@click.option("--json", "as_json", is_flag=True, help="All facts, or findings, as JSON.")
@key_option
def doctor(file: str | None, host: str | None, as_json: bool, key_file: str | None) -> int:
    """Say what this host can do for virtual machines, and what each lack means; or whether it can run FILE.

    Exit code 0 when it can run snapkit's machines, or FILE; 4 when it cannot, with every reason. Those that `restore
    --force NAME` overrides are marked. What is lent to a machine's devices, its disks and TAPs, is not looked at.

    \b
    Examples:
      snapkit doctor
      snapkit doctor --json > facts.json
      snapkit doctor vm.snap
      snapkit doctor vm.snap --host facts.json
    """
    if file is not None:
        return _judge(file, host, as_json=as_json, key=read_key(key_file))
    if host is not None or key_file is not None:
        raise ConfigError("--host and --key-file say how FILE is judged, so they go with one")
    import msgspec

    from snapkit.cli import sandbox
    from snapkit.vmm.facts import collect

    facts, confined = collect(), sandbox.describe()
    if as_json:
        click.echo(msgspec.json.encode(msgspec.to_builtins(facts) | {"sandbox": confined}))
    else:
        _show(facts, confined)
    return EXIT_DONE if facts.kvm.usable else IncompatibleHost.exit_code


def _judge(file: str, host: str | None, *, as_json: bool, key: bytes | None) -> int:
    from snapkit.restore.compatible import advice, compatible, forcible
    from snapkit.restore.restore import prepare
    from snapkit.state.host_facts import read_facts
    from snapkit.vmm.facts import collect

    facts = collect() if host is None else read_facts(read_small_file(host, "facts"), where=host)
    where = "this host" if host is None else f"the host of {host}"
    with prepare(file, key=key) as prepared:
        findings = compatible(prepared.sections, facts)
    if as_json:
        import json

        can = forcible()
        rows = [
            {
                "name": (name := finding.rule.removeprefix("host.")),
                "forcible": name in can,
                "component": finding.component,
                "path": finding.path,
                "value": finding.value,
                "expected": finding.expected,
            }
            for finding in findings
        ]
        click.echo(json.dumps({"compatible": not findings, "findings": rows}))
    elif findings:
        raise IncompatibleHost(f"{where} cannot run {file}; {advice(findings)}", findings=findings)
    else:
        click.echo(f"{where} can run {file}")
    return IncompatibleHost.exit_code if findings else EXIT_DONE


def _show(facts: "HostFacts", sandbox: dict[str, Any]) -> None:
    from snapkit.vmm.facts import capabilities

    kvm = facts.kvm
    click.echo(f"host    {facts.architecture}, Linux {facts.kernel}, {facts.cpus} CPUs, "
               f"{format_len(facts.memory_available)} of memory free")  # fmt: skip
    if facts.tsc_khz:
        click.echo(f"cpu     {facts.cpu_vendor or 'unknown'}, time-stamp counter {facts.tsc_khz} kHz")
    if facts.counter_hz:
        gic = "GICv3" if facts.gic_v3 else "no GICv3"
        click.echo(f"cpu     counter {facts.counter_hz} Hz, addresses of {facts.ipa_bits} bits, {gic}"
                   f"{' with ITS' if facts.its else ''}")  # fmt: skip
    if kvm.usable:
        click.echo(f"kvm     usable, up to {kvm.vcpus_max} vCPUs a machine")
    else:
        click.echo(f"kvm     NOT usable: {kvm.why}")
    asked = capabilities(facts.architecture)
    names = {one.name: one.name.removeprefix("KVM_CAP_").lower() for one in asked}
    width = max(map(len, names.values()))
    for name, _number, needed, meaning in asked:
        mark = "yes" if kvm.capabilities.get(name) else ("MISSING" if needed else "no")
        click.echo(f"  {names[name]:<{width}} {mark:<8} {meaning}")
    _show_sandbox(sandbox)
    if kvm.usable:
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
