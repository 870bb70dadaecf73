"""``snapkit restore``."""

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import click

from snapkit.cli.devices import asked_overrides, override_options
from snapkit.cli.keys import key_option, read_key, read_small_file
from snapkit.cli.session import Session, session_options
from snapkit.errors import ConfigError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from snapkit.cli.timeline import TimelineReport
    from snapkit.restore.restore import Prepared
    from snapkit.vmm.arch import ClockPolicy


@click.command(short_help="run a snapshot")
@click.argument("file")
@click.option("--paused", is_flag=True, help="Rebuild the machine but do not let it run.")
@click.option("--dry-run", is_flag=True, help="Read, check and plan only; print the steps. Needs no KVM.")
@click.option("--host", metavar="FACTS.json", help="With --dry-run: judge by another host's `doctor --json`.")
@click.option(
    "--clock",
    type=click.Choice(["continue", "realtime"]),
    default="continue",
    show_default=True,
    help="The guest's clocks go on where they were saved, or further by the wall time since.",
)
@click.option("--force", multiple=True, metavar="NAME", help="Run it although the host lacks what NAME is about.")
@click.option("--timeline", is_flag=True, help="Show what each step took, and page faults a second later.")
@click.option("--verify-memory", is_flag=True, help="Copy memory and check it, instead of mapping the file.")
@override_options
@key_option
@session_options
def restore(
    file: str,
    paused: bool,
    dry_run: bool,
    host: str | None,
    clock: "ClockPolicy",
    force: tuple[str, ...],
    timeline: bool,
    verify_memory: bool,
    key_file: str | None,
    **asked: Any,
) -> int:
    """Restore the snapshot FILE and run it until it ends.

    The file is mapped copy-on-write and never written: one file serves any number of machines at once. It must not
    be changed in place meanwhile (replacing it by another file is fine).

    A file that this host lacks something for is refused with every reason (exit code 4). --force overrides some by
    name: cpu-vendor and cpuid (the guest may use what is not there), msrs (those that KVM does not keep are dropped),
    physical-bits, clock, tsc (the counter runs at this host's rate).

    \b
    Examples:
      snapkit restore vm.snap
      snapkit restore vm.snap --dry-run --host facts.json
      snapkit restore vm.snap --force tsc --force cpuid
      snapkit restore vm.snap --timeline --exit-when "tick 500" --timeout 10
      snapkit restore vm.snap --disk id=root,overlay=/var/tmp --net id=eth0,tap=tap7
      snapkit restore vm.snap --control vm.sock --sandbox --snapshot-dir /srv/snapshots
    """
    from snapkit.restore.compatible import require_forcible
    from snapkit.restore.pipeline import Step
    from snapkit.restore.restore import prepare
    from snapkit.state.host_facts import read_facts
    from snapkit.vmm.arch import native
    from snapkit.vmm.facts import live
    from snapkit.vmm.machine import Machine

    if host is not None and not dry_run:
        raise ConfigError("--host judges by another host's facts, so it goes with --dry-run")
    require_forcible(force)
    key, overrides = read_key(key_file), asked_overrides(asked)
    session = Session(**asked, key=key)
    with (
        _reporting(session if timeline and not dry_run else None) as report,
        prepare(file, key=key, paused=paused, architecture=None if host else native().MAP.architecture) as prepared,
    ):
        for dropped in prepared.dropped:
            click.echo(f"snapkit: not restored: {dropped}", err=True)
        overrides.require_known(prepared.sections)
        if host is not None:
            facts = read_facts(read_small_file(host, "facts"), where=host)
            prepared.judge(lambda **_: facts, force=force, where=f"the host of {host}")
        elif not dry_run:
            prepared.judge(live, force=force)
        if dry_run:
            _show_steps(prepared, as_json=asked["as_json"])
            return 0
        session.parent_id = prepared.image.preamble.snapshot_id

        copied = verify_memory or key is not None
        if session.sandbox:
            kinds = {section.kind for section in prepared.sections}
            enter: Step[Any] = Step(
                "claim", "enter the sandbox", lambda _: session.seal(kinds, copies=copied), lambda _: None
            )
            prepared.add(enter)

        def build(loop: Any, console: Any) -> Machine:
            machine = Machine(loop, console, verify_memory=copied, overrides=overrides.values, clock=clock)
            if report is not None:
                report.watch(machine, loop)
            try:
                prepared.run(machine)
            except BaseException:
                machine.close()
                raise
            finally:
                if report is not None:
                    report.show(prepared.timeline)
            prepared.close()
            return machine

        return session.run(build)


def _reporting(session: Session | None) -> "AbstractContextManager[TimelineReport | None]":
    if session is None:
        return nullcontext()
    from snapkit.cli.timeline import TimelineReport

    return TimelineReport(session)


def _show_steps(prepared: "Prepared", *, as_json: bool) -> None:
    if as_json:
        import json

        steps = [{"stage": step.stage, "step": step.name, "reasons": list(step.reasons)} for step in prepared.steps]
        click.echo(json.dumps({"steps": steps}))
        return
    for step in prepared.steps:
        click.echo(f"{step.stage:<9} {step.name}")
